"""Whole epochs: what ``pv.fit`` adds to its compiled step, and pythae's trainer beside it.

One run of ``pv.fit`` is in progress all the time; after each of its epochs a callback lets the
others run theirs, so that epochs are interleaved as blocks of steps are.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pyro_vae as pv
from benchmarks.paired import Times, Work, ratios, timed
from benchmarks.speed.cases import Case
from benchmarks.speed.variants import Ours, synchronise
from pyro_vae.inference.objectives.stock import as_objective
from pyro_vae.program.handlers import validation
from pyro_vae.training.fit import adam

FIT = "pv.fit"
BARE = "compiled loss and fused Adam, same batch fetch"
STEP = "its step alone, same batch fetch"
WARM = 2  # epochs of each that pay for compiling and lazy imports


def epochs(
    case: Case,
    mode: Any,
    steps: int,
    rounds: int,
    others: dict[str, Work] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Return the costs of an epoch: ratios of ``pv.fit`` to each other, and what it adds a step.

    Arguments:
        case: The program.
        mode: ``compile`` of ``pv.fit``.
        steps: Batches in an epoch.
        rounds: Epochs that count.
        others: Epochs of competitors, of as many steps.
        device: ``cpu`` or ``cuda``.
    """
    data = torch.cat(case.data(steps, device))
    works: dict[str, Work] = {
        BARE: bare_epoch(case, mode, data, device),
        STEP: step_epoch(case, mode, data, device),
        **(others or {}),
    }
    times = beside_fit(case, mode, data, rounds, works, device)
    fit = times.pop(FIT)
    found: dict[str, Any] = {"steps": steps, "epoch_seconds": _median(fit)}
    for name, taken in times.items():
        found[name] = {
            **{clock: vars(value) for clock, value in ratios(fit, taken).items()},
            "added_microseconds_per_step": _added(fit, taken, steps, 0),
            "added_cpu_microseconds_per_step": _added(fit, taken, steps, 1),
        }
    return found


def beside_fit(
    case: Case, mode: Any, data: Tensor, rounds: int, works: dict[str, Work], device: str
) -> dict[str, Times]:
    """Return the seconds of each epoch of ``pv.fit``, and of the others' epochs after it."""
    times: dict[str, Times] = {name: [] for name in (FIT, *works)}
    mark = [0.0, 0.0]

    def after_epoch(run: Any) -> None:
        synchronise(device)
        taken = (time.perf_counter() - mark[0], time.process_time() - mark[1])
        count = len(run.history["epoch"])
        order = list(works) if count % 2 else list(works)[::-1]
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([]))
            others = {name: timed(works[name]) for name in order}
        if count > WARM:
            for name, value in {FIT: taken, **others}.items():
                times[name].append(value)
        mark[:] = time.perf_counter(), time.process_time()

    _, program = case.twins(device)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        pv.fit(
            program,
            data,
            objective=case.objective(),
            epochs=rounds + WARM,
            batch_size=case.batch,
            device=device,
            compile=mode,
            callbacks=[after_epoch],
        )
    return times


def bare_epoch(case: Case, mode: Any, data: Tensor, device: str) -> Callable[[], None]:
    """Return an epoch in the fewest lines: the compiled loss, fused Adam, nothing checked."""
    _, twin = case.twins(device)
    program = pv.Program.of(twin)
    program.read(data[: case.batch])
    (update,) = as_objective(case.objective()).updates(program)
    parameters = [p for p in update.parameters if p.requires_grad]
    loss = pv.CompiledLoss(update.loss, program, parameters=parameters, mode=mode)
    optimizer = adam(1e-3)(parameters)

    def work() -> None:
        program.train()
        with program.running(), validation(False):
            for index in torch.randperm(len(data), device=device).split(case.batch):
                prepared = loss.prepare(data.index_select(0, index), size=len(data))
                assert prepared is not None  # else the program could not be traced
                prepared.backward()
                optimizer.step()
            synchronise(device)

    return work


def step_epoch(case: Case, mode: Any, data: Tensor, device: str) -> Callable[[], None]:
    """Return an epoch of the step that ``pv.fit`` takes, without its feed and history."""
    ours = Ours(case, mode, device)

    def work() -> None:
        with ours.running():
            for index in torch.randperm(len(data), device=device).split(case.batch):
                ours.step(data.index_select(0, index))
            synchronise(device)

    return work


def _median(times: Times) -> float:
    return statistics.median(wall for wall, _ in times)


def _added(fit: Times, other: Times, steps: int, clock: int) -> float:
    """Return the median difference within a round."""
    pairs = zip(fit, other, strict=True)
    return 1e6 * statistics.median(mine[clock] - its[clock] for mine, its in pairs) / steps
