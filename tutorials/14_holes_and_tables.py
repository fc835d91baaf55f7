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
# # Holes and mixed tables
#
# Tables have columns of different kinds, and cells that nobody filled in. A VAE takes both: each
# column gets a distribution of its own, and what is missing is no part of the likelihood,
#
# $$\log p(x_o) = \log \int p(z) \prod_{d\ \text{observed}} p_d(x_d \mid z)\, dz.$$
#
# That is right where cells are missing at random: whether a cell is missing may depend on what is
# seen, not on the cell itself.
#
# You should have seen tutorial 01; tables need `pip install -e ".[tables]"`. The full run takes
# about two minutes on one CPU core.

# %%
import os
import sys
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch

import pyro_vae as pv

# In a notebook figures appear below their cell; as a plain script, draw, but open no window.
NOTEBOOK = "ipykernel" in sys.modules
plt.switch_backend("module://matplotlib_inline.backend_inline" if NOTEBOOK else "agg")

SMOKE = bool(os.environ.get("PYRO_VAE_SMOKE"))  # a short run, to test that everything works
EPOCHS = 2 if SMOKE else 60
DRAWS = 20 if SMOKE else 1000  # importance samples of a datum with holes

# %% [markdown]
# ## 1. A table whose truth is known
#
# Three groups of people, six columns of six kinds. Then a fifth of all cells goes.

# %%
rng = np.random.default_rng(0)
rows = 300 if SMOKE else 1500
group = rng.integers(3, size=rows)
whole = pd.DataFrame(
    {
        "height": rng.normal(165 + 8 * group, 5),
        "income": np.exp(rng.normal(10 + 0.5 * group, 0.3)),
        "visits": rng.poisson(1 + 3 * group),
        "town": np.array(["Ayr", "Bonn", "Como"])[(group + (rng.random(rows) < 0.1)) % 3],
        "grade": pd.Categorical.from_codes(
            np.clip(group + rng.integers(0, 2, rows), 0, 3), ["D", "C", "B", "A"], ordered=True
        ),
        "dose": np.clip(rng.normal(0.5 * group, 0.5), 0, None),  # nothing below 0 is measured
    }
)
holes = pd.DataFrame(rng.random(whole.shape) < 0.2, columns=whole.columns)
table = whole.mask(holes)
table.head()

# %% [markdown]
# ## 2. From a frame to a program
#
# Strings are categories and whole numbers are counts; what a dtype does not tell is said by
# `kinds`. Scales and categories are those of the observed cells. `MIWAE` is the importance-weighted
# bound of these cells alone.

# %%
kinds = {"income": "positive", "visits": "count", "dose": {"kind": "censored", "low": 0.0}}
torch.manual_seed(0)
program = pv.models.TableVAE(table, 3, (64,), kinds=kinds)
for column in program.columns:
    print(f"{column.name:8s} {column.kind:12s} {column.distribution}")
settings = {"epochs": EPOCHS, "lr": 3e-3, "batch_size": 100, "device": "cpu", "progress": False}
run = pv.fit(program, table, objective=pv.MIWAE(10), **settings)

# %% [markdown]
# Verbs take frames, by the names of their columns, and answer with frames of the same dtypes.

# %%
print(pv.log_likelihood(program, table, num_particles=100))
made = pv.generate(program, rows)
made.head()

# %%
figure, axes = plt.subplots(1, 6, figsize=(13, 2.2))
for axis, name in zip(axes, whole.columns, strict=True):
    if whole[name].dtype.kind in "if":
        span = np.linspace(*np.nanquantile(whole[name], [0.0, 0.995]), 20)
        axis.hist([whole[name], made[name]], bins=span, label=["data", "generated"])
    else:
        shares = [frame[name].value_counts(sort=False, normalize=True) for frame in (whole, made)]
        pd.concat(shares, axis=1, keys=["data", "generated"]).plot.bar(ax=axis, legend=False, rot=0)
    axis.set(title=name, yticks=[], xlabel="")
above = {"loc": "upper right", "bbox_to_anchor": (0.9, 1.16), "ncols": 2, "frameon": False}
figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, **above)
figure.suptitle("marginals of the columns, data and generated", y=1.1)

# %% [markdown]
# ## 3. Filling in
#
# `impute` weighs draws of the code by how well they explain the observed cells. The mean is the
# best guess in squared error; names get the most probable one. `ess` says how many draws counted;
# a warning names the rows where these were few.

# %%
filled = pv.impute(program, table, num_particles=100)
print(filled)
figure, axes = plt.subplots(1, 2, figsize=(7, 3))
for axis, name in zip(axes, ("height", "income"), strict=True):
    gone = holes[name]
    truth, guess = whole[name][gone], filled.values[name][gone]
    axis.scatter(truth, guess, s=6, alpha=0.5)
    axis.axline((truth.mean(), truth.mean()), slope=1, color="0.5", lw=1)
    axis.set(title=f"{name}: imputed against true", xlabel="true", ylabel="imputed")
    axis.locator_params(axis="x", nbins=4)
    left = ((guess - truth) ** 2).mean() / ((truth - table[name].mean()) ** 2).mean()
    print(f"{name}: {left:.0%} of the squared error that the column's mean makes")
for name in ("town", "grade"):
    gone = holes[name]
    right = (filled.values[name][gone].astype(str) == whole[name][gone].astype(str)).mean()
    common = (whole[name][gone].astype(str) == str(table[name].mode()[0])).mean()
    print(f"{name}: {right:.0%} right, by the most frequent value {common:.0%}")
figure.tight_layout()

# %% [markdown]
# A mean is no datum: filled-in means have too little spread. `how="sample"` draws the missing cells
# together, given the others; several such tables show how uncertain an analysis is (multiple
# imputation).

