"""Arms of a comparison: train one, score it on test data, set two beside each other."""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from results import Result
from torch import Tensor

import pyro_vae as pv

STATIC = {"data": "mnist_static", "binarization": "static (Larochelle)"}


def train(
    name: str, args: argparse.Namespace, program: Any, rows: Any, *, epochs: int, **options: Any
) -> Any:
    """Train a program in ``runs/NAME``; started again, it goes on from there."""
    return pv.fit(
        program,
        rows,
        epochs=args.epochs or epochs,
        seed=args.seed,
        device=args.device,
        out=args.out / name,
        resume=True,
        progress=args.progress,
        **options,
    )


def adam(lr: float, **options: float) -> Callable[..., torch.optim.Optimizer]:
    """Return PyTorch's Adam as a factory."""
    return partial(torch.optim.Adam, lr=lr, fused=True, **options)


def score(
    name: str,
    args: argparse.Namespace,
    program: Any,
    run: Any,
    test: Tensor,
    *,
    details: Callable[[Any], dict[str, Any]],
    judged: Tensor | None = None,
    num_particles: int = 1,
    proposal: str = "guide",
    drawn: str = "",
    **texts: str,
) -> Result:
    """Return the negative log-likelihood of test data by importance sampling.

    Arguments:
        test: the data behind the figure.
        judged: the data of diagnosis and ELBO, if these are others.
        details: further details, from the diagnosis.
        num_particles: of diagnosis and ELBO.
        proposal: what the samples come from, in words.
        drawn: how the test data were chosen, in words.
        texts: further fields of the result.
    """
    start = time.perf_counter()
    judged = test if judged is None else judged
    torch.manual_seed(args.seed)
    scored = pv.log_likelihood(program, test, num_particles=args.samples, progress=args.progress)
    diagnosis = pv.diagnose(program, judged, num_particles=num_particles)
    training = float(run.history["seconds"].sum())
    seconds = training + time.perf_counter() - start
    bound = pv.elbo(program, judged, num_particles=num_particles).mean()
    return Result(
        name=name,
        value=-scored.mean,
        stderr=scored.stderr,
        unit="nats per image, negative log-likelihood",
        estimator=f"importance sampling from the {proposal}, K = {args.samples}, "
        f"{len(test)} test images{drawn}",
        seed=args.seed,
        seconds=seconds,
        details={
            "epochs": len(run.history["epoch"]),
            "best_epoch": run.best_epoch,
            "cpu_seconds_of_this_process": time.process_time(),
            "training_seconds": training,
            "negative_elbo": -float(bound),
            "median_ess": float(scored.ess.median()),
            "share_k_above_0.7": scored.untrusted,
            **details(diagnosis),
        },
        **{**STATIC, **texts},
    )


def gain(
    name: str,
    args: argparse.Namespace,
    arms: tuple[str, str],
    test: Tensor,
    *,
    what: str,
    drawn: str = "",
    **texts: str,
) -> Result:
    """Return what the second of two trained arms gains over the first, image by image."""
    start = time.perf_counter()
    scores = []
    for arm in arms:
        torch.manual_seed(args.seed)
        program = pv.load(args.out / arm, device=args.device)
        scored = pv.log_likelihood(
            program, test, num_particles=args.samples, progress=args.progress
        )
        scores.append(scored.log_prob)
    difference = scores[1] - scores[0]
    return Result(
        name=name,
        value=float(difference.mean()),
        stderr=float(difference.std() / len(test) ** 0.5),
        unit=f"nats per image that {what}",
        estimator=f"paired difference, importance sampling with K = {args.samples}, "
        f"{len(test)} test images{drawn}",
        seed=args.seed,
        seconds=time.perf_counter() - start,
        **{**STATIC, **texts},
    )
