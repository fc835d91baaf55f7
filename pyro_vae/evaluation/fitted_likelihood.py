"""Log-likelihood by importance sampling from a Gaussian fitted, per datum, to HMC draws."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.arguments import number, positive, typed
from pyro_vae.errors import ConfigError
from pyro_vae.evaluation.likelihood import LogLikelihood, RunningWeights
from pyro_vae.inference.posterior.gaussians import Gaussians
from pyro_vae.inference.sampling.hmc import adapt_step_size, hmc_init, hmc_step
from pyro_vae.program.densities.log_joint import LogJoint
from pyro_vae.program.passes import Pass, Verb, runs
from pyro_vae.program.program import Program

# Particle rows per pass through the model, as in `likelihood`: they fit a CPU's cache.
_ROWS_PER_PASS = 4096
_GUIDE_DRAWS = 32  # behind the mass: a rough scale is enough
_VERB = Verb(
    "fitted_log_likelihood",
    prior=True,
    local="use log_likelihood",
    continuous="use log_likelihood",
    globals_="use log_likelihood",
    each=True,
)
_JITTER = 0.5  # of each trajectory's length: one length alone can bring a chain back to its start


@typed
def fitted_log_likelihood(
    program: Any,
    data: Any,
    *,
    num_particles: int = 20_000,
    warmup: int = 300,
    num_draws: int = 300,
    num_leapfrog: int = 5,
    widen: float = 1.2,
    full: bool = False,
    batch_size: int = 512,
    progress: bool = True,
) -> LogLikelihood:
    r"""Estimate log p(x) of each datum by a proposal that does not rely on the guide being good.

    .. math:: \log p(x_n) \approx \log \frac{1}{K} \sum_k \frac{p(x_n, z_k)}{r_n(z_k)}, \quad
       z_k \sim r_n = N(m_n, c^2 S_n)

    with m and S the mean and variance of HMC draws from p(z | x), all in unconstrained coordinates.
    The chains start from the guide and adapt a step size per datum while they warm up; the guide's
    variance is their inverse mass. A model whose guide was left behind (``pv.HMCRefined``) is
    judged fairly so. Random numbers come from torch's global generator.

    Arguments:
        program: Anything with ``.model`` and ``.guide`` and continuous local latents.
        data: One row per datum, ``(N, ...)``.
        num_particles: K, importance samples per datum.
        warmup: Transitions that adapt the step size and are dropped.
        num_draws: Transitions that the Gaussian is fitted to.
        num_leapfrog: Leapfrog steps per transition.
        widen: c, by which the standard deviation is widened: tails must be covered.
        full: Fit a full covariance, for correlated posteriors; ``num_draws`` should then be many
            times the number of latents.
        batch_size: Data per pass; bounds the memory.
        progress: Show a progress bar of what takes more than two seconds.

    Returns:
        Per datum: the estimate, its effective sample size and its Pareto shape.

    Raises:
        DataError: Data that the program cannot take.
        ConfigError: An argument out of range.
        ProgramError: Latents that HMC cannot sample, or global ones.

    References:
        | A Contrastive Divergence for Combining Variational Inference and MCMC
          (Ruiz & Titsias, 2019), arXiv:1905.04062 (300 + 300 transitions, K = 20,000, c = 1.2)
    """
    sizes = {
        "num_particles": num_particles,
        "warmup": warmup,
        "num_draws": num_draws,
        "num_leapfrog": num_leapfrog,
    }
    for name, value in sizes.items():
        positive(name, value)
    if num_draws < 2:
        raise ConfigError(
            f"num_draws: got {num_draws}, expected at least 2: a variance is fitted to them"
        )
    widen = number("widen", widen, "(0, inf)")
    with Program.of(program).passes(data, _VERB, rows=batch_size) as passes:

        def weighed(piece: Pass) -> tuple[Tensor, ...]:
            densities = LogJoint(passes.program, piece.batch)
            densities.require_line("fitted_log_likelihood")
            moments = _sample(densities, warmup, num_draws, num_leapfrog)
            kept = densities.kept()
            proposal = _fit(moments, widen, full).masked(None if kept is None else kept[0])
            return _weigh(densities, proposal, num_particles, piece)

        folded = passes.map(weighed, progress=progress)
    log_prob, ess, psis_k = (torch.cat(parts) for parts in zip(*folded, strict=True))
    return LogLikelihood(log_prob, ess, psis_k, num_particles)


@dataclass
class _Moments:
    """Running mean ``(B, Z)`` and sum of outer products of deviations ``(B, Z, Z)``."""

    count: int
    mean: Tensor
    scatter: Tensor

    def add(self, u: Tensor) -> None:
        """Take in one draw, ``(B, Z)`` (Welford's update: no cancellation)."""
        self.count += 1
        before = u - self.mean
        self.mean = self.mean + before / self.count
        self.scatter = self.scatter + before.unsqueeze(-1) * (u - self.mean).unsqueeze(-2)


def _sample(densities: LogJoint, warmup: int, num_draws: int, num_leapfrog: int) -> _Moments:
    """Run one chain per datum from the guide; return the moments of its draws."""
    guide = densities.draw_guide(_GUIDE_DRAWS)
    variance = guide.var(0)
    inverse_mass = torch.where(variance > 0, variance, torch.ones_like(variance))
    state = hmc_init(densities.log_joint, guide[:1])
    first = state.log_prob.new_full(state.log_prob.shape, 0.3)
    state, step_size = adapt_step_size(
        state,
        densities.log_joint,
        first,
        num_leapfrog,
        warmup,
        inverse_mass=inverse_mass,
        jitter=_JITTER,
    )
    size, dim = guide.shape[1:]
    moments = _Moments(0, guide.new_zeros(size, dim), guide.new_zeros(size, dim, dim))
    for _ in range(num_draws):
        state, _ = hmc_step(
            state, densities.log_joint, step_size, num_leapfrog, inverse_mass, jitter=_JITTER
        )
        moments.add(state.position[0])
    return moments


def _fit(moments: _Moments, widen: float, full: bool) -> Gaussians:
    """Return Gaussians with the moments of the draws, widened."""
    covariance = moments.scatter / (moments.count - 1)
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    # A chain that never moved has no variance; its estimate must not be NaN without a word: its
    # weights are all but one-sided then, and their Pareto shape says so.
    scale = scale.clamp(min=torch.finfo(scale.dtype).eps ** 0.5)
    if not full:
        return Gaussians(moments.mean, (widen * scale).log())
    units = scale.unsqueeze(-1) * scale.unsqueeze(-2)
    correlation = covariance / units
    # Shrunk a little: as many draws as latents would leave a singular matrix.
    kept = moments.count / (moments.count + scale.shape[-1])
    correlation = kept * correlation + (1 - kept) * torch.eye(
        scale.shape[-1], dtype=scale.dtype, device=scale.device
    )
    factor, info = torch.linalg.cholesky_ex(correlation)
    # A datum whose chain gave no such matrix has its variances, and stops no other.
    sound = (info == 0) & factor.flatten(1).isfinite().all(1)
    factor = torch.where(sound[:, None, None], factor, torch.eye(scale.shape[-1]).to(factor))
    factor = widen * scale.unsqueeze(-1) * factor
    return Gaussians(moments.mean, factor.diagonal(dim1=-2, dim2=-1).log(), factor.tril(-1))


def _weigh(
    densities: LogJoint, proposal: Gaussians, num_particles: int, piece: Pass
) -> tuple[Tensor, ...]:
    """Fold the log weights of one batch, chunk by chunk, into an estimate per datum."""
    running = RunningWeights()
    for size in runs(num_particles, densities.joint, piece, _ROWS_PER_PASS):
        noise = proposal.standard_noise(size)
        weight = densities.log_joint(proposal.place(noise)) - proposal.log_prob(noise)
        running.add(weight, total=num_particles)
    return running.log_mean(), running.ess(), running.psis_k()
