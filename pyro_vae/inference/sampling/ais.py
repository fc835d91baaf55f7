"""Annealed importance sampling between two densities, per datum, forward and in reverse.

Shapes: C chain, B batch (datum), Z latent, T number of temperatures after the first. The path is
p_t(z) proportional to p_0(z)^(1 - b_t) f(z)^(b_t): from p_0 (prior or guide, normalised) at b_0 = 0
to f (the joint density of x and z) at b_T = 1, whose normaliser is p(x).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.arguments import number, positive, typed
from pyro_vae.device import resolve_device
from pyro_vae.errors import ConfigError
from pyro_vae.inference.sampling.hmc import (
    HMCInfo,
    HMCState,
    LogDensity,
    hmc_init,
    hmc_step,
    log_prob_and_grad,
)

# (state, log p_t, t) -> (state, info), leaving p_t invariant; t runs over 1..T.
Kernel = Callable[[HMCState, LogDensity, int], tuple[HMCState, HMCInfo]]

# (z, b) -> log p_t(z), its gradient, and log f(z) - log p_0(z), all at temperature b.
Mixture = Callable[[Tensor, Tensor], Sequence[Tensor]]


class AISResult(NamedTuple):
    """Log weights `(C, B)` in nats, mean acceptance `(B,)`, last positions `(C, B, Z)`."""

    log_weight: Tensor
    accept_rate: Tensor
    position: Tensor


def linear_temperatures(
    num: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Return b_t = t / T for t = 0..T.

    Arguments:
        num: T, >= 1
        dtype: of the result; torch's default if None
        device: of the result
    """
    steps = torch.arange(positive("num", num) + 1, dtype=torch.float64, device=device)
    return (steps / num).to(dtype or torch.get_default_dtype())


