"""Compiling beside the training: when it starts, what it leaves, which graph stays."""

import os
import signal
import time

import pytest
import torch
from releases import compiles_all
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.inference.graphs import background
from pyro_vae.inference.graphs.background import Background, read_graph, write_graph
from pyro_vae.inference.graphs.flat_inputs import normed
from pyro_vae.inference.graphs.simplify import simplify
from pyro_vae.storage.atomic import is_running

X = torch.linspace(-1, 1, 6).reshape(2, 3)


def graph_of(function, *inputs):
    return simplify(make_fx(function)(*inputs), inputs)


class Child:
    """A compiler in another process that needs a number of looks to be ready."""

    def __init__(self, looks=2, code=0):
        self.looks, self.returncode, self._code = looks, None, code

    def load(self):
        return "compiled"

    def poll(self):
        self.looks -= 1
        if self.looks <= 0:
            self.returncode = self._code
        return self.returncode


class World:
    """A clock that each run moves on by what the run costs."""

    def __init__(self, monkeypatch, traced=1.0, compiled=0.5, child=None):
        self.now, self.started = 0.0, 0
        self.costs = {"traced": traced, "compiled": compiled}
        self.graph = graph_of(lambda x: (x * 2,), X)

        def start(graph, inputs):
            self.started += 1
            return child or Child()

        monkeypatch.setattr(background, "Elsewhere", start)
        monkeypatch.setattr(background, "_loaded", lambda child, *rest: child.load())

    def train(self, steps, worth):
        plan = Background(steps, worth=worth, clock=lambda: self.now)
        run, ran = "traced", []
        for _ in range(steps):
            run = plan.choose(self.graph, run, [X])
            self.now += self.costs[run]
            ran.append(run)
        return ran


def test_a_short_run_is_not_compiled(monkeypatch):
    world = World(monkeypatch)
    assert set(world.train(1000, worth=2000.0)) == {"traced"} and world.started == 0


def test_a_long_run_ends_compiled(monkeypatch):
    world = World(monkeypatch)
    ran = world.train(1000, worth=100.0)
    assert world.started == 1 and set(ran[-500:]) == {"compiled"}
    # It waits for nobody: before the compiler is ready, the traced graph runs.
    assert set(ran[:100]) == {"traced"}


def test_a_run_is_compiled_where_it_has_twice_to_go_what_its_graph_takes(monkeypatch):
    world = World(monkeypatch)
    size = len(world.graph.graph.nodes)
    at_least = 2 * (8 + 0.02 * size)
    for to_go, started in ((at_least - 2, 0), (at_least + 2, 1)):
        world.train(80 + round(to_go), worth=None)  # a second each, behind those that tell it
        assert world.started == started


def test_the_traced_graph_stays_where_it_is_faster(monkeypatch):
    ran = World(monkeypatch, compiled=1.1).train(1000, worth=100.0)
    assert "compiled" in ran and set(ran[-500:]) == {"traced"}


def test_a_compiler_that_fails_changes_nothing(monkeypatch):
    world = World(monkeypatch, child=Child(code=1))
    assert set(world.train(1000, worth=100.0)) == {"traced"} and world.started == 1


def test_a_compiler_that_cannot_start_changes_nothing(monkeypatch):
    world = World(monkeypatch)

    def fail(graph, inputs):
        raise OSError("No space left on device")

    monkeypatch.setattr(background, "Elsewhere", fail)
    assert set(world.train(1000, worth=100.0)) == {"traced"}


@pytest.mark.parametrize(
    ("load", "kept"),
    [
        (lambda: 1 / 0, False),
        (lambda: lambda x: 1 / 0, False),
        (lambda: lambda x: (x.sum(), x.norm(), x * 1.01), False),
        (lambda: lambda x: (x.sum() + 1.0, x.norm(), x * 1.0), False),
        (lambda: lambda x: (x.sum(), x.norm(), x * (1.0 + 1e-6)), True),
    ],
    ids=["not loaded", "an error", "another gradient", "another loss", "rounded otherwise"],
)
def test_a_compiled_graph_stays_only_where_it_gives_the_traced_numbers(load, kept):
    graph = graph_of(lambda x: (x.sum(), x * 1.0), X)
    child = type("Ready", (), {"load": staticmethod(load)})()
    found = background._loaded(child, graph, normed(graph), [X])
    assert (found is not None) == kept


