"""Runs that are ended by a signal at a random time, and gone on with in the same folder."""

import random
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_vae as pv
from benchmarks.faults.children import Forked, Say
from benchmarks.faults.trials import Kind, Trial
from pyro_vae.storage.bundle import read_bundle

EPOCHS = 6
_X = (torch.rand(24, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
_RUNS: dict[str, dict[str, Any]] = {
    "eager": {"compile": False},
    "judged": {"compile": False, "valid": 1 - _X[:8], "lr": 0.05},
    "graph": {"compile": "trace"},
}
_SLOW = 60.0  # seconds after which a process counts as hanging


def _program() -> pv.models.VAE:
    torch.manual_seed(1)
    return pv.models.VAE(6, 2, (5,))


def _fit(plan: str, **options: Any) -> pv.Run:
    settings = {"epochs": EPOCHS, "batch_size": 12, "progress": False, "checkpoint_every": 1}
    if "out" not in options:
        settings["checkpoint_every"] = None
    return pv.fit(_program(), _X, **{**settings, **_RUNS[plan], **options})


class _Straight:
    """The run that nobody ended: its losses and the weights after each epoch."""

    def __init__(self, plan: str) -> None:
        self.weights: list[dict[str, Tensor]] = []
        run = _fit(plan, callbacks=[self._keep])
        self.losses = run.history["loss"].tolist()
        self.last = {k: v.clone() for k, v in pv.Program.of(run.program).state_dict().items()}

    def _keep(self, run: pv.Run) -> None:
        found = pv.Program.of(run.program).state_dict()
        self.weights.append({k: v.clone() for k, v in found.items()})


def _trials(signals: list[signal.Signals]) -> Any:
    def trials(first: int, seed: int) -> Iterator[Trial]:
        warnings.simplefilter("ignore")
        straight = {plan: _Straight(plan) for plan in _RUNS}
        with tempfile.TemporaryDirectory() as home:
            for number in range(first, 10**9):
                rng = random.Random(f"{seed}/{number}")
                plan, sent = rng.choice(list(_RUNS)), [rng.choice(signals)]
                folder, delay = Path(home) / plan, rng.uniform(0.0, 0.5)
                if sent[0] is not signal.SIGKILL and rng.random() < 0.5:
                    sent.append(rng.choice(signals))
                yield _end_one(plan, folder, sent, (delay, rng.uniform(0.0, 0.02)), straight[plan])

    return trials


def _end_one(
    plan: str,
    folder: Path,
    sent: list[signal.Signals],
    delays: tuple[float, float],
    straight: _Straight,
) -> Trial:
    """Go on with the run of a folder, end it after a delay, and look at what is left.

    One that is ended twice, as by Slurm and by torchrun, has no checkpoint on the way.
    """
    every = 1 if len(sent) == 1 else None

    def action(say: Say) -> None:
        say("begun")
        _fit(
            plan,
            out=folder,
            resume=True,
            checkpoint_every=every,
            callbacks=[lambda run: say(str(len(run.history["loss"])))],
        )

    group = f"{plan}, {' and '.join(each.name for each in sent)}"
    child = Forked(action)
    child.read(_SLOW)  # it has begun
    for each, delay in zip(sent, delays, strict=False):
        if not child.ends_within(delay):
            child.send(each)
    if not child.wait(_SLOW):
        return Trial(group, "raw", "hung")
    ended = child.code == 0 or any(child.code == -s or _is_end(child.error, s) for s in sent)
    if not ended:
        shutil.rmtree(folder)
        return Trial(group, "raw", f"ended with {child.error}")
    reached = [int(line) for line in child.lines if line.isdigit()]
    trial = _look(group, folder, max(reached, default=0), straight)
    gentle = sent[0] is not signal.SIGKILL
    if trial.verdict == "ok" and gentle and (folder / "lock.json").exists():
        trial = Trial(group, "lost", "the lock is still there")
    if child.code == 0 or trial.verdict != "ok":
        shutil.rmtree(folder)
    return trial


def _is_end(error: str | None, sent: signal.Signals) -> bool:
    expected = {signal.SIGINT: "KeyboardInterrupt", signal.SIGTERM: "SystemExit"}
    return error is not None and error.startswith(f"builtins.{expected.get(sent)}")


def _look(group: str, folder: Path, reached: int, straight: _Straight) -> Trial:
    """Compare what a folder holds with the straight run; the epoch under way may be missing."""
    names = ("checkpoint", "checkpoint-before", "program")
    there = [name for name in names if (folder / f"{name}.safetensors").exists()]
    try:
        found = {name: read_bundle(folder, name, allow_nonfinite=True) for name in there}
        if "program" in found:
            pv.load(folder)
    except Exception as error:
        return Trial(group, "lost", f"{type(error).__name__}: {error}")
    kept = [found[name] for name in names[:2] if name in found]
    if not kept:
        lost = reached > 1
        return Trial(group, "lost" if lost else "ok", f"no checkpoint after epoch {reached}")
    tensors, meta = kept[0]
    epoch = meta["epoch"]
    if epoch < reached - 1:
        return Trial(group, "lost", f"epoch {reached} was reached, {epoch} is kept")
    losses = tensors["history.loss"].tolist() if epoch else []
    if losses != straight.losses[:epoch]:
        return Trial(group, "wrong", f"the losses of {epoch} epochs differ")
    weights = straight.weights[epoch - 1] if epoch else {}
    if any(not torch.equal(tensors[f"program.{k}"], v) for k, v in weights.items()):
        return Trial(group, "wrong", f"the weights of epoch {epoch} differ")
    final = found.get("program", ({}, {}))[0]
    same = all(torch.equal(value, straight.last[name]) for name, value in final.items())
    if epoch == EPOCHS and not same:
        return Trial(group, "wrong", "the last program differs")
    return Trial(group, "ok")


KILLS = Kind(
    name="kills",
    unit="SIGKILLs of a run",
    target=1000,
    how="a run with a checkpoint each epoch is killed at a random time and gone on with in the "
    "same folder, again and again; losses and weights are compared bit by bit with a run that "
    "nobody ended. Lost: a file that cannot be read, or more than the epoch under way",
    trials=_trials([signal.SIGKILL]),
)
SIGNALS = Kind(
    name="signals",
    unit="SIGINTs and SIGTERMs of a run",
    target=1000,
    how="as the kills, half of them ended twice with no checkpoint on the way; besides, the "
    "process must end by itself and leave no lock",
    trials=_trials([signal.SIGINT, signal.SIGTERM]),
)
