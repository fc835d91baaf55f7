"""What only a GPU can show: how often a step waits for the device, and how much it launches."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.variants import Variant

# What the CUDA runtime calls a wait; a copy to pageable memory ends in one of them.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
# What sends work to the device: of a CUDA graph one for all its kernels.
LAUNCHES = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")
STEPS = 10


def counts(names: Iterable[str]) -> dict[str, int]:
    """Return how many of a profile's events are waits for the device, and launches."""
    called = list(names)
    sent = [name for name in called if name.startswith("cu") and any(k in name for k in LAUNCHES)]
    return {"waits": sum(name in WAITS for name in called), "launches": len(sent)}


def per_step(variant: Variant, x: Tensor) -> dict[str, float]:
    """Return the host's waits and launches in one step, by the profiler, after warming up."""
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
    found = counts(event.name for event in prof.events())
    return {what: count / STEPS for what, count in found.items()}
