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
# # Sequences: state spaces and sentences
#
# Two ways to put latents into a sequence:
#
# - a *state space* has a latent in each step, and all that steps have in common goes through it;
# - a *sentence VAE* has one latent for the whole sequence, and a decoder that also sees the words
#   before: so strong a decoder that it likes to do without the latent.
#
# Both are ordinary programs: `fit`, `elbo`, `log_likelihood`, `generate`, `refine` and `save` know
# nothing of time. You should have seen tutorials 01 and 09. The full run takes about four minutes
# on one CPU core.

# %%
import json
import os
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import pyro_vae as pv
from pyro_vae.errors import DataError

# In a notebook figures appear below their cell; as a plain script, draw, but open no window.
NOTEBOOK = "ipykernel" in sys.modules
plt.switch_backend("module://matplotlib_inline.backend_inline" if NOTEBOOK else "agg")

SMOKE = bool(os.environ.get("PYRO_VAE_SMOKE"))  # a short run, to test that everything works
STEPS = 8 if SMOKE else 32
EPOCHS = 2 if SMOKE else 120


def recorded(prefix):
    """Return the measured figures of this project by name, where its repository is at hand."""
    folder = Path(pv.__file__).parents[1] / "benchmarks" / "results"
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{prefix}*.json"))]
    return {row["name"].removeprefix(prefix): row for row in rows}


# %% [markdown]
# ## 1. Music as sequences of unequal length
#
# Bach's chorales as piano rolls: a step has 88 keys, struck or not. Sequences have unequal lengths:
# a batch is padded with zeros, and `lengths` says what counts. Nothing behind a length enters a
# density, a gradient or a draw, whatever stands there.
#
# The file is not shipped. Without it we make up something like it: chords that follow each other,
# and a melody on top. To keep the run short, each piece is cut to its first 32 steps.


