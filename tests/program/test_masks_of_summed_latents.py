"""Masks that a discrete latent decides on (an object that is there or not), summed over it.

y ~ Bernoulli(p), z ~ N(0, 1) which counts where y = 1, x ~ N(y z, 1): what the model draws is a
mixture of N(0, 1) and N(0, 2), whether or not z is scored where nothing depends on it.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

import pyro_vae as pv
from pyro_vae.errors import ProgramError
from pyro_vae.program.densities.log_joint import LogJoint
from pyro_vae.program.passes import scoring

P = 0.3
X = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=torch.float64)
EXACT = torch.logaddexp(
    math.log(1 - P) + dist.Normal(0.0, 1.0).log_prob(X),
    math.log(P) + dist.Normal(0.0, 2**0.5).log_prob(X),
)


def inside(x):
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(x.new_tensor(P)))
        z = pyro.sample("z", dist.Normal(0 * y, 1.0).mask(y.bool()))
        pyro.sample("x", dist.Normal(y * z, 1.0), obs=x)


def around(x):
    """The mask is a handler's, and the latent a vector of one number."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(x.new_tensor(P)))
        with pyro.poutine.mask(mask=y.bool()):
            z = pyro.sample("z", dist.Normal((0 * y)[..., None], 1.0).to_event(1))
        pyro.sample("x", dist.Normal(y * z[..., 0], 1.0), obs=x)


