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
# # VAE and GAN
#
# A classifier that tells two kinds of draws apart knows the ratio of their densities, although it
# has seen neither. Generative adversarial networks live on this, and autoencoders can: a guide
# whose density nobody can write down (`pv.AVB`), codes that are held to a prior as a whole
# (`pv.AAE`, `pv.WAE`), images that are compared by features instead of pixels (`pv.VAEGAN`,
# `pv.LatentAutoencoder`). All of them are objectives of the same `pv.fit`.
#
# You should have seen tutorials 01 and 05. The full run takes about two minutes on one CPU core.

# %%
import functools
import os
import sys
import warnings

import matplotlib.pyplot as plt
import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import softplus

import pyro_vae as pv

# In a notebook figures appear below their cell; as a plain script, draw, but open no window.
NOTEBOOK = "ipykernel" in sys.modules
plt.switch_backend("module://matplotlib_inline.backend_inline" if NOTEBOOK else "agg")
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11}

SMOKE = bool(os.environ.get("PYRO_VAE_SMOKE"))  # a short run, to test that everything works
STEPS, EPOCHS, PLANE_EPOCHS, IMAGE_EPOCHS = (20, 2, 1, 1) if SMOKE else (1500, 160, 120, 60)
COMPILE = False if SMOKE else "trace"  # a graph pays after some hundred steps
BLUE, RED, GREY = "#332288", "#CC6677", "#777777"
rate = functools.partial(torch.optim.Adam, betas=(0.5, 0.999))  # less momentum: a game, no valley

# %% [markdown]
# ## 1. A ratio by a classifier
#
# Draws of $q = N(1, 0.5^2)$ and of $p = N(0, 1)$. The logit $T$ of the best classifier is
# $\log q - \log p$, and its mean under $q$ is $\mathrm{KL}(q \| p)$. Both are known here:
# $0.8181$ nats, and a loss of $0.9383$ (of $\log 4 = 1.3863$ where the two are the same).

# %%
torch.manual_seed(0)
q, p = dist.Normal(1.0, 0.5), dist.Normal(0.0, 1.0)
critic = pv.nn.Critic(1, hidden=(32, 32))
optimizer = torch.optim.Adam(critic.parameters(), 5e-3)
for _ in range(STEPS):
    optimizer.zero_grad()
    ours, theirs = q.sample((500, 1)), p.sample((500, 1))
    (softplus(-critic(ours)).mean() + softplus(critic(theirs)).mean()).backward()
    optimizer.step()

ours, theirs = q.sample((20_000, 1)), p.sample((20_000, 1))
with torch.no_grad():
    loss = softplus(-critic(ours)).mean() + softplus(critic(theirs)).mean()
    print(f"loss {loss:.4f} (exact 0.9383), mean of T under q {critic(ours).mean():.4f} (0.8181)")
    axis = torch.linspace(-2, 3, 200)
    told = critic(axis[:, None])
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
axes.plot(axis, q.log_prob(axis) - p.log_prob(axis), color=GREY, lw=4, alpha=0.5, label="exact")
axes.plot(axis, told, color=RED, label="classifier")
axes.set(xlabel="z", ylabel="log q − log p")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# It is right where both have draws, and anything elsewhere: a critic must be asked where it has
# been. Hence the *adaptive contrast* of `pv.AVB`: the guide is told apart not from the prior but
# from a Gaussian with the guide's own mean and variance, which lies close by and whose density is
# known, so that the critic is left with the guide's log density itself.
#
# ## 2. A posterior that no Gaussian fits
#
# The parabola of tutorial 05: $z \sim N(0, I_2)$, $x \sim N(z_2 + z_1^2,\; 0.3^2)$. A guide of
# `pv.conditionals.NoiseFed` feeds noise into a network together with the datum; its draws may lie
# anywhere, and nobody knows their density (`pv.distributions.Implicit`). `pv.AVB` trains it.


# %%
class Parabola(nn.Module):
    """p(x | z): the parabola, with noise."""

    def forward(self, z):
        return dist.Normal(z[..., 1:] + z[..., :1].square(), 0.3).to_event(1)


