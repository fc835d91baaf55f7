"""Conditionals of bits, categories and grey levels."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.arguments import integer, positive, typed
from pyro_vae.conditionals.conditional import Conditional
from pyro_vae.conditionals.outputs import bounded, split
from pyro_vae.errors import ConfigError


class Bernoulli(Conditional):
    r"""Independent binary dimensions, :math:`x_d \sim \mathrm{Bernoulli}(\sigma(net(z)_d))`.

    Arguments:
        net: network that gives the logits.
        event_dim: number of dims of one datum.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> x = Bernoulli(nn.Linear(2, 3))(torch.zeros(5, 2))
        >>> x.batch_shape, x.event_shape
        (torch.Size([5]), torch.Size([3]))
    """

    @staticmethod
    @typed
    def output_bias(mean: Tensor) -> Tensor:
        """Return logits of the training mean, clipped to [0.001, 0.999] (Burda et al., 2016)."""
        return torch.logit(mean.clamp(0.001, 0.999))

    def forward(self, z: Tensor) -> TorchDistributionMixin:
        logits = dist.Bernoulli(logits=self.net(z))
        return distributions.BernoulliArray(logits, self.event_dim)


@typed
class Categorical(Conditional):
    r"""Independent categories 0..K-1, :math:`x_d \sim \mathrm{Cat}(\mathrm{softmax}\,net(z)_d)`.

    Arguments:
        net: network that gives the logits, class by class: (K D,) or (K C, H, W).
        num_classes: number K of categories.
        event_dim: number of dims of one datum.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> net = nn.Linear(2, 3 * Categorical.width(num_classes=4))
        >>> x = Categorical(net, num_classes=4)(torch.zeros(5, 2))
        >>> x.batch_shape, x.event_shape
        (torch.Size([5]), torch.Size([3]))
    """

    def __init__(self, net: nn.Module, *, num_classes: int, event_dim: int = 1) -> None:
        super().__init__(net, event_dim=event_dim)
        self.num_classes = positive("num_classes", num_classes)

    @staticmethod
    @typed
    def width(num_classes: int) -> int:  # type: ignore[override]  # has no default
        """Return the number of network outputs per data dimension."""
        return positive("num_classes", num_classes)

    @staticmethod
    def output_bias(mean: Tensor, num_classes: int) -> Tensor:  # type: ignore[override]
        """Raise `ConfigError`: the mean of a class number means nothing."""
        raise ConfigError("data_mean has no meaning for categories; leave it out")

    def forward(self, z: Tensor) -> TorchDistributionMixin:
        logits = torch.stack(split(self.net(z), self.num_classes, self.event_dim), -1)
        return dist.Categorical(logits=logits).to_event(self.event_dim)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}"


@typed
class DiscretisedLogistic(Conditional):
    r"""Grey levels 0, 1/(L-1), ..., 1 under a logistic variable rounded to that grid.

    .. math:: x_d \sim \mathrm{DiscretisedLogistic}(\mu_d(z), s_d(z), L), \quad
        (\mu - \tfrac{1}{2}, \log s) = net(z)

    so that a network that answers 0 is centred on mid-grey. The log-scale is `bounded`.

    Arguments:
        net: network that gives the centres, then the log-scales.
        levels: number L of grey levels.
        event_dim: number of dims of one datum.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> net = nn.Linear(2, 3 * DiscretisedLogistic.width())
        >>> x = DiscretisedLogistic(net)(torch.zeros(5, 2))
        >>> x.batch_shape, x.event_shape
        (torch.Size([5]), torch.Size([3]))
    """

    def __init__(self, net: nn.Module, *, levels: int = 256, event_dim: int = 1) -> None:
        super().__init__(net, event_dim=event_dim)
        self.levels = integer("levels", levels, 2)

    @staticmethod
    @typed
    def width(levels: int = 256) -> int:
        """Return the number of network outputs per data dimension."""
        integer("levels", levels, 2)
        return 2

    @staticmethod
    @typed
    def output_bias(mean: Tensor, levels: int = 256) -> Tensor:
        """Return outputs with the centre at the training mean, and the largest scale it allows.

        A grey level of mean m has a variance of at most m (1 - m), a logistic one of π² s² / 3.
        """
        integer("levels", levels, 2)
        mean = torch.atleast_1d(mean)
        variance = (mean * (1 - mean)).clamp(min=1 / levels**2)
        return torch.cat([mean - 0.5, 0.5 * torch.log(3 * variance / math.pi**2)])

    def forward(self, z: Tensor) -> TorchDistributionMixin:
        loc, log_scale = split(self.net(z), 2, self.event_dim)
        x = distributions.DiscretisedLogistic(loc + 0.5, bounded(log_scale).exp(), self.levels)
        return x.to_event(self.event_dim)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"
