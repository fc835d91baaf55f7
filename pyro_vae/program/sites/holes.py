"""Whether a site leaves out of its density what is missing in the data: the cells that are NaN."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import counted
from pyro_vae.program.batches.batch import Batch, named_leaves
from pyro_vae.program.handlers import Message, is_data, sample_sites
from pyro_vae.program.sites.masks import kept_units
from pyro_vae.program.told import Told

# An argument's name, then its steps or columns in rows of a matrix, and where these are NaN.
_Parts = tuple[str, Tensor, Tensor]

_KEY = ("holes", "of all sites")  # one warning a program


def tell_of_holes(model: Trace, batch: Batch, told: Told) -> None:
    """Warn of a site that scores cells that are NaN in the data, or leaves out whole rows for them.

    Such a site observes an argument, with numbers of the model's own in the place of NaN.

    Arguments:
        model: Its trace.
        batch: Some rows, with holes.
        told: What the user knows.
    """
    if _KEY in told:
        return
    sites = [(name, site) for name, site in sample_sites(model) if is_data(site)]
    data = {name: site for name, site in sites if _right(name, site) not in told}
    parts = _parts(batch, {site["value"].numel() for site in data.values()})
    drawn = [s["value"] for _, s in sample_sites(model) if not s["is_observed"]]
    found = {n: fault for n, s in data.items() if (fault := _fault(n, s, parts, drawn, told))}
    if found:
        first, *others = found
        named = ", ".join(map(repr, others[:3])) + ", and more" * (len(others) > 3)
        told.warn(_KEY, found[first] + f"; the same of {named}" * bool(others))


def _right(name: str, site: Message) -> tuple[str, str]:
    """Return the key of a site that takes holes rightly: there is no need to look at it again."""
    return ("holes", f"{name} of {tuple(site['value'].shape[1:])}")


def _fault(
    name: str, site: Message, parts: Sequence[_Parts], drawn: Sequence[Tensor], told: Told
) -> str:
    """Return what to do about how a site takes the holes; nothing where it does so rightly."""
    value = site["value"]
    kept = kept_units(site["fn"], site["mask"], value.device)
    if kept is None:
        kept = torch.ones_like(value, dtype=torch.bool)
    if kept.shape != value.shape or not value.dim():  # more steps than it draws; one number
        return ""
    found = []
    for given, holes in _observed(parts, value):
        fault = _scored(name, given, value, kept, holes, drawn)
        found.append(fault or _whole_rows(name, given, site["fn"], kept, holes))
        if not found[-1] and _leaves_out(kept, holes):
            told.settle(_right(name, site))
    return found[0] if found and all(found) else ""  # one of several alike may be without a fault


def _leaves_out(kept: Tensor, holes: Tensor) -> bool:
    """Return whether a mask leaves out the holes alone, and these tell it from one of rows."""
    if not torch.equal(kept, ~holes):
        return False
    rows = holes.reshape(len(holes), -1)
    of_some = rows.any(-1) if rows.shape[1:] == (1,) else rows.any(-1) & ~rows.all(-1)
    return bool(of_some.any())


def observed_holes(model: Trace) -> str:
    """Return which observed sites hold NaN, though the model masks what lacks; nothing if none."""
    for name, site in sample_sites(model):
        if is_data(site) and bool(site["value"].isnan().any()):
            return (
                f"site {name!r} observes NaN, which a mask does not take out: write "
                "obs=x.nan_to_num() beside .mask(~x.isnan())"
            )
    return ""


def _parts(batch: Batch, sizes: set[int]) -> list[_Parts]:
    """Return the arguments, and their steps or columns, that are as large as what sites observe."""
    found = []
    for name, leaf in named_leaves(batch):
        if not sizes or not leaf.is_floating_point() or leaf.is_meta or not leaf.numel():
            continue
        holes = leaf.isnan()
        if leaf.numel() in sizes:
            found.append((name, leaf.reshape(1, -1), holes.reshape(1, -1)))
        for dim in {1, leaf.dim() - 1} if leaf.dim() > 1 else ():
            count = leaf.shape[dim]
            if count > 1 and leaf.numel() // count in sizes:
                cells, lacks = (each.movedim(dim, 0).reshape(count, -1) for each in (leaf, holes))
                found.append((name, cells, lacks))
    return found


def _observed(parts: Sequence[_Parts], value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield which arguments, or steps or columns of them, a value is, and where these are NaN."""
    flat = value.reshape(-1)
    first = flat[:32]  # tells most columns apart, at once
    for name, cells, holes in parts:
        if cells.shape[1] != len(flat):
            continue
        alike = (cells[:, :32].to(flat) == first) | holes[:, :32].to(flat.device)
        for at in alike.all(-1).nonzero().flatten().tolist():
            seen = ~holes[at]
            if torch.equal(cells[at][seen].to(flat), flat[seen]):
                yield name, holes[at].reshape(value.shape)


