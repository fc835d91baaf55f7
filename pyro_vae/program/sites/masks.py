"""Which units of a site no mask takes out of its density."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.program.handlers import (
    FAILURES,
    Message,
    has_density_of_its_own,
    innermost,
    sample_sites,
)
from pyro_vae.program.sites.plates import data_dim
from pyro_vae.program.told import Told

# Finds by latent which sites of the guide it is a transform of.
Carriers = Callable[[], Mapping[str, Sequence[str]]]
# Returns a model's trace at all values of what is summed out, and the dimensions of its plates.
Summed = Callable[[], tuple[Trace, int]]


def kept_units(fn: Any, mask: Any, device: torch.device) -> Tensor | None:
    """Return which units of a draw count, in the shape of a draw; None without a mask.

    Arguments:
        fn: The site's distribution, whose own masks (``Distribution.mask``) are found inside it.
        mask: That of the handlers around the site (``poutine.mask``), or None.
        device: Where the answer is wanted.
    """
    masks = _masks(fn, mask)
    if not masks:
        return None
    kept = torch.ones(fn.batch_shape + fn.event_shape, dtype=torch.bool, device=device)
    for each in masks:
        kept = kept & each
    return kept


def kept_of_site(site: Message) -> Tensor | None:
    """Return the same of a site of a model, without the dimensions of what is summed out.

    No mask of a latent moves along them: ``with_all_drawn`` has taken off those that do.
    """
    kept = kept_units(site["fn"], site["mask"], site["value"].device)
    if kept is None:
        return None
    event = len(site["fn"].event_shape)
    for dim in site["infer"].get("_dim_to_id", ()):
        if kept.dim() >= event - dim:
            kept = kept.narrow(dim - event, 0, 1)
    return kept


def require_masks_of_batch(trace: Trace) -> None:
    """Require that the masks of handlers have the shape of what they stand around: the batch's.

    One mark for each cell of an event fits by chance alone, where there are as many rows as cells,
    or one row: it would count each row's density for each of them.

    Raises:
        ProgramError: Names the site and both shapes.
    """
    for name, site in sample_sites(trace):
        mask, batch, event = site["mask"], site["fn"].batch_shape, site["fn"].event_shape
        if not isinstance(mask, Tensor) or not mask.dim():
            continue
        fits = not event or mask.shape != batch + event
        try:
            torch.broadcast_shapes(mask.shape, batch)
        except RuntimeError:
            fits = False
        if not fits:
            raise ProgramError(f"site {name!r}: {unfit_mask(mask.shape, site['fn'])}")


def has_cells(fn: Any) -> bool:
    """Return whether a density is a product over its cells, which a mask can part."""
    return not innermost(fn).event_shape


def unfit_mask(got: torch.Size, fn: Any) -> str:
    """Return what to do about a mask of another shape than the batch's."""
    batch, event = fn.batch_shape, fn.event_shape
    way_out = "give one mark for each"
    if got == batch + event and not has_cells(fn):
        way_out += ", as m.all(-1): it has one density for all cells of an event"
    elif got == batch + event:
        way_out = (
            f"for one mark for each cell write .mask(m).to_event({len(event)}), the mask before "
            "the event"
        )
    return f"got a mask of {tuple(got)}, expected the batch shape {tuple(batch)}; {way_out}"


def density_of_kept(name: str, log_prob: Tensor, drawn: Any, scored: Any) -> Tensor:
    """Return the guide's log density of what the model has a density for: a weight needs no more.

    A value that the model's mask takes out (a step beyond the end of a sequence) has no density
    there, and a guide that scores it all the same would count it in ``log p - log q``.

    Arguments:
        name: Of the latent.
        log_prob: Its log density under the guide.
        drawn: Its site in the guide.
        scored: Its site in the model.

    Raises:
        ProgramError: The guide masks what the model scores, or draws at once, from a density that
            does not factorise, values of which the model scores some; or a mask is wider.
    """
    value, guide, model = drawn["value"], drawn["fn"], scored["fn"]
    kept = kept_of_site(scored)
    own = kept_units(guide, drawn["mask"], value.device)
    require_own_units(name, model, data_dim(scored), kept)
    require_own_units(name, guide, data_dim(drawn), own)
    if own is not None and bool((~own if kept is None else kept & ~own).any()):
        raise ProgramError(
            f"site {name!r}: masked in the guide and not in the model, whose density counts values "
            "that the guide's does not; put the same mask around both (.mask(m), poutine.mask)"
        )
    if kept is None or (own is not None and not bool((own & ~kept).any())):
        return log_prob
    if isinstance(innermost(guide), Delta) and not has_density_of_its_own(guide):
        return log_prob
    event = tuple(range(-len(guide.event_shape), 0))
    some = kept.any(event) if event else kept
    over_event = (..., *(None,) * len(event))
    if bool((kept == some[over_event]).all()):
        return scale_and_mask(guide.log_prob(value), 1.0, some)
    base = getattr(guide, "base_dist", None)
    if not hasattr(guide, "reinterpreted_batch_ndims") or base is None or base.event_shape:
        raise ProgramError(
            f"site {name!r}: the model's mask takes out a part of what {type(guide).__name__} in "
            "the guide draws at once: the density of the rest is not known; use a factorised "
            "distribution (.to_event), or fitted_log_likelihood"
        )
    return scale_and_mask(base.log_prob(value), 1.0, kept).sum(event)


