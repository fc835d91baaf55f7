# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Deep exponential families
#
# A VAE has Gaussian latents and a neural network between them and the data. A *deep exponential
# family* (Ranganath et al., 2015) has neither: its units are gamma, Poisson or Gaussian variables,
# each layer's means are a weighted sum of the layer above, and the weights are latent variables
# too, with a prior and a posterior of their own. What it learns can be read: parts, and parts of
# parts. This tutorial checks such a model where it is exactly solvable, trains one on digits in
# minibatches, and asks what a posterior over weights is good for.
#
# You should have seen tutorials 01 and 02. The full run takes a minute or two on one CPU core.

# %%
import os
import sys

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch

import pyro_vae as pv

# In a notebook figures appear below their cell; as a plain script, draw, but open no window.
NOTEBOOK = "ipykernel" in sys.modules
plt.switch_backend("module://matplotlib_inline.backend_inline" if NOTEBOOK else "agg")
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11}

SMOKE = bool(os.environ.get("PYRO_VAE_SMOKE"))  # a short run, to test that everything works
EPOCHS = 2 if SMOKE else 200
COMPILE = False if SMOKE else "trace"  # a graph pays after some hundred steps
DRAWS = 2 if SMOKE else 20  # of the weights, where a bound is reported
SMALL = 40 if SMOKE else 100  # digits in the small training set of section 4
BLUE, RED, GREEN, SAND, GREY = "#332288", "#CC6677", "#117733", "#DDAA33", "#777777"

# %% [markdown]
# ## 1. One sparse unit, solved
#
# A gamma variable of shape $a = 0.1$ and mean 1 is *sparse*: nearly always close to zero, now and
# then large. On a logarithmic axis it spreads over many orders of magnitude.

# %%
torch.manual_seed(0)
figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
grid = torch.logspace(-8, 2, 400)
for shape, colour in ((0.1, BLUE), (1.0, SAND), (10.0, RED)):
    density = dist.Gamma(shape, shape).log_prob(grid).exp() * grid  # per unit of log z
    axes.plot(grid, density, color=colour, lw=1.8, label=f"shape {shape:g}")
axes.set(xscale="log", xlabel="z", ylabel="density of log z")
axes.legend(frameon=False, loc="upper left")
axes.set_title("Three gamma laws of mean 1", loc="left")

# %% [markdown]
# One such unit with known weights over Poisson counts is conjugate: with
# $z \sim \mathrm{Gamma}(a, a)$ and $x_d \sim \mathrm{Poisson}(w_d z)$ the posterior is
# $\mathrm{Gamma}(a + \sum_d x_d,\; a + \sum_d w_d)$, and for one count the marginal is a negative
# binomial. `pv.models.DEF` is that model with `latent_dims=(1,)` and `weights="point"`. We train
# a row of variational parameters per datum (`num_data`), hold the weight fixed, and compare.

# %%
x = torch.tensor([[0.0], [1.0], [3.0], [8.0], [15.0]])
unit = pv.models.DEF(1, (1,), weights="point", shape=0.5, num_data=len(x))
unit.weight_loc[0].data.fill_(2.0).log_()
unit.weight_loc.requires_grad_(False)
pv.fit(
    unit,
    unit.rows(x),
    objective=pv.ELBO(num_particles=50),
    epochs=5 if SMOKE else 400,
    lr=0.1,
    lr_schedule=pv.schedules.cosine(1.0, 0.02),
    compile=COMPILE,
    progress=False,
)
with torch.no_grad():
    q = unit.guide_of(**unit.rows(x))["z1"]
    bound = pv.elbo(unit, unit.rows(x), num_particles=2000)
exact = dist.NegativeBinomial(0.5, probs=torch.tensor(2.0 / 2.5)).log_prob(x[:, 0])
print(" x   mean of q   exact   ELBO     log p(x)")
for n, count in enumerate(x[:, 0]):
    print(
        f"{count:>2.0f}   {q.mean[n, 0]:>8.3f} {(0.5 + count) / 2.5:>8.3f}"
        f" {bound[n]:>8.3f} {exact[n]:>9.3f}"
    )
if not SMOKE:
    assert (bound - exact).abs().max() < 0.05

# %% [markdown]
# The bound meets the log-likelihood, because the posterior is in the guide's family. From here on
# it is not, and the bound is a bound.
#
# ## 2. Digits as counts
#
# Scikit-learn's digits have 64 pixels with grey levels 0 to 16: counts. Two layers of sparse gamma
# units of shape 0.3, 30 and 8, an encoder for the units, and gamma posteriors for all weights. The
# weights are *global*: one draw explains all digits, so a minibatch of $B$ out of $N$ digits has to
# be weighed by $N / B$ against them. `pv.fit` sees that the sites `w0` and `w1` stand outside the
# plate and does it.
#
# Sparse units are easily shut off for good while their weights know nothing yet. So the KL of the
# units, not that of the weights, is warmed up over the first third of the run. Without that the
# bound ends some ten nats lower.

