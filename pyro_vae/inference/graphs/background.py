"""Compiling beside the training: another process does it, and leaves the result in a file."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx import GraphModule

from pyro_vae.inference.graphs.comparison import (
    compiler_slack,
    constants,
    difference,
    graph_outcome,
)
from pyro_vae.inference.graphs.flat_inputs import FlatStep
from pyro_vae.inference.graphs.inductor import (
    load_compiled,
    save_compiled,
    with_constants_as_inputs,
)
from pyro_vae.inference.graphs.make_graph import make_graph
from pyro_vae.inference.graphs.simplify import written_inputs

# What the other process takes, about: until its compiler is there, and for each node of the graph.
# A run with less than so many times that to go would gain little.
_START_SECONDS, _NODE_SECONDS, _TIMES = 8.0, 0.02, 2.0
_SHARE = 0.2  # of the steps; a graph with fewer, that of ragged batches, stays as it is
_WARM = 20  # calls before the clock starts
_TIMED = 60  # calls by which the time to go is estimated
_POLL = 25  # calls between two looks at the other process
_BLOCK = 10  # calls per side and round of the trial
_ROUNDS = 7
_DONE = "done"  # the file by which the other process says that it has compiled
_LOOK = 0.2  # seconds between two looks of the other process at this one


class Background:
    """Decides what each step runs: the traced graph, or the compiled one once it is there.

    The first steps tell how long the run will take. Where that is long enough, another process of
    low priority compiles the graph; then both graphs take turns for some steps, and the faster one
    stays. A compiler that fails, or is not there, changes nothing.

    Arguments:
        steps: Steps of the run.
        worth: Seconds to go below which nothing is compiled; None: twice what compiling takes.
        clock: Seconds now.
    """

    def __init__(
        self,
        steps: int,
        *,
        worth: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.steps = steps
        self.worth = worth
        self.clock = clock
        self.calls = 0
        self._plans: dict[int, Iterator[FlatStep]] = {}

    def choose(self, graph: GraphModule, run: FlatStep, inputs: Sequence[Tensor]) -> FlatStep:
        """Return what the coming step should run.

        Arguments:
            graph: The traced graph of the batch's signature.
            run: What its last step ran; before the first, the traced graph's function.
            inputs: Of the step.
        """
        self.calls += 1
        plan = self._plans.get(id(graph))
        if plan is None:
            plan = self._plans[id(graph)] = self._plan(graph, run, inputs)
        return next(plan, run)

    def _plan(
        self, graph: GraphModule, traced: FlatStep, inputs: Sequence[Tensor]
    ) -> Iterator[FlatStep]:
        """Yield what each step runs, until that is settled: the last one stays."""
        first = self.calls
        for _ in range(_WARM):
            yield traced
        start = self.clock()
        for _ in range(_TIMED):
            yield traced
        seconds = (self.clock() - start) / _TIMED
        often = _SHARE * (self.calls - first) < _WARM + _TIMED
        worth = _TIMES * seconds_to_compile(graph) if self.worth is None else self.worth
        if not often or seconds * (self.steps - self.calls) < worth:
            return
        try:
            child = Elsewhere(graph, inputs)
        except Exception:  # no room on the disk, no process to be had
            return
        while child.poll() is None:
            for _ in range(_POLL):
                yield traced
        compiled = _loaded(child, graph, traced, inputs) if child.returncode == 0 else None
        if compiled is not None:
            yield from self._trial(traced, compiled, inputs[0].device)

    def _trial(
        self, traced: FlatStep, compiled: FlatStep, device: torch.device
    ) -> Iterator[FlatStep]:
        """Let both run in turns, and end with the faster."""
        for _ in range(_BLOCK):
            yield compiled  # the first calls load and warm up
        ratios = []
        for _ in range(_ROUNDS):
            taken = []
            for run in (traced, compiled):
                start = self._now(device)
                for _ in range(_BLOCK):
                    yield run
                taken.append(self._now(device) - start)
            ratios.append(taken[1] / taken[0])
        yield compiled if statistics.median(ratios) < 1 else traced

    def _now(self, device: torch.device) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # fifteen syncs per run
        return self.clock()


def seconds_to_compile(graph: GraphModule) -> float:
    """Return what another process takes, about, to compile a graph."""
    return _START_SECONDS + _NODE_SECONDS * len(graph.graph.nodes)


def _loaded(
    child: "Elsewhere", graph: GraphModule, traced: FlatStep, inputs: Sequence[Tensor]
) -> FlatStep | None:
    """Return the compiled graph; None where it does not load, or not give the graph's numbers."""
    (output,) = graph.graph.find_nodes(op="output")
    places = range(len(output.args[0]) - 1)
    written = written_inputs(graph)
    try:
        compiled = child.load()
        mine, exact = (
            graph_outcome(run, inputs, written, places, len(places)) for run in (compiled, traced)
        )
    except Exception:  # whatever: the traced graph is there
        return None
    if mine.loss.is_cuda:
        return compiled  # whose noise is of its own
    names = [f"input {index}" for index in range(len(places) + len(inputs))]
    return compiled if difference(exact, mine, names, compiler_slack(graph)) is None else None


