"""A refused call teaches a program nothing: the next one finds it as if it were the first."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import DataError, ProgramError

X = torch.arange(12.0) % 5


def model(x):
    loc = pyro.param("prior", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Poisson(z.exp()), obs=x)


def of_places(x):
    """Factors that know no numbers: those of one row would be broadcast to all others."""
    with pyro.plate("data", len(x)):
        loc = pyro.param("loc", lambda: x.log1p())
        pyro.sample("z", dist.Normal(loc, 1.0))


def by_number(x):
    loc = pyro.param("loc", torch.linspace(0, 1, 12))
    with pyro.plate("data", len(x)) as rows:
        pyro.sample("z", dist.Normal(loc[rows], 1.0))


def by_slope(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.1)) * x, (1 + x).sqrt()))


def wrong(row, value=-1.0):
    return X.index_fill(0, torch.tensor([row]), value)


def answer(program):
    torch.manual_seed(0)
    return pv.elbo(program, X)


REFUSED = {
    "a row behind the first": lambda program: program.check(wrong(5)),
    "a later batch": lambda program: pv.elbo(program, iter([X[:6], wrong(11)[6:]])),
    "one look": lambda program: program.read(wrong(2)),
    "a fit": lambda program: pv.fit(program, wrong(0), epochs=1, batch_size=4),
}


@pytest.mark.parametrize(
    ("guide", "refused"),
    [
        (of_places, "a row behind the first"),
        (of_places, "a later batch"),
        (by_number, "a fit"),
        (AutoNormal, "a later batch"),
        (AutoNormal, "one look"),
    ],
)
def test_the_next_answer_is_a_new_programs(guide, refused):
    made = [guide(model) if guide is AutoNormal else guide for _ in range(2)]
    new, program = (pv.Program(model, each) for each in made)
    with pytest.raises(DataError):
        REFUSED[refused](program)
    assert not list(program.parameters())
    assert torch.equal(answer(program), answer(new))


@pytest.mark.parametrize("guide", [of_places, by_number])
def test_factors_of_data_are_not_trained_as_those_of_places_in_a_batch(guide):
    """What is known of the guide after a refused call must not stand in for a look at it."""
    program = pv.Program(model, guide)
    with pytest.raises(DataError):
        program.check(wrong(5)) if guide is of_places else pv.elbo(program, wrong(5))
    loader = DataLoader(TensorDataset(X), batch_size=4)
    with pytest.raises(ProgramError, match="one factor per datum"):
        pv.fit(program, loader, epochs=1, compile=False)


def test_rows_that_a_refused_call_failed_on_fix_the_program_to_none():
    program = pv.Program(model, by_slope)
    program.read(X)
    with pytest.raises(DataError, match="GreaterThan"):  # the guide does not run on that row
        pv.elbo(program, wrong(2, -2.0))
    assert pv.elbo(program, X[:7]).shape == (7,)


def test_a_store_that_was_given_is_taken_over_by_the_next_call(store):
    pyro.param("prior", torch.tensor(1.5))
    program = pv.Program(model, by_slope, params=store)
    with pytest.raises(DataError):
        pv.elbo(program, iter([X[:6], wrong(8)[6:]]))
    program.read(X)
    assert program.values["prior"].item() == 1.5
