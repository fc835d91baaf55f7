"""Every objective of the library, one row each: the batteries read this table."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import programs
import torch
from torch import Tensor, nn

import pyro_vae as pv


def mean(log_weight: Tensor) -> Tensor:
    """Return the ELBO of each datum from K log weights, (K, B) to (B,)."""
    return log_weight.mean(0)


def log_mean(log_weight: Tensor) -> Tensor:
    """Return the importance-weighted bound of each datum from K log weights, (K, B) to (B,)."""
    return log_weight.logsumexp(0) - math.log(len(log_weight))


def renyi(alpha: float) -> Callable[[Tensor], Tensor]:
    """Return the bound of order alpha as a function of K log weights."""
    return lambda log_weight: log_mean((1 - alpha) * log_weight) / (1 - alpha)


class AnySize(nn.Module):
    """A critic of codes, of codes of data, or of data, of whatever size they are."""

    def __init__(self) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.tensor([0.3, -0.2, 0.4]))

    def see(self, x: Tensor) -> Tensor:
        """Return features of data, (B, D)."""
        return torch.tanh(self.gains[0] * x.reshape(len(x), -1) + self.gains[1])

    def judge(self, features: Tensor) -> Tensor:
        """Return a number for each row of features."""
        return self.gains[2] * features.sum(-1)

    def forward(self, z: Tensor, x: Tensor | None = None) -> Tensor:
        """Return a number for each row."""
        told = self.judge(self.see(z))
        return told if x is None else told * (1 + x.reshape(len(x), -1).sum(-1))


class Scores(nn.Module):
    """A critic of data of four numbers, which are no images."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.judge = nn.Sequential(nn.Linear(4, 3), nn.Tanh()), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a number for each row."""
        return self.judge(self.see(x)).squeeze(-1)


@dataclass(frozen=True)
class Row:
    """One objective.

    Arguments:
        build: Makes it, of K particles and S draws of the globals where it has these numbers.
        inner: Its bound of each datum as a function of the K log weights; None: it is no such.
        is_gradient: Whether its gradient at given noise is that of ``inner``.
        latents: What it trains: "paths" (a reparametrised sampler), "bits" (Bernoulli), "any",
            "codes" (a quantised latent) or "labels" (summed out where they lack).
        has_globals: Whether it takes global latents.
        sticks: Whether it leaves out the score of log q.
    """

    build: Callable[[int, int], Any]
    inner: Callable[[Tensor], Tensor] | None = None
    is_gradient: bool = True
    latents: str = "paths"
    has_globals: bool = True
    sticks: bool = False


TABLE = {
    "ELBO": Row(pv.ELBO, mean, latents="any"),
    "analytic": Row(pv.AnalyticELBO),
    "IWAE": Row(pv.IWAE, log_mean),
    "MIWAE": Row(pv.MIWAE, log_mean),
    "Rényi 0.5": Row(lambda k, s: pv.Renyi(0.5, k, s), renyi(0.5)),
    "Rényi -1": Row(lambda k, s: pv.Renyi(-1.0, k, s), renyi(-1.0)),
    "Rényi 1": Row(lambda k, s: pv.Renyi(1, k, s), mean),
    "STL": Row(pv.STL, mean, is_gradient=False, sticks=True),
    "DReG": Row(pv.DReG, log_mean, is_gradient=False, sticks=True),
    "NVIL": Row(lambda k, s: pv.NVIL(num_particles=k, num_global_samples=s), mean, latents="any"),
    "RLOO": Row(lambda k, s: pv.RLOO(max(k, 2), s), mean, latents="any"),
    "VIMCO": Row(lambda k, s: pv.VIMCO(max(k, 2), s), log_mean, latents="any"),
    "DisARM": Row(lambda k, s: pv.DisARM(), latents="bits"),
    "wake-sleep": Row(
        lambda k, s: pv.ReweightedWakeSleep(k, sleep=0.5),
        log_mean,
        is_gradient=False,
        latents="any",
        has_globals=False,
    ),
    "free bits": Row(lambda k, s: pv.FreeBits(0.1, num_particles=k)),
    "target KL": Row(lambda k, s: pv.TargetKL(1.0, num_particles=k)),
    "semi-supervised": Row(lambda k, s: pv.SemiSupervised(1.0), latents="labels"),
    "quantised": Row(lambda k, s: pv.VQ(num_particles=k), latents="codes"),
    "lagging": Row(lambda k, s: pv.Lagging(programs.binary(20), inner=2)),
    "AVB": Row(lambda k, s: pv.AVB(AnySize(), moments=3), has_globals=False),
    "AVB prior": Row(lambda k, s: pv.AVB(AnySize(), contrast="prior"), has_globals=False),
    "AAE": Row(lambda k, s: pv.AAE(AnySize()), has_globals=False),
    "WAE": Row(lambda k, s: pv.WAE(), has_globals=False),
    "VAE/GAN": Row(lambda k, s: pv.VAEGAN(AnySize(), gamma=0.5), has_globals=False),
    "latent autoencoder": Row(
        lambda k, s: pv.LatentAutoencoder(AnySize(), kl_weight=0.1), has_globals=False
    ),
    "HMC-refined": Row(lambda k, s: pv.HMCRefined(2, num_particles=k), has_globals=False),
}


def of_log_weights() -> dict[str, Row]:
    """Return the objectives whose loss is a function of the K log weights of a datum."""
    return {name: row for name, row in TABLE.items() if row.inner is not None}
