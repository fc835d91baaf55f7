"""Iterators that steps see otherwise than a plain loop would: each is told of, and no other."""

import asyncio
import functools
import itertools
import os
import re
import tempfile
import warnings
import weakref
from collections import deque

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from fed_by_iterators import B, Fed, N, X, fed_by
from torch import nn
from torch.utils.data import DataLoader

import pyro_vae as pv


def of_weights(program):
    while True:
        yield program.w * 2


def of_numbers_of_weights(program):
    while True:
        with torch.no_grad():
            yield float(program.w.detach() * 2)


def of_data_of_weights(program):
    data = program.w.data
    while True:
        yield torch.stack([data, data]).sum().item()


def of_statements(_):
    while True:
        yield pyro.sample("scale", dist.Normal(1.0, 0.1), obs=torch.ones(()))


def of_parameters(_):
    while True:
        yield pyro.param("rate", torch.ones(()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (of_weights, "weights in the model"),
        (of_numbers_of_weights, "weights in the model"),
        (of_data_of_weights, "weights in the model"),
        (of_statements, "pyro statements: .* write them in the model"),
        (of_parameters, "pyro statements: .* write them in the model"),
    ],
)
def test_what_comes_of_weights_or_statements_is_told_of(make, words):
    """A look draws it ahead of the steps that train the weights, and lack the statements."""
    with pytest.warns(UserWarning, match=f"draws on an iterator, {make.__name__}, .*{words}"):
        pv.Program.of(fed_by(make)).read(X)


def of_shapes_of_weights(program):
    while True:
        numbers = torch.ones(program.w.shape).to(program.w).expand_as(program.w)
        yield (torch.zeros_like(program.w) + numbers).sum()


def test_what_comes_of_their_shapes_is_not(recwarn):
    pv.Program.of(fed_by(of_shapes_of_weights)).read(X)
    assert not len(recwarn)


@pytest.mark.parametrize(
    ("make", "draw", "kind"),
    [
        (lambda: list(range(20_000)), lambda p: p.it.pop(), "list"),
        (lambda: deque(range(20_000)), lambda p: p.it.popleft(), "deque"),
        (lambda: dict.fromkeys(range(20_000), 1), lambda p: p.it.popitem()[1], "dict"),
        (lambda: deque(range(20_000)), lambda p: p.it.rotate(1) or p.it[0], "deque"),
    ],
)
def test_a_long_container_that_looks_take_from_is_told_of(make, draw, kind):
    program = fed_by(lambda _: make(), draw)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pv.Program.of(program).read(X)
    words = "\n".join(str(each.message) for each in told)
    assert re.search(f"moved a {kind} of 20,000 entries .*keep the number", words)


def test_results_that_looks_put_out_of_a_cache_are_told_of():
    counts = itertools.count(1)
    cached = functools.lru_cache(maxsize=2)(lambda _: next(counts))
    program = fed_by(lambda _: itertools.count(1), lambda home: cached(next(home.it)))
    cached(-1), cached(-2)
    with pytest.warns(UserWarning, match="results out of the cache of '<lambda>', which holds 2"):
        pv.Program.of(program).read(X)


SHARING = {
    "a generator": lambda numbers: (n for n in numbers),
    "a map": lambda numbers: map(float, numbers),
    "a function": lambda numbers: iter(lambda: next(numbers), None),
}


@pytest.mark.parametrize("how", SHARING)
def test_a_source_that_the_guide_shares_with_an_iterator_of_the_model_is_told_of(how):
    """Looks run one of them more often than the other."""
    numbers, seen = itertools.count(1), []
    of_model = SHARING[how](numbers)

    def model(x):
        seen.append(next(of_model))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("w", X[0]), seen[-1]), obs=x)

    program = pv.Program(model, lambda x: seen.append(next(numbers)))
    with pytest.warns(UserWarning, match="shares a source .* give each of them"):
        pv.fit(program, X, epochs=2, batch_size=B, progress=False, compile=False)


async def of_a_loop():
    for n in itertools.count(1):
        yield n


def number_of_a_file():
    """Return the number of a file with no byte twice: two draws are two numbers."""
    with tempfile.TemporaryFile() as file:
        file.write(bytes(range(256)))
        file.seek(0)
        return os.dup(file.fileno())


HELD = (n for n in itertools.count(1))  # by this module, which no function of the program reads
MOVED_ON = {
    "a generator of asyncio": (of_a_loop(), lambda it: asyncio.run(anext(it))),
    "the number of a file": (number_of_a_file(), lambda it: os.read(it, 1)[0]),
    "a weak reference": (weakref.ref(HELD), lambda it: next(it())),
    "an object of a library": (
        np.random.SeedSequence(0),
        lambda it: np.random.default_rng(it.spawn(1)[0]).random(),
    ),
}


@pytest.mark.parametrize("name", MOVED_ON)
def test_what_no_look_puts_back_is_told_of(name):
    held, draw = MOVED_ON[name]

    def model(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0 + draw(held)), obs=x)

    with pytest.warns(UserWarning, match="site 'x' is another at each run"):
        pv.Program(model, lambda x: None).read(X)


class DrawsInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.it = nn.Parameter(torch.ones((), dtype=torch.float64)), of_a_loop()

    def model(self, x):
        drawn = asyncio.run(anext(self.it)) if self.training else 1
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.w, 1.0 + drawn), obs=x)

    def guide(self, x):
        pass


def test_a_count_in_training_alone_is_put_back_and_not_told_of(recwarn):
    program = DrawsInTraining()
    program.calls = 0

    def model(x):
        program.calls += program.training
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(program.w, 1.0 + program.calls), obs=x)

    program.model = model
    pv.fit(program, X, epochs=1, batch_size=B, progress=False, compile=False)
    assert program.calls == N // B
    assert not len(recwarn)


def test_what_is_drawn_in_training_alone_is_told_of():
    """By what looks at weights in train mode, and by a trace that fails."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pv.fit(DrawsInTraining(), X, epochs=1, batch_size=B, progress=False, compile="trace")
    words = "\n".join(str(each.message) for each in told)
    assert "site 'x' is another at each run" in words
    assert "run twice on a batch from one state, has two numbers in the loss" in words


@pytest.mark.parametrize("anew", [True, False])
def test_a_continuation_tells_of_an_iterator_that_begins_anew(tmp_path, anew):
    def counting():
        return fed_by(lambda _: itertools.count(1))

    program = counting()
    settings = {"batch_size": B, "progress": False, "compile": False, "out": tmp_path / "run"}
    pv.fit(program, X, max_steps=5, **settings)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pv.fit(counting() if anew else program, X, max_steps=8, resume=True, **settings)
    words = [str(each.message) for each in told if "'count'" in str(each.message)]
    assert len(words) == anew
    assert all("begins anew" in each and "5 steps" in each for each in words)


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