torch.manual_seed(0)
gaussian = pv.models.VAE(1, 2, hidden=(32,), decoder=Parabola())
free = pv.models.VAE(
    1,
    2,
    hidden=(32,),
    decoder=Parabola(),
    posterior=functools.partial(pv.conditionals.NoiseFed, noise_dim=8, features=32),
)
data = pv.generate(gaussian, 2048)
pv.fit(gaussian, data, epochs=min(EPOCHS, 60), lr=3e-3, progress=False)
objective = pv.AVB(
    pv.nn.Critic(2, 1, (64, 64)), critic_steps=2, critic_optimizer=functools.partial(rate, lr=2e-3)
)
run = pv.fit(
    free,
    data,
    objective=objective,
    epochs=EPOCHS,
    optimizer=functools.partial(rate, lr=1e-3),
    lr_schedule=pv.schedules.cosine(1.0, 0.02),
    compile=COMPILE,
    progress=False,
)
print(f"critic {run.history['critic'][-1]:.3f}, loss {run.history['loss'][-1]:.3f} nats")

x = torch.tensor([[1.5]])
draws = 20 if SMOKE else 500
hmc = pv.HMC(draws, draws, chains=8, num_leapfrog=20, start="prior", target_accept=0.95)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # so short a run as that of a test has not mixed
    truth = pv.refine(gaussian, x, hmc).samples["z"].flatten(0, 2)
with torch.no_grad():
    made = {
        "Gaussian q": gaussian.encoder(x).sample((len(truth),))[:, 0],
        "AVB": free.encoder(x).sample((len(truth),))[:, 0],
        "HMC": truth,
    }
figure, axes = plt.subplots(1, 3, figsize=(8, 3), layout="constrained", sharex=True, sharey=True)
for axis, (name, z) in zip(axes, made.items(), strict=True):
    axis.scatter(*z.T, s=2, color=GREY if name == "HMC" else BLUE, alpha=0.4)
    axis.set(title=name, xlabel="z₁", xlim=(-2.5, 2.5), ylim=(-2.5, 2.5))
    print(f"{name:10s}: sd of z₁ {z[:, 0].std():.3f}, of z₂ {z[:, 1].std():.3f}")
plt.show()

# %% [markdown]
# The bend is there, and about as wide as it should be. How far its two arms reach is the hardest
# for a game to find: few draws go there, and there the critic has seen little.
#
# What needs the density of such a guide says so, and names the ways out: `pv.elbo` and
# `pv.log_likelihood` have no answer, `pv.ais` (from the prior) and `pv.fitted_log_likelihood` (from
# HMC draws) have one, and `pv.refine` starts its chains at the guide's draws.

# %%
try:
    pv.log_likelihood(free, x)
except pv.errors.ProgramError as error:
    print(error)
print(
    pv.fitted_log_likelihood(
        free, x.repeat(2, 1), num_particles=500, warmup=50, num_draws=50, full=True
    )
)

# %% [markdown]
# ## 3. Codes as a whole
#
# An adversarial autoencoder holds the *aggregated* posterior, the codes of all data together, to a
# prior: any that can be drawn from. Here ten Gaussians like the leaves of a flower; the encoder is
# a point mass, and there is no KL. How well it holds is asked of fresh critics, which learn on
# some of the codes to tell them from draws of the prior, and are scored on the others
# (`pv.aggregated_posterior`): the loss is log 4 = 1.3863 where they find no difference.


# %%
class Flower(nn.Module):
    """p(z): ten Gaussians in a ring, each longer than wide."""

    def __init__(self, leaves=10):
        super().__init__()
        angle = torch.arange(leaves) * 2 * torch.pi / leaves
        outward = torch.stack([angle.cos(), angle.sin()], -1)
        across = torch.stack([-angle.sin(), angle.cos()], -1)
        self.register_buffer("loc", 2.5 * outward)
        self.register_buffer("axes", torch.stack([0.7 * outward, 0.18 * across], -1))

    def forward(self, encoder):
        covariance = self.axes @ self.axes.mT
        parts = dist.MultivariateNormal(self.loc, covariance)
        return pv.distributions.Mixture(torch.zeros(len(self.loc)), parts)


digits = pv.data.load("digits")
grey = digits.train
torch.manual_seed(0)
aae = pv.models.VAE(
    64,
    2,
    prior=Flower(),
    encoder=pv.conditionals.Point(pv.nn.MLP(64, 2, (128, 128))),
    decoder=pv.conditionals.IsotropicGaussian(pv.nn.MLP(2, 64, (128, 128)), scale=0.25),
)
objective = pv.AAE(
    pv.nn.Critic(2, hidden=(64, 64)), weight=20.0, critic_optimizer=functools.partial(rate, lr=2e-3)
)
run = pv.fit(
    aae,
    grey,
    objective=objective,
    epochs=PLANE_EPOCHS,
    batch_size=64,
    compile=COMPILE,
    lr_schedule=pv.schedules.cosine(1.0, 0.05),
    progress=False,
)
found = pv.aggregated_posterior(aae, grey, num_steps=20 if SMOKE else 1000)
print(found)
print("means apart", [f"{gap:.2f}" for gap in found.mean_gap])

