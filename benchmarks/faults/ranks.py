"""Two processes that train together, of which one fails, is killed, or is told something else."""

import os
import random
import signal
import socket
import warnings
from collections.abc import Iterator
from typing import Any

import torch

import pyro_vae as pv
from benchmarks.faults.children import Forked, Say
from benchmarks.faults.trials import Kind, Trial

_X = (torch.rand(24, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
_SLOW = 90.0  # seconds after which a process counts as hanging
_WAYS = ("KeyError", "SIGKILL", "SIGTERM", "setting", "rows")
_SETTINGS: list[dict[str, Any]] = [
    {"lr": 0.5},
    {"beta": 0.5},
    {"objective": pv.IWAE(2)},
    {"clip_norm": 1.0},
    {"valid": _X[:8]},
    {"epochs": 5},
    {"batch_size": 8},
    {"seed": 3},
    {"precision": "64-true"},
]


def _fit(**options: Any) -> list[float]:
    torch.manual_seed(1)
    program = pv.models.VAE(6, 2, (5,))
    settings = {"epochs": 4, "batch_size": 12, "progress": False, "compile": False}
    data = options.pop("data", _X)
    run = pv.fit(program, data, device="cpu", **{**settings, **options})
    return [float(loss) for loss in run.history["loss"]]


def _process(rank: int, port: int, way: str, seed: str) -> Any:
    """Return what one of two processes does: it fails in some way, or not, and trains again."""
    rng = random.Random(seed)
    failing, step = rng.randrange(2), rng.randint(1, 8)
    setting = rng.choice(_SETTINGS)

    def action(say: Say) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
        seen = [-1]

        def stumble(batch: torch.Tensor) -> torch.Tensor:
            seen[0] += 1
            if rank == failing and seen[0] == step:
                if way == "KeyError":
                    raise KeyError("mine")
                if way.startswith("SIG"):
                    os.kill(os.getpid(), getattr(signal, way))
            return batch

        options: dict[str, Any] = {"transform": stumble}
        if way == "setting":
            options = setting if rank == failing else {}
        if way == "rows":
            options = {"data": _X[rank::2]}
        try:
            _fit(**options)
            say("trained")
        except (KeyError, SystemExit, pv.errors.PyroVaeError) as error:
            say(f"told {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        if not way.startswith("SIG"):
            say(f"after {_fit()}")

    return action


def _trials(first: int, seed: int) -> Iterator[Trial]:
    warnings.simplefilter("ignore")
    _fit()  # what is loaded on first use is loaded once
    for number in range(first, 10**9):
        rng = random.Random(f"{seed}/{number}")
        yield _trial(rng.choice(_WAYS), f"{seed}/{number}/inner")


def _trial(way: str, seed: str) -> Trial:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [Forked(_process(rank, port, way, seed)) for rank in range(2)]
    done = [child.wait(_SLOW) for child in pair]
    if not all(done):
        return Trial(way, "raw", f"hung: {[child.lines for child in pair]}")
    told = [[line for line in child.lines if line.startswith("told")] for child in pair]
    killed = [child.code == -signal.SIGKILL for child in pair]
    for child, words, dead in zip(pair, told, killed, strict=True):
        if child.error is not None:
            return Trial(way, "raw", child.error)
        if not words and not dead:
            return Trial(way, "wrong", f"one was not told: {[c.lines for c in pair]}")
    if way in ("setting", "rows") and not all("disagree" in words[0] for words in told):
        return Trial(way, "wrong", f"not named: {told}")
    after = [[line for line in child.lines if line.startswith("after")] for child in pair]
    if not way.startswith("SIG") and (not after[0] or after[0] != after[1]):
        return Trial(way, "wrong", f"the next fit differs: {after}")
    return Trial(way, "ours")


RANKS = Kind(
    name="ranks",
    unit="failures of one of two processes",
    target=200,
    how="of two processes that train together one raises an error in a step, is killed or "
    "terminated there, or has another setting or other rows; both must end with an error of the "
    "library within 90 s (a killed one aside), settings named, and train together afterwards with "
    "equal losses",
    trials=_trials,
)