# %%
def made_up(count, seed):
    """Return pieces of made-up chords and a melody."""
    generator = torch.Generator().manual_seed(seed)
    chords = torch.tensor([[39, 43, 46], [44, 48, 51], [46, 50, 53], [36, 39, 43]])
    lengths = torch.randint(STEPS // 2, STEPS + 1, (count,), generator=generator)
    x = torch.zeros(count, STEPS, 88)
    chord = torch.randint(4, (count,), generator=generator)
    melody = torch.full((count,), 58)
    for t in range(STEPS):
        move = torch.rand(count, generator=generator) < 0.3
        chord = torch.where(move, (chord + 1 + chord % 2) % 4, chord)
        melody = (melody + torch.randint(-2, 3, (count,), generator=generator)).clamp(54, 66)
        x[:, t].scatter_(1, torch.cat([chords[chord], melody[:, None]], 1), 1.0)
    kept = torch.arange(STEPS) < lengths[:, None]
    return {"x": x * kept[..., None], "lengths": lengths}


def cut(data):
    """Return the first steps of each piece."""
    return {"x": data["x"][:, :STEPS], "lengths": data["lengths"].clamp(max=STEPS)}


try:
    jsb = pv.data.load("jsb")
    train, test = cut(jsb.train), cut(jsb.test)
except DataError:
    train, test = made_up(60 if SMOKE else 200, seed=1), made_up(20 if SMOKE else 60, seed=2)
print(f"{len(train['x'])} pieces to train on, {int(train['lengths'].sum())} steps")


def piece(data, row):
    """Return one piece without its padding."""
    return data["x"][row, : data["lengths"][row]]


pv.plots.piano_rolls({f"piece {row}": piece(test, row) for row in range(3)})

# %% [markdown]
# ## 2. A deep Markov model, and three guides
#
# The model is a state space whose transition is a network,
#
# $$p(z, x) = \prod_t p(z_t \mid z_{t-1})\, p(x_t \mid z_t).$$
#
# Written with one site per step it would be a program that grows with the sequence. Here the whole
# path is *one* site, `z` with event (T, Z): drawn by a loop that no tracer unrolls, scored by one
# call for all steps (`pv.distributions.Chain`).
#
# What is the posterior? Given the state before, $z_t$ depends on the future alone:
#
# $$p(z \mid x) = \prod_t p(z_t \mid z_{t-1}, x_t, \dots, x_T).$$
#
# | guide | $q(z_t \mid \cdot)$ reads | what it lacks |
# |---|---|---|
# | `"smoothing"` | $z_{t-1}$, and $x_t, \dots, x_T$ through a backward GRU | nothing |
# | `"filtering"` | $z_{t-1}$, and $x_1, \dots, x_t$ | the future |
# | `"mean_field"` | all of x, not $z_{t-1}$ | the ties between states |
#
# (`"filtering_mean_field"` lacks both: it reads $x_1, \dots, x_t$ and not $z_{t-1}$.)


# %%
def trained(program):
    """Return a model of sequences, trained."""
    pv.fit(
        program,
        pv.data.bucketed(train, 20, widths=1, seed=0),
        epochs=EPOCHS,
        lr=3e-3,
        lr_schedule=pv.schedules.cosine(1.0, 0.05),
        beta=pv.schedules.linear(0.2, 1.0, over=0.2),
        clip_norm=5.0,
        device="cpu",
        progress=False,
    )
    return program


mean = train["x"].sum((0, 1)) / train["lengths"].sum()
models = {}
for guide in ("smoothing", "filtering", "mean_field"):
    torch.manual_seed(0)
    models[guide] = trained(
        pv.models.DMM(88, 8, (32,), transition=32, recurrent=32, guide=guide, data_mean=mean)
    )

# %% [markdown]
# ## 3. Nats per step: three numbers under one name
#
# The literature prints three figures for one model. They are all here, each by its name, with
# standard errors over the pieces:
#
# - `bound`: $\sum_i -\mathrm{ELBO}_i / \sum_i T_i$, each step counts alike;
# - `mean_of_sequences`: $\frac1N \sum_i -\mathrm{ELBO}_i / T_i$, each piece counts alike;
# - `likelihood`: as the first, of $\log p(x)$ by importance sampling: tighter, hence lower.
#
# The reference needs no latents: keys that are struck independently, with their own frequencies.

# %%
p = mean.clamp(1e-4, 1 - 1e-4)
kept = (torch.arange(STEPS) < test["lengths"][:, None])[..., None]
flat = -torch.where(kept, test["x"] * p.log() + (1 - test["x"]) * (1 - p).log(), 0.0).sum()
print(f"independent keys {flat / test['lengths'].sum():.2f} nats per step")
found = {}
print(f"{'guide':<12}{'bound':>14}{'mean of sequences':>20}{'likelihood':>16}")
for name, program in models.items():
    torch.manual_seed(0)
    found[name] = each = pv.per_step(program, test, likelihood_particles=20 if SMOKE else 200)
    print(
        f"{name:<12}{each.bound:>8.2f} ± {each.bound_stderr:.2f}"
        f"{each.mean_of_sequences:>13.2f} ± {each.mean_of_sequences_stderr:.2f}"
        f"{each.likelihood:>10.2f} ± {each.likelihood_stderr:.2f}"
    )

# %% [markdown]
# These are short runs on the beginnings of the pieces. What this project has measured on the whole
# data set (Krishnan et al., 2017, print 7.03 for smoothing, 7.52 for filtering, 7.10 for mean
# field, with larger networks). Each thing that a guide lacks costs: beside the guide that reads the
# past alone and forgets the state before, filtering gains a quarter of a nat per step.

# %%
for name, row in recorded("dmm_").items():
    if "importance_sampling" in row["details"]:
        tight = row["details"]["importance_sampling"]
        print(f"{name:<24} bound {row['value']:.2f} ± {row['stderr']:.2f}, likelihood {tight:.2f}")

# %% [markdown]
# How much does the latent of each step tell? The KL of a path is a sum over its steps,
#
# $$\mathrm{KL} = \sum_t \mathbb{E}_q \log \frac{q(z_t \mid z_{t-1}, x)}{p(z_t \mid z_{t-1})},$$
#
# and `per_step` gives its terms. Mean field pays about a nat more in each step for what it says: it
# does not know the state before, and has to say again what that one has said.

# %%
pv.plots.step_kl({name: each.kl for name, each in found.items()})

# %% [markdown]
# ## 4. Hear what it has learned
#
# A reconstruction goes through a draw of the path; a sample draws the path from the prior. `given`
# says how many steps a piece has: what is observed in it is ignored. A continuation takes a piece
# up to its middle: the guide says where its states are there, and the model goes on.

# %%
torch.manual_seed(1)
some = {key: value[:1] for key, value in test.items()}
rebuilt = {"x": pv.reconstruct(models["smoothing"], some), "lengths": some["lengths"]}
drawn = {"x": pv.generate(models["smoothing"], 1, given=some), "lengths": some["lengths"]}
half = int(some["lengths"]) // 2
gone_on = models["smoothing"].continuation(some["x"][:, :half], int(some["lengths"]) - half)
pv.plots.piano_rolls(
    {
        "data": piece(some, 0),
        "reconstruction": piece(rebuilt, 0),
        "sample": piece(drawn, 0),
        f"from step {half + 1} on drawn": piece(gone_on, 0),
    }
)

# %% [markdown]
# ## 5. Refine the posterior of a path
#
# Is the guide's posterior the true one? HMC starts from it and moves the whole path at once. Below,
# one unit of one piece, the one in which they differ most: mean and twice the standard deviation in
# each step, by the mean-field guide and by HMC under the *same* model. That they are near each
# other is no accident: trained together, a model learns posteriors that its guide can follow. What
# is left is the gap between bound and likelihood in the table above.

# %%
program = models["mean_field"]
hmc = pv.HMC(num_draws=20 if SMOKE else 300, warmup=10 if SMOKE else 200, chains=2, num_leapfrog=10)
torch.manual_seed(2)
with warnings.catch_warnings():
    warnings.simplefilter("ignore" if SMOKE else "default")  # a few steps do not mix
    refined = pv.refine(program, some, hmc)
print(f"R-hat {refined.rhat[0]:.2f}, effective draws {refined.ess[0]:.0f}")
with torch.no_grad():
    q = program.encoder(some["x"], some["lengths"])
apart = (q.mean[0] - refined.mean[0]).abs() / refined.scale[0]
unit = int(apart[: some["lengths"]].mean(0).argmax())
steps = torch.arange(1, int(some["lengths"]) + 1)
figure, axis = plt.subplots(figsize=(7, 3))
for name, centre, spread in (
    ("mean-field guide", q.mean[0, :, unit], q.variance[0, :, unit].sqrt()),
    ("HMC", refined.mean[0, :, unit], refined.scale[0, :, unit]),
):
    centre, spread = centre[: len(steps)], spread[: len(steps)]
    axis.plot(steps, centre, label=name)
    axis.fill_between(steps, centre - 2 * spread, centre + 2 * spread, alpha=0.25)
axis.set(xlabel="step", ylabel=f"unit {unit} of z")
axis.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.0))
figure.tight_layout()

