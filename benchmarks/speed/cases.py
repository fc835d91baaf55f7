"""The programs of the table: written by hand, as Pyro programs, and as numbers for the peers."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import pyro_vae as pv

BATCHES = 8
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def mlp(*widths: int, activation: str = "relu") -> nn.Sequential:
    """Return a multi-layer perceptron of the given widths."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


class VAEByHand(nn.Module):
    """A Gaussian-Bernoulli VAE in plain PyTorch; constants of the two Gaussians cancel."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Tensor) -> Tensor:
        """Return the negative ELBO per datum, one draw of z."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        noise = torch.randn_like(loc)
        z = loc + log_scale.exp() * noise
        kl = (0.5 * (z.square() - noise.square()) - log_scale).sum()
        cost = binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        return (cost + kl) / len(x)


class IWAEByHand(VAEByHand):
    """The importance-weighted bound: encoder once, K particles in one pass."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, num_particles: int) -> None:
        super().__init__(encoder, decoder)
        self.num_particles = num_particles

    def log_weights(self, x: Tensor) -> Tensor:
        """Return log p(x, z) - log q(z | x) for K draws, shape (K, B)."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        noise = torch.randn(self.num_particles, *loc.shape, dtype=loc.dtype, device=loc.device)
        z = loc + log_scale.exp() * noise
        kl = (0.5 * (z.square() - noise.square()) - log_scale).sum(-1)
        target = x.expand(self.num_particles, *x.shape)
        cost = binary_cross_entropy_with_logits(self.decoder(z), target, reduction="none").sum(-1)
        return -cost - kl

    def forward(self, x: Tensor) -> Tensor:
        """Return the negative bound per datum."""
        return math.log(self.num_particles) - self.log_weights(x).logsumexp(0).mean()


