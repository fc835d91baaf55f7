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
# # Layers: hierarchical and ladder VAEs
#
# One layer of latents must say everything at once: which digit, how slanted, which pixels. With
# several layers the upper ones can say the gist and the lower ones the detail. That is the hope; in
# practice upper layers tend to fall silent, and one reason is the *guide*. This tutorial builds a
# chain of layers as a Pyro program, gives it two guides (from the data up, and from the top down),
# checks one of them against Bayes' rule, and looks at what each layer has learnt to say.
#
# You should have seen tutorial 01. The full run takes about two minutes on one CPU core.

# %%
import os
import sys

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

import pyro_vae as pv

# In a notebook figures appear below their cell; as a plain script, draw, but open no window.
NOTEBOOK = "ipykernel" in sys.modules
plt.switch_backend("module://matplotlib_inline.backend_inline" if NOTEBOOK else "agg")
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11}

SMOKE = bool(os.environ.get("PYRO_VAE_SMOKE"))  # a short run, to test that everything works
EPOCHS = 1 if SMOKE else 60
COMPILE = False if SMOKE else "trace"  # a graph pays after some hundred steps
SAMPLES = 50 if SMOKE else 1000  # importance samples per digit for the log-likelihood
DEPTH = 4 if SMOKE else 10  # layers of section 6
LATENTS, HIDDEN = (16, 8, 4), (128, 64, 32)  # the data side first
BLUE, RED, SAND, GREY = "#332288", "#CC6677", "#DDAA33", "#777777"

# %% [markdown]
# ## 1. A chain of layers, and one pass down
#
# The story of a datum starts at the top:
#
# $$z_L \sim N(0, I), \qquad
#   z_l \mid z_{l+1} \sim N\left(\mu_l(z_{l+1}), \sigma_l^2(z_{l+1})\right), \qquad
#   x \mid z_1 \sim p(x \mid z_1) .$$
#
# We take the smallest case that has everything: two layers of one number each, and linear maps. So
# we know the answer to every question. The program makes **one pass from the top down** and asks a
# function `draw` for each latent: who asks decides where the values come from.

# %%
SLOPE, SPREAD, NOISE = 1.5, 0.5, 0.8


def prior(layer, above):
    """Return p(z_l | z_{l+1}); nothing stands above layer 2."""
    if layer == 2:
        return dist.Normal(torch.zeros(()), torch.ones(()))
    return dist.Normal(SLOPE * above, torch.as_tensor(SPREAD))


def descend(draw):
    z2 = draw(2, None)
    return draw(1, z2)


def model(x):
    with pyro.plate("data", len(x)):
        z1 = descend(lambda layer, above: pyro.sample(f"z{layer}", prior(layer, above)))
        pyro.sample("x", dist.Normal(z1, NOISE), obs=x)


# %% [markdown]
# ## 2. A guide that goes up, and one that comes down
#
# The obvious guide mirrors the model: $q(z_1 \mid x)\, q(z_2 \mid z_1)$. It sees $x$ above layer 1
# only through a noisy draw. The **ladder** (Sønderby et al., 2016) splits the work. A pass upward
# *without noise* collects what the data say about each layer, as a Gaussian
# $N(\hat\mu_l, \hat\sigma_l^2)$. A pass downward, the one of the model, knows what the layers above
# say about it: the prior. Two Gaussians about one number are multiplied, which weighs each by its
# precision:
#
# $$\frac{1}{\sigma^2} = \frac{1}{\sigma_p^2} + \frac{1}{\hat\sigma^2}, \qquad
#   \mu = \frac{\mu_p / \sigma_p^2 + \hat\mu / \hat\sigma^2}{1 / \sigma_p^2 + 1 / \hat\sigma^2} .$$
#
# This is Bayes' rule, so in our linear chain the ladder guide can be *exact*. What $x$ says of
# $z_1$ is $N(x, 0.8^2)$; what it says of $z_2$ is that, pulled back through $z_1 = 1.5\, z_2$.


