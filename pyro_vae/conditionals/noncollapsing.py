r"""Gaussian posteriors that cannot collapse onto N(0, I): they commit nats by construction.

Shapes: * leading dims, Z latent.
"""

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.arguments import number, positive, typed
from pyro_vae.conditionals.conditional import ReturnsDistribution
from pyro_vae.conditionals.outputs import bounded, split
from pyro_vae.nn import BatchNorm


@typed
class FixedScaleGaussian(ReturnsDistribution):
    r"""A Gaussian whose scale is fixed, so that its KL to N(0, I) has a floor.

    .. math:: q(z \mid x) = N(\mu(x), s^2 I), \qquad
        \mathrm{KL}_j \ge \tfrac{1}{2}(s^2 - 1 - \log s^2)

    Arguments:
        net: network (*, data) -> (*, Z).
        latent_dim: number Z of latent units.
        scale: s, a standard deviation other than 1; the further from it, the higher the floor.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> q = FixedScaleGaussian(nn.Identity(), 2, scale=0.5)
        >>> q(torch.zeros(5, 2)).variance[0], round(q.floor, 3)
        (tensor([0.2500, 0.2500]), 0.318)
    """

    def __init__(self, net: nn.Module, latent_dim: int, *, scale: float = 0.5) -> None:
        super().__init__()
        positive("latent_dim", latent_dim)
        self.net, self.scale = net, number("scale", scale, "(0, inf)")

    @staticmethod
    @typed
    def outputs(latent_dim: int, scale: float = 0.5) -> int:
        """Return the number of network outputs."""
        return positive("latent_dim", latent_dim)

    @property
    def floor(self) -> float:
        """Least KL of a unit to N(0, 1), nats."""
        return (self.scale**2 - 1) / 2 - math.log(self.scale)

    def forward(self, x: Tensor) -> TorchDistributionMixin:
        """Return q(z | x), batch (*) | event (Z,)."""
        loc = self.net(x)
        return dist.Normal(loc, torch.full_like(loc, self.scale)).to_event(1)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


@typed
class DeltaGaussian(ReturnsDistribution):
    r"""A Gaussian that commits at least δ nats per unit to N(0, I), whatever the data.

    .. math:: q(z \mid x) = N(\mu(x), \mathrm{diag}\,\sigma^2(x)), \quad
        \sigma_j(x) \le \sigma_\delta < 1, \quad
        \tfrac{1}{2}(\sigma_\delta^2 - 1 - \log \sigma_\delta^2) = \delta

    Arguments:
        net: network (*, data) -> (*, 2 Z): μ, then the scale's parameter.
        latent_dim: number Z of latent units.
        delta: δ, the committed rate, nats per unit.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Preventing posterior collapse with delta-VAEs (Razavi et al., 2019), arXiv:1901.03416.

    Example:
        >>> q = DeltaGaussian(nn.Linear(6, 4), 2, delta=0.2)(torch.zeros(6))
        >>> bool((q.base_dist.scale < 0.63).all())
        True
    """

    def __init__(self, net: nn.Module, latent_dim: int, *, delta: float = 0.1) -> None:
        super().__init__()
        positive("latent_dim", latent_dim)
        self.net, self.floor = net, number("delta", delta, "(0, inf)")
        self.log_scale = _log_scale_at(self.floor)

    @staticmethod
    @typed
    def outputs(latent_dim: int, delta: float = 0.1) -> int:
        """Return the number of network outputs."""
        return 2 * positive("latent_dim", latent_dim)

    def forward(self, x: Tensor) -> TorchDistributionMixin:
        """Return q(z | x), batch (*) | event (Z,)."""
        loc, raw = split(self.net(x), 2, 1)
        return dist.Normal(loc, bounded(self.log_scale - F.softplus(-raw)).exp()).to_event(1)

    def extra_repr(self) -> str:
        return f"delta={self.floor}"


@typed
class BatchNormGaussian(ReturnsDistribution):
    r"""A Gaussian whose mean is batch-normalised with a fixed gain, so that it must vary over data.

    .. math:: \mu_j(x) = \gamma\, \frac{m_j(x) - \mathrm{E}\,m_j}{\mathrm{sd}\,m_j} + b_j, \qquad
        \frac{1}{B}\sum_n \mathrm{KL}_j(x_n) \ge \tfrac{1}{2}(\gamma^2 + b_j^2)

    The floor holds for each training batch (up to the 1e-5 in the denominator); b is learned.

    Arguments:
        net: network (*, data) -> (*, 2 Z): m, log σ.
        latent_dim: number Z of latent units.
        gain: γ.

    Raises:
        ConfigError: an argument out of its range.

    References:
        A batch normalized inference network keeps the KL vanishing away (Zhu et al., 2020),
        arXiv:2004.12585.

    Example:
        >>> q = BatchNormGaussian(nn.Linear(6, 4), 2, gain=0.5)(torch.randn(100, 6))
        >>> q.mean.std(0, correction=0)
        tensor([0.5000, 0.5000], grad_fn=<StdBackward0>)
    """

    def __init__(self, net: nn.Module, latent_dim: int, *, gain: float = 0.5) -> None:
        super().__init__()
        self.net, self.gain = net, number("gain", gain, "(0, inf)")
        self.norm = BatchNorm(positive("latent_dim", latent_dim), affine=False)
        self.bias = nn.Parameter(torch.zeros(latent_dim))

    @staticmethod
    @typed
    def outputs(latent_dim: int, gain: float = 0.5) -> int:
        """Return the number of network outputs."""
        return 2 * positive("latent_dim", latent_dim)

    @property
    def floor(self) -> float:
        """Least mean KL of a unit to N(0, 1) over a training batch, nats."""
        return self.gain**2 / 2

    def forward(self, x: Tensor) -> TorchDistributionMixin:
        """Return q(z | x), batch (*) | event (Z,)."""
        mean, log_scale = split(self.net(x), 2, 1)
        normal = self.norm(mean.reshape(-1, mean.shape[-1])).reshape(mean.shape)
        loc = self.gain * normal + self.bias
        return dist.Normal(loc, bounded(log_scale).exp()).to_event(1)

    def extra_repr(self) -> str:
        return f"gain={self.gain}"


def _log_scale_at(delta: float) -> float:
    """Return log σ < 0 at which ½(σ² - 1) - log σ = δ: bisection, down from σ = 1."""
    low, high = -(delta + 0.5), 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if (math.exp(2 * middle) - 1) / 2 - middle > delta:
            low = middle
        else:
            high = middle
    return low
