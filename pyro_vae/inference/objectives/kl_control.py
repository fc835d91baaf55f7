"""Free bits, a floor under the KL below which it costs nothing; and a KL to hold."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_vae.arguments import number, typed
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.objectives.objective import TermsObjective, require_paths, with_globals
from pyro_vae.program.densities.terms import Terms


@typed
class FreeBits(TermsObjective):
    r"""The ELBO with a floor under the minibatch mean of the KL of each group of units.

    .. math:: \mathbb{E}_q[\log p(x \mid z)] - \sum_j \max\Big(\lambda,\
       \frac{1}{B}\sum_n \mathrm{KL}_j(x_n)\Big)

    Below the floor a group's KL has no gradient. Under a guide from the data up the term of a lower
    layer is no KL: it can fall far below zero, where a floor leaves its prior without control, and
    long trainings may burst. Floor the top alone there, or take a guide from the top down.

    Arguments:
        nats: λ, nats per group: a number or tensor for all latents, or by site (others have none).
        per: What a group is: each ``"unit"``, the whole ``"site"``, or by site a tensor ``(Z,)`` of
            group numbers.
        num_particles: Draws behind the KL.

    Raises:
        ConfigError: A negative floor, or an unknown grouping.
        ProgramError: A site has no density per unit, stands under a KL weight, or is none of the
            program's; groups of another size than the units.

    References:
        | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016),
          arXiv:1606.04934, App. C
    """

    def __init__(
        self,
        nats: float | Tensor | Mapping[str, float | Tensor],
        *,
        per: Literal["unit", "site"] | Mapping[str, Tensor] = "unit",
        num_particles: int = 1,
    ) -> None:
        super().__init__(num_particles)
        for value in nats.values() if isinstance(nats, Mapping) else [nats]:
            floors = torch.as_tensor(value, dtype=torch.float64)
            if not bool(((floors >= 0) & floors.isfinite()).all()):
                raise ConfigError(f"nats: got {value!r}, expected floors of at least 0")
        if not isinstance(per, Mapping) and per not in ("unit", "site"):
            raise ConfigError(f"per: got {per!r}, expected 'unit', 'site' or groups by site")
        self.nats = nats
        self.per = per

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the negative bound per datum."""
        require_paths(terms, "FreeBits")
        for name in (*self._sites(self.nats), *self._sites(self.per)):
            if name not in terms.latents:
                raise ProgramError(
                    f"FreeBits: no latent is called {name!r}; expected one of {list(terms.latents)}"
                )
        bound: Any = terms.log_likelihood().mean()
        for name in terms.latents:
            kl = self._group_kl(terms, name)
            floor = self.nats.get(name, 0.0) if isinstance(self.nats, Mapping) else self.nats
            if isinstance(self.nats, Mapping) and name not in self.nats:
                bound = bound - kl.sum()
            else:
                bound = bound - torch.maximum(kl, kl.new_zeros(()) + floor).sum()
        for name, log_q in terms.log_q.items():
            if name not in terms.latents and name not in terms.carried.values():  # auxiliary
                bound = bound - log_q.mean()
        return -with_globals(bound, terms)

    @staticmethod
    def _sites(setting: Any) -> Iterable[str]:
        return setting if isinstance(setting, Mapping) else ()

    def _group_kl(self, terms: Terms, site: str) -> Tensor:
        """Return the minibatch mean of the KL of each group of one site, ``(groups,)``."""
        if not terms.latents[site][0].plain:
            raise ProgramError(
                f"FreeBits: site {site!r} stands under a KL weight or a mask; use beta=1, the "
                "floor replaces annealing"
            )
        if self.per == "site":
            return terms.kl(site).mean()[None]
        units = terms.unit_kl(site).mean((0, 1, 2))
        if isinstance(self.per, Mapping) and site in self.per:
            groups = self.per[site].to(units.device)
            if groups.shape != units.shape:
                raise ProgramError(
                    f"FreeBits: per[{site!r}] has shape {tuple(groups.shape)}, expected a group "
                    f"number for each unit, {tuple(units.shape)}"
                )
            return units.new_zeros(int(groups.max()) + 1).index_add(0, groups, units)
        return units.flatten()


class TargetKL(TermsObjective):
    r"""The ELBO with a KL to hold in place of the KL: free bits with a target from both sides.

    .. math:: \mathbb{E}_q[\log p(x \mid z)] - \gamma\,\Big|\,
       \frac{1}{B}\sum_n \mathrm{KL}(x_n) - C\,\Big|

    Below C nats the KL is pushed up, above it down: at γ = 1 with the gradient of the ELBO. Unlike
    under free bits, a collapsed posterior is pushed away from the prior. No bound of log p(x): the
    history calls it ``valid_objective``.

    Arguments:
        nats: C, for all latents together.
        weight: γ.
        num_particles: Draws behind the KL.

    Raises:
        ConfigError: A negative target or a weight that is not positive.
        ProgramError: A latent stands under a KL weight or a mask, or has no reparametrised sampler;
            there is none.

    References:
        | Understanding Disentangling in beta-VAE (Burgess et al., 2018), arXiv:1804.03599
    """

    is_bound = False

    @typed
    def __init__(self, nats: float, *, weight: float = 1.0, num_particles: int = 1) -> None:
        super().__init__(num_particles)
        self.nats = number("nats", nats, "[0, inf)")
        self.weight = number("weight", weight, "(0, inf)")

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the negative objective per datum."""
        require_paths(terms, "TargetKL")
        if not terms.latents:
            raise ProgramError("TargetKL: the program has no latent whose KL to hold; use ELBO")
        for name, draws in terms.latents.items():
            if not draws[0].plain:
                raise ProgramError(
                    f"TargetKL: site {name!r} stands under a KL weight or a mask; use beta=1"
                )
        log_p: Any = sum(terms.log_p[name] for name in terms.latents)
        kl = (terms.log_q_total() - log_p).mean()
        bound = terms.log_likelihood().mean() - self.weight * (kl - self.nats).abs()
        return -with_globals(bound, terms)