class Layered(nn.Module):
    """Networks of a ladder of Gaussians, z_1 nearest to the data; inference goes bottom-up."""

    def __init__(self, data_dim: int, latents: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        widths = (data_dim, *latents)
        pairs = list(zip(widths, latents, strict=False))
        self.latents = latents
        self.up = nn.ModuleList(mlp(a, hidden, 2 * b, activation="tanh") for a, b in pairs)
        self.down = nn.ModuleList(
            mlp(b, hidden, a if level == 0 else 2 * a, activation="tanh")
            for level, (a, b) in enumerate(pairs)
        )


class LayeredByHand(Layered):
    """The ladder in plain PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the negative ELBO per datum, one draw of each latent."""
        values, kl, below = [], x.new_zeros(()), x
        for net in self.up:
            loc, log_scale = net(below).chunk(2, -1)
            noise = torch.randn_like(loc)
            below = loc + log_scale.exp() * noise
            values.append(below)
            kl = kl - (0.5 * noise.square() + log_scale).sum()
        kl = kl + 0.5 * values[-1].square().sum()
        for net, above, value in zip(self.down[1:], values[1:], values, strict=False):
            loc, log_scale = net(above).chunk(2, -1)
            kl = kl + (0.5 * ((value - loc) / log_scale.exp()).square() + log_scale).sum()
        cost = binary_cross_entropy_with_logits(self.down[0](values[0]), x, reduction="sum")
        return (cost + kl) / len(x)


class LayeredProgram(Layered):
    """The ladder as a plain Pyro program."""

    def model(self, x: Tensor) -> None:
        """Draw the latents from the top down and observe x."""
        pyro.module("layered", self)
        top = x.new_zeros(self.latents[-1])
        with pyro.plate("data", len(x)):
            prior = dist.Normal(top, torch.ones_like(top)).to_event(1)
            z = pyro.sample(f"z{len(self.latents)}", prior)
            for level in range(len(self.latents) - 1, 0, -1):
                z = pyro.sample(f"z{level}", gaussian(self.down[level](z)))
            pyro.sample("x", dist.Bernoulli(logits=self.down[0](z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw the latents from the bottom up."""
        pyro.module("layered", self)
        z = x
        with pyro.plate("data", len(x)):
            for level, net in enumerate(self.up, start=1):
                z = pyro.sample(f"z{level}", gaussian(net(z)))


def gaussian(outputs: Tensor) -> Any:
    """Return a diagonal Gaussian from loc and log-scale."""
    loc, log_scale = outputs.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


@dataclass(frozen=True)
class Case:
    """One program, written for each competitor, with equal weights.

    Arguments:
        about: The program in words.
        batch: B.
        shape: One datum.
        by_hand: Builds the module whose forward is the loss.
        program: Builds the Pyro program.
        objective: Builds this library's objective.
        stock: Builds each of Pyro's own losses that compute it, by name; the first is the usual.
        peer: What a peer needs to write it anew (``kind`` and sizes).
    """

    about: str
    batch: int
    shape: tuple[int, ...]
    by_hand: Callable[[], Any]
    program: Callable[[], Any]
    objective: Callable[[], Any]
    stock: dict[str, Callable[[], pyro.infer.ELBO]]
    peer: dict[str, Any]

    def data(self, batches: int = BATCHES, device: str = "cpu") -> list[Tensor]:
        """Return made-up binary batches: the cost of a step does not depend on the pixels."""
        torch.manual_seed(0)
        drawn = torch.bernoulli(torch.full((batches, self.batch, *self.shape), 0.3))
        return list(drawn.to(device))

    def twins(self, device: str = "cpu") -> tuple[Any, Any]:
        """Return the hand-written module and the program, of equal weights."""
        torch.manual_seed(1)
        by_hand, program = self.by_hand().to(device), self.program()
        if isinstance(program, nn.Module):
            program.to(device)
        with torch.no_grad():
            for mine, its in zip(by_hand.parameters(), program.parameters(), strict=True):
                assert mine.shape == its.shape
                mine.copy_(its)
        return by_hand, program


def _jit_elbo() -> pyro.infer.ELBO:
    return pyro.infer.JitTrace_ELBO(ignore_jit_warnings=True)


ELBOS: dict[str, Callable[[], pyro.infer.ELBO]] = {
    "Pyro SVI(Trace_ELBO)": pyro.infer.Trace_ELBO,
    "Pyro SVI(JitTrace_ELBO)": _jit_elbo,
}


def vae(data: int, hidden: int, latent: int, batch: int, depth: int = 1) -> Case:
    """Return a VAE with hidden layers of one width on either side."""
    widths = (hidden,) * depth
    return Case(
        about=f"VAE {data}-{'-'.join(map(str, widths))}-{latent}, batch {batch}",
        batch=batch,
        shape=(data,),
        by_hand=lambda: VAEByHand(mlp(data, *widths, 2 * latent), mlp(latent, *widths, data)),
        program=lambda: pv.models.VAE(data, latent, hidden=widths),
        objective=pv.ELBO,
        stock=ELBOS,
        peer={"kind": "vae", "activation": "relu", "latent": latent, "shape": [data]},
    )


def conv(side: int, channels: tuple[int, int], latent: int, batch: int) -> Case:
    """Return a convolutional VAE on images whose side is a multiple of four."""
    a, b = channels
    small = side // 4

    def by_hand() -> nn.Module:
        encoder = nn.Sequential(
            nn.Conv2d(1, a, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(a, b, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(b * small**2, 2 * latent),
        )
        decoder = nn.Sequential(
            nn.Linear(latent, b * small**2),
            nn.Unflatten(1, (b, small, small)),
            nn.ReLU(),
            nn.ConvTranspose2d(b, a, 3, 2, 1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(a, 1, 3, 2, 1, output_padding=1),
        )
        return VAEByHand(encoder, decoder)

    return Case(
        about=f"convolutional VAE on 1x{side}x{side}, channels {a}-{b}, Z = {latent}, "
        f"batch {batch}",
        batch=batch,
        shape=(1, side, side),
        by_hand=by_hand,
        program=lambda: pv.models.VAE((1, side, side), latent, hidden=channels, network="conv"),
        objective=pv.ELBO,
        stock=ELBOS,
        peer={
            "kind": "conv",
            "latent": latent,
            "shape": [1, side, side],
            "small": small,
            "channels": [a, b],
        },
    )


def layered(data: int, latents: tuple[int, ...], hidden: int, batch: int) -> Case:
    """Return a ladder of Gaussians."""
    sizes = (data, latents, hidden)
    return Case(
        about=f"{len(latents)}-level Gaussian ladder {data}-{latents}, hidden {hidden}, "
        f"batch {batch}",
        batch=batch,
        shape=(data,),
        by_hand=lambda: LayeredByHand(*sizes),
        program=lambda: LayeredProgram(*sizes),
        objective=pv.ELBO,
        stock=ELBOS,
        peer={"kind": "layered", "levels": len(latents), "latent": latents[-1], "shape": [data]},
    )


def iwae(data: int, hidden: int, latent: int, num_particles: int, batch: int) -> Case:
    """Return an IWAE with two hidden layers on either side."""

    def by_hand() -> nn.Module:
        encoder = mlp(data, hidden, hidden, 2 * latent, activation="tanh")
        decoder = mlp(latent, hidden, hidden, data, activation="tanh")
        return IWAEByHand(encoder, decoder, num_particles)

    def renyi() -> pyro.infer.ELBO:
        return pyro.infer.RenyiELBO(
            alpha=0, num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1
        )

    return Case(
        about=f"IWAE K = {num_particles}, {data}-{hidden}-{hidden}-{latent}, batch {batch}",
        batch=batch,
        shape=(data,),
        by_hand=by_hand,
        program=lambda: pv.models.VAE(data, latent, hidden=(hidden, hidden), activation="tanh"),
        objective=lambda: pv.IWAE(num_particles),
        stock={"Pyro SVI(RenyiELBO, vectorised)": renyi},
        peer={
            "kind": "iwae",
            "activation": "tanh",
            "latent": latent,
            "shape": [data],
            "num_particles": num_particles,
        },
    )


CASES = {
    "vae_64_32_8": vae(64, 32, 8, batch=128),
    "vae_784_400_20": vae(784, 400, 20, batch=128),
    "vae_784_400_20_b1024": vae(784, 400, 20, batch=1024),
    "layered_5": layered(64, (32, 16, 16, 8, 8), hidden=64, batch=64),
    "iwae_k50": iwae(784, 200, 50, num_particles=50, batch=20),
    "conv_28": conv(28, (32, 64), 20, batch=64),
}
