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
# # Amortised inference and what it costs
#
# Before there were encoders, every datum had variational parameters of its own, and inference meant
# to optimise them, datum by datum. A VAE's encoder replaces the optimisation by one pass of a
# network: inference is *amortised* over the data. That is why VAEs scale. But a network that has to
# serve all data serves none of them perfectly. How much is lost, in nats? How much time is won? Can
# the loss be bought back? This tutorial measures all three on one model.
#
# You should have seen tutorials 01 and 02. The full run takes two or three minutes on one CPU core.

# %%
import os
import sys
import time

import matplotlib.pyplot as plt
import numpy as np
import torch

import pyro_vae as pv

# In a notebook figures appear below their cell; as a plain script, draw, but open no window.
NOTEBOOK = "ipykernel" in sys.modules
plt.switch_backend("module://matplotlib_inline.backend_inline" if NOTEBOOK else "agg")
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11}

SMOKE = bool(os.environ.get("PYRO_VAE_SMOKE"))  # a short run, to test that everything works
EPOCHS = 1 if SMOKE else 60
DIGITS = 4 if SMOKE else 100  # test digits whose posteriors are looked at
DRAWS = 50 if SMOKE else 1000  # draws behind each bound
CLIMB = 20 if SMOKE else 3000  # steps of Adam per datum, at most
ANNEALED = pv.AIS(3, chains=2, pilot=8) if SMOKE else pv.AIS(100, chains=8, num_leapfrog=3)
LATENT, HIDDEN = 8, 128
BLUE, RED, GREEN, SAND, GREY = "#332288", "#CC6677", "#117733", "#DDAA33", "#777777"


# %% [markdown]
# ## 1. One model, two ways to train it
#
# Both maximise the same bound with the same decoder; they differ in where $q(z_n)$ comes from.
#
# - **A network**: $q(z_n) = N(\mu_\phi(x_n), \sigma_\phi(x_n))$. One $\phi$ serves all data.
# - **A table**: $q(z_n) = N(\mu_n, \sigma_n)$, one row of parameters per training datum. This is
#   SVI as it was before encoders. `pv.LocalGuide` takes any model and gives it such a table; its
#   batches carry the row numbers, and its optimizer leaves the rows at rest that a batch lacks.

# %%
digits = pv.data.load("digits", binarization="threshold")
train, test = digits.train, digits.test[:DIGITS]

torch.manual_seed(0)
vae = pv.models.VAE(64, LATENT, hidden=(HIDDEN,))
network = pv.fit(vae, train, epochs=EPOCHS, lr=2e-3, progress=False)

torch.manual_seed(0)
twin = pv.models.VAE(64, LATENT, hidden=(HIDDEN,))  # the same decoder; its encoder is never asked
table = pv.LocalGuide(twin, train)
tabled = pv.fit(
    table, table.rows(train), epochs=EPOCHS, optimizer=table.optimizer(lr=2e-3), progress=False
)

for name, run in (("network", network), ("table", tabled)):
    seconds = run.history["seconds"].sum()
    print(f"{name:<8} training ELBO {run.history['elbo'][-1]:.2f} nats, {seconds:.1f} s")
rows = sum(p.numel() for p in (table.loc, table.log_scale))
weights = sum(p.numel() for name, p in vae.named_parameters() if name.startswith("encode"))
print(f"parameters of q: {weights:,} in the network, {rows:,} in the table of {len(train)} digits")

# %% [markdown]
# The network learns faster: what it learns from one digit serves the similar ones, while a row of
# the table moves only when its own digit comes by, once per epoch. And the table grows with the
# data. The greatest difference comes now: a *new* digit has no row.

# %%
curve, axes = plt.subplots(figsize=(6.2, 3.4), layout="constrained")
for name, run, colour in (("network", network, BLUE), ("table", tabled, RED)):
    axes.plot(run.history["epoch"], run.history["elbo"], color=colour, lw=1.6)
    axes.annotate(
        name,
        (run.history["epoch"][-1], run.history["elbo"][-1]),
        (4, 0),
        textcoords="offset points",
        color=colour,
        va="center",
    )
