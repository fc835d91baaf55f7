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
# # Posterior collapse
#
# A VAE can train well and learn nothing. Its loss falls, its likelihood is good, its samples look
# fine, and yet $q(z \mid x) = p(z)$: the code carries not a bit of the data. This is *posterior
# collapse*, and the loss does not tell. `pv.diagnose` does.
#
# We make it happen with a decoder that can do without the code, look at it, cure it in six ways,
# and ask what the codes are worth: can a *linear* classifier read the digit's class from them?
#
# You should have seen tutorial 01. The full run takes less than a minute on one CPU core.

# %%
import os
import sys
from functools import partial

import matplotlib.pyplot as plt
import torch
from sklearn.linear_model import LogisticRegression

import pyro_vae as pv
from pyro_vae.conditionals import MADE, BatchNormGaussian, DeltaGaussian

# In a notebook figures appear below their cell; as a plain script, draw, but open no window.
NOTEBOOK = "ipykernel" in sys.modules
plt.switch_backend("module://matplotlib_inline.backend_inline" if NOTEBOOK else "agg")

SMOKE = bool(os.environ.get("PYRO_VAE_SMOKE"))  # a short run, to test that everything works
EPOCHS = 3 if SMOKE else 150
LATENT, HIDDEN = 10, (64,)

digits = pv.data.load("digits", binarization="threshold")
train, valid, test = digits.train, digits.valid, digits.test
print(digits)

# %% [markdown]
# ## 1. Make it happen
#
# The usual decoder draws the pixels independently given $z$: all that pixels have in common must
# come from the code. `MADE` is *autoregressive*: each pixel also sees the pixels before it,
#
# $$p(x \mid z) = \prod_d p(x_d \mid z, x_{<d}).$$
#
# Neighbouring pixels tell it so much that the code is hardly worth its price, the KL. And early in
# training the code is noise: the cheapest step is to shut it off. Then the decoder learns to live
# without it, and it never comes back.


# %%
def train_one(objective=None, beta=1.0, dropout=0.0, callbacks=(), **options):
    """Return one VAE with an autoregressive decoder, trained."""
    torch.manual_seed(0)
    vae = pv.models.VAE(
        64,
        LATENT,
        HIDDEN,
        observation=partial(MADE, hidden=128, input_dropout=dropout),
        data_mean=train.mean(0),
        **options,
    )
    pv.fit(
        vae,
        train,
        objective=objective,
        beta=beta,
        epochs=EPOCHS,
        batch_size=128,
        lr=3e-3,
        lr_schedule=pv.schedules.cosine(1.0, 0.05),
        device="cpu",
        callbacks=callbacks,
        progress=False,
    )
    return vae


monitor = pv.CollapseMonitor(valid, every=1 if SMOKE else 10)
plain = train_one(callbacks=[monitor])
print(f"ELBO on test digits: {pv.elbo(plain, test).mean():.2f} nats")

# %% [markdown]
# That bound looks healthy. Nothing in it says that anything is wrong.
#
# ## 2. See it
#
# `pv.diagnose` looks at the code instead of the loss. Its report begins with a verdict and ends
# with what may help.

# %%
torch.manual_seed(0)
print(pv.diagnose(plain, test).report())

# %% [markdown]
# How to read it:
#
# - **KL** is the price paid for the code, nats per digit. At zero nothing is bought. (It is an
#   average over draws: a little below zero is zero.)
# - **Active units** have a posterior mean that varies over the data: $\mathrm{Var}_x\,
#   \mathbb{E}_q[z \mid x] > 0.01$ of the prior's variance (Burda et al., 2016), or more than that
#   of $q$. **Var q** is the posterior variance; it is 1, the prior's, in a dead unit.
# - **Mutual information** is what the KL buys: $\mathrm{KL} = I(x; z) + \mathrm{KL}(q(z) \| p(z))$.
#   The rest is the distance of all codes together from the prior. It is given as a lower and an
#   upper estimate; with $N$ data, nothing above $\log N$ can be seen.
# - **log p(x | z)** with the right code, with that of another datum and with one from the prior: if
#   they are equal, the decoder does not listen.
#
# The monitor has looked on while it trained. Its first look was after ten epochs, and the code was
# dead already.

