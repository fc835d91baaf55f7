"""Posterior collapse, measured: KL per site and unit, active units, information, and a verdict."""

from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.evaluation import verdicts
from pyro_vae.evaluation.codes import CodeUsage
from pyro_vae.inference.bounds import passes, positive, scoring
from pyro_vae.inference.information import Information, information
from pyro_vae.inference.joint import Joint
from pyro_vae.inference.program import Program
from pyro_vae.inference.terms import Terms, local_log_p

ACTIVE = 0.01  # Burda et al. (2016), §5: a unit is active where Var_x E_q[z | x] exceeds this
ACTIVE_KL = 0.01  # the criterion by KL, nats
BINS = 24  # of the histogram of posterior variances, over [0, 1.2] prior variances of 1


@dataclass(frozen=True)
class Diagnosis:
    r"""How much each latent site and unit tells of the data.

    Arguments:
        kl: Per site, the mean of :math:`\log q(z \mid x) - \log p(z)`, nats per datum.
        unit_kl: The same per unit, ``(Z,)``; a site whose density does not factorise is absent.
        variance: Per site, :math:`\mathrm{Var}_x\,\mathbb{E}_q[z \mid x]` of each unit, ``(Z,)``.
        reconstruction: Mean of :math:`\log p(x \mid z)` under the guide, nats per datum.
        kl_stderr: Per site, the standard error of its KL over the data.
        prior_reconstruction: Mean of :math:`\log p(x \mid z)` with z from the prior: the closer to
            ``reconstruction``, the less the decoder listens to the code.
        posterior_variance: Per site, the mean over the data of the variance of q, ``(Z,)``.
        histogram: Per site, how many (datum, unit) have a posterior variance in each of 24 bins
            over [0, 1.2]; what lies beyond is in the last.
        codes: Per discrete site, how its alphabet is used.
        information: Mutual information of data and all codes, and KL(q(z) || p(z)); None where the
            guide's density at another datum's code cannot be had.
        rows: Data that were looked at.
        kinds: Per site, the name of the guide's distribution.
    """

    kl: dict[str, float]
    unit_kl: dict[str, Tensor]
    variance: dict[str, Tensor]
    reconstruction: float
    kl_stderr: dict[str, float] = field(default_factory=dict)
    prior_reconstruction: float = float("nan")
    posterior_variance: dict[str, Tensor] = field(default_factory=dict)
    histogram: dict[str, Tensor] = field(default_factory=dict)
    codes: dict[str, CodeUsage] = field(default_factory=dict)
    information: Information | None = None
    rows: int = 0
    kinds: dict[str, str] = field(default_factory=dict)

    @property
    def total_kl(self) -> float:
        """KL of all sites together, nats per datum."""
        return sum(self.kl.values())

    @property
    def active_units(self) -> dict[str, int]:
        """Per site, the units whose posterior mean varies over the data by more than 0.01."""
        return {name: int((value > ACTIVE).sum()) for name, value in self.variance.items()}

    @property
    def active_by_kl(self) -> dict[str, int]:
        """Per site, the units whose KL is more than 0.01 nats."""
        return {name: int((value > ACTIVE_KL).sum()) for name, value in self.unit_kl.items()}

    @property
    def collapsed(self) -> tuple[str, ...]:
        """The sites whose KL is below 0.1 nats: they tell nothing of the data."""
        return tuple(name for name, value in self.kl.items() if value < verdicts.SILENT)

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

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return verdicts.as_dict(self)

    def __repr__(self) -> str:
        sites = ", ".join(
            f"{name}: {kl:.3f} nats, {self.active_units.get(name, 0)} of "
            f"{self.variance[name].numel() if name in self.variance else '?'} units active"
            for name, kl in self.kl.items()
        )
        return f"Diagnosis({sites}; reconstruction {self.reconstruction:.3f} nats)"