# %%
def merge(p, evidence):
    precision = p.scale**-2 + evidence.scale**-2
    loc = (p.loc / p.scale**2 + evidence.loc / evidence.scale**2) / precision
    return dist.Normal(loc, precision**-0.5)


def upward(x):
    """Return the evidence of x on each layer."""
    of_z2 = dist.Normal(x / SLOPE, torch.tensor(NOISE**2 + SPREAD**2) ** 0.5 / SLOPE)
    return {1: dist.Normal(x, torch.tensor(NOISE)), 2: of_z2}


def guide(x):
    evidence = upward(x)
    with pyro.plate("data", len(x)):
        descend(
            lambda layer, above: pyro.sample(
                f"z{layer}", merge(prior(layer, above), evidence[layer])
            )
        )


# %% [markdown]
# If the guide is the posterior, the weight $p(x, z) / q(z \mid x)$ is $p(x)$ *whatever $z$ was
# drawn*: the ELBO has no noise and no gap. Here $x \sim N(0,\; 1.5^2 + 0.5^2 + 0.8^2)$.

# %%
x = torch.linspace(-4, 4, 9, dtype=torch.float64)
weights = pv.Program(model, guide).terms(x, num_particles=1000).log_weight[0]
exact = dist.Normal(0.0, (SLOPE**2 + SPREAD**2 + NOISE**2) ** 0.5).log_prob(x)
print("log p(x), exact:      ", *(f"{value:.4f}" for value in exact[:5]))
print("mean of 1000 weights: ", *(f"{value:.4f}" for value in weights.mean(0)[:5]))
worst = (weights - exact).abs().max()
print(f"largest deviation of any of the {weights.numel()} weights: {worst:.1e}")
assert worst < 1e-5

# %%
grid = torch.linspace(-2, 5, 400)
p, evidence = prior(1, torch.tensor(0.3)), upward(torch.tensor(2.5))[1]
figure, axes = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
for density, colour, label, side in (
    (p, GREY, "prior, from above", "right"),
    (evidence, SAND, "evidence, from below", "left"),
    (merge(p, evidence), BLUE, "their product", "left"),
):
    height = density.log_prob(grid).exp()
    axes.plot(grid, height, color=colour, lw=2)
    axes.annotate(
        label,
        (density.mean, height.max()),
        (0, 4),
        textcoords="offset points",
        color=colour,
        ha=side,
    )
axes.set(xlabel="$z_1$", ylabel="density", ylim=(0, None))
axes.set_title("The product stands nearer to the surer of the two", loc="left", pad=16)

# %% [markdown]
# ## 3. The same with networks
#
# `pv.models.HierarchicalVAE` and `pv.models.LadderVAE` have **one and the same model**, three
# layers of 16, 8 and 4 units here, and differ in the guide alone. Batch norm and a warm-up of the
# KL weight help both: at the start, when the decoder knows nothing, silence is the cheapest thing a
# layer can do, and a layer that has fallen silent is hard to wake. The warm-up goes layer by layer:
# the KL of $z_1$ comes to its full price first, that of $z_3$ last. As long as it is cheaper to say
# a thing higher up, it is said there. (With one warm-up for all, on digits this small, $z_3$ falls
# silent under both guides, and under the ladder $z_2$ too: exercise 1.)

# %%
shares = {"z1": 0.1, "z2": 0.4, "z3": 0.6}  # of the run
WARM_UP = {site: pv.schedules.linear(0.0, 1.0, over=share) for site, share in shares.items()}
digits = pv.data.load("digits", binarization="threshold")
train, valid = digits.train[: 128 if SMOKE else None], digits.valid
test = digits.test[: 60 if SMOKE else None]


def trained(kind, latent_dims, hidden, beta):
    torch.manual_seed(0)
    vae = kind(64, latent_dims, hidden, data_mean=train.mean(0))
    pv.fit(
        vae,
        train,
        valid=valid,
        epochs=EPOCHS,
        batch_size=32,
        lr=2e-3,
        lr_schedule=pv.schedules.cosine(1.0, 0.02),
        beta=beta,
        compile=COMPILE,
        device="cpu",
        progress=False,
    )
    return vae.eval()


