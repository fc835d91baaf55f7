"""A program's course: equal in all runs of one that keeps nothing outside its tensors."""

from collections.abc import Callable
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.inference.graphs.course import Course
from pyro_vae.inference.graphs.program_step import ProgramStep

WEIGHT, OTHER = torch.ones(3, requires_grad=True), torch.full((3,), 2.0, requires_grad=True)
TABLE, LARGE = torch.arange(3.0), torch.zeros(1 << 15)


def course(step: Callable[[Tensor], Tensor], x: Tensor) -> Course:
    """Return that of a step and its gradient."""
    found = Course()
    found.take([WEIGHT, OTHER, x])
    with found:
        torch.autograd.grad(step(x).sum(), [WEIGHT, OTHER], allow_unused=True)
    return found


def test_rows_and_weights_change_no_course() -> None:
    def step(x: Tensor) -> Tensor:
        return (x * WEIGHT + TABLE * WEIGHT.data).exp() / 3 + LARGE[:3] + torch.rand(3)

    first = course(step, torch.zeros(3))
    with torch.no_grad():
        WEIGHT.mul_(1.5)
    assert first.same_as(course(step, torch.ones(3)))


runs = iter(range(100))

COUNTS: dict[str, Callable[[Tensor], Tensor]] = {
    "a number": lambda x: WEIGHT * x * (1 + next(runs)),
    "a small number": lambda x: WEIGHT * x * (1 + 1e-15 * next(runs)),
    "True for 1": lambda x: WEIGHT.sum(dim=0, keepdim=next(runs) % 2 == 0),
    "a new tensor": lambda x: WEIGHT * x * torch.tensor(float(next(runs))),
    "a table": lambda x: WEIGHT * x + [TABLE, TABLE + 1][next(runs) % 2],
    "a table written to": lambda x: WEIGHT * x + LARGE.add_(1)[:3],
    "another weight": lambda x: [WEIGHT, OTHER][next(runs) % 2] * x,
    "another operand": lambda x: WEIGHT * [x.exp(), x.sin()][next(runs) % 2],
    "another order": lambda x: (WEIGHT * x).exp() - [x.cos(), x.sin()][next(runs) % 2],
    "values in a list": lambda x: [WEIGHT * x, next(runs) % 2 and x.tolist()][0],
    "values in NumPy's array": lambda x: [WEIGHT * x, next(runs) % 2 and np.from_dlpack(x)][0],
    "one step more": lambda x: WEIGHT * x if next(runs) % 2 else WEIGHT * x * 1,
}


@pytest.mark.parametrize("step", COUNTS.values(), ids=COUNTS.keys())
def test_what_differs_from_run_to_run_shows(step: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(3)
    assert not course(step, x).same_as(course(step, x))


def test_what_an_operation_is_given_shows_where_all_else_is_equal() -> None:
    def step(which: int) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            made = (x * WEIGHT).exp(), (x * WEIGHT).exp()
            return made[which] * OTHER

        return run

    x = torch.ones(3)
    assert course(step(0), x).same_as(course(step(0), x))
    assert not course(step(0), x).same_as(course(step(1), x))


class OneLatent:
    """One latent of each datum."""

    def __init__(self) -> None:
        self.net = torch.nn.Linear(2, 2)

    def model(self, x: Tensor) -> None:
        """z ~ N(0, 1), x ~ N(W z, 1)."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """z ~ N(x / 2, 1)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0).to_event(1))


@pytest.mark.parametrize(("rows", "traces"), [(8, 1), (1, 2)])
def test_a_second_trace_is_taken_where_no_other_rows_show_the_course(
    rows: int, traces: int
) -> None:
    taken = []
    graph = ProgramStep.graph

    def counted(self: ProgramStep, *args: object) -> object:
        taken.append(args)
        return graph(self, *args)

    with mock.patch.object(ProgramStep, "graph", counted):
        x = torch.randn(rows, 2)
        run = pv.fit(OneLatent(), x, epochs=2, compile="trace", progress=False, device="cpu")
    assert (run.compiled, len(taken)) == ("graph", traces)