class Elsewhere:
    """A process that compiles a graph at low priority; it ends with the run that asked for it.

    It gets the graph as source text and the shapes of its inputs. When it is done it says so by a
    file, and stays until it is ended: should this process be killed, it removes their folder.

    Arguments:
        graph: What to compile.
        inputs: Tensors of the shapes to come.
        nice: How far the process stands back; at 19 it takes what nobody else wants.
    """

    def __init__(self, graph: GraphModule, inputs: Sequence[Tensor], nice: int = 19) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pyro_vae_compile_"))  # for this user's eyes
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        lifted, self._held = with_constants_as_inputs(graph)
        self._inputs = [*self._held, *inputs]
        self._written = written_inputs(lifted)
        write_graph(self._folder, lifted, self._inputs)
        # What a graph leaves open, its noise among it, is of that type.
        default = str(torch.get_default_dtype()).removeprefix("torch.")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, (self._folder, nice, os.getpid(), default))],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # signals to the group of this process do not end it first
        )
        self._end = weakref.finalize(self, _end, self._process)

    @property
    def returncode(self) -> int | None:
        """0 where the graph is compiled; None as long as the process compiles."""
        return 0 if (self._folder / _DONE).exists() else self._process.returncode

    def poll(self) -> int | None:
        """Look, without waiting, whether the process has compiled or failed; return its code."""
        self._process.poll()
        return self.returncode

    def load(self) -> FlatStep:
        """Return the compiled graph, and end the process."""
        path, held = self._folder / "compiled", self._held
        compiled = load_compiled(path, held, self._inputs[len(held) :], self._written)
        self._end()
        return compiled


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):  # gone
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)  # and the compilers that it has started
    process.wait()  # a killed process is gone at once; one that is not waited for stays a zombie


def _outlive(parent: int, folder: Path) -> None:
    """Remove the folder once the parent is gone, and end this process and its compilers."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def write_graph(folder: Path, graph: GraphModule, inputs: Sequence[Tensor]) -> None:
    """Write a graph as Python source, its constants and the shapes of its inputs."""
    source = "import torch\nfrom torch import device, inf, nan\n" + graph.code
    (folder / "graph.py").write_text(source)
    held = {name: value.detach().clone() for name, value in constants(graph).items()}
    save_file(
        {name: value.contiguous() for name, value in held.items()}, folder / "constants.safetensors"
    )
    shapes = [
        (list(leaf.shape), leaf.stride(), str(leaf.dtype).removeprefix("torch."), str(leaf.device))
        for leaf in inputs
    ]
    (folder / "inputs.json").write_text(json.dumps(shapes))


def read_graph(folder: Path) -> tuple[GraphModule, list[Tensor]]:
    """Read what ``write_graph`` wrote: the graph, and inputs of the right shapes."""
    spec = spec_from_file_location("traced_graph", folder / "graph.py")
    assert spec is not None and spec.loader is not None  # a file that is there
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    inputs = [
        torch.empty_strided(shape, stride, dtype=getattr(torch, dtype), device=device).zero_()
        for shape, stride, dtype, device in json.loads((folder / "inputs.json").read_text())
    ]
    holder = nn.Module()
    for name, value in load_file(folder / "constants.safetensors").items():
        holder.register_buffer(name, value.to(inputs[0].device))
    with torch.no_grad():
        return make_graph(lambda *flat: module.forward(holder, *flat), *inputs), inputs


if __name__ == "__main__":
    os.nice(int(sys.argv[2]))
    home, parent = Path(sys.argv[1]), int(sys.argv[3])
    if os.name != "nt":  # where a process is not told who its parent is
        threading.Thread(target=_outlive, args=(parent, home), daemon=True).start()
    torch.set_default_dtype(getattr(torch, sys.argv[4]))
    save_compiled(*read_graph(home), home / "compiled")
    (home / _DONE).touch()
    while True:  # until the parent ends this process, or the watch over it does
        time.sleep(3600)
