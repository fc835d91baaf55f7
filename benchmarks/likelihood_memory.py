"""Peak memory of ``pv.log_likelihood`` as K grows: one process for each K.

``OMP_NUM_THREADS=1 python benchmarks/likelihood_memory.py`` writes its result.
"""

import argparse
import resource
import subprocess
import sys
import time

import torch
from results import Result

import pyro_vae as pv

PARTICLES = (50, 500, 5000)


def peak(samples: int, rows: int) -> float:
    """Score static MNIST test digits with an untrained VAE and return the peak in MiB."""
    torch.manual_seed(0)
    vae = pv.models.VAE(784, 50, hidden=(200, 200), activation="tanh")
    pv.log_likelihood(vae, pv.data.load("mnist_static").test[:rows], num_particles=samples)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure each K in a process of its own and write the growth of the peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=int, default=None, help="measure this K and print it")
    parser.add_argument("--rows", type=int, default=256, help="test digits")
    args = parser.parse_args()
    if args.one is not None:
        print(peak(args.one, args.rows))
        return
    start = time.perf_counter()
    peaks = {}
    for samples in PARTICLES:
        command = [sys.executable, __file__, "--one", str(samples), "--rows", str(args.rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[samples] = float(done.stdout)
    result = Result(
        name="likelihood_memory",
        value=peaks[5000] / peaks[50],
        stderr=None,
        unit="peak memory of log_likelihood at K = 5000 over that at K = 50",
        estimator=f"peak resident size of one process each, {args.rows} static MNIST test digits",
        published="",
        target="peak independent of K",
        data="mnist_static",
        binarization="static (Larochelle)",
        seed=0,
        seconds=time.perf_counter() - start,
        details={f"peak_mib_k{samples}": value for samples, value in peaks.items()},
    )
    print(result.write(), peaks)


if __name__ == "__main__":
    main()
