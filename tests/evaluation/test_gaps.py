"""``pv.gaps`` on a linear VAE, where each bound and each gap is a closed form.

Statistical checks hold ``|z| < 5`` on a fixed seed: a correct estimate fails one with probability
5.7e-7.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import common_mean
from torch.distributions import kl_divergence

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.evaluation import gaps as module
from pyro_vae.evaluation.gaps import gaps
from pyro_vae.inference.posterior.local_fits import Local
from pyro_vae.models import LinearVAE
from pyro_vae.plots.inference_gaps import gaps as draw

ANNEALED = pv.AIS(num_temperatures=3, chains=4, num_leapfrog=1, pilot=60)


def turned(n=40):
    """Return data and a linear VAE whose posterior is correlated; its guide is the best diagonal.

    W is the maximum-likelihood one, turned: p(x) stays the same.
    """
    torch.manual_seed(2)
    x = torch.randn(n, 3, dtype=torch.float64) @ torch.randn(3, 6, dtype=torch.float64)
    x = x + 0.6 * torch.randn(n, 6, dtype=torch.float64)
    linear = LinearVAE.from_data(x, 3)
    with torch.no_grad():
        noise = torch.randn(3, 3, dtype=torch.float64)
        linear.weight.copy_(linear.weight @ torch.linalg.qr(noise).Q)
    return x, linear.match_posterior()


def family_gap(linear):
    precision = linear._precision().detach()
    return 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()


def encoder_gap(linear, x):
    """Return KL(q(z | x) || p(z | x)) of the guide, closed form."""
    q = linear.encoder(x).base_dist
    joint = dist.MultivariateNormal(q.loc, scale_tril=torch.diag_embed(q.scale))
    return kl_divergence(joint, linear.posterior(x)).detach()


def z_score(values, mean, noise):
    """Return how far the mean of values is from a known one, in its own noise."""
    error = noise.square().sum().sqrt() / len(values)
    return ((values.mean() - mean) / error).item()


def test_the_best_guide_pays_for_its_family_only():
    x, linear = turned()
    exact = linear.marginal().log_prob(x).detach()
    measured = gaps(linear, x, annealed=ANNEALED, num_particles=4000)
    assert abs(z_score(measured.elbo, (exact - family_gap(linear)).mean(), measured.noise)) < 5
    # A climb of its own can only lose what its optimizer leaves: below 1e-3 nats.
    miss = z_score(measured.local_elbo + 1e-3, (exact - family_gap(linear)).mean(), measured.noise)
    assert miss > -5
    noise = (measured.noise.square() + measured.local_noise.square()).sqrt()
    assert abs(measured.mean["amortisation"]) < 1e-3 + 5 * (noise.norm() / len(x)).item()
    assert measured.mean["approximation"] == pytest.approx(family_gap(linear), abs=0.01)
    error = measured.log_prob_noise
    assert abs(z_score(measured.log_prob, exact.mean() - 5e-4, error)) < 5  # Jensen's share


def test_a_spoiled_guide_pays_for_its_network_too():
    x, linear = turned()
    with torch.no_grad():
        linear.recognition.mul_(0.6)
        linear.log_diagonal.add_(0.4)
    total = encoder_gap(linear, x)
    measured = gaps(linear, x, annealed=ANNEALED, num_particles=4000)
    exact = linear.marginal().log_prob(x).detach()
    assert abs(z_score(exact - measured.elbo, total.mean(), measured.noise)) < 5
    assert measured.mean["amortisation"] == pytest.approx(
        total.mean().item() - family_gap(linear), abs=0.02
    )
    # Datum by datum: the network's share is that of the closed form.
    assert np.corrcoef(measured.amortisation, total)[0, 1] > 0.99


def test_a_family_that_holds_the_posterior_has_no_gap_left():
    """Datum by datum, exactly; which of three estimates is largest is their noise's to say."""
    x, linear = turned(n=20)
    exact = linear.marginal().log_prob(x).detach()
    best = Local(full_covariance=True)
    measured = gaps(linear, x, local=best, annealed=ANNEALED, num_particles=500)
    torch.testing.assert_close(measured.local_elbo, exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(measured.estimators[module.LOCAL], exact, rtol=0, atol=1e-6)
    assert measured.log_prob.mean() >= exact.mean() - 1e-6  # the best of them is no worse
    error = (measured.log_prob_noise.norm() / len(x)).item()
    assert measured.mean["approximation"] < 1e-6 + 5 * error
    missed = (measured.noise.norm() / len(x)).item()
    assert abs(measured.mean["amortisation"] - family_gap(linear)) < 1e-6 + 5 * missed


def test_the_parts_add_up_and_the_table_says_so(monkeypatch):
    monkeypatch.setattr(module, "_DATA_PER_PASS", 4)  # several passes
    x, linear = turned(n=10)
    measured = gaps(
        linear, x, annealed=ANNEALED, num_particles=50, local=Local(num_steps=50, patience=None)
    )
    torch.testing.assert_close(measured.approximation + measured.amortisation, measured.total)
    torch.testing.assert_close(measured.log_prob, measured.estimators[measured.estimator])
    assert measured.log_prob.mean() == max(v.mean() for v in measured.estimators.values())
    assert measured.steps.tolist() == [50] * 10
    lines = measured.table().splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        *("log p(x)", "ELBO, best local q", "ELBO, guide"),
        *("approximation gap", "amortisation gap", "total gap"),
    ]
    assert f"{measured.mean['total']:.3f} ± {measured.stderr['total']:.3f}" in lines[-1]
    assert measured.stderr["total"] == pytest.approx(measured.total.std().item() / math.sqrt(10))
    assert f"total={measured.mean['total']:.3f} nats, 10 data" in repr(measured)


