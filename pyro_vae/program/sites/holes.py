"""Whether a site leaves out of its density what is missing in the data: the cells that are NaN."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import counted
from pyro_vae.program.batches.batch import Batch, named_leaves
from pyro_vae.program.checks import is_discrete
from pyro_vae.program.handlers import Message, innermost, observes, sample_sites
from pyro_vae.program.sites.masks import has_cells, kept_units
from pyro_vae.program.told import Told

# An argument's name and the dimension of its steps or columns; None where it is taken as a whole.
_Place = tuple[str, int | None]
# Such a place, then its steps or columns in rows of a matrix, and where these are NaN.
_Parts = tuple[_Place, Tensor, Tensor]

_KEY = ("holes", "of all sites")  # one warning a program


class Holes:
    """Looks at how sites take the holes of each batch, first where their values were last found.

    Arguments:
        told: What the user knows.
    """

    def __init__(self, told: Told) -> None:
        self._told = told
        self._places: dict[str, tuple[_Place, int]] = {}  # and which step or column, by site

    def tell(self, model: Trace, batch: Batch) -> None:
        """Warn of a site that scores cells that are NaN in the data, or leaves out rows for them.

        Such a site observes an argument, with numbers of the model's own in the place of NaN.

        Arguments:
            model: Its trace.
            batch: Some rows, with holes.
        """
        if _KEY in self._told:
            return
        leaves = dict(named_leaves(batch))
        sites = [(name, site) for name, site in sample_sites(model) if observes(site)]
        data = {name: site for name, site in sites if not self._is_right(name, site, leaves)}
        parts = _parts(leaves, {site["value"].numel() for site in data.values()})
        drawn = [s["value"] for _, s in sample_sites(model) if _is_real(s)]
        found = {n: fault for n, s in data.items() if (fault := self._fault(n, s, parts, drawn))}
        if found:
            first, *others = found
            named = ", ".join(map(repr, others[:3])) + ", and more" * (len(others) > 3)
            self._told.warn(_KEY, found[first] + f"; the same of {named}" * bool(others))

    def _is_right(self, name: str, site: Message, leaves: Mapping[str, Tensor]) -> bool:
        """Return whether a site leaves out just the holes of what it was last found to observe."""
        if name not in self._places:
            return False
        (given, dim), at = self._places[name]
        cells, value, kept = leaves.get(given), site["value"], _kept(site)
        if cells is not None and dim is not None:
            there = cells.dim() > dim and cells.shape[dim] > at
            cells = cells.select(dim, at) if there else None
        if cells is None or kept is None or cells.numel() != value.numel():
            return False
        cells = cells.reshape(value.shape).to(value.device)
        seen = ~cells.isnan()
        return torch.equal(kept, seen) and torch.equal(cells[seen].to(value), value[seen])

    def _fault(
        self, name: str, site: Message, parts: Sequence[_Parts], drawn: Sequence[Tensor]
    ) -> str:
        """Return what to do about how a site takes the holes; nothing where it does so rightly."""
        value, kept = site["value"], _kept(site)
        if kept is None:
            return ""
        found = []
        for place, at, holes in _observed(parts, value):
            fault = _scored(name, place[0], site, kept, holes, drawn)
            found.append(fault or _whole_rows(name, place[0], site, kept, holes))
            if torch.equal(kept, ~holes):
                self._places[name] = (place, at)
        return found[0] if found and all(found) else ""  # of several alike one may be right


def _is_real(site: Message) -> bool:
    """Return whether a site is a latent whose values tell it: a class number is that of many."""
    return not site["is_observed"] and not is_discrete(site["fn"])


def _kept(site: Message) -> Tensor | None:
    """Return which cells of an observed value count; None of one number, or of more steps."""
    value = site["value"]
    kept = kept_units(site["fn"], site["mask"], value.device)
    if kept is None:
        kept = torch.ones_like(value, dtype=torch.bool)
    return kept if kept.shape == value.shape and value.dim() else None


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


def _parts(leaves: Mapping[str, Tensor], sizes: set[int]) -> list[_Parts]:
    """Return the arguments, and their steps or columns, that are as large as what sites observe."""
    found: list[_Parts] = []
    for name, leaf in leaves.items():
        if not sizes or not leaf.is_floating_point() or leaf.is_meta or not leaf.numel():
            continue
        holes = leaf.isnan()
        if leaf.numel() in sizes:
            found.append(((name, None), leaf.reshape(1, -1), holes.reshape(1, -1)))
        for dim in {1, leaf.dim() - 1} if leaf.dim() > 1 else ():
            count = leaf.shape[dim]
            if count > 1 and leaf.numel() // count in sizes:
                cells, lacks = (each.movedim(dim, 0).reshape(count, -1) for each in (leaf, holes))
                found.append(((name, dim), cells, lacks))
    return found


def _observed(parts: Sequence[_Parts], value: Tensor) -> Iterator[tuple[_Place, int, Tensor]]:
    """Yield which arguments, or steps or columns of them, a value is, and where these are NaN."""
    flat = value.reshape(-1)
    first = flat[:32]  # tells most columns apart, at once
    for place, cells, holes in parts:
        if cells.shape[1] != len(flat):
            continue
        alike = (cells[:, :32].to(flat) == first) | holes[:, :32].to(flat.device)
        for at in alike.all(-1).nonzero().flatten().tolist():
            seen = ~holes[at]
            if torch.equal(cells[at][seen].to(flat), flat[seen]):
                yield place, at, holes[at].reshape(value.shape)


def _scored(
    name: str, given: str, site: Message, kept: Tensor, holes: Tensor, drawn: Sequence[Tensor]
) -> str:
    """Return what to do where cells with holes count; nothing where none does."""
    value, scored = site["value"], kept & holes
    told = value[~holes].unique().numel() > 1  # one number may be anything: what is seen, say
    if not told or not bool(scored.any()) or not _is_filler(value, scored):
        return ""
    if _are_of(drawn, value, scored):
        return ""
    marks, place = _marks(given, site["fn"])
    count = f"{int(scored.sum())} in {counted(len(value), 'row')}"
    if torch.equal(kept, holes):
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


def _are_of(drawn: Sequence[Tensor], value: Tensor, scored: Tensor) -> bool:
    """Return whether these cells are values of latents, as of missing cells that a guide fits."""
    filled = value[scored]
    if not bool(filled.all()):  # a zero may be that of any latent
        return False
    if any(_are_equal(latent.flatten(), filled) for latent in drawn):  # one number for each
        return True
    tables = [table for latent in drawn for table in _tables(latent, value)]
    cells, at = value.reshape(len(value), -1), scored.reshape(len(value), -1)
    columns = at.any(0).nonzero().flatten().tolist()
    return all(
        any(_has_column(table, cells[:, column], at[:, column]) for table in tables)
        for column in columns
    )


def _tables(latent: Tensor, value: Tensor) -> Iterator[Tensor]:
    """Yield a latent as rows and columns: as large as a value, or of so many rows."""
    with suppress(RuntimeError):
        yield latent.expand(value.shape).reshape(len(value), -1)
    if latent.dim() and latent.numel() % len(value) == 0:
        yield latent.reshape(len(value), -1)


def _has_column(table: Tensor, cells: Tensor, at: Tensor) -> bool:
    """Return whether a column of a table has the numbers of some cells, in their rows."""
    rows, filled = at.nonzero().flatten(), cells[at]
    alike = (table[rows[0]].to(filled) == filled[0]).nonzero().flatten()
    return any(_are_equal(table[rows, each], filled) for each in alike)


def _are_equal(latent: Tensor, filled: Tensor) -> bool:
    return latent.shape == filled.shape and torch.equal(latent.to(filled), filled)


def _is_filler(value: Tensor, scored: Tensor) -> bool:
    """Return whether these cells hold zeros, or one number a column: no draws of a latent."""
    filled = value[scored]
    if not bool(filled.any()):
        return True
    if filled.unique().numel() == filled.numel():
        return False
    cells, at = value.reshape(len(value), -1), scored.reshape(len(value), -1)
    low = cells.masked_fill(~at, torch.inf).amin(0)
    high = cells.masked_fill(~at, -torch.inf).amax(0)
    return bool((low >= high).all())


def _whole_rows(name: str, given: str, site: Message, kept: Tensor, holes: Tensor) -> str:
    """Return what to do where one hole takes out its row; nothing where it does not."""
    parts = _has_parts(site)
    if parts or all(frame.dim is None for frame in site["cond_indep_stack"]):
        holes = _of_parts(holes, _joint_dims(site["fn"]))
    kept, holes = kept.reshape(len(kept), -1), holes.reshape(len(holes), -1)
    partly = holes.any(-1) & ~holes.all(-1)
    if not bool(partly.any()) or bool(kept[partly].any()) or not bool(kept[~holes.any(-1)].all()):
        return ""
    count, cells = counted(int(partly.sum()), "row"), int((~holes[partly]).sum())
    way_out = "drop the rows"
    if parts:
        marks, where = _marks(given, site["fn"])
        what = "cells" if has_cells(site["fn"]) else "parts"
        way_out = f"put .mask({marks}){where}, which leaves out the {what}, or {way_out}"
    return (
        f"site {name!r}: its mask leaves out {count} of {len(holes)}, for a NaN in each, and "
        f"{counted(cells, 'cell')} of them that are seen; each still counts as a datum: "
        f"{way_out}"
    )


def _of_parts(holes: Tensor, own: int) -> Tensor:
    """Return which cells go with a hole: all that have one density with it."""
    if not 0 < own <= holes.dim():
        return holes
    over_part = (..., *(None,) * own)
    return holes.flatten(-own).any(-1)[over_part].expand_as(holes)
