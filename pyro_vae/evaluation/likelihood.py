"""Log-likelihood by importance sampling, per datum, with evidence of its own quality."""

import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from pyro_vae.arguments import positive, typed
from pyro_vae.callers import of_user
from pyro_vae.frames import to_dataset, to_frame
from pyro_vae.inference.sampling.diagnostics import median
from pyro_vae.inference.sampling.importance_weights import (
    pareto_k_of_tail,
    psis_k,
    tail_length,
)
from pyro_vae.names import Answer
from pyro_vae.program import checks
from pyro_vae.program.densities.points import points_of, tell_of_points
from pyro_vae.program.handlers import has_density_of_its_own
from pyro_vae.program.passes import Pass, Verb, runs
from pyro_vae.program.program import Program

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

# Particle rows (data times particles) per pass through the model: small enough for a CPU's cache,
# large enough to keep it busy; the memory of an evaluation is bounded by it, whatever N and K are.
_ROWS_PER_PASS = 4096
_DATA_PER_PASS = 64
_VERB = Verb("log_likelihood", prior=True, each=True, guide="weight")
_DRAWS_FOR_K = 21  # of the globals: five of them are the tail


@dataclass(frozen=True, repr=False)
class LogLikelihood(Answer):
    r"""Importance-sampling estimates of log p(x), with what says how far to trust them.

    Weights at one draw of the globals share it: what S draws tell is told by the spread between
    them, not by the number S K of weights.

    Arguments:
        log_prob: :math:`\log \frac{1}{K}\sum_k p(x, z_k) / q(z_k \mid x)` per datum, ``(N,)``,
            nats; a lower bound of log p(x) in expectation.
        ess: Effective sample size of the weights per datum, ``(N,)``, between 1 and K; with
            globals 1 / (v + 1 / (S K)), v the relative variance of the mean over their draws. NaN
            at one draw of the globals, which tells nothing of their spread.
        psis_k: Pareto shape of the weights' tail per datum, ``(N,)``; above 0.7 an estimate is not
            to be trusted (Vehtari et al., 2015, arXiv:1507.02646). With globals the larger of that
            of all S K weights and that of the means at each draw: infinite, which is to say
            unknown, below S = 21.
        samples: All draws of the latents behind an estimate: K, or S K.
        by_global: Log mean of the weights at each draw of the globals, ``(S, N)``; None without.
        same_globals: Whether these S draws are one point, as of an ``AutoDelta``.
    """

    _called: ClassVar = "num_particles"  # what K is called, as an argument
    _elsewhere: ClassVar = {
        **{"item": "mean", "log_likelihood": "log_prob", "values": "log_prob"},
        **dict.fromkeys(("to_arviz", "to_inference_data"), "to_xarray"),
    }

    log_prob: Tensor
    ess: Tensor
    psis_k: Tensor
    samples: int
    by_global: Tensor | None = field(default=None, kw_only=True)
    same_globals: bool = field(default=False, kw_only=True)

    def to_pandas(self) -> Any:
        """Return ``log_prob``, ``noise``, ``ess`` and ``psis_k``, a row per datum.

        Raises:
            ConfigError: pandas is not installed.
        """
        names = ("log_prob", "noise", "ess", "psis_k")
        return to_frame({name: getattr(self, name) for name in names}, "datum")

    def to_xarray(self) -> Any:
        """Return ``log_prob`` as an ``xarray.Dataset``: ArviZ's group ``log_likelihood``.

        Its axes are ``chain``, ``draw`` and ``datum``. A draw is one of the globals, so that
        ``arviz.loo`` reads log p(x | globals) of each; without globals there is one. The
        coordinates ``noise``, ``ess`` and ``psis_k`` stand along ``datum``.

        Raises:
            ConfigError: xarray is not installed.
        """
        draws = self.log_prob[None] if self.by_global is None else self.by_global
        names = ("noise", "ess", "psis_k")
        told = {name: getattr(self, name) for name in names}
        return to_dataset({"log_prob": draws[None]}, "chain", "draw", "datum", **told)

    @property
    def mean(self) -> float:
        """Mean log-likelihood, nats per datum."""
        return self.log_prob.mean().item()

    @property
    def noise(self) -> Tensor:
        r"""Standard error of each estimate by its sampling, ``(N,)``, nats, to first order.

        .. math:: \sqrt{\tfrac{K}{K - 1} (1 / \mathrm{ESS} - 1 / K)}
        """
        return relative_error(self.ess, self.samples)

    @property
    def stderr(self) -> float:
        """Standard error of the mean over the data; with globals also that of their draws.

        All data share these, so that the second part does not fall with their number. NaN at one
        draw of the globals, or at one datum without them.
        """
        count = len(self.log_prob)
        if self.by_global is None:
            return (self.log_prob.std() / math.sqrt(count)).item() if count > 1 else math.nan
        over_data = self.log_prob.var() / count if count > 1 else 0.0
        shares = (self.by_global - self.log_prob).exp().mean(1)  # of each draw, about 1
        if len(shares) < 2:
            return math.nan
        return float((over_data + shares.var() / len(shares)) ** 0.5)

    @property
    def untrusted(self) -> float:
        """Share of data whose Pareto shape is above 0.7; NaN where too few samples tell it."""
        if not bool(torch.isfinite(self.psis_k).any()):
            return math.nan
        return (self.psis_k > 0.7).double().mean().item()

    @typed
    def plot(self) -> "Figure":
        """Draw log p(x), effective sample size and Pareto shape over the data."""
        from pyro_vae.plots import answers

        return answers.likelihood(self)

    def _given(self) -> str:
        """Return of what the estimate is conditional, which its error leaves out."""
        return ""

    def __repr__(self) -> str:
        # Too few samples tell nothing of the tail: the shape is infinite then, and not shown.
        known = bool(torch.isfinite(self.psis_k).any())
        tail = f", k > 0.7: {100 * self.untrusted:.1f} %" if known else ""
        if not known and self.by_global is not None and len(self.by_global) < _DRAWS_FOR_K:
            tail = f", k unknown (num_global_samples={_DRAWS_FOR_K} tells it)"
            if len(self.by_global) == 1:
                tail = ", error and k unknown (one draw of the globals)"
            elif self.same_globals:
                tail = ", k unknown (the globals are one point, which each draw is)"
        error, ess, shared = self.stderr, median(self.ess).item(), self.by_global
        draws = f"{self._called}={self.samples}"
        if shared is not None:
            draws = (
                f"{self._called}={self.samples // len(shared)}, num_global_samples={len(shared)}"
            )
        return (
            f"{type(self).__name__}(mean={self.mean:.4f}"
            f"{f' ± {error:.4f}' if math.isfinite(error) else ''} nats{self._given()}, {draws}"
            f"{f', median ess={ess:.1f}' if math.isfinite(ess) else ''}{tail})"
        )


