"""Moments of q(z | x), summed over the data.

Shapes: K draws, B data of a pass; the units of a site are its event, for each step of any second
plate.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.program.sites.masks import kept_units, require_own_units
from pyro_vae.program.sites.plates import by_datum

BINS = 24  # of the histogram of posterior variances, over [0, 1.2] prior variances of 1


class Said(NamedTuple):
    """What one side says of one latent: its distribution, mask and plates (the data's apart)."""

    fn: Any
    mask: Any
    plates: tuple[int, ...]
    data: int = -1

    def moment(self, which: str, num_particles: int, rows: int) -> Tensor | None:
        """Return the mean or variance, ``(K, B, *units)``; None where it is not known."""
        try:
            value = getattr(self.fn, which)
        except (NotImplementedError, AttributeError):
            return None
        return self._by_datum(value, num_particles, rows).double()

    def kept(self, name: str, num_particles: int, rows: int, device: torch.device) -> Tensor | None:
        """Return which units no mask takes out, ``(B, *units)``; None without a mask.

        Raises:
            ProgramError: The mask has more units than the latent of that name.
        """
        kept = kept_units(self.fn, self.mask, device)
        require_own_units(name, self.fn, self.data, kept)
        if kept is None:
            return None
        return self._by_datum(kept, num_particles, rows)[0]

    def _by_datum(self, value: Tensor, num_particles: int, rows: int) -> Tensor:
        event = len(self.fn.event_shape)
        return by_datum(value, event, self.plates, num_particles, rows, self.data)


class Moments:
    r"""Running sums over the data, so that the memory does not grow with them.

    .. math:: \mathrm{Var}_x\, \mathbb{E}_q[z \mid x] / \mathrm{Var}_p[z], \qquad
        \mathbb{E}_x \mathrm{Var}_q[z \mid x] / \mathrm{Var}_p[z]
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Any] = {}  # (quantity, site)

    def add(
        self,
        name: str,
        mean: Tensor,
        spread: Tensor | None = None,
        kept: Tensor | None = None,
        noise: Tensor | float = 0.0,
        prior: Tensor | None = None,
    ) -> None:
        r"""Add some rows of one site.

        Arguments:
            name: The site.
            mean: :math:`\mathbb{E}_q[z \mid x]`, or an estimate of it, ``(B, *units)``.
            spread: :math:`\mathrm{Var}_q[z \mid x]` over the prior's, ``(B, *units)``, or None.
            kept: Which of them count, ``(B, *units)``; None: all.
            noise: Variance of the estimate ``mean``, ``(B, *units)``.
            prior: That of the prior, ``(B, *units)`` or ``(*units)``; None: not known.
        """
        kept = torch.ones_like(mean, dtype=torch.bool) if kept is None else kept

        def total(value: Tensor) -> Tensor:
            return torch.where(kept, value, torch.zeros_like(value)).sum(0)

        self._put("count", name, kept.double().sum(0))
        self._put("first", name, total(mean))
        self._put("second", name, total(mean.square()))
        self._put("noise", name, total(torch.zeros_like(mean) + noise))
        if prior is not None:
            self._put("prior", name, total(torch.zeros_like(mean) + prior))
        if spread is None:
            return
        self._put("spread", name, total(spread))
        place = (spread * (BINS / 1.2)).nan_to_num(BINS).clamp(0, BINS - 1).long()
        counts = torch.zeros(BINS, dtype=torch.long, device=place.device)
        self._put("bins", name, counts.index_add(0, place.flatten(), kept.long().flatten()))

    def _put(self, quantity: str, site: str, value: Tensor) -> None:
        self._sums[quantity, site] = self._sums.get((quantity, site), 0) + value

    def _known(self, quantity: str) -> Iterable[tuple[str, Tensor]]:
        """Yield the sums of the sites whose moments are numbers (a categorical's are not)."""
        for (kind, name), value in self._sums.items():
            if kind == quantity and bool(self._sums["second", name].isfinite().all()):
                yield name, value

    def variance(self) -> dict[str, Tensor]:
        """Return the variance of the mean over the data, over the prior's, ``(*units)``."""
        found = {}
        for name, second in self._known("second"):
            count = self._sums["count", name].clamp(min=1)
            mean, noise = (self._sums[each, name] / count for each in ("first", "noise"))
            total = (second / count - mean.square()).clamp(min=0) * (count / (count - 1).clamp(1))
            prior = self._sums.get(("prior", name))
            told = (total - noise).clamp(min=0)
            found[name] = relative(told, None if prior is None else prior / count).cpu()
        return found

    def spread(self) -> dict[str, Tensor]:
        """Return the mean over the data of the variance of q, ``(*units)`` per site."""
        return {
            name: (value / self._sums["count", name]).cpu()
            for name, value in self._known("spread")
            if not bool((value.isnan()).any())
        }

    def histogram(self) -> dict[str, Tensor]:
        """Return the counts of variances of q, ``(24,)`` per site."""
        known = self.spread()
        return {name: value.cpu() for name, value in self._known("bins") if name in known}


def relative(variance: Tensor, prior: Tensor | None) -> Tensor:
    """Return a variance over the prior's; as it is where that is zero, infinite or not known."""
    if prior is None:
        return variance
    usable = prior.isfinite() & (prior > 0)
    return variance / torch.where(usable, prior, torch.ones_like(prior))
