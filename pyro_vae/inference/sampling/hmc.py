"""Hamiltonian Monte Carlo over a vectorised log density: one accept per datum and chain.

Shapes: C chain, B batch (datum), Z latent. Positions are `(C, B, Z)`, densities `(C, B)`; any
batch shape works, the event is the last dim. Everything here is a pure function of tensors: no
boolean indexing and no host sync. Gradients come from the sum of the densities, so a density must
treat its rows apart (networks in eval mode) and must not raise on NaN (argument validation off).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor

from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.recording import Recording

LogDensity = Callable[[Tensor], Tensor]

MAX_ENERGY_ERROR = 1000.0  # nats; Stan's threshold for a divergent trajectory


class HMCState(NamedTuple):
    """Where the chains stand: position `(C, B, Z)`, log density `(C, B)`, gradient `(C, B, Z)`."""

    position: Tensor
    log_prob: Tensor
    grad: Tensor


class HMCInfo(NamedTuple):
    """What one transition did, per chain and datum, each `(C, B)`; energy errors are in nats."""

    accept_prob: Tensor
    accepted: Tensor
    energy_error: Tensor
    diverged: Tensor


def log_prob_and_grad(
    log_density: LogDensity, position: Tensor, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Evaluate log p(z) and its gradient in z; no parameter receives a `.grad`.

    Arguments:
        log_density: maps `(*, Z)` to `(*)`, in nats; one that has a method `value_and_grad` (a
            traced graph) is asked for both at once, unless a graph is to be kept
        position: z, shape `(*, Z)`
        create_graph: keep the graph, so that the results can be differentiated again
    """
    both = getattr(log_density, "value_and_grad", None)
    if both is not None and not create_graph:
        return both(position)
    with torch.enable_grad():
        if not (create_graph and position.requires_grad):
            position = position.detach().requires_grad_()
        log_prob = log_density(position)
        (grad,) = torch.autograd.grad(log_prob.sum(), position, create_graph=create_graph)
    return (log_prob, grad) if create_graph else (log_prob.detach(), grad)


def leapfrog(
    position: Tensor,
    momentum: Tensor,
    grad: Tensor,
    step_size: float | Tensor,
    num_steps: int,
    log_density: LogDensity,
    inverse_mass: float | Tensor = 1.0,
    create_graph: bool = False,
) -> tuple[HMCState, Tensor]:
    """Integrate Hamilton's equations: reversible, volume preserving, energy error O(eps^2).

    .. math:: r += (eps / 2) grad log p(z);  z += eps M^{-1} r;  r += (eps / 2) grad log p(z)

    Arguments:
        position: z, shape `(*, Z)`
        momentum: r, shape `(*, Z)`
        grad: the gradient of the log density at `position`, shape `(*, Z)`
        step_size: eps, a number or a shape that broadcasts to `(*)`
        num_steps: number of leapfrog steps, >= 0
        log_density: maps `(*, Z)` to `(*)`, in nats
        inverse_mass: the diagonal of M^{-1}, a number or a shape that broadcasts to `(*, Z)`
        create_graph: differentiate through the integrator (Hamiltonian VAE)

    Returns:
        the state at the end of the trajectory (its `log_prob` is NaN for zero steps, where nothing
        is evaluated) and the momentum there.

    References: MCMC using Hamiltonian dynamics (Neal, 2011), arXiv 1206.1901.
    """
    step = step_size.unsqueeze(-1) if isinstance(step_size, Tensor) else step_size
    log_prob = position.new_full(position.shape[:-1], math.nan)
    for _ in range(num_steps):
        momentum = momentum + 0.5 * step * grad
        position = position + step * inverse_mass * momentum
        log_prob, grad = log_prob_and_grad(log_density, position, create_graph)
        momentum = momentum + 0.5 * step * grad
    return HMCState(position, log_prob, grad), momentum


def hmc_init(log_density: LogDensity, position: Tensor) -> HMCState:
    """Evaluate the density where the chains start.

    Raises:
        ProgramError: the density does not return one value per row.
    """
    log_prob, grad = log_prob_and_grad(log_density, position)
    if log_prob.shape != position.shape[:-1]:
        raise ProgramError(
            f"the log density returned shape {tuple(log_prob.shape)} at positions of shape "
            f"{tuple(position.shape)}; expected {tuple(position.shape[:-1])}: sum over the last "
            f"dim only, never over data or chains"
        )
    return HMCState(position.detach(), log_prob, grad)


