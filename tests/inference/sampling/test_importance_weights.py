"""Log weights against direct sums, Pyro's generalised Pareto fit, and laws of known shape."""

import math

import pytest
import torch
from pyro.ops.stats import fit_generalized_pareto as pyro_fit
from torch import Tensor

from pyro_vae.inference.sampling.importance_weights import (
    effective_sample_size,
    fit_generalized_pareto,
    log_mean_exp,
    psis_k,
)


@pytest.fixture
def log_weight() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(50, 7, dtype=torch.float64) * 2.0


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_mean_exp_equals_the_direct_mean(log_weight: Tensor, dim: int) -> None:
    expected = log_weight.exp().mean(dim).log()
    torch.testing.assert_close(log_mean_exp(log_weight, dim), expected, rtol=1e-12, atol=1e-12)


def test_log_mean_exp_survives_extremes() -> None:
    tiny = torch.tensor([[-1e4, -math.inf], [-1e4, -math.inf]], dtype=torch.float64)
    assert log_mean_exp(tiny).tolist() == [-1e4, -math.inf]


@pytest.mark.parametrize("dim", [0, 1])
def test_effective_sample_size_equals_kish(log_weight: Tensor, dim: int) -> None:
    weight = log_weight.exp()
    expected = weight.sum(dim).square() / weight.square().sum(dim)
    actual = effective_sample_size(log_weight - 900.0, dim)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0.0)


def test_effective_sample_size_at_its_ends() -> None:
    equal = torch.full((40, 1), -3.0, dtype=torch.float64)
    single = torch.full((40, 1), -math.inf, dtype=torch.float64)
    single[3] = 0.0
    ess = effective_sample_size(torch.cat([equal, single], 1))
    torch.testing.assert_close(ess, torch.tensor([40.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("num", [5, 17, 100, 213])
def test_pareto_fit_equals_pyro(num: int) -> None:
    torch.manual_seed(num)
    uniform = torch.rand(num, 6, dtype=torch.float64)
    shapes = torch.tensor([-0.4, -0.1, 0.1, 0.5, 0.9, 2.0], dtype=torch.float64)
    excess = (((1.0 - uniform) ** -shapes - 1.0) / shapes).sort(0).values
    k, sigma = fit_generalized_pareto(excess)
    for column in range(6):
        expected_k, expected_sigma = pyro_fit(excess[:, column])
        assert k[column].item() == pytest.approx(expected_k, rel=1e-9, abs=1e-10)
        assert sigma[column].item() == pytest.approx(expected_sigma, rel=1e-9)


def test_psis_k_equals_pyro_on_the_cut_tail(log_weight: Tensor) -> None:
    torch.manual_seed(1)
    log_weight = torch.randn(5000, 4, dtype=torch.float64) * torch.tensor([0.3, 1.0, 2.0, 4.0])
    tail = math.ceil(3.0 * math.sqrt(5000))
    for column, k in enumerate(psis_k(log_weight)):
        ordered = log_weight[:, column].sort().values.exp()
        expected, _ = pyro_fit(ordered[-tail:] - ordered[-tail - 1])
        assert k.item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.7, 1.0])
def test_psis_k_finds_the_shape_of_a_pareto_law(shape: float) -> None:
    """Pareto weights u^-k: the mean over 400 columns within 0.03 of k.

    The bias from the prior on k is about 10 (1/2 - k) / (tail + 10) = 0.01 at most; the standard
    error is about (1 + k) / sqrt(425 * 400) = 0.005, so the false-alarm rate is below 1e-4.
    """
    torch.manual_seed(2)
    log_weight = -shape * torch.rand(20_000, 400, dtype=torch.float64).log()
    assert psis_k(log_weight).mean().item() == pytest.approx(shape, abs=0.03)


def test_psis_k_ignores_scale_order_and_dim() -> None:
    torch.manual_seed(3)
    log_weight = torch.randn(1000, 3, dtype=torch.float64)
    expected = psis_k(log_weight)
    shuffled = log_weight[torch.randperm(1000)] - 750.0
    torch.testing.assert_close(psis_k(shuffled), expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(psis_k(log_weight.T, dim=1), expected, rtol=0.0, atol=0.0)
    torch.testing.assert_close(psis_k(log_weight[:, 1]), expected[1], rtol=1e-12, atol=0.0)


def test_psis_k_of_degenerate_columns() -> None:
    torch.manual_seed(4)
    good = torch.randn(400, dtype=torch.float64)
    equal = torch.full_like(good, -81.3)
    rounding = equal + 1e-13 * good
    nan, infinite, empty = good.clone(), good.clone(), torch.full_like(good, -math.inf)
    nan[5], infinite[5] = math.nan, math.inf
    ties = good.round()
    k = psis_k(torch.stack([good, equal, rounding, nan, infinite, empty, ties], 1))
    assert k[0].isfinite() and k[6].isfinite()
    assert k[1:3].tolist() == [0.0, 0.0]
    assert k[3:6].tolist() == [math.inf] * 3


def test_psis_k_of_few_draws_is_unknown() -> None:
    assert psis_k(torch.zeros(20, 3)).tolist() == [math.inf] * 3


def test_weights_run_on_meta() -> None:
    log_weight = torch.empty(100, 3, device="meta")
    for function in (log_mean_exp, effective_sample_size, psis_k):
        assert function(log_weight).shape == (3,)
