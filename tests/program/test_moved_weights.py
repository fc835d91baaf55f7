"""Weights that the functions move themselves (``weight.data.mul_``): by the steps, and by no look.

Halved at each run, such a weight counts the runs that are kept.
"""

from contextlib import suppress
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.program.parameters.modules import off_zero, set_apart

N, B, EPOCHS = 12, 4, 2
X = torch.linspace(-1.0, 2.0, N)


class Halved(nn.Module):
    """The scale of a guide that moves no density, and is halved at each run."""

    def __init__(self, home="weight", in_training=True):
        super().__init__()
        self.home, self.in_training = home, in_training
        self.weight, self.slope = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def value(self):
        if self.home == "weight":
            return self.weight
        if self.home == "given":
            return pyro.param("given", self.weight)
        return pyro.param("made", torch.ones(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        value = self.value()
        if self.training or not self.in_training:
            value.data.mul_(0.5)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x + 0 * value.detach(), 1.0))


def train(program, data=X, **settings):
    options = {"epochs": EPOCHS, "batch_size": B, "progress": False, "compile": False, **settings}
    return pv.fit(program, data, **options)


def halvings(program):
    names = {"values.made", "values.given", "parts.program.weight"}
    (least,) = {
        float(value) for name, value in program.state_dict().items() if name in names and value < 1
    }
    return -torch.tensor(least).log2().item()


@pytest.mark.parametrize("in_training", [True, False])
@pytest.mark.parametrize("home", ["weight", "given", "made"])
@pytest.mark.parametrize("loaded", [True, False])
def test_steps_alone_move_them(home, in_training, loaded):
    data = DataLoader(TensorDataset(X), batch_size=B) if loaded else X
    for read_before in (False, True):
        held = Halved(home, in_training)
        program = pv.Program(held.model, held.guide, modules={"program": held})
        if read_before:
            program.read(X[:3])
        steps = train(program, data).steps
        assert steps == EPOCHS * N // B
        program.read(X[:2])
        assert halvings(program) == steps


@pytest.mark.parametrize("size", [3, 2**14 + 1])
def test_steps_alone_move_what_starts_where_it_does_not_move(size):
    """Zeros that are halved stay zeros until the first step has moved them."""
    bias = nn.Parameter(torch.zeros(size))

    def guide(x):
        bias.data.mul_(0.5)
        with pyro.plate("data", len(x)):
            z = dist.Delta(x, bias.sum().expand(len(x)))  # log q, of gradient -1 in each number
            pyro.sample("z", z)

    program = pv.Program(Halved().model, guide, modules={"bias": nn.ParameterList([bias])})
    optimizer = partial(torch.optim.SGD, lr=1.0)
    loader = DataLoader(TensorDataset(X), batch_size=B)
    train(program, loader, epochs=1, optimizer=optimizer)
    # Three steps of one, each behind a halving: -(1 / 4 + 1 / 2 + 1).
    torch.testing.assert_close(bias.detach(), torch.full((size,), -1.75))


def test_a_resumed_run_has_them_as_one_run(tmp_path):
    found = []
    for cuts in ([EPOCHS], [1, EPOCHS]):
        for epochs in cuts:
            held = Halved("made", in_training=False)
            program = pv.Program(held.model, held.guide, modules={"program": held})
            train(program, epochs=epochs, out=tmp_path / str(len(cuts)), resume=epochs > cuts[0])
        found.append({name: value.clone() for name, value in program.state_dict().items()})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_value_that_is_written_anew_into_the_store_is_told(recwarn):
    """It is lost where an epoch ends; one that is written once is a start."""

    def program(again):
        def guide(x):
            store = pyro.get_param_store()
            if again or "mean" not in store:
                store["mean"] = 0.9 * (store["mean"] if "mean" in store else x.mean()).detach()
            with pyro.plate("data", len(x)):
                slope = pyro.param("slope", torch.zeros(()))
                pyro.sample("z", dist.Normal(slope * x + store["mean"].detach(), 1.0))

        return pv.Program(Halved().model, guide)

    train(program(again=False))
    assert not [each for each in recwarn.list if "is written as" in str(each.message)]
    train(program(again=True))
    told = [str(each.message) for each in recwarn.list if "is written as" in str(each.message)]
    assert len(told) == 1
    assert told[0].startswith("pyro.get_param_store()['mean'] is written as the program runs: ")


@pytest.mark.parametrize("changed", [off_zero, set_apart])
def test_weights_that_a_look_has_changed_are_put_back(changed):
    """Where Ctrl-C ends it, too."""
    module = nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(4))
    nn.init.zeros_(module[0].bias)
    before = [parameter.detach().clone() for parameter in module[0].parameters()]
    with suppress(KeyboardInterrupt), changed(module):
        assert module[0].bias.abs().min() > 0
        raise KeyboardInterrupt
    assert all(map(torch.equal, before, module[0].parameters()))