def hmc_step(
    state: HMCState,
    log_density: LogDensity,
    step_size: float | Tensor,
    num_steps: int,
    inverse_mass: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
    jitter: float = 0.0,
) -> tuple[HMCState, HMCInfo]:
    """Make one HMC transition; each chain of each datum accepts or rejects on its own.

    .. math:: alpha = min(1, exp(H(z, r) - H(z', r'))),  H(z, r) = r^T M^{-1} r / 2 - log p(z)

    A row whose energy is not finite is rejected and flagged, and touches no other row. One leapfrog
    step is MALA; no step leaves the state as it is.

    Arguments:
        state: where the chains stand
        log_density: maps `(*, Z)` to `(*)`, in nats; one that has a method `transition` (a traced
            graph) is asked for it, where the noise is torch's own
        step_size: eps, a number or a shape that broadcasts to `(*)`: `()`, `(B,)`, `(C, B)`
        num_steps: number of leapfrog steps, >= 0
        inverse_mass: the diagonal of M^{-1}, a number or a shape that broadcasts to `(*, Z)`
        generator: source of noise; torch's global one if None
        jitter: relative half-width of the uniform noise on each trajectory's length, in [0, 1)

    References: MCMC using Hamiltonian dynamics (Neal, 2011), arXiv 1206.1901.
    """
    recorded = getattr(log_density, "transition", None)
    if recorded is not None and generator is None:
        return recorded(state, step_size, num_steps, inverse_mass, jitter)
    return _transition(state, log_density, step_size, num_steps, inverse_mass, generator, jitter)


class Transitions:
    """Transitions under densities that are graphs of tensors: on a GPU each is launched at once.

    Arguments:
        density_of: Returns the density that some tensors choose.
    """

    def __init__(self, density_of: Callable[..., LogDensity]) -> None:
        self._density_of = density_of
        self._recordings: dict[object, Recording] = {}

    def take(
        self,
        state: HMCState,
        chosen: Sequence[Tensor],
        step_size: float | Tensor,
        num_steps: int,
        inverse_mass: float | Tensor,
        jitter: float,
    ) -> tuple[HMCState, HMCInfo]:
        """Make a transition as ``hmc_step`` does, under the density that ``chosen`` chooses."""
        scales = step_size, inverse_mass
        numbers = [None if isinstance(scale, Tensor) else scale for scale in scales]
        tensors = [scale for scale in scales if isinstance(scale, Tensor)]
        first, density_of = 3 + len(chosen), self._density_of

        def work(*flat: Tensor) -> list[Tensor]:
            begin, density = HMCState(*flat[:3]), density_of(*flat[3:first])
            given = iter(flat[first:])
            step, mass = [next(given) if number is None else number for number in numbers]
            end, info = _transition(begin, density, step, num_steps, mass, None, jitter)
            return [*end, *info]

        flat = [*state, *chosen, *tensors]
        key = (*numbers, num_steps, jitter, *(tensor.shape for tensor in flat))
        results = self._recordings.setdefault(key, Recording(work))(*flat)
        return HMCState(*results[:3]), HMCInfo(*results[3:])


def _transition(
    state: HMCState,
    log_density: LogDensity,
    step_size: float | Tensor,
    num_steps: int,
    inverse_mass: float | Tensor,
    generator: torch.Generator | None,
    jitter: float,
) -> tuple[HMCState, HMCInfo]:
    if jitter:
        noise = _uniform(state.log_prob, generator)
        step_size = step_size * (1.0 + jitter * (2.0 * noise - 1.0))
    momentum = _draw_momentum(state.position, inverse_mass, generator)
    proposal, end = leapfrog(
        state.position, momentum, state.grad, step_size, num_steps, log_density, inverse_mass
    )
    if num_steps == 0:
        proposal = state
    before = _kinetic(momentum, inverse_mass) - state.log_prob
    energy_error = _kinetic(end, inverse_mass) - proposal.log_prob - before
    accept_prob = _acceptance(energy_error)
    accepted = _decide(accept_prob, generator)
    diverged = ~(energy_error.isfinite() & (energy_error < MAX_ENERGY_ERROR))
    info = HMCInfo(accept_prob, accepted, energy_error, diverged)
    return _select(accepted, proposal, state), info


