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
# # From autoencoder to VAE in Pyro
#
# An autoencoder learns to compress. Give its codes a *prior* and it becomes a probabilistic model:
# it can invent data, say how probable a datum is, and be written as a Pyro program of ten lines.
# This tutorial takes that step slowly, and checks each claim with a number.
#
# You should know PyTorch, and have met `pyro.sample` and `pyro.plate`. The full run takes about a
# minute on one CPU core.

# %%
import os
import sys
import time

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

import pyro_vae as pv

# In a notebook figures appear below their cell; as a plain script, draw, but open no window.
NOTEBOOK = "ipykernel" in sys.modules
plt.switch_backend("module://matplotlib_inline.backend_inline" if NOTEBOOK else "agg")

SMOKE = bool(os.environ.get("PYRO_VAE_SMOKE"))  # a short run, to test that everything works
EPOCHS = 2 if SMOKE else 100
LATENT, HIDDEN, BATCH, LR = 8, 128, 128, 2e-3
DRAWS = 2_000 if SMOKE else 20_000  # Monte-Carlo draws where an estimate is judged
IMPORTANCE = 200 if SMOKE else 5_000  # importance samples per digit for the log-likelihood
BLUE, RED = "#332288", "#CC6677"

# %% [markdown]
# ## 1. Data
#
# Handwritten digits of 8 × 8 pixels come with the library. We threshold them at one half, so that a
# pixel is 0 or 1 and a Bernoulli variable describes it exactly. (They look coarse because they are:
# below, the same digits before and after. Step back from the screen, and they read better.)

# %%
digits = pv.data.load("digits", binarization="threshold")
train, valid, test = digits.train, digits.valid, digits.test
print(digits)
print("one batch:", tuple(train[:BATCH].shape), "pixel values:", train.unique().tolist())

grey = pv.data.load("digits").test  # the splits are fixed: the same digits
pv.plots.samples(
    torch.cat([grey[:12], test[:12]]),
    columns=12,
    title="Twelve test digits, in grey levels and thresholded",
)

# %% [markdown]
# ## 2. The autoencoder, and what it lacks
#
# An encoder $f$ maps a digit to a code of 8 numbers, a decoder $g$ maps it back, and training
# minimises the squared error
#
# $$\mathcal{L}(x) = \lVert x - g(f(x)) \rVert^2 .$$
#
# `pv.models.Autoencoder` is that and nothing else, so its loss must equal a line of PyTorch.

# %%
torch.manual_seed(0)
ae = pv.models.Autoencoder(data_dim=64, latent_dim=LATENT, hidden=(HIDDEN,))

with torch.no_grad():
    by_hand = (train - ae.decoder.net(ae.encoder.net(train))).square().sum(-1)
assert torch.allclose(-pv.elbo(ae, train), by_hand, rtol=1e-4)

ae_run = pv.fit(ae, train, valid=valid, epochs=EPOCHS, lr=LR, device="cpu", seed=0, progress=False)


def squared_error(reconstructed):
    return (test - reconstructed).square().sum(-1).mean().item()


print(f"squared error on test digits: {by_hand.mean():.2f} before training (on train),")
print(f"                              {squared_error(pv.reconstruct(ae, test)):.2f} after")

pv.plots.reconstructions(test[:12], pv.reconstruct(ae, test[:12]), title="Autoencoder: it copies")

# %% [markdown]
# It copies well. Now ask it for a *new* digit. The decoder wants a code, but which codes are
# plausible? Nothing in the loss says. Two guesses: standard normal codes, and, kinder, codes from
# the Gaussian that has the mean and covariance of the training codes.

# %%
torch.manual_seed(1)
NEW = 500
with torch.no_grad():
    codes = pv.encode(ae, train)
    matched = dist.MultivariateNormal(codes.mean(0), codes.T.cov()).sample((NEW,))
    ae_standard = ae.decoder(torch.randn(NEW, LATENT)).mean
    ae_matched = ae.decoder(matched).mean