vaes = {
    "bottom-up": trained(pv.models.HierarchicalVAE, LATENTS, HIDDEN, WARM_UP),
    "ladder": trained(pv.models.LadderVAE, LATENTS, HIDDEN, WARM_UP),
}
print({name: sum(p.numel() for p in vae.parameters()) for name, vae in vaes.items()}, "weights")

# %% [markdown]
# ## 4. Who speaks?
#
# The KL of the whole guide is a sum over layers, $\sum_l \mathbb{E}_q[\log q(z_l \mid \cdot) - \log
# p(z_l \mid z_{l+1})]$, and each term over units: how much each of them says that the layers above
# it have not said. `pv.diagnose` reports both. (It also counts the units whose posterior mean moves
# with the datum, `active_units`, the draws of the other layers averaged out.)

# %%
torch.manual_seed(1)
found = {name: pv.diagnose(vae, test, num_particles=20) for name, vae in vaes.items()}
for name, vae in vaes.items():
    score = pv.log_likelihood(vae, test, num_particles=SAMPLES)
    bound = pv.elbo(vae, test, num_particles=20).mean()
    print(f"{name:<10} ELBO {bound:.2f}, log-likelihood {score.mean:.2f} ± {score.stderr:.2f}")
    for site, units in found[name].unit_kl.items():
        speaking = int((units > 0.01).sum())
        print(f"   {site}: {units.sum():6.2f} nats, {speaking:>2} of {len(units)} units speak")

# %%
figure, panels = plt.subplots(1, 3, figsize=(9.5, 2.8), sharey=True, layout="constrained")
for panel, site in zip(panels, ("z3", "z2", "z1"), strict=True):
    for name, colour in (("bottom-up", RED), ("ladder", BLUE)):
        units = found[name].unit_kl[site].sort(descending=True).values
        panel.plot(range(1, len(units) + 1), units, "o-", color=colour, ms=4, lw=1, label=name)
    panel.set_yscale("symlog", linthresh=0.01)
    panel.set(xlabel="unit, the loudest first", ylim=(0, 6))
    panel.axhline(0.01, color=GREY, lw=0.8, ls=":")
    panel.set_title({"z3": "$z_3$, the top", "z2": "$z_2$", "z1": "$z_1$"}[site], loc="left")
panels[0].set_ylabel("KL of the unit, nats")
panels[0].legend(frameon=False)

# %% [markdown]
# With this warm-up the two upper layers speak under both guides, two or three nats each, and the
# two bounds are close. The guides differ in *where* things are said. The ladder needs fewer units,
# and its $z_1$ is all but silent: what the data say has been said above. The bottom-up guide
# spreads its word over all layers, and leaves about a nat to $z_1$.

# %% [markdown]
# ## 5. What does a layer say?
#
# Encode a digit, keep the upper layers of its code, and let the model draw the rest anew. Handlers
# do that around the unchanged model: `uncondition` frees the pixels, `condition` holds what we
# keep.


# %%
@torch.no_grad()
def redrawn(vae, x, keep):
    """Return images whose layers in `keep` are those of x; the others come from the model."""
    with pv.Program.of(vae).running():
        code = poutine.trace(vae.guide).get_trace(x)
        held = {site: code.nodes[site]["value"] for site in keep}
        free = poutine.condition(poutine.uncondition(vae.model), data=held)
        return poutine.trace(free).get_trace(x).nodes["x"]["fn"].mean


torch.manual_seed(2)
LEVELS = {
    "all three layers": ("z3", "z2", "z1"),
    "$z_3$ and $z_2$": ("z3", "z2"),
    "$z_3$ alone": ("z3",),
    "nothing": (),
}
COLUMNS = 14
figure, panels = plt.subplots(
    1 + len(LEVELS), 1, figsize=(9, 4.2), layout="constrained", squeeze=True
)
rows = {"the digit": test[:COLUMNS]}
rows |= {name: redrawn(vaes["ladder"], test[:COLUMNS], keep) for name, keep in LEVELS.items()}
for panel, (name, images) in zip(panels, rows.items(), strict=True):
    panel.imshow(images.reshape(-1, 8, 8).transpose(0, 1).flatten(1), cmap="gray_r", vmin=0, vmax=1)
    panel.set_ylabel(name, rotation=0, ha="right", va="center")
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
panels[0].set_title("Ladder: what is kept of the code; the rest is drawn anew", loc="left")

