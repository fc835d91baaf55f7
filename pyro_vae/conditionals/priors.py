"""Priors p(z), each a module that is called with the encoder. Shapes: Z latent, K components."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import number, positive, typed
from pyro_vae.conditionals.ar1_prior import AR1Prior
from pyro_vae.conditionals.flows import AutoregressiveFlow
from pyro_vae.conditionals.outputs import bounded
from pyro_vae.conditionals.registry import choice_config, choose
from pyro_vae.distributions import Mixture
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.nn import OneHot, sizes
from pyro_vae.torch_private import BatchNorm

Prior = Callable[..., nn.Module] | Mapping[str, Any] | nn.Module


@typed
class StandardNormal(nn.Module):
    """The prior N(0, I).

    Arguments:
        data_shape: shape of one datum (no part of this prior).
        latent_dim: number Z of latent units.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> StandardNormal((784,), 2)().event_shape
        torch.Size([2])
    """

    loc: Tensor

    def __init__(self, data_shape: Sequence[int], latent_dim: int) -> None:
        super().__init__()
        self.register_buffer(
            "loc", torch.zeros(positive("latent_dim", latent_dim)), persistent=False
        )

    def forward(self, encoder: nn.Module | None = None) -> TorchDistributionMixin:
        """Return p(z), event (Z,)."""
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)


@typed
class GaussianMixture(nn.Module):
    r"""A learned mixture of diagonal Gaussians.

    .. math:: p(z) = \sum_k \pi_k \, N(z;\, \mu_k, \mathrm{diag}\,\sigma_k^2)

    It starts with centres drawn from N(0, I), scales 1 and equal weights.

    Arguments:
        data_shape: shape of one datum (no part of this prior).
        latent_dim: number Z of latent units.
        num_components: K.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> GaussianMixture((784,), 2, num_components=5)().sample((3,)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self, data_shape: Sequence[int], latent_dim: int, *, num_components: int = 10
    ) -> None:
        super().__init__()
        size = positive("num_components", num_components)
        self.logits = nn.Parameter(torch.zeros(size))
        self.loc = nn.Parameter(torch.randn(size, positive("latent_dim", latent_dim)))
        self.log_scale = nn.Parameter(torch.zeros(size, latent_dim))

    def forward(self, encoder: nn.Module | None = None) -> TorchDistributionMixin:
        """Return p(z), event (Z,)."""
        components = dist.Normal(self.loc, bounded(self.log_scale).exp()).to_event(1)
        return Mixture(self.logits, components)


@typed
class VampPrior(nn.Module):
    r"""The variational mixture of posteriors: the aggregate posterior of K learned pseudo-inputs.

    .. math:: p(z) = \frac{1}{K} \sum_k q(z \mid u_k)

    The encoder sees the pseudo-inputs anew in each step, and both learn from the prior.

    Arguments:
        data_shape: shape of one datum.
        latent_dim: number Z of latent units (the encoder knows it).
        num_components: K, number of pseudo-inputs.
        unit_interval: clip pseudo-inputs to [0, 1], for pixels; else they are any real numbers.

    Raises:
        ConfigError: an argument out of its range.

    References:
        VAE with a VampPrior (Tomczak and Welling, 2018), arXiv:1705.07120.

    Example:
        >>> VampPrior((6,), 2, num_components=3).pseudo_inputs().shape
        torch.Size([3, 6])
    """

    equal: Tensor

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        *,
        num_components: int = 500,
        unit_interval: bool = True,
    ) -> None:
        super().__init__()
        shape = (positive("num_components", num_components), *sizes("data_shape", data_shape))
        positive("latent_dim", latent_dim)
        self.unit_interval = bool(unit_interval)
        self.inputs = nn.Parameter(torch.rand(shape) if unit_interval else torch.randn(shape))
        self.register_buffer("equal", torch.zeros(num_components), persistent=False)

    @typed
    @torch.no_grad()
    def start_at(self, rows: Tensor, *, noise: float = 0.01) -> None:
        """Start the pseudo-inputs at data, (K | data), plus Gaussian noise (Tomczak, 2018).

        Raises:
            DataError: for another number or shape of rows.
        """
        if rows.shape != self.inputs.shape:
            raise DataError(
                f"rows have shape {tuple(rows.shape)}; expected one datum per pseudo-input, "
                f"{tuple(self.inputs.shape)}: pass that many rows of the training data"
            )
        noise = number("noise", noise, "[0, inf)")
        self.inputs.copy_(rows + noise * torch.randn_like(self.inputs))

    def pseudo_inputs(self) -> Tensor:
        """Return u, shape (K | data)."""
        return self.inputs.clamp(0, 1) if self.unit_interval else self.inputs

    def forward(self, encoder: nn.Module) -> TorchDistributionMixin:
        """Return p(z), event (Z,)."""
        return Mixture(self.equal, encoder(self.pseudo_inputs()))

    def extra_repr(self) -> str:
        return f"num_components={len(self.inputs)}, unit_interval={self.unit_interval}"