def flat(x):
    """By a matrix: one value of y at a time."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(x.new_tensor(P)))
        rows = y.reshape(len(x), 1)
        z = pyro.sample("z", dist.Normal(0 * rows, 1.0).mask(rows.bool()).to_event(1))
        pyro.sample("x", dist.Normal((rows * z.reshape(len(x), 1)).sum(1), 1.0), obs=x)


def program_of(model, drawn):
    def guide(x):
        with pyro.plate("data", len(x)):
            if drawn:
                pyro.sample("y", dist.Bernoulli(x.new_tensor(0.5)))
            z = dist.Normal(x / 2, 0.9)
            pyro.sample("z", z if model is inside else dist.Normal(x[:, None] / 2, 0.9).to_event(1))

    return pv.Program(model, guide)


@pytest.mark.filterwarnings("ignore:.*the model masks it for some data")
@pytest.mark.parametrize("model", [inside, around, flat])
@pytest.mark.parametrize("drawn", [False, True])
def test_a_likelihood_sums_what_the_model_draws(model, drawn):
    """The density of z and x on a fine grid of z adds up to p(x); by weights within |z| < 5."""
    program = program_of(model, drawn)
    with scoring(program):
        density = LogJoint(program, X)
        grid = torch.linspace(-8, 8, 65, dtype=torch.float64)[:, None, None].expand(-1, 4, 1)
        found = density.log_joint(grid)
    sums = found.logsumexp(0) + math.log(16 / 64)
    torch.testing.assert_close(sums, EXACT, rtol=1e-6, atol=1e-6)
    if not drawn:
        torch.manual_seed(1)
        weighed = pv.log_likelihood(program, X, num_particles=2000)
        assert ((weighed.log_prob - EXACT).abs() * weighed.ess.sqrt()).max() < 5.0


def test_the_bound_is_that_of_stock_pyro():
    program = program_of(inside, drawn=False)
    torch.manual_seed(2)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    stock = -elbo.loss(config_enumerate(inside), program.functions[1], X)
    torch.manual_seed(2)
    assert pv.elbo(program, X).sum().item() == pytest.approx(stock, rel=1e-10)


def test_data_that_are_scored_for_some_values_alone_have_no_likelihood():
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(x.new_tensor(P)))
            pyro.sample("x", dist.Normal(0 * y, 1.0).mask(y.bool()), obs=x)

    with pytest.raises(ProgramError, match=r"site 'x': .*mask.*'y'"):
        pv.log_likelihood(pv.Program(model, lambda x: None), X)


def fixed(x, n):
    """What is there is an event of two numbers, and an argument fixes the rows: one particle."""
    with pyro.plate("data", n):
        there = pyro.sample(
            "there", dist.Bernoulli(x.new_tensor([P, 0.5]).expand(n, 2)).to_event(1)
        )
        z = pyro.sample("z", dist.Normal(x.new_zeros(n, 2), 1.0).mask(there.bool()).to_event(1))
        pyro.sample("x", dist.Normal((there * z).sum(1), 1.0), obs=x)


def fixed_guide(x, n):
    with pyro.plate("data", n):
        there = pyro.sample("there", dist.Bernoulli(x.new_full((n, 2), 0.5)).to_event(1))
        loc = (x / 2)[:, None] * there
        pyro.sample("z", dist.Normal(loc, 0.9).mask(there.bool()).to_event(1))


@pytest.mark.filterwarnings("ignore:refine")  # four steps are few
def test_an_event_of_few_values_is_summed_in_a_program_of_one_particle():
    """Variances 1 + the number of what is there: on a grid of both coordinates of z."""
    parts = [
        math.log((P if a else 1 - P) * 0.5) + dist.Normal(0.0, (1 + a + b) ** 0.5).log_prob(X)
        for a in (0, 1)
        for b in (0, 1)
    ]
    exact = torch.stack(parts).logsumexp(0)
    program = pv.Program(fixed, fixed_guide)
    with scoring(program):
        density = LogJoint(program, program.adapt((X, 4)))
        side = torch.linspace(-6, 6, 17, dtype=torch.float64)
        grid = torch.cartesian_prod(side, side)[:, None].expand(-1, 4, -1)
        sums = density.log_joint(grid).logsumexp(0) + 2 * math.log(12 / 16)
    torch.testing.assert_close(sums, exact, rtol=1e-4, atol=1e-4)
    torch.manual_seed(4)
    q = pv.infer(program, (X, 4), how="semi", settings=pv.Local(num_steps=2, num_particles=2))
    assert q.mean.shape == (4, 2) and bool(q.log_weight(2).isfinite().all())
    assert math.isfinite(pv.diagnose(program, (X, 4), probes=2).kl["z"])
    few = pv.HMC(num_draws=4, warmup=2, chains=2, num_leapfrog=2)
    assert pv.refine(program, (X, 4), few, compile=False).mean.shape == (4, 2)


@pytest.mark.parametrize("observes", [True, False])
def test_a_mask_alone_may_move_with_what_is_summed_out(observes):
    """As in stock Pyro; by quadrature. |z| < 5 (false alarm 6e-7)."""
    x, share = torch.linspace(-2, 2, 6, dtype=torch.float64), torch.tensor([0.3, 0.7])

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(share))
            with pyro.poutine.mask(mask=observes or y == 0):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.poutine.mask(mask=(y == 0) if observes else True):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    z = torch.linspace(-12, 12, 2001, dtype=torch.float64)[:, None]
    posterior, prior = dist.Normal(x / 2, 1.0).log_prob(z), dist.Normal(0.0, 1.0).log_prob(z)
    likelihood = dist.Normal(z, 1.0).log_prob(x)
    masked, rest = (likelihood, prior) if observes else (prior, likelihood)
    weight = rest + (0.3 * masked.exp() + 0.7).log() - posterior
    mean = (posterior.exp() * weight).sum(0) * 0.012
    spread = (posterior.exp() * (weight - mean).square()).sum(0) * 0.012
    torch.manual_seed(0)
    found = pv.elbo(pv.Program(model, guide), x, num_particles=1000)
    assert (found.sum() - mean.sum()).abs() < 5 * (spread.sum() / 1000).sqrt()
    assert pv.diagnose(pv.Program(model, guide), x).kl.keys() == {"z"}


def test_a_mask_stands_still_around_a_latent_that_moves_with_what_is_summed_out():
    """Variance 2 about 2 y where z is, 1 about 0 where not; ESS tells the error (|z| < 5, 2e-6)."""
    seen = torch.tensor([True, False, True, True])

    def model(x, seen):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(x.new_tensor(P)))
            with pyro.poutine.mask(mask=seen):
                z = pyro.sample("z", dist.Normal(2 * y, 1.0))
            pyro.sample("x", dist.Normal(z * seen, 1.0), obs=x)

    def guide(x, seen):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=seen):
            pyro.sample("z", dist.Normal(x / 2, 1.5))

    classes = torch.tensor([1 - P, P], dtype=torch.float64).log()[:, None]
    there = classes + dist.Normal(torch.tensor([[0.0], [2.0]]), 2**0.5).log_prob(X)
    exact = torch.where(seen, there.logsumexp(0), dist.Normal(0.0, 1.0).log_prob(X))
    program, data = pv.Program(model, guide), (X, seen)
    torch.manual_seed(0)
    found = pv.log_likelihood(program, data, num_particles=2000)
    assert bool(((found.log_prob - exact).abs() < 5 * found.ess.rsqrt()).all())
    with scoring(program):
        density = LogJoint(program, program.adapt(data))
        grid = torch.linspace(-8, 8, 101, dtype=torch.float64)[:, None, None].expand(-1, 4, -1)
        sums = density.log_joint(grid)
        torch.testing.assert_close(sums.logsumexp(0) + math.log(0.16), exact, rtol=0, atol=1e-5)
