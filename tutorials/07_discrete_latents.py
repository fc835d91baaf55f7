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
# # Discrete latents: sigmoid belief nets and VQ-VAE
#
# The reparametrisation trick writes $z = \mu + \sigma \varepsilon$ and differentiates through $z$.
# A bit has no such path: move a probability a little, and the bit stays as it was, or jumps. This
# tutorial shows two ways to train a model whose latents are discrete all the same.
#
# 1. **Unbiased.** A sigmoid belief network: binary latents and the score-function gradient, whose
#    noise has to be fought. We measure that noise, and train one network with five estimators.
# 2. **Biased on purpose.** The VQ-VAE: each latent is a vector out of a codebook, and the gradient
#    at the code is handed straight through to the encoder.
#
# You should have seen tutorials 01 and 02. The full run takes about a minute on one CPU core.

# %%
import math
import os
import sys

import matplotlib.pyplot as plt
import torch

import pyro_vae as pv

# In a notebook figures appear below their cell; as a plain script, draw, but open no window.
NOTEBOOK = "ipykernel" in sys.modules
plt.switch_backend("module://matplotlib_inline.backend_inline" if NOTEBOOK else "agg")
plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11}

SMOKE = bool(os.environ.get("PYRO_VAE_SMOKE"))  # a short run, to test that everything works
EPOCHS = 1 if SMOKE else 60
REPEATS = 3 if SMOKE else 100  # gradients behind each estimate of their noise
SAMPLES = 20 if SMOKE else 2000  # importance samples per digit
BITS = 32
COLOURS = ("#777777", "#DDAA33", "#CC6677", "#117733", "#332288")

# %% [markdown]
# ## 1. A sigmoid belief network
#
# $$z_i \sim \mathrm{Bernoulli}(\sigma(a_i)), \qquad
#   x_d \sim \mathrm{Bernoulli}\big(\sigma(W z + c)_d\big)$$
#
# with 32 bits for a digit of 64 pixels, and a guide $q(z \mid x)$ of the same form in the other
# direction. It is a Pyro program like any other of the library: `pv.fit`, `pv.log_likelihood` and
# `pv.generate` do not know that its latents are bits. What changes is the objective.

# %%
digits = pv.data.load("digits", binarization="threshold")
train, valid, test = digits.train, digits.valid, digits.test


def network():
    """Return a belief network, always with the same initial weights."""
    torch.manual_seed(0)
    return pv.models.SBN(64, (BITS,), data_mean=train.mean(0))


estimators = {
    "score function": lambda: pv.ELBO(num_particles=2),
    "NVIL": lambda: pv.NVIL(num_particles=2),
    "RLOO": lambda: pv.RLOO(2),
    "DisARM": pv.DisARM,
    "VIMCO": lambda: pv.VIMCO(2),
}

# %% [markdown]
# All five take two draws of $z$ per digit, so that they cost about the same. The first four
# estimate the gradient of the ELBO; they differ in what they subtract from the signal
# $l = \log p(x, z) - \log q(z \mid x)$ before it multiplies $\nabla \log q$:
#
# | estimator | what is subtracted |
# |---|---|
# | score function | nothing |
# | NVIL | a running mean; divided by a running deviation |
# | RLOO | the signal of the *other* draw of the same digit |
# | DisARM | the signal of an antithetic draw, summed over the noise behind the bits |
# | VIMCO | the bound of the other draw; it estimates the gradient of the two-sample bound |
#
# ### The noise of a gradient
#
# On one batch, at weights trained a little, how far do repeated estimates of the guide's gradient
# scatter around their mean? (NVIL needs training steps to learn its means, and VIMCO estimates the
# gradient of another bound, so they take no part here.)


