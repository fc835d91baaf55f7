"""Models that read what they draw: steps are decoded and drawn one after the other."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import standard_guide
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ProgramError


def taught(x):
    """Each step is 0.9 times the one before, which the model reads off its argument, plus z."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        before = torch.cat([x.new_zeros(len(x), 1), x[:, :-1]], 1)
        pyro.sample("x", dist.Normal(0.9 * before + z[..., None], 0.3).to_event(1), obs=x)


def test_a_decoder_that_reads_the_steps_before_is_run_step_by_step():
    """x is Gaussian with a covariance in closed form; |z| < 5 for 15 entries: 9e-6."""
    torch.manual_seed(0)
    program = pv.Program(taught, standard_guide)
    pv.elbo(program, 30 * torch.randn(100, 5))  # far from what the model draws
    drawn = pv.generate(program, 4000).double()
    step = torch.linalg.inv(torch.eye(5) - torch.diag(torch.full((4,), 0.9), -1)).double()
    exact = step @ (torch.ones(5, 5) + 0.09 * torch.eye(5)).double() @ step.T
    error = ((exact.diagonal()[:, None] * exact.diagonal() + exact**2) / 4000).sqrt()
    assert ((drawn.T @ drawn / 4000 - exact) / error).abs().max() < 5.0
    bounds = pv.bdmc(program, 200, pv.AIS(20, 8, num_leapfrog=2, pilot=40))
    gap = bounds.upper - bounds.lower
    assert gap.mean() > -5 * gap.std() / 200**0.5 and gap.mean() < 0.5
    truth = torch.distributions.MultivariateNormal(torch.zeros(5).double(), exact)
    off = bounds.lower.double() - truth.log_prob(bounds.data.double())
    assert off.mean().abs() < 0.3


def test_codes_are_decoded_without_the_steps_of_the_data():
    """Of ``taught`` E[x_t | z] = 10 (1 - 0.9^t) z, here at z = x_1; |z| < 5 for 5 means: 3e-6."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 1e-3))

    torch.manual_seed(0)
    program, x = pv.Program(taught, guide), 30 * torch.randn(6, 5)
    gains = 10 * (1 - 0.9 ** torch.arange(1.0, 6))
    decoded = x[:, :1] * gains
    assert torch.allclose(pv.reconstruct(program, x), decoded, 1e-4, 1e-4)
    line = pv.interpolate(program, x[:3], x[3:], steps=3)
    exact = torch.stack([decoded[:3], (decoded[:3] + decoded[3:]) / 2, decoded[3:]], 1)
    assert torch.allclose(line, exact, 1e-4, 1e-4)
    drawn = pv.reconstruct(program, x[:1].expand(1000, 5), mean=False)
    noise = 0.3 * (0.81 ** torch.arange(5.0)).cumsum(0).sqrt()
    assert (((drawn - decoded[0]).mean(0)) / (noise + 1e-3 * gains) * 1000**0.5).abs().max() < 5.0


@pytest.mark.parametrize("each", [True, False])
def test_names_are_decoded_greedily_from_those_before(each):
    """The next name follows the one before with 0.6; a draw of 8 rows so misses 1e-14."""

    def model(x):
        before = torch.cat([x.new_zeros(len(x), 1), x[:, :-1]], 1)
        probs = 0.1 + 0.5 * nn.functional.one_hot((before + 1) % 5, 5)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(probs).to_event(1), obs=x)

    torch.manual_seed(0)
    x = torch.randint(5, (8, 8))
    program = pv.Program(model, lambda x: None)
    pv.elbo(program, x)
    found = pv.reconstruct(program, x) if each else pv.generate(program, 8, mean=True)
    assert torch.equal(found, (torch.arange(1, 9) % 5).expand(8, 8))


@pytest.mark.parametrize(
    ("law", "match"),
    [(lambda x: x.sum(-1, True) * torch.tensor([0.1, 0.4, 0.7]), "'x': its"), (None, "'x': obs")],
)
def test_decoding_that_needs_the_data_reads_them_and_says_so(law, match):
    """A total that what is decoded does not have; a value that is computed from the data."""

    def model(x):
        with pyro.plate("data", len(x)):
            if law:
                pyro.sample("x", dist.Poisson(law(x)).to_event(1), obs=x)
            else:
                total = x.sum(-1, True).expand(-1, 3)
                pyro.sample("x", dist.Normal(total, 1).to_event(1), obs=x / 2)

    program, x = pv.Program(model, lambda x: None), torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    with pytest.warns(UserWarning, match=f"data given are read where.*{match}"):
        found = pv.reconstruct(program, x)
    assert torch.allclose(found, law(x) if law else x.sum(-1, True).expand(2, 3))


@pytest.mark.parametrize("seed", range(3))
def test_counts_that_read_their_total_are_drawn_beside_that_of_the_data(seed):
    """A total of draws has a total of its own, and so on: they came to rest at 0, or anywhere.

    Also where no gradient shows what is read.
    """

    def model(x):
        with pyro.plate("data", len(x)):
            law = dist.Poisson(x.detach().sum(-1, True) * torch.tensor([0.2, 0.3, 0.5]))
            pyro.sample("x", law.to_event(1), obs=x)

    torch.manual_seed(seed)
    program, x = pv.Program(model, lambda x: None), torch.tensor([[4.0, 6.0, 10.0]])
    with pytest.warns(UserWarning, match="data given are read where"):
        found = pv.reconstruct(program, x, mean=False).sum(-1)
    assert ((found - x.sum(-1)).abs() < 6 * x.sum(-1).sqrt()).all()  # 1e-6 of a Poisson of 20
    with pytest.raises(ProgramError, match="'x': its distribution depends on its own value"):
        pv.generate(program, 2)


STEPS = 9


def by_sites(x):
    """Each step is the one before plus 1 plus noise of a thousandth: a site for each."""
    before = x.new_zeros(len(x))
    with pyro.plate("data", len(x)):
        for t in range(STEPS):
            pyro.sample(f"x{t}", dist.Normal(before + 1, 1e-3), obs=x[:, t])
            before = x[:, t]


def by_plate(x):
    """The same with a plate of steps."""
    before = torch.cat([x.new_zeros(len(x), 1), x[:, :-1]], 1)
    with pyro.plate("data", len(x), dim=-2), pyro.plate("steps", STEPS):
        pyro.sample("x", dist.Normal(before + 1, 1e-3), obs=x)


def by_counts(x):
    """Counts about a hundred times 1, 2, ...: their sampler takes as many numbers as it needs."""
    before = torch.cat([x.new_zeros(len(x), 1), x[:, :-1]], 1)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(before + 100).to_event(1), obs=x)


@pytest.mark.parametrize(("model", "step"), [(by_sites, 1), (by_plate, 1), (by_counts, 100)])
def test_steps_are_drawn_one_by_one_however_the_model_has_them(model, step):
    program = pv.Program(model, lambda x: None)
    pv.elbo(program, 50 * torch.ones(4, STEPS))
    torch.manual_seed(0)
    drawn = pv.generate(program, 12)
    drawn = torch.stack(list(drawn.values()), 1) if isinstance(drawn, dict) else drawn
    # The mean of 12 last counts has a standard deviation below 40 (4e3 / 900 a step); |z| < 5.
    expected = step * torch.arange(1.0, STEPS + 1)
    assert (drawn.mean(0) / expected - 1).abs().max() < (0.22 if step > 1 else 0.01)


@pytest.mark.parametrize("site", ["x", "y"])
def test_steps_of_a_value_that_the_model_computes_are_not_told_those_of_the_data(site):
    """Under its argument's name and under another; the last column of a table may be computed."""

    def model(x):
        y = x / 10
        before = torch.cat([y.new_zeros(len(y), 1), y[:, :-1]], 1)
        with pyro.plate("data", len(x)):
            pyro.sample(site, dist.Normal(0.5 * before, 1.0).to_event(1), obs=y)

    program, x = pv.Program(model, lambda x: None), torch.full((6, 4), 1000.0)
    pv.elbo(program, x)
    with pytest.raises(ProgramError, match=rf"'{site}': observes a value.*depends on that argu"):
        pv.generate(program, 6, given=x)

    def regression(x):
        with pyro.plate("data", len(x)):
            pyro.sample(site, dist.Normal(2 * x[:, 0], 0.1), obs=x[:, -1] * 1.0)

    program = pv.Program(regression, lambda x: None)
    pv.elbo(program, x)
    assert pv.generate(program, 6, given=x).mean() > 1990


