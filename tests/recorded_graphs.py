"""CUDA graphs on the CPU: what runs under a capture is written down, and a replay runs it again.

As on a card, a replay reads and writes the tensors of the capture and no others, and draws new
noise. Unlike there, what runs under the capture has an effect at once: it is undone at its end.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vae import recording
from pyro_vae.inference.graphs import graph_step
from pyro_vae.torch_private import overlaps_itself
from pyro_vae.training.adam import Adam


class Graph:
    """Stands for ``torch.cuda.CUDAGraph``."""

    replays = 0  # of all graphs

    def __init__(self) -> None:
        self.calls = []

    @torch.no_grad()
    def replay(self) -> None:
        Graph.replays += 1
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for now, then in zip(tree_leaves(again), tree_leaves(result), strict=True):
                if isinstance(then, Tensor) and now.data_ptr() != then.data_ptr():
                    then.copy_(now)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.before = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        named = kwargs or {}
        # All that it takes: native_batch_norm does not say what it writes to.
        for leaf in tree_leaves((args, named)):
            if isinstance(leaf, Tensor) and not overlaps_itself(leaf):
                place = leaf.data_ptr(), leaf.shape, leaf.stride()
                self.before.setdefault(place, (leaf, leaf.clone()))
        result = func(*args, **named)
        self.graph.calls.append((func, args, named, result))
        return result


@contextmanager
def capture(graph: Graph, **options):
    """Stand for ``torch.cuda.graph``: nothing that runs inside moves a tensor or the noise."""
    noise = torch.get_rng_state()
    with _Recorder(graph) as recorder:
        yield
    torch.set_rng_state(noise)
    with torch.no_grad():
        for leaf, copy in reversed(recorder.before.values()):  # views of one memory are among them
            leaf.detach().copy_(copy)


def stand_in(monkeypatch) -> None:
    """Let what captures CUDA graphs capture those of this module."""
    monkeypatch.setattr(Graph, "replays", 0)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "CUDAGraph": Graph,
        "graph": capture,
        "device": lambda device: nullcontext(),
        "Stream": lambda device=None: stream,
        "stream": lambda chosen: nullcontext(),
        "current_stream": lambda device=None: stream,
        "synchronize": lambda device=None: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


def on_the_cpu(monkeypatch) -> None:
    """Let the library record what runs on the CPU."""
    stand_in(monkeypatch)
    for module in (recording, graph_step):
        monkeypatch.setattr(module, "records", lambda tensor: True)
    gather = Adam._gather

    def counting_in_tensors(optimizer, moved):
        gather(optimizer, moved)
        optimizer._counts = optimizer._steps  # NumPy's adding is seen by no recorder

    monkeypatch.setattr(Adam, "_gather", counting_in_tensors)
