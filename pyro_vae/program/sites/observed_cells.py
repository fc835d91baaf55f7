"""What the sites of a run observe, cell by cell, and which of it counts."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.program.handlers import Message, observes, sample_sites
from pyro_vae.program.sites.masks import kept_units


class Cells(NamedTuple):
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

    def stays(self, moved: Tensor) -> bool:
        """Return whether none of what counts is another number where holes are filled in."""
        return not bool((self.kept & (moved | differ(self.value, self.filled))).any())

    def holds_just(self, seen: Tensor) -> bool:
        """Return whether what counts are the numbers of an argument, each once, in any order.

        So is what is sorted. Of whole numbers another may be equal by chance.
        """
        counts, rows = by_row(self.value), by_row(seen)
        if counts.shape != rows.shape or bool((rows == rows.round()).any()):
            return False
        pairs = (counts, ~by_row(self.kept)), (rows.to(counts), rows.isnan())
        one, other = (each.masked_fill(out, torch.inf).sort(-1).values for each, out in pairs)
        return torch.equal(one, other)

    @property
    def opened(self) -> Tensor:
        """Which cells count where nothing is missing, and else do not."""
        return self.kept_filled & ~self.kept


def values_of(trace: Trace | None) -> dict[str, Tensor]:
    """Return what sites observe, by name."""
    sites = [] if trace is None else sample_sites(trace)
    return {name: site["value"] for name, site in sites if observes(site)}


def differ(one: Tensor, two: Tensor) -> Tensor:
    return one.detach() != two.detach()  # NaN is no number


def cells_of(model: Trace, filled: Trace | None, count: int, plate: str | None) -> dict[str, Cells]:
    """Return what the sites of a model observe, as the data are, and where nothing was missing."""
    found, others = {}, {} if filled is None else dict(sample_sites(filled))
    for name, site in sample_sites(model):
        value: Any = site["value"]
        if not observes(site) or not value.numel():
            continue
        other: Message = others.get(name, site)
        if not observes(other) or other["value"].shape != value.shape:
            other = site  # of the cells that are seen alone, as x[~x.isnan()]
        pairs = [(each["value"], kept_of(each)) for each in (site, other)]
        with suppress(RuntimeError):  # a mask that is none of the value
            all_ = torch.broadcast_tensors(*pairs[0], *pairs[1])
            if all_[0].shape == value.shape:
                dim = _row_dim(site, count, plate)
                found[name] = Cells(site, dim, *(_rows_first(each, dim) for each in all_))
    return found


def kept_of(site: Message) -> Tensor:
    """Return which cells of an observed value count."""
    kept = kept_units(site["fn"], site["mask"], site["value"].device)
    return torch.ones_like(site["value"], dtype=torch.bool) if kept is None else kept


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


def by_row(cells: Tensor) -> Tensor:
    """Return cells as a matrix of rows."""
    return cells.reshape(len(cells), -1)
