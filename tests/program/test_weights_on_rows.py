"""Weights that a program puts on its terms: in the ELBO, and in no likelihood and no posterior.

z ~ N(0, 1), x | z ~ N(z, 1), so that p(z | x) = N(x / 2, 1 / 2) and p(x) = N(x; 0, 2).
"""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import DataError

torch.manual_seed(21)
X = torch.randn(8, dtype=torch.float64) * 2**0.5
EXACT = dist.Normal(torch.zeros(8, dtype=torch.float64), 2**0.5).log_prob(X)
SHORT = {
    "warmup": 60,
    "num_draws": 60,
    "num_leapfrog": 2,
}  # of the chains that a proposal is fitted to
ROWS = torch.linspace(0.2, 3.0, 8, dtype=torch.float64)


def weighted(weight=1.0, kl=1.0, scale=0.5**0.5):
    """A weight on both terms of each datum, and another on the KL term."""

    def of(x):
        return weight[: len(x)] if isinstance(weight, torch.Tensor) else weight

    def model(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=of(x)):
            with poutine.scale(scale=kl):
                z = pyro.sample("z", dist.Normal(x * 0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=of(x)), poutine.scale(scale=kl):
            pyro.sample("z", dist.Normal(x / 2, scale))

    return pv.Program(model, guide)


CASES = {
    "normalising factor": {"weight": 1e-3},
    "rows": {"weight": ROWS},
    "KL annealing": {"kl": 0.1},
    "both": {"weight": ROWS, "kl": 3.0},
}


@pytest.mark.parametrize("name", CASES)
def test_likelihoods_are_those_of_the_unweighted_model(name):
    program = weighted(**CASES[name])
    torch.manual_seed(1)
    torch.testing.assert_close(pv.log_likelihood(program, X, num_particles=40).log_prob, EXACT)
    torch.testing.assert_close(pv.ais(program, X, pv.AIS(5, 3, pilot=10)).log_prob, EXACT)
    torch.testing.assert_close(pv.infer(program, X).log_weight(3), EXACT.expand(3, 8))
    found = pv.fitted_log_likelihood(program, X, num_particles=4000, **SHORT)
    assert (found.log_prob - EXACT).abs().max() < 5 / found.ess.min().sqrt()
    sandwich = pv.bdmc(program, 8, pv.AIS(5, 3, pilot=10), given=X)
    simulated = dist.Normal(0.0, 2**0.5).log_prob(sandwich.data)
    torch.testing.assert_close(sandwich.lower, simulated)
    torch.testing.assert_close(sandwich.upper, simulated)


@pytest.mark.parametrize("name", CASES)
def test_posteriors_are_those_of_the_unweighted_model(name):
    program = weighted(**CASES[name], scale=1.5)
    torch.manual_seed(2)
    drawn = pv.refine(program, X, pv.HMC(num_draws=200, warmup=100, chains=8))
    error = drawn.scale / (2 * drawn.ess).sqrt()
    assert ((drawn.scale - 0.5**0.5) / error).abs().max() < 5.0
    local = pv.infer(program, X, how="local")
    torch.testing.assert_close(local.mean, X / 2, rtol=0, atol=1e-2)
    torch.testing.assert_close(local.log_weight(50).mean(0), EXACT, rtol=0, atol=1e-2)


@pytest.mark.parametrize("num_particles", [1, 4])
def test_the_elbo_keeps_the_weights(num_particles):
    program = weighted(weight=ROWS, scale=0.5**0.5)
    torch.testing.assert_close(pv.elbo(program, X, num_particles=num_particles), ROWS * EXACT)
    stock = -Trace_ELBO().loss(*program.functions, X)
    assert stock == pytest.approx((ROWS * EXACT).sum().item())
    one = pv.elbo(weighted(kl=0.25), X, num_particles=40_000)
    kl = torch.distributions.kl_divergence(dist.Normal(X / 2, 0.5**0.5), dist.Normal(X * 0, 1.0))
    torch.testing.assert_close(one, EXACT + 0.75 * kl, rtol=0, atol=5 * 1.5 / 200)


@pytest.mark.parametrize("num_particles", [1, 4])
def test_weights_of_the_length_of_the_data_held_by_a_closure(num_particles):
    """They take no part of the rows, with which a program is asked whether it takes particles."""

    def model(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=ROWS):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=ROWS):
            pyro.sample("z", dist.Normal(0.3 * x, 0.5))

    torch.manual_seed(3)
    ours = pv.elbo(pv.Program(model, guide), X, num_particles=num_particles).sum()
    torch.manual_seed(3)
    stock = Trace_ELBO(num_particles, vectorize_particles=True, max_plate_nesting=1)
    assert ours.item() == pytest.approx(-stock.loss(model, guide, X), rel=1e-6)
    torch.manual_seed(3)
    renyi = RenyiELBO(0.0, num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    bound = renyi.loss(model, guide, X)
    torch.manual_seed(3)
    assert pv.IWAE(4).loss(model, guide, X) == pytest.approx(bound, rel=1e-6)


class Weighted(nn.Module):
    """A parameter in the likelihood, weights on the rows, a guide left behind."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

    def model(self, x, w):
        with pyro.plate("data", len(x)), poutine.scale(scale=w):
            z = pyro.sample("z", dist.Normal(x * 0, 1.0))
            pyro.sample("x", dist.Normal(z + self.mean, 1.0), obs=x)

    def guide(self, x, w):
        with pyro.plate("data", len(x)), poutine.scale(scale=w):
            pyro.sample("z", dist.Normal(x * 0 + 0.5, 1.2))


def test_hmc_refined_weighs_the_gradient_and_not_the_chains():
    """The gradient at the posterior's draws is w (x - mean) / 2 (|z| < 5)."""
    case = Weighted()
    program = pv.Program.of(case)
    batch = (X[:4], torch.tensor([0.01, 0.5, 2.0, 6.0], dtype=torch.float64))
    program.read(batch)
    objective = pv.HMCRefined(60, num_particles=500, step_size=0.5, target_accept=None)
    torch.manual_seed(4)
    with program.running():
        (update,) = objective.updates(program)
        (grad,) = torch.autograd.grad(update.loss(program.joint(batch)), [case.mean])
    expected = -(batch[1] * X[:4] / 2).mean()
    error = (batch[1].square().sum() / 2 / 500).sqrt() / 4
    assert ((grad - expected) / error).abs() < 5.0


def grey(validate_args):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pixels = dist.Bernoulli(
                logits=z[..., None].expand(x.shape), validate_args=validate_args
            )
            pyro.sample("x", pixels.to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sum(-1), 0.3))

    return pv.Program(model, guide)


def test_values_that_the_author_does_not_validate_are_scored_with_one_warning():
    x, program = torch.rand(6, 3, dtype=torch.float64), grey(False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.manual_seed(5)
        found = pv.elbo(program, x).sum().item()
        for verb in (pv.log_likelihood, pv.elbo):
            verb(program, x[:4])
    assert [str(each.message).split(":")[0] for each in caught] == ["site 'x'"]
    torch.manual_seed(5)
    assert found == pytest.approx(-Trace_ELBO().loss(*program.functions, x), rel=1e-6)
    with pytest.raises(DataError, match="site 'x'"):
        pv.elbo(grey(None), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.elbo(grey(False), x.round())  # inside the support: nothing to say