def test_data_without_a_finite_bound_are_left_out_and_named():
    numbers = {name: torch.arange(4.0) for name in ("log_prob", "local_elbo", "elbo")}
    numbers["elbo"] = numbers["elbo"] - 1
    numbers["log_prob"] = torch.tensor([0.0, math.nan, 2.0, 3.0])
    noise = {name: torch.zeros(4) for name in ("log_prob_noise", "local_noise", "noise")}
    extra = {"estimator": "ais", "estimators": {}, "steps": torch.zeros(4)}
    found = module.Gaps(**numbers, **noise, **extra)
    assert found.mean["total"] == 1.0 and found.stderr["total"] == 0.0
    assert found.mean["elbo"] == pytest.approx(2 / 3)
    assert found.table().splitlines()[-1] == "1 of 4 data left out, not finite: rows 1"


def test_all_bounds_are_conditional_on_one_draw_of_the_globals():
    """The guide is exact but for its spread: its gap is a known KL, whatever w is (|z| < 5)."""

    def guide(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + w) / 2, 0.9))

    torch.manual_seed(4)
    x = torch.randn(12, dtype=torch.float64)
    found = gaps(pv.Program(common_mean, guide), x, local=Local(num_steps=200), annealed=ANNEALED)
    exact = kl_divergence(dist.Normal(0.0, 0.9), dist.Normal(0.0, 0.5**0.5)).item()
    noise = (found.noise**2 + found.log_prob_noise**2).sqrt()
    assert abs(z_score(found.total, exact, noise)) < 5.0
    assert found.mean["approximation"] == pytest.approx(0.0, abs=0.02)


def test_what_has_no_gap_per_datum_is_refused():
    x, linear = turned()
    with pytest.raises(ConfigError, match="at least 2"):
        gaps(linear, x[:4], num_particles=1)


class Measured:
    """What the figure reads."""

    def __init__(self, *pairs):
        parts = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2)
        self.approximation, self.amortisation = parts.unbind(1)


