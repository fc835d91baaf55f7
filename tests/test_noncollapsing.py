"""Cures by construction: KL floors hold exactly, the autoregressive likelihood is normalised."""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from oracles import normal_kl
from torch import nn

import pyro_vae as pv
from pyro_vae.conditionals import (
    AR1,
    AR1Prior,
    BatchNormGaussian,
    DeltaGaussian,
    FixedScaleGaussian,
)
from pyro_vae.errors import ConfigError

POSTERIORS = [
    partial(FixedScaleGaussian, scale=0.6),
    partial(DeltaGaussian, delta=0.3),
    partial(BatchNormGaussian, gain=0.7),
]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def unit_kl(q):
    return normal_kl(q.base_dist.loc, q.base_dist.scale)


@pytest.mark.parametrize("scale", [0.1, 0.5, 0.9, 1.5])
def test_a_fixed_scale_has_the_floor_of_the_closed_form(scale):
    q = FixedScaleGaussian(nn.Identity(), 3, scale=scale)
    exact = 0.5 * (scale**2 - 1 - math.log(scale**2))
    assert q.floor == pytest.approx(exact, rel=1e-12)
    at_zero = unit_kl(q(torch.zeros(1, 3)))
    torch.testing.assert_close(at_zero, torch.full_like(at_zero, exact), rtol=1e-12, atol=0)
    assert (unit_kl(q(torch.randn(50, 3))) >= exact).all()


@pytest.mark.parametrize("delta", [1e-4, 0.1, 1.0, 5.0])
def test_a_committed_rate_is_reached_and_never_undercut(delta):
    q = DeltaGaussian(nn.Identity(), 2, delta=delta)
    extremes = torch.tensor([-1e3, -5.0, 0.0, 5.0, 1e3])
    rows = torch.cartesian_prod(torch.tensor([0.0, 2.0]), extremes)
    kl = unit_kl(q(rows.repeat_interleave(2, dim=1)))
    assert (kl >= delta * (1 - 1e-9)).all() and torch.isfinite(kl).all()
    widest = unit_kl(q(torch.tensor([[0.0, 0.0, 1e3, 1e3]])))
    torch.testing.assert_close(widest, torch.full_like(widest, delta), rtol=1e-9, atol=0)


@pytest.mark.parametrize("gain", [0.3, 1.0])
def test_a_batch_normalised_mean_has_its_floor_over_the_batch(gain):
    q = BatchNormGaussian(nn.Identity(), 3, gain=gain)
    with torch.no_grad():
        q.bias.copy_(torch.tensor([0.0, 0.5, -1.0]))
    outputs = torch.cat([3 + 2 * torch.randn(40, 3), torch.zeros(40, 3)], 1)
    drawn = q(outputs).base_dist
    # Scale 1 is the least: then the mean KL is the floor itself, up to batch norm's 1e-5.
    floor = q.floor + q.bias.detach().square() / 2
    kl = normal_kl(drawn.loc, drawn.scale).mean(0)
    torch.testing.assert_close(kl, floor, rtol=1e-5, atol=0)
    spread = drawn.loc.detach().std(0, correction=0)
    torch.testing.assert_close(spread, torch.full((3,), gain), rtol=1e-5, atol=0)
    particles = q(outputs.expand(4, 40, 6))
    torch.testing.assert_close(particles.mean[2], drawn.loc, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("alpha", "steps"), [(0.8, 7), (0.5, 2), (-0.9, 4), (0.0, 3)])
def test_the_autoregressive_prior_is_the_dense_gaussian_with_its_floor(alpha, steps):
    prior = AR1(torch.tensor(alpha), steps, 1)
    gaps = (torch.arange(steps)[:, None] - torch.arange(steps)).abs()
    covariance = torch.tensor(alpha) ** gaps
    dense = dist.MultivariateNormal(torch.zeros(steps), covariance)
    z = torch.randn(9, steps)
    expected = dense.log_prob(z)
    torch.testing.assert_close(prior.log_prob(z[..., None]), expected, rtol=1e-10, atol=1e-12)
    # The best factorised posterior has the diagonal of the precision.
    precision = torch.linalg.inv(covariance)
    least = 0.5 * (precision.diagonal().log().sum() + torch.logdet(covariance))
    assert AR1.floor(alpha, steps) == pytest.approx(least.item(), abs=1e-12)
    if (alpha, steps) == (0.8, 7):
        assert AR1.floor(0.8, 7) == pytest.approx(1.74757, abs=5e-6)
    drawn = prior.rsample((4000,))[..., 0]
    error = (torch.cov(drawn.T, correction=0) - covariance) * math.sqrt(4000 / 2)
    assert error.abs().max() < 5  # each entry's standard error is at most sqrt(2 / N)


def test_a_code_that_is_a_sequence_needs_a_multiple_of_its_steps():
    vae = pv.models.VAE(6, 8, (8,), prior=partial(AR1Prior, steps=4, correlation=0.9))
    assert vae.prior().sample((3,)).shape == (3, 8)
    with pytest.raises(ConfigError, match="no multiple"):
        AR1Prior((6,), 7, steps=4)