# %%
digits = pv.data.load("digits")
train, test = ((16 * split).round() for split in (digits.train, digits.test))
torch.manual_seed(1)
model = pv.models.DEF(64, (30, 8), shape=0.3, hidden=(128,), data_mean=train.mean(0))
print(pv.Program.of(model).sites)
options = {
    "epochs": EPOCHS,
    "batch_size": 128,
    "lr_schedule": pv.schedules.cosine(1.0, 0.05),
    "beta": {site: pv.schedules.linear(0.0, 1.0, over=0.3) for site in ("z1", "z2")},
    "compile": COMPILE,
    "progress": False,
}
run = pv.fit(model, train, lr=0.01, **options)

# %% [markdown]
# The ELBO per datum contains the weights' KL divided by $N$, so that the sum over the data counts
# it once. For new data the weights cost nothing more: their posterior is what was learnt. We score
# test digits at draws of it. Independent Poisson pixels are the yardstick.


# %%
@torch.no_grad()
def held_out(program, x):
    """Return the bound per datum of new data, at draws of the weights, and its standard error."""
    terms = pv.Program.of(program).terms(x, num_global_samples=DRAWS)
    per_datum = terms.log_weight.mean((0, 1))
    return per_datum.mean().item(), (per_datum.std() / len(x) ** 0.5).item()


independent = dist.Poisson(train.mean(0).clamp(min=1e-3)).to_event(1).log_prob(test).mean()
value, error = held_out(model, test)
print(f"independent Poisson pixels {independent:.1f} nats per digit")
print(f"sparse-gamma DEF 30-8      {value:.1f} ± {error:.1f}")
if not SMOKE:
    assert value > independent + 30

# %% [markdown]
# What did it learn? Each column of $w_0$ says which pixels a unit of the first layer lights up. A
# unit of the second layer lights up units of the first: $w_1$ times $w_0$ is its picture.

# %%
with torch.no_grad():
    w0, w1 = (model.weight_posterior(level).mean for level in (0, 1))
    order = w0.sum(1).argsort(descending=True)
figure, axes = plt.subplots(4, 8, figsize=(7.6, 4.1), layout="constrained")
for cell, image in zip(axes.flat, torch.cat([w0[order[:24]], w1 @ w0]), strict=True):
    cell.imshow(image.reshape(8, 8), cmap="Greys", vmin=0)
    cell.set_axis_off()
axes[0, 0].set_title("24 units of the first layer", loc="left")
axes[3, 0].set_title("all 8 units of the second", loc="left")

# %% [markdown]
# The first layer holds strokes, and some whole digits. In the second a few units have found a group
# (one is round, one has a foot); the others light up the mean digit. Sparse units vary so much
# around their mean that little can be said from above: `pv.diagnose` finds about a tenth of the KL
# in the second layer.
#
# And how many units does one digit use? Five of the 30 explain nine tenths of its ink.

# %%
with torch.no_grad():
    use = model.guide_of(test)["z1"].mean * w0.sum(1)  # expected counts that each unit explains
share = (use / use.sum(1, keepdim=True)).sort(1, descending=True).values.cumsum(1)
figure, axes = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
axes.plot(range(1, 31), share.mean(0), color=BLUE, marker="o", ms=4)
axes.set(xlabel="units, the strongest first", ylabel="share of the ink explained", ylim=(0, 1.02))
axes.set_title("A digit is a sum of a few parts", loc="left")

# %% [markdown]
# Generation goes from the top: a draw of the weights from their posterior, then sparse causes, then
# their parts, then ink. How much ink is what this model gets wrong: a sum of few sparse units may
# be far too small or too large. So each picture has a grey scale of its own.

# %%
torch.manual_seed(2)
drawn = pv.generate(model, 16, mean=True)
figure, axes = plt.subplots(2, 8, figsize=(7.6, 2.1), layout="constrained")
for cell, image in zip(axes.flat, drawn, strict=True):
    cell.imshow(image.reshape(8, 8), cmap="Greys", vmin=0)
    cell.set_axis_off()

# %% [markdown]
# ## 3. An encoder, or a row per digit
#
# `num_data` gives each training digit its own row of variational parameters, as in the original
# paper. The batch then says which rows are whose.

# %%
torch.manual_seed(1)
table = pv.models.DEF(64, (30, 8), shape=0.3, num_data=len(train), data_mean=train.mean(0))
rows = table.rows(train)
tabled = pv.fit(table, rows, lr=0.02, **options)
for name, program, batch in (("encoder", model, train), ("table", table, rows)):
    bound = pv.elbo(program, batch, num_global_samples=DRAWS).mean()
    size = sum(p.numel() for key, p in program.named_parameters() if "weight_" not in key)
    print(f"{name:<8} training ELBO {bound:.1f} nats per digit, {size:,} parameters of q(z)")

# %%
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for history, label, colour in ((run.history, "encoder", BLUE), (tabled.history, "table", RED)):
    axes.plot(history["epoch"], history["elbo"], color=colour, lw=1.6, label=label)
