"""Tuning of HMC before the draws that count: step size per datum, trajectory length per batch."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.inference.sampling.hmc import HMCState, LogDensity, adapt_step_size, hmc_step

FIRST_LENGTH = 3  # leapfrog steps before their number is tuned
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_BLOCK = 20  # transitions by which one length is judged
_SCALE_DRAWS = 64  # for a variance: the mass needs no more than 10 %


class Tuned(NamedTuple):
    """Where the chains stand after warm-up, and the settings that are frozen from then on."""

    state: HMCState
    step_size: Tensor
    num_leapfrog: int


def warm_up(
    state: HMCState,
    log_density: LogDensity,
    step_size: Tensor,
    num_leapfrog: int | None,
    num_iterations: int,
    target: float,
    inverse_mass: Tensor,
    jitter: float,
) -> Tuned:
    """Adapt the step size and, where it is not given, the number of leapfrog steps.

    Arguments:
        state: where the chains stand
        log_density: maps `(*, Z)` to `(*)`, in nats
        step_size: first guess; its shape says who shares a step
        num_leapfrog: fixed number of leapfrog steps, or None
        num_iterations: transitions in all, those that judge a length left out; 0 adapts nothing
        target: acceptance probability aimed at
        inverse_mass: the diagonal of M^{-1}
        jitter: as for `hmc_step`
    """
    if num_iterations == 0:
        return Tuned(state, step_size, num_leapfrog or FIRST_LENGTH)

    def adapt(state: HMCState, step: Tensor, length: int, count: int) -> tuple[HMCState, Tensor]:
        return adapt_step_size(
            state, log_density, step, length, count, target, inverse_mass, jitter=jitter
        )

    if num_leapfrog is None and not state.position.is_meta:
        state, step = adapt(state, step_size, FIRST_LENGTH, math.ceil(num_iterations / 2))
        state, num_leapfrog = choose_length(state, log_density, step, inverse_mass, jitter)
        num_iterations = max(1, num_iterations // 2)
    length = num_leapfrog or FIRST_LENGTH
    return Tuned(*adapt(state, step_size, length, num_iterations), length)


def choose_length(
    state: HMCState,
    log_density: LogDensity,
    step_size: Tensor,
    inverse_mass: Tensor,
    jitter: float,
) -> tuple[HMCState, int]:
    """Return the number of leapfrog steps that mixes fastest per gradient (one sync a length).

    Lengths grow until the best is left behind. The squares of the coordinates count as the
    coordinates do: on a trajectory of half a turn the latter are antithetic while the energy, and
    with it the spread, hardly moves.
    """
    chosen, best = LENGTHS[0], 0.0
    for length in LENGTHS:
        draws = []
        for _ in range(_BLOCK):
            state, _ = hmc_step(state, log_density, step_size, length, inverse_mass, jitter=jitter)
            draws.append(state.position)
        rate = mixing_rate(torch.stack(draws, 1)).item() / length
        if rate > best:
            chosen, best = length, rate
        elif rate < 0.7 * best:
            break
    return state, chosen


def mixing_rate(draws: Tensor) -> Tensor:
    r"""Return the independent draws per transition of the slowest coordinate or square.

    .. math:: \min_i (1 - \rho_i) / (1 + \rho_i)

    with the lag-one autocorrelation, averaged over the data; negative ones count as none. Data with
    a chain that never moved have no say.

    Arguments:
        draws: shape `(C, S, B, Z)`
    """
    moved = (draws[:, 1:] != draws[:, :-1]).any(-1).any(1).all(0)
    centred = draws - draws.mean((0, 1))
    rates = []
    for values in (centred, centred.square() - centred.square().mean((0, 1))):
        lagged = (values[:, 1:] * values[:, :-1]).mean((0, 1)) / values.square().mean((0, 1))
        share = torch.where(moved[:, None], lagged, torch.zeros_like(lagged)).sum(0) / moved.sum()
        rho = share.clamp(min=0.0)
        rates.append(((1.0 - rho) / (1.0 + rho)).min())
    return torch.stack(rates).min()


def start_variance(draw: Callable[[int], Tensor], chains: int) -> Tensor:
    """Return the variance of the start's coordinates, `(B, Z)`; 1 where it has none (a point).

    Arguments:
        draw: returns that many draws `(C, B, Z)`
        chains: draws per pass, as many rows at once as the chains have
    """
    passes = max(2, math.ceil(_SCALE_DRAWS / chains))
    variance = torch.cat([draw(chains) for _ in range(passes)]).var(0)
    usable = variance.isfinite() & (variance > 0)
    return torch.where(usable, variance, torch.ones_like(variance))
