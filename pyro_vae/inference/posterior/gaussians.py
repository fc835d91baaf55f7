"""One Gaussian per datum, and where it starts. Shapes: C draws, B data, Z coordinates."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.program.densities.log_joint import LogJoint, Slot
from pyro_vae.program.handlers import sample_sites

_DRAWS = 64  # where moments are not known in closed form


class Gaussians(NamedTuple):
    r"""A Gaussian for each datum, :math:`N(\mu_n, L_n L_n^\top)`.

    Arguments:
        loc: The means, ``(B | Z)``.
        log_diagonal: Log of the diagonal of L, ``(B | Z)``.
        below: L below its diagonal, ``(B | Z, Z)``; None: L is diagonal.
    """

    loc: Tensor
    log_diagonal: Tensor
    below: Tensor | None = None

    @property
    def lower(self) -> Tensor:
        """L, ``(B | Z, Z)``."""
        diagonal = torch.diag_embed(self.log_diagonal.exp())
        return diagonal if self.below is None else diagonal + self.below

    @property
    def scale(self) -> Tensor:
        """Standard deviations, ``(B | Z)``."""
        if self.below is None:
            return self.log_diagonal.exp()
        return self.lower.square().sum(-1).sqrt()

    def standard_noise(self, draws: int) -> Tensor:
        """Draw standard noise, ``(C, B | Z)``."""
        shape = (draws, *self.loc.shape)
        return torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def place(self, noise: Tensor) -> Tensor:
        """Return the points that standard noise ``(C, B | Z)`` stands for."""
        points = self.loc + self.log_diagonal.exp() * noise
        if self.below is None:
            return points
        return points + torch.einsum("bij,cbj->cbi", self.below, noise)

    def noise(self, points: Tensor) -> Tensor:
        """Return the standard noise that stands for points ``(C, B | Z)``."""
        centred = points - self.loc
        if self.below is None:
            return centred / self.log_diagonal.exp()
        solved = torch.linalg.solve_triangular(self.lower, centred.movedim(0, -1), upper=False)
        return solved.movedim(-1, 0)

    def log_prob(self, noise: Tensor) -> Tensor:
        """Return the log density at the points of standard noise, ``(C, B)``."""
        constant = 0.5 * math.log(2 * math.pi) * noise.shape[-1]
        return -0.5 * noise.square().sum(-1) - self.log_diagonal.sum(-1) - constant

    def minus_score(self, noise: Tensor) -> Tensor:
        r"""Return :math:`-\nabla_u \log q(u) = L^{-\top} \epsilon`, ``(C, B | Z)``."""
        if self.below is None:
            return noise / self.log_diagonal.exp()
        solved = torch.linalg.solve_triangular(self.lower.mT, noise.movedim(0, -1), upper=True)
        return solved.movedim(-1, 0)

    def masked(self, kept: Tensor | None) -> "Gaussians":
        """Return them with N(0, 1) of its own for each coordinate that is not kept, ``(B | Z)``."""
        if kept is None:
            return self
        zero = self.loc.new_zeros(())
        both = kept.unsqueeze(-1) & kept.unsqueeze(-2)
        return Gaussians(
            torch.where(kept, self.loc, zero),
            torch.where(kept, self.log_diagonal, zero),
            None if self.below is None else torch.where(both, self.below, zero),
        )

    def at(self, rows: Tensor | slice) -> "Gaussians":
        """Return those of some data."""
        below = None if self.below is None else self.below[rows]
        return Gaussians(self.loc[rows], self.log_diagonal[rows], below)


def concatenate(parts: list[Gaussians]) -> Gaussians:
    """Return the Gaussians of all data, from those of pieces."""
    loc, log_diagonal, below = zip(*parts, strict=True)
    whole = None if below[0] is None else torch.cat(below)
    return Gaussians(torch.cat(loc), torch.cat(log_diagonal), whole)


def guide_moments(density: LogJoint, full_covariance: bool) -> Gaussians:
    r"""Return Gaussians with the guide's moments in unconstrained coordinates.

    .. math:: \mu = \mathbb{E}[\mu_l], \quad \Sigma = \mathbb{E}[\Sigma_l] + \mathrm{Var}(\mu_l)

    A single latent with known moments on the real line has them exactly; below other latents, the
    average runs over draws of those; on a constrained support, over draws of the latent itself.
    Covariances between sites, and those of a conditional mean, are left out.
    """
    with torch.no_grad():
        draws = 1 if _known(density) else _DRAWS
        loc, variance, blocks = [], [], []
        for mean, covariance in _moments_of_draws(density, draws):
            loc.append(mean.mean(0))
            own = covariance.diagonal(dim1=-2, dim2=-1) if covariance.dim() == 4 else covariance
            variance.append(own.mean(0) + mean.var(0, correction=0))
            blocks.append(covariance.mean(0) if covariance.dim() == 4 else None)
    means, variances = torch.cat(loc, -1), torch.cat(variance, -1)
    # A datum without finite moments starts at N(0, 1), and moves no other.
    usable = means.isfinite() & variances.isfinite()
    means = torch.where(usable, means, torch.zeros_like(means))
    usable = usable & (variances > 0)
    deviations = torch.where(usable, variances, torch.ones_like(variances)).sqrt()
    if not full_covariance:
        return Gaussians(means, deviations.log())
    covariance = torch.diag_embed(deviations.square())
    for slot, block in zip(density.slots, blocks, strict=True):
        if block is not None:
            off = block - torch.diag_embed(block.diagonal(dim1=-2, dim2=-1))
            covariance[:, slot.columns, slot.columns] += off
    lower, info = torch.linalg.cholesky_ex(covariance)
    sound = (info == 0) & usable.all(-1)
    lower = torch.where(sound[:, None, None], lower, torch.diag_embed(deviations))
    log_diagonal = lower.diagonal(dim1=-2, dim2=-1).log()
    return Gaussians(means, log_diagonal, lower.tril(-1))


def _moments_of_draws(density: LogJoint, draws: int) -> list[tuple[Tensor, Tensor]]:
    """Return each slot's conditional means and (co)variances at draws of the guide, ``(C, B | W)``.

    A program that takes no more is run for one after another.
    """
    times, at_once = (draws, 1) if density.joint.alone else (1, draws)
    runs = []
    for _ in range(times):
        sites = dict(sample_sites(density.joint.guide_trace(at_once)))
        runs.append(
            [_conditional_moments(s, sites[s.name], at_once, density.rows) for s in density.slots]
        )
    return [
        (torch.cat([mean for mean, _ in found]), torch.cat([covariance for _, covariance in found]))
        for found in zip(*runs, strict=True)
    ]


def prior_moments(density: LogJoint, full_covariance: bool) -> Gaussians:
    """Return Gaussians with the prior's means and variances, from draws: the guide is not asked."""
    draws = density.draw_prior(_DRAWS)
    # A prior wider than any number (a half-Cauchy, say) still gives a place to start.
    middle, spread = draws.median(0).values, draws.std(0)
    usable = spread.isfinite() & (spread > 0)
    spread = torch.where(usable, spread, torch.ones_like(spread))
    below = torch.diag_embed(torch.zeros_like(spread)) if full_covariance else None
    return Gaussians(middle, spread.log(), below)