print("spread of the codes, unit by unit:", [f"{s:.2f}" for s in codes.std(0).tolist()])

pv.plots.samples(ae_standard[:40], columns=10, title="Autoencoder: codes from N(0, I)")

# %%
pv.plots.samples(ae_matched[:40], columns=10, title="Autoencoder: codes from a fitted Gaussian")

# %% [markdown]
# Few of these are digits. A crude measure agrees: round each image to black and white, and count
# the pixels in which it differs from the nearest training digit. Real test digits set the standard.


# %%
def pixels_to_nearest(images):
    """Return the mean number of pixels to the nearest training digit, and its standard error."""
    distance = torch.cdist(images.round(), train, p=1).min(1).values
    return distance.mean().item(), distance.std().item() / len(distance) ** 0.5


for name, images in {
    "test digits": test,
    "autoencoder, N(0, I)": ae_standard,
    "autoencoder, fitted Gaussian": ae_matched,
}.items():
    print("{:<30} {:.2f} ± {:.2f} pixels".format(name, *pixels_to_nearest(images)))

# %% [markdown]
# The library knows that something is missing, too. Asked for a sample, it says what:

# %%
try:
    pv.generate(ae, 10)
except pv.errors.PyroVaeError as error:
    print(error)
else:
    raise AssertionError("an autoencoder has nothing to sample from")

# %% [markdown]
# ## 3. A prior, and the model as a Pyro program
#
# The remedy is to say how codes are distributed *before* training, and to train the networks so
# that it comes true. The story of a digit becomes
#
# $$z \sim N(0, I), \qquad x \mid z \sim \mathrm{Bernoulli}(\mathrm{decoder}(z)),$$
#
# and in Pyro the story is the program. The decoder returns a *distribution* of images. The encoder
# does as well: many codes could have produced a digit, so it answers with a Gaussian
# $q(z \mid x) \approx p(z \mid x)$ instead of a point.


# %%
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))

    def forward(self, x):
        loc, log_scale = self.net(x).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 64))

    def forward(self, z):
        return dist.Bernoulli(logits=self.net(z)).to_event(1)


def new_networks():
    torch.manual_seed(0)
    return Encoder(), Decoder()


encoder, decoder = new_networks()

# %% [markdown]
# `to_event(1)` says that the 8 latents (or 64 pixels) are one event; `pyro.plate` says that digits
# are independent of each other; `pyro.module` registers a network's weights, so that SVI trains
# them.


# %%
def model(x):
    pyro.module("decoder", decoder)
    prior = dist.Normal(x.new_zeros(LATENT), x.new_ones(LATENT)).to_event(1)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", prior)
        return pyro.sample("x", decoder(z), obs=x)


def guide(x):
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        pyro.sample("z", encoder(x))


trace = pyro.poutine.trace(model).get_trace(train[:5])
trace.compute_log_prob()
print(trace.format_shapes())

# %% [markdown]
# ## 4. The ELBO, in two forms
#
# We would like to maximise $\log p(x) = \log \int p(x \mid z)\, p(z)\, dz$, and cannot do the
# integral. But for *any* density $q(z \mid x)$, Bayes' rule and one rearrangement give
#
# $$\log p(x) = \underbrace{\mathbb{E}_q\left[\log p(x, z) - \log q(z \mid x)\right]}_{\text{ELBO}}
#   + \underbrace{\mathrm{KL}\left(q(z \mid x) \,\|\, p(z \mid x)\right)}_{\ge 0} .$$
#
# The first term is the **evidence lower bound**. Pushing it up makes the data more probable and the
# encoder's answer closer to the true posterior, both at once. Since
# $\log p(x, z) = \log p(x \mid z) + \log p(z)$, it has a second form,
#
# $$\text{ELBO} = \mathbb{E}_q\left[\log p(x \mid z)\right]
#   - \mathrm{KL}\left(q(z \mid x) \,\|\, p(z)\right),$$
#
# which reads like an autoencoder's loss: reconstruct well, and keep the codes near the prior. (Were
# the pixels Gaussian with a fixed scale, $-\log p(x \mid z)$ would be the autoencoder's squared
# error, up to constants. For Bernoulli pixels it is the cross-entropy.) The KL between a Gaussian
# and the prior has a closed form,
# $\mathrm{KL} = \tfrac12 \sum_j (\mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2)$.
#
# **With the same noise** the two forms differ by rounding only, if the KL in the second is the
# average of $\log q - \log p$ over the same draws. And each is what one of Pyro's losses computes.

