"""The weights of sites in a batch: a program may scale by N/B itself."""

from collections.abc import Container, Iterable
from typing import NamedTuple

import torch
from pyro.distributions import Delta
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.program.handlers import (
    Message,
    data_frame,
    innermost,
    is_deterministic,
    sample_sites,
)


class Counted(NamedTuple):
    """The weight of a site in a batch that was looked at.

    Arguments:
        site: Its name.
        weight: One number.
        rows: Of the batch.
        inside: The plate of the data; else it is a global latent.
    """

    site: str
    weight: float
    rows: int
    inside: bool

    def is_of(self, size: int) -> bool:
        """Return whether the weight is N/B, or B/N outside, or so of the number of batches.

        Arguments:
            size: N.
        """
        batches = {size // self.rows, -(-size // self.rows)}
        candidates = (size, *(m * self.rows for m in batches))
        return any(abs(self.total - n) < 1e-4 * size for n in candidates)

    @property
    def total(self) -> float:
        """The data that the batch stands for by this weight."""
        return self.weight * self.rows if self.inside else self.rows / self.weight


def counted_of(seen: tuple[Trace, Trace], names: Container[str]) -> tuple[Counted, ...]:
    """Return weights of sites: of some names, or of all inside the plate if they are equal.

    One weight of all that is inside may be N/B for a B that is written into the program, and one of
    all global latents B/N.
    """
    inside: list[tuple[str, int, float | None]] = []
    outside: dict[str, float | None] = {}
    for trace in seen:
        for name, site in sample_sites(prune_subsample_sites(trace)):
            frame, weight = data_frame(site), _one_number(torch.as_tensor(site["scale"]))
            if frame is not None and frame.full_size == frame.size:
                inside.append((name, frame.size, weight))
            elif is_global(site) and not isinstance(innermost(site["fn"]), Delta):
                # A point mass weighs nothing, whatever its weight: the prior's own is what counts.
                outside[name] = weight if outside.get(name, weight) == weight else None
    one, other = {weight for *_, weight in inside}, set(outside.values())
    alike = len(one) == 1 and not one & {1.0, None}
    asked = [each for each in inside if alike or each[0] in names]
    found = [Counted(n, weight, rows, True) for n, rows, weight in asked if weight is not None]
    if one == {1.0} and len(other) == 1 and not other & {1.0, None}:
        rows = inside[0][1]
        found += [Counted(n, weight, rows, False) for n, weight in outside.items() if weight]
    return tuple(found)


def _one_number(scale: Tensor) -> float | None:
    """Return what a weight is for all rows, if it is one number."""
    if scale.is_meta or not scale.numel():
        return None
    first = scale.flatten()[0]
    return float(first) if bool((scale == first).all()) else None


def weights_of(counted: Iterable[Counted]) -> dict[str, Tensor]:
    """Return the weights of each site, in model and guide."""
    found: dict[str, list[float]] = {}
    for each in counted:
        found.setdefault(each.site, []).append(each.weight)
    return {name: torch.tensor(weights) for name, weights in found.items()}


def is_global(site: Message) -> bool:
    """Return whether a site of the guide is a latent outside the plate, with a density."""
    latent = not site["is_observed"] and not is_deterministic(site)
    return latent and data_frame(site) is None
