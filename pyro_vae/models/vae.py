"""Gaussian-latent autoencoders. Shapes: B batch, D data, Z latent, * leading sample dims."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ..conditionals import (
    Bernoulli,
    Categorical,
    Gaussian,
    Observation,
    Point,
    SquaredError,
    observation,
    observation_config,
    widen,
)
from ..distributions import NoPrior
from ..errors import ConfigError, DataError
from ..nn import MLP, ConvDecoder, ConvEncoder, OneHot, Shape, as_shape, positive_int, sizes

_serial = itertools.count()


class VAE(nn.Module):
    r"""A deep latent Gaussian model with an amortised diagonal Gaussian posterior.

    .. math:: z \sim N(0, I), \quad x \sim p(x \mid decoder(z)),
        \qquad q(z \mid x) = N(\mu(x), \mathrm{diag}\,\sigma^2(x))

    Args:
        data_dim: shape of one datum, as 784 or (1, 28, 28).
        latent_dim: number Z of latent units.
        hidden: widths of the encoder's hidden layers ("conv": channels); the decoder mirrors them.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        observation: class of `pyro_vae.conditionals`, or a `functools.partial` of one.
        network: "mlp", or "conv" for images (C, H, W).
        encoder: module (*, data) -> distribution of z, event (Z,), in place of the built one.
        decoder: module (*, Z) -> distribution of x, event one datum, in place of the built one.
        data_mean: training mean, shape of one datum; starts the decoder's output there.

    References:
        Auto-encoding variational Bayes (Kingma and Welling, 2013), arXiv:1312.6114;
        Stochastic backpropagation (Rezende et al., 2014), arXiv:1401.4082.
    """

    loc: Tensor

    def __init__(
        self,
        data_dim: Shape,
        latent_dim: int,
        hidden: Sequence[int] = (400,),
        *,
        activation: str = "relu",
        observation: Observation = Bernoulli,
        network: str = "mlp",
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.name = f"vae_{next(_serial)}"
        self.data_shape, self.latent_dim = _shapes(data_dim, latent_dim)
        self.config: dict[str, Any] | None = {
            **_config(data_dim, latent_dim, hidden, activation, network),
            "observation": observation_config(observation),
        }
        if encoder is not None or decoder is not None:
            self.config = None
        if decoder is not None and data_mean is not None:
            raise ConfigError(
                "data_mean starts the built decoder; with your own decoder leave it out"
            )
        shape, size = self.data_shape, self.latent_dim
        nets = (hidden, activation, network, observation)
        if encoder is None:
            encoder = Gaussian(_encoder_net(shape, size * Gaussian.width(), *nets))
        if decoder is None:
            decoder = _decoder(shape, size, *nets, data_mean)
        self.encoder, self.decoder = encoder, decoder
        self.register_buffer("loc", torch.zeros(self.latent_dim), persistent=False)

    def prior(self) -> TorchDistributionMixin:
        """Return p(z) = N(0, I), event (Z,)."""
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)

    def model(self, x: Tensor) -> Tensor:
        """Draw z and observe x, shape (B | data)."""
        pyro.module(self.name, self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())  # (B | Z)
            return pyro.sample("x", self.decoder(z), obs=x)  # (B | data)

    def guide(self, x: Tensor) -> None:
        """Draw z from q(z | x)."""
        pyro.module(self.name, self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))  # (B | Z)

    def example(self, n: int = 2) -> Tensor:
        """Return a batch of n rows of zeros, shape (n | data)."""
        return self.loc.new_zeros(n, *self.data_shape)

    def extra_repr(self) -> str:
        return f"data_dim={_plain(self.data_shape)}, latent_dim={self.latent_dim}"


class Autoencoder(nn.Module):
    r"""The deterministic baseline: its loss under `Trace_ELBO` is the squared error, exactly.

    .. math:: z = encoder(x), \qquad loss(x) = \|x - decoder(z)\|^2

    The guide puts all mass on encoder(x), of log density 0; the model has no prior (`NoPrior`, log
    density 0) and scores x by `SquaredError`. It can encode and reconstruct; it cannot generate and
    has no likelihood: asking for a draw from its prior raises `ProgramError`.

    Args:
        data_dim: shape of one datum, as 784 or (1, 28, 28).
        latent_dim: size Z of the code.
        hidden: widths of the encoder's hidden layers ("conv": channels); the decoder mirrors them.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        network: "mlp", or "conv" for images (C, H, W).
        data_mean: training mean, shape of one datum; starts the decoder's output there.

    References:
        Reducing the dimensionality of data with neural networks (Hinton and Salakhutdinov, 2006).
    """

    origin: Tensor

    def __init__(
        self,
        data_dim: Shape,
        latent_dim: int,
        hidden: Sequence[int] = (400,),
        *,
        activation: str = "relu",
        network: str = "mlp",
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.name = f"autoencoder_{next(_serial)}"
        self.data_shape, self.latent_dim = _shapes(data_dim, latent_dim)
        self.config: dict[str, Any] | None = _config(
            data_dim, latent_dim, hidden, activation, network
        )
        shape, size = self.data_shape, self.latent_dim
        nets = (hidden, activation, network, SquaredError)
        self.encoder = Point(_encoder_net(shape, size, *nets))
        self.decoder = _decoder(shape, size, *nets, data_mean)
        self.register_buffer("origin", torch.zeros(()), persistent=False)

    def prior(self) -> TorchDistributionMixin:
        """Return the absence of a prior, event (Z,)."""
        return NoPrior((self.latent_dim,))

    def model(self, x: Tensor) -> Tensor:
        """Score x, shape (B | data), by its squared error."""
        pyro.module(self.name, self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())  # (B | Z)
            return pyro.sample("x", self.decoder(z), obs=x)  # (B | data)

    def guide(self, x: Tensor) -> None:
        """Set z to encoder(x)."""
        pyro.module(self.name, self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))  # (B | Z)

    def example(self, n: int = 2) -> Tensor:
        """Return a batch of n rows of zeros, shape (n | data)."""
        return self.origin.new_zeros(n, *self.data_shape)

    def extra_repr(self) -> str:
        return f"data_dim={_plain(self.data_shape)}, latent_dim={self.latent_dim}"


class LinearVAE(nn.Module):
    r"""Probabilistic PCA as a variational autoencoder: everything about it is known exactly.

    .. math:: z \sim N(0, I), \quad x \sim N(W z + \mu, \sigma^2 I),
        \qquad q(z \mid x) = N(V (x - \mu), S)

    S is diagonal, or full with `full_covariance`. With M = WᵀW + σ² I the posterior is
    N(M⁻¹Wᵀ(x - μ), σ² M⁻¹), so that a diagonal S loses nothing where the columns of W are
    orthogonal, as they are after `from_data`.

    Args:
        data_dim: number D of data dimensions.
        latent_dim: number Z of latent units.
        full_covariance: give q a full covariance.

    References:
        Probabilistic principal component analysis (Tipping and Bishop, 1999); Don't blame the ELBO!
        A linear VAE perspective on posterior collapse (Lucas et al., 2019), arXiv:1911.02469.
    """

    def __init__(self, data_dim: int, latent_dim: int, *, full_covariance: bool = False) -> None:
        super().__init__()
        self.name = f"linear_vae_{next(_serial)}"
        self.data_dim = positive_int("data_dim", data_dim)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.full_covariance = full_covariance
        self.config: dict[str, Any] | None = {
            "data_dim": self.data_dim,
            "latent_dim": self.latent_dim,
            "full_covariance": bool(full_covariance),
        }
        d, z = self.data_dim, self.latent_dim
        self.weight = nn.Parameter(torch.randn(d, z) / math.sqrt(d))  # W
        self.mean = nn.Parameter(torch.zeros(d))  # μ
        self.log_scale = nn.Parameter(torch.zeros(()))  # log σ
        self.recognition = nn.Parameter(torch.randn(z, d) / math.sqrt(d))  # V
        self.log_diagonal = nn.Parameter(torch.zeros(z))  # S = L Lᵀ: log of the diagonal of L
        if full_covariance:
            self.below_diagonal = nn.Parameter(
                torch.zeros(z, z)
            )  # the strict lower triangle counts

    @classmethod
    def from_data(cls, x: Tensor, latent_dim: int, *, full_covariance: bool = False) -> LinearVAE:
        """Return the maximum-likelihood model of x, shape (N, D); its guide is the exact posterior.

        Raises:
            DataError: if `latent_dim` components leave no variance for σ.
        """
        if x.dim() != 2:
            raise DataError(f"x has shape {tuple(x.shape)}; expected (N, D): flatten the images")
        linear = cls(x.shape[1], latent_dim, full_covariance=full_covariance)
        linear.to(device=x.device, dtype=x.dtype if x.is_floating_point() else None)
        return linear.fit_exact(x)

    @torch.no_grad()
    def fit_exact(self, x: Tensor) -> LinearVAE:
        r"""Set W, μ, σ to maximum likelihood for x, shape (N, D), and the guide to the posterior.

        .. math:: W = U_Z (\Lambda_Z - \sigma^2 I)^{1/2}, \quad
            \sigma^2 = \mathrm{mean}(\lambda_{Z+1}, \ldots, \lambda_D)

        with the eigenvectors U and eigenvalues λ of the covariance of x (over N). The columns of W
        are orthogonal, so a diagonal guide is exact and the ELBO is log p(x) with zero variance.

        Raises:
            DataError: if the components leave no variance for σ, or x is not finite.
        """
        if x.dim() != 2 or x.shape[1] != self.data_dim or len(x) < 2:
            raise DataError(f"x has shape {tuple(x.shape)}; expected (N >= 2, {self.data_dim})")
        if not x.isfinite().all():
            raise DataError("x holds NaN or infinity; expected finite data: drop or impute them")
        x = x.to(torch.float64)  # small eigenvalues are differences of large ones
        mean = x.mean(0)
        values, vectors = torch.linalg.eigh((x - mean).mT @ (x - mean) / len(x))
        kept = self.latent_dim
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        variance = values[kept:].mean() if kept < self.data_dim else values.new_zeros(())
        if not variance > 1e-12 * values[0]:
            raise DataError(
                f"{kept} components explain all the variance of {len(x)} data of {self.data_dim} "
                "dimensions, so σ would be 0; use a smaller latent_dim or more data"
            )
        self.weight.copy_(vectors[:, :kept] * (values[:kept] - variance).sqrt())
        self.mean.copy_(mean)
        self.log_scale.copy_(variance.log() / 2)
        return self.match_posterior()

    @torch.no_grad()
    def match_posterior(self) -> LinearVAE:
        """Set the guide to the exact posterior, a diagonal one to the best: S_jj = σ² / M_jj."""
        precision, variance = self._precision(), (2 * self.log_scale).exp()
        factor = torch.linalg.cholesky(precision)
        self.recognition.copy_(torch.cholesky_solve(self.weight.mT, factor))
        if not self.full_covariance:
            self.log_diagonal.copy_((variance / precision.diagonal()).log() / 2)
            return self
        lower = torch.linalg.cholesky(variance * torch.cholesky_inverse(factor))
        self.log_diagonal.copy_(lower.diagonal().log())
        self.below_diagonal.copy_(lower.tril(-1))
        return self

    def prior(self) -> TorchDistributionMixin:
        """Return p(z) = N(0, I), event (Z,)."""
        loc = torch.zeros_like(self.log_diagonal, requires_grad=False)
        return dist.Normal(loc, torch.ones_like(loc)).to_event(1)

    def decoder(self, z: Tensor) -> TorchDistributionMixin:
        """Return p(x | z) for z of shape (*, Z), batch (*) | event (D,)."""
        loc = z @ self.weight.mT + self.mean
        return dist.Normal(loc, self.log_scale.exp().expand_as(loc)).to_event(1)

    def encoder(self, x: Tensor) -> TorchDistributionMixin:
        """Return q(z | x) for x of shape (*, D), batch (*) | event (Z,)."""
        loc = (x - self.mean) @ self.recognition.mT
        scale = self.log_diagonal.exp()
        if not self.full_covariance:
            return dist.Normal(loc, scale.expand_as(loc)).to_event(1)
        return dist.MultivariateNormal(
            loc, scale_tril=self.below_diagonal.tril(-1) + torch.diag_embed(scale)
        )

    def model(self, x: Tensor) -> Tensor:
        """Draw z and observe x, shape (B | D)."""
        pyro.module(self.name, self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())  # (B | Z)
            return pyro.sample("x", self.decoder(z), obs=x)  # (B | D)

    def guide(self, x: Tensor) -> None:
        """Draw z from q(z | x)."""
        pyro.module(self.name, self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))  # (B | Z)

    def marginal(self) -> TorchDistributionMixin:
        """Return the exact p(x) = N(μ, W Wᵀ + σ² I), event (D,)."""
        variance = (2 * self.log_scale).exp().expand(self.data_dim)
        return dist.LowRankMultivariateNormal(self.mean, self.weight, variance)

    def posterior(self, x: Tensor) -> TorchDistributionMixin:
        """Return the exact p(z | x) for x of shape (*, D), batch (*) | event (Z,)."""
        factor = torch.linalg.cholesky(self._precision())
        loc = torch.cholesky_solve(((x - self.mean) @ self.weight).unsqueeze(-1), factor).squeeze(
            -1
        )
        covariance = (2 * self.log_scale).exp() * torch.cholesky_inverse(factor)
        return dist.MultivariateNormal(loc, scale_tril=torch.linalg.cholesky(covariance))

    def example(self, n: int = 2) -> Tensor:
        """Return a batch of n rows of zeros, shape (n | D)."""
        return self.mean.new_zeros(n, self.data_dim)

    def extra_repr(self) -> str:
        size = f"data_dim={self.data_dim}, latent_dim={self.latent_dim}"
        return f"{size}, full_covariance={self.full_covariance}"

    def _precision(self) -> Tensor:
        """Return M = WᵀW + σ² I, shape (Z, Z): the posterior's precision times σ²."""
        gram = self.weight.mT @ self.weight
        return gram + torch.diag_embed((2 * self.log_scale).exp().expand(self.latent_dim))


