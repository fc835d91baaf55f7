"""What the checks cost: their share of the processor time of a training of half a minute."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import torch

import pyro_vae as pv
from pyro_vae.inference.graphs.program_step import ProgramStep

BATCH, BATCHES = 128, 390  # MNIST's epoch
CHECKS = (
    "python_state",
    "eager",
    "require_equal",
    "require_equal_elsewhere",
    "require_second_trace",
    "refuse_changes",
)


def _tutorial() -> tuple[Any, torch.Tensor]:
    """Return a VAE of the sizes of Pyro's tutorial."""
    return pv.models.VAE(784, 50, hidden=(400,)), _binary(784)


def _ladder() -> tuple[Any, torch.Tensor]:
    return pv.models.LadderVAE(64, (16, 8), (32, 16), depth=1), _binary(64)


def _small() -> tuple[Any, torch.Tensor]:
    return pv.models.VAE(64, 8, hidden=(32,)), _binary(64)


PROGRAMS = {"tutorial VAE 784-400-50": _tutorial, "ladder 64-16-8": _ladder, "VAE 64-32-8": _small}


def _binary(width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(BATCH * BATCHES, width, generator=generator) < 0.3).float()


@contextmanager
def _clocked(spent: dict[str, float]) -> Iterator[None]:
    """Add up the time of the checks: the comparisons, and a second trace where there is one."""
    inside: list[str] = []

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            if inside:
                return function(*args, **options)
            inside.append(name)
            start = time.process_time()
            try:
                return function(*args, **options)
            finally:
                spent[name] = spent.get(name, 0.0) + time.process_time() - start
                inside.pop()

        return run

    wrapped = {name: clocked(name, getattr(ProgramStep, name)) for name in CHECKS}
    with mock.patch.multiple(ProgramStep, **wrapped):
        yield


def share(name: str, seconds: float, *, with_callback: bool) -> dict[str, Any]:
    """Train for some processor seconds; return what the checks took of them.

    Arguments:
        name: Of the program.
        seconds: After which the run is stopped.
        with_callback: Whether a callback runs after each epoch, behind which graph and program are
            compared once more.
    """
    torch.manual_seed(0)
    program, x = PROGRAMS[name]()
    spent: dict[str, float] = {}
    start = time.process_time()

    class Enough(Exception):
        pass

    steps = 0

    def transform(batch: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps % 50 == 0 and time.process_time() - start > seconds:
            raise Enough
        return batch

    callbacks = [lambda run: None] if with_callback else []
    with _clocked(spent), suppress(Enough):
        pv.fit(
            program,
            x,
            epochs=10_000,
            batch_size=BATCH,
            transform=transform,
            callbacks=callbacks,
            compile="trace",
            progress=False,
            device="cpu",
        )
    whole = time.process_time() - start
    return {
        "share": round(sum(spent.values()) / whole, 5),
        "seconds": round(whole, 1),
        "steps": steps,
        "seconds of": {check: round(value, 4) for check, value in sorted(spent.items())},
    }