def _known(density: LogJoint) -> bool:
    """Return whether one draw tells the moments: a single latent's, in closed form and finite."""
    slot = density.slots[0]
    above = density.auxiliary or density.summed
    if len(density.slots) != 1 or not slot.plain or above:
        return False
    fn = dict(sample_sites(density.joint.guide_trace(1)))[slot.name]["fn"]
    moments = [_attribute(fn, name) for name in ("mean", "variance")]
    return all(m is not None and bool(m.isfinite().all()) for m in moments)


def _conditional_moments(slot: Slot, site: dict, draws: int, rows: int) -> tuple[Tensor, Tensor]:
    """Return means ``(C, B | W)`` and (co)variances of one site given the sites above it."""
    fn, width = site["fn"], slot.base.numel()

    def of_datum(moment: Tensor) -> Tensor:
        return slot.of_datum(moment.expand(site["value"].shape), draws, rows)

    value = slot.transform.inv(of_datum(site["value"])).reshape(draws, rows, width)
    if slot.plain:
        mean, variance = _attribute(fn, "mean"), _attribute(fn, "variance")
        vector = len(slot.event) == 1 and not slot.plates
        matrix = _attribute(fn, "covariance_matrix") if vector else None
        if mean is not None and variance is not None:
            mean, variance = (
                of_datum(moment).reshape(draws, rows, width) for moment in (mean, variance)
            )
            # A Cauchy's, or an overflow of one datum: there, the draws themselves stand in.
            known = (mean.isfinite() & variance.isfinite()).all(-1, keepdim=True)
            mean = torch.where(known, mean, value)
            if matrix is not None:
                matrix = matrix.reshape(draws, rows, width, width)
                return mean, torch.where(known.unsqueeze(-1), matrix, torch.zeros_like(matrix))
            return mean, torch.where(known, variance, torch.zeros_like(variance))
    return value, torch.zeros_like(value)


def _attribute(fn: object, name: str) -> Tensor | None:
    """Return a moment of a distribution where it is known."""
    try:
        return getattr(fn, name)
    except (NotImplementedError, AttributeError):
        return None
