"""What ``precision="bf16-mixed"`` changes: the ELBO of a trained VAE in both precisions.

``OMP_NUM_THREADS=1 python benchmarks/precision.py`` trains the 784-400-20 VAE in float32 for some
epochs and measures its test ELBO with networks in float32 and in bfloat16, at equal noise. Then it
trains in both precisions from several seeds: two runs drift apart by chance, so only the mean of
the differences says whether mixed precision costs anything.
"""

import argparse
import time

import torch
from results import Result

import pyro_vae as pv
from pyro_vae.program.program import Program
from pyro_vae.training.precision import find_networks, mixed


def elbo(program: Program, x: torch.Tensor, *, half: bool, seed: int) -> torch.Tensor:
    """Return the ELBO of each datum, with networks in either precision."""
    networks = find_networks(program, x[:8]) if half else []
    torch.manual_seed(seed)
    with mixed(networks, program.device):
        return pv.elbo(program, x)


def trained(precision: str | None, seed: int, args: argparse.Namespace) -> Program:
    """Train the VAE; one seed's weights, batches and noise are those of every precision."""
    torch.manual_seed(seed)
    vae = pv.models.VAE(784, 20, hidden=(400,))
    splits = pv.data.load("mnist_static")
    pv.fit(
        vae,
        splits.train[: args.rows],
        epochs=args.epochs,
        precision=precision,  # type: ignore[arg-type]
        compile="trace",
        device=args.device,
        seed=seed,
        progress=False,
    )
    return Program.of(vae)


def main() -> None:
    """Train twice, compare, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000, help="training digits")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=10, help="pairs of training runs")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    start = time.perf_counter()
    program = trained(None, 0, args)
    x = pv.data.load("mnist_static").test.to(program.device)
    full = torch.stack([elbo(program, x, half=False, seed=seed) for seed in range(4)]).double()
    half = torch.stack([elbo(program, x, half=True, seed=seed) for seed in range(4)]).double()
    gap = (half - full).mean(0)
    value = 100 * (gap.mean() / full.mean()).abs().item()
    stderr = 100 * (gap.std() / len(gap) ** 0.5 / full.mean()).abs().item()
    ends = torch.tensor(
        [
            [
                elbo(trained(precision, seed, args), x, half=False, seed=0).double().mean().item()
                for precision in (None, "bf16-mixed")
            ]
            for seed in range(args.seeds)
        ]
    )
    cost = ends[:, 1] - ends[:, 0]
    result = Result(
        name="precision_bf16",
        value=value,
        stderr=stderr,
        unit="% of the ELBO: bf16-mixed against float32, one set of weights",
        estimator="mean ELBO of 10,000 test digits, 4 draws, equal noise; 784-400-20 VAE, "
        f"{args.epochs} epochs on {args.rows} digits",
        published="",
        target="< 0.1",
        data="mnist_static",
        binarization="static (Larochelle)",
        seed=0,
        seconds=time.perf_counter() - start,
        device="cpu, 1 thread" if args.device == "cpu" else torch.cuda.get_device_name(),
        details={
            "elbo_float32": full.mean().item(),
            "elbo_bf16": half.mean().item(),
            "trained_in_float32": ends[:, 0].tolist(),
            "trained_in_bf16_mixed": ends[:, 1].tolist(),
            "mean_difference_of_training": cost.mean().item(),
            "its_stderr": (cost.std() / len(cost) ** 0.5).item(),
        },
    )
    print(result.write(), value, stderr, result.details)


if __name__ == "__main__":
    main()
