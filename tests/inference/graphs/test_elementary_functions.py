"""Short functions have the numbers of those that they stand for."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from pyro_vae.inference.graphs import elementary_functions as elementary

ROUNDING = torch.finfo(torch.float32).eps / 2


def error(ours, exact):
    """Return the largest relative error, in roundings of single precision."""
    return ((ours.double() - exact) / exact).abs().max().item() / ROUNDING


def test_tanh_is_exact_to_four_roundings():
    x = torch.cat([torch.linspace(-12, 12, 400_000), torch.logspace(-30, 1, 10_000)])
    x = x[x != 0]
    ours = elementary.tanh(x)
    assert error(ours, x.double().tanh()) < 4
    assert ours.abs().max() == 1
    assert elementary.tanh(torch.tensor([9.1, -1e30, math.inf, 0.0])).tolist() == [1, -1, 1, 0]
    assert elementary.tanh(torch.tensor(math.nan)).isnan()


def test_tanh_is_one_only_where_the_librarys_is():
    """A scale of sqrt(1 - tanh²) has no finite gradient there."""
    x = torch.linspace(7, 8.66, 100_000)
    assert x.tanh().max() < 1
    assert elementary.tanh(x).max() < 1


def test_log1p_is_exact_to_four_roundings_on_the_unit_interval():
    e = torch.cat([torch.linspace(0, 1, 200_000)[1:], torch.logspace(-30, 0, 10_000)])
    assert error(elementary.log1p(e), e.double().log1p()) < 4
    assert elementary.log1p(torch.tensor(0.0)) == 0


@pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
def test_bernoulli_cost_is_cross_entropy_and_its_mean_a_sigmoid(x):
    logits = torch.linspace(-80, 80, 10_001)
    target = torch.full_like(logits, x)
    exact = (1 - x) * softplus(logits.double()) + x * softplus(-logits.double())
    cost, mean = elementary.bernoulli(logits, target)
    torch.testing.assert_close(cost.double(), exact, rtol=5e-7, atol=0)
    torch.testing.assert_close(mean.double(), logits.double().sigmoid(), rtol=5e-7, atol=0)


def test_bernoulli_passes_on_what_is_not_finite():
    logits = torch.tensor([math.inf, -math.inf, -math.inf, math.nan])
    target = torch.tensor([0.0, 0.0, 1.0, 0.0])
    theirs = binary_cross_entropy_with_logits(logits, target, reduction="none")
    cost, mean = elementary.bernoulli(logits, target)
    torch.testing.assert_close(cost, theirs, equal_nan=True)
    torch.testing.assert_close(mean, logits.sigmoid(), equal_nan=True)
