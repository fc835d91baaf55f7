"""``pv.diagnose`` on probabilistic PCA, where KL, units and reconstruction are known exactly."""

import math

import pytest
import torch
from oracles import PPCA, normal_kl
from programs import CASES

import pyro_vae as pv
from pyro_vae.errors import ProgramError

ORACLE = PPCA.random(6, 3, orthogonal=True)
X = ORACLE.sample(1500, seed=77)  # two passes, the last one ragged


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(0)
    return pv.models.LinearVAE.from_data(X, 3)


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("rows", [1, 40, 1500])
def test_diagnosis_equals_the_closed_forms(linear, rows, num_particles):
    """Monte-Carlo figures within 5 standard errors; posterior variances exactly."""
    torch.manual_seed(1)
    x = X[:rows]
    found = pv.diagnose(linear, x, num_particles=num_particles)
    with torch.no_grad():
        q = linear.encoder(x).base_dist
        unit_kl = normal_kl(q.loc, q.scale).mean(0)
        # Var over z ~ q of log q - log p per unit: that of (z² - e²)/2, at most this
        spread = ((q.scale**2 - 1).square() / 2 + (q.loc * q.scale).square()).mean(0)
        error = (spread / (rows * num_particles)).sqrt()
    assert found.unit_kl["z"].shape == (3,)
    assert ((found.unit_kl["z"] - unit_kl) / error).abs().max() < 5
    assert found.kl["z"] == pytest.approx(found.unit_kl["z"].sum().item(), rel=1e-9)
    bound = found.reconstruction - found.kl["z"]
    # The guide is the exact posterior: their difference is log p(x), without any noise.
    assert bound == pytest.approx(linear.marginal().log_prob(x).mean().item(), rel=1e-9)
    expected = q.loc.var(0) if rows > 1 else torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(found.variance["z"], expected, rtol=1e-8, atol=1e-8)
    assert found.active_units == {"z": 3 if rows > 1 else 0}


def test_errors_and_the_reconstruction_from_the_prior_are_the_closed_forms(linear):
    """Within 5 standard errors; that of an error is a few percent of it, at 1500 data."""
    torch.manual_seed(1)
    found = pv.diagnose(linear, X)
    with torch.no_grad():
        q, decoder = linear.encoder(X).base_dist, linear.weight
        kl = normal_kl(q.loc, q.scale)
        noise = ((q.scale**2 - 1).square() / 2 + (q.loc * q.scale).square()).sum(1).mean()
        # (r - W z)², z ~ N(0, I): mean r'r + tr WW', variance 2 tr (WW')² + 4 r'WW'r
        rest, gram = X - linear.mean, decoder @ decoder.mT
        square = rest.square().sum(1) + gram.trace()
        spread = 2 * (gram @ gram).trace() + 4 * (rest @ gram * rest).sum(1).mean()
        precision = (-2 * linear.log_scale).exp()
        exact = -3 * (2 * math.pi / precision).log() - precision * square.mean() / 2
        error = precision / 2 * (spread / len(X)).sqrt()
    assert abs(found.prior_reconstruction - exact) < 5 * error
    assert found.prior_reconstruction < found.reconstruction - 20 * error
    expected = ((kl.sum(1).var() + noise) / len(X)).sqrt()
    assert found.kl_stderr["z"] == pytest.approx(expected.item(), rel=0.2)


@pytest.mark.parametrize("dead", [0, 1, 3])
def test_collapsed_units_are_counted_exactly(linear, dead):
    program = pv.models.LinearVAE(6, 3).double()
    program.load_state_dict(linear.state_dict())
    with torch.no_grad():
        program.recognition[:dead] = 0.0
        program.log_diagonal[:dead] = 0.0
    found = pv.diagnose(program, X[:200])
    assert (found.unit_kl["z"][:dead] == 0).all() and (found.unit_kl["z"][dead:] > 0).all()
    assert found.active_units == {"z": 3 - dead}
    assert f"{3 - dead} of 3 units active" in repr(found)


def test_a_dependent_density_has_no_units():
    program = pv.models.LinearVAE.from_data(X, 3, full_covariance=True)
    found = pv.diagnose(program, X[:100])
    assert found.unit_kl == {} and found.kl["z"] > 0 and found.active_units == {"z": 3}


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("name", ["labelled", "sequences", "regularised", "bayesian"])
def test_diagnosis_of_other_programs(name, num_particles):
    """Tiled, masked, with globals: the units' KL add up to the site's."""
    found = pv.diagnose(CASES[name].build(), CASES[name].data(20), num_particles=num_particles)
    assert found.unit_kl["z"].shape == found.variance["z"].shape == (2,)
    assert found.kl["z"] == pytest.approx(found.unit_kl["z"].sum().item(), rel=1e-4)
    assert math.isfinite(found.reconstruction)


def test_a_program_without_prior_is_refused():
    with pytest.raises(ProgramError, match="diagnose: site 'z' has no prior"):
        pv.diagnose(pv.models.Autoencoder(6, 2, (8,)), X[:4])