# %%
x = train[:BATCH]
prior = dist.Normal(torch.zeros(LATENT), torch.ones(LATENT)).to_event(1)


@torch.no_grad()
def log_densities(x, draws):
    """Return log p(x | z), log p(z) and log q(z | x) at draws from q, each (draws, B)."""
    q = encoder(x)
    z = q.rsample((draws,))
    return decoder(z).log_prob(x), prior.log_prob(z), q.log_prob(z)


torch.manual_seed(2)
log_lik, log_prior, log_q = log_densities(x, draws=1)
joint_form = (log_lik + log_prior - log_q).mean()
kl_form = log_lik.mean() - (log_q - log_prior).mean()
print(f"joint form        {joint_form:.5f} nats per digit")
print(f"KL form           {kl_form:.5f}   (same draws)")
assert abs(joint_form - kl_form) < 1e-4

with torch.no_grad():
    kl = kl_divergence(encoder(x), prior)
    loc, scale = encoder(x).base_dist.loc, encoder(x).base_dist.scale
    assert torch.allclose(kl, 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum(-1), atol=1e-4)

pyro.clear_param_store()
for loss, value in {
    Trace_ELBO(): joint_form,
    TraceMeanField_ELBO(): log_lik.mean() - kl.mean(),
}.items():
    torch.manual_seed(2)  # the noise of above
    stock = -loss.loss(model, guide, x) / len(x)  # Pyro sums over digits, and minimises
    print(f"{type(loss).__name__:<19} {stock:.5f}   (by hand: {value:.5f})")
    assert abs(stock - value) < 1e-4

# %% [markdown]
# **With the closed form** the KL is exact and the joint form is noisy, so the two must agree within
# the Monte-Carlo error: a z-score beyond 5 would come up once in two million honest runs.

# %%
log_lik, log_prior, log_q = log_densities(x[:1], DRAWS)
sampled_kl, exact_kl = log_q - log_prior, kl[0]
stderr = sampled_kl.std() / DRAWS**0.5
z_score = ((sampled_kl.mean() - exact_kl) / stderr).item()
print(f"KL, closed form   {exact_kl:.5f}")
print(f"KL, {DRAWS} draws  {sampled_kl.mean():.5f} ± {stderr:.5f}   z = {z_score:+.2f}")
assert abs(z_score) < 5

# %% [markdown]
# ## 5. Two gradients of the same bound
#
# To train the encoder we need the gradient of an expectation whose *distribution* depends on the
# parameters $\phi$. Write $\ell(z) = \log p(x, z) - \log q_\phi(z \mid x)$.
#
# **Score function** (REINFORCE): works for any $q$, and only needs the values of $\ell$,
#
# $$\nabla_\phi \, \text{ELBO}
#   = \mathbb{E}_q\left[\ell(z)\, \nabla_\phi \log q_\phi(z \mid x)\right] .$$
#
# **Reparametrisation**: write the draw as $z = \mu + \sigma \varepsilon$ with
# $\varepsilon \sim N(0, I)$. Now the noise does not depend on $\phi$, and the gradient goes through
# the draw,
#
# $$\nabla_\phi \, \text{ELBO}
#   = \mathbb{E}_\varepsilon\left[\nabla_\phi\, \ell(\mu + \sigma \varepsilon)\right] .$$
#
# Same expectation, so both are unbiased. The second knows the *slope* of $\ell$, the first only
# its height. We take one digit and many draws, and look at the gradient by $\mu$ and $\log \sigma$,
# from which back-propagation carries on into the encoder. In Pyro the choice is made by the guide's
# distribution: `Normal` has `has_rsample = True`, and so `Trace_ELBO` reparametrises it.


