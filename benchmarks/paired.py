"""Timing by paired blocks: A B A B ..., and the median of the ratios of neighbours."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


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


def paired_ratio(
    subject: Callable[[], object], base: Callable[[], object], *, blocks: int = 31
) -> dict[str, Ratio]:
    """Run two blocks of work alternately and return their ratios, by wall clock and CPU time.

    Single times on a shared machine vary tenfold; the ratio of two neighbours does not.
    """
    subject(), base()  # first runs pay for caches and lazy imports
    ratios: dict[str, list[float]] = {"wall": [], "cpu": []}
    for block in range(blocks):
        pair = (subject, base) if block % 2 == 0 else (base, subject)
        times = {}
        for work in pair:
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            times[work] = (time.perf_counter() - wall, time.process_time() - cpu)
        ratios["wall"].append(times[subject][0] / times[base][0])
        ratios["cpu"].append(times[subject][1] / times[base][1])
    return {clock: _summary(values) for clock, values in ratios.items()}


def _summary(values: list[float]) -> Ratio:
    lower, median, upper = statistics.quantiles(values, n=4)
    return Ratio(median, lower, upper, len(values))