def test_a_model_whose_draws_never_rest_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(1 - 2 * x.flip(1), 1.0).to_event(1), obs=x)

    program = pv.Program(model, lambda x: None)
    pv.elbo(program, torch.randn(4, 3))
    with pytest.raises(ProgramError, match=r"'x': its distribution depends on its own value"):
        pv.generate(program, 5)


class ByCalls(nn.Module):
    """Each step is the one before plus what this call of the model is told."""

    def __init__(self, observed):
        super().__init__()
        self.observed, self.calls, self.from_iterator = observed, 0, itertools.count(1)

    def model(self, x):
        self.calls += 1
        told = self.calls + 1000 * next(self.from_iterator)
        before = torch.cat([x.new_zeros(len(x), 1), x[:, :-1]], 1)
        loc = before + told if self.observed == "argument" else 0 * x + told
        with pyro.plate("data", len(x)):
            y = x if self.observed == "argument" else x / 10
            pyro.sample("x", dist.Normal(loc, 1e-3).to_event(1), obs=y)

    def guide(self, x):
        pass


@pytest.mark.parametrize("observed", ["argument", "computed value"])
def test_a_model_that_counts_its_calls_is_drawn_from_at_one_count(observed):
    """All steps are those of one call, and the next draw is one of a later call."""
    program = pv.Program((counting := ByCalls(observed)).model, counting.guide)
    pv.elbo(program, torch.zeros(4, STEPS))
    first, second = pv.generate(program, 4), pv.generate(program, 4)
    steps = torch.arange(1.0, STEPS + 1) if observed == "argument" else torch.ones(STEPS)
    for drawn in (first, second):
        told = drawn[:, :1].round()
        assert ((drawn / steps - told).abs() < 0.02).all() and (told == told[0]).all()
        assert told[0] % 1000 == told[0] // 1000  # count and iterator are of the same call
    assert second[0, 0] > first[0, 0]
