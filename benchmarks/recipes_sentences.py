"""Sentence VAEs on captions, and five cures of their collapse: ``reproduce.py sentences_plain``."""

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from arms import train
from results import FOLDER, Result
from torch import Tensor

import pyro_vae as pv

BOWMAN = "Bowman et al. (2016), arXiv:1511.06349: on another set a bound of 101 against 100"
UNITS, EPOCHS, RAMP = 16, 11, 8 / 11
LM = "sentences_lm"


@dataclass(frozen=True)
class Cure:
    """What differs from the plain arm.

    Arguments:
        word_dropout: Share of the words that the decoder does not see while training.
        free_bits: Floor under the KL, nats; None: none.
        per: What has the floor: each "unit" of the code, or the whole "site".
        lagging: Whether the encoder trains ahead.
        fit: Arguments of ``pv.fit``.
        epochs: Of training.
    """

    word_dropout: float = 0.0
    free_bits: float | None = None
    per: str = "unit"
    lagging: bool = False
    fit: dict[str, Any] = field(default_factory=dict)
    epochs: int = EPOCHS


_ANNEALING = {"beta": pv.schedules.linear(0.0, 1.0, over=RAMP)}
CURES = {
    "plain": Cure(),
    "annealing": Cure(fit=_ANNEALING),
    "word_dropout": Cure(word_dropout=0.4),
    "free_bits": Cure(free_bits=0.25),
    "cyclical": Cure(fit={"beta": pv.schedules.cyclical(cycles=4, ramp=0.5)}),
    "lagging": Cure(lagging=True, epochs=2 * EPOCHS),
    "free_bits_whole": Cure(free_bits=5.0, per="site"),
    "combined": Cure(word_dropout=0.4, free_bits=5.0, per="site"),
}


def arm(name: str, args: argparse.Namespace) -> Result:
    """Train one arm, and set it beside the language model, sentence by sentence."""
    coco = pv.data.load("coco_captions")
    program, run = _trained(name, args, coco)
    test = {key: x[: args.rows or 2000] for key, x in coco.test.items()}
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    log_p = _log_likelihood(program, test, args.samples)
    count = len(log_p)
    words = int(test["lengths"].sum())
    details = {
        "perplexity_per_word": float((-log_p.sum() / words).exp()),
        "epochs": len(run.history["epoch"]),
        "compiled": str(run.compiled),
        "cpu_seconds_of_this_process": time.process_time(),
    }
    target = "the model that the others are set beside"
    if name != LM:
        details |= _beside(program, pv.load(args.out / LM), test, log_p)
        target = "plain: KL < 0.1; the best cure: KL >= 4 at most 0.3 nats above sentences_lm"
    return Result(
        name=name,
        value=-float(log_p.mean()),
        stderr=float(log_p.std()) / count**0.5,
        unit="nats per sentence, negative log-likelihood",
        estimator=(
            f"exact, {count} test captions"
            if name == LM
            else f"importance sampling from the guide, K = {args.samples}, {count} test captions"
        ),
        published=f"none on this set ({BOWMAN})",
        target=target,
        data="coco_captions",
        binarization="none: numbers of words",
        seed=args.seed,
        seconds=float(run.history["seconds"].sum()) + time.perf_counter() - start,
        details=details,
    )


def _trained(name: str, args: argparse.Namespace, coco: pv.data.SequenceSets) -> tuple[Any, Any]:
    cure = CURES.get(name.removeprefix("sentences_"), Cure())
    words, options = len(coco.vocabulary), {"dropout": 0.3, "word_dropout": cure.word_dropout}
    torch.manual_seed(args.seed)
    program: Any = pv.models.SentenceLM(words, dropout=0.3)
    if name != LM:
        program = pv.models.SentenceVAE(words, UNITS, **options)
    objective: Any = None
    if cure.lagging:
        objective = pv.Lagging({key: x[:500] for key, x in coco.valid.items()}, inner=5)
    if cure.free_bits is not None:
        objective = pv.FreeBits(cure.free_bits, per=cure.per)
    run = train(
        name,
        args,
        program,
        pv.data.bucketed(coco.train, 32, widths=6),
        epochs=cure.epochs,
        objective=objective,
        lr=2e-3,
        clip_norm=5.0,
        compile=False,  # a graph for each width costs more than it saves
        checkpoint_every=1,
        **cure.fit,
    )
    return program, run


def _log_likelihood(program: Any, data: dict[str, Tensor], samples: int) -> Tensor:
    """Return log p of each sentence, those of about one length together: padding costs as words."""
    widths = (data["lengths"] + 3) // 4 * 4
    log_p = torch.empty(len(widths), dtype=torch.float64)
    for width in widths.unique().tolist():
        rows = widths == width
        some = {"x": data["x"][rows, :width], "lengths": data["lengths"][rows]}
        log_p[rows] = pv.log_likelihood(program, some, num_particles=samples).log_prob.double()
    return log_p


def _beside(program: Any, lm: Any, test: dict[str, Tensor], log_p: Tensor) -> dict[str, Any]:
    """Return what the code does, and how far a language model is ahead."""
    gap = _log_likelihood(lm, test, 1) - log_p
    found = pv.diagnose(program, test)
    told = found.information
    bound = pv.elbo(program, test)
    greedy = pv.reconstruct(program, {key: x[:200] for key, x in test.items()})
    return {
        "above_the_language_model": float(gap.mean()),
        "above_the_language_model_stderr": float(gap.std()) / len(gap) ** 0.5,
        "negative_elbo": -float(bound.mean()),
        "kl": found.total_kl,
        "active_units": sum(found.active_units.values()),
        "units": UNITS,
        "information": told.lower if told else None,
        "information_stderr": told.stderr if told else None,
        "verdict": found.verdict,
        "words_right_of_200_decoded_greedily": float(
            ((greedy == test["x"][:200]) & (greedy > 0)).sum() / test["lengths"][:200].sum()
        ),
    }


def figure(folder: Path, path: Path) -> None:
    """Draw the arms that have been measured: their likelihoods, and the KL of their codes."""
    points: dict[str, tuple[float, float]] = {}
    for name in (LM, *(f"sentences_{cure}" for cure in CURES)):
        file = folder / f"{name}.json"
        if file.exists():
            found = json.loads(file.read_text())
            label = "language model" if name == LM else name.removeprefix("sentences_")
            points[label] = (found["details"].get("kl", 0.0), found["value"])
    pv.plots.save(pv.plots.cures({"Sentence VAE on captions": points}), path)


EXPERIMENTS = {LM: arm, **{f"sentences_{cure}": arm for cure in CURES}}

if __name__ == "__main__":
    figure(FOLDER, FOLDER / "sentences.png")
