"""Inference gaps of a trained program: ``python benchmarks/gaps.py RUN --data NAME``.

The program comes from a run folder (``pv.fit(out=...)`` or ``pv.save``), given relative to the
repository; bounds and gaps of test images go to ``benchmarks/results/NAME.json``, beside those of
Cremer et al. (2018), arXiv:1801.03558: on thresholded Fashion-MNIST a VAE of 50 latents and two
hidden layers of 200 had log p(x) -97.47, ELBO of the best local q -100.53, of the encoder -104.75.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from hmc_refined import build, images
from results import FOLDER, Result

import pyro_vae as pv
from pyro_vae.errors import CheckpointError
from pyro_vae.evaluation.gaps import Gaps, gaps
from pyro_vae.inference.posterior.local_fits import Local

PUBLISHED = (
    "approximation 3.06, amortisation 4.22, total 7.28 (Cremer et al., 2018, arXiv:1801.03558: "
    "FFG, z = 50, 200-200, Fashion-MNIST thresholded; quoted from memory, unchecked)"
)


def result(found: Gaps, args: argparse.Namespace, seconds: float) -> Result:
    """Return the total gap as a figure, with its parts in the details."""
    mean, stderr = found.mean, found.stderr
    return Result(
        name=args.name,
        value=mean["total"],
        stderr=stderr["total"],
        unit="nats per image, log p(x) - ELBO of the encoder",
        estimator=f"{found.estimator}; best {'full' if args.full else 'diagonal'} Gaussian per "
        f"image; {args.samples} draws, AIS with {args.chains} chains and {args.temperatures} "
        f"temperatures, {len(found.elbo)} test images",
        published=PUBLISHED,
        target="recorded beside the published gaps",
        data=args.data,
        binarization=args.binarization,
        seed=args.seed,
        seconds=seconds,
        details={
            **{name: {"mean": mean[name], "stderr": stderr[name]} for name in mean},
            "estimators": {k: v.mean().item() for k, v in found.estimators.items()},
            "mean_noise_of_log_prob": found.log_prob_noise.mean().item(),
            "mean_noise_of_elbo": found.noise.mean().item(),
            "mean_noise_of_local_elbo": found.local_noise.mean().item(),
            "mean_steps_of_local_q": found.steps.double().mean().item(),
            "data_with_negative_amortisation": int((found.amortisation < 0).sum()),
        },
    )


def loaded(run: Path) -> Any:
    """Return the program of a run folder: the zoo's, or that of ``hmc_refined.py``."""
    try:
        return pv.load(run)
    except CheckpointError:  # networks of its own, which no configuration rebuilds
        return pv.load(run, into=build(images()[0], seed=0))


def main() -> None:
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder of a trained program")
    parser.add_argument("--name", default="gaps_fashion", help="name of the result file")
    parser.add_argument("--data", default="fashion_mnist", help="as for pv.data.load")
    parser.add_argument("--binarization", default="threshold", help="as for pv.data.load")
    parser.add_argument("--rows", type=int, default=200, help="test images")
    parser.add_argument("--samples", type=int, default=5000, help="draws behind each bound")
    parser.add_argument("--particles", type=int, default=16, help="draws per step of the local q")
    parser.add_argument("--steps", type=int, default=5000, help="steps of the local q, at most")
    parser.add_argument("--patience", type=int, default=4, help="windows of 50 steps")
    parser.add_argument("--full", action="store_true", help="best q with a full covariance")
    parser.add_argument("--temperatures", type=int, default=500)
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--leapfrog", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the JSON file")
    args = parser.parse_args()
    program = loaded(args.run)
    test = pv.data.load(args.data, binarization=args.binarization).test[: args.rows]
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    found = gaps(
        program,
        test,
        local=Local(
            num_steps=args.steps,
            num_particles=args.particles,
            patience=args.patience,
            full_covariance=args.full,
        ),
        annealed=pv.AIS(
            num_temperatures=args.temperatures, chains=args.chains, num_leapfrog=args.leapfrog
        ),
        num_particles=args.samples,
        progress=True,
    )
    print(found.table())
    print(result(found, args, time.perf_counter() - start).write(args.results))


if __name__ == "__main__":
    main()