def test_the_figure_shows_means_and_data():
    figure = draw({"a": Measured((1, 2), (3, 4)), "b": Measured((0.5, 0.5))})
    bars, dots = figure.axes
    assert [text.get_text() for text in bars.texts] == [
        "2.00 + 3.00 = 5.00",
        "0.50 + 0.50 = 1.00",
    ]
    widths = [bar.get_width() for bar in bars.patches if bar.get_width()]
    assert widths == [2, 3, 0.5, 0.5]
    np.testing.assert_array_equal(dots.collections[0].get_offsets(), [(1, 2), (3, 4)])
    assert draw(Measured((1, 2))).axes[1].get_legend() is None


def test_a_figure_of_nothing_is_refused():
    with pytest.raises(DataError, match="got no gaps"):
        draw({})
    with pytest.raises(DataError, match="expected finite gaps"):
        draw(Measured((1, math.nan)))


class Known(torch.nn.Module):
    """x ~ N(z, 1), z ~ N(0, 1): the posterior is N(x / 2, 1/2); the guide is N(x / 2, s²)."""

    def __init__(self, scale):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x * 0, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, self.scale.expand_as(x)).to_event(1))

    def noise(self, samples):
        """Return the errors of log p(x) to first order, and of the ELBO, from K draws."""
        s, v = self.scale.item(), 0.5
        curvature = 2 / v - 1 / s**2
        second_moment = s / (v * curvature**0.5) if curvature > 0 else math.inf  # of w / p(x)
        of_log_weight = abs(1 - s**2 / v) / math.sqrt(2)
        return math.sqrt((second_moment - 1) / samples), of_log_weight / math.sqrt(samples)


def test_exact_weights_have_no_noise():
    x = torch.linspace(-1, 2, 12, dtype=torch.float64)[:, None]
    measured = gaps(Known(math.sqrt(0.5)), x, annealed=ANNEALED, num_particles=100)
    for noise in (measured.log_prob_noise, measured.noise):
        assert noise.max() < 1e-6


def test_the_noise_is_that_of_the_estimate_that_was_chosen():
    """A climb of its own finds the posterior, and has no noise; that of a narrow guide is known.

    The spread of 2,000 draws is known to 2 % per datum, and to 0.4 % over 40 data.
    """
    x, samples = torch.linspace(-1, 2, 40, dtype=torch.float64)[:, None], 2000
    of_elbo = Known(0.1).noise(samples)[1]
    torch.manual_seed(0)
    measured = gaps(Known(0.1), x, annealed=ANNEALED, num_particles=samples)
    assert measured.estimator == module.LOCAL  # few draws of the guide see the posterior's tails
    assert measured.log_prob_noise.max() < 1e-3
    assert measured.local_noise.max() < 1e-3
    assert measured.noise.mean().item() == pytest.approx(of_elbo, rel=0.03)


def test_the_noise_of_importance_weights_is_the_closed_form():
    x, samples = torch.linspace(-1, 2, 40, dtype=torch.float64)[:, None], 2000
    of_log_prob, _ = Known(1.1).noise(samples)
    torch.manual_seed(0)
    still = Local(1, lr=1e-9)  # the local q is the guide
    measured = gaps(Known(1.1), x, annealed=ANNEALED, num_particles=samples, local=still)
    assert measured.estimator in (module.LOCAL, module.GUIDE)
    assert measured.log_prob_noise.mean().item() == pytest.approx(of_log_prob, rel=0.05)


def test_data_whose_first_dimension_is_time_are_turned_once():
    """The guide is the posterior: its ELBO is log p(x), whatever it draws."""
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    def model(x):
        with pyro.plate("data", x.shape[1]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("time", 3):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[1]):
            pyro.sample("z", dist.Normal(x.sum(0) / 4, 0.5))

    short = Local(num_steps=2, num_particles=2)
    program = pv.Program(model, guide, dim=1)
    measured = gaps(program, x, local=short, annealed=ANNEALED, num_particles=2)
    covariance = torch.eye(3, dtype=torch.float64) + 1
    exact = dist.MultivariateNormal(x.new_zeros(3), covariance).log_prob(x.T)
    torch.testing.assert_close(measured.elbo, exact, rtol=1e-10, atol=1e-10)
