"""A Gaussian whose values beyond two limits are known to be there, and no more."""

import math
from collections.abc import Sequence

import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.arguments import typed
from pyro_vae.distributions.expandable import Expandable
from pyro_vae.errors import ConfigError, DataError


@typed
class CensoredNormal(Expandable):
    r"""A Gaussian clipped at limits: :math:`x = \min(\max(u, l), h), \; u \sim N(\mu, \sigma^2)`.

    It has a density between the limits and a mass at each:

    .. math:: \log p(x) = \log N(x) \; (l < x < h), \quad \log \Phi\Big(\frac{l - \mu}{\sigma}\Big)
        \; (x \le l), \quad \log \Phi\Big(\frac{\mu - h}{\sigma}\Big) \; (x \ge h)

    Arguments:
        loc: μ, shape (batch).
        scale: σ, shape (batch).
        low, high: l and h, shape (batch); infinite where there is no limit.

    Raises:
        ConfigError: shapes that do not fit together.
        DataError: values of a shape that does not fit.

    References:
        Estimation of relationships for limited dependent variables (Tobin, 1958).

    Example:
        >>> zero, one = torch.tensor(0.0), torch.tensor(1.0)
        >>> CensoredNormal(zero, one, zero, one * torch.inf).log_prob(zero).exp()
        tensor(0.5000)
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    support = constraints.real
    has_rsample = True
    batched = ("loc", "scale", "low", "high")

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        low: Tensor,
        high: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        try:
            parts = torch.broadcast_tensors(loc, scale, low, high)
        except RuntimeError as error:
            raise ConfigError(f"loc, scale, low and high: {error}") from None
        self.loc, self.scale, self.low, self.high = parts
        super().__init__(self.loc.shape, torch.Size(), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        a, b = self._limit(self.low), self._limit(self.high)
        below, above = torch.special.ndtr(a), torch.special.ndtr(-b)
        inside = self.loc * (1 - below - above) + self.scale * (_density(a) - _density(b))
        return inside + _times(self.low, below) + _times(self.high, above)

    @typed
    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density between the limits and the log mass at one, shape (batch)."""
        if self._validate_args:
            self._validate_sample(value)
        try:
            u = self._standard(value)
        except RuntimeError as error:
            raise DataError(f"value: {error}") from None
        inside = -0.5 * u.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)
        below = torch.special.log_ndtr(self._limit(self.low))
        above = torch.special.log_ndtr(-self._limit(self.high))
        return torch.where(value <= self.low, below, torch.where(value >= self.high, above, inside))

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws, shape (sample, batch)."""
        noise = torch.randn(
            self._extended_shape(torch.Size(sample_shape)),
            dtype=self.loc.dtype,
            device=self.loc.device,
        )
        return torch.clamp(self.loc + self.scale * noise, self.low, self.high)

    def _limit(self, value: Tensor) -> Tensor:
        """Return a limit in units of the scale; one that is not there so far out as to be none.

        An infinity would make NaN of the gradient, also where another branch is taken.
        """
        there = value.isfinite()
        inside = torch.where(there, value, torch.zeros_like(value))
        return torch.where(there, self._standard(inside), 40.0 * value.sign())

    def _standard(self, value: Tensor) -> Tensor:
        return (value - self.loc) / self.scale


def _density(u: Tensor) -> Tensor:
    return torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi)


def _times(limit: Tensor, mass: Tensor) -> Tensor:
    """Return a limit times the mass at it: nothing where there is no limit."""
    return torch.where(limit.isfinite(), limit, torch.zeros_like(limit)) * mass
