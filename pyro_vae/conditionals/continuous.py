"""Conditionals of real numbers."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.arguments import number, typed
from pyro_vae.conditionals.conditional import Conditional
from pyro_vae.conditionals.outputs import bounded, split


class Gaussian(Conditional):
    r"""A diagonal Gaussian, loc and log-scale both from the network; p(x | z) as well as q(z | x).

    .. math:: x \sim N(\mu(z), \mathrm{diag}\,\sigma^2(z)), \quad (\mu, \log \sigma) = net(z)

    The log-scale is `bounded`: exact between -7 and 7, finite for any output.

    Arguments:
        net: network that gives loc, then log-scale.
        event_dim: number of dims of one datum.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> net = nn.Linear(2, 3 * Gaussian.width())
        >>> x = Gaussian(net)(torch.zeros(5, 2))
        >>> x.batch_shape, x.event_shape
        (torch.Size([5]), torch.Size([3]))
    """

    @staticmethod
    def width() -> int:
        """Return the number of network outputs per data dimension."""
        return 2

    @staticmethod
    @typed
    def output_bias(mean: Tensor) -> Tensor:
        """Return outputs with loc at the training mean and scale 1."""
        mean = torch.atleast_1d(mean)
        return torch.cat([mean, torch.zeros_like(mean)])

    def forward(self, z: Tensor) -> TorchDistributionMixin:
        loc, log_scale = split(self.net(z), 2, self.event_dim)
        return dist.Normal(loc, bounded(log_scale).exp()).to_event(self.event_dim)


@typed
class IsotropicGaussian(Conditional):
    r"""A Gaussian around the network's output with one scale for all: N(net(z), σ² I).

    Arguments:
        net: network that gives the loc.
        scale: σ, a standard deviation in units of the data; where it starts if it is learned.
        learn_scale: make log σ a parameter.
        event_dim: number of dims of one datum.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> IsotropicGaussian(nn.Identity(), scale=0.5)(torch.zeros(3)).variance
        tensor([0.2500, 0.2500, 0.2500])
    """

    log_scale: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        scale: float = 1.0,
        learn_scale: bool = False,
        event_dim: int = 1,
    ) -> None:
        super().__init__(net, event_dim=event_dim)
        number("scale", scale, "(0, inf)")
        self.learn_scale = learn_scale
        log_scale = torch.tensor(math.log(scale), dtype=torch.get_default_dtype())
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @staticmethod
    @typed
    def width(scale: float = 1.0, learn_scale: bool = False) -> int:
        """Return the number of network outputs per data dimension."""
        return 1

    @staticmethod
    @typed
    def output_bias(mean: Tensor, scale: float = 1.0, learn_scale: bool = False) -> Tensor:
        """Return the training mean."""
        return mean

    def forward(self, z: Tensor) -> TorchDistributionMixin:
        loc = self.net(z)
        log_scale = bounded(self.log_scale) if self.learn_scale else self.log_scale
        return dist.Normal(loc, log_scale.exp().expand_as(loc)).to_event(self.event_dim)

    def extra_repr(self) -> str:
        return f"learn_scale={self.learn_scale}"


class SquaredError(Conditional):
    r"""Minus the squared error as an unnormalised log density, :math:`-\|x - net(z)\|^2`.

    Arguments:
        net: network that gives the prediction.
        event_dim: number of dims of one datum.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> SquaredError(nn.Identity())(torch.zeros(2)).log_prob(torch.ones(2))
        tensor(-2.)
    """

    def forward(self, z: Tensor) -> TorchDistributionMixin:
        return distributions.SquaredError(self.net(z)).to_event(self.event_dim)


class Point(Conditional):
    """All mass on the network's output: a deterministic encoder, as a `Delta` of log density 0.

    Arguments:
        net: network that gives the point.
        event_dim: number of dims of one point.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> Point(nn.Identity())(torch.ones(2)).log_prob(torch.ones(2))
        tensor(0.)
    """

    def forward(self, x: Tensor) -> TorchDistributionMixin:
        return dist.Delta(self.net(x)).to_event(self.event_dim)
