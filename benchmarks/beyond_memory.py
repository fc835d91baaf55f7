"""Data beyond memory: a stream is trained on, judged and diagnosed; the peak of resident memory.

``OMP_NUM_THREADS=1 python benchmarks/beyond_memory.py`` writes its result. The rows are made as
they are asked for, from a few prepared batches: every byte is passed on, none is kept.
"""

import argparse
import resource
import time
from collections.abc import Iterator

import torch
from results import Result
from torch import Tensor

import pyro_vae as pv

WIDTH, ROWS = 4096, 1024  # 16 MiB a batch


class Made:
    """Batches of ones and zeros: each is another roll of one of four."""

    def __init__(self, batches: int) -> None:
        generator = torch.Generator().manual_seed(0)
        chance = torch.full((ROWS, WIDTH), 0.2)
        self._few = [torch.bernoulli(chance, generator=generator) for _ in range(4)]
        self.batches = batches

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(self.batches):
            yield self._few[number % 4].roll(number, dims=1)


def resident() -> float:
    """Return the peak of the resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Train for an epoch, judge and diagnose, and write the peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=20.0)
    args = parser.parse_args()
    start = time.perf_counter()
    data = Made(round(args.gigabytes * 1e9 / (4 * WIDTH * ROWS)))
    torch.manual_seed(0)
    vae = pv.models.VAE(WIDTH, 8, hidden=(32,))
    peaks, seconds = {"begin": resident()}, {}

    def after(name: str, since: float) -> None:
        peaks[name], seconds[name] = resident(), time.perf_counter() - since
        print(name, round(peaks[name]), "MiB", round(seconds[name]), "s", flush=True)

    begun = time.perf_counter()
    held_out = Made(max(1, data.batches // 10))
    run = pv.fit(
        vae, data, size=data.batches * ROWS, valid=held_out, epochs=1, device="cpu", progress=False
    )
    after("fit", begun)
    begun = time.perf_counter()
    bound = pv.elbo(vae, data).mean().item()
    after("elbo", begun)
    begun = time.perf_counter()
    found = pv.diagnose(vae, data)
    after("diagnose", begun)
    result = Result(
        name="beyond_memory",
        value=max(peaks.values()) / 1024,
        stderr=None,
        unit=f"GiB of resident memory at the peak, over {args.gigabytes:g} GB of data",
        estimator="peak resident size of one process that trains an epoch, takes the ELBO of all "
        "rows and diagnoses them; validation rows: a tenth as many",
        published="",
        target="1.5",
        data=f"made up: {data.batches * ROWS:,} rows of {WIDTH} float32",
        binarization="",
        seed=0,
        seconds=time.perf_counter() - start,
        details={
            **{f"peak_mib_{name}": value for name, value in peaks.items()},
            **{f"seconds_{name}": value for name, value in seconds.items()},
            "steps": run.steps,
            "elbo": bound,
            "rows_diagnosed": found.rows,
        },
    )
    print(result.write())


if __name__ == "__main__":
    main()
