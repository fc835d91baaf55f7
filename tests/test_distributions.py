"""Distributions: masses by enumeration, float32 against float64, gradients at extremes."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.distributions import (
    AutoregressiveBits,
    DiscretisedLogistic,
    Mixture,
    NoPrior,
    SquaredError,
)
from pyro_vae.errors import ConfigError, ProgramError

EXACT = {"rtol": 1e-10, "atol": 1e-12}
LOCS = torch.tensor([-50.0, -0.1, 0.0, 0.3, 0.5, 1.0, 1.7, 80.0], dtype=torch.float64)
SCALES = torch.tensor([1e-6, 1e-3, 0.02, 0.3, 5.0, 1e5], dtype=torch.float64)


def grid(levels, dtype=torch.float64):
    return (torch.arange(levels, dtype=dtype) / (levels - 1)).reshape(-1, 1, 1)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_masses_sum_to_one(levels):
    p = DiscretisedLogistic(LOCS[:, None], SCALES, levels, validate_args=True)
    total = p.log_prob(grid(levels)).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros_like(total), **EXACT)


def test_mass_is_the_difference_of_the_cdf():
    levels, half = 17, 0.5 / 16
    loc, scale = (torch.tensor(v, dtype=torch.float64) for v in (0.4, 0.1))
    p = DiscretisedLogistic(loc, scale, levels)
    x = grid(levels).flatten()
    upper, lower = torch.sigmoid((x + half - 0.4) / 0.1), torch.sigmoid((x - half - 0.4) / 0.1)
    upper[-1], lower[0] = 1, 0
    expected = (upper - lower).log()
    torch.testing.assert_close(p.log_prob(x), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_float32_agrees_with_float64_and_gradients_are_finite_at_extremes(levels):
    loc = LOCS.float()[:, None].expand(8, 6).clone().requires_grad_()
    scale = SCALES.float().expand(8, 6).clone().requires_grad_()
    x = grid(levels, torch.float32)
    low = DiscretisedLogistic(loc, scale, levels).log_prob(x)
    high = DiscretisedLogistic(loc.detach().double(), scale.detach().double(), levels)
    high = high.log_prob(grid(levels))
    assert low.isfinite().all()
    # an argument t/s carries a rounding error of eps |t| / s into log p; t is at most about 81
    slack = 1e-5 + 4 * torch.finfo(torch.float32).eps * (1 + loc.detach().abs()) / scale.detach()
    assert ((low - high).abs() <= slack + 1e-5 * high.abs()).all()
    low.sum().backward()
    assert loc.grad.isfinite().all()
    assert scale.grad.isfinite().all()


def test_gradient_equals_finite_differences():
    loc = torch.tensor([0.1, 0.5, 0.95], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.01, 0.1, 2.0], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[0.0], [0.5], [1.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda m, s: DiscretisedLogistic(m, s, 17).log_prob(x), (loc, scale)
    )


@pytest.mark.parametrize("levels", [2, 17])
def test_mean_and_variance_by_enumeration(levels):
    p = DiscretisedLogistic(LOCS[:, None], SCALES, levels)
    x = grid(levels)
    mass = p.log_prob(x).exp()
    mean = (x * mass).sum(0)
    torch.testing.assert_close(p.mean, mean, rtol=1e-9, atol=1e-12)
    variance = ((x - mean).square() * mass).sum(0)
    torch.testing.assert_close(p.variance, variance, rtol=1e-7, atol=1e-12)


def test_sample_frequencies():
    # chi-square on 6 levels: 5 degrees of freedom, above 43 with probability 4e-8
    torch.manual_seed(0)
    p = DiscretisedLogistic(torch.tensor(0.3).double(), torch.tensor(0.2).double(), 6)
    n = 20_000
    x = p.sample((n,))
    assert p.support.check(x).all()
    counts = torch.bincount((x * 5).round().long(), minlength=6)
    expected = n * p.log_prob(grid(6).flatten()).exp()
    assert ((counts - expected).square() / expected).sum() < 43


def test_draws_have_the_tails_of_the_density():
    """2 permille beyond 6.2 scales on either side, in 100,000 draws: |z| < 5."""
    torch.manual_seed(0)
    p = DiscretisedLogistic(torch.tensor(0.5).double(), torch.tensor(0.05).double(), 256)
    inside = ((grid(256) - 0.5).abs() <= 0.31).flatten()
    share = p.log_prob(grid(256).flatten())[~inside].exp().sum()
    found = ((p.sample((100_000,)) - 0.5).abs() > 0.31).double().mean()
    assert 0.003 < share < 0.006
    assert (found - share).abs() < 5 * (share * (1 - share) / 100_000).sqrt()


def test_float32_pixels_and_off_grid_values():
    loc, scale = (torch.tensor(v, dtype=torch.float32) for v in (0.5, 0.1))
    p = DiscretisedLogistic(loc, scale, 256, validate_args=True)
    pixels = torch.arange(256, dtype=torch.uint8).float() / 255
    assert p.log_prob(pixels).exp().sum().item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.tensor(0.5))
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.tensor(256 / 255))


def test_expand_and_independent():
    p = DiscretisedLogistic(torch.tensor([0.2, 0.7]), torch.tensor(0.1), 17).expand((3, 2))
    q = p.to_event(1)
    assert p.batch_shape == (3, 2)
    assert p.levels == 17
    assert q.sample().shape == (3, 2)
    assert q.sample((4,)).shape == (4, 3, 2)
    assert q.log_prob(q.sample()).shape == (3,)
    x = q.sample()
    torch.testing.assert_close(q.log_prob(x), p.log_prob(x).sum(-1))


@pytest.mark.parametrize("levels", [1, 0, 2.5, "256", True])
def test_bad_levels(levels):
    with pytest.raises(ConfigError, match="levels"):
        DiscretisedLogistic(0.5, 0.1, levels)


def test_bad_scale():
    with pytest.raises(ValueError, match="scale"):
        DiscretisedLogistic(torch.tensor(0.5), torch.tensor(-1.0), validate_args=True)


def test_no_prior():
    p = NoPrior((3,)).expand((2,))
    assert (p.batch_shape, p.event_shape) == ((2,), (3,))
    assert torch.equal(p.log_prob(torch.randn(5, 2, 3)), torch.zeros(5, 2))
    with pytest.raises(ProgramError, match="no prior to sample from"):
        p.sample()
    with pytest.raises(ProgramError, match="no prior to sample from"):
        p()


def test_squared_error():
    torch.manual_seed(0)
    loc, x = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    p = SquaredError(loc)
    assert torch.equal(p.log_prob(x), -((x - loc) ** 2))
    normal = dist.Normal(loc, math.sqrt(0.5)).log_prob(x) + math.log(math.pi) / 2
    torch.testing.assert_close(p.log_prob(x), normal, **EXACT)
    assert torch.equal(p.mean, loc)
    assert torch.equal(p.expand((2, 4, 3)).sample(), loc.expand(2, 4, 3))
    assert p.to_event(1).log_prob(x).shape == (4,)


def test_a_mixture_of_other_numbers_of_weights_and_components_is_refused():
    parts = dist.Normal(torch.zeros(2, 1), 1.0).to_event(1)
    with pytest.raises(ConfigError, match=r"logits: got .*\(3,\).* of batch shape \(2,\)"):
        Mixture(torch.zeros(3), parts)


@pytest.mark.parametrize("logits", [torch.zeros(2), torch.zeros(())])
def test_units_that_see_another_number_of_them_are_refused(logits):
    with pytest.raises(ConfigError, match=r"logits and weight: got .* expected \(\*, Z\) and"):
        AutoregressiveBits(logits, torch.zeros(3, 3))
