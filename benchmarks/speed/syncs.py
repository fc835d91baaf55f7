"""What only a GPU can show: how often a step waits for the device."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.variants import Variant

# What the CUDA runtime calls a wait; a copy to pageable memory ends in one of them.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
STEPS = 10


def waits(names: Iterable[str]) -> int:
    """Return how many of a profile's events are waits for the device."""
    return sum(name in WAITS for name in names)


def syncs_per_step(variant: Variant, x: Tensor) -> float:
    """Return the host's waits for the device in one step, by the profiler, after warming up."""
    from torch.profiler import ProfilerActivity, profile

    activities: list[Any] = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with variant.running():
        for _ in range(3):
            variant.step(x)
        torch.cuda.synchronize()
        with profile(activities=activities) as prof:
            for _ in range(STEPS):
                variant.step(x)
        torch.cuda.synchronize()
    return waits(event.name for event in prof.events()) / STEPS
