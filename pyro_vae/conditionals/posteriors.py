"""Gaussian posteriors with correlated units, and the choice of q(z | x).

Shapes: * leading dims, Z latent, R rank.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import positive, typed
from pyro_vae.conditionals.conditional import ReturnsDistribution
from pyro_vae.conditionals.continuous import Gaussian
from pyro_vae.conditionals.flows import InverseAutoregressiveFlow, PlanarFlow, SplineFlow
from pyro_vae.conditionals.noise_fed import NoiseFed
from pyro_vae.conditionals.noncollapsing import (
    BatchNormGaussian,
    DeltaGaussian,
    FixedScaleGaussian,
)
from pyro_vae.conditionals.outputs import bounded
from pyro_vae.conditionals.registry import choose
from pyro_vae.errors import ConfigError

Posterior = Callable[..., nn.Module] | Mapping[str, Any]


@typed
class LowRankGaussian(ReturnsDistribution):
    r"""A Gaussian whose covariance is a diagonal plus one of rank R.

    .. math:: q(z \mid x) = N\big(\mu(x),\; \mathrm{diag}\,\sigma^2(x) + F(x) F(x)^\top\big)

    Arguments:
        net: network (*, data) -> (*, outputs): μ, log σ, F by rows.
        latent_dim: number Z of latent units.
        rank: R.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> q = LowRankGaussian(nn.Linear(6, LowRankGaussian.outputs(3, rank=1)), 3, rank=1)
        >>> q(torch.zeros(5, 6)).covariance_matrix.shape
        torch.Size([5, 3, 3])
    """

    def __init__(self, net: nn.Module, latent_dim: int, *, rank: int = 1) -> None:
        super().__init__()
        self.net, self.rank = net, positive("rank", rank)
        self.latent_dim = positive("latent_dim", latent_dim)

    @staticmethod
    @typed
    def outputs(latent_dim: int, rank: int = 1) -> int:
        """Return the number of network outputs."""
        return positive("latent_dim", latent_dim) * (2 + positive("rank", rank))

    def forward(self, x: Tensor) -> TorchDistributionMixin:
        """Return q(z | x), batch (*) | event (Z,)."""
        size = self.latent_dim
        loc, log_scale, factor = self.net(x).split([size, size, size * self.rank], -1)
        factor = factor.unflatten(-1, (size, self.rank))
        return dist.LowRankMultivariateNormal(loc, factor, (2 * bounded(log_scale)).exp())

    def extra_repr(self) -> str:
        return f"rank={self.rank}"


@typed
class FullGaussian(ReturnsDistribution):
    r"""A Gaussian with any covariance, by its Cholesky factor.

    .. math:: q(z \mid x) = N\big(\mu(x),\; L(x) L(x)^\top\big), \quad \log L_{jj} = s_j(x)

    Arguments:
        net: network (*, data) -> (*, outputs): μ, s, L below its diagonal by rows.
        latent_dim: number Z of latent units.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> q = FullGaussian(nn.Linear(6, FullGaussian.outputs(3)), 3)
        >>> q(torch.zeros(5, 6)).covariance_matrix.shape
        torch.Size([5, 3, 3])
    """

    places: Tensor

    def __init__(self, net: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.net, self.latent_dim = net, positive("latent_dim", latent_dim)
        rows, columns = torch.tril_indices(latent_dim, latent_dim, offset=-1)
        self.register_buffer("places", rows * latent_dim + columns, persistent=False)

    @staticmethod
    @typed
    def outputs(latent_dim: int) -> int:
        """Return the number of network outputs."""
        size = positive("latent_dim", latent_dim)
        return 2 * size + size * (size - 1) // 2

    def forward(self, x: Tensor) -> TorchDistributionMixin:
        """Return q(z | x), batch (*) | event (Z,)."""
        size = self.latent_dim
        loc, log_scale, below = self.net(x).split([size, size, len(self.places)], -1)
        empty = torch.zeros_like(loc).unsqueeze(-1).expand(*loc.shape, size).flatten(-2)
        lower = empty.index_copy(-1, self.places, below).unflatten(-1, (size, size))
        scale_tril = lower + torch.diag_embed(bounded(log_scale).exp())
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)


POSTERIORS: dict[str, type[Any]] = {
    c.__name__: c
    for c in (
        Gaussian,
        LowRankGaussian,
        FullGaussian,
        PlanarFlow,
        InverseAutoregressiveFlow,
        SplineFlow,
        BatchNormGaussian,
        DeltaGaussian,
        FixedScaleGaussian,
        NoiseFed,
    )
}


def posterior_of(spec: Posterior, latent_dim: int, build: Callable[[int], nn.Module]) -> nn.Module:
    """Return the encoder that a program asks for.

    Arguments:
        spec: a class of this package, a partial of one, or its config.
        latent_dim: number Z of latent units.
        build: makes the network with a number of outputs.

    Raises:
        ConfigError: for an unknown posterior, or options that do not fit.
    """
    chosen, options = choose("posterior", POSTERIORS, spec)
    try:
        if chosen is Gaussian:
            return Gaussian(build(latent_dim * Gaussian.width()), **options)
        encoder: nn.Module = chosen(
            build(chosen.outputs(latent_dim, **options)), latent_dim, **options
        )
    except TypeError as error:
        raise ConfigError(f"posterior {chosen.__name__} with options {options}: {error}") from error
    return encoder
