"""Which units of a site no mask takes out of its density."""

from typing import Any

import torch
from torch import Tensor


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


def _masks(fn: Any, outer: Any) -> list[Any]:
    """Return a site's masks, that of its handlers and those inside its distribution."""
    masks = [] if outer is None else [_over_event(outer, fn)]
    while hasattr(fn, "reinterpreted_batch_ndims") or hasattr(fn, "_mask"):
        if hasattr(fn, "_mask"):
            masks.append(_over_event(fn._mask, fn))
        fn = fn.base_dist
    return masks


def _over_event(mask: Any, fn: Any) -> Any:
    """Return a mask of a distribution's batch with dimensions for its event."""
    event = (..., *(None,) * len(fn.event_shape))
    return mask[event] if isinstance(mask, Tensor) else mask