def _scored(
    name: str, given: str, value: Tensor, kept: Tensor, holes: Tensor, drawn: Sequence[Tensor]
) -> str:
    """Return what to do where cells with holes count; nothing where none does."""
    scored = kept & holes
    told = value[~holes].unique().numel() > 1  # one number may be anything: what is seen, say
    if not told or not bool(scored.any()) or not _is_filler(value, scored):
        return ""
    if any(_holds(latent, value, scored) for latent in drawn):
        return ""
    count = f"{int(scored.sum())} in {counted(len(value), 'row')}"
    if torch.equal(kept, holes):
        return (
            f"site {name!r} has an inverted mask: it keeps the cells that are NaN in the data "
            f"({count}), and leaves out all others; write .mask(~{given}.isnan())"
        )
    return (
        f"site {name!r} scores cells that are NaN in the data ({count}), as the numbers that stand "
        f"in their place: compute the mask before these do, as seen = ~{given}.isnan(), then "
        f"{given} = {given}.nan_to_num(), and write .mask(seen) before .to_event"
    )


def _holds(latent: Tensor, value: Tensor, scored: Tensor) -> bool:
    """Return whether these cells are values of a latent, as of missing cells that a guide fits."""
    if latent.numel() == value.numel():
        return torch.equal(latent.reshape(value.shape)[scored].to(value), value[scored])
    filled = value[scored]
    try:
        wide = latent.expand(value.shape)[scored].to(value)
    except RuntimeError:
        return False
    return bool(filled.all()) and torch.equal(wide, filled)  # a zero may be that of any latent


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


def _whole_rows(name: str, given: str, fn: Any, kept: Tensor, holes: Tensor) -> str:
    """Return what to do where one hole takes out its row; nothing where it does not."""
    kept, holes = kept.reshape(len(kept), -1), holes.reshape(len(holes), -1)
    partly = holes.any(-1) & ~holes.all(-1)
    if not bool(partly.any()) or bool(kept[partly].any()) or not bool(kept[~holes.any(-1)].all()):
        return ""
    count, cells = counted(int(partly.sum()), "row"), int((~holes[partly]).sum())
    way_out = "drop the rows"
    if _has_cells(fn):
        cells_out = f"put .mask(~{given}.isnan()) before .to_event, which leaves out the cells"
        way_out = f"{cells_out}, or {way_out}"
    return (
        f"site {name!r}: its mask leaves out {count} of {len(holes)}, for a NaN in each, and "
        f"{counted(cells, 'cell')} of them that are seen; each still counts as a datum: "
        f"{way_out}"
    )


def _has_cells(fn: Any) -> bool:
    """Return whether a density is a product over the cells of an event, which a mask can part."""
    while hasattr(fn, "_mask"):
        fn = fn.base_dist
    return hasattr(fn, "reinterpreted_batch_ndims") and not fn.base_dist.event_shape
