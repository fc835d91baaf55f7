"""Importance sampling from a fitted Gaussian against exact likelihoods.

Statistical checks ask |z| < 5 with fixed seeds (false alarm 6e-7 each); the standard error of a
log estimate is that of its weights, sqrt(1 / ESS - 1 / K), and K is large enough for its bias.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimators import gauss_hermite, normal
from oracles import PPCA, ExactPPCA

import pyro_vae as pv
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.evaluation.fitted_likelihood import _fit, _Moments, fitted_log_likelihood

QUICK = {"num_particles": 2000, "warmup": 60, "num_draws": 60}


def largest_z(result, exact):
    error = (1 / result.ess - 1 / result.samples).clamp(min=1e-12).sqrt()
    return ((result.log_prob - exact).abs() / error).max().item()


class Misled(ExactPPCA):
    """The pPCA program with a guide far off and too narrow: its own estimate is hopeless."""

    def guide(self, x):
        with self._plate(x):
            loc = (x - self.mean) @ self.gain.mT + 3.0
            pyro.sample("z", dist.Normal(loc, 0.1).to_event(1))


@pytest.mark.parametrize("full", [False, True], ids=["diagonal", "full"])
@pytest.mark.parametrize("program", [ExactPPCA, Misled])
def test_ppca(program, full):
    """Exact where the guide is the posterior, and where a guide is far from it."""
    oracle = PPCA.random(6, 3, orthogonal=True)
    x = oracle.sample(24)
    torch.manual_seed(0)
    result = fitted_log_likelihood(program(oracle), x, full=full, **QUICK)
    assert largest_z(result, oracle.log_prob(x)) < 5
    assert result.ess.min() > 200
    assert not bool((result.psis_k > 0.7).any())
    if program is Misled:
        torch.manual_seed(0)
        own = pv.log_likelihood(program(oracle), x, num_particles=2000)
        assert (own.log_prob < oracle.log_prob(x) - 5).all()


def test_a_full_covariance_serves_a_correlated_posterior():
    oracle = PPCA.random(6, 4, seed=2)
    x = oracle.sample(16)
    torch.manual_seed(0)
    found = {
        full: fitted_log_likelihood(ExactPPCA(oracle), x, full=full, **QUICK)
        for full in (False, True)
    }
    assert largest_z(found[True], oracle.log_prob(x)) < 5
    assert found[True].ess.median() > 1.4 * found[False].ess.median()


def test_a_positive_latent_goes_through_its_transform():
    """z ~ LogNormal, x ~ N(z, 0.5²): quadrature over log z."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(torch.zeros_like(x), 0.5))

    x = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    noise, log_mass = gauss_hermite(1, 150)
    densities = normal(x[:, None, None], noise.exp(), math.log(0.5))
    exact = (densities + log_mass).logsumexp(-1)
    torch.manual_seed(0)
    result = fitted_log_likelihood(pv.Program(model, guide), x, **QUICK)
    assert largest_z(result, exact) < 5


def test_data_are_cut_into_passes():
    oracle = PPCA.random(5, 1)
    x = oracle.sample(7)
    torch.manual_seed(0)
    result = fitted_log_likelihood(
        ExactPPCA(oracle), x, batch_size=3, num_particles=500, warmup=20, num_draws=20
    )
    assert len(result.log_prob) == len(result.ess) == len(result.psis_k) == 7
    assert largest_z(result, oracle.log_prob(x)) < 5
    assert result.samples == 500


@pytest.mark.parametrize(
    "settings",
    [{"num_particles": 0}, {"warmup": 0}, {"num_draws": 1}, {"num_leapfrog": 0}, {"widen": -1.0}],
    ids=str,
)
def test_settings_out_of_range(settings):
    oracle = PPCA.random(5, 2)
    with pytest.raises(ConfigError, match=next(iter(settings))):
        fitted_log_likelihood(ExactPPCA(oracle), oracle.sample(2), **settings)


def test_global_latents_are_refused():
    oracle = PPCA.random(5, 2)
    with pytest.raises(ProgramError, match="'w' is global"):
        fitted_log_likelihood(ExactPPCA(oracle, has_global=True), oracle.sample(2))


@pytest.mark.parametrize("scatter", [torch.nan, torch.inf, 1e300])
def test_a_datum_without_a_covariance_stops_no_other(scatter):
    rows = torch.tensor([[9.0, 3.0], [3.0, 9.0]], dtype=torch.float64).repeat(2, 1, 1)
    mean = torch.zeros(2, 2, dtype=torch.float64)
    clean = _fit(_Moments(10, mean, rows), 1.2, full=True).lower[0]
    rows[1, 0, 1] = rows[1, 1, 0] = scatter  # no covariance: larger than its diagonal allows
    found = _fit(_Moments(10, mean, rows), 1.2, full=True).lower
    torch.testing.assert_close(found[0], clean, rtol=0, atol=1e-14)
    torch.testing.assert_close(found[1], 1.2 * torch.eye(2).double(), rtol=0, atol=1e-14)
