"""A Markov chain over time as one site. Shapes: * batch, T steps, Z one state, U one input."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.arguments import positive, typed
from pyro_vae.distributions.expandable import Expandable
from pyro_vae.distributions.padded import (
    inert_behind,
    kept_steps,
    none_of_them,
    possible_value,
    require_lengths,
)
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.scan import scan

Transition = Callable[..., TorchDistributionMixin]


@typed
class Chain(Expandable):
    r"""States that follow each other, each drawn given the one before: one site of event (T, Z).

    .. math:: \log p(z) = \sum_{t \le L} \log p(z_t \mid z_{t-1}, u_t)

    A draw is a loop over the steps (`pyro_vae.scan`, which no tracer unrolls); the log density of a
    path is one call for all steps. Prior and posterior of a state space are chains alike: inputs
    that hold the observations up to t make it a filtering guide, those from t on a smoothing one.

    Arguments:
        transition: maps states (*, Z), and where there are inputs those of the same steps (*, U),
            to the distribution of the next states, batch (*), event (Z,).
        initial: :math:`z_0`, a tensor (Z,) or (*, Z), from which the first step is taken; or the
            distribution of the first state itself, batch (*), which may be of any event shape.
        steps: T.
        inputs: u, shape (*, T, U), or None.
        lengths: L, how many steps of each sequence count, shape (*); None: all. Beyond them a draw
            is 0, and counts nowhere.

    Raises:
        ConfigError: Inputs of another number of steps; a length that is none, where arguments are
            validated (elsewhere the log density of that sequence is NaN).

    References:
        Structured inference networks for nonlinear state space models (Krishnan et al., 2017),
        arXiv:1609.09869.

    Example:
        >>> import pyro.distributions as dist
        >>> walk = Chain(lambda z: dist.Normal(0.9 * z, 1.0).to_event(1), torch.zeros(2), 7)
        >>> z = walk.expand((5,)).sample()
        >>> z.shape, walk.log_prob(z).shape
        (torch.Size([5, 7, 2]), torch.Size([5]))
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(
        self,
        transition: Transition,
        initial: Tensor | TorchDistributionMixin,
        steps: int,
        *,
        inputs: Tensor | None = None,
        lengths: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        steps = positive("steps", steps)
        self._asked: TorchDistributionMixin | None = None
        self.transition, self.initial, self.inputs, self.lengths = (
            transition,
            initial,
            inputs,
            lengths,
        )
        first: Any = initial
        if isinstance(initial, Tensor):
            batch, self.state_shape = first.shape[:-1], first.shape[-1:]
        else:
            batch, self.state_shape = first.batch_shape, first.event_shape
        if inputs is not None:
            if inputs.dim() < 2 or inputs.shape[-2] != steps:
                raise ConfigError(
                    f"inputs: got shape {tuple(inputs.shape)}, expected (*, {steps}, U)"
                )
            batch = torch.broadcast_shapes(batch, inputs.shape[:-2])
        if lengths is not None:
            batch = torch.broadcast_shapes(batch, lengths.shape)
        super().__init__(batch, torch.Size((steps, *self.state_shape)), validate_args=validate_args)
        if self._validate_args and lengths is not None:
            require_lengths(lengths, steps)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: Any = None) -> Any:
        """Return the same distribution for another batch: what it holds is broadcast when used."""
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(vars(self))
        new._batch_shape = torch.Size(batch_shape)
        return new

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws carry a gradient: as those of the first step do."""
        return bool(self._first_step.has_rsample)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """That of a state, for each step: it must be the same at any state before it."""
        state = _at_each_step(self._first_step.support, len(self.state_shape))
        return constraints.independent(state, 1)

    @property
    def _first_step(self) -> TorchDistributionMixin:
        """The distribution of the first state."""
        if not isinstance(self.initial, Tensor):
            return self.initial
        if self._asked is None:
            start = self.initial.expand(self.batch_shape + self.state_shape)
            given = [] if self.inputs is None else [self.inputs[..., 0, :]]
            with torch.no_grad():
                given = [each.expand(*self.batch_shape, -1) for each in given]
                self._asked = self.transition(start, *given)
        return self._asked

    @property
    def kept(self) -> Tensor | None:
        """Which units no length takes out, shape (*, T, 1...) to broadcast; None: all are in."""
        if self.lengths is None:
            return None
        kept = kept_steps(self.lengths, self.event_shape[0])
        return kept.reshape(kept.shape + (1,) * len(self.state_shape))

    @typed
    def step_log_prob(self, value: Tensor) -> Tensor:
        r"""Return :math:`\log p(z_t \mid z_{t-1})` of each step of a path, shape (*, T), nats.

        Arguments:
            value: paths, shape (*, T, Z).

        Raises:
            DataError: Paths of another shape.
        """
        self._require_paths(value)
        steps = self.event_shape[0]
        if self.lengths is None:
            return self._of_all_steps(value)
        log_prob = self._of_all_steps(self._inert(value))
        kept = kept_steps(self.lengths, steps)
        none = none_of_them(self.lengths, steps)
        beyond = log_prob.new_zeros(()).masked_fill(none, torch.nan).unsqueeze(-1)
        return torch.where(kept & ~none.unsqueeze(-1), log_prob, beyond)

    def _inert(self, value: Tensor) -> Tensor:
        """Return paths with what counts nowhere such that it can be scored."""
        if self.kept is None:
            return value
        possible = possible_value(self._first_step, value)
        if possible is not None and possible.dim() > len(self.state_shape):
            possible = possible.unsqueeze(-self.event_dim)
        return inert_behind(value, self.kept, possible)

    def _require_paths(self, value: Tensor) -> None:
        if value.shape[value.dim() - self.event_dim :] != self.event_shape:
            raise DataError(
                f"value: got shape {tuple(value.shape)}, expected (*, "
                f"{', '.join(map(str, self.event_shape))})"
            )

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of paths (*, T, Z), shape (*), nats."""
        value = self._inert(value)
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self.step_log_prob(value).sum(-1)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return paths, shape (sample, * | T, Z)."""
        return self._draw(torch.Size(sample_shape), lambda given: given.rsample())

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return paths, shape (sample, * | T, Z)."""
        return self._draw(torch.Size(sample_shape), lambda given: given.sample())

    def _draw(self, sample_shape: torch.Size, take: Callable[[Any], Tensor]) -> Tensor:
        batch, kept = sample_shape + self.batch_shape, self.kept
        inputs = []
        if self.inputs is not None:
            inputs = [self.inputs.expand(*batch, *self.inputs.shape[-2:]).movedim(-2, 0)]
        if kept is not None:
            shape = (*batch, *kept.shape[-self.event_dim :])
            inputs.append(kept.expand(shape).movedim(-self.event_dim, 0))

        def step(state: Tensor, *given: Tensor) -> Tensor:
            if kept is not None:
                # Behind its end a path stays near its start: where it ran on to infinity, the
                # gradient of what is kept would be 0 times infinity.
                *given, inside = given  # type: ignore[assignment]
                state = torch.where(inside, state, start)
            return take(expanded(self.transition(state, *given), batch))

        start = (
            self.initial.expand(batch + self.state_shape)
            if isinstance(self.initial, Tensor)
            else take(expanded(self.initial, batch))
        )
        if isinstance(self.initial, Tensor):
            path = scan(step, start, inputs, steps=self.event_shape[0])
        else:
            path = start.unsqueeze(0)
            if self.event_shape[0] > 1:
                later = [each[1:] for each in inputs]
                rest = scan(step, start, later, steps=self.event_shape[0] - 1)
                path = torch.cat([path, rest])
        path = path.movedim(0, -self.event_dim)
        return path if kept is None else torch.where(kept, path, torch.zeros_like(path))

    def _of_all_steps(self, value: Tensor) -> Tensor:
        time, steps = -self.event_dim, self.event_shape[0]
        batch, past = value.shape[:time], value.narrow(time, 0, steps - 1)
        given = [] if self.inputs is None else [self.inputs.expand(*batch, *self.inputs.shape[-2:])]
        if isinstance(self.initial, Tensor):
            start = self.initial.unsqueeze(-2).expand(*batch, 1, *self.state_shape)
            return self.transition(torch.cat([start, past], time), *given).log_prob(value)
        first = self.initial.log_prob(value.select(time, 0)).unsqueeze(-1)
        first = first.expand(*batch, 1)
        if steps == 1:
            return first
        given = [each.narrow(-2, 1, steps - 1) for each in given]
        rest = self.transition(past, *given).log_prob(value.narrow(time, 1, steps - 1))
        return torch.cat([first, rest.expand(*batch, steps - 1)], -1)


def expanded(given: TorchDistributionMixin, batch: torch.Size) -> TorchDistributionMixin:
    return given if given.batch_shape == batch else given.expand(batch)


def _at_each_step(support: Any, events: int) -> Any:
    """Return the support of a state, of so many dims, with bounds that broadcast over time."""
    if not isinstance(support, constraints.Constraint):
        bound = isinstance(support, Tensor) and support.dim() > events
        return support.unsqueeze(-1 - events) if bound else support
    given = getattr(support, "__dict__", {})
    parts = {name: _at_each_step(part, events) for name, part in given.items()}
    if all(parts[name] is part for name, part in given.items()):
        return support  # `constraints.real` is known by identity
    new = copy(support)
    vars(new).update(parts)
    return new
