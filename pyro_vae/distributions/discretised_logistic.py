"""A logistic variable rounded to a grid of grey levels."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all

from pyro_vae.arguments import integer, typed
from pyro_vae.distributions.expandable import Expandable
from pyro_vae.errors import ConfigError


class _Grid(constraints.Constraint):
    """The values k / (levels - 1), k = 0..levels-1, up to rounding of the floats."""

    is_discrete = True
    event_dim = 0

    def __init__(self, levels: int) -> None:
        self.levels = integer("levels", levels, 2)

    def check(self, value: Tensor) -> Tensor:
        steps = value * (self.levels - 1)
        near = (steps - steps.round()).abs() <= 1e-3
        return near & (steps > -0.5) & (steps < self.levels - 0.5)


@typed
class DiscretisedLogistic(Expandable):
    r"""A logistic variable rounded to the grid {0, 1/(L-1), ..., 1}; the two ends take the tails.

    .. math:: p(x) = \sigma\big((x + h - \mu)/s\big) - \sigma\big((x - h - \mu)/s\big),
        \quad h = \tfrac{1}{2(L-1)}

    where the first term is 1 at x = 1 and the second is 0 at x = 0, so that the masses sum to one.
    Values are grey levels in [0, 1], the unit in which images are loaded (a byte over 255); a value
    off the grid is an error under validation and is otherwise scored as its nearest level. The mass
    is evaluated as log σ(b) + log σ(-a) + log(1 - exp(a - b)): no difference of sigmoids, hence
    finite in float32 millions of scales away from the centre.

    Arguments:
        loc: centre μ of the logistic, in units of the data.
        scale: scale s of the logistic (its standard deviation is π s / √3), positive.
        levels: number L of grey levels, at least 2.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Improving variational inference with inverse autoregressive flow (Kingma et al., 2016),
        arXiv:1606.04934; PixelCNN++ (Salimans et al., 2017), arXiv:1701.05517.

    Example:
        >>> p = DiscretisedLogistic(0.3, 0.1, levels=4)
        >>> mass = p.log_prob(torch.arange(4) / 3).exp()
        >>> torch.allclose(mass.sum(), torch.tensor(1.0))
        True
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012
    batched = ("loc", "scale")

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        levels: int = 256,
        *,
        validate_args: bool | None = None,
    ) -> None:
        try:
            self.loc, self.scale = broadcast_all(loc, scale)
        except RuntimeError as error:
            raise ConfigError(
                f"loc and scale: expected shapes that fit together: {error}"
            ) from None
        self.levels = integer("levels", levels, 2)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return _Grid(self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log mass of `value`, in nats."""
        if self._validate_args:
            self._validate_sample(value)
        steps = self.levels - 1
        level = (value * steps).round().clamp(0, steps).to(self.loc.dtype)
        above = F.logsigmoid(((level + 0.5) / steps - self.loc) / self.scale)
        below = F.logsigmoid((self.loc - (level - 0.5) / steps) / self.scale)
        width = torch.log(-torch.expm1(-1 / (steps * self.scale)))
        at_least_one, below_top = level > 0, level < steps
        log_mass = torch.where(below_top, above, 0.0) + torch.where(at_least_one, below, 0.0)
        return log_mass + torch.where(at_least_one & below_top, width, 0.0)

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return grey levels in [0, 1], shape (sample, batch)."""
        steps = self.levels - 1
        with torch.no_grad():
            loc = self.loc.expand(self._extended_shape(torch.Size(sample_shape)))
            info = torch.finfo(loc.dtype)
            u = torch.rand_like(loc).clamp(info.tiny, 1 - info.eps)
            x = loc + self.scale * (u.log() - torch.log1p(-u))
            return (x * steps).round().clamp(0, steps) / steps

    @property
    def mean(self) -> Tensor:
        """Return the exact mean of the grey level: the mean of P(level >= k) over k = 1..L-1."""
        return self._sum_of_tails(lambda k: 1.0) / (self.levels - 1)

    @property
    def variance(self) -> Tensor:
        """Return the exact variance of the grey level."""
        square = self._sum_of_tails(lambda k: 2.0 * k - 1.0) / (self.levels - 1) ** 2
        return (square - self.mean.square()).clamp(min=0)

    def _sum_of_tails(self, weight: Any) -> Tensor:
        # A loop, not one broadcast: (L, batch) would be 256 times the size of the images.
        total = torch.zeros_like(self.loc)
        for k in range(1, self.levels):
            edge = (k - 0.5) / (self.levels - 1)
            total = total + weight(k) * torch.sigmoid((self.loc - edge) / self.scale)
        return total
