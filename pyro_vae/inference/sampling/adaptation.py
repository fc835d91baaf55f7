"""Tuning of HMC before the draws that count: step size per datum, trajectory length per batch."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.inference.sampling.hmc import HMCState, LogDensity, adapt_step_size, hmc_step

FIRST_LENGTH = 3  # leapfrog steps before their number is tuned
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_BLOCK = 20  # transitions by which one length is judged
MOST_JUDGED = _BLOCK * len(LENGTHS)  # transitions that judge lengths, at most
_AT_LEAST = 8  # a length that is tried in any case: few chains tell little by the short ones
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
    done: Callable[[], Any] = lambda: None,
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
        done: called after each transition, those that judge a length too
    """
    if num_iterations == 0:
        return Tuned(state, step_size, num_leapfrog or FIRST_LENGTH)

    def adapt(state: HMCState, step: Tensor, length: int, count: int) -> tuple[HMCState, Tensor]:
        return adapt_step_size(
            state, log_density, step, length, count, target, inverse_mass, jitter=jitter, done=done
        )

    if num_leapfrog is None and not state.position.is_meta:
        state, step = adapt(state, step_size, FIRST_LENGTH, math.ceil(num_iterations / 2))
        state, num_leapfrog = choose_length(state, log_density, step, inverse_mass, jitter, done)
        num_iterations = max(1, num_iterations // 2)
    length = num_leapfrog or FIRST_LENGTH
    return Tuned(*adapt(state, step_size, length, num_iterations), length)


def choose_length(
    state: HMCState,
    log_density: LogDensity,
    step_size: Tensor,
    inverse_mass: Tensor,
    jitter: float,
    done: Callable[[], Any] = lambda: None,
) -> tuple[HMCState, int]:
    """Return the number of leapfrog steps that mixes fastest per gradient (one sync a length).

    Lengths grow until the best is left behind. The squares of the coordinates count as the
    coordinates do: on a trajectory of half a turn the latter are antithetic while the energy, and
    with it the spread, hardly moves.
    """
    seen = Mixing()
    for length in LENGTHS:
        draws = [state.position]
        for _ in range(_BLOCK):
            state, _ = hmc_step(state, log_density, step_size, length, inverse_mass, jitter=jitter)
            draws.append(state.position)
            done()
        seen.add(torch.stack(draws, 1))
        per_gradient = seen.rates() / torch.tensor(LENGTHS[: len(seen.jumps)])
        if length >= _AT_LEAST and per_gradient[-1] < 0.7 * per_gradient.max():
            break
    return state, LENGTHS[int(per_gradient.argmax())]


class Mixing:
    r"""Independent draws per transition of the slowest coordinate or square, by blocks of draws.

    .. math:: \min_i (1 - \rho_i) / (1 + \rho_i), \quad
       1 - \rho_i = E[(x_i' - x_i)^2] / (2 \operatorname{Var} x_i)

    with the variance over all blocks, which have one law: by the jumps of a block a slow coordinate
    is told also where one datum has a few chains, whose lagged products are noise. The lag-one
    autocorrelations are averaged over the data; negative ones count as none. Data with a chain that
    never moved have no say.
    """

    def __init__(self) -> None:
        self.jumps: list[tuple[Tensor, Tensor]] = []  # E of the squared jump, (2, B, Z); who moved
        self._count = 0
        self._sums: Any = 0.0  # of the coordinates
        self._moments: Any = 0.0  # of what is centred, and its square, and their squares

    def add(self, draws: Tensor) -> None:
        """Add a block of S transitions, ``(C, 1 + S, B, Z)``."""
        before, after = draws[:, :-1], draws[:, 1:]
        self._count += after.shape[0] * after.shape[1]
        self._sums = self._sums + after.sum((0, 1))
        mean = self._sums / self._count
        one, two = ((each - mean, (each - mean).square()) for each in (before, after))
        jump = [(y - x).square().mean((0, 1)) for x, y in zip(one, two, strict=True)]
        self.jumps.append((torch.stack(jump), (after != before).any(-1).any(1).all(0)))
        moments = [torch.stack([y.sum((0, 1)), y.square().sum((0, 1))]) for y in two]
        self._moments = self._moments + torch.stack(moments, 1)

    def rates(self) -> Tensor:
        """Return the rate of each block (one sync)."""
        first, second = self._moments / self._count
        twice = 2 * (second - first.square())  # (2, B, Z)
        rates = []
        for jump, moved in self.jumps:
            share = torch.where(moved[:, None], (jump / twice).clamp(max=1.0), 0.0).sum(1)
            fresh = (share / moved.sum()).nan_to_num(0.0)  # 1 - rho
            rates.append((fresh / (2.0 - fresh)).min())
        return torch.stack(rates).cpu()


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
