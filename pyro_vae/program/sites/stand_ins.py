"""Which cells of what is observed hold what a program gives for a hole by right."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pyro_vae.program.looks.filled_runs import FilledRuns, has_holes, turned
from pyro_vae.program.sites.observed_cells import Cells, by_row, differ, values_of

_LESS = 0.99  # of the move of a cell, once what it stands in for is filled in
_SAME = 1e-4  # how far numbers that are one in exact arithmetic may be apart, for their size


def stand_ins(
    cells: Mapping[str, Cells], runs: FilledRuns, arguments: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return which cells hold what a latent, a parameter or another argument gives for a hole.

    Arguments:
        cells: What sites observe.
        runs: Runs the program.
        arguments: All of them, by name.
    """
    others, found = values_of(runs.others()), {}
    for name, each in cells.items():
        value = each.of(others)
        found[name] = differ(each.value, value) | value.requires_grad
    holey = [name for name, leaf in arguments.items() if has_holes(leaf)]
    for name, leaf in arguments.items():
        of_rows = isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == runs.rows
        if of_rows and holey not in ([], [name]):
            for site, given in _given_by(leaf, cells, runs).items():
                found[site] |= given
    return found


def _given_by(leaf: Tensor, cells: Mapping[str, Cells], runs: FilledRuns) -> dict[str, Tensor]:
    """Return which cells hold what an argument gives for a hole of another one.

    Such a cell moves with the argument's own row, and no longer once the hole is filled in. Or it
    is a mean of what is there, and moves less once there is one more: by one share, whatever number
    that is. A mean of another kind (geometric, the larger) is the argument's very number, and stays
    where this stands for the hole, too. An equal number alone says nothing: flags of what is seen
    are 0 where 0 stands for a hole.
    """
    every = torch.ones(runs.rows, dtype=torch.bool)
    even = torch.arange(runs.rows) % 2 == 0
    halves = [values_of(runs.with_another(leaf, rows)) for rows in (even, ~even)]
    # In pairs with no row of the argument moved, and with all, at both ends of what is filled in.
    ends = [
        [values_of(runs.with_another(leaf, rows, fill=fill)) for rows in (None, every)]
        for fill in ("high", "low")
    ]

    @cache
    def twice() -> list[dict[str, Tensor]]:
        return [values_of(runs.with_another(leaf, rows, fill="same")) for rows in (None, every)]

    other, found = turned(leaf, leaf, every), {}
    for name, each in cells.items():
        if each.dim is None or len(each.value) != runs.rows:
            continue
        moved = [differ(each.value, each.of(half)) for half in halves]
        first = even.to(each.value.device).reshape(-1, *(1,) * (each.value.dim() - 1))
        follows = torch.where(first, moved[0] & ~moved[1], moved[1] & ~moved[0])
        own = torch.where(first, each.of(halves[0]), each.of(halves[1]))
        (high, high_moved), (low, low_moved) = ([each.of(run) for run in end] for end in ends)
        stays = ~differ(high, high_moved) & ~differ(low, low_moved)
        filled = torch.stack([_shift(high, high_moved), _shift(low, low_moved)])
        shares = filled / _shift(each.value, own)
        less = ((shares >= 0) & (shares <= 1)).all(0) & (shares < _LESS).any(0)
        given = follows & differ(high, low)
        mean = less & _are_same(shares[0], shares[1], shares.amax(0))
        found[name] = given & (stays | mean)
        equal = _are_of(leaf, each.value) & _are_of(other, own)
        other_mean = given & equal & (less | ~(_are_flags(each.value) & _are_flags(own)))
        if bool((other_mean & ~found[name]).any()):
            found[name] |= other_mean & _stay(each, own, *twice())
    return found


def _stay(
    each: Cells, own: Tensor, same: Mapping[str, Tensor], moved: Mapping[str, Tensor]
) -> Tensor:
    """Return which cells stay what they are once their own number stands for the hole, too.

    A mean of one number twice is that number. What an argument with holes scales moves; but flags
    do not, which are their own squares.

    Arguments:
        each: The cells, which are numbers of an argument.
        own: The same with another number of their row in that argument.
        same, moved: Runs with the argument's numbers in the place of NaN, of both.
    """
    if not (each.is_in(same) and each.is_in(moved)):
        return torch.zeros_like(each.value, dtype=torch.bool)
    pairs = (each.value, each.of(same)), (own, each.of(moved))
    step = _shift(each.value, own)
    return torch.stack([_are_same(one.detach(), two.detach(), step) for one, two in pairs]).all(0)


def _are_of(leaf: Tensor, value: Tensor) -> Tensor:
    """Return which cells are the number of an argument: in their place, or the one of their row.

    But for rounding: a program may take it there and back, as by a logarithm.
    """
    here, cells = by_row(leaf).to(value.device), by_row(value.detach())
    if 1 not in (here.shape[1], cells.shape[1]) and here.shape != cells.shape:
        return torch.zeros_like(value, dtype=torch.bool)
    equal = here.to(cells).isclose(cells, rtol=1e-5, atol=0.0)
    if equal.shape != cells.shape:  # a site of one column of several
        equal = equal.any(-1, keepdim=True)
    return equal.reshape(value.shape)


def _are_flags(value: Tensor) -> Tensor:
    return (value == 0) | (value == 1)


def _are_same(one: Tensor, two: Tensor, size: Tensor) -> Tensor:
    return (two.double() - one.double()).abs() <= _SAME * size.abs()


def _shift(one: Tensor, two: Tensor) -> Tensor:
    return two.detach().double() - one.detach().double()