def diagnose(
    program: Any,
    data: Any,
    *,
    num_particles: int = 1,
    probes: int = 1000,
    rows: int = 10_000,
    batch_size: int = 1024,
) -> Diagnosis:
    r"""Look for posterior collapse: what each latent tells of the data, and what may help.

    The KL is estimated at draws from the guide; random numbers come from torch's global generator.
    ``print(pv.diagnose(program, x).report())`` is the way to read it, ``pv.plots.diagnosis`` to see
    it.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        data: One row per datum, ``(N, ...)``.
        num_particles: Draws per datum behind the KL estimates.
        probes: Draws of z behind the mutual information.
        rows: Data that the aggregate posterior is made of, at most.
        batch_size: Particles times rows per pass; bounds the memory.

    Raises:
        DataError: Data that the program cannot take.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), arXiv:1509.00519
        | ELBO surgery (Hoffman & Johnson, 2016)
        | Don't Blame the ELBO! (Lucas et al., 2019), arXiv:1911.02469
    """
    wrapped = Program.of(program)
    particles = positive("num_particles", num_particles)
    limits = {"probes": positive("probes", probes), "rows": positive("rows", rows)}
    per_pass = max(1, positive("batch_size", batch_size) // particles)
    batch = wrapped.adapt(data)
    wrapped.check(batch)
    wrapped.require_prior("diagnose")
    wrapped.require_guide("diagnose")
    wrapped.require_whole(batch)
    sums = _Sums(wrapped)
    with scoring(wrapped):
        for piece in passes(wrapped, batch, per_pass):
            joint = wrapped.joint(piece)
            sums.add(joint.terms(1, particles))
            sums.add_prior(joint)
        found = information(wrapped, batch, **limits)
    return sums.result(found)


class _Sums:
    """Running sums over the data, so that the memory does not grow with them."""

    def __init__(self, program: Program) -> None:
        self.observed, self.plates = program.sites.observed, program.sites.num_plates
        self.rows = 0
        self.sums: dict[tuple[str, str], Tensor] = {}  # (quantity, site)
        self.kinds: dict[str, str] = {}

    def add(self, terms: Terms) -> None:
        """Add what the guide's draws tell."""
        self.rows += terms.batch_size
        self._put("reconstruction", "", terms.log_likelihood().mean((0, 1)).sum())
        for name, (latent, *_) in terms.latents.items():
            kl = terms.kl(name).mean((0, 1)).double()
            self._put("kl", name, kl.sum())
            self._put("square", name, kl.square().sum())
            self.kinds[name] = _kind(latent.posterior)
            try:
                units = terms.unit_kl(name)
                self._put("unit_kl", name, units.flatten(0, 1).mean(0).sum(0))
            except ProgramError:
                pass  # no density per unit: the site's KL stands alone
            self._put_moments(name, latent, terms.batch_size)
            counts = _code_counts(latent)
            if counts is not None:
                self._put("codes", name, counts)

    def add_prior(self, joint: Joint) -> None:
        """Add the reconstruction from codes of the prior."""
        trace = poutine.trace(joint.model).get_trace(*joint.args, **joint.kwargs)
        log_p = local_log_p(trace, self.plates, 1)
        total = sum(log_p[name].sum() for name in self.observed)
        assert isinstance(total, Tensor)  # a program observes something
        self._put("prior_reconstruction", "", total)

    def _put_moments(self, name: str, latent: Any, rows: int) -> None:
        mean = _moment(latent, "mean", rows)
        if mean is not None:
            self._put("first", name, mean.double().sum(0))
            self._put("second", name, mean.double().square().sum(0))
        variance = _moment(latent, "variance", rows)
        if variance is not None and variance.is_floating_point() and mean is not None:
            self._put("posterior_variance", name, variance.double().sum(0))
            place = (variance.double() * (BINS / 1.2)).nan_to_num(BINS).clamp(0, BINS - 1).long()
            counts = place.new_zeros(BINS)
            counts = counts.index_add(0, place.flatten(), torch.ones_like(place.flatten()))
            self._put("histogram", name, counts)

    def _put(self, quantity: str, site: str, value: Tensor) -> None:
        key = (quantity, site)
        self.sums[key] = self.sums[key] + value if key in self.sums else value

    def _of(self, quantity: str) -> dict[str, Tensor]:
        return {site: value for (kind, site), value in self.sums.items() if kind == quantity}

    def result(self, found: Information | None) -> Diagnosis:
        """Return the means."""
        n = self.rows
        second = self._of("second")
        variance = {
            name: (second[name] / n - (first / n).square()).clamp(min=0) * (n / max(1, n - 1))
            for name, first in self._of("first").items()
        }
        kl = self._of("kl")
        spread = {
            name: (square / n - (kl[name] / n).square()).clamp(min=0) / max(1, n - 1)
            for name, square in self._of("square").items()
        }
        return Diagnosis(
            kl={name: (value / n).item() for name, value in kl.items()},
            unit_kl={name: (value / n).cpu() for name, value in self._of("unit_kl").items()},
            variance={name: value.cpu() for name, value in variance.items()},
            reconstruction=(self.sums["reconstruction", ""] / n).item(),
            kl_stderr={name: value.sqrt().item() for name, value in spread.items()},
            prior_reconstruction=(self.sums["prior_reconstruction", ""] / n).item(),
            posterior_variance={
                name: (value / n).cpu() for name, value in self._of("posterior_variance").items()
            },
            histogram={name: value.cpu() for name, value in self._of("histogram").items()},
            codes={name: CodeUsage(value.cpu()) for name, value in self._of("codes").items()},
            information=found,
            rows=n,
            kinds=self.kinds,
        )


def _kind(posterior: Any) -> str:
    while getattr(posterior, "base_dist", None) is not None and hasattr(
        posterior, "reinterpreted_batch_ndims"
    ):
        posterior = posterior.base_dist
    return type(posterior).__name__


def _moment(latent: Any, which: str, rows: int) -> Tensor | None:
    """Return a moment of q(z | x), ``(B, ...)``; of several particles, in any layout, the first."""
    try:
        value = getattr(latent.posterior, which)
    except (NotImplementedError, AttributeError):
        return None
    extra = value.dim() - len(latent.posterior.event_shape) - 1
    return (value[(0,) * extra] if extra else value)[:rows]


def _code_counts(latent: Any) -> Tensor | None:
    """Return how often each code of a discrete latent was drawn, ``(K,)``; None for others."""
    base = latent.posterior
    if hasattr(base, "numbers"):  # a vector-quantised latent
        codes = base.numbers(latent.value).flatten()
        return torch.bincount(codes, minlength=base.num_codes)
    while not hasattr(base, "logits") and getattr(base, "base_dist", None) is not None:
        base = base.base_dist
    name, value = type(base).__name__, latent.value
    if name.startswith("OneHotCategorical"):
        value = value.argmax(-1)
    elif not name.startswith("Categorical"):
        return None
    codes = value.long().flatten()
    return codes.new_zeros(base.logits.shape[-1]).index_add(0, codes, torch.ones_like(codes))
