"""What a step of IWAE(K) costs over hand-written PyTorch: same net, noise, optimizer, batches.

``OMP_NUM_THREADS=1 python benchmarks/iwae_step.py`` writes ``results/iwae_step_k<K>.json``.
"""

import argparse
import math
import time

import torch
from paired import paired_ratio
from results import Result, by_threads
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import pyro_vae as pv
from pyro_vae.program.handlers import validation

STEPS = 5


class HandWritten(nn.Module):
    """The same IWAE in plain PyTorch: encoder once, K particles in one pass."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _mlp(784, 100)
        self.decoder = _mlp(50, 784)

    def forward(self, x: torch.Tensor, num_particles: int) -> torch.Tensor:
        """Return the negative bound per datum."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        noise = torch.randn(num_particles, *loc.shape)
        z = loc + log_scale.exp() * noise
        log_q = (-0.5 * noise.square() - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)
        log_prior = (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).sum(-1)
        logits = self.decoder(z)
        target = x.expand(num_particles, *x.shape)
        log_x = -binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
        weight = log_x + log_prior - log_q
        return -(weight.logsumexp(0) - math.log(num_particles)).mean()


def _mlp(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(before, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, after)
    )


def main() -> None:
    """Measure and write the ratio for one K."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, default=5, help="K")
    parser.add_argument("--blocks", type=int, default=31)
    args = parser.parse_args()
    start = time.perf_counter()
    torch.manual_seed(0)
    x = torch.bernoulli(torch.full((100, 784), 0.3))
    by_hand = HandWritten()
    program = pv.Program.of(pv.models.VAE(784, 50, hidden=(200, 200), activation="tanh"))
    loss = pv.IWAE(args.particles)
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-4, fused=True) for m in (by_hand, program)]
    program.read(x)
    program.tiled(x)

    def hand_block() -> None:
        for _ in range(STEPS):
            optimizers[0].zero_grad()
            by_hand(x, args.particles).backward()
            optimizers[0].step()

    def our_block() -> None:
        with program.running(), validation(False):
            for _ in range(STEPS):
                optimizers[1].zero_grad()
                loss.per_datum(program.joint(x)).backward()
                optimizers[1].step()

    ratios = paired_ratio(our_block, hand_block, blocks=args.blocks)
    wall, cpu = ratios["wall"], ratios["cpu"]
    result = Result(
        name=by_threads(f"iwae_step_k{args.particles}"),
        value=wall.median,
        stderr=wall.stderr,
        unit="time of an IWAE step over hand-written PyTorch (uncompiled)",
        estimator=f"median of {wall.blocks} paired ratios of blocks of {STEPS} steps, wall clock",
        published="",
        target="<= 1.2",
        data="made-up binary images, 784-200-200-50, batch 100",
        binarization="",
        seed=0,
        seconds=time.perf_counter() - start,
        device=f"cpu, {torch.get_num_threads()} thread",
        details={"wall": vars(wall), "cpu": vars(cpu), "num_particles": args.particles},
    )
    print(result.write())
    print(f"K = {args.particles}: wall {wall.median:.3f}, CPU {cpu.median:.3f}")


if __name__ == "__main__":
    main()
