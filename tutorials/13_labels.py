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
# # Labels
#
# Data often come with something besides: a label, a covariate, the half of a picture that is not
# torn off. Three questions arise. What do data look like *given* it? What is the label of data that
# have none? And what do a thousand unlabelled data add to a hundred labelled ones?
#
# A `ConditionalVAE` answers the first: the condition is an input of prior, decoder and encoder. An
# `M2` (Kingma et al., 2014) answers the other two: the label is a latent that is given for some
# rows, and summed out exactly where it is not.
#
# You should have seen tutorial 01. The full run takes about a minute on one CPU core.

# %%
import os
import sys

import matplotlib.pyplot as plt
import torch

import pyro_vae as pv

# In a notebook figures appear below their cell; as a plain script, draw, but open no window.
NOTEBOOK = "ipykernel" in sys.modules
plt.switch_backend("module://matplotlib_inline.backend_inline" if NOTEBOOK else "agg")

SMOKE = bool(os.environ.get("PYRO_VAE_SMOKE"))  # a short run, to test that everything works
EPOCHS = 2 if SMOKE else 60
digits = pv.data.load("digits", binarization="threshold")  # 8 x 8 pixels, 0 or 1
x, y = digits.train, digits.labels["train"]
x_test, y_test = digits.test, digits.labels["test"]

# %% [markdown]
# ## 1. A label for each row
#
# With $y$ given, $z \sim N(0, I)$ and $x \sim p(x \mid z, y)$: what the label tells need not be in
# the code. Batches are pairs. `generate` takes the condition of each datum by name.

# %%
torch.manual_seed(0)
given_class = pv.models.ConditionalVAE(64, 8, (128,), num_classes=10, prior="standard")
settings = {"epochs": EPOCHS, "batch_size": 100, "lr": 3e-3, "device": "cpu", "progress": False}
pv.fit(given_class, (x, y), objective=pv.AnalyticELBO(), **settings)

classes = torch.arange(10).repeat_interleave(8)
samples = pv.generate(given_class, 80, given={"c": classes}, mean=True)


def grid(rows, columns, title):
    """Draw digits in rows of a grid."""
    figure, axis = plt.subplots(figsize=(0.6 * columns, 0.6 * len(rows) / columns))
    framed = torch.nn.functional.pad(rows.reshape(-1, columns, 8, 8), (1, 1, 1, 1))
    pictures = framed.transpose(1, 2).flatten(2).flatten(0, 1)
    axis.imshow(pictures, cmap="gray_r", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[], title=title)
    return figure


grid(samples.reshape(10, 8, 64).transpose(0, 1).reshape(80, 64), 10, "one column per class")

# %% [markdown]
# A row of the picture is no style: the codes are drawn anew for each digit.
#
# `log_likelihood` is of $p(x \mid y)$. With ten classes of equal weight Bayes' rule makes a
# classifier of it, trained on nothing but pictures of each class:

# %%
per_class = torch.stack(
    [
        pv.log_likelihood(
            given_class, (x_test, torch.full_like(y_test, c)), num_particles=30
        ).log_prob
        for c in range(10)
    ]
)
right = (per_class.argmax(0) == y_test).float().mean()
print(f"the class of the largest likelihood is the true one in {right:.1%} of test digits")

# %% [markdown]
# ## 2. A condition of many numbers: three quarters of a picture from one
#
# Covariates may be anything. Here the lower left quarter is seen, the other 48 pixels are data:
# the prior $p(z \mid c)$ is a network of what is seen.

# %%
seen = torch.zeros(8, 8, dtype=torch.bool)
seen[4:, :4] = True
seen = seen.flatten()
torch.manual_seed(1)
quarters = pv.models.ConditionalVAE(48, 8, (128,), covariates=16)
pv.fit(quarters, (x[:, ~seen], x[:, seen]), objective=pv.AnalyticELBO(), **settings)

some = x_test[:10]
completed = [some, torch.where(seen, some, 0.5)]
for _ in range(3):
    row = some.clone()
    row[:, ~seen] = pv.generate(quarters, 10, given={"c": some[:, seen]}, mean=True)
    completed.append(row)
grid(torch.cat(completed), 10, "digits, what is seen of them, three completions")

# %% [markdown]
# A figure of such models needs its name: minus the ELBO is a bound, and importance sampling gives
# the conditional likelihood itself.

# %%
pair = (x_test[:, ~seen], x_test[:, seen])
print(f"-ELBO {-pv.elbo(quarters, pair).mean():.2f} nats")
print(f"-log p(x | c) {-pv.log_likelihood(quarters, pair, num_particles=200).mean:.2f} nats")

# %% [markdown]
# ## 3. A hundred labels
#
# Ten labels of each class; the other rows have -1, "not known". `M2` sums over what is not known in
# every verb, exactly: no label is drawn. For training take `pv.SemiSupervised`: its bound
#
# $$\sum_y q(y \mid x) \big[\log p(x, y, z_y) - \log q(z_y \mid x, y) - \log q(y \mid x)\big]$$
#
# lies below the ELBO, and teaches the classifier $q(y \mid x)$ with unlabelled data too. The loss
# of the classifier on labelled rows is added with a weight: without it the model finds ten classes
# of its own. `pv.data.mixed` puts rows of both kinds into each batch.

# %%
few = torch.cat([(y == c).nonzero()[:10, 0] for c in range(10)])
none = torch.full_like(y, -1)
torch.manual_seed(2)
m2 = pv.models.M2(64, 10, 8, (128,))
batches = pv.data.mixed((x[few], y[few]), (x, none), batch_size=100, share=0.3)
run = pv.fit(m2, batches, objective=pv.SemiSupervised(20.0), **settings)

# %% [markdown]
# Beside it, a classifier of the same size that sees the hundred labelled digits alone.

# %%
torch.manual_seed(2)
alone = pv.nn.MLP(64, 10, (128,), activation="softplus")
optimizer = torch.optim.Adam(alone.parameters(), lr=3e-3)
for _ in range(20 if SMOKE else 300):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(alone(x[few]), y[few]).backward()
    optimizer.step()
baseline = (alone(x_test).argmax(-1) == y_test).float().mean()
by_network = pv.classify(m2, x_test)
by_model = pv.classify(m2, x_test, num_particles=30)
print(f"a hundred labels alone   {baseline:.1%}")
print(f"M2, its classifier       {by_network.accuracy(y_test):.1%}")
print(f"M2, the model by Bayes   {by_model.accuracy(y_test):.1%}")
print(f"predictive likelihood    {by_model.predictive(y_test):.3f} nats per label")
print(by_model)

# %% [markdown]
# The program knows pictures of each class as well, though it saw ten of each: `m2.conditional` is
# the `ConditionalVAE` inside.

# %%
samples = pv.generate(m2.conditional, 40, given={"c": torch.arange(10).repeat(4)}, mean=True)
grid(samples, 10, "M2 with 100 labels: one column per class")

# %% [markdown]
# Codes can stand in the place of pixels (M1+M2): train a VAE, then an M2 over draws of its encoder,
# resampled at each batch: `pv.fit(m2, batches, transform=pv.models.Resampled(vae))`, with
# `observation=Gaussian`, and classify at `Resampled(vae).mean(x)`. It is cheaper and on larger
# pictures better.
#
# **To take away.** A condition is an input; a label that may lack is a latent. Ask a classifier for
# speed and the model for probabilities that belong to a likelihood.
