"""A stationary autoregression. Shapes: T steps, D units per step, * batch."""

import math
from collections.abc import Sequence

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae.arguments import number, positive, shaped, shown, typed
from pyro_vae.distributions.expandable import Expandable
from pyro_vae.errors import DataError


@typed
class AR1(Expandable):
    r"""A stationary Gaussian autoregression over the steps of a sequence, each unit by itself.

    .. math:: z_1 \sim N(0, I), \quad z_t \sim N(\alpha z_{t-1}, (1 - \alpha^2) I)

    Each step alone is N(0, I). No posterior that factorises over the steps can match the
    correlation: its KL is at least `floor` per unit, so that it must carry something.

    Arguments:
        correlation: α of neighbouring steps, a tensor () in (-1, 1).
        steps: T.
        units: D.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Preventing posterior collapse with delta-VAEs (Razavi et al., 2019), arXiv:1901.03416.

    Example:
        >>> z = AR1(torch.tensor(0.9), 7, 2).sample((5,))
        >>> z.shape, round(AR1.floor(0.8, 7), 5)
        (torch.Size([5, 7, 2]), 1.74757)
    """

    arg_constraints = {"correlation": constraints.interval(-1.0, 1.0)}  # noqa: RUF012
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self, correlation: Tensor, steps: int, units: int, *, validate_args: bool | None = None
    ) -> None:
        self.correlation = shaped("correlation", correlation, ())
        super().__init__(
            torch.Size(),
            torch.Size((positive("steps", steps), positive("units", units))),
            validate_args=validate_args,
        )

    @staticmethod
    @typed
    def floor(correlation: float, steps: int) -> float:
        r"""Return the least KL of a posterior that factorises over the steps, nats per unit.

        .. math:: \tfrac{1}{2}\big[(T - 2) \log(1 + \alpha^2) - \log(1 - \alpha^2)\big]
        """
        if positive("steps", steps) < 2:
            return 0.0
        square = number("correlation", correlation, "(-1, 1)") ** 2
        return ((steps - 2) * math.log1p(square) - math.log1p(-square)) / 2

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, shape (*), nats."""
        if self._validate_args:
            self._validate_sample(value)
        steps, units = self.event_shape
        change = value[..., 1:, :] - self.correlation * value[..., :-1, :]
        variance = 1 - self.correlation.square()
        square = value[..., 0, :].square().sum(-1) + change.square().sum((-1, -2)) / variance
        constant = units * (steps * math.log(2 * math.pi) + (steps - 1) * variance.log())
        log_prob = -(square + constant) / 2
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return sequences, shape (sample, * | T, D)."""
        noise = self.correlation.new_zeros(self._extended_shape(torch.Size(sample_shape)))
        noise = torch.randn_like(noise)
        scale = (1 - self.correlation.square()).sqrt()
        z = [noise[..., 0, :]]
        for t in range(1, self.event_shape[0]):
            z.append(self.correlation * z[-1] + scale * noise[..., t, :])
        return torch.stack(z, -2)


@typed
class FlatSequence(Expandable):
    """A distribution of sequences (T, D) as one of vectors (T D,).

    Arguments:
        sequence: the distribution of event shape (T, D).

    Raises:
        ConfigError: no distribution.
        DataError: a vector of another size.
    """

    arg_constraints = {}  # noqa: RUF012
    batched = ("sequence",)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, sequence: TorchDistribution) -> None:
        self.sequence = sequence
        size = torch.Size((sequence.event_shape.numel(),))
        super().__init__(sequence.batch_shape, size, validate_args=False)

    @typed
    def log_prob(self, value: Tensor) -> Tensor:
        if value.shape[-1:] != self.event_shape:
            raise DataError(f"got {shown(value)}, expected shape (*, {self.event_shape[0]})")
        return self.sequence.log_prob(value.unflatten(-1, self.sequence.event_shape))

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        return self.sequence.rsample(torch.Size(sample_shape)).flatten(-2)
