"""Programs that draw on iterators: steps see what the steps of a plain loop of stock SVI see."""

import asyncio
import csv
import functools
import io
import itertools
import mmap
import multiprocessing.dummy
import os
import queue
import random
import re
import sqlite3
import tempfile
import threading
import time
import warnings
import weakref
from collections import deque, namedtuple
from types import GeneratorType, MappingProxyType

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.quasirandom import SobolEngine
from torch.utils.data import DataLoader

import pyro_vae as pv
from pyro_vae.program.memory.iterators import exchanged
from pyro_vae.program.memory.noise import Noise
from pyro_vae.program.memory.own_state import OwnState

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


def of_a_thread(program):
    """Numbers of a thread that waits where two are not yet taken, in what the program holds."""

    def fill():
        while not hasattr(program, "it"):
            time.sleep(0.001)
        for n in range(1, STEPS + 3):
            program.it.put(n)

    threading.Thread(target=fill, daemon=True).start()
    return queue.Queue(maxsize=2)


def filled(numbers, put="put"):
    for n in range(1, 2 * STEPS + 6):
        getattr(numbers, put)(n)
    return numbers


def of_a_pipe(program):
    program.other, numbers = multiprocessing.Pipe()
    for n in range(1, STEPS + 3):
        program.other.send(n)
    return numbers


def with_errors(_):
    return map(lambda n: 60 / (n % 3), itertools.count(1))  # noqa: C417 (goes on after an error)


def past_errors(program):
    """Two draws and what they raise, in one number."""
    total = 0
    for _ in range(2):
        try:
            total = 10 * total + next(program.it)
        except ZeroDivisionError:
            total += 5000
    return total


def ending_in_an_error(_):
    yield 1
    yield 2
    raise ValueError


def to_the_end(program):
    try:
        return sum(next(program.it) for _ in range(3))
    except (ValueError, RuntimeError) as error:
        return 100 if isinstance(error, ValueError) else 200


def taking_tensors(_):
    def numbers():
        total = 0.0
        sent = yield
        while True:
            total += sent.sum().item()
            sent = yield total

    made = numbers()
    next(made)
    return made


def in_a_file(mode):
    def make(_):
        file = tempfile.TemporaryFile("w+b")  # noqa: SIM115
        file.write(bytes(range(1, 60)))
        file.flush()
        file.seek(0)
        if mode == "r+":
            return file
        with file:
            return mmap.mmap(file.fileno(), 0)

    return make


def of_a_source(home):
    """A generator that asks the program for its source at each draw."""
    home.source = iter(range(1, 90))

    def squares():
        while True:
            yield next(home.source) ** 2

    return squares()


def of_a_file_with_a_name(_):
    file = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115
    file.write("".join(f"{n}\n" for n in range(90)))
    file.seek(0)
    file.readline()
    return file


def looking_ahead(home):
    first = next(home.it)
    home.it = itertools.chain([first], home.it)
    return 100 * first + next(home.it)


def counting_errors(_):
    errors = 0
    while True:
        try:
            yield errors
        except KeyError as error:
            errors += error.args[0]


def after_an_error(home):
    next(home.it)
    home.calls += 1
    return home.it.throw(KeyError(home.calls))


class Two(tuple):
    def __new__(cls, items):
        made = super().__new__(cls, items)
        made.factor = 3
        return made

    def draw(self):
        return self.factor * next(self[0])


