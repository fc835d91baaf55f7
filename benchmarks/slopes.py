"""How the cost of a step grows with batch, latent size, layers and particles: log-log slopes.

``OMP_NUM_THREADS=1 python -m benchmarks.slopes`` writes ``results/slopes.json``. A slope of 1 is a
cost in proportion; below it, sizes share what a step costs in any case. The program is the
784-400-20 VAE at batch 128; one size moves at a time, and the sizes take turns.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.paired import Times, interleaved
from benchmarks.results import FOLDER, Result
from benchmarks.speed.cases import BATCHES, Case, iwae, vae
from benchmarks.speed.variants import Ours, block_of

# What grows, the case of a size, and the sizes.
AXES: dict[str, tuple[Callable[[int], Case], tuple[int, ...]]] = {
    "batch": (lambda b: vae(784, 400, 20, batch=b), (64, 128, 256, 512, 1024)),
    "latent": (lambda z: vae(784, 400, z, batch=128), (8, 32, 128, 512)),
    "layers": (lambda n: vae(784, 400, 20, batch=128, depth=n), (1, 2, 4, 8)),
    "K": (lambda k: iwae(784, 200, 50, num_particles=k, batch=20), (5, 10, 20, 40, 80)),
}


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Return the least-squares slope of log seconds against log size."""
    x, y = [math.log(s) for s in sizes], [math.log(t) for t in seconds]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def slopes(sizes: list[int], times: list[Times], clock: int) -> list[float]:
    """Return the slope of each round, by wall clock (0) or CPU time (1)."""
    rounds = zip(*times, strict=True)
    return [slope(sizes, [taken[clock] for taken in one]) for one in rounds]


def grown(axis: str, mode: Any, blocks: int, passes: int) -> dict[str, Any]:
    """Measure one axis: median slope over rounds with quartiles, and median seconds by size."""
    build, sizes = AXES[axis]
    works = {}
    for size in sizes:
        case = build(size)
        ours = Ours(case, mode)
        works[str(size)] = block_of(ours, case.data(), passes * BATCHES)
        works[str(size)]()  # the first run traces
    times = interleaved(works, blocks)
    steps = passes * BATCHES
    found: dict[str, Any] = {
        "step_milliseconds": {
            size: 1e3 * statistics.median(wall for wall, _ in taken) / steps
            for size, taken in times.items()
        }
    }
    for index, clock in enumerate(("wall", "cpu")):
        values = slopes(list(sizes), list(times.values()), index)
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        found[clock] = {"slope": median, "lower": lower, "upper": upper}
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--blocks", type=int, default=11)
    parser.add_argument("--passes", type=int, default=1, help=f"times {BATCHES} steps in a block")
    parser.add_argument("--compile", action="store_true", help="compile=True; else 'trace'")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    mode: Any = True if args.compile else "trace"
    details = {}
    for axis in args.axes:
        details[axis] = grown(axis, mode, args.blocks, args.passes)
        wall = details[axis]["wall"]
        print(
            f"{axis:8} {wall['slope']:.2f} [{wall['lower']:.2f}, {wall['upper']:.2f}]", flush=True
        )
    steepest = max(details, key=lambda axis: details[axis]["wall"]["slope"])
    wall = details[steepest]["wall"]
    stderr = 1.2533 * (wall["upper"] - wall["lower"]) / 1.349 / args.blocks**0.5
    path = Result(
        name="slopes",
        value=wall["slope"],
        stderr=stderr,
        unit=f"log-log slope of a step's time against {steepest}, the steepest of "
        + ", ".join(details),
        estimator=f"median of {args.blocks} rounds, wall clock, compile={mode!r}",
        published="",
        target="<= 1.1",
        data="made-up binary data, VAE 784-400-20 (batch 128), IWAE 784-200-200-50 (batch 20)",
        binarization="",
        seed=0,
        seconds=time.perf_counter() - began,
        details=details,
        command="python -m benchmarks.slopes" + (" --compile" if args.compile else ""),
    ).write(args.out)
    print(path.name)


if __name__ == "__main__":
    main()