# %% [markdown]
# ## 6. Memory in place of a state: the VRNN
#
# In a state space step t + 1 knows of the past only what $z_t$ holds. `VRNN` (Chung et al., 2015)
# has a recurrent memory of all latents *and* all data before, which prior, posterior and decoder
# see. Here it is the better model, with less in its latents: much of what a step needs stands in
# the memory. The sentences below take that to its end.

# %%
torch.manual_seed(0)
vrnn = trained(pv.models.VRNN(88, 8, (32,), features=32, recurrent=32, data_mean=mean))
torch.manual_seed(0)
each = pv.per_step(vrnn, test)
print(f"VRNN {each.bound:.2f} ± {each.bound_stderr:.2f} nats per step")
pv.plots.step_kl({"deep Markov model": found["smoothing"].kl, "VRNN": each.kl})

# %% [markdown]
# ## 7. Sentences
#
# Words are whole numbers; `pv.data.Vocabulary` makes them of text, and text of them. To know what
# is best, we draw sentences from a small grammar, in which the scene decides which nouns, verbs and
# places go together. The scene is what a code could hold: some log 4 nats. All else is local, and
# a language model learns it.

# %%
SCENES = {
    "kitchen": (["cook", "pan", "plate", "cup"], ["holds", "cleans"], ["table", "stove", "sink"]),
    "street": (["car", "bus", "man", "dog"], ["passes", "follows"], ["road", "corner", "sign"]),
    "beach": (["surfer", "wave", "child", "boat"], ["rides", "meets"], ["sand", "sea", "shore"]),
    "field": (["horse", "cow", "sheep", "girl"], ["leads", "feeds"], ["grass", "fence", "hill"]),
}
COLOURS, PLACES = ["red", "old", "small", "white", "big"], ["near", "on", "by"]