def test_constants_that_share_memory_are_written(tmp_path):
    table = torch.arange(6.0)
    whole = table.view(2, 3)
    graph = graph_of(lambda x: (x * whole, table.sum() + x), X)
    write_graph(tmp_path, graph, [X])
    read, _ = read_graph(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(graph(X), read(X), strict=True))


def test_a_rare_shape_is_not_worth_a_compiler(monkeypatch):
    world = World(monkeypatch)
    other = graph_of(lambda x: (x * 3,), X)
    plan = Background(100_000, worth=1e9, clock=lambda: world.now)
    for step in range(3000):
        world.now += 1.0
        plan.choose(other if step % 20 == 0 else world.graph, "traced", [X])
    plan.worth = 0.0  # from here on only the share of the steps is in the way
    for _ in range(3000):
        world.now += 1.0
        plan.choose(other if _ % 20 == 0 else world.graph, "traced", [X])
    assert world.started == 0


def test_a_graph_survives_the_way_to_the_other_process(tmp_path):
    weight = torch.linspace(0, 2, 9).reshape(3, 3)
    table = torch.tensor([1.0, 2.0, 5.0])

    def function(x, w):
        noise = torch.randn(2, 3)
        return (torch.nn.functional.linear(x, w.t()) * table + noise, (x > 0).all(), x.sum())

    inputs = (X, weight.t())
    graph = graph_of(function, *inputs)
    write_graph(tmp_path, graph, inputs)
    read, shapes = read_graph(tmp_path)
    assert [s.stride() for s in shapes] == [i.stride() for i in inputs]
    results = []
    for run in (graph, read):
        torch.manual_seed(0)
        results.append(run(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not any(path.suffix in (".pt", ".pkl") for path in tmp_path.iterdir())


@compiles_all
@pytest.mark.slow
def test_the_other_process_compiles():
    """Loading takes no compiler: a file, no cache whose key another process could miss.

    The noise is of the default type, which is another one here than there.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        graph = graph_of(lambda x: (x.exp() * torch.randn(2, 3), x.sum()), X)
        child = background.Elsewhere(graph, [X], nice=0)  # the machine may be busy
        assert_compiled(child, graph)
    finally:
        torch.set_default_dtype(before)


def assert_compiled(child, graph):
    start = time.monotonic()
    while child.poll() is None and time.monotonic() < start + 300:
        time.sleep(0.1)
    assert child.returncode == 0
    run = child.load()
    assert child._process.returncode is not None  # ended, once it is loaded
    for seed in range(2):
        torch.manual_seed(seed)
        loss, norm, total = run(X)
        torch.manual_seed(seed)
        for a, b in zip((loss, total), graph(X), strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(norm, total.abs())  # of the one gradient


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="a process is known by its parent there")
def test_a_killed_run_takes_its_compiler_and_its_folder_along():
    """A forked process starts the compiler, and is killed before the compiler has begun."""
    graph = graph_of(lambda x: (x.exp().sum(),), X)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        child = background.Elsewhere(graph, [X])
        os.write(theirs, f"{child._process.pid} {child._folder}\n".encode())
        time.sleep(60)
        os._exit(0)
    number, folder = os.read(ours, 1000).decode().split()
    os.close(ours)
    os.close(theirs)
    assert os.path.exists(f"{folder}/graph.py")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_until(lambda: not os.path.exists(folder) and not is_running(int(number)))


def wait_until(condition):
    end = time.monotonic() + 900  # the compiler gives way to all others: on busy cores it is slow
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
