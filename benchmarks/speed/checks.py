"""Whether competitors compute one loss: at equal weights and seed, or in the mean of many draws."""

import math
import statistics
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.cases import Case
from benchmarks.speed.variants import BASE, Variant

DRAWS = 40
PEER_DRAWS = 400


def losses(variant: Variant, x: Tensor, draws: int) -> list[float]:
    """Return losses of one batch at fixed weights, a new draw of the noise each."""
    variant.set_lr(0.0)
    torch.manual_seed(2)
    with variant.running():
        return [float(variant.step(x)) for _ in range(draws)]


def compared(values: list[float], base: list[float]) -> dict[str, Any]:
    """Return the z score between two means."""
    difference = statistics.fmean(values) - statistics.fmean(base)
    variances = [statistics.variance(sample) / len(sample) for sample in (values, base)]
    return {"mean_loss": statistics.fmean(values), "z": difference / math.sqrt(sum(variances))}


def agreement(
    running: dict[str, Variant], x: Tensor, draws: int = DRAWS
) -> dict[str, dict[str, Any]]:
    """Compare the losses of each variant with the base's, at equal weights and seed.

    Variants that draw the same numbers from one seed agree draw by draw; Inductor may draw others,
    or in another order, and then the means are compared.
    """
    base = losses(running[BASE], x, draws)
    found: dict[str, dict[str, Any]] = {}
    for name, variant in running.items():
        values = losses(variant, x, draws)
        largest = max(abs(v - b) / abs(b) for v, b in zip(values, base, strict=True))
        found[name] = {
            **compared(values, base),
            "largest_relative_difference": largest,
            "same_noise": largest < 1e-4,
        }
    return found


def reference(case: Case, kind: str, draws: int = PEER_DRAWS) -> list[float]:
    """Return hand-written losses to hold a peer's against, on the first batch at first weights.

    pythae's IWAE reports sum_k w_k log w_k with normalised weights, whose gradient is the bound's
    while its value is not: it is held against that sum.
    """
    module, _ = case.twins()
    x = case.data(1)[0]
    torch.manual_seed(5)
    with torch.no_grad():
        if kind == "pythae" and case.peer["kind"] == "iwae":
            drawn = [module.log_weights(x) for _ in range(draws)]
            return [float(-(w.softmax(0) * w).sum(0).mean()) for w in drawn]
        return [float(module(x)) for _ in range(draws)]
