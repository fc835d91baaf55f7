"""Log-likelihood by importance sampling, per datum, with evidence of its own quality."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae.arguments import positive
from pyro_vae.inference.sampling.importance_weights import pareto_k_of_tail, tail_length
from pyro_vae.program import checks
from pyro_vae.program.batch import Batch, num_rows
from pyro_vae.program.bounds import passes, scoring
from pyro_vae.program.program import Program

# Particle rows (data times particles) per pass through the model: small enough for a CPU's cache,
# large enough to keep it busy; the memory of an evaluation is bounded by it, whatever N and K are.
_ROWS_PER_PASS = 4096
_DATA_PER_PASS = 64


@dataclass(frozen=True, repr=False)
class LogLikelihood:
    r"""Importance-sampling estimates of log p(x), with what says how far to trust them.

    Arguments:
        log_prob: :math:`\log \frac{1}{K}\sum_k p(x, z_k) / q(z_k \mid x)` per datum, ``(N,)``,
            nats; a lower bound of log p(x) in expectation.
        ess: Effective sample size of the weights per datum, ``(N,)``, between 1 and K.
        psis_k: Pareto shape of the weights' tail per datum, ``(N,)``; above 0.7 an estimate is not
            to be trusted (Vehtari et al., 2015, arXiv:1507.02646).
        samples: K.
    """

    log_prob: Tensor
    ess: Tensor
    psis_k: Tensor
    samples: int

    @property
    def mean(self) -> float:
        """Mean log-likelihood, nats per datum."""
        return self.log_prob.mean().item()

    @property
    def stderr(self) -> float:
        """Standard error of the mean over the data (not of the importance sampling)."""
        count = len(self.log_prob)
        return (self.log_prob.std() / math.sqrt(count)).item() if count > 1 else math.nan

    @property
    def untrusted(self) -> float:
        """Share of data whose Pareto shape is above 0.7; NaN where too few samples tell it."""
        if not bool(torch.isfinite(self.psis_k).any()):
            return math.nan
        return (self.psis_k > 0.7).double().mean().item()

    def __repr__(self) -> str:
        # Too few samples tell nothing of the tail: the shape is infinite then, and not shown.
        known = bool(torch.isfinite(self.psis_k).any())
        tail = f", k > 0.7: {100 * self.untrusted:.1f} %" if known else ""
        return (
            f"{type(self).__name__}(mean={self.mean:.4f} ± {self.stderr:.4f} nats, "
            f"samples={self.samples}, median ess={self.ess.median().item():.1f}{tail})"
        )


def log_likelihood(
    program: Any,
    data: Any,
    *,
    samples: int = 5000,
    num_samples: int = 10,
    progress: bool = False,
) -> LogLikelihood:
    r"""Estimate the log-likelihood of each datum by importance sampling from the guide.

    .. math:: \log p(x_n) \approx \log \frac{1}{S K} \sum_{s,k}
       \frac{p(x_n, z_{sk} \mid w_s)}{q(z_{sk} \mid x_n)}, \quad z_{sk} \sim q(z \mid x_n),\
       w_s \sim q(w)

    Under a guide that is a point mass (a VQ-VAE) this is the ELBO, whatever K: such an estimate has
    an effective sample size of 1. Memory is bounded whatever N and K: particles are
    drawn in chunks and folded into running sums.
    Random numbers come from torch's global generator.

    Arguments:
        program: Anything with ``.model`` and ``.guide``; weights run in eval mode.
        data: One row per datum, ``(N, ...)``.
        samples: K, importance samples per datum (per draw of the globals).
        num_samples: S, draws of the global latents, where there are any.
        progress: Show a progress bar.

    Returns:
        Per datum: the estimate, its effective sample size and its Pareto shape.

    Raises:
        DataError: Data that the program cannot take.
        ConfigError: K or S below 1.
        ProgramError: The model has no prior to integrate over.

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), arXiv:1509.00519
    """
    wrapped = Program.of(program)
    positive("samples", samples)
    positive("num_samples", num_samples)
    batch = wrapped.adapt(data)
    wrapped.check(batch)
    wrapped.require_prior("log_likelihood")
    wrapped.require_guide("log_likelihood")
    wrapped.require_whole(batch)
    draws = num_samples if wrapped.sites.global_ else 1
    pieces = passes(wrapped, batch, _DATA_PER_PASS)
    with scoring(wrapped):
        folded = [
            _fold(wrapped, piece, samples, draws)
            for piece in tqdm(pieces, disable=not progress, unit="batch", leave=False)
        ]
    log_prob, ess, psis_k = (torch.cat(parts) for parts in zip(*folded, strict=True))
    return LogLikelihood(log_prob, ess, psis_k, samples * draws)


def _fold(program: Program, batch: Batch, samples: int, draws: int) -> tuple[Tensor, ...]:
    """Fold the log weights of one batch, chunk by chunk, into an estimate per datum."""
    running = RunningWeights()
    chunk = max(1, _ROWS_PER_PASS // num_rows(batch))
    for _ in range(draws):
        joint = program.joint(batch).densities()
        if program.sites.global_:
            joint = joint.fixing(joint.global_values())  # one draw for all of its chunks
        for start in range(0, samples, chunk):
            terms = joint.terms(1, min(chunk, samples - start))
            running.add(terms.log_weight[0], total=samples * draws)
    found = running.log_mean(), running.ess(), running.psis_k()
    if any(checks.is_point_mass(draw[0].posterior) for draw in terms.latents.values()):
        # All draws are one, and tell nothing of the mass elsewhere: a bound, however many.
        return found[0], torch.full_like(found[1], draws), torch.full_like(found[2], math.inf)
    return found


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
