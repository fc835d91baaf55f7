"""A training step of this checkout beside that of another one: ``--against DIR``.

``OMP_NUM_THREADS=1 python benchmarks/eager_step.py --against DIR`` trains one program in two
processes, one per checkout, which take turns block by block; the median ratio of processor times is
written to ``results/step_against.json``, per program and mode of ``pv.fit(compile=)``.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from paired import Ratio, Times, ratios

HERE = Path(__file__).resolve().parents[1]
BATCH, BATCHES = 128, 100
WARM = 60  # steps before the first block: tracing, and the first comparisons of a graph
MODES = {"eager": False, "trace": "trace", "compiled": True}


def programs() -> dict[str, Any]:
    """Return makers of a program, with the pixels of its data."""
    import pyro_vae as pv

    return {
        "tutorial VAE 784-400-50": (lambda: pv.models.VAE(784, 50, hidden=(400,)), 784),
        "VAE 64-32-8": (lambda: pv.models.VAE(64, 8, hidden=(32,)), 64),
        "ladder 64-16-8": (lambda: pv.models.LadderVAE(64, (16, 8), (32, 16), depth=1), 64),
    }


def serve(name: str, mode: str, steps: int) -> None:
    """Train in this process; run a block of steps for each line that comes in."""
    import torch

    import pyro_vae as pv

    make, width = programs()[name]
    torch.manual_seed(0)
    program = make()
    x = (torch.rand(BATCH * BATCHES, width) < 0.3).float()
    done, start = -WARM, 0.0
    # Bound there by its own name since it is a private part of torch; before, called as torch's.
    adam: Any = sys.modules["pyro_vae.training.adam"]
    bound = hasattr(adam, "fused_adam_")
    home, kernel = (adam, "fused_adam_") if bound else (torch, "_fused_adam_")
    move = getattr(home, kernel)

    def counted(*args: Any, **kwargs: Any) -> None:
        nonlocal done, start
        move(*args, **kwargs)
        if done >= 0 and done % steps == 0:
            print(time.process_time() - start, flush=True)  # the first is no block: it says "ready"
            if not sys.stdin.readline():
                raise SystemExit
            start = time.process_time()
        done += 1

    # Once a step, in both checkouts. A transform or a callback would be watched: that costs.
    setattr(home, kernel, counted)
    options: dict[str, Any] = {"compile": MODES[mode], "batch_size": BATCH, "device": "cpu"}
    pv.fit(program, x, epochs=10_000, progress=False, **options)


class Served:
    """A checkout's training in a process of its own."""

    def __init__(self, checkout: Path, name: str, mode: str, steps: int) -> None:
        command = [sys.executable, __file__, "--serve", name, mode, str(steps)]
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._go, self._said = self._process.stdin, self._process.stdout
        self._said.readline()

    def block(self) -> tuple[float, float]:
        """Run a block; return its seconds by the wall clock and of the processor."""
        start = time.perf_counter()
        self._go.write("\n")
        self._go.flush()
        cpu = float(self._said.readline())
        return time.perf_counter() - start, cpu

    def end(self) -> None:
        """Let the process end."""
        self._go.close()
        self._process.wait()


def measured(other: Path, name: str, mode: str, blocks: int, steps: int) -> dict[str, Ratio]:
    """Return the ratios of this checkout's step to another's."""
    mine, its = (Served(checkout, name, mode, steps) for checkout in (HERE, other))
    times: dict[Served, Times] = {mine: [], its: []}
    for block in range(blocks):
        for side in (mine, its) if block % 2 == 0 else (its, mine):
            times[side].append(side.block())
    mine.end(), its.end()
    return ratios(times[mine], times[its])


def main() -> None:
    """Measure what was asked for, and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument(
        "--programs", nargs="*", default=["tutorial VAE 784-400-50", "ladder 64-16-8"]
    )
    parser.add_argument("--modes", nargs="*", default=["eager", "compiled"], choices=list(MODES))
    parser.add_argument("--blocks", type=int, default=31)
    parser.add_argument("--steps", type=int, default=20, help="of a block")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        name, mode, steps = given.serve
        return serve(name, mode, int(steps))
    other = given.against.resolve()
    start = time.perf_counter()
    found: dict[str, dict[str, Any]] = {}
    for name in given.programs:
        for mode in given.modes:
            both = measured(other, name, mode, given.blocks, given.steps)
            found.setdefault(name, {})[mode] = {clock: vars(r) for clock, r in both.items()}
            print(f"{name}, {mode}: CPU {both['cpu'].median:.3f}, wall {both['wall'].median:.3f}")
    write(found, other, given.blocks, given.steps, time.perf_counter() - start)


def write(
    found: dict[str, dict[str, Any]], other: Path, blocks: int, steps: int, seconds: float
) -> None:
    """Write the largest ratio, and all of them."""
    from results import FOLDER, Result

    path = FOLDER / "step_against.json"
    known = json.loads(path.read_text())["details"]["ratios"] if path.exists() else {}
    every = {name: {**known.get(name, {}), **found.get(name, {})} for name in {**known, **found}}
    name, mode = max(
        ((name, mode) for name, modes in every.items() for mode in modes),
        key=lambda each: every[each[0]][each[1]]["cpu"]["median"],
    )
    worst = Ratio(**every[name][mode]["cpu"])
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=other,
        capture_output=True,
        text=True,
        check=True,
    )
    Result(
        name=path.stem,
        value=worst.median,
        stderr=worst.stderr,
        unit=f"processor time of a training step over that of commit {commit.stdout.strip()}",
        estimator=f"largest of the medians of {blocks} paired ratios of blocks of {steps} steps",
        published="",
        target="<= 1.05 eager, 1.00 compiled",
        data=f"made-up binary data, batch {BATCH}",
        binarization="",
        seed=0,
        seconds=seconds,
        details={"the largest": f"{name}, {mode}", "ratios": every},
        command="python benchmarks/eager_step.py --against DIR",
    ).write()


if __name__ == "__main__":
    main()
