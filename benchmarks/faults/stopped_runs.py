"""Runs of every objective that are stopped after each epoch and step, and gone on with."""

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

import pyro_vae as pv
from benchmarks.faults.trials import Kind, Trial

sys.path.append(str(Path(__file__).parents[2] / "tests"))  # the table that the batteries read
from objective_table import TABLE
from programs import CASES

EPOCHS, ROWS, BATCH = 3, 18, 7  # three batches an epoch, the last of four rows
_PROGRAMS = {"paths": "vae", "any": "vae", "bits": "sbn", "codes": "vq", "labels": "m2"}
_STEPS = EPOCHS * -(-ROWS // BATCH)
_OPTIMISERS: dict[str, Any] = {
    "Adam": None,
    "AdamW": partial(torch.optim.AdamW, lr=0.01, amsgrad=True),
    "SGD": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "RMSprop": partial(torch.optim.RMSprop, lr=1e-3, centered=True),
    "NAdam": partial(torch.optim.NAdam, lr=1e-3),
}
_MODES = (False, "trace")
_Outcome = tuple[pv.Run, list[Any]]


def _plans() -> list[tuple[str, str, Any, str, int]]:
    """Return objective, optimizer, mode, and where a run is stopped, all of them.

    In an order in which every objective has been stopped before one is stopped again.
    """
    epochs = [("epoch", n) for n in range(1, EPOCHS)]
    few = [*epochs, ("step", _STEPS // 2 + 1)]
    rest = [("step", n) for n in range(1, _STEPS + 1) if ("step", n) not in few]
    with_adam = product(TABLE, ["Adam"], _MODES)
    others = product(TABLE, [name for name in _OPTIMISERS if name != "Adam"], _MODES)
    plans = [*product(few, with_adam), *product(few, others)]
    plans += product(rest, product(TABLE, ["Adam"], _MODES))
    return [(*plan, *stop) for stop, plan in plans]


class _Stop:
    """A transform with noise of its own, which stops the run at a step."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.seen = [at], [-1]  # the first call is a look at the data, before the run

    def __call__(self, batch: Any) -> Any:
        self.seen[0] += 1
        if self.at[0] and self.seen[0] == self.at[0]:
            raise KeyboardInterrupt
        x, *labels = batch if isinstance(batch, tuple) else (batch,)
        noisy = torch.bernoulli(x.clamp(0.1, 0.9)).to(x)
        return (noisy, *labels) if labels else noisy


def _data(latents: str, rows: int) -> Any:
    """Return the rows of a program; of one with labels, two labels of three are given."""
    x = CASES[_PROGRAMS[latents]].data(rows)
    number = torch.arange(rows)
    return (x, torch.where(number % 3 == 2, -1, number // 3 % 3)) if latents == "labels" else x


def _fit(
    name: str, optimizer: str, mode: Any, folder: Path | None, kind: str = "", at: int = 0
) -> _Outcome | None:
    """Train one objective, to its end or to a stop (then None); its optimizers go along."""
    row = TABLE[name]
    torch.manual_seed(1)
    program, made = CASES[_PROGRAMS[row.latents]].build(), []

    def factory(parameters: Any) -> Any:
        made.append((_OPTIMISERS[optimizer] or partial(torch.optim.Adam, lr=0.01))(parameters))
        return made[-1]

    callbacks: list[Callable[[Any], Any]] = []
    if kind == "epoch":
        callbacks.append(lambda run: len(run.history["loss"]) == at)
    try:
        run = pv.fit(
            program,
            _data(row.latents, ROWS),
            valid=_data(row.latents, 5),
            objective=row.build(2, 1),
            epochs=EPOCHS,
            batch_size=BATCH,
            optimizer=factory,
            beta=1.0,
            transform=_Stop(at if kind == "step" else 0),
            callbacks=callbacks,
            compile=mode,
            progress=False,
            out=folder,
            resume=folder is not None,
        )
    except KeyboardInterrupt:
        return None
    return run, made


def _trials(first: int, seed: int) -> Iterator[Trial]:
    warnings.simplefilter("ignore")
    straight: dict[Any, Any] = {}
    for name, optimizer, mode, kind, at in _plans()[first:]:
        key = (name, optimizer, mode)
        try:
            if key not in straight:
                straight[key] = _fit(*key, None)
            yield _stop(key, kind, at, straight[key])
        except Exception as error:
            yield Trial(name, "raw", f"{key}, {kind} {at}: {type(error).__name__}: {error}")


def _stop(key: Any, kind: str, at: int, straight: Any) -> Trial:
    name, place = key[0], f"{key[1:]}, {kind} {at}"
    with tempfile.TemporaryDirectory() as folder:
        _fit(*key, Path(folder) / "run", kind, at)
        try:
            again = _fit(*key, Path(folder) / "run")
        except pv.errors.PyroVaeError as error:
            return Trial(name, "lost", f"{place}: {type(error).__name__}: {error}")
    assert again is not None  # nothing stops it
    differs = list(_differences(straight, again))
    return Trial(name, "wrong" if differs else "ok", f"{place}: {', '.join(differs[:3])}")


def _differences(first: _Outcome, second: _Outcome) -> Iterator[str]:
    """Yield what differs between two runs: weights, history, states of the optimizers."""
    (run, optimizers), (other, others) = first, second
    here, there = (pv.Program.of(each.program).state_dict() for each in (run, other))
    yield from (key for key in here if not torch.equal(here[key], there[key]))
    for column in run.history.keys() - {"seconds"}:
        if run.history[column].tolist() != other.history[column].tolist():
            yield f"history {column}"
    if (run.best_epoch, run.steps) != (other.best_epoch, other.steps):
        yield "best epoch or steps"
    for mine, yours in zip(optimizers, others, strict=True):
        before, after = (each.state_dict()["state"] for each in (mine, yours))
        for number, entries in before.items():
            for entry, value in entries.items():
                if not torch.equal(torch.as_tensor(value), torch.as_tensor(after[number][entry])):
                    yield f"optimizer {entry}"


STOPS = Kind(
    name="stops",
    unit="stops of runs",
    target=len(_plans()),
    how=f"each of {len(TABLE)} objectives (tests/objective_table.py) x {len(_OPTIMISERS)} "
    "optimizers x eager and traced, stopped by a callback after each epoch and by Ctrl-C in steps "
    "(with Adam in each), "
    "then gone on with to the end; weights, history and optimizer states are compared bit by bit "
    "with a straight run",
    trials=_trials,
)
