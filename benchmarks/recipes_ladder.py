"""Recipes of the hierarchical and the ladder VAE on dynamic MNIST, for ``reproduce.py``.

Both arms have one model (latents 64-32-16), one budget and one training recipe: batch norm, KL
warm-up, Adam. They differ in the guide alone.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from results import Result
from torch import Tensor

import pyro_vae as pv

LATENT_DIMS, HIDDEN = (64, 32, 16), (512, 256, 128)
EPOCHS, BATCH, ROWS = 200, 125, 1000  # 125 divides the 55,000 training digits: one graph
LR = 2e-3
# Shares of the run over which the KL of each layer comes to its full price. While the lower layers
# are dearer, what can be said higher up is said there, and no upper layer falls silent.
WARM_UP = {"z1": 0.2, "z2": 0.3, "z3": 0.4}
DEPTH = 2  # hidden layers of each network
SILENT = 0.01  # nats: a unit of less KL says nothing
SONDERBY = "Sønderby et al. (2016), arXiv:1602.02282, five layers 64-32-16-8-4, 2000 epochs"


def _scored(name: str, args: argparse.Namespace, build: Callable[..., Any], **texts: str) -> Result:
    """Train one arm on freshly binarised digits and score it on test digits binarised once."""
    data = pv.data.load("mnist", binarisation="dynamic", seed=args.seed)
    torch.manual_seed(args.seed)
    program = build(784, LATENT_DIMS, HIDDEN, depth=DEPTH, data_mean=data.train.mean(0))
    run = pv.fit(
        program,
        data.train,
        valid=data.valid,
        transform=data.transform,
        epochs=args.epochs or EPOCHS,
        batch_size=BATCH,
        optimiser=partial(torch.optim.Adam, lr=LR, fused=True),
        lr_schedule=pv.schedules.cosine(1.0, 0.01),
        beta={site: pv.schedules.linear(0.0, 1.0, over=over) for site, over in WARM_UP.items()},
        patience=40,
        compile=True,
        seed=args.seed,
        device=args.device,
        out=args.out / name,
        checkpoint_every=5,
        resume=True,
        progress=args.progress,
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
            "units": dict(zip(("z1", "z2", "z3"), LATENT_DIMS, strict=True)),
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


def ladder_mnist(name: str, args: argparse.Namespace) -> Result:
    """Ladder VAE, three layers."""
    return _scored(
        name,
        args,
        pv.models.LadderVAE,
        published=f"82.12 ({SONDERBY})",
        target="<= 86.0, all layers active",
    )


def hierarchical_mnist(name: str, args: argparse.Namespace) -> Result:
    """The same model and training with a guide that goes from the data up."""
    return _scored(
        name,
        args,
        pv.models.HierarchicalVAE,
        published="",
        target="above ladder_mnist at equal budget",
    )


def ladder_gain_mnist(name: str, args: argparse.Namespace) -> Result:
    """What the ladder guide buys, image by image, on the weights of the two arms."""
    data = pv.data.load("mnist", binarisation="dynamic", seed=args.seed)
    test = _some(data.test, args.rows or ROWS)
    start = time.perf_counter()
    scores = []
    for arm in ("hierarchical_mnist", "ladder_mnist"):
        torch.manual_seed(args.seed)
        program = pv.load(args.out / arm, device=args.device)
        scored = pv.log_likelihood(program, test, samples=args.samples, progress=args.progress)
        scores.append(scored.log_prob)
    gain = scores[1] - scores[0]
    return Result(
        name=name,
        value=float(gain.mean()),
        stderr=float(gain.std() / len(test) ** 0.5),
        unit="nats per image that the ladder guide gains over the bottom-up guide at equal budget",
        estimator=f"paired difference, importance sampling with K = {args.samples}, "
        f"{len(test)} test images drawn at random",
        published="",
        target="> 0",
        data="mnist",
        binarisation="dynamic (test images drawn once)",
        seed=args.seed,
        seconds=time.perf_counter() - start,
    )


EXPERIMENTS: dict[str, Callable[[str, argparse.Namespace], Result]] = {
    "ladder_mnist": ladder_mnist,
    "hierarchical_mnist": hierarchical_mnist,
    "ladder_gain_mnist": ladder_gain_mnist,
}
