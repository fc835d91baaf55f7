"""Integers that count, as arguments: one reading for all; flags are read anew for each value."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv

ROWS = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """z ~ N(0, 1), x ~ N(W z, 1); a subclass says what a number t decides."""

    def __init__(self) -> None:
        super().__init__()
        self.dec = nn.Linear(2, 12)

    def observed(self, x: Tensor, mean: Tensor, t: int) -> None:
        """Observe x."""
        pyro.sample("x", dist.Normal(mean / (1 + t), 1.0).to_event(1), obs=x)

    def model(self, x: Tensor, t: int) -> None:
        """z and x."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            self.observed(x, self.dec(z), t)

    def guide(self, x: Tensor, t: int) -> None:
        """z ~ N(0, 1)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0 + t).to_event(1))


class Renamed(Net):
    """The plate has a name of its own and no size."""

    def model(self, x: Tensor, t: int) -> None:
        with pyro.plate("rows"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            self.observed(x, self.dec(z), t)

    def guide(self, x: Tensor, t: int) -> None:
        with pyro.plate("rows"):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0 + t).to_event(1))


class SecondSite(Net):
    """From 8 on, something else is observed too."""

    def observed(self, x: Tensor, mean: Tensor, t: int) -> None:
        super().observed(x, mean, t)
        if t >= 8:
            pyro.sample("y", dist.Normal(mean[:, 0], 1.0), obs=x[:, 0])


class Column(Net):
    """The column t is observed; the last one from 8 on."""

    def observed(self, x: Tensor, mean: Tensor, t: int) -> None:
        pyro.sample("x", dist.Normal(mean[:, 0], 1.0), obs=x[:, min(t, 8)])


class LateColumn(Net):
    """The first column is observed, from 8 on the second."""

    def observed(self, x: Tensor, mean: Tensor, t: int) -> None:
        pyro.sample("x", dist.Normal(mean[:, 0], 1.0), obs=x[:, int(t >= 8)])


def watched(program: pv.Program) -> list[int]:
    """Return a list that gets the number of each batch that is read."""
    read, seen = program.reader._read_anew, []

    def noted(batch: Any) -> Any:
        seen.append(batch[1])
        return read(batch)

    program.reader._read_anew = noted
    return seen


@pytest.mark.parametrize(
    ("kind", "readings"),
    [
        (Net, [0, 1, 2]),
        (Renamed, [0, 1, 2]),
        (SecondSite, [0, 1, 2, *range(8, 12)]),
        (LateColumn, [0, 1, 2, *range(8, 12)]),
    ],
)
def test_a_number_is_read_anew_while_it_may_decide(kind: type[Net], readings: list[int]) -> None:
    program = pv.Program.of(kind())
    seen = watched(program)
    for t in range(12):
        sites = program.read((ROWS, t))
        fresh = pv.Program.of(kind()).read((ROWS, t))
        assert sites == fresh
    assert seen == readings


def test_what_a_number_points_to_is_read_for_each() -> None:
    program = pv.Program.of(Column())
    seen = watched(program)
    for t in range(12):
        (replaced, _) = program.replace((ROWS, t), {"x": torch.full((6,), 9.0)})
        assert (replaced[:, min(t, 8)] == 9).all() and int((replaced == 9).sum()) == 6
    assert seen == list(range(12))


def test_a_flag_is_no_number() -> None:
    program = pv.Program.of(Net())
    seen = watched(program)
    for t in (0, 1, 2, True, 3):
        program.read((ROWS, t))
    assert seen == [0, 1, 2, True]
