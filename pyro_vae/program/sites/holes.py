"""Whether a site leaves out of its density what is missing in the data: the cells that are NaN."""

from collections.abc import Iterator

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import counted
from pyro_vae.program.batches.batch import Batch, named_leaves
from pyro_vae.program.handlers import Message, is_data, sample_sites
from pyro_vae.program.sites.masks import kept_units
from pyro_vae.program.told import Told

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
    data = [(name, site) for name, site in sample_sites(model) if is_data(site)]
    found = {name: fault for name, site in data if (fault := _fault(name, site, batch))}
    if found:
        first, *others = found
        named = ", ".join(map(repr, others[:3])) + ", and more" * (len(others) > 3)
        told.warn(_KEY, found[first] + f"; the same of {named}" * bool(others))


def _fault(name: str, site: Message, batch: Batch) -> str:
    """Return what to do about how a site takes the holes; nothing where it does so rightly."""
    value = site["value"]
    kept = kept_units(site["fn"], site["mask"], value.device)
    if kept is None:
        kept = torch.ones_like(value, dtype=torch.bool)
    if kept.shape != value.shape:  # more steps than it draws
        return ""
    found = [
        _scored(name, given, value, kept, holes) or _whole_rows(name, given, kept, holes)
        for given, holes in _observed(batch, value)
    ]
    return found[0] if found and all(found) else ""  # one of several alike may be without a fault


def observed_holes(model: Trace) -> str:
    """Return which observed sites hold NaN, though the model masks what lacks; nothing if none."""
    for name, site in sample_sites(model):
        if is_data(site) and bool(site["value"].isnan().any()):
            return (
                f"site {name!r} observes NaN, which a mask does not take out: write "
                "obs=x.nan_to_num() beside .mask(~x.isnan())"
            )
    return ""


def _observed(batch: Batch, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield which arguments, or steps or columns of them, a value is, and where these are NaN."""
    for name, leaf in named_leaves(batch):
        if not leaf.is_floating_point() or leaf.is_meta or leaf.numel() < value.numel():
            continue
        dims = {1, leaf.dim() - 1} if leaf.dim() > 1 and leaf.numel() > value.numel() else ()
        for each in (leaf, *(part for dim in dims for part in leaf.unbind(dim))):
            if each.numel() != value.numel():
                continue
            holes = each.isnan().reshape(value.shape)
            seen = each.reshape(value.shape)[~holes].to(value)
            if torch.equal(seen, value[~holes]):
                yield name, holes


def _scored(name: str, given: str, value: Tensor, kept: Tensor, holes: Tensor) -> str:
    """Return what to do where cells with holes count; nothing where none does."""
    scored = kept & holes
    told = value[~holes].unique().numel() > 1  # one number may be anything: what is seen, say
    if not told or not bool(scored.any()) or not _is_filler(value, scored):
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


def _whole_rows(name: str, given: str, kept: Tensor, holes: Tensor) -> str:
    """Return what to do where one hole takes out its row; nothing where it does not."""
    kept, holes = kept.reshape(len(kept), -1), holes.reshape(len(holes), -1)
    partly = holes.any(-1) & ~holes.all(-1)
    if not bool(partly.any()) or bool(kept[partly].any()) or not bool(kept[~holes.any(-1)].all()):
        return ""
    count, cells = counted(int(partly.sum()), "row"), int((~holes[partly]).sum())
    return (
        f"site {name!r}: its mask leaves out {count} of {len(holes)}, for a NaN in each, and "
        f"{counted(cells, 'cell')} of them that are seen; each still counts as a datum: put "
        f".mask(~{given}.isnan()) before .to_event, which leaves out the cells, or drop the rows"
    )
