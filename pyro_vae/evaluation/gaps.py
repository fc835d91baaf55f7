"""What inference costs: the gaps between log p(x), the best local bound and the guide's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vae.arguments import counted, positive, typed
from pyro_vae.errors import ConfigError
from pyro_vae.evaluation.annealed_likelihood import AIS, ais
from pyro_vae.evaluation.likelihood import relative_error
from pyro_vae.inference.posterior.infer import infer
from pyro_vae.inference.posterior.local_fits import Local
from pyro_vae.inference.sampling.importance_weights import effective_sample_size, log_mean_exp
from pyro_vae.program.batches.batch import Batch
from pyro_vae.program.passes import Pass, Verb, holding
from pyro_vae.program.program import Program

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

GUIDE = "importance sampling, guide"
LOCAL = "importance sampling, local q"
ANNEALED = "annealed importance sampling"
_DATA_PER_PASS = 256
_VERB = Verb(
    "gaps",
    prior=True,
    local="a gap speaks of the latents of one datum",
    continuous="no Gaussian is fitted to it: use log_likelihood and elbo",
    sums=True,
    each=True,
    guide="weight",
)


@dataclass(frozen=True, repr=False)
class Gaps:
    r"""Three bounds per datum and the gaps between them, in nats.

    .. math:: \underbrace{\log p(x) - \mathrm{ELBO}[q^*]}_{\text{approximation}} +
       \underbrace{\mathrm{ELBO}[q^*] - \mathrm{ELBO}[q]}_{\text{amortisation}} =
       \underbrace{\log p(x) - \mathrm{ELBO}[q]}_{\text{total}}

    Arguments:
        log_prob: The best estimate of log p(x), ``(N,)``; a lower bound in expectation, so that the
            approximation gap errs on the small side.
        local_elbo: The ELBO of the best Gaussian of each datum, ``(N,)``.
        elbo: The ELBO of the guide, ``(N,)``.
        log_prob_noise: Standard error of each estimate, ``(N,)``: how far its own noise carries.
        local_noise, noise: Those of the two ELBOs, ``(N,)``.
        estimator: Which estimate ``log_prob`` is: the one with the largest mean.
        estimators: All of them by name, ``(N,)`` each.
        steps: Steps that each local optimum took, ``(N,)``.
    """

    log_prob: Tensor
    local_elbo: Tensor
    elbo: Tensor
    log_prob_noise: Tensor
    local_noise: Tensor
    noise: Tensor
    estimator: str
    estimators: dict[str, Tensor]
    steps: Tensor

    @property
    def approximation(self) -> Tensor:
        """What the family of q costs per datum, ``(N,)``."""
        return self.log_prob - self.local_elbo

    @property
    def amortisation(self) -> Tensor:
        """What the network costs per datum, ``(N,)``."""
        return self.local_elbo - self.elbo

    @property
    def total(self) -> Tensor:
        """The sum of both, KL(q(z | x) || p(z | x)), ``(N,)``."""
        return self.log_prob - self.elbo

    @typed
    def plot(self) -> Figure:
        """Draw the gaps: `pyro_vae.plots.gaps`."""
        from pyro_vae.plots.inference_gaps import gaps

        return gaps(self)

    @property
    def sound(self) -> Tensor:
        """The data whose bounds are all finite, ``(N,)``; means and errors are over these."""
        bounds = torch.stack([self.log_prob, self.local_elbo, self.elbo])
        return bounds.isfinite().all(0)

    @property
    def mean(self) -> dict[str, float]:
        """Means over the sound data, nats per datum."""
        return {name: values.mean().item() for name, values in self._rows()}

    @property
    def stderr(self) -> dict[str, float]:
        """Standard errors of the means over the data (noise of the estimates included)."""
        count = int(self.sound.sum())
        return {
            name: (values.std() / math.sqrt(count)).item() if count > 1 else math.nan
            for name, values in self._rows()
        }

    def table(self) -> str:
        """Return bounds and gaps as lines of text: mean and standard error."""
        mean, stderr = self.mean, self.stderr
        labels = {
            "log_prob": "log p(x)",
            "local_elbo": "ELBO, best local q",
            "elbo": "ELBO, guide",
            "approximation": "approximation gap",
            "amortisation": "amortisation gap",
            "total": "total gap",
        }
        lines = [f"{'nats per datum':<20}{'mean':>10}   stderr"]
        lines += [f"{labels[n]:<20}{mean[n]:>10.3f} ± {stderr[n]:.3f}" for n in labels]
        lost = (~self.sound).nonzero()[:, 0].tolist()
        if lost:
            named = ", ".join(map(str, lost[:10])) + (", ..." if len(lost) > 10 else "")
            lines.append(f"{len(lost)} of {len(self.elbo)} data left out, not finite: rows {named}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        mean = self.mean
        return (
            f"Gaps(approximation={mean['approximation']:.3f}, amortisation="
            f"{mean['amortisation']:.3f}, total={mean['total']:.3f} nats, "
            f"{counted(len(self.elbo), 'datum', 'data')})"
        )

    def _rows(self) -> list[tuple[str, Tensor]]:
        names = ("log_prob", "local_elbo", "elbo", "approximation", "amortisation", "total")
        return [(name, getattr(self, name)[self.sound]) for name in names]


@typed
def gaps(
    program: Any,
    data: Any,
    *,
    local: Local | None = None,
    annealed: AIS | None = None,
    num_particles: int = 1000,
    progress: bool = True,
) -> Gaps:
    r"""Measure how much of the bound the guide's family loses, and how much its network.

    The best local q is the Gaussian of each datum that ``pv.infer(how="local")`` climbs to from the
    guide's moments, diagonal unless ``local`` says otherwise. log p(x) is the best of
    three lower bounds: importance sampling from the guide, from the local q, and AIS. Best means
    the largest mean over the data: the largest per datum would be the luckiest.

    A guide that is no Gaussian in unconstrained coordinates is not in the family of the local q;
    its amortisation gap may then be negative. So may that of single data, by noise. Discrete
    latents of few values are summed out in all bounds but the guide's own, which draws its own.
    Global latents are held at one draw from the guide: all bounds are conditional on it. Most of
    the time goes to AIS, whose cost ``pv.ais`` states: measure some rows first.

    Arguments:
        program: Anything with ``.model`` and ``.guide`` and continuous local latents.
        data: One row per datum, ``(N, ...)``.
        local: How the best local q is found; None: ``pv.Local()``.
        annealed: Settings of AIS; None: ``pv.AIS()``.
        num_particles: Draws behind each ELBO and each importance-sampling estimate.
        progress: Show a progress bar of what takes more than two seconds.

    Returns:
        Bounds, gaps and their noise per datum; ``print(pv.gaps(...).table())``.

    Raises:
        ConfigError: Fewer than two samples.
        DataError: Data that the program cannot take.
        ProgramError: No continuous latent of a datum, discrete ones of too many values, angles, or
            no prior.

    References:
        | Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018),
          arXiv:1801.03558
    """
    if positive("num_particles", num_particles) < 2:
        raise ConfigError(
            f"num_particles: got {num_particles}, expected at least 2 for a standard error"
        )
    settings = local or Local()
    with Program.of(program).passes(data, _VERB, rows=_DATA_PER_PASS) as passes:

        def measured(piece: Pass) -> dict[str, Tensor]:
            given = passes.program.as_given(piece.batch)
            with holding(passes.program, passes.draws):
                return _measure(passes.program, given, settings, annealed, num_particles, progress)

        parts = passes.map(measured, progress=progress)
    return _gaps({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def _measure(
    program: Program,
    batch: Batch,
    local: Local,
    annealed: AIS | None,
    num_particles: int,
    progress: bool,
) -> dict[str, Tensor]:
    """Return the bounds of one batch and their noise, by name, ``(B,)`` each."""
    best = infer(program, batch, how="local", settings=local, progress=progress)
    chains = ais(program, batch, annealed, progress=progress)
    return {
        **_bounds(GUIDE, infer(program, batch), num_particles),
        **_bounds(LOCAL, best, num_particles),
        ANNEALED: chains.log_prob,
        f"{ANNEALED}, noise": relative_error(chains.ess, chains.samples),
        "steps": best.steps,  # type: ignore[attr-defined]
    }


def _bounds(name: str, posterior: Any, num_particles: int) -> dict[str, Tensor]:
    """Return the ELBO and the estimate of log p(x) of one q, with their errors."""
    log_weight = posterior.log_weight(num_particles)
    return {
        f"elbo, {name}": log_weight.mean(0),
        f"elbo, {name}, noise": log_weight.std(0) / math.sqrt(num_particles),
        name: log_mean_exp(log_weight, 0),
        f"{name}, noise": relative_error(effective_sample_size(log_weight, 0), num_particles),
    }


def _gaps(found: dict[str, Tensor]) -> Gaps:
    estimators = {name: found[name] for name in (GUIDE, LOCAL, ANNEALED)}
    # One for all data: the largest per datum would be the luckiest, and no lower bound.
    # Data that no estimator can score say nothing of which is best.
    scored = torch.stack(list(estimators.values())).nan_to_num(-math.inf).amax(0).isfinite()
    means = {name: values[scored].mean() for name, values in estimators.items()}
    chosen = max(estimators, key=lambda name: means[name].nan_to_num(-math.inf).item())
    return Gaps(
        log_prob=estimators[chosen],
        local_elbo=found[f"elbo, {LOCAL}"],
        elbo=found[f"elbo, {GUIDE}"],
        log_prob_noise=found[f"{chosen}, noise"],
        local_noise=found[f"elbo, {LOCAL}, noise"],
        noise=found[f"elbo, {GUIDE}, noise"],
        estimator=chosen,
        estimators=estimators,
        steps=found["steps"],
    )
