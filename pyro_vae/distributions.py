"""Distributions that Pyro lacks. Shapes: batch | event."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions.utils import broadcast_all

from pyro_vae.errors import ConfigError, ProgramError


class BernoulliArray(dist.Independent):
    r"""Independent bits as one event: ``Bernoulli(...).to_event``, scored without two copies.

    .. math:: \log p(x) = -\sum_d \mathrm{BCE}(l_d, x_d)

    The sign is taken after the sum over the event, not before it: for images the largest tensors
    of a training step.

    Arguments:
        base_distribution: a Pyro ``Bernoulli`` built from logits.
        reinterpreted_batch_ndims: rightmost batch dims that make one event.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability, shape (batch), nats."""
        if self.base_dist._validate_args:
            self.base_dist._validate_sample(value)
        logits, value = broadcast_all(self.base_dist.logits, value)
        cost = F.binary_cross_entropy_with_logits(logits, value, reduction="none")
        return -cost.sum(tuple(range(-self.reinterpreted_batch_ndims, 0)))


class _Grid(constraints.Constraint):
    """The values k / (levels - 1), k = 0..levels-1, up to rounding of the floats."""

    is_discrete = True
    event_dim = 0

    def __init__(self, levels: int) -> None:
        self.levels = levels

    def check(self, value: Tensor) -> Tensor:
        steps = value * (self.levels - 1)
        near = (steps - steps.round()).abs() <= 1e-3
        return near & (steps > -0.5) & (steps < self.levels - 0.5)


class DiscretisedLogistic(TorchDistribution):
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

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        levels: int = 256,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
            raise ConfigError(f"levels={levels!r}; expected a whole number of at least 2, as 256")
        self.loc, self.scale = broadcast_all(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return _Grid(self.levels)

    def expand(
        self, batch_shape: torch.Size | Sequence[int], _instance: Any = None
    ) -> "DiscretisedLogistic":
        new = self._get_checked_instance(DiscretisedLogistic, _instance)
        new.loc, new.scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        new.levels = self.levels
        TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

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


class NoPrior(TorchDistribution):
    r"""The absence of a prior: a flat, improper density, log p(z) = 0, that cannot be sampled.

    It stands at the latent site of a deterministic autoencoder, where an ELBO then has no KL term.

    Arguments:
        event_shape: shape of one z.

    Raises:
        ProgramError: when sampled.

    Example:
        >>> NoPrior((2,)).log_prob(torch.ones(3, 2))
        tensor([0., 0., 0.])
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(
        self,
        event_shape: torch.Size | Sequence[int] = (),
        batch_shape: torch.Size | Sequence[int] = (),
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(
            torch.Size(batch_shape), torch.Size(event_shape), validate_args=validate_args
        )

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: Any = None) -> "NoPrior":
        new = self._get_checked_instance(NoPrior, _instance)
        TorchDistribution.__init__(
            new, torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return zeros, shape (batch)."""
        lead = value.shape[: value.dim() - len(self.event_shape)]
        return value.new_zeros(torch.broadcast_shapes(lead, self.batch_shape))

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Raise: there is nothing to draw from."""
        raise ProgramError(
            "a latent site has no prior to sample from (NoPrior), so this program cannot generate, "
            "nor has it a likelihood; an autoencoder can encode and reconstruct data: use that, or "
            "a VAE, which learns the same networks under a prior"
        )


class SquaredError(TorchDistribution):
    r"""Minus the squared error as a log density, without a normalising constant.

    .. math:: \log p(x) = -(x - \mu)^2

    It is Normal(μ, 1/√2) but for the constant ½ log π: a loss built on it *is* the squared error.
    A draw returns μ itself: the output of a deterministic network has no noise.

    Arguments:
        loc: prediction μ.

    Example:
        >>> SquaredError(torch.tensor(1.0)).log_prob(torch.tensor(3.0))
        tensor(-4.)
    """

    arg_constraints = {"loc": constraints.real}  # noqa: RUF012
    support = constraints.real

    def __init__(self, loc: Tensor, *, validate_args: bool | None = None) -> None:
        self.loc = loc
        super().__init__(loc.shape, validate_args=validate_args)

    def expand(
        self, batch_shape: torch.Size | Sequence[int], _instance: Any = None
    ) -> "SquaredError":
        new = self._get_checked_instance(SquaredError, _instance)
        new.loc = self.loc.expand(batch_shape)
        TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

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
