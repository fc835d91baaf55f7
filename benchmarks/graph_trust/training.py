"""One subject trained in one mode, with all that is compared; and the comparison."""

import contextlib
import os
import random
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyro
import torch
from torch import Tensor

import pyro_vae as pv
from benchmarks.graph_trust.subject import Subject
from pyro_vae.inference.graphs import background, compiled_loss
from pyro_vae.training.step import Stepper

MODES: dict[str, Any] = {"eager again": False, "trace": "trace", "compiled": True, "auto": "auto"}
# Of the largest entry: rounding of sixty steps, by kernels that sum in another order.
SLACK = {torch.float64: 1e-7, torch.float32: 1e-3}


@dataclass
class Trained:
    """What a training leaves.

    Arguments:
        compiled: ``run.compiled``, or the error that ended it.
        losses: Per step.
        grads: Of the last step of each epoch, by parameter.
        state: The trained weights and buffers.
        background: Whether a process beside the training compiled a graph that then ran.
    """

    compiled: str = ""
    losses: list[float] = field(default_factory=list)
    grads: list[dict[str, Tensor]] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)
    background: bool = False


def train(subject: Subject, mode: Any) -> Trained:
    """Train a fresh program from one seed; the same noise in each mode."""
    found = Trained()
    with default_type(subject.dtype), pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _seed()
        program = subject.build()
        data = subject.data()
        options = dict(subject.options(program))
        _seed()
        with _watched(found), _compiling_at_once(found):
            try:
                run = pv.fit(
                    program,
                    data,
                    epochs=subject.epochs,
                    optimizer=_sgd,
                    compile=mode,
                    progress=False,
                    device="cpu",
                    **{"batch_size": subject.batch_size, **options},
                )
                found.compiled = run.compiled
            except Exception as error:
                found.compiled = f"{type(error).__name__}: {error}"
            for folder in filter(None, (Path.cwd(), subject.source)):  # no path of a machine
                found.compiled = found.compiled.replace(f"{folder}/", "")
            found.state = {
                name: value.detach().clone()
                for name, value in pv.Program.of(program).state_dict().items()
                if isinstance(value, Tensor)
            }
    return found


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    """Return an optimizer under which a difference of gradients stays what it is."""
    return torch.optim.SGD(parameters, lr=1e-3)


def _seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


@contextlib.contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """Make tensors of one type inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _watched(found: Trained) -> Iterator[None]:
    """Write down the losses of each step and the gradients of each epoch's last one.

    Not by a callback: a graph is compared with its program after each.
    """
    step, check = Stepper.step, Stepper.check

    def noted(self: Stepper, *args: Any) -> list[Tensor]:
        losses = step(self, *args)
        found.losses.extend(float(loss) for loss in losses)
        return losses

    def looked(self: Stepper, *args: Any) -> None:
        check(self, *args)
        named = self.program.named_parameters()
        found.grads.append(
            {name: p.grad.to_dense().clone() for name, p in named if p.grad is not None}
        )

    with mock.patch.multiple(Stepper, step=noted, check=looked):
        yield


@contextlib.contextmanager
def _compiling_at_once(found: Trained) -> Iterator[None]:
    """Let ``"auto"`` compile from the third step on, wait for it, and run what comes of it."""

    class Elsewhere(background.Elsewhere):
        def poll(self) -> int | None:
            end = time.monotonic() + 600
            while (code := super().poll()) is None and time.monotonic() < end:
                time.sleep(0.05)
            return code

    def trial(self: Any, traced: Any, compiled: Any, device: Any) -> Iterator[Any]:
        found.background = True
        yield compiled

    def worth(steps: int) -> background.Background:
        return background.Background(10**6, worth=-1.0)

    with (
        mock.patch.object(background, "Elsewhere", Elsewhere),
        mock.patch.object(background.Background, "_trial", trial),
        mock.patch.multiple(background, _WARM=1, _TIMED=1, _POLL=1, _SHARE=0.0),
        mock.patch.object(compiled_loss, "Background", worth),
        mock.patch.dict(os.environ, OMP_NUM_THREADS="1"),
    ):
        yield


def verdict(eager: Trained, other: Trained, dtype: torch.dtype) -> dict[str, str]:
    """Return what a mode's training is beside the eager one.

    ``equal`` (by a graph), ``eager`` (equal, with the reason), ``different`` (and it says so), or
    ``SILENT``; ``broken`` where the program does not train eagerly.
    """
    if _failed(eager):
        return {"status": "broken", "compiled": eager.compiled[:240]}
    gap = _gap(eager, other, SLACK[dtype])
    told = other.compiled not in ("graph", "eager")
    if gap is None:
        status = "equal" if not told else "eager"
    else:
        status = "different" if told else "SILENT"
    row = {"status": status, "compiled": other.compiled[:240]}
    if gap is not None:
        row["gap"] = gap
    if other.background:
        row["ran"] = "compiled beside the training"
    return row


def _gap(eager: Trained, other: Trained, slack: float) -> str | None:
    """Return the first thing in which two trainings differ, or None."""
    ends = [t.compiled for t in (eager, other) if _failed(t)]
    if len(ends) == 1:
        return f"one of them ended: {ends[0][:200]}"
    if len(eager.losses) != len(other.losses):
        return f"{len(other.losses)} losses, eagerly {len(eager.losses)}"
    for step, (exact, mine) in enumerate(zip(eager.losses, other.losses, strict=True)):
        if not abs(exact - mine) <= slack * max(1.0, abs(exact)) and mine == mine:
            return f"loss of step {step}: {mine!r}, eagerly {exact!r}"
    for epoch, (exacts, mines) in enumerate(zip(eager.grads, other.grads, strict=True)):
        gap = _gap_of(exacts, mines, slack)
        if gap:
            return f"epoch {epoch}, gradient of {gap}"
    gap = _gap_of(eager.state, other.state, slack)
    return None if gap is None else f"the trained {gap}"


def _failed(trained: Trained) -> bool:
    return not trained.compiled.startswith(("graph", "eager"))


def _gap_of(exacts: Mapping[str, Tensor], mines: Mapping[str, Tensor], slack: float) -> str | None:
    if exacts.keys() != mines.keys():
        return ", ".join(sorted(exacts.keys() ^ mines.keys())) + " (one side alone)"
    sizes = [value.double().abs().max() for value in exacts.values() if value.numel()]
    scale = max([1e-3, *(float(size) for size in sizes if torch.isfinite(size))])
    for name, exact in exacts.items():
        mine = mines[name]
        if mine.shape != exact.shape:
            return f"{name}, by its shape"
        both = exact.double().nan_to_num(), mine.double().nan_to_num()
        apart = float((both[0] - both[1]).abs().max()) if exact.numel() else 0.0
        if apart > slack * scale:
            return f"{name}, by {apart:.3g} of {scale:.3g}"
    return None