def relative_error(ess: Tensor, samples: int) -> Tensor:
    """Return the standard error of the log of a mean of weights, to first order; 0 of one weight.

    Arguments:
        ess: Their effective sample size.
        samples: K; the variance of few weights is divided by K - 1.
    """
    return ((1 / ess - 1 / samples) * samples / max(samples - 1, 1)).clamp(min=0).sqrt()


@typed
def log_likelihood(
    program: Any,
    data: Any,
    *,
    num_particles: int = 5000,
    num_global_samples: int = _DRAWS_FOR_K,
    progress: bool = True,
) -> LogLikelihood:
    r"""Estimate the log-likelihood of each datum by importance sampling from the guide.

    .. math:: \log p(x_n) \approx \log \frac{1}{S K} \sum_{s,k}
       \frac{p(x_n, z_{sk} \mid w_s)}{q(z_{sk} \mid x_n)}, \quad z_{sk} \sim q(z \mid x_n),\
       w_s \sim q(w)

    With globals this is the predictive density of each datum, which is no share of the evidence
    that the ELBO bounds. So it is where all data are one datum: all latents are global then, and
    under ``Program(..., whole=True)`` those of the rows too, of which a warning tells.
    With no local latent (a Bayesian regression) this is the mean over the S draws of the globals,
    with no latent at all (maximum likelihood) log p(x) itself. All data see the same S draws.

    Values that the model masks have no density: that of the guide is left out for them too.
    Under a guide that is a point mass (a VQ-VAE) this is the ELBO, whatever K: such an estimate has
    an effective sample size of 1, and where the latent has a density (AutoDelta) it is no bound of
    log p(x): a warning says so. Memory is bounded whatever N and K: particles are
    drawn in chunks and folded into running sums.
    Random numbers come from torch's global generator.

    Arguments:
        program: Anything with ``.model`` and ``.guide``; weights run in eval mode.
        data: One row per datum, ``(N, ...)``, or a ``Dataset``, a ``DataLoader``, batches to come.
        num_particles: K, importance samples per datum (per draw of the globals).
        num_global_samples: S, draws of the global latents, where there are any; fewer than 21
            tell no Pareto shape of the means at them.
        progress: Show a progress bar of what takes more than two seconds.

    Returns:
        Per datum: the estimate, its effective sample size and its Pareto shape.

    Raises:
        DataError: Data that the program cannot take.
        ConfigError: K or S below 1.
        ProgramError: The model has no prior to integrate over.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), arXiv:1509.00519
    """
    count = positive("num_particles", num_particles)
    draws = positive("num_global_samples", num_global_samples)
    with Program.of(program).passes(
        data, _VERB, rows=_DATA_PER_PASS, num_global_samples=draws
    ) as passes:
        count = count if passes.sites.local else 1  # without locals all particles are one
        points: set[str] = set()
        folded = passes.map(lambda piece: _fold(piece, count, points), progress=progress)
        total = count * max(1, len(passes.draws))
        shared = bool(passes.sites.global_)
        first = passes.draws[0] if shared else {}
        same = all(torch.equal(v, draw[n]) for draw in passes.draws for n, v in first.items())
        if passes.program.reader.told_whole:
            _tell_of_latents_of_rows(passes.sites.global_, passes.sites.dependence.fixed)
    tell_of_points("log_likelihood", points)
    log_prob, ess, psis_k, means = (torch.cat(parts, -1) for parts in zip(*folded, strict=True))
    by_global = means if shared else None
    return LogLikelihood(
        log_prob, ess, psis_k, total, by_global=by_global, same_globals=shared and same
    )


