"""A graph that is compiled takes its constants as inputs."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.inference.graphs import background
from pyro_vae.inference.graphs.inductor import with_constants_as_inputs
from pyro_vae.inference.graphs.make_graph import make_graph

TABLE, OTHER = torch.arange(3.0), torch.tensor(5.0)


def step(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return (x * TABLE + OTHER).sum(), y * TABLE


INPUTS = torch.randn(3), torch.randn(3)


def test_constants_become_the_first_inputs() -> None:
    graph = make_graph(step, *INPUTS)
    lifted, held = with_constants_as_inputs(graph)
    assert not lifted.graph.find_nodes(op="get_attr") and graph.graph.find_nodes(op="get_attr")
    assert len(lifted.graph.find_nodes(op="placeholder")) == len(held) + 2
    for mine, exact in zip(lifted(*held, *INPUTS), step(*INPUTS), strict=True):
        torch.testing.assert_close(mine, exact)


def test_the_other_process_gets_a_graph_without_constants(monkeypatch: Any) -> None:
    monkeypatch.setattr(background.subprocess, "Popen", lambda *args, **options: None)
    monkeypatch.setattr(background, "_end", lambda process: None)
    seen = []

    def load(path: Path, held: list[Tensor], inputs: list[Tensor], written: list[int]) -> Any:
        assert not written
        graph, there = background.read_graph(path.parent)
        assert not graph.graph.find_nodes(op="get_attr")
        shapes = json.loads((path.parent / "inputs.json").read_text())
        assert len(shapes) == len(there) == len(held) + len(inputs)
        seen.append((len(held), len(inputs)))
        return lambda *flat: graph(*held, *flat)

    monkeypatch.setattr(background, "load_compiled", load)
    run = background.Elsewhere(make_graph(step, *INPUTS), INPUTS).load()
    assert seen == [(2, 2)]
    for mine, exact in zip(run(*INPUTS), step(*INPUTS), strict=True):
        torch.testing.assert_close(mine, exact)
