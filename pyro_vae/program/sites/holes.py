"""Whether a site leaves out of its density what is missing in the data: the cells that are NaN.

Which cells of a site these are is found by running the program: they are other numbers where other
numbers stand in the place of NaN, however a program cuts, turns or computes what it observes.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import counted
from pyro_vae.program.batches.batch import Batch
from pyro_vae.program.checks import is_discrete
from pyro_vae.program.handlers import Message, innermost, observes, sample_sites
from pyro_vae.program.looks.filled_runs import FilledRuns, Run, has_holes
from pyro_vae.program.sites.masks import has_cells, kept_units
from pyro_vae.program.told import Told

_KEY = ("holes", "of all sites")  # one warning a program


class _Cells(NamedTuple):
    """What a site observes, which of it counts, and which would where nothing was missing."""

    rows: int | None  # the dimension of the rows; None of one row
    site: Message
    value: Tensor
    kept: Tensor
    filled: Tensor
    kept_filled: Tensor


# Returns what is wrong about a site, and what to do, of the argument's name.
_Fault = Callable[[str], str]


class Holes:
    """Looks at how sites take the holes of each batch.

    Arguments:
        run: Runs the program.
        told: What the user knows.
    """

    def __init__(self, run: Run, told: Told) -> None:
        self._run, self._told = run, told
        self._right: set[int] = set()  # what masks leave out of which holes

    def tell(self, batch: Batch, arguments: Mapping[str, Any], model: Trace, guide: Trace) -> None:
        """Warn of a site that scores cells that are NaN in the data, or leaves out rows for them.

        Such a site observes numbers of the model's own in the place of NaN.

        Arguments:
            batch: Some rows, with holes.
            arguments: The same, by name.
            model, guide: Their traces.
        """
        lacks = {name: leaf for name, leaf in arguments.items() if has_holes(leaf)}
        if _KEY in self._told or not lacks:
            return
        key = _marks_of(lacks, model)
        if key in self._right:
            return
        runs = FilledRuns(self._run, batch, model, guide)
        filled = runs.high()
        if filled is None:
            return
        faults = self._look(runs, model, filled)
        if faults:
            first, *others = faults
            named = ", ".join(map(repr, others[:3])) + ", and more" * (len(others) > 3)
            message = faults[first](_argument(lacks, runs, first, _values(model)[first]))
            self._told.warn(_KEY, message + f"; the same of {named}" * bool(others))
        else:
            self._right.add(key)

    def _look(self, runs: FilledRuns, model: Trace, filled: Trace) -> dict[str, _Fault]:
        """Return what is wrong, by site: found by one run more where nothing is."""
        cells = _cells(model, filled, runs.rows)
        moved = {name: _differ(each.value, each.filled) for name, each in cells.items()}
        # Cut to whole numbers, what stands for NaN may be the largest number that is seen.
        cut = any(is_discrete(each.site["fn"]) for each in cells.values())
        if not cut and not _faults(cells, moved, moved):
            return {}
        low = _values(runs.low())
        for name, each in cells.items():  # what says that a cell lacks does not move here
            moved[name] = _differ(each.filled, _like(each.filled, low.get(name), each.value))
        if not _faults(cells, moved, moved):
            return {}
        again = _cells(runs.plain() or model, filled, runs.rows)  # of the same random numbers
        cells = {name: again.get(name, each) for name, each in cells.items()}
        return _faults(cells, moved, _fillers(cells, moved, runs))


def _marks_of(lacks: Mapping[str, Tensor], model: Trace) -> int:
    """Return a number for the holes of some arguments and the masks of all sites."""
    marks = [(name, leaf.isnan()) for name, leaf in lacks.items()]
    marks += [(name, _kept(site)) for name, site in sample_sites(model) if observes(site)]
    told = ((name, each.shape, each.cpu().numpy().tobytes()) for name, each in marks)
    return hash(tuple(told))


def _values(trace: Trace | None) -> dict[str, Tensor]:
    """Return what sites observe, by name."""
    sites = [] if trace is None else sample_sites(trace)
    return {name: site["value"] for name, site in sites if observes(site)}


def _like(cells: Tensor, value: Tensor | None, other: Tensor) -> Tensor:
    """Return a value where it has the shape of some cells, and else another."""
    return other if value is None or value.shape != cells.shape else value


def _differ(one: Tensor, two: Tensor) -> Tensor:
    return one.detach() != two.detach()  # NaN is no number


def _cells(model: Trace, filled: Trace, count: int) -> dict[str, _Cells]:
    """Return what the sites of a model observe, as the data are, and where nothing was missing."""
    found, others = {}, dict(sample_sites(filled))
    for name, site in sample_sites(model):
        if not observes(site):
            continue
        other: Message = others.get(name, site)
        if not observes(other) or other["value"].shape != site["value"].shape:
            other = site  # of the cells that are seen alone, as x[~x.isnan()]
        pairs = [(each["value"], _kept(each)) for each in (site, other)]
        with suppress(RuntimeError):  # a mask that is none of the value
            all_ = torch.broadcast_tensors(*pairs[0], *pairs[1])
            if all_[0].shape == site["value"].shape:
                found[name] = _Cells(_row_dim(site, count), site, *all_)
    return found


def _kept(site: Message) -> Tensor:
    """Return which cells of an observed value count."""
    kept = kept_units(site["fn"], site["mask"], site["value"].device)
    return torch.ones_like(site["value"], dtype=torch.bool) if kept is None else kept


def _fillers(
    cells: Mapping[str, _Cells], moved: Mapping[str, Tensor], runs: FilledRuns
) -> dict[str, Tensor]:
    """Return which cells hold what a program puts in the place of NaN: no value of a latent.

    A number whatever is seen, or one for several rows of a column, as its mean. Where the numbers
    seen move all others, as those of a row do that is divided by its sum, they are no fillers.
    """
    beside, others = _values(runs.beside()), _values(runs.others())
    found = {}
    for name, each in cells.items():
        with_others = _like(each.value, others.get(name), each.value)
        fixed = ~_differ(each.value, _like(each.value, beside.get(name), each.value))
        if with_others.requires_grad:  # a parameter may stand for each
            fixed = torch.zeros_like(fixed)
        one = _one_a_column(each.value, moved[name], each.rows)
        found[name] = ~_differ(each.value, with_others) & (fixed | one)
    return found


def _argument(lacks: Mapping[str, Tensor], runs: FilledRuns, name: str, value: Tensor) -> str:
    """Return the argument whose holes a site has; the first where no run tells it."""
    for given, leaf in lacks.items() if len(lacks) > 1 else ():
        found = _values(runs.high(only=leaf)).get(name, value)
        if bool(_differ(value, _like(value, found, value)).any()):
            return given
    return next(iter(lacks))


def _row_dim(site: Message, count: int) -> int | None:
    """Return the dimension of a value that has the rows of the data: the first one in no plate."""
    stack = site["cond_indep_stack"]
    frames = [f for f in stack if count in (f.size, f.full_size)]
    if any(f.dim is None for f in frames or stack):
        return None
    return frames[0].dim - len(site["fn"].event_shape) if frames else -site["value"].dim() or None


def _by_row(cells: Tensor, dim: int | None) -> Tensor:
    """Return cells as a matrix of rows."""
    rows = cells.unsqueeze(0) if dim is None else cells.movedim(dim, 0)
    return rows.reshape(len(rows), -1)


def _faults(
    cells: Mapping[str, _Cells], moved: Mapping[str, Tensor], fillers: Mapping[str, Tensor]
) -> dict[str, _Fault]:
    """Return what is wrong about how sites take the holes, by site.

    Arguments:
        cells: What they observe.
        moved: Which of it is a hole.
        fillers: Which of it may be what stands in the place of holes.
    """
    found: dict[str, _Fault] = {}
    bare = _bare_rows(cells.values())
    for name, each in cells.items():
        scored = each.kept & moved[name] & fillers[name]
        if bool(scored.any()):
            found[name] = partial(_scored, name, each, moved[name], scored)
        else:
            found |= _lost_rows(name, each, moved[name], bare)
    return found


def _bare_rows(cells: Collection[_Cells]) -> dict[int, Tensor]:
    """Return the rows of which no site has a density, by how many rows there are."""
    found: dict[int, Tensor] = {}
    for each in cells:
        if each.rows is not None:
            none = ~_by_row(each.kept, each.rows).any(-1)
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


def _scored(name: str, cells: _Cells, holes: Tensor, scored: Tensor, given: str) -> str:
    """Return what to do where cells with holes count."""
    site = cells.site
    marks, place = _marks(given, site["fn"])
    rows = len(_by_row(scored, cells.rows))
    count = f"{int(scored.sum())} in {counted(rows, 'row')}"
    if torch.equal(cells.kept, holes):
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


def _one_a_column(value: Tensor, holes: Tensor, dim: int | None) -> Tensor:
    """Return which cells are those of columns with one number for several holes."""
    cells, at = _by_row(value, dim), _by_row(holes, dim)
    low = cells.where(at, torch.inf).amin(0)
    high = cells.where(at, -torch.inf).amax(0)
    one = ((low >= high) & (at.sum(0) > 1)).expand(cells.shape)
    rows = value.unsqueeze(0) if dim is None else value.movedim(dim, 0)
    back = one.reshape(rows.shape)
    return back[0] if dim is None else back.movedim(0, dim)


def _lost_rows(
    name: str, cells: _Cells, holes: Tensor, bare: Mapping[int, Tensor]
) -> dict[str, _Fault]:
    """Return what to do where a hole takes out what is seen of its row; nothing where none does."""
    own = _joint_dims(cells.site["fn"])
    lost, unit = cells.kept_filled & ~cells.kept, _of_parts(holes, own)
    rows = _by_row(lost & ~unit, cells.rows)
    partly = rows.any(-1) & ~_by_row(cells.kept, cells.rows).any(-1)
    partly &= _by_row(holes, cells.rows).any(-1)
    parts = bool(partly.any())
    if not parts and cells.rows is not None:  # and no other site has a density of the row
        whole = rows.shape[1] == lost.shape[lost.dim() - own :].numel()  # it is one density
        rows = _by_row(lost & ~(holes if whole else unit), cells.rows)
        partly = rows.any(-1) & bare[len(rows)]
    seen = int(rows[partly].sum())
    return {name: partial(_lost, name, cells, partly, seen, parts=parts)} if seen else {}


def _lost(name: str, cells: _Cells, partly: Tensor, seen: int, given: str, *, parts: bool) -> str:
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
