"""Which units of a site no mask takes out of its density."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.program.handlers import Message, innermost, sample_sites


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
            does not factorise, values of which the model scores some.
    """
    value, guide, model = drawn["value"], drawn["fn"], scored["fn"]
    kept = kept_units(model, scored["mask"], value.device)
    own = kept_units(guide, drawn["mask"], value.device)
    if own is not None and bool((~own if kept is None else kept & ~own).any()):
        raise ProgramError(
            f"site {name!r}: masked in the guide and not in the model, whose density counts values "
            "that the guide's does not; put the same mask around both (.mask(m), poutine.mask)"
        )
    if kept is None or (own is not None and not bool((own & ~kept).any())):
        return log_prob
    if isinstance(innermost(guide), Delta):  # of a point mass, or of one that another site has
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


def tell_of_masks(model: Trace, guide: Trace, told: set[str]) -> None:
    """Warn of a latent whose density under the guide counts where that of the model is masked.

    ``-log q`` is then left alone there, so that an ELBO may lie above log p(x). Likelihoods leave
    it out.

    Arguments:
        model, guide: Their traces.
        told: Sites that the user knows of.
    """
    drawn = dict(sample_sites(guide))
    if any(not (s["is_observed"] or n in drawn) for n, s in sample_sites(model)):
        return  # a mask may move with what is summed out, which no guide can write
    for name, site in sample_sites(model):
        twin = drawn.get(name)
        if twin is None or name in told or site["is_observed"] or not is_masked(site):
            continue
        device = site["value"].device
        if device.type == "meta":  # no values tell what is masked
            continue
        kept = kept_units(site["fn"], site["mask"], device)
        own = kept_units(twin["fn"], twin["mask"], device)
        scored = ~kept if own is None else own & ~kept  # type: ignore[operator]
        flat = not bool(kept.any())  # type: ignore[union-attr] # a prior without a density: as meant
        if flat or isinstance(innermost(twin["fn"]), Delta) or not bool(scored.any()):
            continue
        told.add(name)
        warnings.warn(
            f"site {name!r}: the model masks it for some data (poutine.mask, obs_mask=), and the "
            "guide does not, so that -log q counts there without log p: elbo, and what fit "
            "maximises, may lie above log p(x), as under stock SVI; write the mask around it in "
            "the guide as well: with poutine.mask(mask=...)",
            UserWarning,
            stacklevel=2,
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