low = min(network.history["elbo"][0], tabled.history["elbo"][EPOCHS // 4])
axes.set(xlabel="epoch", ylabel="training ELBO, nats per digit")
axes.set_ylim(bottom=low)
axes.margins(x=0.12)
axes.set_title("The same decoder, trained with two kinds of q", loc="left")

# %% [markdown]
# ## 2. A new datum: one pass, or a climb
#
# `pv.infer` answers for new data, and `how` says by what means. All three answers are Gaussians
# under the *same* decoder (that of the VAE), so their bounds can be compared.
#
# - `how="amortised"`: the encoder, one pass;
# - `how="local"`: from the prior up to the best Gaussian, datum by datum; each has its own learning
#   rate, which falls when the datum's bound stands still, and stops by itself;
# - `how="semi"`: starts at the encoder's answer and takes 20 steps (semi-amortised inference).

# %%
ways = {
    "amortised": {},
    "semi": {},
    "local": {"settings": pv.Local(num_steps=CLIMB, start="prior")},
}
bounds, seconds, posteriors = {}, {}, {}
for how, settings in ways.items():
    torch.manual_seed(1)
    begin = time.perf_counter()
    posteriors[how] = pv.infer(vae, test, how=how, **settings)
    posteriors[how].sample()
    seconds[how] = (time.perf_counter() - begin) / len(test)
    bounds[how] = posteriors[how].log_weight(DRAWS).mean(0)
    print(
        f"{how:<10} ELBO {bounds[how].mean():>8.3f} nats, {1e3 * seconds[how]:>8.3f} ms per digit"
        f", {seconds[how] / seconds['amortised']:>6.0f} times the encoder's time"
    )
gain = bounds["local"] - bounds["amortised"]
noise = (gain.std() / len(gain) ** 0.5).item()
print(f"local - amortised: {gain.mean():.3f} ± {noise:.3f} nats")
assert SMOKE or gain.mean() > 5 * noise  # the best q of each datum beats one network for all

# %% [markdown]
# How fast does the climb pay? We stop it after 1, 2, 5, ... steps, once from the prior and once
# from the encoder. The horizontal lines are one pass of the encoder, and the top of the climb.

# %%
counts = (1, 5, 20) if SMOKE else (1, 2, 5, 10, 20, 50, 100, 200, 500)
climbs = {"prior": [], "guide": []}
for start, found in climbs.items():
    for steps in counts:
        torch.manual_seed(2)
        settings = pv.Local(num_steps=steps, start=start, patience=None)
        posterior = pv.infer(vae, test, how="local", settings=settings)
        found.append(posterior.log_weight(DRAWS // 4).mean().item())

figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
top, encoder = bounds["local"].mean().item(), bounds["amortised"].mean().item()
for start, label, colour in (
    ("prior", "from the prior", RED),
    ("guide", "from the encoder", GREEN),
):
    left.plot(counts, climbs[start], "o-", color=colour, ms=4, lw=1.4, label=label)
for value, label, side in ((top, "best local q", "bottom"), (encoder, "encoder alone", "top")):
    left.axhline(value, color=GREY, lw=1, ls="--")
    left.annotate(
        label,
        (counts[0], value),
        (0, 2 if side == "bottom" else -2),
        textcoords="offset points",
        va=side,
        fontsize=9,
        color=GREY,
    )
left.set_ylim(encoder - 3 * max(top - encoder, 0.2), top + 0.6 * max(top - encoder, 0.2))
left.set(xscale="log", xlabel="steps of Adam per digit", ylabel="test ELBO, nats per digit")
left.legend(frameon=False, loc="lower right")
left.set_title("What steps buy", loc="left")
order = bounds["amortised"].argsort()
right.plot(bounds["amortised"][order], gain[order], "o", color=BLUE, ms=4, alpha=0.7, mew=0)
right.axhline(0, color=GREY, lw=1)
right.set(xlabel="ELBO of the encoder, nats", ylabel="gain of the best local q, nats")
right.set_title("Who gains: each dot is a test digit", loc="left")

# %% [markdown]
# Three readings. From the prior a digit needs some forty steps, each with sixteen draws, to pass
# what the encoder answers at once; the encoder is hundreds of times cheaper than the whole climb.
# From the encoder's answer, twenty steps close nearly all of the distance that is left: this is the
# bargain of semi-amortised inference. And the gain is not spread evenly: the digits that the model
# finds hard (on the left) gain most, since the network has seen few like them.
#
# ## 3. Where the bound is lost
#
# The ELBO stays below $\log p(x)$ by $\mathrm{KL}(q \,\|\, p(z \mid x))$. Cremer et al. (2018)
# split this total in two. With $q^*$ the best member of the family for each datum,
#
# $$\underbrace{\log p(x) - \mathcal L[q^*]}_{\text{approximation: the family}} \;+\;
#   \underbrace{\mathcal L[q^*] - \mathcal L[q]}_{\text{amortisation: the network}} .$$
#
# `pv.gaps` measures both. Its $\log p(x)$ is the best of three lower bounds (importance sampling
# from the encoder and from $q^*$, and AIS). First the instrument itself, on a linear VAE: there
# both gaps are known. With $M = W^\top W + \sigma^2 I$ the best diagonal Gaussian loses
# $\tfrac12 (\sum_i \log M_{ii} - \log \det M)$, and the best linear encoder loses nothing more.

# %%
grey = pv.data.load("digits")
linear = pv.models.LinearVAE.from_data(grey.train.double(), latent_dim=LATENT)
with torch.no_grad():  # turn the latent space: p(x) stays, the posterior leaves the axes
    turn = torch.linalg.qr(torch.randn(LATENT, LATENT, dtype=torch.float64)).Q
    linear.weight.copy_(linear.weight @ turn)
    linear.match_posterior()  # the best diagonal guide
    precision = linear.weight.mT @ linear.weight + linear.log_scale.mul(2).exp() * torch.eye(LATENT)
    known = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()

climb = pv.Local(num_steps=CLIMB)
checked = pv.gaps(
    linear, grey.test[:DIGITS].double(), local=climb, annealed=ANNEALED, num_particles=DRAWS
)
print(checked.table())
print(f"exact: approximation gap {known:.3f}, amortisation gap 0")
assert SMOKE or abs(checked.mean["amortisation"]) < 0.05
assert SMOKE or abs(checked.mean["approximation"] - known) < 0.1

# %% [markdown]
# The instrument reads right. Now the VAE, once early and once late in its training, and once with a
# family that contains correlations: a Gaussian with a full covariance for each datum.

# %%
torch.manual_seed(0)
early = pv.models.VAE(64, LATENT, hidden=(HIDDEN,))
pv.fit(early, train, epochs=max(1, EPOCHS // 6), lr=2e-3, progress=False)
full = pv.Local(num_steps=CLIMB, full_covariance=True)
measured = {}
for name, program, best in (
    ("early, diagonal q*", early, climb),
    ("late, diagonal q*", vae, climb),
    ("late, full q*", vae, full),
):
    torch.manual_seed(3)
    measured[name] = pv.gaps(program, test, local=best, annealed=ANNEALED, num_particles=DRAWS)
    print(f"{name}: {measured[name]}")
print("\nlate, diagonal q*, in full:")
print(measured["late, diagonal q*"].table())

# %%
pv.plots.gaps(measured, title="Where the bound of a VAE on digits is lost")

# %% [markdown]
# While the decoder learns to use its code the posteriors become narrower and less Gaussian, and the
# total gap *grows* with training. The network's share is as large as that of the diagonal family,
# or larger: such a VAE would gain as much from better amortisation (a larger encoder, a few steps
# per datum) as from a richer family. A full covariance removes most of the approximation gap, but
# the total stays: the encoder still predicts a diagonal, and what $q^*$ gains counts as
# amortisation until an encoder learns to predict it.
#
# ## 4. Seeing one posterior
#
# The digit that gains most, in its two widest latent directions: contours of the true
# $p(z \mid x)$ through the optimum, the encoder's Gaussian and the best diagonal one (ellipses of
# two standard deviations).

# %%
worst = int(gain.argmax())
q_best = posteriors["local"]
loc, scale = q_best.mean[worst], q_best.gaussians.scale[worst]
with torch.no_grad():
    q_encoder = vae.encoder(test[worst : worst + 1]).base_dist
distance = ((q_encoder.loc[0] - loc) / scale).abs() + (q_encoder.scale[0] / scale).log().abs()
i, j = distance.topk(2).indices.tolist()
span = torch.linspace(-5, 5, 80)
grid = loc.repeat(80 * 80, 1)
grid[:, i] += span.repeat_interleave(80) * scale[i]
grid[:, j] += span.repeat(80) * scale[j]
with torch.no_grad():
    log_joint = vae.prior().log_prob(grid) + vae.decoder(grid).log_prob(test[worst])
surface = (log_joint - log_joint.max()).reshape(80, 80).mT

figure, (left, right) = plt.subplots(
    1, 2, figsize=(8.6, 3.9), layout="constrained", width_ratios=[1.5, 1]
)
x_axis, y_axis = loc[i] + span * scale[i], loc[j] + span * scale[j]
left.contourf(x_axis, y_axis, surface, levels=[-8, -4, -2, -1, -0.5, 0], cmap="Greys", alpha=0.8)
angle = torch.linspace(0, 2 * np.pi, 100)
for name, m, s, colour in (
    ("encoder", q_encoder.loc[0], q_encoder.scale[0], BLUE),
    ("best diagonal q", loc, scale, RED),
):
    left.plot(m[i] + 2 * s[i] * angle.cos(), m[j] + 2 * s[j] * angle.sin(), color=colour, lw=1.8)
    left.plot(m[i], m[j], "+", color=colour, ms=9, mew=1.8, label=name)
left.set(xlabel=f"$z_{{{i}}}$", ylabel=f"$z_{{{j}}}$")
left.legend(frameon=False, loc="upper left")
left.set_title(f"log p(x, z): {gain[worst]:.2f} nats between the two", loc="left")
pictures = torch.cat(
    [
        test[worst : worst + 1],
        vae.decoder(q_encoder.loc).mean.detach(),
        vae.decoder(loc[None]).mean.detach(),
    ]
)
right.imshow(pictures.reshape(3, 8, 8).permute(1, 0, 2).reshape(8, 24), cmap="Greys_r")
for place, name in enumerate(("digit", "encoder", "best q")):
    right.text(8 * place + 3.5, 8.6, name, ha="center", fontsize=9)
right.axis("off")

# %% [markdown]
# ## 5. New data and a table
#
# The model trained with a table has no encoder at all; `pv.infer` still answers for new digits,
# since a climb needs none. A table has no amortisation gap to bend the decoder, but that is of use
# only once its rows have converged: after as many epochs as the network had, each row has moved
# only that many times, and the model lags behind.

# %%
torch.manual_seed(4)
without = pv.infer(table, test, how="local", settings=pv.Local(num_steps=CLIMB, start="prior"))
print(f"trained with the network: {bounds['local'].mean():.2f} nats at the best local q")
print(f"trained with a table:     {without.log_weight(DRAWS).mean():.2f} nats at the best local q")

# %% [markdown]
# ## 6. Exercises
#
# 1. Double the epochs of the table's training. Does it catch up with the network?
# 2. `pv.Local(stick=False)` takes the entropy's gradient in closed form in place of *sticking the
#    landing*. On the linear VAE, compare the remaining amortisation gaps. Explain the difference by
#    the noise of the gradient at the optimum.
# 3. Train a VAE with an encoder of `hidden=(512, 512)`. Which of the two gaps shrinks?
# 4. `pv.infer(vae, test, how="hmc")` draws from $p(z \mid x)$ itself. Compare its `.mean` and
#    `.scale` with the diagonal and the full Gaussian: which moments does the diagonal get wrong?
# 5. Apply `pv.gaps` to digits that are not digits (`1 - test`). What does amortisation cost there?
#
# To read on: Hoffman et al., *Stochastic variational inference* (2013), arXiv:1206.7051; Cremer et
# al., *Inference suboptimality in variational autoencoders* (2018), arXiv:1801.03558; Kim et al.,
# *Semi-amortized variational autoencoders* (2018), arXiv:1802.02550; Roeder et al., *Sticking the
# landing* (2017), arXiv:1703.09194.
