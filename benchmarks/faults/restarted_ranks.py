"""Two processes of torchrun, of which one is killed: all start anew, and go on with the run."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

import pyro_vae as pv
from benchmarks.faults.trials import Kind, Trial

EPOCHS, STEPS = 4, 16
_ROOT = Path(__file__).parents[2]
_SLOW = 300.0  # seconds after which a run counts as hanging


def _is_first() -> bool:
    """Return whether this is the first start; asked anew, for a transform that holds it differs."""
    return os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"


def process(folder: Path, rank: int, step: int) -> None:
    """Train in one of the processes, which is killed in a step unless it was started anew."""
    x = (torch.rand(48, 6, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    torch.manual_seed(1)
    vae = pv.models.VAE(6, 2, (5,))
    steps = iter(range(10**9))

    def stumble(batch: torch.Tensor) -> torch.Tensor:
        in_a_step = vae.training and next(steps) == step
        if in_a_step and _is_first() and int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    vae.eval()

    run = pv.fit(
        vae,
        x,
        epochs=EPOCHS,
        batch_size=12,
        transform=stumble,
        out=folder / "run",
        resume=True,
        checkpoint_every=1,
        device="cpu",
        compile=False,
        progress=False,
    )
    if run.rank == 0:
        torch.save([_is_first(), run.steps, run.history["loss"].tolist()], folder / "found.pt")


def _trained(rank: int, step: int) -> tuple[bool, int, list[float]] | str:
    """Return whether no process was started anew, the steps and the losses; or an error."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [
        "--max-restarts=1",
        "--monitor-interval=0.1",
        "-m",
        "benchmarks.faults.restarted_ranks",
    ]
    with tempfile.TemporaryDirectory() as home:
        try:
            done = subprocess.run(
                [*command, home, str(rank), str(step)],
                cwd=_ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=_SLOW,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "hung"
        if done.returncode:
            return done.stderr
        first, steps, losses = torch.load(Path(home) / "found.pt")
    return first, steps, losses


def _trials(first: int, seed: int) -> Iterator[Trial]:
    straight = _trained(0, STEPS + 1)
    for number in range(first, 10**9):
        rng = random.Random(f"{seed}/{number}")
        rank = rng.randrange(2)
        found = _trained(rank, rng.randrange(STEPS))
        group = f"rank {rank} killed"
        if isinstance(found, str) or isinstance(straight, str):
            yield Trial(group, "raw", f"{found}")
        elif found[0] or found[1:] != straight[1:] or found[1] != STEPS:
            yield Trial(group, "wrong", f"{found} for {straight}")
        else:
            yield Trial(group, "ok")


RESTARTS = Kind(
    name="restarts",
    unit="restarts by torchrun after a rank was killed",
    target=10,
    how="one of two processes of torchrun --max-restarts=1 is killed in a random step; both are "
    "started anew, go on from the checkpoint of the last epoch (resume=True), and must end after "
    "as many steps with the losses of an unbroken run, to the bit",
    trials=_trials,
)

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    process(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