# %% [markdown]
# Kept from the bottom, the digit comes back. The further up we cut, the more is improvised. To put
# a number to it: how many pixels differ from the digit when only the upper layers are kept?

# %%
for name, vae in vaes.items():
    torch.manual_seed(3)
    wrong = [
        (redrawn(vae, test, keep).round() - test).abs().sum(1).mean() for keep in LEVELS.values()
    ]
    print(
        f"{name:<10}",
        ", ".join(
            f"{level.replace('$', '')}: {n:.1f}" for level, n in zip(LEVELS, wrong, strict=True)
        ),
    )
    assert SMOKE or wrong[0] < wrong[-1]

# %% [markdown]
# For the ladder, $z_3$ and $z_2$ bring the digit back as well as all three layers do: nothing was
# left for $z_1$ to say. The bottom-up arm misses its $z_1$. And $z_3$ alone, with not quite two
# nats, narrows the digit down, no more: to name one of ten takes $\log 10 = 2.3$.
#
# ## 6. Ten layers
#
# Very deep programs pass a state down beside the latents, and add to it layer by layer, as residual
# networks do: `pv.models.TopDownVAE`. The guide is the model's pass again, reading at each layer
# the state and what the upward pass has seen.
#
# It starts nearly deaf: at the first step the posterior means of $z_1$ move with the digit by a
# hundredth of the noise around them. Under a linear warm-up the KL costs a tenth of its price after
# two epochs, and that is enough to silence all ten layers for good (exercise 4). A cubic one asks
# for next to nothing until they have learnt to speak.


# %%
def cubic(t):
    """Return the KL weight at the share t of the run."""
    return min(1.0, (t / 0.6) ** 3)


deep = trained(pv.models.TopDownVAE, (4,) * DEPTH, 32, cubic)
torch.manual_seed(4)
said = pv.diagnose(deep, test, num_particles=20)
print(f"ELBO {pv.elbo(deep, test, num_particles=20).mean():.2f}")
print("KL, top to bottom:", *(f"{said.kl[f'z{layer}']:.2f}" for layer in range(DEPTH, 0, -1)))
assert SMOKE or sum(kl > 0.01 for kl in said.kl.values()) > 5  # most layers speak
pv.plots.samples(
    pv.generate(deep, 28, mean=True), columns=14, title="New digits from ten layers of four units"
)

# %% [markdown]
# ## 7. Exercises
#
# 1. Train both arms of section 3 with one warm-up for all layers, `beta=pv.schedules.linear(0, 1,
#    over=0.3)`, and with none. Which layers fall silent?
# 2. In section 2, write the guide that goes up, $q(z_1 \mid x)\, q(z_2 \mid z_1)$, so that it is
#    exact too. Why can it be, and what breaks it when the model is not linear?
# 3. Train with `objective=pv.FreeBits(0.5)` in place of the warm-up. Compare the KL per layer.
# 4. Train the ten layers with `beta=pv.schedules.linear(0, 1, over=0.3)`. What is their KL, and
#    what does the model generate?
# 5. `pv.fit(..., objective=pv.AnalyticELBO())` takes each KL in closed form where that is right.
#    Why is it right for the ladder guide in every layer, and for the bottom-up one only at the top?
# 6. Keep $z_1$ of one digit and $z_3$ of another. Who wins?
#
# To read on: Sønderby et al., *Ladder variational autoencoders* (2016), arXiv:1602.02282; Kingma et
# al., *Improving variational inference with inverse autoregressive flow* (2016), arXiv:1606.04934;
# Child, *Very deep VAEs* (2021), arXiv:2011.10650.
