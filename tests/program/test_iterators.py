"""Programs that draw on iterators: steps see what the steps of a plain loop of stock SVI see."""

import io
import itertools
import multiprocessing.dummy
import sqlite3
import warnings
from collections import namedtuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.utils.data import DataLoader

import pyro_vae as pv

N, B, EPOCHS = 12, 3, 2
STEPS = EPOCHS * N // B
X = torch.linspace(-1.0, 2.0, N, dtype=torch.float64) ** 2


class Fed(nn.Module):
    """Rows around w, with a penalty whose weight iterators of the program give.

    Arguments:
        kinds: Functions that make an iterator, and functions that draw a number for each call from
            an object that holds it as ``it``, by name.
    """

    def __init__(self, kinds):
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.seen, self.homes = [], {}
        for name, (source, draw) in kinds.items():
            home = self.homes[name] = Home(draw)
            home.it = source(home)

    def model(self, x):
        numbers = {name: float(home.draw(home)) for name, home in self.homes.items()}
        self.seen.append(numbers)
        pyro.factor("penalty", -sum(numbers.values()) * self.w**2)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.w, 1.0), obs=x)

    def guide(self, x):
        pass


class Home:
    def __init__(self, draw):
        self.draw, self.calls = draw, 0


def filling_an_array(_):
    buffer = np.zeros(2)
    for n in itertools.count(1):
        buffer[0] = n * n
        yield buffer


def filling_a_tensor(_):
    buffer = torch.zeros(2)
    for n in itertools.count(1):
        buffer[0] = n * n
        yield buffer


def filling_what_numpy_shares(_):
    buffer = np.zeros(200_000)
    for n in itertools.count(1):
        buffer[0] = n * n
        yield torch.from_numpy(buffer)


def filling_what_is_read_alone(_):
    buffer = np.zeros(2)
    for n in itertools.count(1):
        buffer[0] = n * n
        seen = buffer[:]
        seen.flags.writeable = False
        yield seen


def filling_a_pair(_):
    buffer = {"pair": [torch.zeros(2), 0]}
    for n in itertools.count(1):
        buffer["pair"][0][0] = n * n
        buffer["pair"][1] = n
        yield buffer


def adding_to_a_tensor(_):
    buffer = torch.ones(1)
    while True:
        yield buffer
        buffer += 1


def filling_an_attribute(program):
    program.buffer = torch.zeros(1)
    for n in itertools.count(1):
        program.buffer[0] = n * n
        yield program.buffer


def counting_in_an_attribute(program):
    for n in itertools.count(1):
        program.calls += n
        yield n


def counting_in_a_dictionary(program):
    program.kept = {"calls": 0, "mine": 0}
    return _counting(program)


def _counting(program):
    for n in itertools.count(1):
        program.kept["calls"] += n
        yield n


def counting_itself(_):
    calls = {"n": 0}

    def numbers():
        while True:
            calls["n"] += 1
            yield calls["n"] ** 2

    return numbers()


def written_to(program):
    value = next(program.it)
    value *= 3
    return value[0] + next(program.it)[0]


def of_the_dictionary(program):
    program.kept["mine"] += 1
    return next(program.it) + 100 * program.kept["calls"] + 10_000 * program.kept["mine"]


def in_lines(_):
    file = open(__file__)  # noqa: SIM115
    next(file)
    return file


def of_a_cursor(_):
    numbers = [(n * n,) for n in range(1, 50)]
    database = sqlite3.connect(":memory:")
    database.execute("create table numbers (n)")
    database.executemany("insert into numbers values (?)", numbers)
    return database.execute("select n from numbers order by n")


def of_a_pool(_):
    pool = multiprocessing.dummy.Pool(1)
    results = pool.imap(abs, range(1, 50))
    pool.close()
    pool.join()
    return results


