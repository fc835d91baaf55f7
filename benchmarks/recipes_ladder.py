"""Recipes of the hierarchical and the ladder VAE on dynamic MNIST, for ``reproduce.py``.

Two pairs of arms. Within a pair both have one model, one budget and one training recipe (batch
norm, Adam) and differ in the guide alone: three layers under a KL warm-up, and five, the published
sizes, whose upper ones free bits keep awake.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from results import Result
from torch import Tensor

import pyro_vae as pv

BATCH, ROWS = 125, 1000  # 125 divides the 55,000 training digits: one graph
DEPTH = 2  # hidden layers of each network
SILENT = 0.01  # nats: a unit of less KL says nothing
SONDERBY = "Sønderby et al. (2016), arXiv:1602.02282, five layers 64-32-16-8-4, 2000 epochs"


@dataclass(frozen=True)
class Pair:
    """What both arms of a pair share.

    Arguments:
        arms: Names of the bottom-up arm and of the ladder.
        latent_dims, hidden: Sizes of the layers, the data side first.
        epochs, lr: Budget; a half cosine brings the rate down.
        fit: Further arguments of ``pv.fit``.
    """

    arms: tuple[str, str]
    latent_dims: tuple[int, ...]
    hidden: tuple[int, ...]
    epochs: int
    lr: float
    fit: dict[str, Any] = field(default_factory=dict)


# Shares of the run over which the KL of each layer comes to its full price. While the lower layers
# are dearer, what can be said higher up is said there, and no upper layer falls silent.
WARM_UP = {"z1": 0.2, "z2": 0.3, "z3": 0.4}
THREE = Pair(
    ("hierarchical_mnist", "ladder_mnist"),
    (64, 32, 16),
    (512, 256, 128),
    epochs=200,
    lr=2e-3,
    fit={"beta": {site: pv.schedules.linear(0.0, 1.0, over=t) for site, t in WARM_UP.items()}},
)
FIVE = Pair(
    ("hierarchical_five_mnist", "ladder_five_mnist"),
    (64, 32, 16, 8, 4),
    (512, 256, 128, 64, 32),
    epochs=80,
    lr=1e-3,
    fit={"objective": pv.FreeBits(0.2)},
)


def _scored(
    name: str, args: argparse.Namespace, pair: Pair, build: Callable[..., Any], **texts: str
) -> Result:
    """Train one arm on freshly binarised digits and score it on test digits binarised once."""
    data = pv.data.load("mnist", binarisation="dynamic", seed=args.seed)
    torch.manual_seed(args.seed)
    program = build(784, pair.latent_dims, pair.hidden, depth=DEPTH, data_mean=data.train.mean(0))
    run = pv.fit(
        program,
        data.train,
        valid=data.valid,
        transform=data.transform,
        epochs=args.epochs or pair.epochs,
        batch_size=BATCH,
        optimiser=partial(torch.optim.Adam, lr=pair.lr, fused=True),
        lr_schedule=pv.schedules.cosine(1.0, 0.01),
        patience=40,
        compile=True,
        seed=args.seed,
        device=args.device,
        out=args.out / name,
        checkpoint_every=5,
        resume=True,
        progress=args.progress,
        **pair.fit,
    )
    start = time.perf_counter()
    test = _some(data.test, args.rows or ROWS)
    torch.manual_seed(args.seed)
    scored = pv.log_likelihood(program, test, samples=args.samples, progress=args.progress)
    diagnosis = pv.diagnose(program, data.test, num_particles=5)
    seconds = float(run.history["seconds"].sum())
    return Result(
        name=name,
        value=-scored.mean,
        stderr=scored.stderr,
        unit="nats per image, negative log-likelihood",
        estimator=f"importance sampling from the guide, K = {args.samples}, "
        f"{len(test)} test images drawn at random",
        data="mnist",
        binarisation="dynamic (test images drawn once)",
        seed=args.seed,
        seconds=seconds + time.perf_counter() - start,
        details={
            "epochs": len(run.history["epoch"]),
            "best_epoch": run.best_epoch,
            "parameters": sum(p.numel() for p in program.parameters()),
            "cpu_seconds_of_this_process": time.process_time(),
            "training_seconds": seconds,
            "negative_elbo": -float(pv.elbo(program, data.test, num_particles=5).mean()),
            "valid_negative_elbo": -float(run.history["valid_elbo"].max()),
            "kl": diagnosis.kl,
            "units": {f"z{layer}": size for layer, size in enumerate(pair.latent_dims, 1)},
            "units_above_0.01_nats": _speaking(diagnosis.unit_kl),
            "median_ess": float(scored.ess.median()),
            "share_k_above_0.7": scored.untrusted,
        },
        **texts,
    )


def _some(test: Tensor, rows: int) -> Tensor:
    """Return test images drawn at random with a fixed seed: the first thousand are easier ones."""
    return test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:rows]]


def _speaking(unit_kl: dict[str, Tensor]) -> dict[str, int]:
    """Return the units per layer whose posterior tells of the datum what its prior does not.

    The variance of the posterior mean would not do: below the top it moves with the layer above.
    """
    return {name: int((kl > SILENT).sum()) for name, kl in unit_kl.items()}


def _gain(name: str, args: argparse.Namespace, pair: Pair) -> Result:
    """What the ladder guide buys, image by image, on the weights of the two arms."""
    data = pv.data.load("mnist", binarisation="dynamic", seed=args.seed)
    test = _some(data.test, args.rows or ROWS)
    start = time.perf_counter()
    scores = []
    for arm in pair.arms:
        torch.manual_seed(args.seed)
        program = pv.load(args.out / arm, device=args.device)
        scored = pv.log_likelihood(program, test, samples=args.samples, progress=args.progress)
        scores.append(scored.log_prob)
    gain = scores[1] - scores[0]
    return Result(
        name=name,
        value=float(gain.mean()),
        stderr=float(gain.std() / len(test) ** 0.5),
        unit="nats per image that the ladder guide gains over the bottom-up guide at equal budget, "
        f"{len(pair.latent_dims)} layers",
        estimator=f"paired difference, importance sampling with K = {args.samples}, "
        f"{len(test)} test images drawn at random",
        published="",
        target="> 0",
        data="mnist",
        binarisation="dynamic (test images drawn once)",
        seed=args.seed,
        seconds=time.perf_counter() - start,
    )


def _ladder(pair: Pair) -> Callable[[str, argparse.Namespace], Result]:
    return partial(
        _scored,
        pair=pair,
        build=pv.models.LadderVAE,
        published=f"82.12 ({SONDERBY})",
        target="<= 86.0, all layers active",
    )


def _hierarchical(pair: Pair) -> Callable[[str, argparse.Namespace], Result]:
    return partial(
        _scored,
        pair=pair,
        build=pv.models.HierarchicalVAE,
        published="",
        target=f"above {pair.arms[1]} at equal budget",
    )


EXPERIMENTS: dict[str, Callable[[str, argparse.Namespace], Result]] = {
    "ladder_mnist": _ladder(THREE),
    "hierarchical_mnist": _hierarchical(THREE),
    "ladder_gain_mnist": partial(_gain, pair=THREE),
    "ladder_five_mnist": _ladder(FIVE),
    "hierarchical_five_mnist": _hierarchical(FIVE),
    "ladder_five_gain_mnist": partial(_gain, pair=FIVE),
}
