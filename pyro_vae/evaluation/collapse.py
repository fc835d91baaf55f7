"""Which latents carry information: KL per site and unit, and active units."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.inference.bounds import passes, positive, scoring
from pyro_vae.inference.program import Program
from pyro_vae.inference.terms import Terms

ACTIVE = 0.01  # Burda et al. (2016), §5: a unit is active where Var_x E_q[z | x] exceeds this


@dataclass(frozen=True)
class Diagnosis:
    r"""How much each latent site and unit tells of the data.

    Arguments:
        kl: Per site, the mean of :math:`\log q(z \mid x) - \log p(z)`, nats per datum.
        unit_kl: The same per unit, ``(Z,)``; a site whose density does not factorise is absent.
        variance: Per site, :math:`\mathrm{Var}_x\,\mathbb{E}_q[z \mid x]` of each unit, ``(Z,)``.
        reconstruction: Mean of :math:`\log p(x \mid z)` under the guide, nats per datum.
    """

    kl: dict[str, float]
    unit_kl: dict[str, Tensor]
    variance: dict[str, Tensor]
    reconstruction: float

    @property
    def active_units(self) -> dict[str, int]:
        """Per site, the units whose posterior mean varies over the data by more than 0.01."""
        return {name: int((value > ACTIVE).sum()) for name, value in self.variance.items()}

    def __repr__(self) -> str:
        sites = ", ".join(
            f"{name}: {kl:.3f} nats, {self.active_units.get(name, 0)} of "
            f"{self.variance[name].numel() if name in self.variance else '?'} units active"
            for name, kl in self.kl.items()
        )
        return f"Diagnosis({sites}; reconstruction {self.reconstruction:.3f} nats)"


def diagnose(program: Any, data: Any, *, num_particles: int = 1) -> Diagnosis:
    r"""Measure the KL of each latent and count the active units.

    The KL is estimated at draws from the guide; random numbers come from torch's global generator.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        data: One row per datum, ``(N, ...)``.
        num_particles: Draws per datum behind the KL estimates.

    Raises:
        DataError: Data that the program cannot take.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), arXiv:1509.00519
    """
    wrapped = Program.of(program)
    positive("num_particles", num_particles)
    batch = wrapped.adapt(data)
    wrapped.check(batch)
    wrapped.require_prior("diagnose")
    wrapped.require_guide("diagnose")
    wrapped.require_whole(batch)
    sums = _Sums()
    with scoring(wrapped):
        for piece in passes(wrapped, batch, 1024):
            sums.add(wrapped.joint(piece).terms(1, num_particles))
    return sums.result()


class _Sums:
    """Running sums over the data, so that the memory does not grow with them."""

    def __init__(self) -> None:
        self.rows = 0
        self.kl: dict[str, Tensor] = {}
        self.unit_kl: dict[str, Tensor] = {}
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}
        self.likelihood: Any = 0.0

    def add(self, terms: Terms) -> None:
        self.rows += terms.batch_size
        self.likelihood = self.likelihood + terms.log_likelihood().mean((0, 1)).sum()
        for name, (latent, *_) in terms.latents.items():
            self._put(self.kl, name, terms.kl(name).mean((0, 1)).sum())
            try:
                units = terms.unit_kl(name)
                self._put(self.unit_kl, name, units.flatten(0, 1).mean(0).sum(0))
            except ProgramError:
                pass  # no density per unit: the site's KL stands alone
            mean = _posterior_mean(latent, terms.batch_size)
            if mean is not None:
                self._put(self.first, name, mean.double().sum(0))
                self._put(self.second, name, mean.double().square().sum(0))

    @staticmethod
    def _put(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
        sums[name] = sums[name] + value if name in sums else value

    def result(self) -> Diagnosis:
        n = self.rows
        variance = {
            name: (self.second[name] / n - (first / n).square()).clamp(min=0) * (n / max(1, n - 1))
            for name, first in self.first.items()
        }
        return Diagnosis(
            kl={name: (value / n).item() for name, value in self.kl.items()},
            unit_kl={name: (value / n).cpu() for name, value in self.unit_kl.items()},
            variance={name: value.cpu() for name, value in variance.items()},
            reconstruction=(self.likelihood / n).item(),
        )


def _posterior_mean(latent: Any, rows: int) -> Tensor | None:
    """Return E_q[z | x], ``(B, ...)``; of several particles, in whatever layout, the first."""
    try:
        mean = latent.posterior.mean
    except (NotImplementedError, AttributeError):
        return None
    extra = mean.dim() - len(latent.posterior.event_shape) - 1
    return (mean[(0,) * extra] if extra else mean)[:rows]
