"""Timing by paired blocks: A B C, C B A, ..., and the median of the ratios within a round."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# A block of work; one that runs in another process returns its own (wall, CPU) seconds.
Work = Callable[[], object]
Times = list[tuple[float, float]]


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios, with the quartiles that say how much they spread."""

    median: float
    lower: float
    upper: float
    blocks: int

    @property
    def stderr(self) -> float:
        """Standard error of the median, from the spread of the quartiles (normal tails)."""
        return 1.2533 * (self.upper - self.lower) / 1.349 / self.blocks**0.5


def timed(work: Work) -> tuple[float, float]:
    """Run a block and return its (wall, CPU) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    own = work()
    if isinstance(own, tuple):
        return own
    return time.perf_counter() - wall, time.process_time() - cpu


def interleaved(works: Mapping[str, Work], blocks: int) -> dict[str, Times]:
    """Run blocks A B C D, D C B A, ... and return the (wall, CPU) seconds of each.

    Single times on a shared machine vary tenfold; the ratio of two neighbours does not.
    """
    times: dict[str, Times] = {name: [] for name in works}
    for block in range(blocks):
        for name in list(works) if block % 2 == 0 else list(works)[::-1]:
            times[name].append(timed(works[name]))
    return times


def ratios(times: Times, base: Times) -> dict[str, Ratio]:
    """Return the median ratio to the base of the same round, by wall clock and CPU time."""
    return {
        clock: _summary([mine[i] / its[i] for mine, its in zip(times, base, strict=True)])
        for i, clock in enumerate(("wall", "cpu"))
    }


def paired_ratio(subject: Work, base: Work, *, blocks: int = 31) -> dict[str, Ratio]:
    """Run two blocks of work alternately and return their ratios, by wall clock and CPU time."""
    subject(), base()  # first runs pay for caches and lazy imports
    times = interleaved({"subject": subject, "base": base}, blocks)
    return ratios(times["subject"], times["base"])


def _summary(values: list[float]) -> Ratio:
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Ratio(median, lower, upper, len(values))
