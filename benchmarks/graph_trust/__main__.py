"""``python -m benchmarks.graph_trust [--source DIR] [--modes MODE ...] [--seconds S]``.

Trains each program eagerly and in every mode of ``pv.fit(compile=)`` at equal noise, and compares
the loss of each step, the gradients at the end of each epoch, and the trained weights. What was
measured before is kept: interrupt it, and call it again. ``--cost 30`` measures what the checks
cost in runs of thirty seconds.
"""

import argparse
import os
import signal
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.graph_trust import cost, programs, report
from benchmarks.graph_trust.subject import Subject
from benchmarks.graph_trust.training import MODES, Trained, train, verdict

STOPPED = {"status": "broken", "cpu_seconds": 0.0}


class Stopped(BaseException):
    """A program has used up its time: no error of its own, which a graph would fall back upon."""


def main() -> None:
    """Run what is left of what was asked for, and write the table after each program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, help="folder of published checkouts")
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=list(MODES))
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--again", action="store_true", help="measure known answers anew")
    parser.add_argument("--seconds", type=float, default=3600.0, help="start nothing after these")
    parser.add_argument("--limit", type=float, default=300.0, help="processor seconds of a program")
    parser.add_argument("--cost", type=float, help="measure the checks in runs of so many seconds")
    parser.add_argument("--out", type=Path, default=report.FILE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.cost:
        for name in cost.PROGRAMS:
            report.write(report.known(given.out), given.out, cost={name: costs(name, given.cost)})
        return
    subjects = programs.fooling() | programs.battery() | programs.shapes()
    if given.source:
        subjects |= programs.gallery(given.source)
    rows = report.known(given.out)
    start = time.perf_counter()
    # Those without a graph first: nothing is compiled for them.
    for name, subject in sorted(
        subjects.items(), key=lambda each: has_graph(rows.get(each[0], {}))
    ):
        if not any(part in name for part in given.only):
            continue
        row = rows.setdefault(name, {})
        left = [mode for mode in given.modes if given.again or mode not in row]
        if not left or time.perf_counter() - start > given.seconds:
            continue
        try:
            with limited(given.limit):
                answers(subject, left, row)
        except (Stopped, Exception) as error:  # a program that cannot be made, say
            row |= {m: {**STOPPED, "compiled": repr(error)[:240]} for m in left if m not in row}
        print(f"{name:45s} {report.line(row)}", flush=True)
        report.write(rows, given.out)
    print(report.counts(rows))


def has_graph(row: Mapping[str, Any]) -> bool:
    """Return whether a program is known to run as a graph."""
    return row.get("trace", {}).get("status") == "equal"


def costs(name: str, seconds: float) -> dict[str, Any]:
    """Return what the checks cost, without and with a callback after each epoch."""
    found = {
        "no callback": cost.share(name, seconds, with_callback=False),
        "a callback": cost.share(name, seconds / 3, with_callback=True),
    }
    print(name, found, flush=True)
    return found


def answers(subject: Subject, modes: list[str], found: dict[str, Any]) -> dict[str, Any]:
    """Add the verdicts on some modes of one subject to those that are known."""
    eager = train(subject, False)
    for mode in modes:
        start = _cpu()
        try:
            other: Trained = train(subject, MODES[mode])
            found[mode] = verdict(eager, other, subject.dtype)
        except Exception:
            found[mode] = {"status": "broken", "compiled": traceback.format_exc()[-400:]}
        found[mode]["cpu_seconds"] = round(_cpu() - start, 1)
    return found


def _cpu() -> float:
    """Return the processor seconds of this process and of those that it has waited for."""
    times = os.times()
    return sum(times[:4])


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End what runs inside once it has taken some processor seconds of this process."""

    def end(*_: Any) -> None:
        raise Stopped(f"stopped after {seconds:.0f} processor seconds")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


if __name__ == "__main__":
    main()