# %%
def gradients(program, objective, data, repeats):
    """Return repeated estimates of the gradient of the guide's weights, (repeats, weights)."""
    wrapped = pv.Program.of(program)
    weights = list(program.encoders.parameters())
    found = []
    with wrapped.running():
        for _ in range(repeats):
            loss = objective.per_datum(wrapped.joint(data))
            grads = torch.autograd.grad(loss, weights)
            found.append(torch.cat([grad.flatten() for grad in grads]))
    return torch.stack(found)


sbn = network()
pv.fit(sbn, train, objective=pv.RLOO(2), epochs=3, lr=3e-3, progress=False)
noise = {}
for name in ("score function", "RLOO", "DisARM"):
    torch.manual_seed(1)
    grads = gradients(sbn, estimators[name](), train[:128], REPEATS)
    noise[name] = grads.var(0).sum().sqrt().item()
    print(f"{name:<15} noise of the gradient {noise[name]:.3f}")
assert SMOKE or noise["RLOO"] < noise["score function"]

# %% [markdown]
# One subtraction, and the noise falls to a twentieth; the expectation is the same. Noise is what
# limits the learning rate and, in the end, the bound. The same network, five times:

# %%
curve, axes = plt.subplots(figsize=(6.2, 3.4), layout="constrained")
trained = {}
for (name, objective), colour in zip(estimators.items(), COLOURS, strict=True):
    sbn = trained[name] = network()
    run = pv.fit(
        sbn,
        train,
        valid=valid,
        objective=objective(),
        epochs=EPOCHS,
        lr=3e-3,
        progress=False,
    )
    torch.manual_seed(1)
    scored = pv.log_likelihood(sbn, test, num_particles=SAMPLES)
    print(f"{name:<15} log p(x) {scored.mean:.2f} ± {scored.stderr:.2f} nats per test digit")
    axes.plot(run.history["epoch"], run.history["valid_elbo"], color=colour, lw=1.6, label=name)
axes.set(xlabel="epoch", ylabel="validation ELBO, nats per digit")
axes.legend(frameon=False)
axes.set_title("One belief network, five gradients", loc="left")

# %% [markdown]
# The quieter the gradient, the faster the bound rises; NVIL is slow while it learns its means. And
# VIMCO shows that a bound is not a likelihood. It trains the two-sample bound, under which the
# guide may be wider, so its ELBO falls behind that of RLOO and DisARM. Its likelihood does not.
#
# What do the bits stand for? Column $i$ of $W$ is what bit $i$ does to the picture's log-odds when
# it is on: bright pixels gain ink, dark ones lose it. They are pieces of strokes, in and out.

# %%
sbn = trained["DisARM"]
strokes = sbn.decoder.net.output.weight.detach().T.reshape(BITS, 8, 8)
scale = strokes.abs().amax((1, 2), keepdim=True)
pv.plots.samples(0.5 + 0.5 * strokes / scale, columns=16, title="What each of 32 bits adds")

# %%
torch.manual_seed(2)
pv.plots.samples(pv.generate(sbn, 40, mean=True), columns=10, title="Belief network: samples")

# %% [markdown]
# ## 2. Vectors out of a codebook
#
# A VQ-VAE keeps a codebook of $K$ vectors $e_k$. Its encoder maps a picture to a grid of vectors
# $h_i$, and each is replaced by the nearest code:
#
# $$z_i = e_{k_i}, \qquad k_i = \arg\min_k \lVert h_i - e_k \rVert .$$
#
# The guide is deterministic, so $\log q = 0$, and the ELBO is a code length: the nats of the codes,
# $-\log p(k)$, plus those of the picture given the codes. It is a bound on $\log p(x)$ like every
# other ELBO here.
#
# The arg min has no gradient. The **straight-through** estimator pretends that $z_i = h_i$ in the
# backward pass: the encoder receives the gradient at its code. That is wrong by about the distance
# between the two, so that distance is penalised (the *commitment*); and the codes follow the
# encodings that chose them by running means, which is k-means on line. The commitment belongs to
# the objective, `pv.VQ`, not to the model: the bound remains a bound.