# %%
def gradients(x, draws, reparametrised):
    """Return one-draw estimates of the ELBO's gradient by (loc, log scale), (draws, 2 Z)."""
    with torch.no_grad():
        q = encoder(x).base_dist
    # A copy of the parameters for each draw: one backward pass gives each its own gradient.
    parameters = torch.cat([q.loc, q.scale.log()], -1).expand(draws, -1).clone().requires_grad_()
    loc, log_scale = parameters.chunk(2, -1)
    posterior = dist.Normal(loc, log_scale.exp()).to_event(1)
    z = posterior.rsample() if reparametrised else posterior.sample()
    log_q = posterior.log_prob(z)
    log_weight = decoder(z).log_prob(x) + prior.log_prob(z) - log_q
    surrogate = log_weight if reparametrised else log_weight.detach() * log_q
    return torch.autograd.grad(surrogate.sum(), parameters)[0]


torch.manual_seed(3)
pathwise = gradients(train[0], DRAWS, reparametrised=True)
score = gradients(train[0], DRAWS, reparametrised=False)

error = (pathwise.var(0) / DRAWS + score.var(0) / DRAWS).sqrt()
z_scores = (pathwise.mean(0) - score.mean(0)) / error
ratio = (score.var(0).sum() / pathwise.var(0).sum()).item()
print(f"largest |z| between the two means, {2 * LATENT} coordinates: {z_scores.abs().max():.2f}")
print(f"variance, score function / reparametrised:   {ratio:.0f}")
assert z_scores.abs().max() < 5
assert ratio > 10

# %% [markdown]
# The means agree, the variances do not. Averaging over $K$ particles divides both by $K$, so to
# catch up the score function would need as many times more particles as the ratio says.

