"""Observed sites at draws of the code, latents that are summed out averaged over.

Shapes: B data, k draws of the code, V values of what is summed out.
"""

from typing import Any

import torch
from pyro.distributions import Categorical
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.program.densities.enumeration import summed_around
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.passes import Pass
from pyro_vae.program.sites.masks import kept_units
from pyro_vae.program.sites.plates import by_datum, data_dim, inner_plates


class GivenCode:
    """What a model says of its observed sites at k draws of the code.

    Arguments:
        piece: The rows.
        joint: Model and guide on them.
        model, guide: Traces of k draws.
        particles: k.
    """

    def __init__(self, piece: Pass, joint: Joint, model: Any, guide: Any, particles: int) -> None:
        self.sites, self.rows, self.particles = piece.sites, len(piece), particles
        self.model = model
        self.posteriors: dict[str, Tensor] = {}  # p(y | x, z), (k, B, *plates, V)
        if piece.sites.enumerated:
            self.posteriors = joint.posteriors_at(guide, particles)

    def kept(self) -> dict[str, Tensor]:
        """Return which cells are there, (B, *event), of each site of which some are masked.

        Raises:
            ProgramError: The model masks none.
        """
        found = {}
        for name in self.sites.observed:
            site = self.model.nodes[name]
            kept = kept_units(site["fn"], site["mask"], site["value"].device)
            if kept is not None:
                behind = getattr(site["fn"], "behind", None)
                if behind is not None:  # a sequence has no cells there
                    kept = kept | behind
                found[name] = self._by_value(name, kept, len(site["fn"].event_shape))[0, 0]
        if not found:
            raise ProgramError(
                f"impute: site {', '.join(map(repr, self.sites.observed))} has no missing cells: "
                'the model masks none of them; use VAE(missing="nan"), TableVAE, or .mask around '
                "its distribution"
            )
        return found

    def mean(self, name: str, value: Tensor, event_dim: int) -> Tensor:
        """Return the mean over what is summed out of a statistic of a site, (k, B, *event)."""
        by_value, weight = self._by_value(name, value, event_dim), self._weight(name)
        if weight is None:
            return by_value[0]
        tail = (..., *(None,) * (by_value.dim() - weight.dim()))
        return (weight[tail] * by_value).sum(0)

    def draws(self, names: list[str]) -> dict[str, Tensor]:
        """Return draws of sites, (k, B, *event): all at one draw of what is summed out.

        Raises:
            ProgramError: They depend on several such latents, whose joint is not looked up.
        """
        latents = {latent for name in names for latent in summed_around(self.model, name)}
        if len(latents) > 1:
            raise ProgramError(self._several(", ".join(names), latents))
        picks = {each: Categorical(self.posteriors[each]).sample() for each in latents}
        found = {}
        for name in names:
            fn = self.model.nodes[name]["fn"]
            by_value = self._by_value(name, fn.sample(), len(fn.event_shape))
            found[name] = by_value[0]
            if (weight := self._weight(name)) is not None:
                (latent,) = summed_around(self.model, name)
                picked = picks[latent].reshape(weight.shape[1:])
                tail = (None, ..., *(None,) * (by_value.dim() - weight.dim()))
                index = picked[tail]
                found[name] = by_value.gather(0, index.expand(1, *by_value.shape[1:]))[0]
        return found

    def _by_value(self, name: str, value: Tensor, event_dim: int) -> Tensor:
        """Return a statistic of a site at each value of what is summed out, (V, k, B, *event)."""
        site, around = self.model.nodes[name], summed_around(self.model, name)
        if len(around) > 1:
            raise ProgramError(self._several(name, around))
        batch = site["fn"].batch_shape
        value = value.expand(batch + value.shape[value.dim() - event_dim :])
        each = [value]
        if around:
            (dim,) = around.values()
            each = list(value.unbind(value.dim() - event_dim + dim))
        plates, data = inner_plates(site), data_dim(site)
        return torch.stack(
            [by_datum(v, event_dim, plates, self.particles, self.rows, data) for v in each]
        )

    def _weight(self, name: str) -> Tensor | None:
        """Return the probabilities of what a site depends on, (V, k, B, *plates), or None."""
        around = summed_around(self.model, name)
        if not around:
            return None
        (latent,) = around
        weight = self.posteriors[latent].movedim(-1, 0)
        mine, its = (inner_plates(self.model.nodes[each]) for each in (name, latent))
        if its and its != mine:
            raise ProgramError(
                f"impute: sites {name!r} and {latent!r}, which is summed out, stand in different "
                "plates inside that of the data; let the guide draw the latent"
            )
        inner = (..., *(None,) * len(mine))
        return weight if its else weight[inner]

    @staticmethod
    def _several(names: str, latents: Any) -> str:
        return (
            f"impute: {names} depends on several latents that are summed out, "
            f"{', '.join(sorted(latents))}; let the guide draw all but one"
        )
