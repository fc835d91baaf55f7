"""What is an input of a graph: later parameters, numbers, arguments that are no rows."""

import dataclasses
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from graph_programs import ROWS, Net, Z, built, data

import pyro_vae as pv
from pyro_vae.inference.graphs import compiled_loss
from pyro_vae.program.handlers import validation
from pyro_vae.program.program import Program
from pyro_vae.training.settings import adam
from pyro_vae.training.step import Stepper


def by_width(x):
    """A model with a parameter per width of its rows, and running statistics of their mean."""
    width = x.shape[1]
    bias = pyro.param(f"bias{width}", lambda: torch.zeros(width, dtype=x.dtype))
    scale = pyro.param("a scale", lambda: torch.ones((), dtype=x.dtype))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(bias + scale * z[:, None], 1.0).to_event(1), obs=x)


def by_width_guide(x):
    slope = pyro.param("slope", lambda: torch.ones((), dtype=x.dtype))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x.mean(1), 1.0))


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_parameter_of_a_later_batch_moves_no_input_of_an_earlier_graph(clip_norm):
    ends = []
    for mode in (False, "trace"):
        program = pv.Program(by_width, by_width_guide)
        program.read(data()[:, :2])
        program.train()
        stepper = Stepper(
            program, pv.ELBO(), adam(0.05), clip_norm=clip_norm, size=48, compile=mode, steps=100
        )
        torch.manual_seed(0)
        with program.running(), validation(False):
            for width in (2, 2, 5, 2, 5):
                stepper.step(data()[:, :width], None)
        assert stepper.compiled == ("graph" if mode else "eager")
        ends.append({name: p.detach().clone() for name, p in program.named_parameters()})
    assert len(ends[0]) == 4 and ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        assert torch.equal(ends[1][name], value), name
        assert value.any()


