"""Whether a site leaves out of its density what is missing in the data: the cells that are NaN."""

from collections.abc import Iterator

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import counted
from pyro_vae.program.batches.batch import Batch, named_leaves
from pyro_vae.program.handlers import is_data, sample_sites
from pyro_vae.program.sites.masks import kept_units
from pyro_vae.program.told import Told


def tell_of_holes(model: Trace, batch: Batch, told: Told) -> None:
    """Warn of a site that scores cells that are NaN in the data, or leaves out whole rows for them.

    Such a site observes an argument, with numbers of the model's own in the place of NaN.

    Arguments:
        model: Its trace.
        batch: Some rows, with holes.
        told: What the user knows.
    """
    for name, site in sample_sites(model):
        if not is_data(site) or ("holes", name) in told:
            continue
        value = site["value"]
        kept = kept_units(site["fn"], site["mask"], value.device)
        if kept is None:
            kept = torch.ones_like(value, dtype=torch.bool)
        if kept.shape != value.shape:  # more steps than it draws
            continue
        for given, holes in _observed_with_holes(batch, value):
            scored = _scored(name, given, value, kept, holes)
            message = scored or _whole_rows(name, given, kept, holes)
            if message:
                told.warn(("holes", name), message)


def observed_holes(model: Trace) -> str:
    """Return which observed sites hold NaN, though the model masks what lacks; nothing if none."""
    for name, site in sample_sites(model):
        if is_data(site) and bool(site["value"].isnan().any()):
            return (
                f"site {name!r} observes NaN, which a mask does not take out: write "
                "obs=x.nan_to_num() beside .mask(~x.isnan())"
            )
    return ""


def _observed_with_holes(batch: Batch, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield which arguments a value is where they are numbers, and where they are none."""
    for name, leaf in named_leaves(batch):
        if not leaf.is_floating_point() or leaf.is_meta or leaf.numel() != value.numel():
            continue
        holes = leaf.isnan().reshape(value.shape)
        seen = leaf.reshape(value.shape)[~holes].to(value)
        # One number in all of them may be anything: whether a cell is seen, say.
        if holes.any() and seen.unique().numel() > 1 and torch.equal(seen, value[~holes]):
            yield "x" if name == "batch" else name, holes


def _scored(name: str, given: str, value: Tensor, kept: Tensor, holes: Tensor) -> str:
    """Return what to do where cells with holes count; nothing where none does."""
    scored = kept & holes
    if not bool(scored.any()) or not _is_filler(value, scored):
        return ""
    count = counted(int(scored.sum()), "cell")
    if torch.equal(kept, holes):
        return (
            f"site {name!r}: its mask is inverted: it keeps the {count} that are NaN in the data, "
            f"and leaves out all others; write .mask(~{given}.isnan())"
        )
    return (
        f"site {name!r}: {count} that are NaN in the data are scored, as the numbers that stand in "
        f"their place; compute the mask before these do, as seen = ~{given}.isnan(), then "
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