def tell_of_masks(
    model: Trace, guide: Trace, carriers: Carriers, summed: Summed, told: Told
) -> None:
    """Warn of a latent whose density under the guide counts where that of the model is masked.

    ``-log q`` is then left alone there, so that an ELBO may lie above log p(x). Likelihoods leave
    it out. A point mass has the density of the sites that it is a transform of.

    Arguments:
        model, guide: Their traces.
        carriers: Finds these sites, by latent.
        summed: Runs the model at all values of what the guide leaves out.
        told: What the user knows.
    """
    drawn = dict(sample_sites(guide))
    left_out = any(not (s["is_observed"] or n in drawn) for n, s in sample_sites(model))
    for name, site in sample_sites(model):
        twin, key = drawn.get(name), ("mask", name)
        if twin is None or key in told or site["is_observed"] or not is_masked(site):
            continue
        if site["value"].is_meta or _is_flat(site):  # no values; a prior without a density
            continue
        lost = ~_counted(site)
        if not bool(lost.any()):
            continue
        point = isinstance(innermost(twin["fn"]), Delta)
        others = carriers().get(name, ()) if point else ()
        if not any(_scores(each, site, lost) for each in (twin, *(drawn[n] for n in others))):
            continue
        # A mask may move with what is summed out, which no guide can write.
        if not (left_out and _may_move(name, summed)):
            told.warn(key, _unmasked_in_guide(name, *others))


def _may_move(name: str, summed: Summed) -> bool:
    """Return whether the mask of a latent moves with what is summed out, or nothing tells it."""
    try:
        trace, depth = summed()
        return with_all_drawn(trace, depth).nodes[name] is not trace.nodes[name]
    except FAILURES:
        return True


def _unmasked_in_guide(name: str, *carriers: str) -> str:
    way_out = "write the mask around it in the guide as well: with poutine.mask(mask=...)"
    if carriers:
        way_out = (
            f"site {carriers[0]!r} of the guide has its density: write a guide that samples "
            f"{name!r} itself, under the mask: with poutine.mask(mask=...)"
        )
    return (
        f"site {name!r}: the model masks it for some data (poutine.mask, obs_mask=), and the guide "
        "does not, so that -log q counts there without log p: elbo, and what fit maximises, may "
        f"lie above log p(x), as under stock SVI; {way_out}"
    )


def _is_flat(site: Message) -> bool:
    """Return whether a latent has no density at all, as its author says: ``mask(False)``."""
    masks = _masks(site["fn"], site["mask"])
    return any(mask is False or (isinstance(mask, Tensor) and _is_no(mask)) for mask in masks)


def _is_no(mask: Tensor) -> bool:
    return mask.numel() == 1 and not bool(mask)


def _counted(site: Message) -> Tensor:
    """Return which units of a site have a density, in its shape; in a mask's, where that is wider.

    As of ``obs_mask=`` where the data are wider than their distribution.
    """
    fn, value = site["fn"], site["value"]
    kept = kept_units(fn, site["mask"], value.device)
    if isinstance(innermost(fn), Delta):  # of a point none, but what it says of a density elsewhere
        density = _over_event(fn.log_prob(value) != 0, fn)
        kept = density if kept is None else kept & density
    all_ = value.new_ones(fn.batch_shape + fn.event_shape, dtype=torch.bool)
    return all_ if kept is None else all_ & kept


def _scores(drawn: Message, site: Message, lost: Tensor) -> bool:
    """Return whether a site of the guide has a density of units that the model has none of.

    Where its units are others: of any unit of such a draw, or of one such vector for all draws.

    Arguments:
        drawn, site: In guide and model.
        lost: Which units of the model's have none, in the shape of its value.
    """
    counted = _counted(drawn)
    if counted.shape != lost.shape:
        counted, lost = (
            units.reshape(*units.shape[: units.dim() - each["fn"].event_dim], -1).any(-1)
            for units, each in ((counted, drawn), (lost, site))
        )
    if counted.shape != lost.shape:
        return bool(counted.any() and lost.any())
    return bool((counted & lost).any())