def _tell_of_latents_of_rows(names: tuple[str, ...], points: tuple[str, ...]) -> None:
    """Warn that latents count as known from the guide, which the rows of a series share."""
    bound = "; pv.elbo bounds that"
    if points:
        bound = f"; nor does pv.elbo bound that: the guide is a point mass at {points[0]!r}"
    for name in names[:1]:
        warnings.warn(
            f"log_likelihood: site {name!r}: whole=True makes the latents of all rows global, so "
            "that this is log E_q[p(x | z)], z as the guide draws it from these data, and not the "
            f"evidence log p(x), above which it may lie{bound}",
            UserWarning,
            stacklevel=of_user(),
        )


def _fold(piece: Pass, count: int, points: set[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a batch's estimate, its sample size and shape, ``(B,)``, and means ``(S, B)``.

    Arguments:
        piece: The batch.
        count: K.
        points: Takes the names of latents with a density whose posterior is one point.
    """
    running = RunningWeights()
    means, total = [], count * len(piece.joints)
    for joint in piece.joints:
        densities = joint.densities()
        sums = []
        for size in runs(count, joint, piece, _ROWS_PER_PASS):
            terms = densities.terms(1, size)
            running.add(terms.log_weight[0], total=total)
            sums.append(terms.log_weight[0].logsumexp(0))
        means.append(torch.stack(sums).logsumexp(0) - math.log(count))
    by_global = torch.stack(means)
    dependence = piece.sites.dependence
    spread = {*terms.carried, *dependence.redrawn}
    own = [draws[0].posterior for name, draws in terms.latents.items() if name not in spread]
    points |= points_of(terms, dependence)
    if any(checks.is_point_mass(fn) and not has_density_of_its_own(fn) for fn in own):
        # All draws are one, and tell nothing of the mass elsewhere: a bound, however many.
        one = torch.ones_like(by_global[0])
        return running.log_mean(), one * len(means), one * math.inf, by_global
    ess, shape = running.ess(), running.psis_k()
    if piece.sites.global_:
        ess = _sample_size_of_draws(by_global, total)
        # A tail of weights that share one draw of the globals says nothing of other draws.
        shape = torch.maximum(shape, psis_k(by_global, 0))
    return running.log_mean(), ess, shape, by_global


def _sample_size_of_draws(means: Tensor, total: int) -> Tensor:
    """Return the sample size that the spread between S draws of the globals implies, ``(N,)``."""
    if len(means) < 2:
        return torch.full_like(means[0], math.nan)
    relative = (means - means.logsumexp(0) + math.log(len(means))).exp()  # of mean 1
    return 1 / (relative.var(0) / len(means) + 1 / total)


class RunningWeights:
    """Log sums of w and w², and the largest weights, of a stream of weights ``(K, B)``."""

    def __init__(self) -> None:
        self.count = 0
        self.tail: Tensor | None = None

    def add(self, log_weight: Tensor, total: int) -> None:
        """Take in one chunk; ``total`` is the number of weights that will come in all."""
        keep = tail_length(total) + 1  # the threshold is the largest weight outside the tail
        first, second = log_weight.logsumexp(0), (2 * log_weight).logsumexp(0)
        if self.tail is None:
            self.first, self.second, joined = first, second, log_weight
        else:
            self.first = torch.logaddexp(self.first, first)
            self.second = torch.logaddexp(self.second, second)
            joined = torch.cat([self.tail, log_weight])
        self.tail = joined.topk(min(keep, len(joined)), dim=0).values
        self.count += len(log_weight)

    def log_mean(self) -> Tensor:
        return self.first - math.log(self.count)

    def ess(self) -> Tensor:
        return (2 * self.first - self.second).exp()

    def psis_k(self) -> Tensor:
        assert self.tail is not None  # add() comes first
        return pareto_k_of_tail(self.tail).to(self.tail.dtype)
