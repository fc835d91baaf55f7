"""What ``pv.fit`` costs over a bare loop: same loss, optimizer and batches (784-400-20, B = 128).

``OMP_NUM_THREADS=1 python benchmarks/fit_overhead.py`` writes ``results/fit_overhead.json``;
``--of stream`` (batches of a loader) and ``--of ranks`` (two processes, beside torch's own
``DistributedDataParallel``) write ``fit_overhead_stream.json`` and ``fit_overhead_ranks.json``.
"""

import argparse
import multiprocessing
import socket
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import pyro
import torch
import torch.distributed as torch_dist
from paired import Ratio, paired_ratio
from results import Result, by_threads
from torch import Tensor, nn
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv

STEPS = 50
BATCH = 128
_LONG = f"runs of two epochs of {4 * STEPS} steps"


@dataclass(frozen=True)
class Case:
    """One comparison.

    Arguments:
        unit: Of the figure.
        target: What is asked of it.
        clock: Which of the two it is: a wall clock tells nothing of processes that share cores.
        device: What ran it.
        blocks: What is timed.
        measure: Returns both.
    """

    unit: str
    target: str
    clock: str
    device: str
    blocks: str
    measure: Callable[[], dict[str, Ratio]]


def data(steps: int = STEPS) -> Tensor:
    """Return made-up binary images: the cost of a step does not depend on the pixels."""
    return torch.bernoulli(torch.full((steps * BATCH, 784), 0.3))


def program() -> pv.models.VAE:
    """Return the program, with the same weights each time."""
    torch.manual_seed(0)
    return pv.models.VAE(784, 20, hidden=(400,))


class Loss(nn.Module):
    """The ELBO of a program as one module, in nats per datum."""

    def __init__(self, vae: pv.models.VAE) -> None:
        super().__init__()
        self.vae, self.loss_of = vae, pv.ELBO()

    def forward(self, batch: Tensor) -> Tensor:
        """Return minus the bound."""
        loss = self.loss_of.differentiable_loss(self.vae.model, self.vae.guide, batch)
        return loss / len(batch)


def bare_loop(batches: Iterable[Tensor], *, epochs: int = 1, ranks: bool = False) -> None:
    """Train in the fewest lines: differentiable loss, fused Adam."""
    vae = program()
    loss_of: nn.Module = Loss(vae)
    loss_of = DistributedDataParallel(loss_of) if ranks else loss_of
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)
    pyro.clear_param_store()
    with pyro.validation_enabled(False):
        for batch in chain.from_iterable(repeat(batches, epochs)):
            optimizer.zero_grad()
            loss_of(batch).backward()
            optimizer.step()
    pyro.clear_param_store()


def fit(batches: Any, **options: Any) -> None:
    """Train with ``pv.fit``: checks, history and progress bar included."""
    options = {"epochs": 1, "batch_size": BATCH, "device": "cpu", "progress": False, **options}
    pv.fit(program(), batches, **options)


def of_tensors() -> dict[str, Ratio]:
    """Compare over rows that are indexed in memory."""
    x = data()
    return paired_ratio(
        lambda: fit(x), lambda: bare_loop(x[i] for i in torch.randperm(len(x)).split(BATCH))
    )


class Batches:
    """A stream: batches as a loader makes them of single rows."""

    def __init__(self, x: Tensor) -> None:
        self.loader = DataLoader(TensorDataset(x), batch_size=BATCH)

    def __iter__(self) -> Any:
        return (batch for (batch,) in self.loader)


def of_stream() -> dict[str, Ratio]:
    """Compare over the batches of a stream, both eager."""
    x = data(4 * STEPS)
    stream = Batches(x)
    return paired_ratio(
        lambda: fit(stream, size=len(x), compile=False, epochs=2),
        lambda: bare_loop(stream, epochs=2),
        blocks=7,
    )


def of_ranks() -> dict[str, Ratio]:
    """Compare in two connected processes on the rows of each, both eager; return the first's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    spawn(_rank, (port, answers), nprocs=2)
    found: dict[str, Ratio] = answers.get()
    return found


def _rank(rank: int, port: int, answers: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    address = f"tcp://127.0.0.1:{port}"
    torch_dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.manual_seed(0)  # the same rows in both
    x = data(4 * STEPS)
    half = BATCH // 2
    mine = [batch[rank * half : (rank + 1) * half] for batch in x.split(BATCH)]
    found = paired_ratio(
        lambda: fit(x, compile=False, epochs=2),
        lambda: bare_loop(mine, epochs=2, ranks=True),
        blocks=7,
    )
    if rank == 0:
        answers.put(found)
    torch_dist.destroy_process_group()


CASES = {
    "tensors": Case(
        "time of pv.fit over a bare loop (uncompiled)",
        "<= 1.15",
        "wall",
        f"cpu, {torch.get_num_threads()} thread",
        f"blocks of {STEPS} steps",
        of_tensors,
    ),
    "stream": Case(
        "CPU time of pv.fit over a stream, over a bare loop over it (both eager)",
        "<= 1.05",
        "cpu",
        f"cpu, {torch.get_num_threads()} thread",
        _LONG,
        of_stream,
    ),
    "ranks": Case(
        "CPU time of pv.fit in two processes over a loop with DistributedDataParallel (both eager)",
        "<= 1.1",
        "cpu",
        "cpu, 2 processes of 1 thread",
        _LONG,
        of_ranks,
    ),
}


def main() -> None:
    """Measure and write the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--of", choices=CASES, default="tensors")
    kind = parser.parse_args().of
    case, start = CASES[kind], time.perf_counter()
    ratios = case.measure()
    found = ratios[case.clock]
    clock = {"wall": "wall clock", "cpu": "CPU time"}[case.clock]
    result = Result(
        name=by_threads("fit_overhead" if kind == "tensors" else f"fit_overhead_{kind}"),
        value=found.median,
        stderr=found.stderr,
        unit=case.unit,
        estimator=f"median of {found.blocks} paired ratios of {case.blocks}, {clock}",
        published="",
        target=case.target,
        data="made-up binary images, 784-400-20, batch 128",
        binarization="",
        seed=0,
        seconds=time.perf_counter() - start,
        device=case.device,
        details={name: vars(ratio) for name, ratio in ratios.items()},
    )
    print(result.write())
    print(f"{case.unit}: {found.median:.3f} ± {found.stderr:.3f}")


if __name__ == "__main__":
    main()