@typed
class FlowPrior(nn.Module):
    r"""A prior with the density of a normalising flow: autoregressive from z to white noise.

    .. math:: \log p(z) = \log N(f(z); 0, I) + \log |\det \partial f / \partial z|

    Scoring is one pass of each flow; drawing inverts them, Z passes each ("affine" is a masked
    autoregressive flow). It starts as N(0, I).

    Arguments:
        data_shape: shape of one datum (no part of this prior).
        latent_dim: number Z of latent units, at least 2.
        num_flows: autoregressive maps, in alternating order of the units.
        transform: "affine" or "spline" (rational quadratic, on [-5, 5]).
        hidden: widths of each map's masked network, at least Z.
        num_bins: bins of a spline.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Masked autoregressive flow for density estimation (Papamakarios et al., 2017),
        arXiv:1705.07057; Neural spline flows (Durkan et al., 2019), arXiv:1906.04032;
        Variational lossy autoencoder (Chen et al., 2017), arXiv:1611.02731.

    Example:
        >>> FlowPrior((784,), 2, hidden=(8,))().log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    loc: Tensor

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int,
        *,
        num_flows: int = 2,
        transform: str = "affine",
        hidden: Sequence[int] = (320,),
        num_bins: int = 8,
    ) -> None:
        super().__init__()
        self.flows = nn.ModuleList(
            AutoregressiveFlow(
                transform, latent_dim, hidden, num_bins=num_bins, backwards=bool(i % 2)
            )
            for i in range(positive("num_flows", num_flows))
        )
        self.register_buffer(
            "loc", torch.zeros(positive("latent_dim", latent_dim)), persistent=False
        )

    def forward(self, encoder: nn.Module | None = None) -> TorchDistributionMixin:
        """Return p(z), event (Z,)."""
        noise = dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)
        # Made anew: a transform keeps its last values, which must not outlive a step.
        return dist.TransformedDistribution(noise, [flow(None).inv for flow in self.flows])


PRIORS: dict[str, type[Any]] = {
    c.__name__: c for c in (StandardNormal, GaussianMixture, VampPrior, FlowPrior, AR1Prior)
}


def prior_config(spec: Prior) -> dict[str, Any] | None:
    """Return a prior's choice for JSON; None for a module of the user's own."""
    return None if isinstance(spec, nn.Module) else choice_config("prior", PRIORS, spec)


def prior_of(
    spec: Prior, data_shape: tuple[int, ...], latent_dim: int, encoder: nn.Module
) -> nn.Module:
    """Return the prior that a program asks for.

    Raises:
        ConfigError: for options that do not fit, or an encoder that a VampPrior cannot use.
    """
    if isinstance(spec, nn.Module):
        return spec
    chosen, options = choose("prior", PRIORS, spec)
    if chosen is VampPrior:
        _check_encoder(encoder)
    try:
        prior: nn.Module = chosen(data_shape, latent_dim, **options)
    except TypeError as error:
        raise ConfigError(f"prior {chosen.__name__} with options {options}: {error}") from error
    return prior


def _check_encoder(encoder: nn.Module) -> None:
    if any(isinstance(module, OneHot) for module in encoder.modules()):
        raise ConfigError(
            "prior: a VampPrior learns pseudo-inputs by gradient, which class numbers do not have; "
            "use GaussianMixture or FlowPrior with categories"
        )
    if any(isinstance(module, BatchNorm) for module in encoder.modules()):
        raise ConfigError(
            "prior: a VampPrior sends its pseudo-inputs through the encoder, whose batch norm "
            "would mix their moments with those of the data; use an encoder without it"
        )
    if getattr(encoder, "density_costs_a_solve", False):
        raise ConfigError(
            "prior: a VampPrior scores each z under the posterior of every pseudo-input, and "
            f"{type(encoder).__name__} would have to be inverted at each; use a Gaussian "
            "posterior, or GaussianMixture or FlowPrior"
        )