def require_own_units(name: str, fn: Any, data_dim: int, kept: Tensor | None) -> None:
    """Refuse a mask with more units of a datum than the latent: its one density counts for each.

    As of ``obs_mask=`` where the data are wider than their distribution.

    Arguments:
        name: Of the latent.
        fn: Its distribution.
        data_dim: The batch dimension of the data plate.
        kept: As ``kept_units`` says.

    Raises:
        ProgramError: Names the site.
    """
    if kept is None:
        return
    right = range(data_dim + 1 - len(fn.event_shape), 0)
    own = tuple((fn.batch_shape + fn.event_shape)[d] for d in right)
    units = tuple(kept.shape[d] for d in right)
    if own != units:
        raise ProgramError(
            f"site {name!r}: got a mask of {units} for each datum, expected {own} as the latent "
            "has, whose density counts once for each unit of the mask (so elbo and fit have it, as "
            "stock Pyro); give what is masked the shape of its mask: fn.expand(mask.shape)"
        )


def require_unmasked(name: str, carrier: str, scored: Any) -> None:
    """Refuse a mask around a latent whose density an auxiliary site of the guide has.

    Raises:
        ProgramError: The auxiliary site scores what the model's mask takes out.
    """
    kept = kept_units(scored["fn"], scored["mask"], scored["value"].device)
    if kept is not None and not bool(kept.all()):
        raise ProgramError(
            f"site {name!r}: masked in the model and not in the guide, whose site {carrier!r} "
            "counts values that have no density; use ais, fitted_log_likelihood, or a guide with "
            "the same mask around its site (.mask(m), poutine.mask)"
        )


def _masks(fn: Any, outer: Any) -> list[Any]:
    """Return a site's masks, that of its handlers and those inside its distribution."""
    masks = [] if outer is None else [_over_event(outer, fn)]
    while hasattr(fn, "reinterpreted_batch_ndims") or hasattr(fn, "_mask"):
        if hasattr(fn, "_mask"):
            masks.append(_over_event(fn._mask, fn))
        fn = fn.base_dist
    own = getattr(fn, "kept", None)  # of a distribution that is no wrapper of another
    return masks if own is None else [*masks, own]


def _over_event(mask: Any, fn: Any) -> Any:
    """Return a mask of a distribution's batch with dimensions for its event."""
    event = (..., *(None,) * len(fn.event_shape))
    return mask[event] if isinstance(mask, Tensor) else mask


def with_all_drawn(trace: Trace, depth: int) -> Trace:
    """Return a model's trace without masks that move with the values of what is summed out.

    A latent that counts for some of those values alone has no density at the others, and a sum over
    them none in all. The model draws it in any case: that is its density, and that of the data is
    the same, for what is not there says nothing of them.

    Arguments:
        trace: At all values of some latents, each in a dimension left of the others.
        depth: Dimensions of particles and plates.

    Raises:
        ProgramError: Data are scored for some values alone.
    """
    free = trace.copy()
    for name, site in sample_sites(trace):
        if "_dim_to_id" not in site["infer"] or not is_masked(site):
            continue
        event = len(site["fn"].event_shape)
        if any(_moves(mask, depth + event) for mask in _masks(site["fn"], site["mask"])):
            free.nodes[name] = unmasked(name, site, ids_of(trace))
    return free


def _moves(mask: Any, depth: int) -> bool:
    """Return whether a mask differs along any dimension left of the last ones."""
    if not isinstance(mask, Tensor):
        return False
    # Expanded ones are equal: to know it costs no look at values.
    dims = [d for d in range(mask.dim() - depth) if mask.shape[d] > 1 and mask.stride(d) != 0]
    return any(bool((mask != mask.narrow(d, 0, 1)).any()) for d in dims)


def ids_of(trace: Trace) -> list[str]:
    """Return the latents of a trace that are summed out."""
    return [n for n, s in sample_sites(trace) if s["infer"].get("_enumerate_dim") is not None]


def is_masked(site: Message) -> bool:
    """Return whether any mask stands around a site, or inside its distribution."""
    return bool(_masks(site["fn"], site["mask"]))


def unmasked(name: str, site: Message, summed: Iterable[str]) -> Message:
    """Return a latent as the model draws it.

    Raises:
        ProgramError: It is no latent.
    """
    if site["is_observed"]:
        raise ProgramError(
            f"site {name!r}: observed under a mask that moves with the values of "
            f"{', '.join(map(repr, summed))}, which is summed out: for some of them the data are "
            "not scored, and p(x) is no density; observe them in any case, or let the guide draw "
            "the latent (elbo answers as stock Pyro does)"
        )
    return {**site, "fn": without_masks(site["fn"]), "mask": None}


def without_masks(fn: Any) -> Any:
    """Return a distribution without the masks inside it."""
    if hasattr(fn, "_mask"):
        return without_masks(fn.base_dist)
    if hasattr(fn, "reinterpreted_batch_ndims"):
        return without_masks(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    return fn
