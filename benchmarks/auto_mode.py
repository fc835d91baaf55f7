"""What ``compile="auto"`` costs and gains from end to end: ``python -m benchmarks.auto_mode``.

Whole runs of ``pv.fit``, start to finish, in turns with the fixed modes: of some seconds, which
must not wait for a compiler, and longer ones, which another process compiles. The value is the
largest median ratio of wall times, ``"auto"`` over the fixed mode that is the fastest there.
``--programs`` and ``--seconds`` measure some anew; the others keep their rows.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv
from benchmarks.results import FOLDER, Result
from benchmarks.speed.measure import using_cache

Mode = Any  # of pv.fit(compile=)


class Branching(pv.models.VAE):
    """A VAE that looks at a number of its batch, which no tracer follows."""

    def model(self, x: Tensor) -> Any:
        """Return what the VAE does; the term is a constant."""
        pyro.sample("level", dist.Delta(x.new_tensor(x.mean().item() > 2.0)), obs=x.new_zeros(()))
        return super().model(x)


@dataclass(frozen=True)
class Program:
    """What is trained.

    Arguments:
        build: Makes the program.
        shape: Of the data.
        batch: B.
        fixed: The modes that a user might choose.
    """

    build: Callable[[], Any]
    shape: tuple[int, ...]
    batch: int
    fixed: tuple[Mode, ...]

    def data(self) -> Tensor:
        """Return made-up binary data: the cost of a step does not depend on the values."""
        noise = torch.rand(self.shape, generator=torch.Generator().manual_seed(0))
        return (noise < 0.3).float()


PROGRAMS = {
    "vae": Program(
        lambda: pv.models.VAE(784, 20, hidden=(400,)), (12_800, 784), 128, ("trace", True)
    ),
    "sequences": Program(
        lambda: pv.models.DMM(88, 24, hidden=(64, 64), transition=64, recurrent=96),
        (400, 60, 88),
        20,
        ("trace", True),
    ),
    "not traceable": Program(
        lambda: Branching(784, 20, hidden=(400,)), (12_800, 784), 128, (False,)
    ),
}


def run_seconds(program: Program, mode: Mode, epochs: int) -> float:
    """Return the wall time of one run, whose compiler begins with an empty cache."""
    torch.manual_seed(0)
    built, data = program.build(), program.data()
    with tempfile.TemporaryDirectory() as folder, using_cache(Path(folder)):
        start = time.perf_counter()
        pv.fit(
            built,
            data,
            epochs=epochs,
            batch_size=program.batch,
            compile=mode,
            progress=False,
            device="cpu",
        )
        return time.perf_counter() - start


def epochs_of(program: Program, seconds: float) -> int:
    """Return in how many epochs the first fixed mode takes about so long."""
    run_seconds(program, program.fixed[0], 1)
    one, three = (run_seconds(program, program.fixed[0], epochs) for epochs in (1, 3))
    return max(1, round((seconds - one) / max(1e-3, (three - one) / 2)))


def measured(program: Program, seconds: float, pairs: int) -> dict[str, Any]:
    """Return the times of all modes in turns, and the ratio to the fastest fixed one."""
    epochs = epochs_of(program, seconds)
    # A compiler in the process takes longer than the shortest runs as a whole.
    fixed = [mode for mode in program.fixed if not (mode is True and seconds < 10)]
    times: dict[str, list[float]] = {str(mode): [] for mode in [*fixed, "auto"]}
    for pair in range(pairs):
        modes = [*fixed, "auto"]
        for mode in modes if pair % 2 == 0 else modes[::-1]:
            times[str(mode)].append(run_seconds(program, mode, epochs))
            print(f"{epochs} epochs, {mode}: {times[str(mode)][-1]:.1f} s", flush=True)
    best = min(map(str, fixed), key=lambda mode: statistics.median(times[mode]))
    paired = [mine / its for mine, its in zip(times["auto"], times[best], strict=True)]
    return {
        "epochs": epochs,
        "seconds": times,
        "best": best,
        "auto_over_best": paired,
        "median": statistics.median(paired),
    }


def result_of(rows: dict[str, Any], pairs: int, seconds: float) -> Result:
    """Return all rows as one figure: the worst."""
    return Result(
        name="auto_mode",
        value=max(row["median"] for row in rows.values()),
        stderr=None,
        unit="wall time of a whole run, compile='auto' over the best fixed mode, the worst of "
        + ", ".join(f"{name} {row['median']:.3f}" for name, row in rows.items()),
        estimator=f"medians of {pairs} paired ratios, runs in turns",
        published="-",
        target="<= 1.03",
        data="made-up binary data",
        binarization="none",
        seed=0,
        seconds=seconds,
        details={"rows": rows, "cores": os.cpu_count()},
        command=f"python -m benchmarks.auto_mode {shlex.join(sys.argv[1:])}".strip(),
    )


def main() -> None:
    """Measure and write the file, a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=PROGRAMS)
    parser.add_argument("--seconds", nargs="+", type=float, default=[5.0, 30.0, 180.0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--results", type=Path, default=FOLDER)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = args.results / "auto_mode.json"
    known = json.loads(path.read_text())["details"] if path.exists() else {}
    rows: dict[str, Any] = known.get("rows", {})
    start = time.perf_counter()
    for seconds in args.seconds:
        for name in args.programs:
            row = measured(PROGRAMS[name], seconds, args.pairs)
            rows[f"{name}, {seconds:g} s"] = row
            found = result_of(rows, args.pairs, time.perf_counter() - start)
            print(name, seconds, row["median"], found.write(args.results), flush=True)


if __name__ == "__main__":
    main()
