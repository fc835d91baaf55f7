"""Whether a site leaves out of its density what is missing in the data: the cells that are NaN.

Which cells of a site these are is found by running the program: by what they move with where there
are numbers in the place of NaN, however a program cuts, turns or computes what it observes.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import counted
from pyro_vae.program.batches.batch import Batch
from pyro_vae.program.handlers import Message, innermost, observes, sample_sites
from pyro_vae.program.looks.filled_runs import FilledRuns, Run, has_holes
from pyro_vae.program.sites.held_holes import cells_in_place, held_holes, lost_cells
from pyro_vae.program.sites.holes_of_factors import of_moving_factors
from pyro_vae.program.sites.masks import has_cells
from pyro_vae.program.sites.observed_cells import (
    Cells,
    by_row,
    cells_of,
    differ,
    kept_of,
    values_of,
)
from pyro_vae.program.sites.stand_ins import stand_ins
from pyro_vae.program.told import Told

_KEY = ("holes", "of all sites")  # one warning a program
_TRIES = 3  # looks that may fail
_OFTEN = 8  # long looks that find nothing before they grow rarer
_ROWS = 128  # of a long look


# Gives some rows of a batch, their arguments by name, and the traces of model and guide on them.
Cut = Callable[
    [Batch, Tensor], AbstractContextManager[tuple[Batch, Mapping[str, Any], Trace, Trace]]
]


class _Fault(NamedTuple):
    """What is wrong about a site, and what to do, in words of an argument, which has the holes."""

    words: Callable[[str], str]
    given: str = ""  # as far as is known


class Holes:
    """Looks at how sites take the holes of each batch.

    Arguments:
        run: Runs the program.
        told: What the user knows.
        plate: Name of the plate that holds the data, where the user tells it.
        cut: Runs the program on some rows, for as long as others do.
    """

    def __init__(self, run: Run, told: Told, plate: str | None, cut: Cut) -> None:
        self._run, self._told, self._plate, self._cut = run, told, plate, cut
        self._right: set[int] = set()  # what masks leave out of which holes
        self._columns: set[tuple[str, int]] = set()  # that have had holes in a look
        self._failures, self._looks = 0, 0

    def tell(self, batch: Batch, arguments: Mapping[str, Any], model: Trace, guide: Trace) -> None:
        """Warn of a site that scores cells that are NaN in the data, or leaves out rows for them.

        Such a site observes numbers of the model's own in the place of NaN; a factor, which shows
        no cells, may score them. A look that fails tells nothing; where some did there are no more.

        Arguments:
            batch: Some rows, with holes.
            arguments: The same, by name.
            model, guide: Their traces.
        """
        if self._failures == _TRIES or _KEY in self._told:
            return
        message, self._failures = "", self._failures + 1
        with suppress(Exception):  # whatever a user's function leaves in a trace
            lacks = _with_holes(arguments)
            key = _marks_of(lacks, model)
            runs = FilledRuns(self._run, batch, model, guide)
            if lacks and key not in self._right:
                message, done = self._look(runs, model, arguments, batch)
                message = message or of_moving_factors(model, runs)
                self._right |= {key} if done else set()
            self._failures -= not runs.failed
        if message:
            self._told.warn(_KEY, message)

    def _look(
        self, runs: FilledRuns, model: Trace, arguments: Mapping[str, Any], batch: Batch
    ) -> tuple[str, bool]:
        """Return what is wrong, or nothing, and whether all was looked at.

        One run tells of exact masks, three of cells that stand in their places. What else a site
        makes of its data takes some dozens, of which there is not always time.
        """
        lacks = _with_holes(arguments)
        high = runs.filled(high=True)
        cells = cells_of(model, high, runs.rows, self._plate)
        if _are_exact(cells, lacks):
            return "", True
        cells |= cells_of(runs.plain() or model, high, runs.rows, self._plate)  # of one noise
        low = values_of(runs.filled(high=False))
        moved = {name: differ(each.filled, each.of(low)) for name, each in cells.items()}
        placed = {name: cells_in_place(each, moved[name], lacks) for name, each in cells.items()}
        faults = _faults_in_place(
            cells, moved, placed, partial(stand_ins, runs=runs, arguments=arguments)
        )
        filled = values_of(high)
        others = {
            name
            for name, each in cells.items()
            if not (placed[name] or (each.is_in(filled) and each.stays(moved[name])))
            and not any(map(each.holds_just, lacks.values()))
            and not (runs.are_marks(each.value) and not bool(moved[name].any()))
        }
        late = bool(others) and not self._is_time(lacks)
        if others and not late:
            faults |= self._faults_elsewhere(runs, model, arguments, batch, others)
        bare = _bare_rows(cells.values())
        for name, each in cells.items():
            if name not in faults:
                faults |= _lost_rows(name, each, moved[name], bare)
        return _message([name for name in cells if name in faults], faults, lacks), not late

    def _is_time(self, lacks: Mapping[str, Tensor]) -> bool:
        """Return whether a long look is due: for columns that had no hole, and else ever rarer."""
        columns = {
            (name, column)
            for name, leaf in lacks.items()
            for column in by_row(leaf.isnan()).any(0).nonzero()[:, 0].tolist()
        }
        new = not columns <= self._columns
        self._columns |= columns
        self._looks += 1
        return new or self._looks <= _OFTEN or self._looks.bit_count() == 1

    def _faults_elsewhere(
        self,
        runs: FilledRuns,
        model: Trace,
        arguments: Mapping[str, Any],
        batch: Batch,
        names: Collection[str],
    ) -> dict[str, _Fault]:
        """Return what is wrong about sites that observe holes in other places, if any.

        Of many rows some are looked at.
        """
        if runs.rows <= _ROWS:
            return _faults_moved(runs, model, arguments, names, self._plate)
        holes = sum(by_row(leaf.isnan()).sum(-1) for leaf in _with_holes(arguments).values())
        with suppress(Exception):  # a program of a number of rows of its own
            rows = torch.as_tensor(holes).cpu().argsort(descending=True)[: 4 * _ROWS]
            some = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
            with self._cut(batch, some[:_ROWS].sort().values) as (few, some_of, own, guide):
                runs = FilledRuns(self._run, few, own, guide)
                return _faults_moved(runs, own, some_of, names, self._plate)
        return _faults_moved(runs, model, arguments, names, self._plate)


def _with_holes(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: leaf for name, leaf in arguments.items() if has_holes(leaf)}


def _marks_of(lacks: Mapping[str, Tensor], model: Trace) -> int:
    """Return a number for the holes of some arguments and the masks of all sites."""
    marks = [(name, leaf.isnan()) for name, leaf in lacks.items()]
    marks += [(name, kept_of(site)) for name, site in sample_sites(model) if observes(site)]
    told = ((name, each.shape, each.cpu().numpy().tobytes()) for name, each in marks)
    return hash(tuple(told))


def _are_exact(cells: Mapping[str, Cells], lacks: Mapping[str, Tensor]) -> bool:
    """Return whether masks take out just as many cells as are missing, and no other is a hole."""
    scored = (each.kept & differ(each.value, each.filled) for each in cells.values())
    return _opened(cells.values()) == _missing(lacks) and not any(map(torch.any, scored))


def _opened(cells: Collection[Cells]) -> int:
    return sum(int(each.opened.sum()) for each in cells)


def _missing(lacks: Mapping[str, Tensor]) -> int:
    return sum(int(leaf.isnan().sum()) for leaf in lacks.values())


def _message(names: list[str], faults: Mapping[str, _Fault], lacks: Mapping[str, Tensor]) -> str:
    """Return the words of the first fault, and the sites of others; nothing without one."""
    if not names:
        return ""
    first, *others = names
    named = ", ".join(map(repr, others[:3])) + ", and more" * (len(others) > 3)
    message = faults[first].words(faults[first].given or next(iter(lacks)))
    return message + f"; the same of {named}" * bool(others)


def _faults_in_place(
    cells: Mapping[str, Cells],
    moved: Mapping[str, Tensor],
    placed: Mapping[str, str],
    made: Callable[[Mapping[str, Cells]], dict[str, Tensor]],
) -> dict[str, _Fault]:
    """Return what is wrong about sites that observe an argument cell by cell: all holes that count.

    Arguments:
        cells: What sites observe.
        moved: Which of it moves with what is filled in.
        placed: The argument that stands so in each site.
        made: Finds which cells of some sites stand in for a hole, which takes runs.
    """
    kept = {name: each.kept & moved[name] for name, each in cells.items() if placed[name]}
    scored = {name: cells[name] for name, holes in kept.items() if bool(holes.any())}
    found = {}
    for name, stand_in in (made(scored) if scored else {}).items():
        each, holes = cells[name], moved[name] & ~stand_in
        if bool((each.kept & holes).any()):
            words = partial(_scored, name, each, holes, each.kept & holes)
            found[name] = _Fault(words, placed[name])
    return found


def _faults_moved(
    runs: FilledRuns,
    model: Trace,
    arguments: Mapping[str, Any],
    names: Collection[str],
    plate: str | None,
) -> dict[str, _Fault]:
    """Return what is wrong about sites, by what their cells move with.

    Arguments:
        runs: Runs the program.
        model: Its trace.
        arguments: By name.
        names: Of the sites.
        plate: Of the data, where the user names it.
    """
    found: dict[str, _Fault] = {}
    lacks = _with_holes(arguments)
    high, low = (runs.filled(high=end) for end in (True, False))
    every = cells_of(runs.plain() or model, high, runs.rows, plate)
    cells = {name: each for name, each in every.items() if name in names}
    made = stand_ins(cells, runs, arguments)
    for name, (given, scored) in held_holes(every, made, runs, lacks).items():
        each = cells[name]
        holes = differ(each.filled, each.of(values_of(low))) & ~made[name]
        if not 0 < int((holes & each.kept).sum()) <= int(holes.sum()) <= _missing(lacks):
            holes = scored  # what is seen moves too
        found[name] = _Fault(partial(_scored, name, each, holes, each.kept & holes), given)
    for name, lost in lost_cells(cells, made, runs).items():
        found.setdefault(name, _Fault(partial(_spread, name, lost)))
    return found


def _bare_rows(cells: Collection[Cells]) -> dict[int, Tensor]:
    """Return the rows of which no site has a density, by how many rows there are."""
    found: dict[int, Tensor] = {}
    for each in cells:
        if each.dim is not None:
            none = ~by_row(each.kept).any(-1)
            found[len(none)] = none & found.get(len(none), none)
    return found


def observed_holes(model: Trace) -> str:
    """Return which observed sites hold NaN, though the model masks what lacks; nothing if none."""
    for name, site in sample_sites(model):
        if observes(site) and bool(site["value"].isnan().any()):
            marks, where = _marks("x", site["fn"])
            return (
                f"site {name!r} observes NaN, which a mask does not take out: write "
                f"obs=x.nan_to_num() beside .mask({marks}){where}"
            )
    return ""


def of_joint_rows(model: Trace) -> str:
    """Return what to do about holes where what is observed has one density for all of its cells."""
    for name, site in sample_sites(model):
        if has_cells(site["fn"]) or not observes(site) or not site["cond_indep_stack"]:
            continue
        if hasattr(innermost(site["fn"]), "total_count"):
            return (
                f"expected counts: site {name!r} has one density for all counts of a row, which a "
                "mask cannot part; drop such rows, x[x.isfinite().flatten(1).all(1)], or fill in "
                "the counts before, as x.nan_to_num() does where a word that lacks is counted 0"
            )
        marks, where = _marks("x", site["fn"])
        what, way_out = "all cells of a row", "drop such rows, or mask them"
        if _has_parts(site):
            what, way_out = "the cells of each part of a row", "drop such rows, or mask the parts"
        return (
            f"site {name!r} has one density for {what}: {way_out}, x.nan_to_num() in guide and "
            f"obs= beside .mask({marks}){where}"
        )
    return ""


def _marks(given: str, fn: Any) -> tuple[str, str]:
    """Return the mask that takes out holes, as it is written, and where it stands."""
    own = _joint_dims(fn)
    where = " before .to_event" if len(fn.event_shape) > own else ""
    if not own:
        return f"~{given}.isnan()", where
    return f"~{given}.isnan().any({-1 if own == 1 else tuple(range(-own, 0))})", where


def _joint_dims(fn: Any) -> int:
    """Return how many last dimensions have one density: of a whole event, or of each part of it."""
    return len(innermost(fn).event_shape)


def _has_parts(site: Message) -> bool:
    """Return whether a row of the data has several densities, each of which a mask can take out."""
    shape = site["value"].shape
    return shape[1 : len(shape) - _joint_dims(site["fn"])].numel() > 1


def _scored(name: str, cells: Cells, holes: Tensor, scored: Tensor, given: str) -> str:
    """Return what to do where cells with holes count."""
    site = cells.site
    marks, place = _marks(given, site["fn"])
    count = f"{int(scored.sum())} in {counted(len(scored), 'row')}"
    if torch.equal(cells.kept, holes) and not bool(holes.all()):
        return (
            f"site {name!r} has an inverted mask: it keeps the cells that are NaN in the data "
            f"({count}), and leaves out all others; write .mask({marks}){place}"
        )
    head = (
        f"site {name!r} scores cells that are NaN in the data ({count}), as the numbers that stand "
        "in their place: "
    )
    if not site["cond_indep_stack"] and not has_cells(site["fn"]) and not site["fn"].batch_shape:
        return f"{head}drop these cells; a mask would take out all, which have one density"
    return (
        f"{head}compute the mask before these do, as seen = {marks}, then "
        f"{given} = {given}.nan_to_num(), and write .mask(seen){place}"
    )


def _spread(name: str, lost: Tensor, given: str) -> str:
    """Return what to do where NaN has spread to cells that are seen."""
    count = f"{counted(int(lost.sum()), 'cell')} in {counted(int(lost.any(1).sum()), 'row')}"
    return (
        f"site {name!r} scores {count} as one number, whatever is seen in {given}: they are NaN, "
        "or NaN of others has spread to them, and something stands in its place; leave NaN out of "
        "what is computed (nanmean, nansum), and mask what lacks"
    )


def _lost_rows(
    name: str, cells: Cells, holes: Tensor, bare: Mapping[int, Tensor]
) -> dict[str, _Fault]:
    """Return what to do where a hole takes out what is seen of its row; nothing where none does."""
    own = _joint_dims(cells.site["fn"])
    unit, lacks, kept = _of_parts(holes, own), by_row(holes).any(-1), by_row(cells.kept).any(-1)
    if bool((kept & lacks & ~by_row(unit).all(-1)).any()):  # not for any hole of a row
        return {}
    rows = by_row(cells.opened & ~unit)
    partly = rows.any(-1) & lacks & ~kept
    parts = bool(partly.any())
    if not parts and cells.dim is not None:  # and no other site has a density of the row
        whole = rows.shape[1] == holes.shape[holes.dim() - own :].numel()  # it is one density
        rows = by_row(cells.opened & ~(holes if whole else unit))
        partly = rows.any(-1) & lacks & bare[len(rows)]
    seen = int(rows[partly].sum())
    return {name: _Fault(partial(_lost, name, cells, partly, seen, parts=parts))} if seen else {}


def _lost(name: str, cells: Cells, partly: Tensor, seen: int, given: str, *, parts: bool) -> str:
    way_out = "drop the rows"
    if parts:
        marks, where = _marks(given, cells.site["fn"])
        what = "cells" if has_cells(cells.site["fn"]) else "parts"
        way_out = f"put .mask({marks}){where}, which leaves out the {what}, or {way_out}"
    return (
        f"site {name!r}: its mask leaves out {counted(int(partly.sum()), 'row')} of {len(partly)}, "
        f"for a NaN in each, and {counted(seen, 'cell')} of them that are seen; each still counts "
        f"as a datum: {way_out}"
    )


def _of_parts(holes: Tensor, own: int) -> Tensor:
    """Return which cells go with a hole: all that have one density with it."""
    if not 0 < own <= holes.dim():
        return holes
    over_part = (..., *(None,) * own)
    return holes.flatten(-own).any(-1)[over_part].expand_as(holes)