def sentence(generator):
    """Return a sentence and its log-probability under the grammar."""
    choices = []

    def pick(options):
        choices.append(len(options))
        return options[int(torch.randint(len(options), (), generator=generator))]

    def phrase():
        return [pick(["a", "the"]), *([pick(COLOURS)] if pick([True, False]) else []), pick(nouns)]

    nouns, verbs, places = SCENES[pick(list(SCENES))]
    words = [*phrase(), pick(verbs), *phrase(), pick(PLACES), "the", pick(places)]
    return " ".join(words), -float(torch.tensor(choices).log().sum())


def sentences(count, seed):
    """Return sentences and their log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    return zip(*(sentence(generator) for _ in range(count)), strict=True)


lines, _ = sentences(64 if SMOKE else 4000, seed=1)
test_lines, test_log_p = sentences(40 if SMOKE else 500, seed=2)
words = pv.data.Vocabulary.of(list(lines), least=1)
text, test_text = words.numbers(list(lines)), words.numbers(list(test_lines))
print(f"{len(words)} words; for example: {lines[0]}.")

# %% [markdown]
# ### A language model, a VAE that collapses, and five cures
#
# `SentenceLM` is the decoder without a code; its likelihood is exact. `SentenceVAE` reads the
# sentence with a GRU, and its decoder sees the code at every step. Where the code is not listened
# to, it is a language model with a useless encoder. The cures:
#
# | cure | where it acts |
# |---|---|
# | annealing | the KL weight rises from 0 to 1 (Bowman et al., 2016) |
# | word dropout | the decoder does not see all words while training (Bowman et al., 2016) |
# | free bits | the first quarter of a nat of each unit is free (Kingma et al., 2016) |
# | cyclical | the KL weight rises several times (Fu et al., 2019) |
# | lagging | the encoder trains ahead of the decoder (He et al., 2019) |

# %%
SIZES = {"embedding": 16, "hidden": 16 if SMOKE else 48}
UNITS = 4


def fitted(program, objective=None, **options):
    """Return a model of sentences, trained."""
    pv.fit(
        program,
        pv.data.bucketed(text, 32, widths=1, seed=0),
        objective=objective,
        epochs=1 if SMOKE else 12,
        lr=4e-3,
        clip_norm=5.0,
        device="cpu",
        compile=False,
        progress=False,
        **options,
    )
    return program


def sentence_vae(objective=None, word_dropout=0.0, **options):
    """Return a VAE of sentences, trained."""
    torch.manual_seed(0)
    vae = pv.models.SentenceVAE(len(words), UNITS, word_dropout=word_dropout, **SIZES)
    return fitted(vae, objective, **options)


torch.manual_seed(0)
language_model = fitted(pv.models.SentenceLM(len(words), **SIZES))
few = {key: value[:100] for key, value in test_text.items()}
arms = {
    "plain": sentence_vae(),
    "annealing": sentence_vae(beta=pv.schedules.linear(0.0, 1.0, over=0.7)),
    "word dropout": sentence_vae(word_dropout=0.4),
    "free bits": sentence_vae(pv.FreeBits(0.25)),
    "cyclical": sentence_vae(beta=pv.schedules.cyclical(cycles=3, ramp=0.5)),
    "lagging": sentence_vae(pv.Lagging(few, inner=2)),
    "dropout and bits": sentence_vae(pv.FreeBits(0.25), word_dropout=0.4),
}

# %%
exact = -torch.tensor(test_log_p)
known = -pv.log_likelihood(language_model, test_text, num_particles=1).mean
print(f"{'':<18}{'NLL':>7}{'KL':>7}{'MI':>7}   nats per sentence")
print(f"{'the grammar':<18}{exact.mean():>7.2f}")
print(f"{'language model':<18}{known:>7.2f}")
judged = {}
for name, vae in arms.items():
    torch.manual_seed(0)
    seen = pv.diagnose(vae, test_text)
    nll = -pv.log_likelihood(vae, test_text, num_particles=10 if SMOKE else 200).mean
    judged[name] = (max(seen.total_kl, 0.0), nll)
    told = seen.information.lower
    print(f"{name:<18}{nll:>7.2f}{max(seen.total_kl, 0.0):>7.2f}{told:>7.2f}")
pv.plots.cures({"made-up sentences": judged})

# %% [markdown]
# The plain code is dead, and nothing in the likelihood tells: after its first noun a sentence has
# told its scene, and the language model needs no code to know it. Where a cure works, the KL is
# about log 4 = 1.39 nats: the code holds the scene, and the likelihood is the same. Not every cure
# works on every set, and none is free of a setting; that is why there are five.
#
# The same on 10,000 captions of photographs (COCO), as this project has measured it. There the
# words of a sentence tell much about each other, and a plain VAE's code dies too. That a VAE with a
# living code is about as good as the language model, and no better, is what Bowman et al. found.

# %%
captions = recorded("sentences_")
for name, row in captions.items():
    kl = row["details"].get("kl")
    print(
        f"{name:<14}{row['value']:>7.2f} ± {row['stderr']:.2f}"
        + ("" if kl is None else f"  KL {kl:.2f}")
    )
if captions:
    measured = {n: (r["details"].get("kl", 0.0), r["value"]) for n, r in captions.items()}
    pv.plots.cures({"captions (lm: the language model)": measured})

# %% [markdown]
# ## 8. From codes to sentences
#
# Greedy decoding takes the likeliest word at each step, sampled decoding draws it; `temperature`
# lies between. With a living code, greedy decoding of a sentence's own code gives a sentence of the
# same scene.

# %%
alive = arms["dropout and bits"]
rows = {key: value[:3] for key, value in test_text.items()}
torch.manual_seed(0)
greedy, sampled = pv.reconstruct(alive, rows), pv.reconstruct(alive, rows, mean=False)
for row in range(3):
    for what, x in (("data", rows["x"]), ("greedy", greedy), ("sampled", sampled)):
        print(f"{what:<8} {words.text(x[row])}")
print("from the prior:")
codes = alive.prior().sample((3,))
for row in alive.sentences(rows["x"].shape[1], codes, temperature=0.7).sample():
    print("        ", words.text(row))

# %% [markdown]
# On the line between the codes of two sentences:

# %%
first, last = ({key: value[[row]] for key, value in test_text.items()} for row in (0, 1))
torch.manual_seed(0)
for row in pv.interpolate(alive, first, last, steps=6)[0]:
    print(words.text(row))

# %% [markdown]
# How alive is the code? The codes of test sentences in the plane, coloured by the scene, which no
# model was told.

# %%
scene = [
    next(name for name, (nouns, _, _) in SCENES.items() if set(nouns) & set(line.split()))
    for line in test_lines
]
pv.plots.latent_map(pv.encode(alive, test_text), scene, title="Codes of sentences, by scene")

# %% [markdown]
# From the shell, with a sentence on each line of a file:
#
#     pyro-vae train --model SentenceVAE --data lines.txt --objective target_kl --nats 5
#     pyro-vae evaluate runs/sentencevae-lines
#     pyro-vae generate runs/sentencevae-lines -n 10
#
# ## What to take away
#
# - A path of latents is one site: the program does not grow with the sequence, and any verb works.
# - Say which of the three figures per step you print; a guide that reads the future is worth it.
# - A strong decoder kills the code silently: set a language model beside a sentence VAE, and look
#   at the KL and the mutual information beside the likelihood.
