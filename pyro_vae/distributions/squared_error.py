"""The squared error as a log density."""

from collections.abc import Sequence

import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.arguments import typed
from pyro_vae.distributions.expandable import Expandable


@typed
class SquaredError(Expandable):
    r"""Minus the squared error as a log density, without a normalising constant.

    .. math:: \log p(x) = -(x - \mu)^2

    It is Normal(μ, 1/√2) but for the constant ½ log π: a loss built on it *is* the squared error.
    A draw returns μ itself: the output of a deterministic network has no noise.

    Arguments:
        loc: prediction μ.

    Raises:
        ConfigError: no tensor.

    Example:
        >>> SquaredError(torch.tensor(1.0)).log_prob(torch.tensor(3.0))
        tensor(-4.)
    """

    arg_constraints = {"loc": constraints.real}  # noqa: RUF012
    batched = ("loc",)
    support = constraints.real

    def __init__(self, loc: Tensor, *, validate_args: bool | None = None) -> None:
        self.loc = loc
        super().__init__(loc.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Return μ."""
        return self.loc

    def log_prob(self, value: Tensor) -> Tensor:
        """Return -(value - μ)²."""
        if self._validate_args:
            self._validate_sample(value)
        return -(value - self.loc).square()

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return μ, shape (sample, batch)."""
        return self.loc.detach().expand(self._extended_shape(torch.Size(sample_shape))).clone()
