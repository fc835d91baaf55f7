"""Copies and pickles of programs: as good as what they are of, and apart from it."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from hidden_networks import cached_networks, data
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ProgramError
from pyro_vae.training.fingerprints import describe_architecture

X = torch.linspace(-1.0, 2.0, 24).reshape(12, 2) ** 2


class Linear(nn.Module):
    """A network, and a parameter by a statement."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(2, 2), nn.Linear(1, 2)

    def model(self, x):
        offset = pyro.param("offset", torch.zeros(2))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z) + offset, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("rows", len(x)):
            loc, scale = self.encode(x).split(1, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class Holder:
    """No module; it passes on."""

    def __init__(self):
        self.inner = Linear()

    def model(self, x):
        self.inner.model(x)

    def guide(self, x):
        self.inner.guide(x)


def statements(x):
    with pyro.plate("rows", len(x)):
        loc = pyro.param("loc", torch.zeros(2))
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def nothing(x):
    pass


def with_a_latent(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0).expand([2]).to_event(1), obs=x)


def of_methods():
    inner = Linear()
    return pv.Program(inner.model, inner.guide)


KINDS = {
    "module": Linear,
    "object": Holder,
    "methods": of_methods,
    "statements": lambda: pv.Program(statements, nothing),
    "autoguide": lambda: pv.Program(with_a_latent, AutoNormal(with_a_latent)),
}

CASES = [*((kind, True) for kind in KINDS), ("module", False)]


def values(program):
    return [p.detach().clone() for p in pv.Program.of(program).parameters()]


def bound(program):
    torch.manual_seed(0)
    return pv.elbo(program, X)


def fit(program, **options):
    pv.fit(program, X, batch_size=5, lr=0.05, progress=False, **options)


def pickled(program):
    return pickle.loads(pickle.dumps(program))


@pytest.mark.parametrize(
    ("kind", "fitted", "how"),
    [*((*case, copy.deepcopy) for case in CASES), *((*case, pickled) for case in CASES[::2])],
)
def test_a_copy_trains_apart(kind, fitted, how):
    program = KINDS[kind]()
    if fitted:
        fit(program, epochs=2, compile="trace")
        before = bound(program)
    twin = how(program)
    if fitted:
        assert torch.equal(bound(twin), before)
    mine = values(program)
    fit(twin, epochs=2, compile=False)
    assert all(torch.equal(a, b) for a, b in zip(mine, values(program), strict=True))
    if fitted:
        assert torch.equal(bound(program), before)
        moved = [not torch.equal(a, b) for a, b in zip(mine, values(twin), strict=True)]
        assert moved and all(moved)
        fit(program, epochs=1)  # and so does what it is a copy of


def test_functions_that_hold_networks_themselves_are_not_copied():
    inner = Linear()
    program = pv.Program(lambda x: inner.model(x), lambda x: inner.guide(x))
    fit(program, epochs=1)
    with pytest.raises(ProgramError, match="copy: the functions hold the network 'inner'"):
        copy.deepcopy(program)
    cached = cached_networks()
    cached.read(data())
    with pytest.raises(ProgramError, match="copy: the functions hold the network"):
        copy.deepcopy(cached)


def test_functions_that_no_name_finds_are_copied_as_they_are():
    program = pv.Program(lambda x: statements(x), lambda x: None)
    twin = copy.copy(program)
    assert twin is not program and twin.model is program.model and twin.guide is program.guide


def test_model_and_guide_are_those_given_and_those_of_the_copy():
    given = Linear()
    program = pv.Program(given.model, given.guide)
    keys = list(program.state_dict())
    assert program.model == given.model and program.guide == given.guide
    twin = pickle.loads(pickle.dumps(copy.deepcopy(program)))
    assert twin.model.__self__ is twin.guide.__self__ is not given
    assert list(twin.state_dict()) == keys == list(program.state_dict())
    for value in (nn.Linear(1, 1), print):  # nn.Module would keep the first beside what runs
        with pytest.raises(ProgramError, match="guide: a program's cannot be replaced"):
            program.guide = value
    held = Linear()
    assert pv.Program.of(held).guide == held.guide
    held.guide = Linear().guide
    assert pv.Program.of(held).guide == held.guide


def test_the_median_of_an_autoguide_is_at_hand():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    program = pv.Program(model, AutoNormal(model))
    program.read(X[:, 0])
    assert program.guide.median()["loc"].shape == ()
    found = describe_architecture(program)
    assert found["model"] is found["guide"] is None  # as in runs of before, which go on