@typed
def sigmoid_temperatures(
    num: int,
    rad: float = 4.0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return temperatures dense at both ends, where the path bends most.

    .. math:: s_t = sigmoid(rad (2 t / T - 1)),  b_t = (s_t - s_0) / (s_T - s_0)

    Arguments:
        num: T, >= 1
        rad: half-width of the sigmoid's argument, > 0
        dtype: of the result; torch's default if None
        device: of the result

    References: On the quantitative analysis of decoder-based generative models (Wu et al., 2017),
    arXiv 1611.04273.
    """
    rad = number("rad", rad, "(0, inf)")
    device = None if device is None else resolve_device(device)
    steps = torch.arange(positive("num", num) + 1, dtype=torch.float64, device=device)
    curve = torch.sigmoid(rad * (2.0 * steps / num - 1.0))
    scaled = (curve - curve[0]) / (curve[-1] - curve[0])
    return scaled.to(dtype or torch.get_default_dtype())


def annealed_importance(
    log_initial: LogDensity,
    position: Tensor,
    log_target: LogDensity,
    temperatures: Tensor,
    *,
    step_size: float | Tensor = 0.1,
    num_leapfrog: int = 10,
    inverse_mass: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
    kernel: Kernel | None = None,
    mixture: Mixture | None = None,
    done: Callable[[], Any] = lambda: None,
) -> AISResult:
    """Anneal draws of p_0 to the target; each weight is an unbiased estimate of its normaliser.

    .. math:: log w = sum_{t=1}^T (b_t - b_{t-1}) (log f(z_{t-1}) - log p_0(z_{t-1}))

    with z_0 ~ p_0 and z_t ~ HMC(z_{t-1}; p_t). E[w] = p(x), so E[log w] <= log p(x), and
    `log_mean_exp` over chains is a tighter lower bound. With T = 1 or no leapfrog step this is
    importance sampling. Step sizes must be fixed beforehand (`tune_steps`): adapting them within
    the measured run would bias it.

    Arguments:
        log_initial: log p_0, normalised, `(C, B, Z)` to `(C, B)`, in nats
        position: exact draws of p_0, shape `(C, B, Z)`
        log_target: log f, `(C, B, Z)` to `(C, B)`, in nats
        temperatures: b_0 = 0 < ... < b_T = 1, shape `(T + 1,)`, on the device of `position`
        step_size: a number or a 0-d tensor, or `(T, *)` with `*` broadcasting to `(C, B)`
        num_leapfrog: leapfrog steps per temperature, >= 0
        inverse_mass: its diagonal, broadcasting to `(C, B, Z)`
        generator: source of noise; torch's global one if None
        kernel: another transition in place of HMC
        mixture: both densities in one evaluation (a traced graph); None: `mixture_of` the two
        done: called after each transition

    Raises:
        ConfigError: temperatures and step sizes disagree in number, or there are none.

    References: Annealed importance sampling (Neal, 2001), arXiv physics/9803008.
    """
    num = _num_temperatures(temperatures)
    if kernel is None:
        kernel = _hmc_kernel(step_size, num_leapfrog, inverse_mass, generator, num)
    path = _Path(mixture or mixture_of(log_initial, log_target), temperatures)
    log_weight = accept = torch.zeros_like(position[..., 0])
    for t in range(1, num + 1):
        state, log_ratio = path.enter(position, t)
        log_weight = log_weight + path.width(t) * log_ratio
        state, info = kernel(state, path.log_density(t), t)
        position, accept = state.position, accept + info.accept_prob
        done()
    return AISResult(log_weight, accept.mean(0) / num, position)


def reverse_annealed_importance(
    log_initial: LogDensity,
    position: Tensor,
    log_target: LogDensity,
    temperatures: Tensor,
    *,
    step_size: float | Tensor = 0.1,
    num_leapfrog: int = 10,
    inverse_mass: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
    kernel: Kernel | None = None,
    mixture: Mixture | None = None,
    done: Callable[[], Any] = lambda: None,
) -> AISResult:
    """Anneal exact posterior draws back to p_0: an upper bound, the other half of BDMC's sandwich.

    .. math:: log w = sum_{t=T}^1 (b_t - b_{t-1}) (log f(z_t) - log p_0(z_t))

    with z_t ~ HMC(z_{t+1}; p_t), the start being an exact draw of the target: on simulated data the
    z that made x. E[1 / w] = 1 / p(x), so E[log w] >= log p(x), and `-log_mean_exp(-log_weight)`
    over chains is a tighter upper bound.

    Arguments:
        position: exact draws of the target, shape `(C, B, Z)`
        temperatures: those of the forward run, rising, shape `(T + 1,)`; so are the step sizes
        kernel: another transition in place of HMC; it must be reversible

    The other arguments and the errors are those of `annealed_importance`.

    References: Sandwiching the marginal likelihood using bidirectional Monte Carlo (Grosse et al.,
    2015), arXiv 1511.02543; Wu et al. (2017), arXiv 1611.04273.
    """
    num = _num_temperatures(temperatures)
    if kernel is None:
        kernel = _hmc_kernel(step_size, num_leapfrog, inverse_mass, generator, num)
    path = _Path(mixture or mixture_of(log_initial, log_target), temperatures)
    log_weight = accept = torch.zeros_like(position[..., 0])
    state, _ = path.enter(position, num)
    for t in range(num, 0, -1):
        state, info = kernel(state, path.log_density(t), t)
        accept = accept + info.accept_prob
        state, log_ratio = path.enter(state.position, t - 1)
        log_weight = log_weight + path.width(t) * log_ratio
        done()
    return AISResult(log_weight, accept.mean(0) / num, state.position)


def tune_steps(
    log_initial: LogDensity,
    position: Tensor,
    log_target: LogDensity,
    temperatures: Tensor,
    *,
    num_leapfrog: int = 10,
    step_size: float | Tensor = 0.1,
    target: float = 0.65,
    num_transitions: int = 400,
    gain: float = 0.5,
    inverse_mass: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
    mixture: Mixture | None = None,
    done: Callable[[], Any] = lambda: None,
) -> Tensor:
    """Find a step size per temperature and datum in pilot runs, to be frozen in the measured one.

    .. math:: log eps_t += gain (mean_C alpha_t - target)

    A pilot pass anneals as the measured run does, so that chains lag behind the path as they will
    then. In the first pass a temperature starts from the step of the one before; the mean of log
    eps over the second half of the passes is returned.

    Arguments:
        position: draws of p_0, not those of the measured run, shape `(C, B, Z)`
        num_leapfrog: leapfrog steps per temperature, >= 1
        step_size: first guess, a number or `(B,)`, > 0
        target: acceptance probability aimed at
        num_transitions: per chain, in passes over the temperatures, at least two; an eighth of
            them more stay at the first temperature, while the first guess is mended
        gain: size of the moves of log eps

    The other arguments are those of `annealed_importance`.

    Returns:
        steps, shape `(T, B)`.

    Raises:
        ConfigError: no leapfrog step, no transition or no temperature.
    """
    num = _num_temperatures(temperatures)
    positive("num_leapfrog", num_leapfrog)
    num_passes = _num_passes(positive("num_transitions", num_transitions), num)
    path = _Path(mixture or mixture_of(log_initial, log_target), temperatures)
    settings = (num_leapfrog, inverse_mass, generator)

    def move(position: Tensor, t: int, log_step: Tensor) -> tuple[Tensor, Tensor]:
        state, _ = path.enter(position, t)
        state, info = hmc_step(state, path.log_density(t), log_step.exp(), *settings)
        done()
        return state.position, log_step + gain * (info.accept_prob.mean(0) - target)

    log_step = torch.zeros_like(position[0, ..., 0]) + (
        step_size.log() if isinstance(step_size, Tensor) else math.log(step_size)
    )
    for _ in range(num_transitions // 8):
        _, log_step = move(position, 1, log_step)
    log_steps: list[Tensor] = []
    kept: list[Tensor] = []
    for index in range(num_passes):
        chain = position
        for t in range(1, num + 1):
            if index == 0:
                log_steps.append(log_steps[-1] if log_steps else log_step)
            chain, log_steps[t - 1] = move(chain, t, log_steps[t - 1])
        if index >= num_passes // 2:
            kept.append(torch.stack(log_steps))
    return torch.stack(kept).mean(0).exp()


def num_pilot_transitions(num_transitions: int, num: int) -> int:
    """Return how many transitions `tune_steps` makes on a path of `num` temperatures."""
    return num_transitions // 8 + _num_passes(num_transitions, num) * num


def _num_passes(num_transitions: int, num: int) -> int:
    return max(2, math.ceil(num_transitions / num))


def mixture_of(log_initial: LogDensity, log_target: LogDensity) -> Mixture:
    """Return the geometric path between two densities, each evaluated once at a point."""

    def mixture(position: Tensor, temperature: Tensor) -> tuple[Tensor, ...]:
        ratios: list[Tensor] = []

        def log_density(z: Tensor) -> Tensor:
            first, last = log_initial(z), log_target(z)
            ratios.append((last - first).detach())
            return (1.0 - temperature) * first + temperature * last

        return *log_prob_and_grad(log_density, position), ratios[0]

    return mixture


class OnPath:
    """The density at one temperature; it keeps the log ratio of its first evaluation."""

    def __init__(self, mixture: Mixture, temperature: Tensor) -> None:
        self._mixture = mixture
        self._temperature = temperature
        if hasattr(mixture, "transitions"):  # a traced graph makes them itself
            take = mixture.transitions.take
            self.transition = lambda state, *settings: take(state, (temperature,), *settings)
        self.log_ratio: Tensor | None = None

    def __call__(self, position: Tensor) -> Tensor:
        return self.value_and_grad(position)[0]

    def value_and_grad(self, position: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, grad, ratio = self._mixture(position, self._temperature)
        self.log_ratio = ratio if self.log_ratio is None else self.log_ratio
        return log_prob, grad


class _Path(NamedTuple):
    """The geometric path between two densities."""

    mixture: Mixture
    temperatures: Tensor

    def width(self, t: int) -> Tensor:
        return self.temperatures[t] - self.temperatures[t - 1]

    def log_density(self, t: int) -> LogDensity:
        return OnPath(self.mixture, self.temperatures[t])

    def enter(self, position: Tensor, t: int) -> tuple[HMCState, Tensor]:
        """Return the state under p_t and log f - log p_0, both from one evaluation."""
        density = OnPath(self.mixture, self.temperatures[t])
        state = hmc_init(density, position)
        assert density.log_ratio is not None
        return state, density.log_ratio


def _hmc_kernel(
    step_size: float | Tensor,
    num_leapfrog: int,
    inverse_mass: float | Tensor,
    generator: torch.Generator | None,
    num: int,
) -> Kernel:
    if num_leapfrog < 0:
        raise ConfigError(f"got num_leapfrog={num_leapfrog}; expected >= 0")
    if isinstance(step_size, Tensor) and step_size.dim() > 0 and len(step_size) != num:
        raise ConfigError(
            f"step_size has shape {tuple(step_size.shape)} for {num} temperatures after the first; "
            f"give a number or shape ({num}, B), as tune_steps returns"
        )

    def kernel(state: HMCState, log_density: LogDensity, t: int) -> tuple[HMCState, HMCInfo]:
        step = step_size
        if isinstance(step, Tensor) and step.dim() > 0:
            step = step[t - 1]
        return hmc_step(state, log_density, step, num_leapfrog, inverse_mass, generator)

    return kernel


def _num_temperatures(temperatures: Tensor) -> int:
    if temperatures.dim() != 1:
        raise ConfigError(
            f"temperatures have shape {tuple(temperatures.shape)}; expected (T + 1,), from 0 to 1"
        )
    return positive("temperatures after the first", len(temperatures) - 1)
