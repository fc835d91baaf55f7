"""Rows that depend on each other: one datum where the user says so, and seen where he does not."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import ConfigError, ProgramError

Y = torch.tensor([0.9, -0.2, 1.3, 0.1, -1.2])


def walk(x):
    """A random walk by increments in a plate of time: each step depends on those before it."""
    time = pyro.plate("time", len(x))
    with time:
        step = pyro.sample("step", dist.Normal(torch.zeros(len(x)), 0.8))
    with time:
        pyro.sample("x", dist.Normal(step.cumsum(-1), 0.5), obs=x)


def walk_guide(x):
    loc = pyro.param("walk_loc", torch.zeros(len(x)))
    scale = pyro.param("walk_scale", torch.full((len(x),), 0.6))
    with pyro.plate("time", len(x)):
        pyro.sample("step", dist.Normal(loc, scale))


def walk_law():
    """Return the covariance of walk and increments, and that of what is seen."""
    sums = torch.tril(torch.ones(5, 5))
    cross = 0.64 * sums
    return cross, cross @ sums.T + 0.25 * torch.eye(5)


def test_a_series_in_a_plate_of_time_is_one_datum_where_its_user_says_so():
    """HMC draws from the posterior of all increments together, which a Gaussian's formulas give."""
    program = pv.Program(walk, walk_guide, whole=True)
    cross, covariance = walk_law()
    torch.manual_seed(0)
    told = "not the evidence log p"
    with pytest.warns(UserWarning, match=f"log_likelihood: site 'step': whole=True.*{told}"):
        found = pv.log_likelihood(program, Y, num_global_samples=150)
    sums = torch.tril(torch.ones(5, 5))
    seen = 0.36 * sums @ sums.T + 0.25 * torch.eye(5)  # at increments from the guide
    exact = dist.MultivariateNormal(torch.zeros(5), seen).log_prob(Y)
    assert abs(found.log_prob[0] - exact) < 5 * found.noise[0]
    assert pv.elbo(program, Y).shape == (1,)
    with pytest.raises(ConfigError, match=r"plate: got 'time' beside whole=True"):
        pv.Program(walk, walk_guide, plate="time", whole=True)
    pv.fit(program, Y, epochs=40, lr=0.08, compile=False, progress=False)
    chains = pv.HMC(num_draws=100, warmup=60, chains=2, num_leapfrog=5)
    refined = pv.refine(program, Y, chains, compile=False)
    mean = cross.T @ torch.linalg.solve(covariance, Y)
    law = 0.64 * torch.eye(5) - cross.T @ torch.linalg.solve(covariance, cross)
    draws = refined.samples["step"].reshape(-1, 5)
    # 200 draws count as 40 at least: |z| < 5 for five means, false alarms below 3e-6.
    assert ((draws.mean(0) - mean) / (law.diagonal() / 40).sqrt()).abs().max() < 5
    assert (draws.var(0) / law.diagonal()).min() > 0.3 and draws.var(0).max() < 0.64


def amortised_walk(x):
    with pyro.plate("time", len(x)):
        pyro.sample("step", dist.Normal(0.3 * x, 0.6))


@pytest.mark.parametrize("guide", [walk_guide, amortised_walk])
@pytest.mark.parametrize("rows", [5, 30])
def test_steps_that_depend_on_others_are_told_of_that_way_out(rows, guide):
    """Also under a guide that takes no part of the rows: the latents of the others are moved."""
    program, x = pv.Program(walk, guide), torch.randn(rows)
    with pytest.raises(ProgramError, match=r"read all data as one datum: pv\.Program\(model"):
        pv.refine(program, x)
    with pytest.raises(ProgramError, match=r"depends on the rows beside it.*or use elbo$"):
        pv.log_likelihood(program, x)


OTHERS = {
    "step before": (48, lambda e: e.roll(1)),
    "two before": (9, lambda e: e.roll(2)),
    "season": (48, lambda e: torch.cat([torch.zeros(12), e[:-12]])),
    "one of one": (48, lambda e: torch.where(torch.arange(len(e)) == 2, e[1], 0 * e)),
    "one row": (48, lambda e: e[7].expand(len(e))),
    "even rows": (9, lambda e: e[::2].mean() * (torch.arange(len(e)) % 2 == 0)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_dependence_on_any_other_rows_is_seen_where_none_can_be_cut_away(name):
    rows, of_others = OTHERS[name]

    def model(x):
        time = pyro.plate("data", rows)
        with time:
            e = pyro.sample("e", dist.Normal(torch.zeros(rows), 1.0))
        with time:
            pyro.sample("x", dist.Normal(e + 0.9 * of_others(e), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", rows):
            pyro.sample("e", dist.Normal(pyro.param("all", torch.zeros(rows)), 1.0))

    with pytest.raises(ProgramError, match=r"'x' of a datum depends on the rows beside it"):
        pv.log_likelihood(pv.Program(model, guide), torch.randn(rows))
