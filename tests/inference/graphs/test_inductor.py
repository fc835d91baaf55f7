"""Compiled code is called without wrappers where these add nothing."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pyro_vae.inference.graphs import inductor
from pyro_vae.inference.graphs.make_graph import make_graph
from pyro_vae.torch_private import compiler


class Code:
    """Stands for the compiler's own class: the code takes a list, and empties it."""

    def current_callable(self, given):
        w, x = given
        given.clear()
        w.add_(1)
        return [w * x + torch.rand(()), w.sum()]

    def __call__(self, given):
        return self.current_callable(given)


def twice(w, x):
    return [a + b for a, b in zip(Code()([w.clone(), x]), Code()([w, x]), strict=True)]


WRAPPERS = {
    "adds nothing": lambda w, x: tuple(Code()([w, x])),
    "copies an input": lambda w, x: tuple(Code()([w, x.clone()])),
    "changes a result": lambda w, x: (Code()([w, x])[0] * 2, w.sum()),
    "gives fewer": lambda w, x: Code()([w, x])[:1],
    "runs it twice": twice,
}


@pytest.mark.parametrize("held", [0, 1], ids=["inputs alone", "a constant"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_what_a_wrapper_does_is_not_left_out(name, held, monkeypatch):
    monkeypatch.setattr(inductor, "compiler", lambda _: SimpleNamespace(CompiledFxGraph=Code))
    calls, w, x = [], torch.ones(2), torch.tensor([2.0, 3.0])

    def run(*given):
        calls.append(given)
        return WRAPPERS[name](*given)

    torch.manual_seed(0)
    bare = inductor._bare(run, [w][:held], [w, x][held:], [0])
    assert torch.equal(w, torch.ones(2))
    calls.clear()
    bare(*[w.clone(), x][held:])
    assert bool(calls) == (name != "adds nothing")
    w.fill_(1)
    results = []
    for function, given in ((run, [w, x]), (bare, [w, x][held:])):
        torch.manual_seed(0)
        results.append([*function(*given), w.clone()])
        w.fill_(1)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_no_noise_is_taken_by_the_look(monkeypatch):
    monkeypatch.setattr(inductor, "compiler", lambda _: SimpleNamespace(CompiledFxGraph=Code))
    before = torch.get_rng_state()
    inductor._bare(WRAPPERS["adds nothing"], [], [torch.ones(2), torch.ones(2)], [0])
    assert torch.equal(torch.get_rng_state(), before)


def test_what_the_processor_can_is_not_tried_in_each_process(monkeypatch):
    """Each trial loads torch in a new process: seconds before a compiled graph runs."""
    config, seen = compiler("config"), []

    def load(**_):
        seen.append(config.cpp.vec_isa_ok)
        return lambda x: (x.sum(), x.sum())

    monkeypatch.setattr(compiler().CompiledArtifact, "load", load)
    inductor.load_compiled(Path("compiled"), [], [torch.ones(2)], [])
    assert seen == [True] and config.cpp.vec_isa_ok is None
    assert inductor._options([torch.ones(2)])["cpp.vec_isa_ok"]


def compiled_for_cuda(monkeypatch, function, inputs, stays):
    """Compile as for a GPU, up to the kernels; return the code and what their compiler was told."""
    monkeypatch.setattr(inductor, "_on_cuda", lambda inputs: True)
    code, told = compiler("compile_fx"), []

    def kernels(graph, inputs, **options):
        told.append(options["static_input_idxs"])
        return code.make_boxed_func(graph.forward)

    monkeypatch.setattr(code, "compile_fx_inner", kernels)
    graph = make_graph(function, *[leaf.clone() for leaf in inputs])
    run = inductor.compile_graph(graph, inputs, stays)
    return run, [list(places) for places in told]


def test_on_a_gpu_what_stays_in_place_is_not_copied(monkeypatch):
    """Constants, weights and buffers, which a step may write to; not the rows."""
    constant = torch.arange(2.0)

    def step(weight, buffer, x):
        mean = (x @ weight + constant).mean(0)
        buffer.add_(mean)
        return mean.sum(), weight * 2

    inputs = [torch.ones(3, 2), torch.zeros(2), torch.ones(5, 3)]
    run, told = compiled_for_cuda(monkeypatch, step, inputs, stays=2)
    assert told == [[0, 1, 2]]
    loss, _, grad = run(*inputs)
    assert loss == 7 and torch.equal(grad, torch.full((3, 2), 2.0))
    assert torch.equal(inputs[1], torch.tensor([3.0, 4.0]))


def test_inputs_that_share_memory_are_copied(monkeypatch):
    """The compiler puts them in another order, in which other places stay."""
    data = torch.ones(5, 4)
    run, told = compiled_for_cuda(
        monkeypatch,
        lambda w, x, y: ((w * x).sum(), y * 1),
        [torch.ones(2), data[:, :2], data[:, 2:]],
        stays=1,
    )
    assert told == [[]] and run(torch.ones(2), data[:, :2], data[:, 2:])[0] == 10
