"""Which cells of what is observed hold holes of the data, by what they move with."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.program.looks.filled_runs import MANY, FilledRuns, codes_of, steps_of
from pyro_vae.program.sites.observed_cells import Cells, by_row, differ, values_of

_PARTS = 3  # of the rows with holes, looked at by turns
_MOST = 2.0  # times the square of any other's share, that of the number which a cell holds


def cells_in_place(each: Cells, moved: Tensor, lacks: Mapping[str, Tensor]) -> str:
    """Return the argument of which a site observes each cell in its place; nothing without one.

    Of such a site just those cells move with what is filled in that are holes.
    """
    cells = by_row(moved)
    for given, leaf in lacks.items():
        holes = by_row(leaf.isnan())
        if holes.shape == cells.shape and torch.equal(holes.to(cells.device), cells):
            return given
    return ""


def held_holes(
    cells: Mapping[str, Cells],
    made: Mapping[str, Tensor],
    runs: FilledRuns,
    lacks: Mapping[str, Tensor],
) -> dict[str, tuple[str, Tensor]]:
    """Return which cells that count hold a hole of the data, by site, and of which argument.

    A cell holds the number of the data with which it moves most. Where there is a number in the
    place of some NaN, those that hold it are cells of a hole, wherever they stand, and whatever
    else moves; they are no fault of a site that leaves out as many as there are such holes.

    Arguments:
        cells: What sites observe.
        made: Which of it stands in for a hole (``stand_ins``), of the sites that are asked of.
        runs: Runs the program.
        lacks: The arguments with holes.
    """
    scored = {name: torch.zeros_like(each.kept) for name, each in cells.items()}
    of: dict[str, str] = {}
    for given, leaf in lacks.items():
        codes = codes_of(leaf[0].numel())
        holey = [values_of(run) for run in runs.of_codes(codes)]
        for chosen in _some_holes(leaf):
            values = [values_of(run) for run in runs.of_codes(codes, only=leaf, chosen=chosen)]
            steps = _steps(leaf, codes.shape[1] - 1, chosen)
            here = {name: each for name, each in cells.items() if all(map(each.is_in, values))}
            moves = {}
            for name, each in here.items():
                with_, without = ([each.of(run) for run in runs_] for runs_ in (values, holey))
                moves[name] = _moves(with_, without, codes, steps)
            for name, found in _of_chosen(here, moves, leaf, chosen).items():
                found = found & ~made[name] if name in made else found.new_zeros(())
                if bool(found.any()):
                    scored[name] |= found
                    of.setdefault(name, given)
    return {name: (given, scored[name]) for name, given in of.items()}


def _of_chosen(
    cells: Mapping[str, Cells], moves: Mapping[str, "_Moves"], leaf: Tensor, chosen: Tensor
) -> dict[str, Tensor]:
    """Return which cells that count hold some chosen holes of an argument."""
    # Differences: to a mean too where there are but two, of which one is left out rightly.
    left_out = any(bool((each.any_ & ~cells[n].kept).any()) for n, each in moves.items())
    pairs = not left_out or bool((by_row(~leaf.isnan()).sum(-1)[by_row(chosen).any(-1)] > 1).all())
    found = {}
    for name, each in cells.items():
        held, against = moves[name].most, moves[name].most | moves[name].against
        of_one = max(1, each.value.numel() // leaf.numel())  # cells of each of the data
        if pairs and bool(against[moves[name].any_].all()):
            found[name] = against & each.kept
        elif int((held & ~each.kept).sum()) < of_one * int(chosen.sum()):
            found[name] = held & each.kept
    return found


def _some_holes(leaf: Tensor) -> Iterator[Tensor]:
    """Yield some cells that are NaN, of one column each time; of many columns one in each row.

    Of rows of which two other cells are seen, or one, if there are such: what a program makes of a
    row that has nothing else is none of these. All others stay, for there are programs that want
    some.
    """
    holes = by_row(leaf.isnan())
    seen = (~holes).sum(-1).clamp(max=2)
    rows = holes.any(-1)
    rows &= (seen > 0) | ~(rows & (seen > 0)).any()
    if holes.shape[1] <= MANY:
        for column in (holes & rows[:, None]).any(0).nonzero()[:, 0].tolist():
            at = _where_most(seen, rows & holes[:, column])
            chosen = torch.zeros_like(holes)
            chosen[at[::2], column] = True
            yield chosen.reshape(leaf.shape)
        return
    order = torch.rand(holes.shape, generator=torch.Generator().manual_seed(0)).to(holes.device)
    column = order.masked_fill(~holes, -1.0).argmax(-1)
    at = _where_most(seen, rows)
    for part in range(min(_PARTS, len(at))):
        chosen, some = torch.zeros_like(holes), at[part::_PARTS]
        chosen[some, column[some]] = True
        yield chosen.reshape(leaf.shape)


def _where_most(counts: Tensor, of: Tensor) -> Tensor:
    """Return where some counts are largest."""
    counts = counts.masked_fill(~of, -1)
    return (counts == counts.max()).nonzero()[:, 0]


def _steps(leaf: Tensor, kinds: int, chosen: Tensor) -> Tensor:
    """Return how far the numbers of each kind of column move, and the chosen ones.

    Of columns that share a code the least, and of chosen ones the most: in doubt another number is
    the one that a cell holds.
    """
    steps = steps_of(leaf)
    found = steps.new_full((kinds + 1,), torch.inf)  # what is not there moves nothing
    for kind in range(min(kinds, len(steps))):
        part = steps[kind::kinds]
        found[kind] = part.masked_fill(part == 0, torch.inf).amin()
    found[-1] = steps.expand(len(leaf), -1)[by_row(chosen)].amax()
    return found.double().masked_fill(found == 0, torch.inf)


class _Moves(NamedTuple):
    """Which cells move with chosen numbers: most with these, against one other, at all."""

    most: Tensor
    against: Tensor
    any_: Tensor


def _moves(with_: list[Tensor], without: list[Tensor], codes: Tensor, steps: Tensor) -> _Moves:
    """Return which cells move with chosen numbers, whose code is the last.

    More than with any other number, for equal steps of all; flags and counts, also as far as these
    are apart. A total moves with others as much, and with them alone where the chosen are NaN.

    Arguments:
        with_, without: What a site observes in runs by the codes, with the chosen numbers and
            with NaN in their place.
        codes: Of ``codes_of``.
        steps: How far apart the numbers of each code are.
    """
    signs = (2.0 * codes.double() - 1.0).to(steps.device)
    most = against = any_ = torch.ones_like(with_[0], dtype=torch.bool)
    whole = all(bool((value == value.round()).all()) for value in (*with_, *without))
    for scale in (1 / steps, torch.ones_like(steps))[: 1 + whole]:
        one, two = (_coefficients(values, signs * scale) for values in (with_, without))
        own, others = one[-1], torch.cat([one[:-1], two[:-1]])
        other = others.gather(0, others.abs().argmax(0, keepdim=True))[0]
        all_ = one.square().sum(0)
        most = most & (own.square() > _MOST * other.square())
        any_ = any_ & (own.square() > 0.05 * all_)
        against = against & (own.square() > 0.4 * all_) & (-own * other > 0.8 * other.square())
    return _Moves(most & any_, against & any_, any_)


def _coefficients(values: list[Tensor], signs: Tensor) -> Tensor:
    """Return sums of values by signs, of each code; none of what is the same in all runs."""
    total = values[0].new_zeros(len(signs.T), *values[0].shape, dtype=torch.float64)
    for value, row in zip(values, signs, strict=True):
        total += row.reshape(-1, *(1,) * value.dim()) * (value.double() - values[0].double())
    return total


def lost_cells(
    cells: Mapping[str, Cells], made: Mapping[str, Tensor], runs: FilledRuns
) -> dict[str, Tensor]:
    """Return which cells that count are one number whatever is seen, where they need not be.

    They move where there are numbers in the place of NaN; else they are what stands for a hole of
    their row, or what all others of their row or column are: as of a mean that is NaN for one hole.
    A row with one seen cell has one such number for its difference to the mean.
    """
    holey, full = (
        [values_of(run) for run in runs.of_codes(codes_of(0), full=f)] for f in (False, True)
    )
    found = {}
    for name, each in cells.items():
        fixed = ~_any_differ([each.value, *(each.of(run) for run in holey if each.is_in(run))])
        live = _any_differ([each.of(run) for run in full if each.is_in(run)] or [each.value])
        live, value = by_row(live & each.kept & ~made[name]), by_row(each.value.double())
        lost = live & by_row(fixed)
        wholly = torch.zeros_like(lost)
        for dim in (0, 1):
            low, high = (value.where(lost, end) for end in (torch.inf, -torch.inf))
            one = low.amin(dim, keepdim=True) == high.amax(dim, keepdim=True)
            all_ = (live.sum(dim, keepdim=True) > 1) & (lost == live).all(dim, keepdim=True)
            wholly |= one & all_
        out = by_row(~each.kept)  # one number stands for all holes of a row
        filler = value == value.where(out, torch.inf).amin(1, keepdim=True)
        lost &= wholly | (filler & (live.sum(1, keepdim=True) > 1))
        if bool(lost.any()):
            found[name] = lost
    return found


def _any_differ(values: list[Tensor]) -> Tensor:
    return torch.stack([differ(values[0], other) for other in values]).any(0)