async def one_of(numbers):
    return await numbers.get()


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
    "lines of a method": (lambda home: in_lines(home).readline, lambda p: len(p.it())),
    "queue": (of_a_thread, lambda p: p.it.get(timeout=9)),
    "simple queue": (lambda _: filled(queue.SimpleQueue()), lambda p: p.it.get(timeout=9)),
    "queue of a loop": (
        lambda _: filled(asyncio.Queue(), "put_nowait"),
        lambda p: p.it.get_nowait() + 100 * asyncio.run(one_of(p.it)),
    ),
    "of a source": (of_a_source, lambda p: next(p.it)),
    "beside its source": (of_a_source, lambda p: next(p.it) + 10_000 * next(p.source)),
    "put before the rest": (lambda _: itertools.count(1), looking_ahead),
    "in a set": (
        lambda _: frozenset([itertools.count(1)]),
        lambda p: next(next(iter(p.it))),
    ),
    "in a dictionary to be read": (
        lambda _: MappingProxyType({"all": [itertools.count(1)]}),
        lambda p: next(p.it["all"][0]),
    ),
    "in a tuple of ones own": (lambda _: Two([itertools.count(1), 0]), lambda p: p.it.draw()),
    "key of a dictionary": (lambda _: {itertools.count(1): 0}, lambda p: next(next(iter(p.it)))),
    "in an array of objects": (
        lambda _: np.array([itertools.count(1), 0], dtype=object),
        lambda p: next(p.it[0]),
    ),
    "numbers of a reader": (
        lambda _: csv.DictReader(["a,b", *(f"{n},{n * n}" for n in range(90))]),
        lambda p: float(next(p.it)["b"]) + 1e5 * p.it.line_num,
    ),
    "told by its kind": (
        lambda _: (n for n in range(1, 90)),
        lambda p: next(p.it) + 100 * isinstance(p.it, GeneratorType),
    ),
    "errors that are thrown": (counting_errors, after_an_error),
    "file with a name": (
        of_a_file_with_a_name,
        lambda p: int(p.it.readline()) + 100 * p.it.name.startswith("/"),
    ),
    "method of a queue": (lambda _: filled(queue.SimpleQueue()).get_nowait, lambda p: p.it()),
    "queue of processes": (
        lambda _: filled(multiprocessing.get_context("spawn").SimpleQueue()),
        lambda p: p.it.get(),
    ),
    "pipe": (of_a_pipe, lambda p: p.it.recv() if p.it.poll(1) else -1),
    "quasi-random": (lambda _: SobolEngine(1), lambda p: p.it.draw(1).item()),
    "errors": (with_errors, past_errors),
    "ends in an error": (ending_in_an_error, to_the_end),
    "takes tensors": (taking_tensors, lambda p: p.it.send(torch.ones(3))),
    "weights in turn": (
        lambda _: itertools.cycle(nn.ParameterList(torch.tensor(n) for n in (1.0, 2.0, 3.0))),
        lambda p: next(p.it).item(),
    ),
    "file to be written": (in_a_file("r+"), lambda p: p.it.read(2)[1]),
    "mapped file": (in_a_file("mmap"), lambda p: p.it.read(2)[1]),
    "flat": (lambda _: np.arange(50.0).reshape(5, 10).flat, lambda p: next(p.it)),
    "nditer": (lambda _: np.nditer(np.arange(50.0)), lambda p: next(p.it).item()),
    "bits": (lambda _: np.random.PCG64(3), lambda p: p.it.random_raw() % 1000),
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
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.fit(one, X, epochs=EPOCHS, batch_size=B, progress=False, compile=False)
    seen = plain(two, STEPS + 2)
    assert kinds_of(one) == kinds_of(two)
    assert {name: [step[name] for step in one.seen] for name in KINDS} == {
        name: [step[name] for step in seen[:STEPS]] for name in KINDS
    }
    assert plain(one, 2) == seen
    for home in (*one.homes.values(), *two.homes.values()):
        getattr(getattr(home.it, "__self__", home.it), "close", int)()


DEEP = {
    "in a list": (lambda _: {"all": [itertools.count(1)]}, lambda p: next(p.it["all"][0])),
    "bound": (lambda home: in_lines(home).readline, lambda p: len(p.it())),
    "queue": (lambda _: [(filled(queue.SimpleQueue()), 0)], lambda p: p.it[0][0].get(timeout=9)),
}


def test_steps_after_a_trace_that_fails_see_what_those_of_a_plain_loop_see():
    """The trace draws inside a look of its own, within which others begin and end."""
    one, two = Fed(DEEP), Fed(DEEP)
    with pytest.warns(UserWarning, match="runs eagerly"):
        pv.fit(one, X, epochs=EPOCHS, batch_size=B, progress=False, compile="trace")
    assert one.seen[-STEPS:] == plain(two, STEPS)
    for home in (one.homes["bound"], two.homes["bound"]):
        home.it.__self__.close()


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


