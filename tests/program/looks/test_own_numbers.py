"""Programs that count their own calls: looks at them count none, and see one state of theirs."""

import types

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ProgramError

N, B, EPOCHS = 12, 3, 2
X = torch.linspace(-1.0, 2.0, N, dtype=torch.float64) ** 2
counted = 0  # calls of a program that counts in a global


class Annealed(nn.Module):
    """Rows around w, with a penalty of w whose weight grows from call to call.

    Arguments:
        count: Counts one call more, and returns how many there were.
    """

    def __init__(self, count):
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.count = count

    def model(self, x):
        pyro.factor("penalty", -self.count(self) * self.w**2)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.w, 1.0), obs=x)

    def guide(self, x):
        pass


def in_a_global(_):
    global counted
    counted += 1
    return counted


def in_a_class_attribute(program):
    program.calls = getattr(program, "calls", 0) + 1
    return program.calls


def in_a_tensor(program):
    program.tensor = getattr(program, "tensor", torch.zeros(())) + 1
    return program.tensor.item()


def in_a_buffer_set_anew(program):
    if not hasattr(program, "buffer"):
        program.register_buffer("buffer", torch.zeros(()))
    program.buffer = program.buffer + 1
    return program.buffer.item()


def made(place):
    """Return a function that counts in a closure, a list, a dictionary or an object."""
    calls, kept, listed, named = 0, types.SimpleNamespace(calls=0), [0], {"calls": 0}

    class Own:
        calls = 0

    own = Own()

    def in_a_closure(_):
        nonlocal calls
        calls += 1
        return calls

    def in_a_list(_):
        listed[0] += 1
        return listed[0]

    def in_a_list_that_grows(_):
        listed.append(0.5)
        return len(listed) - 1

    def in_a_dictionary(_):
        named["calls"] += 1
        return named["calls"]

    def in_a_namespace(_):
        kept.calls += 1
        return kept.calls

    def in_an_object(_):
        own.calls += 1
        return own.calls

    places = [in_a_closure, in_a_list, in_a_list_that_grows, in_a_dictionary, in_a_namespace]
    return {f.__name__: f for f in (*places, in_an_object)}[place]


PLACES = {
    **{f.__name__: lambda f=f: f for f in (in_a_global, in_a_class_attribute, in_a_tensor)},
    "in_a_buffer_set_anew": lambda: in_a_buffer_set_anew,
    **{
        name: lambda name=name: made(name)
        for name in ("in_a_closure", "in_a_list", "in_a_list_that_grows", "in_a_dictionary")
    },
    **{name: lambda name=name: made(name) for name in ("in_a_namespace", "in_an_object")},
}


@pytest.mark.parametrize("place", PLACES)
def test_the_first_step_is_the_first_call(place):
    """Losses are those of a loop that calls the program once a step."""
    global counted
    counted = 0
    settings = {"epochs": EPOCHS, "batch_size": B, "progress": False, "compile": False}
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-12), **settings}
    count = PLACES[place]()
    program = Annealed(count)
    run = pv.fit(program, X, **still)
    steps = N // B
    rows = -dist.Normal(1.0, 1.0).log_prob(X).mean().item()
    weights = [sum(range(e * steps + 1, (e + 1) * steps + 1)) / steps for e in range(EPOCHS)]
    assert list(run.history["loss"]) == pytest.approx([rows + w / N for w in weights], rel=1e-9)
    assert count(program) == EPOCHS * steps + 1


def test_what_a_first_call_builds_is_built_once_and_trained():
    """A number tells the program that its network is there: put back, it would be built anew."""

    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.width, self.made = 0, []

        def model(self, x):
            if self.width == 0:
                self.width = 1
                self.made.append(nn.Linear(1, 1).double())
            net = pyro.module("net", self.made[-1])
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(net(x[:, None] ** 0)[:, 0], 1.0), obs=x)

        def guide(self, x):
            pass

    program = Lazy()
    pv.fit(program, X, epochs=40, batch_size=B, lr=0.1, progress=False, compile=False)
    assert len(program.made) == 1
    net = program.made[0]
    assert (net.weight + net.bias).item() == pytest.approx(X.mean().item(), abs=0.3)


def test_a_count_hides_no_density_that_reads_the_rows_beside():
    class Both(Annealed):
        def model(self, x):
            scale = 1 + 1 / self.count(self)
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(self.w * x.mean(), scale), obs=x)

    with pytest.raises(ProgramError, match="all data at once"):
        pv.fit(Both(made("in_a_list")), X, epochs=1, batch_size=B, progress=False)
