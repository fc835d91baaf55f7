"""Ctrl-C at a chosen line of the library: what it leaves in the process and in the folder."""

import random
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.poutine.runtime import _PYRO_STACK

import pyro_vae as pv
from benchmarks.faults.trials import Kind, Trial
from pyro_vae import threads

_X = (torch.rand(8, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
_ROOT = Path(pv.__file__).parent
# Where state is held and files are written; a line elsewhere is inside a step, and starts it anew.
_ROOMS = tuple(str(_ROOT / name) for name in ("training", "storage", "device.py"))


class _Interrupt:
    """Raise ``KeyboardInterrupt`` before the n-th line that runs in the rooms; 0 only counts."""

    def __init__(self, at: int) -> None:
        self.at, self.seen, self.place = at, 0, ""

    def __enter__(self) -> "_Interrupt":
        sys.settrace(self._enter)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: Any, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(_ROOMS) else None

    def _line(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            self.seen += 1
            if self.seen == self.at:
                sys.settrace(None)
                name = Path(frame.f_code.co_filename).relative_to(_ROOT)
                self.place = f"{name}:{frame.f_lineno} {frame.f_code.co_name}"
                raise KeyboardInterrupt
        return self._line


def _program() -> pv.models.VAE:
    torch.manual_seed(1)
    return pv.models.VAE(4, 2, (3,))


def _fit(program: Any, folder: Path | None) -> pv.Run:
    every = None if folder is None else 1
    return pv.fit(
        program,
        _X,
        valid=1 - _X[:4],
        epochs=3,
        batch_size=4,
        lr=0.05,
        compile=False,
        progress=False,
        out=folder,
        checkpoint_every=every,
        resume=folder is not None,
    )


def _trials(first: int, seed: int) -> Iterator[Trial]:
    warnings.simplefilter("ignore")
    straight = _fit(_program(), None)
    with tempfile.TemporaryDirectory() as home:
        with _Interrupt(0) as counted:
            _fit(_program(), Path(home) / "counted")
        for number in range(first, 10**9):
            at = random.Random(f"{seed}/{number}").randint(1, counted.seen)
            yield _interrupt(at, Path(home) / str(number), straight)


def _interrupt(at: int, folder: Path, straight: pv.Run) -> Trial:
    program, state = _program(), torch.get_rng_state()
    numpy = np.random.get_state()[1].copy()  # noqa: NPY002  (the global one is kept too)
    interrupt = _Interrupt(at)
    try:
        with interrupt:
            _fit(program, folder)
    except KeyboardInterrupt:
        pass
    except BaseException as error:
        return Trial(
            _group(interrupt), "raw", f"{interrupt.place}: {type(error).__name__}: {error}"
        )
    else:
        if interrupt.place:
            return Trial(_group(interrupt), "wrong", f"{interrupt.place}: swallowed")
    group, place = _group(interrupt), interrupt.place
    if _PYRO_STACK or not _turn_is_free():
        return Trial(group, "raw", f"{place}: handlers or the turn are still held")
    if not torch.equal(state, torch.get_rng_state()) or not np.array_equal(
        numpy,
        np.random.get_state()[1],  # noqa: NPY002
    ):
        return Trial(group, "wrong", f"{place}: a global generator has moved")
    again = _program()
    try:
        run = _fit(again, folder)
    except Exception as error:
        return Trial(group, "lost", f"{place}: {type(error).__name__}: {error}")
    same = run.history["loss"].tolist() == straight.history["loss"].tolist() and all(
        torch.equal(v, again.state_dict()[k]) for k, v in straight.program.state_dict().items()
    )
    return Trial(group, "ok" if same else "wrong", f"{place}: the continuation differs")


def _group(interrupt: _Interrupt) -> str:
    return interrupt.place.split(":")[0] or "after the end"


def _turn_is_free() -> bool:
    """Ask from another thread: this one may take the turn as often as it likes."""
    answers: list[bool] = []

    def ask() -> None:
        free = threads._turn.lock.acquire(timeout=1)
        answers.append(free)
        if free:
            threads._turn.lock.release()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return answers[0]


INTERRUPTS = Kind(
    name="interrupts",
    unit="Ctrl-Cs at a line of the library",
    target=1000,
    how="KeyboardInterrupt is raised before a line, drawn among all that run in training/ and "
    "storage/ in the course of a run of 3 epochs; then handlers, generators and the lock are "
    "looked at, and the run goes on in the same folder and is compared bit by bit with a run that "
    "nobody interrupted",
    trials=_trials,
)