Pair = namedtuple("Pair", "numbers other")
KINDS = {
    "array": (filling_an_array, lambda p: next(p.it)[0]),
    "tensor": (filling_a_tensor, lambda p: next(p.it)[0]),
    "shared": (filling_what_numpy_shares, lambda p: next(p.it)[0]),
    "read alone": (filling_what_is_read_alone, lambda p: next(p.it)[0]),
    "pair": (filling_a_pair, lambda p: (b := next(p.it)["pair"])[0][0] + b[1]),
    "two draws": (filling_a_tensor, lambda p: next(p.it)[0].item() + 2 * next(p.it)[0].item()),
    "added to": (adding_to_a_tensor, lambda p: next(p.it)[0]),
    "attribute": (filling_an_attribute, lambda p: next(p.it)[0] + p.buffer[0]),
    "written to": (lambda _: (torch.full((1,), float(n)) for n in itertools.count(1)), written_to),
    "counts": (counting_in_an_attribute, lambda p: next(p.it) + 100 * p.calls),
    "counts in a dictionary": (counting_in_a_dictionary, of_the_dictionary),
    "counts itself": (counting_itself, lambda p: next(p.it)),
    "groups": (
        lambda _: itertools.groupby(itertools.count(), lambda n: n // 3),
        lambda p: sum(next(p.it)[1]),
    ),
    "named tuple": (lambda _: Pair(itertools.count(1), 0), lambda p: next(p.it.numbers)),
    "pool": (
        of_a_pool,
        lambda p: p.it.next(),
    ),
    "cursor": (of_a_cursor, lambda p: p.it.fetchone()[0]),
    "rows of a cursor": (of_a_cursor, lambda p: sum(n for (n,) in p.it.fetchmany(2))),
    "sent": (lambda _: begun(), lambda p: p.it.send(1)),
    "lines": (in_lines, lambda p: len(next(p.it))),
    "read lines": (in_lines, lambda p: len(p.it.readline())),
    "text": (lambda _: io.StringIO("1\n2\n3\n" * 9), lambda p: float(next(p.it))),
    "log": (lambda _: io.BytesIO(), lambda p: p.it.write(b"ab") + p.it.tell()),
    "name and place": (
        lambda _: open(__file__, "rb"),  # noqa: SIM115
        lambda p: len(p.it.readline()) + p.it.tell() + 1e4 * p.it.name.endswith(".py"),
    ),
    "a method of NumPy's": (
        lambda _: np.random.default_rng(5).random,
        lambda p: p.it(),
    ),
    "bound": (lambda _: itertools.count(1).__next__, lambda p: p.it()),
}


def begun():
    made = (n for n in itertools.count(1))
    next(made)
    return made


def plain(program, steps):
    """Return what the steps of a plain loop see."""
    pyro.clear_param_store()
    svi = SVI(program.model, program.guide, pyro.optim.SGD({"lr": 1e-9}), Trace_ELBO())
    for _ in range(steps):
        svi.step(X[:B])
    return program.seen


def kinds_of(program):
    return {name: type(home.it) for name, home in program.homes.items()}


def test_steps_see_what_those_of_a_plain_loop_see():
    """And the program has its own iterators after training: theirs goes on from here."""
    one, two = Fed(KINDS), Fed(KINDS)
    before = kinds_of(one)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.fit(one, X, epochs=EPOCHS, batch_size=B, progress=False, compile=False)
    assert kinds_of(one) == before
    seen = plain(two, STEPS + 2)
    assert {name: [step[name] for step in one.seen] for name in KINDS} == {
        name: [step[name] for step in seen[:STEPS]] for name in KINDS
    }
    assert plain(one, 2) == seen
    for home in (*one.homes.values(), *two.homes.values()):
        getattr(home.it, "close", int)()


def of_weights(program):
    while True:
        yield program.w * 2


def test_values_of_weights_are_told_of():
    """A look draws them without a gradient, and a step would miss it."""
    program = Fed({})
    held = Home(lambda home: next(home.it).item())
    program.homes["one"], held.it = held, of_weights(program)
    with pytest.warns(UserWarning, match="draws on an iterator, of_weights, .*keep a number"):
        pv.Program.of(program).read(X)


def test_calls_that_are_others_than_those_of_looks_are_told_of():
    program = Fed({"it": (lambda _: (n for n in range(99)), lambda home: next(home.it))})
    pv.Program.of(program).read(X)
    with pytest.warns(UserWarning, match="draws on an iterator, .*keep a number"):
        program.homes["it"].it.send(None)


class Late(nn.Module):
    """A network that the first call builds, beside an iterator."""

    def __init__(self, before, beside):
        super().__init__()
        self.net, self.it, self.beside = None, before(), beside

    def model(self, x):
        if self.net is None:
            self.net = nn.Linear(1, 1).double()
            self.it = self.it or self.beside()
        it = self.it["it"] if isinstance(self.it, dict) else self.it
        net = pyro.module("net", self.net)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(net(x[:, None] ** 0)[:, 0] * next(it), 1.0), obs=x)

    def guide(self, x):
        pass


@pytest.mark.parametrize("feed", [lambda: X, lambda: DataLoader(X, batch_size=B)])
@pytest.mark.parametrize(
    ("before", "beside"),
    [
        (lambda: None, lambda: itertools.count(1)),
        (lambda: None, lambda: {"it": itertools.count(1)}),
        (lambda: itertools.count(1), None),
    ],
)
def test_an_iterator_beside_a_network_that_is_built_late_is_told_of(before, beside, feed):
    with pytest.warns(UserWarning, match="'count', .* is ahead by the runs"):
        pv.fit(Late(before, beside), feed(), epochs=1, batch_size=B, progress=False, compile=False)


def test_an_iterator_that_a_network_alone_is_built_from_is_not_told_of(recwarn):
    sizes, nets = iter([1, 2, 3]), []

    def model(x):
        if not nets:
            nets.append(nn.Linear(next(sizes), 1).double())
        net = pyro.module("net", nets[0])
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(net(x[:, None] ** 0)[:, 0], 1.0), obs=x)

    program = pv.Program(model, lambda x: None)
    pv.fit(program, X, epochs=1, batch_size=B, progress=False, compile=False)
    assert not len(recwarn)
    assert next(sizes) == 2
