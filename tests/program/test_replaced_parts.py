"""A guide, a network or a parameter that is replaced or comes later is noticed."""

import functools
import types

import pyro
import pyro.distributions as dist
import pytest
import torch
from hidden_networks import (
    NETS,
    D,
    Z,
    cached_networks,
    called_guide,
    called_model,
    data,
    decode,
    encode,
    networks,
    pair,
    weights,
)
from pyro import poutine
from torch import nn
from torch.distributions import constraints

import pyro_vae as pv
from pyro_vae.program.handlers import validation
from pyro_vae.training.adam import Adam
from pyro_vae.training.step import Stepper

# -- functions that are replaced -------------------------------------------------------------------


class Replaceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(Z, D)
        self.loc, self.log_scale = nn.Parameter(torch.zeros(Z)), nn.Parameter(torch.zeros(Z))

    def model(self, x):
        decode(self.decoder, x, False)

    def guide(self, x):
        old = pyro.param("old", x.new_zeros(Z))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc + old, self.log_scale.exp()).to_event(1))


def attribute(program, guide):
    program.guide = guide


def method_of_the_class(program, guide):
    type(program).guide = lambda self, x: guide(x)


@pytest.mark.parametrize("how", [attribute, method_of_the_class])
def test_a_guide_that_is_replaced_is_noticed(how):
    program = type("Own", (Replaceable,), {})()
    x = data(16)
    known = pv.Program.of(program)
    pv.fit(program, x, epochs=2, batch_size=16)
    assert "values.old" in known.state_dict()
    net = nn.Linear(D, 2 * Z)
    how(program, lambda x, net=net: encode(net, x, False))
    torch.manual_seed(0)
    found = pv.elbo(program, x)
    torch.manual_seed(0)
    fresh = pv.Program(program.model, lambda x: encode(net, x, False))
    fresh.eval()
    assert torch.equal(found, pv.elbo(fresh, x))
    assert pv.Program.of(program) is known and "values.old" not in known.state_dict()
    before = net.weight.detach().clone()
    pv.fit(known, x, epochs=2, batch_size=16)
    assert not torch.equal(before, net.weight)


class GuideModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(D, 2 * Z)

    def forward(self, x):
        encode(self.net, x, False)


def test_a_registered_guide_that_is_replaced_is_noticed():
    program = nn.Module()
    program.model = functools.partial(decode, nn.Linear(Z, D), registered=False)
    program.guide = GuideModule()
    x = data(16)
    pv.elbo(program, x)
    program.guide = new = GuideModule()
    assert all(value in set(pv.Program.of(program).parameters()) for value in new.parameters())
    torch.manual_seed(0)
    found = pv.elbo(program, x)
    torch.manual_seed(0)
    assert torch.equal(found, pv.elbo(pv.Program(program.model, new), x))


def test_a_handler_put_around_a_guide_keeps_its_values():
    program = Replaceable()
    x = data(16)
    pv.fit(program, x, epochs=3, batch_size=16, lr=0.1)
    old = pv.Program.of(program).values["old"].detach().clone()
    assert old.abs().min() > 0
    program.guide = poutine.scale(program.guide, 1.0)
    torch.manual_seed(0)
    pv.elbo(program, x)
    assert torch.equal(pv.Program.of(program).values["old"], old)


def test_the_constraint_of_a_value_goes_with_it():
    """A parameter was taken through the exponential of one that an earlier guide had dropped."""
    program, loc = Replaceable(), nn.Parameter(torch.tensor(-2.0))

    def guide(x, value=None, constraint=constraints.real):
        with pyro.plate("data", len(x)):
            at = 0.0 if value is None else pyro.param("at", value, constraint=constraint)
            pyro.sample("z", dist.Normal(at, torch.ones(Z)).to_event(1))

    start = {"value": torch.tensor(0.7), "constraint": constraints.positive}
    for kwargs in (start, {}, {"value": loc}):
        program.guide = functools.partial(guide, **kwargs)
        pv.elbo(program, data(16))
    with pv.Program.of(program).running():
        assert pyro.param("at").item() == -2.0


def by_global(e, d):
    NETS.update(e=e, d=d)
    return pv.Program(lambda x: called_model(x, True), lambda x: called_guide(x, True)), NETS


def by_attribute(e, d):
    nets = types.SimpleNamespace(e=e, d=d)
    return pv.Program(*pair(lambda: nets.e, lambda: nets.d, False)), vars(nets)


@pytest.mark.parametrize("kind", [by_global, by_attribute])
def test_a_network_that_is_replaced_is_noticed(kind):
    """A cell of a notebook that makes the networks runs again; the functions stay."""
    program, home = kind(*networks())
    x = data(16)
    pv.fit(program, x, epochs=2, batch_size=16)
    names = set(program.state_dict())
    old, new = home["d"], nn.Linear(Z, D)
    home["d"] = new
    before = [value.detach().clone() for value in (old.weight, new.weight)]
    pv.fit(program, x, epochs=2, batch_size=16)
    assert torch.equal(old.weight, before[0]) and not torch.equal(new.weight, before[1])
    assert set(program.state_dict()) == names
    assert all(value is not old.weight for value in program.parameters())


def test_a_cleared_cache_is_filled_anew():
    cache = {}
    program = cached_networks(cache)
    x = data(16)
    pv.elbo(program, x)
    names = set(program.state_dict())
    cache.clear()
    pv.fit(program, x, epochs=1)
    assert set(program.state_dict()) == names and len(names) == 4
    assert {id(p) for p in program.parameters()} == {id(p) for p in weights(cache.values())}


def of_two_widths():
    """A parameter for each number of columns, as programs of sequences have one for each length."""
    nets = {}

    def scale(x):
        return pyro.param(
            f"scale.{x.shape[-1]}", torch.tensor(1.0), constraint=constraints.positive
        )

    def net(x):
        return nets.setdefault(x.shape[-1], torch.zeros(x.shape[-1], requires_grad=True))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            loc = z.unsqueeze(-1) + net(x)
            pyro.sample("x", dist.Normal(loc, scale(x)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.7))

    return pv.Program(model, guide), nets


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, Adam])
@pytest.mark.parametrize("compile", [False, "trace"])
def test_parameters_that_a_later_batch_brings_are_trained_from_its_step_on(compile, optimizer):
    program, nets = of_two_widths()
    batches = [data(8), data(8)[:, :2], data(8, seed=4), data(8, seed=4)[:, :2]]
    program.read(batches[0])
    make = functools.partial(optimizer, lr=0.1)
    step = Stepper(program, pv.ELBO(), make, clip_norm=None, size=8, compile=compile)
    torch.manual_seed(0)
    with program.running(), validation(False):
        for batch in batches:
            step.step(batch, None)
    # By hand, on the same noise.
    shapes = {2: ((2,), ()), 3: ((3,), ())}
    exact = {n: [torch.zeros(s, requires_grad=True) for s in pair] for n, pair in shapes.items()}
    optimizers = {n: make(leaves) for n, leaves in exact.items()}
    torch.manual_seed(0)
    for x in batches:
        loc, log_scale = exact[x.shape[-1]]
        z = x.mean(-1) + 0.7 * torch.randn(8)
        optimizers[x.shape[-1]].zero_grad()
        density = dist.Normal(z[:, None] + loc, log_scale.exp()).log_prob(x)
        (-density.sum() / 8).backward()
        optimizers[x.shape[-1]].step()
    for width, (loc, log_scale) in exact.items():
        torch.testing.assert_close(nets[width], loc)
        torch.testing.assert_close(program.values[f"scale-{width}"].data, log_scale.data)