# %%
particles = [1, 2, 5, 10, 20, 50, 100, 200]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for estimates, colour, label in (
    (score, RED, "score function"),
    (pathwise, BLUE, "reparametrised"),
):
    groups = [estimates[: DRAWS // k * k].unflatten(0, (-1, k)).mean(1) for k in particles]
    variances = [group.var(0).sum().item() for group in groups]
    right.loglog(particles, variances, "o", color=colour, ms=5)
    right.loglog(particles, [variances[0] / k for k in particles], color=colour, lw=1)
    right.annotate(
        label, (particles[3], variances[3]), (6, 6), textcoords="offset points", color=colour
    )
    left.hist(
        estimates[:, 0].numpy(), bins=121, range=(-230, 230), density=True, color=colour, alpha=0.75
    )
ends = [group.var(0).sum().item() / 100 for group in (pathwise, score)]
arrow = {"arrowstyle": "<->", "color": "0.4", "shrinkA": 5, "shrinkB": 5}
right.annotate("", (100, ends[0]), (100, ends[1]), arrowprops=arrow)
right.text(90, (ends[0] * ends[1]) ** 0.5, f"× {ratio:.0f}", ha="right", va="center")
right.set_xticks([1, 10, 100], ["1", "10", "100"])
left.set(yscale="log", xlabel=r"gradient by $\mu_1$, one draw", ylabel="density")
left.set_title("One particle: as many draws of each", loc="left", fontsize=11)
right.set(xlabel="particles K", ylabel="variance of the gradient (summed)")
right.set_title("Variance, and 1/K lines", loc="left", fontsize=11)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# One draw per digit and step is enough with the reparametrised gradient. This is what made VAEs
# trainable (Kingma & Welling, 2013; Rezende et al., 2014). The score function remains for latents
# that cannot be reparametrised, such as discrete ones, and then needs control variates.

# %% [markdown]
# ## 6. Training with stock Pyro
#
# `pyro.infer.SVI` needs the two functions, an optimizer and a loss. Pyro keeps all parameters in
# one **global store**, under the names given to `pyro.module`. We clear it first: running the model
# for the shapes and losses above has already put weights there.

# %%
encoder, decoder = new_networks()
pyro.clear_param_store()
svi = SVI(model, guide, pyro.optim.Adam({"lr": LR}), loss=Trace_ELBO())

torch.manual_seed(4)
svi_valid, start = [], time.perf_counter()
for _ in range(EPOCHS):
    for rows in torch.randperm(len(train)).split(BATCH):
        svi.step(train[rows])
    svi_valid.append(-svi.evaluate_loss(valid) / len(valid))
print(f"validation ELBO: {svi_valid[0]:.2f} nats after one epoch, {svi_valid[-1]:.2f} at the end")
print(
    f"{time.perf_counter() - start:.1f} s;",
    "in the store:",
    *pyro.get_param_store().keys(),
    sep="\n  ",
)

# %% [markdown]
# Why care about the store? Build new networks and go on without clearing it, and the store still
# answers with the *old* tensors: the optimizer moves those, and the new networks never learn.

# %%
encoder, decoder = new_networks()
before = encoder.net[0].weight.detach().clone()
SVI(model, guide, pyro.optim.Adam({"lr": LR}), loss=Trace_ELBO()).step(x)
moved = (encoder.net[0].weight - before).abs().max().item()
print("largest change of a new weight, old store: ", moved)
assert moved == 0

pyro.clear_param_store()
SVI(model, guide, pyro.optim.Adam({"lr": LR}), loss=Trace_ELBO()).step(x)
moved = (encoder.net[0].weight - before).abs().max().item()
print("largest change of a new weight, new store: ", round(moved, 6))
assert moved > 0

pyro.clear_param_store()  # leave nothing behind for the next section

# %% [markdown]
# ## 7. The same program under `pv.fit`
#
# `pv.Program` joins the two functions, unchanged. `pv.fit` minimises the same loss; what it adds is
# what one otherwise writes around it:
#
# - the ELBO on validation data after each epoch, and the **best** weights kept, not the last;
# - a history of nats per datum, early stopping, KL schedules, gradient clipping, checkpoints;
# - parameters that belong to the program: the global store is left as it was found.

# %%
encoder, decoder = new_networks()
vae = pv.Program(model, guide)
run = pv.fit(
    vae, train, valid=valid, epochs=EPOCHS, batch_size=BATCH, lr=LR, device="cpu", progress=False
)
print(run)
print(f"validation ELBO: {run.history['valid_elbo'].max():.2f} (stock SVI: {max(svi_valid):.2f})")
assert len(pyro.get_param_store()) == 0

pv.plots.curves(run.history)

# %% [markdown]
# The zoo has this program ready made: `pv.models.VAE(data_dim=64, latent_dim=8, hidden=(128,))`.
#
# ## 8. What the prior has bought
#
# **Generation.** Draw a code from the prior, decode. Nothing needs to be guessed.

# %%
torch.manual_seed(5)
generated = pv.generate(vae, NEW, mean=True)
pv.plots.samples(generated[:40], columns=10, title="VAE: codes from the prior (means of p(x | z))")

# %%
for name, images in {
    "test digits": test,
    "autoencoder, N(0, I)": ae_standard,
    "autoencoder, fitted Gaussian": ae_matched,
    "VAE, prior": generated,
}.items():
    print("{:<30} {:.2f} ± {:.2f} pixels".format(name, *pixels_to_nearest(images)))

# %% [markdown]
# **Reconstruction.** The VAE gives some of it up: noise on the codes and the pull of the prior
# limit how much a code can hold. The autoencoder spends everything on copying.

# %%
print(f"squared error, autoencoder: {squared_error(pv.reconstruct(ae, test)):.2f}")
print(f"squared error, VAE:         {squared_error(pv.reconstruct(vae, test)):.2f}")

pv.plots.reconstructions(
    test[:12], pv.reconstruct(vae, test[:12]), title="VAE: it smooths a little"
)

# %% [markdown]
# **Codes.** Averaged over the data, draws from $q(z \mid x)$ should look like the prior: mean 0,
# standard deviation 1 in each unit. That is what the KL term asked for. No label was used in
# training, yet the classes fall into groups: a test digit mostly has the label of the training
# digit with the nearest code. The map shows two directions of the eight, so some groups overlap.

# %%
drawn = pv.encode(vae, train, sample=True)
for name, c in {"autoencoder": codes, "VAE": drawn}.items():
    print(f"{name:<12} mean", *(f"{m:+.2f}" for m in c.mean(0).tolist()))
    print(f"{'':<12} std ", *(f" {s:.2f}" for s in c.std(0).tolist()))

test_codes, labels = pv.encode(vae, test), digits.labels
nearest = torch.cdist(test_codes, pv.encode(vae, train)).argmin(1)
accuracy = (labels["train"][nearest] == labels["test"]).double().mean()
print(f"label of the nearest code is right for {100 * accuracy:.0f} % of the test digits")

pv.plots.latent_map(test_codes, labels["test"])

# %% [markdown]
# **Interpolation.** Straight lines between the codes of two test digits.

# %%
pv.plots.interpolations(pv.interpolate(vae, test[:5], test[5:10], steps=10))

# %% [markdown]
# **Likelihood.** The VAE is a density, so it can be *judged* on data it has not seen. Importance
# sampling with the encoder as proposal estimates
# $\log p(x) \approx \log \tfrac1K \sum_k p(x, z_k) / q(z_k \mid x)$, digit by digit. It lies above
# the ELBO, and the gap is the KL from the encoder's answer to the true posterior (nearly: with
# finite K the estimate is still a little low). The standard error is that of the mean over digits.
# The estimate comes with evidence about itself: its effective sample size, and a shape $k$ of the
# weights' tail, above 0.7 for the digits whose weights are too uneven to be trusted.

# %%
torch.manual_seed(6)
likelihood = pv.log_likelihood(vae, test, num_particles=IMPORTANCE)
bound = pv.elbo(vae, test, num_particles=100)
print(likelihood)
print(f"log-likelihood  {likelihood.mean:.2f} ± {likelihood.stderr:.2f} nats per digit")
print(f"ELBO            {bound.mean():.2f}")
print(f"gap             {likelihood.mean - bound.mean():.2f}")
print(f"coin flips      {64 * torch.tensor(0.5).log():.2f}")
assert likelihood.mean > bound.mean()

try:
    pv.log_likelihood(ae, test)
except pv.errors.PyroVaeError as error:
    print("\nThe autoencoder:", error)
else:
    raise AssertionError("an autoencoder has no likelihood")

# %% [markdown]
# ## 9. Exercises
#
# 1. Set `LATENT = 2`. The autoencoder's samples get better, the VAE's likelihood worse. Why both?
# 2. Train with `pv.fit(..., beta=4.0)`, then `beta=0.0`. What happens to reconstructions, samples
#    and the printed spread of the codes? What is $\beta = 0$ close to?
# 3. Put `pyro.distributions.testing.fakes.NonreparameterizedNormal` into the encoder. `Trace_ELBO`
#    now uses the score function. How far does SVI get in as many epochs?
# 4. A baseline: subtract from $\ell(z)$ the mean of the *other* particles' $\ell$. Show that the
#    score function's gradient stays unbiased, and add its variance to the figure of section 5.
# 5. Use `objective=pv.IWAE(num_particles=10)`. Does the log-likelihood improve? Does the ELBO?
#
# To read on: Kingma & Welling, *Auto-encoding variational Bayes* (2013), arXiv:1312.6114; Rezende
# et al., *Stochastic backpropagation* (2014), arXiv:1401.4082; Burda et al., *Importance weighted
# autoencoders* (2015), arXiv:1509.00519.