codes, drawn = pv.encode(aae, grey), found.prior
figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained", sharex=True, sharey=True)
axes[0].scatter(*drawn.T, s=3, color=GREY)
axes[1].scatter(*codes.T, s=3, c=digits.labels["train"], cmap="tab10")
axes[0].set(title="the prior")
axes[1].set(title="codes of the digits, by class")
plt.show()

# %% [markdown]
# The codes have found all ten leaves, and the classes have shared them out. They are not the prior:
# some lie between the leaves, where it has next to nothing, and some leaves are fuller than others.
# The picture shows it, and so does the number: a loss about .1 below 1.3863, many standard errors,
# which is a KL of .3 to .4 nats. Moments alone would not have told (the means agree to .1).
#
# `pv.WAE()` does the same with a kernel in place of a critic: no game, but a discrepancy that a
# batch estimates.
#
# ## 4. Blurred and sharp
#
# A decoder that is compared pixel by pixel, in doubt about where a stroke ends, answers with the
# mean of the possible strokes: a blur. `pv.VAEGAN` compares images by the features of a critic, who
# meanwhile learns what gives reconstructions and new images away. The balance between the two is
# kept by holding back the one that is ahead.
#
# How to judge without a likelihood? In the features of a small classifier of the same images
# (`pv.feature_distances`, a `FeatureDistances`): the distance of an image and its reconstruction,
# and the Fréchet distance of new images and the data. These are no FID, and compare with nothing
# but each other.

# %%
images = grey.reshape(-1, 1, 8, 8)[: 256 if SMOKE else None]
test = digits.test.reshape(-1, 1, 8, 8)


def conv():
    """Return a small autoencoder of images."""
    torch.manual_seed(0)
    observation = functools.partial(pv.conditionals.IsotropicGaussian, learn_scale=True)
    shape = {"hidden": (16, 32), "network": "conv", "observation": observation}
    return pv.models.VAE((1, 8, 8), 8, **shape, data_mean=images.mean(0))


torch.manual_seed(0)
seen = nn.Sequential(pv.nn.ConvEncoder((1, 8, 8), 32, (8, 16)), nn.ReLU())
classes = nn.Linear(32, 10)
optimizer = torch.optim.Adam([*seen.parameters(), *classes.parameters()], 5e-3)
for _ in range(1 if SMOKE else 15):
    for rows in torch.randperm(len(images)).split(64):
        optimizer.zero_grad()
        told = classes(seen(images[rows]))
        nn.functional.cross_entropy(told, digits.labels["train"][rows]).backward()
        optimizer.step()

arms = {
    "VAE": pv.AnalyticELBO(),
    "VAE/GAN": pv.VAEGAN(
        pv.nn.ConvCritic((1, 8, 8), (16, 32)),
        gamma=0.1,
        critic_optimizer=functools.partial(rate, lr=1e-3),
    ),
}
nets = {}
for name, objective in arms.items():
    nets[name] = conv()
    run = pv.fit(
        nets[name],
        images,
        objective=objective,
        epochs=IMAGE_EPOCHS,
        batch_size=64,
        optimizer=functools.partial(rate, lr=1e-3),
        ema=0.99,
        compile=COMPILE,
        progress=False,
    )
    found = pv.feature_distances(nets[name], test, seen, n=1000)
    print(f"{name:8s} {found}; judged: {run.judged}")

# %% [markdown]
# The VAE reconstructs better in pixels and in features; what VAE/GAN makes out of nothing lies
# nearer to the data.

# %%
figure, axes = plt.subplots(len(nets), 12, figsize=(9, 2), layout="constrained")
for row, (name, net) in zip(axes, nets.items(), strict=True):
    torch.manual_seed(1)
    for axis, image in zip(row, pv.generate(net, 12, mean=True), strict=True):
        axis.imshow(image[0].clamp(0, 1), cmap="gray_r", vmin=0, vmax=1)
        axis.axis("off")
    row[0].set_title(name, loc="left")
plt.show()

# %% [markdown]
# Most people who train autoencoders today train them for latent diffusion: a KL of almost no
# weight, the absolute error, features of a network that is at hand, and a critic of patches that
# joins in late. `pv.LatentAutoencoder` is that objective.
