"""Recipes of the hierarchical and the ladder VAE on dynamic MNIST, for ``reproduce.py``.

Both arms have one model (latents 64-32-16), one budget and one training recipe: batch norm, KL
warm-up, Adam. They differ in the guide alone.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from arms import adam, gain, score, train
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

DYNAMIC = {
    "data": "mnist",
    "binarization": "dynamic (test images drawn once)",
    "drawn": " drawn at random",
}


def _scored(name: str, args: argparse.Namespace, build: Callable[..., Any], **texts: str) -> Result:
    """Train one arm on freshly binarised digits and score it on test digits binarised once."""
    data = pv.data.load("mnist", binarization="dynamic", seed=args.seed)
    torch.manual_seed(args.seed)
    program = build(784, LATENT_DIMS, HIDDEN, depth=DEPTH, data_mean=data.train.mean(0))
    run = train(
        name,
        args,
        program,
        data.train,
        valid=data.valid,
        transform=data.transform,
        epochs=EPOCHS,
        batch_size=BATCH,
        optimizer=adam(LR),
        lr_schedule=pv.schedules.cosine(1.0, 0.01),
        beta={site: pv.schedules.linear(0.0, 1.0, over=over) for site, over in WARM_UP.items()},
        patience=40,
        compile=True,
        checkpoint_every=5,
    )
    return score(
        name,
        args,
        program,
        run,
        _some(data.test, args.rows or ROWS),
        judged=data.test,
        num_particles=5,
        details=lambda diagnosis: {
            "parameters": sum(p.numel() for p in program.parameters()),
            "valid_negative_elbo": -float(run.history["valid_elbo"].max()),
            "kl": diagnosis.kl,
            "units": dict(zip(("z1", "z2", "z3"), LATENT_DIMS, strict=True)),
            "units_above_0.01_nats": _speaking(diagnosis.unit_kl),
        },
        **DYNAMIC,
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
    data = pv.data.load("mnist", binarization="dynamic", seed=args.seed)
    return gain(
        name,
        args,
        ("hierarchical_mnist", "ladder_mnist"),
        _some(data.test, args.rows or ROWS),
        what="the ladder guide gains over the bottom-up guide at equal budget",
        published="",
        target="> 0",
        **DYNAMIC,
    )


EXPERIMENTS: dict[str, Callable[[str, argparse.Namespace], Result]] = {
    "ladder_mnist": ladder_mnist,
    "hierarchical_mnist": hierarchical_mnist,
    "ladder_gain_mnist": ladder_gain_mnist,
}