class Weighted(Net):
    """Its arguments are rows, a number, settings and a tensor of no dimension."""

    def model(self, x, weight, settings, scale=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            mean = weight * self.dec(z) + (self.w if settings["shift"] else 0.0)
            pyro.sample("x", dist.Normal(mean * scale, 1.0).to_event(1), obs=x)

    def guide(self, x, weight, settings, scale=None):
        super().guide(x)


def run_of(batches, kind=Weighted, betas=None, between=lambda step, program, stepper: None):
    """Require equal weights after steps in a row, eager and traced; return the traced stepper."""
    ends = []
    for mode in (False, "trace"):
        program = Program.of(built(kind))
        program.read(batches[0])
        program.train()
        make = {"clip_norm": None, "size": 48, "compile": mode, "steps": 100}
        stepper = Stepper(program, pv.ELBO(), adam(0.01), **make)
        torch.manual_seed(0)
        with program.running(), validation(False), stepper.in_a_row():
            for step, batch in enumerate(batches):
                between(step, program, stepper)
                stepper.step(batch, betas and betas[step])
        ends.append([p.detach().clone() for p in program.parameters()])
    for mine, exact in zip(*reversed(ends), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-8, atol=1e-12)
    return stepper


SCALE = torch.tensor(0.7, dtype=torch.float64)


def test_arguments_that_are_no_rows_keep_graphs_apart():
    """A flag of a dict and a number of two values: three graphs. A tensor is an input."""
    kinds = [(1.0, True), (0.5, True), (1.0, False)]
    batches = [
        (rows, weight, {"shift": shift}, SCALE * (1 + index))
        for index, rows in enumerate(data().split(ROWS))
        for weight, shift in kinds
    ]
    stepper = run_of(batches)
    assert stepper.compiled == "graph" and stepper._compiled[0].num_graphs == 3


def test_a_number_that_is_another_at_each_batch_runs_eagerly(monkeypatch):
    monkeypatch.setattr(compiled_loss, "_MANY_VALUES", 2)
    rows = data(ROWS)
    with pytest.warns(UserWarning, match="pass a number that changes as a tensor"):
        stepper = run_of([(rows, 1 / (1 + step), {"shift": True}, SCALE) for step in range(5)])
    assert stepper.compiled.startswith("eager")


def test_a_number_passed_as_a_tensor_is_an_input():
    rows = data(ROWS)
    weights = [torch.tensor(1 / (1 + step), dtype=torch.float64) for step in range(8)]
    stepper = run_of([(rows, weight, {"shift": True}, SCALE) for weight in weights])
    assert stepper.compiled == "graph" and stepper._compiled[0].num_graphs == 1


ROW_OF_STEPS = {
    "fewer rows": ((12,) * 4 + (7,) * 4 + (12,) * 2, [None] * 10, 2),
    "another kind of KL weight": (
        (12,) * 10,
        [None] * 3 + [0.3, 0.5, 0.7] + [{"z": 0.2}, {"z": 0.4}] + [None] * 2,
        3,
    ),
}


@pytest.mark.parametrize("name", ROW_OF_STEPS)
def test_steps_in_a_row_take_rows_and_weights_of_their_own(name):
    sizes, betas, graphs = ROW_OF_STEPS[name]
    rows = itertools.cycle(data().split(ROWS))
    stepper = run_of([next(rows)[:size] for size in sizes], Net, betas)
    assert stepper.compiled == "graph" and stepper._compiled[0].num_graphs == graphs
    assert stepper._compiled[0]._again is None  # the row is over


def test_what_is_frozen_in_a_row_of_steps_stays_where_that_is_told():
    def between(step, program, stepper):
        if step == 5:
            next(iter(program.parameters())).requires_grad_(False)
            stepper.doubt()

    stepper = run_of(list(data().split(ROWS)) * 2, Net, between=between)
    assert stepper._compiled[0].num_graphs == 2


@pytest.mark.parametrize("other", ["a transform", "an update that is asked", "two updates"])
def test_no_steps_are_in_a_row_where_other_code_runs_between_them(other):
    program = Program.of(built(Net))
    program.read(data(ROWS))
    (update,) = pv.ELBO().updates(program)
    asked = dataclasses.replace(update, due=lambda: True)
    updates = {"an update that is asked": [asked], "two updates": [update, update]}

    class Given(pv.ELBO):
        def updates(self, program):
            return updates.get(other, [update])

    make = {"clip_norm": None, "size": 48, "compile": "trace", "steps": 100}
    stepper = Stepper(program, Given(), adam(0.01), **make)
    if other == "a transform":
        stepper.watch()
    with program.running(), validation(False), stepper.in_a_row():
        for _ in range(3):
            stepper.step(data(ROWS), None)
        assert all(compiled._again is None for compiled in stepper._compiled)


class Configured:
    scale = 1.0


class Twice:
    scale = 2.0


class Scaled(Net):
    factor = 1.0

    def __init__(self):
        super().__init__()
        self.config = Configured()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            mean = self.factor * self.config.scale * self.dec(z)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


CHANGES = {
    "an attribute of the class, by one of its own": lambda net: setattr(net, "factor", 2.0),
    "that of an object it holds": lambda net: setattr(net.config, "scale", 2.0),
    "an object, by another": lambda net: setattr(net, "config", Twice()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_other_code_hides_between_two_steps_is_seen_at_the_next(change):
    def between(step, program, stepper):
        if step == 0:
            stepper.watch()
        if step == 5:
            CHANGES[change](program.source)

    run_of(list(data().split(ROWS)) * 2, Scaled, between=between)


def test_a_hook_that_freezes_in_the_midst_of_a_backward_pass_is_called_once_and_told_of():
    calls = []

    def between(step, program, stepper):
        if step == 0:
            stepper.watch()  # as runs with hooks are
            one, other = list(program.parameters())[:2]
            calls.append([])

            def hook(_):
                calls[-1].append(step)
                other.requires_grad_(len(calls[-1]) not in (3, 4))

            one.register_hook(hook)

    with pytest.warns(UserWarning, match="frozen or thawed .* compile=False"):
        run_of(list(data().split(ROWS)) * 2, Net, between=between)
    assert len(calls[0]) == len(calls[1]) == 8