# %%
gone = holes["height"]
draws = pv.impute(program, table, how="sample", num_particles=100).values["height"][gone]
print(f"spread of the true heights   {whole['height'][gone].std():.2f}")
print(f"spread of the means          {filled.values['height'][gone].std():.2f}")
print(f"spread of the draws          {draws.std():.2f}")

# %% [markdown]
# ## 4. The same in your own program: counts with a size factor
#
# Any program may have holes: put `Incomplete` around a distribution of independent cells. Here is
# the model of scVI (Lopez et al., 2018) for the counts of genes in a cell: a zero-inflated negative
# binomial, whose mean is a share of the row's total, the *size factor*, and which is a mere zero
# with a probability of its own (a gene that was there and not caught).


# %%
class Counts(torch.nn.Module):
    def __init__(self, genes=10, latent=2):
        super().__init__()
        self.decoder = pv.nn.MLP(latent, 2 * genes, (32,))
        self.log_dispersion = torch.nn.Parameter(torch.zeros(genes))
        self.code = pv.conditionals.Gaussian(pv.nn.MLP(genes, 2 * latent, (32,)))
        self.latent = latent

    def model(self, x, size):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            share, gate = self.decoder(z).chunk(2, -1)
            mean, count = size[:, None] * share.softmax(-1), self.log_dispersion.exp()
            logits = (mean / count).log()
            cells = dist.ZeroInflatedNegativeBinomial(count, logits=logits, gate_logits=gate)
            seen = pv.distributions.Incomplete(cells.to_event(1), ~x.isnan())
            pyro.sample("x", seen, obs=x)

    def guide(self, x, size):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.code(x.nan_to_num().log1p()))


torch.manual_seed(1)
profile = torch.softmax(2 * torch.randn(3, 10), -1)[torch.as_tensor(group)]
size = torch.as_tensor(rng.integers(50, 200, rows)).float()
counts = torch.poisson(size[:, None] * profile) * (torch.rand(rows, 10) < 0.8)
x = torch.where(torch.rand(rows, 10) < 0.1, torch.nan, counts)
cells = Counts()
pv.fit(cells, (x, size), objective=pv.MIWAE(5), **settings)
guess = pv.impute(cells, (x, size), num_particles=100)
new = guess.missing
error = (guess.values - counts)[new].square().mean().sqrt()
plain = (counts.mean(0).expand_as(counts) - counts)[new].square().mean().sqrt()
print(f"error of imputed counts {error:.1f}, of the columns' means {plain:.1f}")
lost = cells.decoder(pv.encode(cells, (x, size))).chunk(2, -1)[1].sigmoid()
busy = size[:, None] * profile > 5  # where a zero is hardly one of the negative binomial
print(f"counts that were lost: {lost[busy].mean():.0%} by the model, 20% in truth")

# %% [markdown]
# ## 5. Modalities that lack
#
# What lacks may be a whole modality: the label of an image, or half of it. A `MultimodalVAE` has an
# encoder for each, and what they say of $z$ is multiplied (`guide="product"`, exact where each says
# a Gaussian) or mixed (`guide="mixture"`). What lacks drops out of guide and likelihood. Here are
# digits as two halves and a label, of which a third is hidden in training.

# %%
data = pv.data.load("digits")
labels = data.labels
images = {split: getattr(data, split).reshape(-1, 8, 8) for split in ("train", "test")}


def halves(split, hide):
    """The left half, the right half and the label; rows of NaN where one is hidden."""
    x = images[split]
    parts = {
        "left": x[..., :4].flatten(1),
        "right": x[..., 4:].flatten(1),
        "label": labels[split][:, None].float(),
    }
    hidden = torch.rand(len(x), 3) < hide
    return {
        name: part.masked_fill(hidden[:, i, None], torch.nan)
        for i, (name, part) in enumerate(parts.items())
    }


torch.manual_seed(2)
name_of = {"data_dim": 1, "observation": partial(pv.conditionals.Categorical, num_classes=10)}
half = {"data_dim": 32, "observation": pv.conditionals.Gaussian}
several = pv.models.MultimodalVAE({"left": half, "right": half, "label": name_of}, 8, (128,))
pv.fit(several, halves("train", 1 / 3), **settings)

# %% [markdown]
# Leave a modality out, and `impute` fills it in by the others: the right half given the left one,
# and the label given either or both. The more is seen, the better.

# %%
test = halves("test", 0.0)
for seen in (("left",), ("right",), ("left", "right")):
    found = pv.impute(several, {name: test[name] for name in seen}, num_particles=DRAWS)
    right = (found.values["label"] == test["label"]).float().mean()
    print(f"label right given {' and '.join(seen):16s} {right:.0%}")
some = {"left": test["left"][:8], "label": test["label"][:8]}
drawn = pv.impute(several, some, num_particles=DRAWS).values["right"]
figure, axes = plt.subplots(2, 8, figsize=(8, 2.4))
for column in range(8):
    left = test["left"][column].reshape(8, 4)
    for row, other in enumerate((test["right"][column], drawn[column])):
        whole_digit = torch.cat([left, other.reshape(8, 4)], 1)
        axes[row, column].imshow(whole_digit, cmap="gray_r", vmin=0, vmax=1)
        axes[row, column].axvline(3.5, color="C1", lw=1)
        axes[row, column].set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("true")
axes[1, 0].set_ylabel("filled in")
figure.suptitle("the right half, given the left one and the label")

# %% [markdown]
# **To take away.** Score what is there, and nothing else; give each column its own distribution;
# fill in by weights, and say how many draws stand behind a guess.
