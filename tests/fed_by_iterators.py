"""Programs that draw on iterators of each kind."""

import asyncio
import csv
import io
import itertools
import mmap
import multiprocessing.dummy
import queue
import sqlite3
import tempfile
import threading
import time
from collections import namedtuple
from types import GeneratorType, MappingProxyType

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.quasirandom import SobolEngine

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


def fed_by(make, draw=lambda home: torch.as_tensor(next(home.it)).item()):
    program = Fed({})
    held = program.homes["one"] = Home(draw)
    held.it = make(program)
    return program