# %%
pv.plots.collapse_curves(monitor.history)

# %% [markdown]
# ## 3. Cure it
#
# Each cure is one argument on the *same* program. They act in different places:
#
# | cure | where it acts |
# |---|---|
# | warm-up | the KL weight rises from 0 to 1: the code comes cheap at first (Bowman et al., 2016) |
# | free bits | the first λ nats of each unit are free (Kingma et al., 2016) |
# | target KL | holds the KL at C nats, from both sides (Burgess et al., 2018) |
# | δ-VAE | posterior scales are bounded: each unit commits δ nats (Razavi et al., 2019) |
# | batch norm | posterior means must vary over the batch (Zhu et al., 2020) |
# | input dropout | the decoder does not see all pixels while training (Bowman et al., 2016) |
#
# More in the library: `pv.Lagging` trains the encoder ahead (He et al., 2019), `network="skip"`
# feeds the code to each decoder layer (Dieng et al., 2019), `pv.IWAE(5)` tightens the bound.

# %%
cured = {
    "plain": plain,
    "warm-up": train_one(beta=pv.schedules.linear(0.0, 1.0, over=0.5)),
    "free bits": train_one(pv.FreeBits(0.5)),
    "target KL": train_one(pv.TargetKL(6.0)),
    "δ-VAE": train_one(posterior=partial(DeltaGaussian, delta=0.4)),
    "batch norm": train_one(posterior=partial(BatchNormGaussian, gain=0.8)),
    "input dropout": train_one(dropout=0.5),
}

# %% [markdown]
# ## 4. What are the codes worth?
#
# For each arm: the negative log-likelihood (lower is better), what the diagnosis says, and the
# accuracy of a linear classifier on the codes (chance is 10 %).


# %%
def probe(vae):
    """Return the test accuracy of a linear classifier on posterior means."""
    codes = {name: pv.encode(vae, x).numpy() for name, x in (("train", train), ("test", test))}
    scale = codes["train"].std(0) + 1e-6
    classifier = LogisticRegression(max_iter=2000)
    classifier.fit(codes["train"] / scale, digits.labels["train"].numpy())
    return classifier.score(codes["test"] / scale, digits.labels["test"].numpy())


arms = {}
print(f"{'':<14}{'NLL':>7}{'KL':>7}{'MI':>7}{'active':>8}{'accuracy':>10}")
for name, vae in cured.items():
    torch.manual_seed(0)
    found = pv.diagnose(vae, test)
    nll = -pv.log_likelihood(vae, test, num_particles=20 if SMOKE else 500).mean
    arms[name] = (found.total_kl, nll)
    told = found.information.lower
    active = f"{found.active_units['z']}/{LATENT}"
    kl = max(found.total_kl, 0.0)
    print(f"{name:<14}{nll:>7.2f}{kl:>7.2f}{told:>7.2f}{active:>8}{probe(vae):>10.0%}")

# %%
pv.plots.cures({"digits, autoregressive decoder": arms})

# %% [markdown]
# The collapsed model is a fine density model and a useless encoder. (How can a dead code do better
# than chance? Its means still move by a hundredth of the prior's scale, and the classifier sees
# them magnified. In a draw of the code, `pv.encode(..., sample=True)`, that drowns.) The cures
# spend nats on the code, and the classifier shows what came back for them. Two lessons:
#
# - A high KL alone proves nothing. A KL forced by construction can be spent on noise: the δ-VAE
#   pays the most nats here, and its likelihood is that of the plain arm. Look at the mutual
#   information, and at what the decoder gains from the right code.
# - Which cure is best depends on what the code is for. If only the likelihood matters, a collapsed
#   code may be no fault at all: the best cure gains a quarter of a nat, and input dropout, which
#   blinds the decoder, loses about one.
#
# A cured model's diagnosis, as a figure: units sorted by KL, by the variance of their means, and
# the histogram of posterior variances, where dead units stand at 1.

# %%
torch.manual_seed(0)
pv.plots.diagnosis(pv.diagnose(cured["batch norm"], test))