def fed_by(make, draw=lambda home: torch.as_tensor(next(home.it)).item()):
    program = Fed({})
    held = program.homes["one"] = Home(draw)
    held.it = make(program)
    return program


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


def test_a_weight_that_an_iterator_gives_detached_is_written_to_by_no_draw():
    """It shares the memory of the weight, which a buffer that comes once more would put back."""

    def weights(program):
        while True:
            yield program.w.detach()

    program, seen = fed_by(weights, lambda home: 0 * next(home.it).item()), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = lambda p: torch.optim.SGD(p, lr=0.05)  # noqa: E731
        see = lambda run: seen.append(program.w.item())  # noqa: E731
        pv.fit(
            program,
            X[:B],
            epochs=STEPS,
            batch_size=B,
            optimizer=optimizer,
            callbacks=[see],
            progress=False,
            compile=False,
        )
    ways = [X[:B].mean().item() + (1 - X[:B].mean().item()) * 0.95 ** (n + 1) for n in range(STEPS)]
    assert seen == pytest.approx(ways)


NOISES = {
    "torch": lambda: torch.randn(()).item(),
    "numpy": lambda: np.random.standard_normal(),  # noqa: NPY002
    "python": lambda: random.gauss(0.0, 1.0),
}


def noisy():
    made = {name: (lambda _, draw=draw: iter(draw, None)) for name, draw in NOISES.items()}
    return Fed({name: (make, lambda home: next(home.it)) for name, make in made.items()})


def seeded(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def test_steps_have_noise_of_their_own():
    """Looks run under fixed seeds: of these no value comes to a step, and none comes twice."""
    programs, outside = [noisy() for _ in range(3)], []
    for program, seed in zip(programs, (5, 5, 6), strict=True):
        seeded(seed)
        for rows in (X, X[: N // 2]):
            pv.fit(program, rows, epochs=1, batch_size=B, progress=False, compile=False)
        outside.append([draw() for draw in NOISES.values()])
    for seed in (0, 1):
        seeded(seed)
        outside += [[draw() for draw in NOISES.values()] for _ in range(50)]
    seen = [[list(step.values()) for step in program.seen] for program in programs]
    assert seen[0] == seen[1]
    one_by_one = [each for step in (*seen[0], *seen[2], *outside[1:]) for each in step]
    assert len(set(one_by_one)) == len(one_by_one) == 3 * (2 * (N + N // 2) // B + 102)


def test_noise_that_looks_draw_ahead_is_distributed_as_that_of_steps():
    """Mean, variance, correlations: |z| > 5 of one of 12 is a false alarm in 140,000 runs."""
    seeded(0)
    program, values = noisy(), []
    state = OwnState(program.model, noise=Noise())
    for _ in range(400):
        with state.kept():
            seeded(0)
            assert [next(home.it) for home in program.homes.values()]
        values.append([next(home.it) for home in program.homes.values()])
        state.release()
    z = torch.tensor(values, dtype=torch.float64)
    sums = z, (z**2 - 1) / 2**0.5, z[1:] * z[:-1], z * z.roll(1, 1)
    assert max((each.sum(0).abs() / len(each) ** 0.5).max().item() for each in sums) < 5


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


HELD = (n for n in itertools.count(1))  # by this module, which no function of the program reads
MOVED_ON = {
    "a generator of asyncio": (of_a_loop(), lambda it: asyncio.run(anext(it))),
    "the number of a file": (os.open(__file__, os.O_RDONLY), lambda it: os.read(it, 1)[0]),
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


class WithAMethodOfNamedTuples:
    """A class of a user's, and ours of parameters, may have one of this name too."""

    def _make(self):
        raise AssertionError("nobody asks")


def test_only_a_named_tuple_is_taken_for_one():
    value = WithAMethodOfNamedTuples()
    assert exchanged(value, lambda each: each) is value
