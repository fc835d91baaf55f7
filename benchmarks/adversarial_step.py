"""A step with a critic beside the same updates in hand-written PyTorch, block by block.

``OMP_NUM_THREADS=1 python benchmarks/adversarial_step.py`` writes its median ratios of times,
AAE, WAE, AVB, VAE/GAN and the latent autoencoder on 784-dimensional data, traced, to
``results/adversarial_step.json``.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from beside_hand import slowest_beside_hand
from torch import Tensor, nn
from torch.nn.functional import softplus

import pyro_vae as pv
from pyro_vae.conditionals import NoiseFed
from pyro_vae.program.handlers import validation
from pyro_vae.training.settings import adam
from pyro_vae.training.step import Stepper

BATCH, STEPS, BLOCKS, WARM, MOMENTS = 128, 20, 21, 60, 8
GAMMA = 0.1
NAMES = ("AAE", "WAE", "AVB", "VAEGAN", "LatentAutoencoder")


def build(name: str) -> tuple[Any, nn.Module]:
    """Return a VAE and a critic, from one seed."""
    torch.manual_seed(0)
    if name in ("AAE", "WAE"):
        return pv.models.VAE(784, 8, hidden=(300, 300)), pv.nn.Critic(8)
    if name in ("VAEGAN", "LatentAutoencoder"):
        observation = partial(pv.conditionals.IsotropicGaussian, scale=1.0)
        vae = pv.models.VAE(784, 8, hidden=(300, 300), observation=observation)
        return vae, pv.nn.ConvCritic((1, 28, 28), (16, 32), patches=name != "VAEGAN")
    posterior: Any = NoiseFed
    vae = pv.models.VAE(784, 8, hidden=(300, 300), posterior=posterior)
    return vae, pv.nn.InnerProductCritic(8, 784)


def ours(name: str, x: Tensor) -> Callable[[], object]:
    """Return a block of steps of this library."""
    vae, critic = build(name)
    objective = {
        "AAE": lambda: pv.AAE(critic),
        "WAE": pv.WAE,
        "AVB": lambda: pv.AVB(critic, moments=MOMENTS),
        "VAEGAN": lambda: pv.VAEGAN(critic, gamma=GAMMA, margin=math.inf),
        "LatentAutoencoder": lambda: pv.LatentAutoencoder(critic),
    }[name]()
    program = pv.Program.of(vae)
    program.read(x)
    program.train()
    stepper = Stepper(
        program, objective, adam(1e-3), clip_norm=None, size=len(x), compile="trace", steps=10_000
    )

    def block() -> None:
        with program.running(), validation(False):
            for _ in range(STEPS):
                stepper.step(x, None)

    return block


def by_hand(name: str, x: Tensor) -> Callable[[], object]:
    """Return a block of the same updates as a user of PyTorch writes them."""
    vae, critic = build(name)
    program = torch.optim.Adam(vae.parameters(), 1e-3, fused=True)
    judge = torch.optim.Adam(critic.parameters(), 1e-3, fused=True)

    def aae() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            loc, log_scale = vae.encoder.net(x).chunk(2, -1)
            z = loc + log_scale.exp() * torch.randn_like(loc)
        told = softplus(-critic(z)).mean() + softplus(critic(torch.randn_like(z))).mean()
        judge.zero_grad()
        told.backward()
        judge.step()
        loc, log_scale = vae.encoder.net(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        misfit = nn.functional.binary_cross_entropy_with_logits(
            vae.decoder.net(z), x, reduction="sum"
        )
        return misfit / len(x) + softplus(critic(z)).mean(), told

    def wae() -> tuple[Tensor, Tensor]:
        loc, log_scale = vae.encoder.net(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        misfit = nn.functional.binary_cross_entropy_with_logits(
            vae.decoder.net(z), x, reduction="sum"
        )
        other = torch.randn_like(z)
        apart = 2 * kernel(z, other).mean()
        for each in (z, other):
            pairs = kernel(each, each)
            apart = apart - (pairs.sum() - pairs.diagonal().sum()) / (len(x) * (len(x) - 1))
        return misfit / len(x) - 10 * apart, apart.detach()

    def draws(features: Tensor, count: int) -> Tensor:
        noise = torch.randn(count, len(x), vae.encoder.noise_dim)
        known = features.expand(count, *features.shape)
        return vae.encoder.mix(torch.cat([known, noise], -1))

    def avb() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            features = vae.encoder.net(x)
            z = draws(features, 1)[0]
            crowd = draws(features, MOMENTS)
            mean, scale = crowd.mean(0), crowd.std(0)
            other = mean + scale * torch.randn_like(z)
            near = dist.Normal(mean, scale)
            known, its = near.log_prob(z).sum(-1), near.log_prob(other).sum(-1)
        told = softplus(known - critic(z, x)).mean() + softplus(critic(other, x) - its).mean()
        judge.zero_grad()
        told.backward()
        judge.step()
        features = vae.encoder.net(x)
        z = draws(features, 1)[0]
        misfit = nn.functional.binary_cross_entropy_with_logits(
            vae.decoder.net(z), x, reduction="sum"
        )
        log_prior = dist.Normal(0.0, 1.0).log_prob(z).sum()
        return (misfit - log_prior) / len(x) + critic(z, x).mean(), told

    def sampled() -> tuple[Tensor, Tensor, Tensor]:
        loc, log_scale = vae.encoder.net(x).chunk(2, -1)
        return loc + log_scale.exp() * torch.randn_like(loc), loc, log_scale

    def latent() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            made = vae.decoder.net(sampled()[0])
        real, fake = critic(torch.cat([x, made])).chunk(2)
        told = ((1 - real).relu().mean() + (1 + fake).relu().mean()) / 2
        judge.zero_grad()
        told.backward()
        judge.step()
        z, loc, log_scale = sampled()
        made = vae.decoder.net(z)
        kl = dist.Normal(loc, log_scale.exp()).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
        apart = (x - made).square().sum() / (2 * len(x))
        game = -critic(made).mean()
        slopes = [
            torch.autograd.grad(each, z, retain_graph=True)[0].norm() for each in (apart, game)
        ]
        pull = (slopes[0] / (slopes[1] + 1e-4)).clamp(0, 1e4)
        return apart + 1e-6 * kl.sum() / len(x) + 0.5 * pull * game, told

    def vaegan() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            z = sampled()[0]
            made, drawn = vae.decoder.net(torch.cat([z, torch.randn_like(z)])).chunk(2)
        real, fake, new = critic(torch.cat([x, made, drawn])).chunk(3)
        told = softplus(-real).mean() + (softplus(fake).mean() + softplus(new).mean()) / 2
        judge.zero_grad()
        told.backward()
        judge.step()
        z, loc, log_scale = sampled()
        made = vae.decoder.net(z)
        kl = dist.Normal(loc, log_scale.exp()).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
        apart = (critic.see(x) - critic.see(made)).square().sum() / (2 * len(x))
        loss = kl.sum() / len(x) + apart
        moved(encoder, loss)
        with torch.no_grad():
            z = sampled()[0]
        made, drawn = vae.decoder.net(torch.cat([z, torch.randn_like(z)])).chunk(2)
        seen = critic.see(torch.cat([made, drawn]))
        fake, new = critic.judge(seen).chunk(2)
        apart = (critic.see(x) - seen[: len(x)]).square().sum() / (2 * len(x))
        game = (softplus(-fake).mean() + softplus(-new).mean()) / 2
        moved(decoder, GAMMA * apart + (1 - GAMMA) * game)
        return loss, told

    encoder, decoder = (
        torch.optim.Adam(part.parameters(), 1e-3, fused=True) for part in (vae.encoder, vae.decoder)
    )

    def moved(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter, grad in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            parameter.grad = grad
        optimizer.step()

    steps = {"AAE": aae, "WAE": wae, "AVB": avb, "VAEGAN": vaegan, "LatentAutoencoder": latent}
    step = steps[name]

    def block() -> None:
        for _ in range(STEPS):
            loss, told = step()
            if name != "VAEGAN":  # which has moved both its parts
                program.zero_grad()
                loss.backward()
                program.step()
            assert torch.isfinite(loss + told)  # as this library does

    return block


def kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return the kernel of the discrepancy between all pairs, ``(M, N)``."""
    squares = a.square().sum(-1)[:, None] + b.square().sum(-1) - 2 * a @ b.mT
    size = 2.0 * a.shape[-1]
    scales = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
    return sum(size * s / (size * s + squares.clamp(min=0)) for s in scales)  # type: ignore[return-value]


def main() -> None:
    """Measure, and write the figure."""
    x = (torch.rand(BATCH, 784, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    works: dict[str, Callable[[], object]] = {}
    for name in NAMES:
        works |= {f"{name}, by hand": by_hand(name, x), name: ours(name, x)}
    slowest_beside_hand(
        "adversarial_step",
        works,
        steps=STEPS,
        blocks=BLOCKS,
        warm=WARM,
        unit="times the hand-written step of critic and program, the slowest of five",
        data="none: random bits, B = 128, 784-300-300-8",
    )


if __name__ == "__main__":
    main()