def _draw_momentum(
    position: Tensor, inverse_mass: float | Tensor, generator: torch.Generator | None
) -> Tensor:
    noise = torch.randn(
        position.shape, generator=generator, dtype=position.dtype, device=position.device
    )
    return noise / inverse_mass**0.5


def _kinetic(momentum: Tensor, inverse_mass: float | Tensor) -> Tensor:
    return 0.5 * (inverse_mass * momentum.square()).sum(-1)


def _acceptance(energy_error: Tensor) -> Tensor:
    ratio = (-energy_error).clamp(max=0.0).exp()
    # An infinite gain is as suspect as an infinite loss: the old energy was already not finite.
    return torch.where(energy_error.isfinite(), ratio, torch.zeros_like(ratio))


def _decide(accept_prob: Tensor, generator: torch.Generator | None) -> Tensor:
    return _uniform(accept_prob, generator) < accept_prob


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _select(accepted: Tensor, proposal: HMCState, state: HMCState) -> HMCState:
    row = accepted.unsqueeze(-1)
    return HMCState(
        torch.where(row, proposal.position, state.position),
        torch.where(accepted, proposal.log_prob, state.log_prob),
        torch.where(row, proposal.grad, state.grad),
    )


class StepSize(DualAveraging):
    """Pyro's dual averaging of log step sizes, for tensors of them.

    .. math:: log eps_{t+1} = mu - (sqrt(t) / gamma) mean_{i <= t}(target - alpha_i)

    with gamma = 0.05, averaged with weights t^{-0.75}.

    Arguments:
        step_size: first guess, > 0; shape `()` for one shared step, `(B,)` for one per datum,
            `(C, B)` for one per chain and datum

    References: The No-U-Turn Sampler (Hoffman and Gelman, 2014), arXiv 1111.4246.
    """

    def __init__(self, step_size: Tensor) -> None:
        # The anchor is ten times the first guess: large steps are cheap to test, so try them first.
        super().__init__(prox_center=step_size.log() + math.log(10.0))
        self.next = self.average = step_size  # the one to try, and the one to keep at the end

    def update(self, accept_prob: Tensor, target: float = 0.8) -> None:
        """Move towards the target acceptance, averaged over the dims that share a step.

        Arguments:
            accept_prob: alpha of the last transition, shape `(C, B)`
            target: acceptance probability aimed at: 0.65 is cheapest, 0.8 safer
        """
        sharing = accept_prob.numel() / self.next.numel()
        self.step(target - accept_prob.sum_to_size(self.next.shape) / sharing)
        self.next, self.average = (log_step.exp() for log_step in self.get_state())


def adapt_step_size(
    state: HMCState,
    log_density: LogDensity,
    step_size: Tensor,
    num_steps: int,
    num_iterations: int,
    target: float = 0.8,
    inverse_mass: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
    jitter: float = 0.0,
    done: Callable[[], Any] = lambda: None,
) -> tuple[HMCState, Tensor]:
    """Warm the chains up while their step size adapts; return the state and the frozen step.

    Arguments:
        state: where the chains stand
        log_density: maps `(*, Z)` to `(*)`, in nats
        step_size: first guess; its shape says who shares a step, see `StepSize`
        num_steps: number of leapfrog steps, >= 1
        num_iterations: number of transitions, >= 1
        target: acceptance probability aimed at
        inverse_mass: the diagonal of M^{-1}
        generator: source of noise; torch's global one if None
        jitter: see `hmc_step`
        done: called after each transition

    Raises:
        ConfigError: no leapfrog step or no iteration, so that there is nothing to adapt to.
    """
    if num_steps < 1 or num_iterations < 1:
        raise ConfigError(
            f"got num_steps={num_steps}, num_iterations={num_iterations}; adaptation needs both "
            f">= 1: every trajectory of zero steps is accepted"
        )
    adaptation = StepSize(step_size)
    for _ in range(num_iterations):
        state, info = hmc_step(
            state, log_density, adaptation.next, num_steps, inverse_mass, generator, jitter
        )
        adaptation.update(info.accept_prob, target)
        done()
    return state, adaptation.average
