"""Compiled code is called without wrappers where these add nothing."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pyro_vae.inference.graphs import inductor
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
