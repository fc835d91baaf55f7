"""What ``compile="auto"`` costs and gains from end to end: ``python benchmarks/auto_mode.py``.

Whole runs of ``pv.fit``, start to finish, in turns: a short one, which must not wait for a
compiler, and one of a minute and more, which another process compiles. The value is the largest
median ratio of wall times, ``"auto"`` over ``"trace"``.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from results import FOLDER, Result

import pyro_vae as pv
from pyro_vae.inference.graphs.compiled_loss import Mode

ROWS, BATCH = 12_800, 128
NAMES: tuple[Mode, ...] = ("trace", "auto")


def run_seconds(x: torch.Tensor, mode: Mode, epochs: int) -> float:
    """Return the wall time of one run."""
    torch.manual_seed(0)
    vae = pv.models.VAE(784, 20, hidden=(400,))
    start = time.perf_counter()
    pv.fit(vae, x, epochs=epochs, batch_size=BATCH, compile=mode, progress=False, device="cpu")
    return time.perf_counter() - start


def ratios(x: torch.Tensor, epochs: int, pairs: int) -> dict[Any, list[float]]:
    """Return the times of both modes, the order turned round from pair to pair."""
    times: dict[Any, list[float]] = {name: [] for name in NAMES}
    for pair in range(pairs):
        for name in NAMES if pair % 2 == 0 else NAMES[::-1]:
            times[name].append(run_seconds(x, name, epochs))
            print(f"{epochs} epochs, {name}: {times[name][-1]:.1f} s", flush=True)
    return times


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", type=int, default=10, help="epochs of the short run")
    parser.add_argument("--long", type=int, default=140, help="epochs of the long run")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--results", type=Path, default=FOLDER)
    args = parser.parse_args()
    torch.set_num_threads(1)
    x = (torch.rand(ROWS, 784, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    start = time.perf_counter()
    details, medians = {}, {}
    for name, epochs in (("short", args.short), ("long", args.long)):
        times = ratios(x, epochs, args.pairs)
        paired = [a / t for a, t in zip(times["auto"], times["trace"], strict=True)]
        medians[name] = statistics.median(paired)
        details[name] = {"epochs": epochs, "seconds": times, "auto_over_trace": paired}
    found = Result(
        name="auto_mode",
        value=max(medians.values()),
        stderr=None,
        unit="wall time of a whole run, compile='auto' over 'trace', the worse of two lengths",
        estimator=f"median of {args.pairs} paired ratios, runs in turns; medians "
        + ", ".join(f"{name} {value:.3f}" for name, value in medians.items()),
        published="-",
        target="<= 1.03",
        data="made-up binary data, VAE 784-400-20, batch 128",
        binarization="none",
        seed=0,
        seconds=time.perf_counter() - start,
        details={**details, "cores": os.cpu_count()},
    )
    print(found.write(args.results))


if __name__ == "__main__":
    main()
