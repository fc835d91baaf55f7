"""A graph is kept from one training of a program to the next, while it is the right one."""

import copy
import pickle
import random

import pytest
import torch
from graph_programs import D, Net, built, data
from torch import nn

import pyro_vae as pv
from pyro_vae.inference.graphs import compiled_loss, kept_graphs, program_step
from pyro_vae.inference.graphs.python_state import PythonState

SCALE, ROW = 1.0, 47


class Odd(Net):
    """Its odd part hangs on all that other code may change between two trainings."""

    def build(self):
        self.drop, self.act, self.extra = nn.Dropout(0.5), nn.Tanh(), nn.Linear(D, D)
        self.rare, self.factor = None, 1.0

    def odd(self, mean, x):
        mean = self.act(self.drop(mean * self.w)) * self.factor * SCALE + self.extra(mean)
        if self.rare and self.rare(x):  # for rows that come later than any comparison
            mean = mean + (x > 50).any(1)[:, None]
        return mean


@pytest.fixture
def traces(monkeypatch):
    """Return a list that gets one entry for each trace."""
    made, trace = [], program_step.trace_step
    monkeypatch.setattr(program_step, "trace_step", lambda *a: made.append(1) or trace(*a))
    return made


def fit(program, compile="trace", x=None, **options):
    x = data() if x is None else x
    options = {"batch_size": len(x), "max_steps": 3, **options}
    pv.fit(program, x, compile=compile, progress=False, **options)
    return {name: value.clone() for name, value in program.state_dict().items()}


def change_rate(program):
    program.drop.p = 0.1


def change_part(program):
    program.act = nn.Sigmoid()


def freeze(program):
    program.dec.weight.requires_grad_(False)


def tie(program):
    program.extra.bias = program.dec.bias


def change_number(program):
    program.factor = 2.0


CHANGES = (change_rate, change_part, freeze, tie)


def test_a_second_training_traces_nothing_and_gives_the_same_numbers(traces):
    found, exact = built(Odd), built(Odd)
    for seed in range(2):
        mine, its = fit(found, seed=seed), fit(exact, False, seed=seed)
        assert all(torch.equal(mine[name], its[name]) for name in its)
    assert len(traces) == 1


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_in_between_is_traced_anew(change, traces):
    found, exact = built(Odd), built(Odd)
    for program in (found, exact):
        fit(program, "trace" if program is found else False)
        change(program)
    mine, its = fit(found), fit(exact, False)
    assert all(torch.equal(mine[name], its[name]) for name in its)
    assert len(traces) == 2


def test_a_global_of_the_program_counts(traces, monkeypatch):
    program = built(Odd)
    before = fit(program)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    again = built(Odd)
    again.load_state_dict(before)
    assert torch.equal(fit(program)["w"], fit(again, False)["w"])
    assert len(traces) == 2


RARE = {
    "numpy": lambda x: (x.numpy() > 50).any(),
    "tolist": lambda x: any(value > 50 for row in x.tolist() for value in row),
    "draws": lambda x: random.random() < 0.3,
}


@pytest.mark.parametrize("way", RARE)
def test_python_that_shows_in_rare_rows_alone_is_seen(way, monkeypatch):
    """Also where no look at the program finds what asks for it."""
    monkeypatch.setattr(PythonState, "change_since", lambda *_: None)
    found, exact = built(Odd), built(Odd)
    x = data()
    x[ROW] = 60.0  # in the third batch: the first two are compared
    states = []
    for program, mode in ((found, "trace"), (exact, False)):
        fit(program, mode, batch_size=16)
        program.rare = RARE[way]
        random.seed(0)
        with pytest.warns(UserWarning, match=way) if mode else torch.no_grad():
            states.append(fit(program, mode, x, batch_size=16))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_another_loss_is_another_graph(traces):
    found, exact = built(Odd), built(Odd)
    for objective in (pv.IWAE(2), pv.IWAE(3), pv.IWAE(2)):
        mine, its = (fit(p, c, objective=objective) for p, c in ((found, "trace"), (exact, False)))
        assert all(torch.equal(mine[name], its[name]) for name in its)
    assert len(traces) == 2


def test_a_kept_graph_that_is_wrong_is_found_out(traces, monkeypatch):
    """Where nothing told that the program is another one, the comparisons do."""
    found, exact = built(Odd), built(Odd)
    monkeypatch.setattr(
        kept_graphs.KeptGraphs, "find", lambda self, *_: next(iter(self._all), None)
    )
    for program, mode in ((found, "trace"), (exact, False)):
        fit(program, mode)
        change_number(program)
    mine, its = fit(found), fit(exact, False)
    assert all(torch.equal(mine[name], its[name]) for name in its)
    assert len(traces) > 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_a_copy_begins_with_no_graphs(copied, traces):
    program = built(Odd)
    fit(program)
    twin = copied(program)
    mine, its = fit(twin), fit(program)
    assert len(traces) == 2
    assert all(torch.equal(mine[name], its[name]) for name in its)


def test_few_graphs_are_kept_and_none_with_data_in_it(monkeypatch):
    monkeypatch.setattr(kept_graphs, "_MANY", 2)
    program = built(Odd)
    for rows in (8, 10, 12):
        fit(program, x=data(rows))
    kept = kept_graphs.KeptGraphs.of(pv.Program.of(program))
    assert [k.layout[0][-1][0][0] for k in kept._all] == [10, 12]
    monkeypatch.setattr(kept_graphs, "_BYTES", -1)
    fit(program, x=data(14))
    assert [k.layout[0][-1][0][0] for k in kept._all] == [10, 12]


def test_what_the_compiler_made_is_kept_too(monkeypatch):
    made = []

    def compiled(graph, inputs):
        made.append(graph)
        return compiled_loss.normed(graph.forward)

    monkeypatch.setattr(compiled_loss, "compile_graph", compiled)
    found, exact = built(Odd), built(Odd)
    for seed in range(2):
        mine, its = fit(found, True, seed=seed), fit(exact, False, seed=seed)
        assert all(torch.equal(mine[name], its[name]) for name in its)
    assert len(made) == 1