low = min(h["elbo"][len(h["elbo"]) // 10] for h in (run.history, tabled.history))
axes.set(xlabel="epoch", ylabel="training ELBO, nats per digit")
axes.set_ylim(bottom=low)
axes.legend(frameon=False)

# %% [markdown]
# The table starts slower, as each of its rows gets one step per epoch, and it ends higher: no
# encoder stands between a digit and its posterior. It pays with five times the parameters, and it
# has no answer for a new digit.
#
# ## 4. Point estimates are your choice
#
# `weights="point"` makes the weights ordinary parameters. With much data that changes little. With
# few data a point estimate believes too much: it fits what it has seen, and pays on what it has
# not. Compare both on a small training set, over training and test digits.

# %%
small = train[:SMALL]
results = {}
for weights in ("bayesian", "point"):
    torch.manual_seed(3)
    some = pv.models.DEF(64, (30,), weights=weights, hidden=(64,), data_mean=small.mean(0))
    pv.fit(
        some,
        small,
        epochs=2 if SMOKE else 1500,
        batch_size=SMALL,
        lr=0.01,
        compile=COMPILE,
        progress=False,
    )
    results[weights] = [held_out(some, x)[0] for x in (small, test)]
print("weights    training digits   test digits")
for weights, (seen, unseen) in results.items():
    print(f"{weights:<9} {seen:>16.1f} {unseen:>13.1f}")

# %% [markdown]
# (The bound of the training digits is without the weights' KL here, so that the columns can be
# compared.) The gap between the two columns is what overfitting costs. It has two sources: the
# weights, which a posterior holds back, and the encoder, which it does not. Here the posterior over
# the weights more than halves the gap, and wins on the test digits what it gave up on the others.
#
# The same choice exists for a VAE: `pv.models.BayesianVAE` is a `VAE` whose decoder weights have a
# Gaussian posterior. Its sites are global, so everything above holds: N/B, draws from what was
# learnt, one bound for all.

# %%
bits = pv.data.load("digits", binarization="threshold")
for build in (pv.models.VAE, pv.models.BayesianVAE):
    torch.manual_seed(4)
    vae = build(64, 4, hidden=(64,))
    pv.fit(
        vae,
        bits.train[:SMALL],
        epochs=2 if SMOKE else 800,
        batch_size=SMALL,
        lr=3e-3,
        compile=COMPILE,
        progress=False,
    )
    seen, unseen = (held_out(vae, x)[0] for x in (bits.train[:SMALL], bits.test))
    print(f"{build.__name__:<12} training {seen:>7.1f}   test {unseen:>7.1f} nats per digit")

# %% [markdown]
# ## 5. Other families
#
# The layers may be Poisson or Gaussian, the data bits. Poisson units have no pathwise gradient;
# any score-function objective of tutorial 02 serves. Independent pixels are the yardstick again.

# %%
families = {
    "gamma": pv.ELBO(num_particles=4),
    "gaussian": pv.ELBO(num_particles=4),
    "poisson": pv.RLOO(num_particles=4),
}
mean = bits.train.mean(0)
independent = dist.Bernoulli(mean.clamp(1e-3, 1 - 1e-3)).to_event(1).log_prob(bits.test).mean()
print("family     test bound, nats per digit")
print(f"none      {independent:>8.1f}   (independent pixels)")
for family, objective in families.items():
    torch.manual_seed(5)
    other = pv.models.DEF(
        64,
        (20,),
        family=family,
        observation="bernoulli",
        weights="point",
        hidden=(64,),
        data_mean=mean,
    )
    pv.fit(
        other,
        bits.train,
        objective=objective,
        epochs=EPOCHS,
        lr=0.01,
        lr_schedule=pv.schedules.cosine(1.0, 0.05),
        beta=pv.schedules.linear(0.0, 1.0, over=0.3),
        compile=COMPILE,
        progress=False,
    )
    print(f"{family:<9} {held_out(other, bits.test)[0]:>8.1f}")

# %% [markdown]
# ## 6. Exercises
#
# 1. Draw the weights' prior as in the first figure. Which prior would you choose for dense parts?
# 2. In section 2, use `posterior="lognormal"`. Does the training bound fall? Where does a lognormal
#    law fail to look like a sparse gamma law?
# 3. Train with `batch_size` 32 and 1297 for the same number of steps. Which weights move more?
# 4. Replace the encoder of section 4 by a table. Does the training bound still exceed the test one?
#    (New digits have no row: freeze the weights and train rows for them.)
# 5. Add a third layer of 3 units. Is it used? `pv.diagnose` tells the KL of each site.
#
# To read on: Ranganath et al., *Deep exponential families* (2015), arXiv:1411.2581; Naesseth et
# al., *Reparameterization gradients through acceptance-rejection sampling algorithms* (2017),
# arXiv:1610.05683; Figurnov et al., *Implicit reparameterization gradients* (2018),
# arXiv:1805.08498; Blundell et al., *Weight uncertainty in neural networks* (2015),
# arXiv:1505.05424.
