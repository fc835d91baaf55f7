"""Memory of a training step beside hand-written PyTorch: ``python -m benchmarks.step_memory``."""

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyro_vae as pv
from benchmarks.results import FOLDER, Result
from benchmarks.speed.cases import CASES, Case
from benchmarks.speed.variants import BASE, OURS, TRACE, Variant, variants

WARM = 6  # steps before: traces, comparisons and the compiler are over
FITS, WARM_FITS = 200, 20


def peak_of(work: Any) -> int:
    """Return by how many bytes what is allocated on the CPU grows, at most, while work runs."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    blocks = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    total = peak = 0
    for _, size in sorted(blocks, key=lambda block: block[0]):
        total += size
        peak = max(peak, total)
    return peak


def of_step(variant: Variant, data: list[Tensor]) -> int:
    """Return the bytes that a step takes besides weights, Adam's state and the last gradients."""
    with variant.running():
        for index in range(WARM):
            variant.step(data[index % len(data)])
        peak_of(lambda: variant.step(data[0]))  # in which blocks are freed whose size it never saw
        return peak_of(lambda: variant.step(data[0]))


def rows(case: Case) -> dict[str, int]:
    """Return the bytes of each way to train."""
    data, kinds = case.data(), variants(case)
    return {name: of_step(kinds[name](), data) for name in (BASE, TRACE, OURS)}


def resident() -> float:
    """Return the memory of this process in MiB."""
    lines = Path("/proc", "self", "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def growth() -> dict[str, float]:
    """Return what grows from one training of a program to the next: MiB, and Python's objects."""
    case = CASES["vae_64_32_8"]
    program, (x, *_) = case.program(), case.data()
    marks = []
    for fit in range(1, FITS + 1):
        pv.fit(program, x, max_steps=2, compile="trace", progress=False)
        if fit in (WARM_FITS, FITS):
            gc.collect()
            marks.append((resident(), len(gc.get_objects())))
    before, after = marks
    return {"mib": after[0] - before[0], "objects": after[1] - before[1]}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began, found = time.perf_counter(), {}
    for name in args.programs:
        found[name] = rows(CASES[name])
        cells = ", ".join(f"{kind}: {size / 2**20:.2f} MiB" for kind, size in found[name].items())
        print(f"{name}: {cells}", flush=True)
    grown = growth()
    print(f"{FITS} fits of one program: {grown['mib']:+.1f} MiB, {grown['objects']:+.0f} objects")
    ratios = {name: row[OURS] / row[BASE] for name, row in found.items()}
    result = Result(
        name="step_memory",
        value=max(ratios.values()),
        stderr=None,
        unit="bytes of a step of pv.fit(compile=True) over hand-written eager PyTorch, the largest",
        estimator="largest sum of the allocator's blocks in one step, besides what it begins with",
        published="",
        target="<= 1.1",
        data="made-up binary data",
        binarization="",
        seed=0,
        seconds=time.perf_counter() - began,
        device="cpu, 1 thread",
        details={
            "bytes": found,
            "ratios": ratios,
            "geometric_mean": statistics.geometric_mean(ratios.values()),
            f"growth_from_fit_{WARM_FITS}_to_{FITS}": grown,
        },
        command=" ".join(["python -m benchmarks.step_memory", *sys.argv[1:]]),
    )
    print(f"largest ratio {result.value:.2f}: {result.write(args.out)}")


if __name__ == "__main__":
    main()
