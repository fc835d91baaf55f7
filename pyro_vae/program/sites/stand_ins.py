"""Which cells of what is observed hold what a program gives for a hole by right."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.program.looks.filled_runs import FilledRuns, has_holes, turned
from pyro_vae.program.sites.observed_cells import Cells, by_row, differ, values_of

_LESS = 0.99  # of the move of a cell, once what it stands in for is filled in


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

    Such a cell moves with the argument's own row, and no longer once the hole is filled in; or it
    is the argument's very number, and moves less once that is one of two of a mean. An equal number
    alone says nothing: flags of what is seen are 0 where 0 stands for a hole.
    """
    every = torch.ones(runs.rows, dtype=torch.bool)
    even = torch.arange(runs.rows) % 2 == 0
    halves = [values_of(runs.with_another(leaf, rows)) for rows in (even, ~even)]
    # In pairs with no row of the argument moved, and with all, at both ends of what is filled in.
    ends = [
        [values_of(runs.with_another(leaf, rows, high=high)) for rows in (None, every)]
        for high in (True, False)
    ]
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
        equal = _are_of(leaf, each.value) & _are_of(other, own)
        filled = torch.stack([_shift(high, high_moved), _shift(low, low_moved)])
        shares = filled / _shift(each.value, own)
        less = ((shares >= 0) & (shares <= 1)).all(0) & (shares < _LESS).any(0)
        found[name] = follows & (stays | (equal & less)) & differ(high, low)
    return found


def _are_of(leaf: Tensor, value: Tensor) -> Tensor:
    """Return which cells are the number of an argument: in their place, or the one of their row."""
    here, cells = by_row(leaf).to(value.device), by_row(value.detach())
    if 1 not in (here.shape[1], cells.shape[1]) and here.shape != cells.shape:
        return torch.zeros_like(value, dtype=torch.bool)
    equal = here == cells
    if equal.shape != cells.shape:  # a site of one column of several
        equal = equal.any(-1, keepdim=True)
    return equal.reshape(value.shape)


def _shift(one: Tensor, two: Tensor) -> Tensor:
    return two.detach().double() - one.detach().double()
