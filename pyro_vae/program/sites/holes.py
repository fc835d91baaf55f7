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
from pyro_vae.program.handlers import Message, innermost, observes, sample_sites
from pyro_vae.program.looks.filled_runs import FilledRuns, Run, has_holes
from pyro_vae.program.sites.masks import has_cells, is_masked, kept_units
from pyro_vae.program.told import Told

_KEY = ("holes", "of all sites")  # one warning a program
_TRIES = 3  # looks that may fail


class _Cells(NamedTuple):
    """What a site observes, which of it counts, and which would where nothing was missing.

    All with the dimension of the rows first; a value without one is one row.
    """

    site: Message
    dim: int | None  # of the rows
    value: Tensor
    kept: Tensor
    filled: Tensor
    kept_filled: Tensor

    def is_in(self, values: Mapping[str, Tensor]) -> bool:
        """Return whether another run observes as many cells here."""
        here = self.site["name"]
        return here in values and values[here].shape == self.site["value"].shape

    def of(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return what another run observes here: the same where that is of other cells."""
        here = self.site["name"]
        return _rows_first(values[here], self.dim) if self.is_in(values) else self.value

    @property
    def opened(self) -> Tensor:
        """Which cells count where nothing is missing, and else do not."""
        return self.kept_filled & ~self.kept


# Returns what is wrong about a site, and what to do, of the argument's name.
_Fault = Callable[[str], str]


class Holes:
    """Looks at how sites take the holes of each batch.

    Arguments:
        run: Runs the program.
        told: What the user knows.
        plate: Name of the plate that holds the data, where the user tells it.
    """

    def __init__(self, run: Run, told: Told, plate: str | None) -> None:
        self._run, self._told, self._plate = run, told, plate
        self._right: set[int] = set()  # what masks leave out of which holes
        self._failures = 0

    def tell(self, batch: Batch, arguments: Mapping[str, Any], model: Trace, guide: Trace) -> None:
        """Warn of a site that scores cells that are NaN in the data, or leaves out rows for them.

        Such a site observes numbers of the model's own in the place of NaN. A look that fails tells
        nothing; where some did there are no more.

        Arguments:
            batch: Some rows, with holes.
            arguments: The same, by name.
            model, guide: Their traces.
        """
        if self._failures == _TRIES or _KEY in self._told:
            return
        message, self._failures = "", self._failures + 1
        with suppress(Exception):  # whatever a user's function leaves in a trace
            lacks = {name: leaf for name, leaf in arguments.items() if has_holes(leaf)}
            key = _marks_of(lacks, model)
            runs = FilledRuns(self._run, batch, model, guide)
            if lacks and key not in self._right:
                message = self._look(runs, model, lacks)
                self._right.add(key)
            self._failures -= not runs.failed
        if message:
            self._told.warn(_KEY, message)

    def _look(self, runs: FilledRuns, model: Trace, lacks: Mapping[str, Tensor]) -> str:
        """Return what is wrong; nothing where nothing is, as one run tells of exact masks."""
        high = runs.filled(high=True)
        cells = _cells(model, high, runs.rows, self._plate)
        if _are_exact(cells, lacks):
            return ""
        low, filled = _values(high and runs.filled(high=False)), _values(high)
        moved = {n: _differ(each.filled, each.of(low)) for n, each in cells.items()}
        alone = {name: each for name, each in cells.items() if not each.is_in(filled)}
        moved |= _unmoved(alone, runs, lacks)
        if not _faults(cells, moved, moved):
            return ""
        cells |= _cells(runs.plain() or model, high, runs.rows, self._plate)  # of the same noise
        given = _arguments(cells, runs, lacks)
        faults = _faults(cells, moved, _fillers(cells, moved, runs, given))
        if not faults:
            return ""
        first, *others = faults
        named = ", ".join(map(repr, others[:3])) + ", and more" * (len(others) > 3)
        message = faults[first](next(iter(given[first] or lacks)))
        return message + f"; the same of {named}" * bool(others)


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


def _differ(one: Tensor, two: Tensor) -> Tensor:
    return one.detach() != two.detach()  # NaN is no number


def _cells(model: Trace, filled: Trace | None, count: int, plate: str | None) -> dict[str, _Cells]:
    """Return what the sites of a model observe, as the data are, and where nothing was missing."""
    found, others = {}, {} if filled is None else dict(sample_sites(filled))
    for name, site in sample_sites(model):
        value: Any = site["value"]
        if not observes(site) or not value.numel():
            continue
        other: Message = others.get(name, site)
        if not observes(other) or other["value"].shape != value.shape:
            other = site  # of the cells that are seen alone, as x[~x.isnan()]
        pairs = [(each["value"], _kept(each)) for each in (site, other)]
        with suppress(RuntimeError):  # a mask that is none of the value
            all_ = torch.broadcast_tensors(*pairs[0], *pairs[1])
            if all_[0].shape == value.shape:
                dim = _row_dim(site, count, plate)
                found[name] = _Cells(site, dim, *(_rows_first(each, dim) for each in all_))
    return found


def _kept(site: Message) -> Tensor:
    """Return which cells of an observed value count."""
    kept = kept_units(site["fn"], site["mask"], site["value"].device)
    return torch.ones_like(site["value"], dtype=torch.bool) if kept is None else kept


def _are_exact(cells: Mapping[str, _Cells], lacks: Mapping[str, Tensor]) -> bool:
    """Return whether masks take out just as many cells as are missing, and no other is a hole."""
    scored = (each.kept & _differ(each.value, each.filled) for each in cells.values())
    return _opened(cells.values()) == _missing(lacks) and not any(map(torch.any, scored))


def _opened(cells: Collection[_Cells]) -> int:
    return sum(int(each.opened.sum()) for each in cells)


def _missing(lacks: Mapping[str, Tensor]) -> int:
    return sum(int(leaf.isnan().sum()) for leaf in lacks.values())


def _unmoved(
    cells: Mapping[str, _Cells], runs: FilledRuns, lacks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return which cells of sites that no run fills are holes: those that do not move as others do.

    So it is where a program refuses data without holes, or names its sites by them. There are as
    many such cells as are missing.
    """
    ends = _values(runs.ends()) if cells else {}
    found = {name: ~_differ(each.value, each.of(ends)) for name, each in cells.items()}
    found = {name: each for name, each in found.items() if not bool(each.all())}
    counts = {_missing(lacks), *(_missing({name: leaf}) for name, leaf in lacks.items())}
    return found if sum(int(each.sum()) for each in found.values()) in counts else {}


def _arguments(
    cells: Mapping[str, _Cells], runs: FilledRuns, lacks: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Return the arguments whose holes each site has."""
    if len(lacks) == 1:
        return {name: dict(lacks) for name in cells}
    found: dict[str, dict[str, Tensor]] = {name: {} for name in cells}
    for given, leaf in lacks.items():
        low, high = (_values(runs.filled(high=end, only=leaf)) for end in (False, True))
        for name, each in cells.items():
            if bool(_differ(each.of(low), each.of(high)).any()):
                found[name][given] = leaf
    return found


def _fillers(
    cells: Mapping[str, _Cells],
    moved: Mapping[str, Tensor],
    runs: FilledRuns,
    given: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """Return which cells hold what a program puts in the place of NaN: no value of a latent.

    A number whatever is seen, or one for several rows of a column, as its mean. None of a site
    whose mask takes out as many cells as are missing: what is seen may move with what is filled
    in, as the share of a row, and be a number whatever is seen, as the share of the first.

    Arguments:
        cells: What sites observe.
        moved: Which of it is a hole.
        runs: Other runs.
        given: The arguments whose holes each site has.
    """
    latents = _values(runs.others())
    seen = [_values(each) for each in (runs.ends(), *map(runs.mixed, range(3)))]
    masked = {name: each for name, each in cells.items() if is_masked(each.site)}
    lacks = {key: leaf for name in masked for key, leaf in given[name].items()}
    all_right = _opened(masked.values()) == _missing(lacks)
    found = {}
    for name, each in cells.items():
        at_latents = each.of(latents)
        # A parameter may stand for each.
        fixed = torch.full_like(each.kept, not at_latents.requires_grad)
        one = _one_a_column(each.value, moved[name])
        for values in seen:
            fixed = fixed & ~_differ(each.value, each.of(values))
            one = one & _one_a_column(each.of(values), moved[name])
        right = name in masked and (
            all_right or _opened([each]) == _missing(given[name]) or _leaves_out(each, given[name])
        )
        if right and not bool((each.opened & ~moved[name] & ~fixed).any()):  # none that is seen
            fixed = one = torch.zeros_like(fixed)
        found[name] = (fixed | one) & ~_differ(each.value, at_latents)
        if not _is_like(each, given[name]) and _are_few(found[name], each.kept & moved[name]):
            found[name] = torch.zeros_like(found[name])
    return found


def _is_like(each: _Cells, given: Mapping[str, Tensor]) -> bool:
    """Return whether a site observes as many cells as one of some arguments has, in its shape."""
    return any(leaf.shape == each.site["value"].shape for leaf in given.values())


def _leaves_out(each: _Cells, given: Mapping[str, Tensor]) -> bool:
    """Return whether a mask leaves out each cell that its argument lacks, whatever else it does."""
    kept = _kept(each.site).expand_as(each.site["value"])
    alone = len(given) == 1 and _is_like(each, given)
    return alone and not any(bool((kept & leaf.isnan()).any()) for leaf in given.values())


def _are_few(fillers: Tensor, scored: Tensor) -> bool:
    """Return whether less than half of the cells that move are numbers whatever is seen.

    Totals and flags of what a row has are the same number by chance, or in a row that has nothing.
    """
    return 2 * int((fillers & scored).sum()) < int(scored.sum())


def _row_dim(site: Message, count: int, plate: str | None) -> int | None:
    """Return the dimension of a value that has the rows of the data: the first one in no plate.

    Of several plates of as many units the one that the user names, or "data", has the rows.
    """
    stack, value = site["cond_indep_stack"], site["value"]
    frames = [f for f in stack if count in (f.size, f.full_size)]
    if any(f.dim is None for f in frames or stack):
        return None
    frames.sort(key=lambda f: (f.name != plate, f.name != "data"))
    dim = frames[0].dim - len(site["fn"].event_shape) if frames else -value.dim()
    return dim if -value.dim() <= dim < 0 else None  # one value for all rows has none


def _rows_first(value: Tensor, dim: int | None) -> Tensor:
    return value.unsqueeze(0) if dim is None else value.movedim(dim, 0)


def _by_row(cells: Tensor) -> Tensor:
    """Return cells as a matrix of rows."""
    return cells.reshape(len(cells), -1)


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
        holes = moved[name] & fillers[name]
        scored = each.kept & holes
        if bool(scored.any()):
            found[name] = partial(_scored, name, each, holes, scored)
        else:
            found |= _lost_rows(name, each, moved[name], bare)
    return found


def _bare_rows(cells: Collection[_Cells]) -> dict[int, Tensor]:
    """Return the rows of which no site has a density, by how many rows there are."""
    found: dict[int, Tensor] = {}
    for each in cells:
        if each.dim is not None:
            none = ~_by_row(each.kept).any(-1)
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


def _one_a_column(value: Tensor, holes: Tensor) -> Tensor:
    """Return which cells are those of columns with one number for several holes."""
    cells, at = _by_row(value), _by_row(holes)
    low = cells.where(at, torch.inf).amin(0)
    high = cells.where(at, -torch.inf).amax(0)
    one = (low >= high) & (at.sum(0) > 1)
    return one.expand(cells.shape).reshape(value.shape)


def _lost_rows(
    name: str, cells: _Cells, holes: Tensor, bare: Mapping[int, Tensor]
) -> dict[str, _Fault]:
    """Return what to do where a hole takes out what is seen of its row; nothing where none does."""
    own = _joint_dims(cells.site["fn"])
    unit, lacks, kept = _of_parts(holes, own), _by_row(holes).any(-1), _by_row(cells.kept).any(-1)
    if bool((kept & lacks & ~_by_row(unit).all(-1)).any()):  # not for any hole of a row
        return {}
    rows = _by_row(cells.opened & ~unit)
    partly = rows.any(-1) & lacks & ~kept
    parts = bool(partly.any())
    if not parts and cells.dim is not None:  # and no other site has a density of the row
        whole = rows.shape[1] == holes.shape[holes.dim() - own :].numel()  # it is one density
        rows = _by_row(cells.opened & ~(holes if whole else unit))
        partly = rows.any(-1) & lacks & bare[len(rows)]
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
