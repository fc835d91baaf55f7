"""The posterior of global latents over all data, against conjugate closed forms."""

import contextlib

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import ProgramError

X = torch.linspace(-1, 1, 60, dtype=torch.float64)
Y = 0.7 * X + 0.3 * torch.randn(60, generator=torch.Generator().manual_seed(0)).double()


class Regression(nn.Module):
    """y ~ N(a + b x, 0.3), a and b ~ N(0, 1): the guide knows neither place nor correlation."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def model(self, x, y):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(weights[0] + weights[1] * x, 0.3), obs=y)

    def guide(self, x, y):
        pyro.sample("weights", dist.Normal(self.loc, 0.1).to_event(1))


def exact():
    design = torch.stack([torch.ones_like(X), X], 1)
    precision = design.T @ design / 0.09 + torch.eye(2, dtype=torch.float64)
    covariance = torch.linalg.inv(precision)
    return covariance @ (design.T @ Y / 0.09), covariance


def test_draws_have_the_exact_posteriors_moments():
    """|z| < 5 in each mean and variance, at the stated sample sizes (false alarm 3e-6)."""
    torch.manual_seed(0)
    found = pv.refine(Regression(), (X, Y), pv.HMC(num_draws=200))
    loc, covariance = exact()
    scale, ess = covariance.diagonal().sqrt(), found.ess["weights"]
    assert found.samples["weights"].shape == (4, 200, 2) and found.mixed
    assert ((found.means["weights"] - loc) / scale * ess.sqrt()).abs().max() < 5
    assert ((found.scales["weights"] / scale - 1) * (2 * ess).sqrt()).abs().max() < 5
    assert found.sample(7)["weights"].shape == (7, 2) and ess.min() > 50


@pytest.mark.parametrize("rows", [7, 60])
def test_the_density_is_that_of_all_data(rows):
    """To rounding, value and gradient, however the data are cut; weights of a handler are off."""
    from pyro_vae.inference.graphs.density_graphs import DensityGraphs
    from pyro_vae.inference.posterior.global_posterior import GlobalDensity
    from pyro_vae.program.passes import Verb

    program = pv.Program.of(Regression())
    u = torch.randn(3, 1, 2, dtype=torch.float64)
    with program.passes((X, Y), Verb("test")) as passes:
        density = GlobalDensity(passes, DensityGraphs("trace"), rows)
        density.trace_at(u)
        value, grad = density.value_and_grad(u)
    point = u.clone().requires_grad_()
    mean = point[..., :1] + point[..., 1:] * X
    expected = dist.Normal(0.0, 1.0).log_prob(point).sum(-1)
    expected = expected + dist.Normal(mean, 0.3).log_prob(Y).sum(-1)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), point)[0])


def test_a_constrained_global_and_a_stream():
    """A Poisson rate under a Gamma(2, 1): Gamma(2 + sum, 1 + N), |z| < 5."""

    def model(x):
        rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        loc = pyro.param("loc", x.new_tensor(1.0), constraint=constraints.positive)
        pyro.sample("rate", dist.LogNormal(loc.log(), 0.5))

    torch.manual_seed(0)
    x = torch.poisson(torch.full((45,), 3.0))
    loader = DataLoader(TensorDataset(x), batch_size=10)
    found = pv.refine(pv.Program(model, guide), loader, pv.HMC(num_draws=150, warmup=150))
    posterior = dist.Gamma(2 + x.sum(), 46.0)
    z = (found.means["rate"] - posterior.mean) / posterior.stddev * found.ess["rate"].sqrt()
    assert z.abs() < 5 and (found.samples["rate"] > 0).all()


def test_short_chains_are_named_and_programs_without_latents_refused():
    with pytest.warns(UserWarning, match="the global latents have R-hat"):
        pv.refine(Regression(), (X, Y), pv.HMC(num_draws=6, warmup=2, num_leapfrog=1))

    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    with pytest.raises(ProgramError, match="refine: the program has no latent"):
        pv.refine(pv.Program(model, lambda x: None), torch.zeros(4))


def test_discrete_globals_are_refused():
    def model(x):
        k = pyro.sample("k", dist.Bernoulli(x.new_tensor(0.5)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        pyro.sample("k", dist.Bernoulli(x.new_tensor(0.5)))

    with pytest.raises(ProgramError, match="refine: site 'k' is discrete"):
        pv.refine(pv.Program(model, guide), torch.zeros(4))


def test_the_density_sums_over_discrete_latents_of_the_guide():
    """A mixture whose guide draws the classes: the centres' density knows no class."""
    from pyro_vae.inference.graphs.density_graphs import DensityGraphs
    from pyro_vae.inference.posterior.global_posterior import GlobalDensity
    from pyro_vae.program.passes import Verb

    weights = torch.tensor([0.2, 0.8], dtype=torch.float64)

    def model(x):
        with pyro.plate("classes", 2):
            centres = pyro.sample("centres", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(centres[k], 0.3), obs=x)

    def guide(x):
        with pyro.plate("classes", 2):
            pyro.sample("centres", dist.Normal(x.new_tensor([-1.0, 1.0]), 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(weights))

    u = torch.randn(3, 1, 2, dtype=torch.float64)
    with pv.Program(model, guide).passes(Y, Verb("test")) as passes:
        density = GlobalDensity(passes, DensityGraphs(False), 60)
        density.trace_at(u)
        value = density(u)
    each = dist.Normal(u[..., None], 0.3).log_prob(Y) + weights.log()[:, None]
    expected = each.logsumexp(-2).sum(-1) + dist.Normal(0.0, 1.0).log_prob(u).sum(-1)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)


def test_a_support_that_moves_with_another_global_is_refused():
    def model(x):
        a = pyro.sample("a", dist.LogNormal(0.0, 1.0))
        b = pyro.sample("b", dist.Uniform(0.0, a))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(b, 3.0), obs=x)

    def guide(x):
        a = pyro.sample("a", dist.Delta(torch.tensor(0.5)))
        pyro.sample("b", dist.Uniform(0.0, a))

    with pytest.raises(ProgramError, match=r"site 'b': the support of Uniform depends"):
        pv.refine(pv.Program(model, guide), torch.ones(2), pv.HMC(num_draws=4, warmup=4))


@pytest.mark.filterwarnings("ignore:.*R-hat")  # of two draws
@pytest.mark.parametrize("is_local", [True, False])
def test_latents_of_two_precisions_keep_their_own(is_local):
    """A network in float32 reads one of them; the other is a double, as NumPy gives it."""
    network = torch.nn.Linear(1, 1)

    def latents(rows):
        wide = torch.zeros((), dtype=torch.float64)
        size = (rows,) if is_local else ()
        pyro.sample("wide", dist.Normal(wide.expand(size), 1.0))
        return pyro.sample("narrow", dist.Normal(torch.zeros(*size, 1), 1.0).to_event(1))

    def model(x):
        pyro.module("network", network)
        z = None if is_local else latents(len(x))
        with pyro.plate("data", len(x)):
            z = latents(len(x)) if is_local else z
            pyro.sample("x", dist.Normal(network(z).squeeze(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)) if is_local else contextlib.nullcontext():
            latents(len(x))

    settings = pv.HMC(num_draws=2, warmup=2, chains=2, num_leapfrog=2)
    refined = pv.refine(pv.Program(model, guide), torch.zeros(3), settings, compile=False)
    kinds = {name: value.dtype for name, value in refined.samples.items()}
    assert kinds == {"wide": torch.float64, "narrow": torch.float32}
