"""Sequences of unequal length in one array. Shapes: * batch, T steps of the array, D units."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import (
    MixtureSameFamily,
    TransformedDistribution,
    biject_to,
    constraints,
)

from pyro_vae.arguments import integer, typed
from pyro_vae.errors import ConfigError, DataError


@typed
def kept_steps(lengths: Tensor, steps: int) -> Tensor:
    """Return which steps a sequence has, (*, T), of its length, (*).

    Example:
        >>> kept_steps(torch.tensor([2, 0]), 3)
        tensor([[ True,  True, False],
                [False, False, False]])
    """
    # As integers: of bfloat16, step 257 would be step 256.
    return torch.arange(steps, device=lengths.device) < lengths.long().unsqueeze(-1)


def none_of_them(lengths: Tensor, steps: int) -> Tensor:
    """Return which lengths, (*), are none of T steps."""
    whole = lengths.long()  # T may be no number of a type of 8 bits
    return ~((whole >= 0) & (whole <= steps) & (whole.double() == lengths.double()))


def inert_behind(value: Tensor, kept: Tensor, possible: Tensor | None) -> Tensor:
    """Return a value with something that can be scored in the place of what is not kept.

    It counts nowhere, but 0 may lie outside the support, and a gradient times 0 be NaN.

    Arguments:
        value: Shape (*, T | event).
        kept: Which parts count; broadcasts to it.
        possible: As ``possible_value`` says; broadcasts to it.
    """
    if possible is None:
        return torch.where(kept | value.isfinite(), value, torch.zeros_like(value))
    return torch.where(kept, value, possible)


def possible_value(steps: TorchDistributionMixin, like: Tensor) -> Tensor | None:
    """Return a value of the support, (batch | event); None where all are, or none is known."""
    if isinstance(steps, dist.Independent):
        return possible_value(steps.base_dist, like)
    if isinstance(steps, MixtureSameFamily):  # torch knows no bijection to its support
        possible, events = possible_value(steps.component_distribution, like), steps.event_shape
        if possible is None or possible.dim() <= len(events):
            return possible
        return possible.select(-1 - len(events), 0)
    if isinstance(steps, TransformedDistribution):  # a shift of what is positive says it is real
        possible = possible_value(steps.base_dist, like)
        if possible is not None:
            for transform in steps.transforms:
                possible = transform(possible)
            return possible
    with suppress(NotImplementedError):
        support: Any = steps.support
        inner = support
        while hasattr(inner, "base_constraint"):
            inner = inner.base_constraint
        if inner is constraints.one_hot:
            return torch.eye(steps.event_shape[-1], dtype=like.dtype, device=like.device)[0]
        if support.is_discrete:
            return like.new_zeros(()) + getattr(inner, "lower_bound", 0)
        if inner is not constraints.real:
            transform = biject_to(support)
            base = transform.inverse_shape(steps.batch_shape + steps.event_shape)
            return transform(like.new_zeros(base))
    return None


@typed
def require_lengths(lengths: Tensor, steps: int) -> None:
    """Refuse lengths that are none.

    Raises:
        ConfigError: One is not whole, is below 0, or is beyond the T steps of the array.
    """
    wrong = none_of_them(lengths, steps)
    if bool(wrong.any()):
        raise ConfigError(
            f"lengths: got {lengths[wrong].flatten()[0].item()}, expected whole numbers from 0 to "
            f"the {steps} steps that the sequences are padded to"
        )


@typed
class Padded(dist.Independent):
    r"""Steps that are independent of each other, those beyond a sequence's length left out.

    .. math:: \log p(x) = \sum_{t \le L} \log p_t(x_t)

    Beyond its length a draw is 0, and so is the mean; what stands there is not scored.

    Arguments:
        steps: distribution of the steps, batch (*, T), or (*, T, D) where units are independent.
        lengths: L, shape (*).
        units: number of dims of a step that are in the batch of `steps`: 0 or 1.

    Raises:
        ConfigError: A length is none, where arguments are validated (elsewhere the log density of
            that sequence is NaN).

    Example:
        >>> rolls = dist.Bernoulli(torch.full((2, 3, 4), 0.5))
        >>> x = Padded(rolls, torch.tensor([2, 0]), 1)
        >>> x.log_prob(torch.zeros(2, 3, 4)).exp() * 2**8
        tensor([  1., 256.])
    """

    def __init__(
        self,
        steps: TorchDistributionMixin,
        lengths: Tensor,
        units: int = 0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        units = integer("units", units, 0)
        time = len(steps.batch_shape) - 1 - units
        if time < 0:
            raise ConfigError(
                f"steps: got a distribution of batch shape {tuple(steps.batch_shape)}, expected "
                f"(*, T{', D' * units})"
            )
        if lengths.dim() > time:
            raise ConfigError(
                f"lengths: got shape {tuple(lengths.shape)}, expected that of the sequences, "
                f"{tuple(steps.batch_shape[:time])}"
            )
        kept = kept_steps(lengths, steps.batch_shape[time])
        kept = kept.reshape(kept.shape + (1,) * units)
        super().__init__(steps.mask(kept), 1 + units, validate_args=validate_args)
        #: Which steps no length takes out, shape (*, T, 1...) to broadcast.
        self.kept = kept.reshape(kept.shape + (1,) * len(steps.event_shape))
        self._none = none_of_them(lengths, steps.batch_shape[time])
        if self._validate_args:
            require_lengths(lengths, steps.batch_shape[time])

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws, shape (sample, * | T, D)."""
        return self._cut(super().rsample(torch.Size(sample_shape)))

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws, shape (sample, * | T, D)."""
        return self._cut(super().sample(torch.Size(sample_shape)))

    @typed
    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of sequences (*, T, D), shape (*), nats.

        Raises:
            DataError: Sequences of another shape.
        """
        if value.shape[max(0, value.dim() - self.event_dim) :] != self.event_shape:
            raise DataError(
                f"value: got shape {tuple(value.shape)}, expected (*, "
                f"{', '.join(map(str, self.event_shape))})"
            )
        masked: Any = self.base_dist
        possible = possible_value(masked.base_dist, value)
        log_prob = super().log_prob(inert_behind(value, self.kept, possible))
        return log_prob.masked_fill(self._none, torch.nan)

    @property
    def behind(self) -> Tensor:
        """Which steps lie behind the end of their sequence, (*, T, 1...) to broadcast."""
        return ~self.kept

    @property
    def mean(self) -> Tensor:
        """The mean of each step, shape (* | T, D)."""
        return self._cut(super().mean)

    @property
    def variance(self) -> Tensor:
        """The variance of each step, shape (* | T, D)."""
        return self._cut(super().variance)

    def expand(self, batch_shape, _instance=None):  # type: ignore[no-untyped-def]
        """Return the same distribution for another batch."""
        new = super().expand(batch_shape, self._get_checked_instance(Padded, _instance))
        new.kept, new._none = self.kept, self._none
        return new

    def _cut(self, value: Tensor) -> Tensor:
        return torch.where(self.kept, value, torch.zeros_like(value))
