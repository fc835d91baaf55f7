"""What a diagnosis of posterior collapse holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyro_vae.arguments import counted, typed
from pyro_vae.evaluation import verdicts
from pyro_vae.evaluation.codebook_usage import CodeUsage, ValueUsage
from pyro_vae.inference.posterior.information import Information
from pyro_vae.names import Answer

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

# Burda et al. (2016), §5, of a prior N(0, 1): Var_x E_q[z | x] of an active unit exceeds this.
ACTIVE = 0.01  # in variances of the prior
ACTIVE_KL = 0.01  # the criterion by KL, nats


@dataclass(frozen=True)
class Diagnosis(Answer):
    r"""How much each latent site and unit tells of the data.

    Arguments:
        kl: Per site, the mean of :math:`\log q(z \mid x) - \log p(z)`, nats per datum;
            sites that the guide draws at once (a group of an ``EasyGuide``) have one together.
        unit_kl: The same per unit, ``(Z,)``; a site whose density does not factorise is absent. A
            second plate (of T steps, say) is part of the units, ``(T, Z)``, here and below.
        variance: Per site, :math:`\mathrm{Var}_x\,\mathbb{E}_q[z \mid x] / \mathrm{Var}_p[z]` of
            each unit, ``(Z,)``: a scale of the latent changes nothing. The other latents are
            marginalised: a site that the guide draws after another is read from 32 draws or more
            of those, on 2000 of the data, less the noise of the draws. A site without a mean (a
            categorical) is absent; masked units are left out. The prior's variance is marginal
            too, that of 2048 draws for a site below others in the model; it is taken as 1 where it
            is infinite, zero or unknown.
        reconstruction: Mean of :math:`\log p(x \mid z)` under the guide, nats per datum.
        kl_stderr: Per site, the standard error of its KL over the data.
        prior_reconstruction: Mean of :math:`\log p(x \mid z)` with z from the prior: the closer to
            ``reconstruction``, the less the decoder listens to the code.
        other_reconstruction: Mean of :math:`\log p(x \mid z)` with z from the guide of another
            datum, at random: equal to ``reconstruction`` where all data have the same code, though
            it may be far from the prior. NaN where there is no other.
        gain_stderr: The standard error over the data of ``reconstruction`` less that of ``"other"``
            and less that of ``"prior"``: of what a datum's own code gains. The verdict calls the
            decoder deaf, or not, where two of these errors do not decide otherwise.
        posterior_variance: Per site, the mean over the data of the variance of q, ``(Z,)``, of the
            same marginal and over the same variance of the prior: a collapsed unit stands at 1.
        histogram: Per site, how many (datum, unit) have a posterior variance in each of 24 bins
            over [0, 1.2]; what lies beyond is in the last.
        codes: Per discrete site, how its alphabet is used.
        summed: Per discrete latent that is summed out, how its values are used, and what a datum
            and its code tell of it; one that couples the data, or is masked, is absent.
        information: Mutual information of data and all codes, and KL(q(z) || p(z)); None where the
            guide's density at another datum's code cannot be had, or a latent is masked.
        rows: Data that were looked at.
        share: Per site, the share of the data that have any of it: the others' is masked. Whether
            the site is silent is told by the KL of those that have it, ``kl / share``.
        unit_share: The same per unit, ``(Z,)``; a number where no mask stands.
        kinds: Per site, the name of the guide's distribution.
        reparametrised: Per site, whether the guide's draws carry a pathwise gradient.
        closed_form: The sites whose KL `AnalyticELBO` takes in closed form.
        observed: Per observed site, the name of the model's distribution.
        weighted: The sites that stand under a mask or a weight.
        refinable: Whether HMC can draw the latents: all continuous, local and in one plate.
        global_kl: Per global site, the mean of :math:`\log q(w) - \log p(w)`, nats of the data set:
            all data pay it once, and the ELBO per datum of N training data has a share 1/N of it
            (N is seldom ``rows``). Sites that the guide draws at once have one together.
        global_kl_stderr: Its standard error over the draws; 0 of one that is exact.
    """

    kl: dict[str, float]
    unit_kl: dict[str, Tensor]
    variance: dict[str, Tensor]
    reconstruction: float
    kl_stderr: dict[str, float] = field(default_factory=dict)
    prior_reconstruction: float = float("nan")
    other_reconstruction: float = float("nan")
    gain_stderr: dict[str, float] = field(default_factory=dict)
    posterior_variance: dict[str, Tensor] = field(default_factory=dict)
    histogram: dict[str, Tensor] = field(default_factory=dict)
    codes: dict[str, CodeUsage] = field(default_factory=dict)
    summed: dict[str, ValueUsage] = field(default_factory=dict)
    information: Information | None = None
    rows: int = 0
    share: dict[str, float] = field(default_factory=dict)
    unit_share: dict[str, Tensor] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    reparametrised: dict[str, bool] = field(default_factory=dict)
    closed_form: tuple[str, ...] = ()
    observed: dict[str, str] = field(default_factory=dict)
    weighted: tuple[str, ...] = ()
    refinable: bool = False
    global_kl: dict[str, float] = field(default_factory=dict)
    global_kl_stderr: dict[str, float] = field(default_factory=dict)

    @property
    def total_kl(self) -> float:
        """KL of all sites of a datum together, nats per datum."""
        return sum(self.kl.values())

    @property
    def active_units(self) -> dict[str, int]:
        """Per site, the units whose posterior mean varies over the data by more than 0.01 of the
        prior's variance, or by more than the mean variance of their own posterior."""
        return {name: int(self._active(name).sum()) for name in self.variance}

    def _active(self, name: str) -> Tensor:
        """Return which units of a site are active, ``(Z,)``; see `active_units`."""
        moved, own = self.variance[name], self.posterior_variance.get(name)
        if own is None or own.shape != moved.shape:
            return moved > ACTIVE
        # A wide prior leaves room for codes that differ by little of it, and by much of their own
        # width. Points have no width: there a rounding error would do.
        return (moved > ACTIVE) | ((own > 0) & (moved > own))

    @property
    def active_by_kl(self) -> dict[str, int]:
        """Per site, the units whose KL is more than 0.01 nats in the data that have them."""
        return {
            name: int((value > ACTIVE_KL * self.unit_share.get(name, 1.0)).sum())
            for name, value in self.unit_kl.items()
        }

    @property
    def idle_kl(self) -> dict[str, float]:
        """Per site, the KL of the units that are not active, nats: what they cost."""
        return {
            name: value[~self._active(name)].sum().item()
            for name, value in self.unit_kl.items()
            if name in self.variance and self.variance[name].shape == value.shape
        }

    @property
    def collapsed(self) -> tuple[str, ...]:
        """The sites of a KL below 0.1 nats in the data that have them: they tell nothing.

        None of one datum: its code may be the prior's where those of others are not.
        """
        if self.rows == 1:
            return ()
        return tuple(
            name
            for name, value in self.kl.items()
            if value < verdicts.SILENT * self.share.get(name, 1.0)
        )

    @property
    def verdict(self) -> str:
        """What was found, in words, with the evidence."""
        return verdicts.verdict(self)

    @property
    def cures(self) -> list[str]:
        """What may help, as arguments of this library; empty where nothing has collapsed."""
        return verdicts.cures(self)

    def report(self) -> str:
        """Return all of it as text: the verdict, a row per site, information, cures."""
        return verdicts.report(self)

    @typed
    def plot(self) -> Figure:
        """Draw the units and what they tell: `pyro_vae.plots.diagnosis`."""
        from pyro_vae.plots.collapse import diagnosis

        return diagnosis(self)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return verdicts.as_dict(self)

    def __repr__(self) -> str:
        active = self.active_units  # known of sites whose means are
        units = {
            name: f", {active[name]} of {counted(each.numel(), 'unit')} active"
            for name, each in self.variance.items()
            if self.rows != 1  # one datum tells no movement
        }
        told = [f"{k}: {kl:.3f} nats{units.get(k, '')}" for k, kl in self.kl.items()]
        if len(told) > 6:
            told[3:-1] = ["..."]
            told.append(f"{sum(self.kl.values()):.3f} nats in {len(self.kl)} sites")
        sites = ", ".join(told)
        return (
            f"Diagnosis({sites}{self._of_globals()}; reconstruction {self.reconstruction:.3f} nats)"
        )

    def _of_globals(self) -> str:
        names = list(self.global_kl)
        if not names:
            return ""
        named = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        total = sum(self.global_kl.values())
        return f"; global {named}: {total:.3f} nats, once for all {self.rows} data"
