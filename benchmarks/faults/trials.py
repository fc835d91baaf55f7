"""Trials of one kind of fault: counted, bounded in time, gone on with where they stopped."""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.results import FOLDER, Result, versions

# Nothing was wrong; an error of the library's own said so; work was lost; a number was wrong,
# silently; an error of another library, a crash or a hang.
Verdict = Literal["ok", "ours", "lost", "wrong", "raw"]
VERDICTS: tuple[Verdict, ...] = ("ok", "ours", "lost", "wrong", "raw")
FAULTS = VERDICTS[2:]
_KEPT = 20  # notes on faults
_EVERY = 20.0  # seconds between two writes


@dataclass(frozen=True)
class Trial:
    """What became of one trial.

    Arguments:
        group: Of trials that are counted together.
        verdict: What became of it.
        note: What happened, where it was a fault.
    """

    group: str
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Arguments:
        name: On the command line and in the file ``faults_<name>.json``.
        unit: What is counted, in words: it ends ``faults in N ...``.
        target: Trials, where time does not end them first.
        how: What a trial does and when it counts as a fault.
        trials: Yields the trials from a number on, under a seed.
    """

    name: str
    unit: str
    target: int
    how: str
    trials: Callable[[int, int], Iterator[Trial]]


def measure(kind: Kind, *, seconds: float, seed: int = 0, folder: Path = FOLDER) -> dict[str, Any]:
    """Go on with the trials of a kind where its file stopped; return what the file says now.

    Arguments:
        kind: Of fault.
        seconds: After which no trial is begun.
        seed: Of all trials; another seed, other versions, or other trials (``how``) begin anew.
        folder: Of the file.
    """
    counts, faults, before = _so_far(kind, seed, folder)
    start = written = time.monotonic()
    done = sum(sum(group.values()) for group in counts.values())

    def keep() -> dict[str, Any]:
        elapsed = before + time.monotonic() - start
        return asdict(_write(kind, counts, faults, seed, elapsed, folder))

    if done < kind.target:
        for trial in kind.trials(done, seed):
            counts.setdefault(trial.group, dict.fromkeys(VERDICTS, 0))[trial.verdict] += 1
            if trial.verdict in FAULTS and len(faults) < _KEPT:
                faults.append(f"{done}, {trial.group}, {trial.verdict}: {_plain(trial.note)}")
            done += 1
            now = time.monotonic()
            if done >= kind.target or now - start > seconds:
                break
            if now - written > _EVERY:
                written = now
                keep()
    return keep()


def _so_far(
    kind: Kind, seed: int, folder: Path
) -> tuple[dict[str, dict[str, int]], list[str], float]:
    path = folder / f"faults_{kind.name}.json"
    if not path.exists():
        return {}, [], 0.0
    found = json.loads(path.read_text())
    told = found["seed"], found["versions"], found["estimator"]
    if told != (seed, versions(), kind.how):
        return {}, [], 0.0
    return found["details"]["counts"], found["details"]["faults"], found["seconds"]


def _write(
    kind: Kind,
    counts: dict[str, dict[str, int]],
    faults: list[str],
    seed: int,
    seconds: float,
    folder: Path,
) -> Result:
    total = {v: sum(group[v] for group in counts.values()) for v in VERDICTS}
    result = Result(
        name=f"faults_{kind.name}",
        value=float(sum(total[v] for v in FAULTS)),
        stderr=None,
        unit=f"lost, wrong or raw in {sum(total.values()):,} {kind.unit}",
        estimator=kind.how,
        published="",
        target="0",
        data="made up",
        binarization="",
        seed=seed,
        seconds=seconds,
        details={"total": total, "counts": counts, "faults": faults},
        command=f"python -m benchmarks.faults --only {kind.name} --seed {seed}",
    )
    result.write(folder)
    return result


def _plain(note: str) -> str:
    """Return a note without the paths of this machine."""
    return re.sub(r"/[\w./~-]+", "PATH", note)[:300]
