"""Closed forms that the library's numbers are held against; linear algebra only, no Pyro.

Probabilistic PCA, :math:`z \\sim N(0, I), x \\sim N(W z + \\mu, \\sigma^2 I)`, is the main one: its
posterior is known, and with it as guide every importance weight equals p(x).
"""

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

LOG_2PI = math.log(2 * math.pi)
EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative


@dataclass(frozen=True)
class PPCA:
    """A probabilistic PCA model, in float64: weight (D, Z), mean (D,), noise scale σ."""

    weight: Tensor
    mean: Tensor
    scale: float

    @classmethod
    def random(
        cls, data_dim: int, latent_dim: int, *, seed: int = 0, orthogonal: bool = False
    ) -> "PPCA":
        """Draw a model; with orthogonal columns its posterior is diagonal."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        weight = normal(data_dim, latent_dim)
        if orthogonal:
            weight = torch.linalg.qr(weight)[0] * (1 + torch.arange(latent_dim, dtype=weight.dtype))
        return cls(weight, normal(data_dim), 0.7)

    def sample(self, num: int, *, seed: int = 1) -> Tensor:
        """Draw data, (N, D)."""
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(num, self.weight.shape[1], generator=generator, dtype=torch.float64)
        noise = torch.randn(num, len(self.mean), generator=generator, dtype=torch.float64)
        return z @ self.weight.T + self.mean + self.scale * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) = log N(x; μ, W Wᵀ + σ² I), (N,)."""
        x = x.double()
        eye = torch.eye(len(self.mean), dtype=torch.float64)
        covariance = self.weight @ self.weight.T + self.scale**2 * eye
        centred = (x - self.mean).T
        quadratic = (centred * torch.linalg.solve(covariance, centred)).sum(0)
        return -0.5 * (quadratic + torch.logdet(covariance) + len(self.mean) * LOG_2PI)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean (N, Z) and covariance (Z, Z) of p(z | x)."""
        eye = torch.eye(self.weight.shape[1], dtype=torch.float64)
        precision = self.weight.T @ self.weight / self.scale**2 + eye
        covariance = torch.linalg.inv(precision)
        return (x.double() - self.mean) @ self.weight @ covariance / self.scale**2, covariance

    def kl(self, x: Tensor) -> Tensor:
        """Return KL(p(z | x) || p(z)) per datum, (N,)."""
        loc, covariance = self.posterior(x)
        trace, log_det = covariance.trace(), torch.logdet(covariance)
        return 0.5 * (loc.square().sum(-1) + trace - len(covariance) - log_det)

    def reconstruction(self, x: Tensor) -> Tensor:
        """Return E log p(x | z) under the posterior per datum, (N,)."""
        return self.log_prob(x) + self.kl(x)


def best_log_prob(x: Tensor, latent_dim: int) -> float:
    """Return the mean log p(x) of the maximum-likelihood pPCA (Tipping & Bishop, 1999, eq. 8)."""
    dims = x.shape[1]
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.double().T, correction=0)).flip(0)
    noise = eigenvalues[latent_dim:].mean()
    log_det = eigenvalues[:latent_dim].log().sum() + (dims - latent_dim) * noise.log()
    return -0.5 * (dims * LOG_2PI + log_det.item() + dims)


def normal_kl(loc: Tensor, scale: Tensor) -> Tensor:
    """Return KL(N(loc, scale²) || N(0, 1)), elementwise."""
    return 0.5 * (loc.square() + scale.square() - 1) - scale.log()


class ExactPPCA(nn.Module):
    """The pPCA program whose guide is the exact posterior.

    Arguments:
        oracle: The model.
        dtype: Precision of the program.
        num_globals: Add a global offset ``w`` with q(w) = Delta(w0): it enters the bound by
            log p(w0) / N exactly, without any noise.
        subsample: Rows of the plate that the program itself picks from its batch; an int draws.
    """

    offset: Tensor

    def __init__(
        self,
        oracle: PPCA,
        dtype: torch.dtype = torch.float64,
        *,
        has_global: bool = False,
        subsample: Tensor | int | None = None,
    ) -> None:
        super().__init__()
        loc, covariance = oracle.posterior(oracle.mean[None])
        gain = covariance @ oracle.weight.T / oracle.scale**2
        tensors = {
            "weight": oracle.weight,
            "mean": oracle.mean,
            "gain": gain,
            "tril": torch.linalg.cholesky(covariance),
            "prior_loc": loc[0],
            "offset": torch.linspace(-0.5, 0.5, len(oracle.mean), dtype=torch.float64),
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.to(dtype))
        self.scale = oracle.scale
        self.shift = nn.Parameter(torch.zeros(len(oracle.mean), dtype=dtype))  # to train something
        self.has_global, self.subsample = has_global, subsample

    def _plate(self, x: Tensor) -> pyro.plate:
        if isinstance(self.subsample, int):
            return pyro.plate("data", len(x), subsample_size=self.subsample)
        return pyro.plate("data", len(x), subsample=self.subsample)

    def model(self, x: Tensor) -> None:
        mean = self.mean + self.shift
        if self.has_global:
            zero = torch.zeros_like(self.offset)
            mean = mean + pyro.sample("w", dist.Normal(zero, zero + 1).to_event(1))
        with self._plate(x) as rows:
            z = pyro.sample(
                "z",
                dist.Normal(
                    torch.zeros_like(self.prior_loc), torch.ones_like(self.prior_loc)
                ).to_event(1),
            )
            loc = z @ self.weight.mT + mean
            pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=x[rows])

    def guide(self, x: Tensor) -> None:
        mean = self.mean + self.shift
        if self.has_global:
            mean = mean + pyro.sample("w", dist.Delta(self.offset).to_event(1))
        with self._plate(x) as rows:
            loc = (x[rows] - mean) @ self.gain.mT
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=self.tril))

    def log_prob_offset(self) -> Tensor:
        """Return log p(w0)."""
        offset = self.offset.double()
        return -0.5 * (offset.square().sum() + len(offset) * LOG_2PI)
