"""Means and ratios of means with their standard errors, which are NaN of a single value."""

import torch
from torch import Tensor


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of N values, (N,), and its standard error."""
    return values.mean(), _spread(values) / len(values) ** 0.5


def ratio_and_error(cost: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of costs over that of sizes, both (N,), and its standard error."""
    ratio = cost.sum() / size.sum()
    return ratio, _spread(cost - ratio * size) / size.mean() / len(cost) ** 0.5


def _spread(values: Tensor) -> Tensor:
    return values.std() if len(values) > 1 else values.new_tensor(torch.nan)
