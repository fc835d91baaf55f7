"""Programs that count their own calls: looks at them count none, and see one state of theirs."""

import argparse
import functools
import itertools
import multiprocessing
import threading
import types
import warnings
import weakref
from array import array as array_of_python
from collections import ChainMap, Counter, OrderedDict, UserDict, defaultdict, deque
from contextvars import ContextVar
from fractions import Fraction
from queue import Queue

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import DataLoader

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

    of_all = 0

    def __init__(self, count):
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.count, self.layer = count, nn.Identity()
        self.layer.register_forward_hook(counting())

    def model(self, x):
        pyro.factor("penalty", -self.count(self) * self.w**2)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.w, 1.0), obs=x)

    def guide(self, x):
        pass


def counting():
    """Return a hook that counts its calls, and gives their number."""
    calls = 0

    def hook(*_):
        nonlocal calls
        calls += 1
        return torch.tensor(float(calls), dtype=torch.float64)

    return hook


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


def in_a_variable_of_the_class(program):
    type(program).of_all += 1
    return type(program).of_all


def made():
    """Return functions that count in a closure, a container or an object, by name."""
    calls, kept, listed, named = 0, types.SimpleNamespace(calls=0), [0], {"calls": 0}
    default, counter, ordered = defaultdict(int), Counter(), OrderedDict(a=0)
    queue, array, tensor = deque([0], maxlen=3), np.zeros(2, np.int64), torch.zeros(2)
    pair, numbers, seen, table = ((0,), 1), itertools.count(1), set(), {"of": (0, np.zeros(1))}
    large, octets = np.zeros(100_000), bytearray(1)
    base, frozen = torch.zeros(1), nn.Parameter(torch.zeros(1), requires_grad=False)
    seen_thrice = base.expand(3)
    numpy_own, torch_own = np.random.default_rng(0), torch.Generator().manual_seed(0)

    arguments, chained, user = argparse.Namespace(calls=0), ChainMap({}, {"a": 0}), UserDict(a=0)
    waiting, weak = Queue(), weakref.WeakKeyDictionary()
    cycle, listed_once = itertools.cycle(range(1, 99)), iter(range(1, 99))
    generated, fractions = (n for n in range(1, 99)), itertools.count(Fraction(1))
    mapped = map(abs, itertools.count(1))
    bound, partial = itertools.count(1).__next__, functools.partial(next, itertools.count(1))
    held_in_a_tuple, thread = (itertools.count(1), 0), threading.local()
    context, many = ContextVar("calls", default=0), [0] * 20_000
    shared, python_array = multiprocessing.Value("i", 0), array_of_python("d", [0.0])
    view = memoryview(bytearray(20_000))
    thread.calls = 0
    context.set(0)
    waiting.queue.extend(range(1, 50))

    class Own:
        calls = 0

    class Slotted:
        __slots__ = ("calls",)

    class Listed(list):
        pass

    class Clock:
        calls = 0

        def __call__(self):
            self.calls += 1
            return self.calls

    @functools.cache
    def counted_now(_):
        kept.calls += 1
        return kept.calls

    class Named(torch.Tensor):
        pass

    named_tensor, objects = torch.zeros(2).as_subclass(Named), np.array([0, []], dtype=object)
    clock = Clock()
    ticks = iter(clock, None)
    own, slotted, listed_own = Own(), Slotted(), Listed([0])
    slotted.calls = 0

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

    def in_a_default(_):
        default["calls"] += 1
        return default["calls"]

    def in_a_counter(_):
        counter.update(["calls"])
        return counter["calls"]

    def in_an_ordered_dictionary(_):
        ordered["a"] += 1
        return ordered["a"]

    def in_a_deque(_):
        queue.append(queue[-1] + 1)
        return queue[-1]

    def in_an_array(_):
        array[0] += 1
        return int(array[0])

    def in_a_tensor_written_in_place(_):
        tensor[0] += 1
        return tensor[0].item()

    def in_data_of_a_tensor(_):
        tensor.data[0] += 1
        return tensor[0].item()

    def in_a_frozen_weight(_):
        frozen.add_(1)
        return frozen.item()

    def in_a_tensor_that_another_expands(_):
        base.add_(1)
        return seen_thrice[2].item()

    def in_a_tuple(_):
        nonlocal pair
        pair = ((pair[0][0] + 1,), 1)
        return pair[0][0]

    def in_an_iterator(_):
        return next(numbers)

    def in_a_set(_):
        seen.add(len(seen))
        return len(seen)

    def in_arguments_of_a_script(_):
        arguments.calls += 1
        return arguments.calls

    def in_a_chain_of_dictionaries(_):
        chained["a"] += 1
        return chained["a"]

    def in_a_dictionary_of_users(_):
        user["a"] += 1
        return user["a"]

    def in_a_queue_of_threads(_):
        return waiting.get(timeout=1)

    def in_weak_keys(program):
        weak[program] = weak.get(program, 0) + 1
        return weak[program]

    def in_slots(_):
        slotted.calls += 1
        return slotted.calls

    def in_a_list_of_ones_own(_):
        listed_own[0] += 1
        return listed_own[0]

    def in_a_tuple_with_an_array(_):
        count, held = table["of"]
        held += 1
        table["of"] = (count + 1, held)
        assert held[0] == count + 1
        return count + 1

    def in_a_cache_that_goes_on(_):
        own.calls += 1
        return 2 * counted_now(own.calls // 2) - 2 + own.calls % 2

    def in_an_array_of_objects(_):
        objects[0] += 1
        objects[1].append(0)
        assert objects[0] == len(objects[1])
        return objects[0]

    def in_a_tensor_of_ones_own(_):
        named_tensor.add_(1)
        return named_tensor[0].item()

    def in_a_large_array(_):
        large[-1] += 1
        return int(large[-1])

    def in_bytes(_):
        octets[0] += 1
        return octets[0]

    def in_a_value_that_processes_share(_):
        shared.value += 1
        return shared.value

    def in_an_array_of_python(_):
        python_array[0] += 1
        return python_array[0]

    def in_bytes_that_are_viewed(_):
        view[0] += 1
        return view[0]

    def in_a_flag(_):
        kept.word = getattr(kept, "word", "") + "a"
        return len(kept.word)

    def in_a_cycle(_):
        return next(cycle)

    def in_an_iterator_of_a_list(_):
        return next(listed_once)

    def in_a_generator(_):
        return next(generated)

    def in_a_count_of_fractions(_):
        return float(next(fractions))

    def in_an_iterator_of_a_function_that_counts(_):
        return next(ticks) + 0 * clock.calls

    def in_a_map(_):
        return next(mapped)

    def in_a_keyword_of_ones_own(_, *, numbers=itertools.count(1)):  # noqa: B008
        return next(numbers)

    def in_next_of_an_iterator(_):
        return bound()

    def in_an_argument_of_partial(_):
        return partial()

    def in_an_iterator_in_a_tuple(_):
        return next(held_in_a_tuple[0])

    def in_a_default_argument(_, numbers=itertools.count(1)):  # noqa: B008
        return next(numbers)

    def in_a_local_of_the_thread(_):
        thread.calls += 1
        return thread.calls

    def in_a_variable_of_the_context(_):
        context.set(context.get() + 1)
        return context.get()

    def in_a_long_list_that_grows(_):
        many.append(0)
        return len(many) - 20_000

    def in_an_attribute_of_a_layer(program):
        program.layer.calls = getattr(program.layer, "calls", 0) + 1
        return program.layer.calls

    def in_a_hook_of_a_layer(program):
        return int(program.layer(torch.zeros(())))

    def in_generators(program):
        drawn = [numpy_own.random(), torch.rand((), generator=torch_own).item()]
        again = np.random.default_rng(0).random(100), torch.Generator().manual_seed(0)
        torch_again = torch.rand(100, generator=again[1])
        count = [int(np.argwhere(again[0] == drawn[0])[0, 0])]
        assert drawn[1] == torch_again[count[0]].item()
        return count[0] + 1

    return {f.__name__: f for f in locals().values() if isinstance(f, types.FunctionType)}


PLACES = {
    **{f.__name__: lambda f=f: f for f in (in_a_global, in_a_class_attribute, in_a_tensor)},
    "in_a_buffer_set_anew": lambda: in_a_buffer_set_anew,
    "in_a_variable_of_the_class": lambda: in_a_variable_of_the_class,
    **{name: lambda name=name: made()[name] for name in made()},
}


@pytest.mark.parametrize("place", PLACES)
def test_the_first_step_is_the_first_call(place):
    """Losses are those of a loop that calls the program once a step."""
    global counted
    counted = Annealed.of_all = 0
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


def test_places_are_put_back_after_a_trace_too():
    """All at once: a program that no graph can stand for runs eagerly, and as often as it steps."""
    names = [n for n in made() if n not in ("in_a_queue_of_threads", "in_generators")]
    run = {}
    for mode in (False, "trace"):
        counts = [made()[name] for name in names]
        program = Annealed(lambda self, counts=counts: sum(count(self) for count in counts))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if mode else "error")
            run[mode] = pv.fit(program, X, epochs=1, batch_size=B, progress=False, compile=mode)
        found = {name: count(program) for name, count in zip(names, counts, strict=True)}
        assert found == dict.fromkeys(names, N // B + 1)
    assert run["trace"].compiled.startswith("eager: ")
    assert list(run["trace"].history["loss"]) == list(run[False].history["loss"])


def test_a_large_tensor_that_looks_write_to_is_told_of():
    program = Annealed(lambda self: float(self.bank.add_(1.0)[0]))
    program.bank = torch.zeros(2**20 + 1)
    again = pytest.warns(UserWarning, match="site 'penalty' is another at each run")
    with again, pytest.warns(UserWarning, match="a tensor of 1,048,577 .*if self.training"):
        pv.Program(program.model, program.guide).read(X)


def test_a_count_beside_a_network_that_is_built_late_is_told_of():
    def count(program):
        program.calls = getattr(program, "calls", 0) + 1
        if not hasattr(program, "net"):
            program.net = nn.Linear(1, 1)
        return program.calls

    with pytest.warns(UserWarning, match="'calls', .* is ahead by the runs"):
        pv.fit(Annealed(count), X, epochs=1, batch_size=B, progress=False, compile=False)


def test_a_count_in_a_buffer_beside_a_network_that_is_built_late_is_put_back():
    def count(program):
        program.calls += 1
        if not hasattr(program, "net"):
            program.net = nn.Linear(1, 1)
        return 1.0

    program = Annealed(count)
    program.register_buffer("calls", torch.zeros((), dtype=torch.long))
    pv.fit(program, X, epochs=EPOCHS, batch_size=B, progress=False, compile=False)
    assert program.calls == EPOCHS * N // B


@pytest.mark.parametrize("guide", ["lazy layer", "autoguide"])
def test_what_a_library_builds_late_stays_and_counts_are_put_back(guide):
    class Lazy(Annealed):
        def model(self, x):
            pyro.sample("z", dist.Normal(self.layer(x.new_ones(1, 1)).sum(), 1.0))
            super().model(x)

        def guide(self, x):
            pyro.sample("z", dist.Normal(self.w, 1.0))

    program = pair = Lazy(in_a_class_attribute)
    if guide == "lazy layer":
        program.layer = nn.LazyLinear(1, dtype=torch.float64)
    else:
        pair = pv.Program(program.model, AutoNormal(program.model))
    pv.fit(pair, X, epochs=EPOCHS, batch_size=B, progress=False, compile=False)
    assert program.calls == EPOCHS * N // B


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
    pv.Program(program.model, program.guide).read(X)
    assert len(program.made) == 1
    pv.fit(program, X, epochs=40, batch_size=B, lr=0.1, progress=False, compile=False)
    assert len(program.made) == 1
    net = program.made[0]
    assert (net.weight + net.bias).item() == pytest.approx(X.mean().item(), abs=0.3)


class Centred(nn.Module):
    """Rows around w and a statistic of those of the first call.

    Arguments:
        statistic: Called with the program and rows.
    """

    def __init__(self, statistic):
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.statistic, self.mean, self.cache, self.ready = statistic, None, {}, False
        self.array = np.zeros(1)
        self.register_buffer("buffer", torch.zeros((), dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.cached = functools.lru_cache(lambda: self.now.mean())

    def model(self, x):
        mean = self.statistic(self, x)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(self.w + mean, 1.0), obs=x)

    def guide(self, x):
        pass


def in_an_attribute(program, x):
    if program.mean is None:
        program.mean = x.mean()
    return program.mean


def in_a_cache(program, x):
    if "mean" not in program.cache:
        program.cache["mean"] = x.mean()
    return program.cache["mean"]


def in_an_array_with_a_flag(program, x):
    if not program.ready:
        program.array[0], program.ready = x.mean().item(), True
    return float(program.array[0])


def in_a_buffer_with_a_flag(program, x):
    if not program.ready:
        program.buffer.copy_(x.mean())
        program.ready = True
    return program.buffer


def in_weights_with_a_flag(program, x):
    """As ActNorm starts."""
    if not program.ready:
        with torch.no_grad():
            program.shift.copy_(x.mean())
        program.ready = True
    return program.shift


def in_a_cache_of_functools(program, x):
    program.now = x
    return program.cached()


def in_a_running_buffer(program, x):
    program.buffer.mul_(0.5).add_(0.5 * x.mean())
    return program.buffer.clone()


STATISTICS = [
    in_an_attribute,
    in_a_cache,
    in_an_array_with_a_flag,
    in_a_buffer_with_a_flag,
    in_weights_with_a_flag,
    in_a_cache_of_functools,
    in_a_running_buffer,
]


@pytest.mark.parametrize("statistic", STATISTICS)
def test_what_a_first_call_keeps_of_its_rows_is_of_the_first_batch(statistic):
    """Losses are those of a loop that calls the program once a step."""
    program, alike = Centred(statistic), Centred(statistic)
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-12), "progress": False}
    run = pv.fit(program, DataLoader(X, batch_size=B), epochs=1, compile=False, **still)
    losses = [-poutine.trace(alike.model).get_trace(x).log_prob_sum() / B for x in X.split(B)]
    assert run.history["loss"][0] == pytest.approx(sum(losses).item() * B / N, rel=1e-9)


@pytest.mark.parametrize("statistic", [in_an_attribute, in_a_cache])
def test_what_a_first_call_keeps_of_its_rows_is_a_constant_of_others(statistic):
    """Batches of tensors would be refused where each had its own mean."""
    pv.fit(Centred(statistic), X, epochs=1, batch_size=B, progress=False, compile=False)


def test_a_count_hides_no_density_that_reads_the_rows_beside():
    class Both(Annealed):
        def model(self, x):
            scale = 1 + 1 / self.count(self)
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(self.w * x.mean(), scale), obs=x)

    with pytest.raises(ProgramError, match="all data at once"):
        pv.fit(Both(made()["in_a_list"]), X, epochs=1, batch_size=B, progress=False)
