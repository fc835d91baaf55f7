"""The linear VAE, known in closed form. Shapes: B batch, D data, Z latent, * sample dims."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import positive, typed
from pyro_vae.errors import DataError
from pyro_vae.models.zoo_program import OneLatent


@typed
class LinearVAE(OneLatent):
    r"""Probabilistic PCA as a variational autoencoder: everything about it is known exactly.

    .. math:: z \sim N(0, I), \quad x \sim N(W z + \mu, \sigma^2 I),
        \qquad q(z \mid x) = N(V (x - \mu), S)

    S is diagonal, or full with `full_covariance`. With M = WᵀW + σ² I the posterior is
    N(M⁻¹Wᵀ(x - μ), σ² M⁻¹), so that a diagonal S loses nothing where the columns of W are
    orthogonal, as they are after `from_data`.

    Arguments:
        data_dim: number D of data dimensions.
        latent_dim: number Z of latent units.
        full_covariance: give q a full covariance.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Probabilistic principal component analysis (Tipping and Bishop, 1999); Don't blame the ELBO!
        A linear VAE perspective on posterior collapse (Lucas et al., 2019), arXiv:1911.02469.

    Example:
        >>> x = torch.randn(100, 5, dtype=torch.float64)
        >>> linear = LinearVAE.from_data(x, latent_dim=2)
        >>> q, prior = linear.encoder(x), linear.prior()
        >>> z = q.sample()
        >>> weight = prior.log_prob(z) + linear.decoder(z).log_prob(x) - q.log_prob(z)
        >>> torch.allclose(weight, linear.marginal().log_prob(x))
        True
    """

    kind = "linear_vae"

    def __init__(self, data_dim: int, latent_dim: int, *, full_covariance: bool = False) -> None:
        super().__init__(positive("data_dim", data_dim))
        (self.data_dim,) = self.data_shape
        self.latent_dim = positive("latent_dim", latent_dim)
        self.full_covariance = full_covariance
        self.config = {
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
    @typed
    def from_data(cls, x: Tensor, latent_dim: int, *, full_covariance: bool = False) -> "LinearVAE":
        """Return the maximum-likelihood model of x, shape (N, D); its guide is the exact posterior.

        Raises:
            DataError: if `latent_dim` components leave no variance for σ.
        """
        if x.dim() != 2:
            raise DataError(f"x has shape {tuple(x.shape)}; expected (N, D): flatten the images")
        linear = cls(x.shape[1], latent_dim, full_covariance=full_covariance)
        linear.to(device=x.device, dtype=x.dtype if x.is_floating_point() else None)
        return linear.fit_exact(x)

    @typed
    @torch.no_grad()
    def fit_exact(self, x: Tensor) -> "LinearVAE":
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
                f"{len(x)} data of {self.data_dim} dimensions have no variance beyond that of "
                f"{kept} components, so σ would be 0; use a smaller latent_dim or more data"
            )
        self.weight.copy_(vectors[:, :kept] * (values[:kept] - variance).sqrt())
        self.mean.copy_(mean)
        self.log_scale.copy_(variance.log() / 2)
        return self.match_posterior()

    @torch.no_grad()
    def match_posterior(self) -> "LinearVAE":
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

    def marginal(self) -> TorchDistributionMixin:
        """Return the exact p(x) = N(μ, W Wᵀ + σ² I), event (D,)."""
        variance = (2 * self.log_scale).exp().expand(self.data_dim)
        return dist.LowRankMultivariateNormal(self.mean, self.weight, variance)

    @typed
    def posterior(self, x: Tensor) -> TorchDistributionMixin:
        """Return the exact p(z | x) for x of shape (*, D), batch (*) | event (Z,)."""
        if x.shape[-1:] != self.mean.shape:
            raise DataError(f"x: got shape {tuple(x.shape)}, expected (*, {self.data_dim})")
        factor = torch.linalg.cholesky(self._precision())
        loc = torch.cholesky_solve(((x - self.mean) @ self.weight).unsqueeze(-1), factor).squeeze(
            -1
        )
        covariance = (2 * self.log_scale).exp() * torch.cholesky_inverse(factor)
        return dist.MultivariateNormal(loc, scale_tril=torch.linalg.cholesky(covariance))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, full_covariance={self.full_covariance}"

    def _precision(self) -> Tensor:
        """Return M = WᵀW + σ² I, shape (Z, Z): the posterior's precision times σ²."""
        gram = self.weight.mT @ self.weight
        return gram + torch.diag_embed((2 * self.log_scale).exp().expand(self.latent_dim))