def _shapes(data_dim: Shape, latent_dim: int) -> tuple[tuple[int, ...], int]:
    return as_shape("data_dim", data_dim), positive_int("latent_dim", latent_dim)


def _plain(shape: tuple[int, ...]) -> int | list[int]:
    """Return a shape as JSON keeps it: 784 or [1, 28, 28]."""
    return shape[0] if len(shape) == 1 else list(shape)


def _config(
    data_dim: Shape, latent_dim: int, hidden: Sequence[int], activation: str, network: str
) -> dict[str, Any]:
    """Return the constructor arguments that all networks share, for JSON."""
    if network not in ("mlp", "conv"):
        raise ConfigError(f'network={network!r}; expected "mlp" or "conv"')
    return {
        "data_dim": _plain(as_shape("data_dim", data_dim)),
        "latent_dim": int(latent_dim),
        "hidden": list(sizes("hidden", hidden)),
        "activation": activation,
        "network": network,
    }


def _encoder_net(
    data_shape: tuple[int, ...],
    code_dim: int,
    hidden: Sequence[int],
    activation: str,
    network: str,
    spec: Observation,
) -> nn.Module:
    """Return the network x -> code."""
    chosen, options = observation(spec)
    build = MLP if network == "mlp" else ConvEncoder
    if chosen is not Categorical:
        return build(data_shape, code_dim, hidden, activation=activation)
    # A class number is a name, not a quantity.
    one_hot = OneHot(options["num_classes"], len(data_shape))
    in_shape = widen(data_shape, chosen.width(**options))
    return nn.Sequential(one_hot, build(in_shape, code_dim, hidden, activation=activation))


def _decoder(
    data_shape: tuple[int, ...],
    latent_dim: int,
    hidden: Sequence[int],
    activation: str,
    network: str,
    spec: Observation,
    data_mean: Tensor | None,
) -> nn.Module:
    """Return the conditional z -> p(x | z), whose network mirrors the encoder's."""
    chosen, options = observation(spec)
    out_shape = widen(data_shape, chosen.width(**options))
    build = MLP if network == "mlp" else ConvDecoder
    net = build(latent_dim, out_shape, tuple(hidden)[::-1], activation=activation)
    if data_mean is not None:
        if tuple(data_mean.shape) != data_shape:
            raise ConfigError(
                f"data_mean has shape {tuple(data_mean.shape)}; "
                f"expected that of one datum, {data_shape}"
            )
        net.set_output_bias(chosen.output_bias(data_mean, **options))
    return chosen(net, event_dim=len(data_shape), **options)