# %%
grey = pv.data.load("digits")  # 17 grey levels, as scanned
pictures = grey.images(grey.train), grey.images(grey.valid), grey.images(grey.test)
levels = {"name": "DiscretisedLogistic", "options": {"levels": 17}}

torch.manual_seed(0)
vq = pv.models.VQVAE(
    (1, 8, 8), num_codes=32, code_dim=8, hidden=(32,), observation=levels, prior_width=32
)
run = pv.fit(
    vq,
    pictures[0],
    valid=pictures[1],
    objective=pv.VQ(commitment=0.25),
    epochs=EPOCHS,
    lr=3e-3,
    progress=False,
)
print(vq.eval().codes(pictures[2][:1]).reshape(4, 4), "<- the first test digit, in codes")

# %%
pv.plots.reconstructions(
    pictures[2][:12], pv.reconstruct(vq, pictures[2][:12]), title="16 codes out of 32 per digit"
)

# %% [markdown]
# Is the codebook in use? A code that no encoding chooses is pulled nowhere and stays where it is:
# codebooks die that way. Here a dead code is moved to a random encoding of the batch. The
# **perplexity** of the code frequencies says how many codes are in use, as if equally often;
# `pv.code_usage` returns it in a `pv.CodeUsage`.

# %%
usage = pv.code_usage(vq, pictures[2])
print(usage)
counts = usage.counts.sort(descending=True).values
bars, axes = plt.subplots(figsize=(6.2, 2.6), layout="constrained")
axes.bar(range(1, len(counts) + 1), counts, color=COLOURS[-1])
axes.axhline(counts.mean(), color=COLOURS[0], lw=1, label="all codes equally often")
axes.legend(frameon=False)
axes.set(xlabel="code, by frequency", ylabel="uses")
axes.set_title(f"Perplexity {usage.perplexity:.1f} of {usage.num_codes}", loc="left")

# %% [markdown]
# ## 3. The prior decides whether it generates
#
# The original VQ-VAE is trained under a *uniform* prior: each code costs $\log K$ nats, whatever
# the picture. Drawing codes from that prior gives noise, so a prior is fitted afterwards. Here it
# is learnt at the same time, by the ELBO's own term $\log p(k)$: a small causal transformer that
# predicts each code from those before it. Its gradient does not reach the encoder, so nothing else
# changes.

# %%
uniform = 16 * math.log(32)
learnt = pv.diagnose(vq, pictures[2]).kl["z"]
print(
    f"nats for the codes of a digit: {uniform:.2f} if uniform, {learnt:.2f} under the learnt prior"
)
assert SMOKE or learnt < 0.8 * uniform

torch.manual_seed(3)
with torch.no_grad():
    anything = torch.randint(32, (20, 16))
    noise_pictures = vq.eval().decoder(vq.codebook.vectors[anything]).mean
drawn = pv.generate(vq, 20, mean=True)
pv.plots.samples(
    torch.cat([noise_pictures, drawn]).clamp(0, 1),
    columns=10,
    title="Codes at random (above), codes from the learnt prior (below)",
)

# %% [markdown]
# ## What to remember
#
# - Discrete latents need no other trainer, likelihood or generator: only another gradient.
# - Score-function gradients are unbiased and noisy. Two draws and a difference (RLOO, DisARM,
#   VIMCO) make the difference.
# - The straight-through gradient is biased, cheap and quiet. It needs a commitment, a codebook that
#   follows, and an eye on the usage.
# - A VQ-VAE is a generative model only with a prior over its codes; with one its ELBO is a code
#   length in nats, to be compared with any other bound on the same data.
#
# **Try it.** Give `VQVAE` `prior="factorised"`: how many nats does the order of the codes save? Set
# `revive=0.0`: how many codes die? Stack a second layer, `pv.models.SBN(64, (32, 16))`, and look
# at what `pv.diagnose` says of it.
