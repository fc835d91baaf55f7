"""How far the gradients of several processes are from those of one, in float64.

``OMP_NUM_THREADS=1 python benchmarks/gradients_of_ranks.py`` writes its result, for two and four
processes connected by gloo. The noise of the program is part of its data, hence the numbers are
those of one process to rounding.
"""

import argparse
import math
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from two_processes import Known, Shard, data, fit, sgd  # noqa: E402

N = 53  # batches of 24, 24 and 5: the last has fewer rows than two for each of four processes
Gradients = list[Tensor]  # of all parameters, step by step
EVEN, ODD = 4, 3  # rows of a batch of each process


def _sparse() -> tuple[Tensor, Tensor]:
    """Return counts that are kept sparse, and the noise of each row."""
    x, noise = data(N)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CSR is in beta
        return (x * (x > 0)).to_sparse_csr(), noise


def _ends(size: int) -> list[int]:
    """Return where the rows of each process end, other numbers for each."""
    return [math.ceil(N * ((rank + 1) / size) ** 1.2) for rank in range(size)]


def _shard(rank: int, size: int) -> DataLoader:
    ends = [0, *_ends(size)]
    return DataLoader(Shard(N, ends[rank], ends[rank + 1]), batch_size=EVEN)


def _joined(size: int) -> DataLoader:
    """Return what the shards of all processes are together, step by step."""
    ends = [0, *_ends(size)]
    parts = [range(*pair) for pair in pairwise(ends)]
    return _together([[*BatchSampler(part, EVEN, drop_last=False)] for part in parts])


def _together(parts: list[list[list[int]]]) -> DataLoader:
    """Return a loader whose batches are those of several processes, joined step by step."""
    for part in parts:  # a last one of one row is joined to the one before
        if len(part[-1]) == 1:
            [row] = part.pop()
            part[-1].append(row)
    steps = range(max(map(len, parts)))
    joined = [[row for part in parts for own in part[k : k + 1] for row in own] for k in steps]
    return _loader(joined)


def _loader(batches: Any) -> DataLoader:
    return DataLoader(TensorDataset(*data(N)), batch_sampler=batches)


def _own(rank: int, size: int) -> DataLoader:
    """Return a loader whose sampler deals this process some rows."""
    return _loader(BatchSampler(range(rank, N, size), ODD, drop_last=False))


def _whole(size: int) -> DataLoader:
    """Return what these deal together."""
    parts = [range(rank, N, size) for rank in range(size)]
    return _together([[*BatchSampler(part, ODD, drop_last=False)] for part in parts])


Case = tuple[Callable[[int, int], Any], Callable[[int], Any], dict[str, Any]]
# What a process gets (rank, size); what one alone gets; options. All have a global weight.
CASES: dict[str, Case] = {
    "tensors, ragged": (lambda rank, size: data(N), lambda size: data(N), {"batch_size": 24}),
    "accumulation": (
        lambda rank, size: data(N),
        lambda size: data(N),
        {"batch_size": 24, "accumulate": 3},
    ),
    "loader": (
        lambda rank, size: DataLoader(TensorDataset(*data(N)), 17),
        lambda size: DataLoader(TensorDataset(*data(N)), 17),
        {},
    ),
    "sharded stream, ragged": (_shard, _joined, {}),
    "sampler of own rows": (_own, _whole, {}),
    "sparse rows": (lambda rank, size: _sparse(), lambda size: _sparse(), {"batch_size": 24}),
}


def gradients(given: Any, options: dict[str, Any]) -> Gradients:
    """Return the gradients of each step of an epoch."""
    found: Gradients = []
    program = Known()

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        made = sgd(parameters)
        made.register_step_pre_hook(
            lambda *_: found.append(torch.cat([p.grad.flatten() for p in program.parameters()]))
        )
        return made

    fit(program, given, epochs=1, compile=False, optimizer=optimizer, **options)
    return found


def of_rank(rank: int, size: int, names: Iterable[str] = CASES) -> dict[str, Gradients]:
    """Return the gradients of one of several connected processes, by case."""
    cases = {name: CASES[name] for name in names}
    return {
        name: gradients(make(rank, size), options) for name, (make, _, options) in cases.items()
    }


def of_one(size: int, names: Iterable[str] = CASES) -> dict[str, Gradients]:
    """Return those of one process on what so many have together, by case."""
    cases = {name: CASES[name] for name in names}
    return {
        name: gradients(whole(size), options | {"accumulate": 1})
        for name, (_, whole, options) in cases.items()
    }


def differences(found: list[dict[str, Gradients]], alone: dict[str, Gradients]) -> dict[str, float]:
    """Return the largest difference of any process, by case, as a share of the largest gradient."""
    return {
        name: max(
            ((own - one).abs().max() / one.abs().max()).item()
            for each in found
            for own, one in zip(each[name], steps, strict=True)
        )
        for name, steps in alone.items()
    }


def _process(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = torch_dist.FileStore(str(folder / "store"), size)
    torch_dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    torch.save(of_rank(rank, size), folder / f"{rank}.pt")
    torch_dist.destroy_process_group()


def measure(size: int) -> dict[str, float]:
    """Return the differences for so many processes."""
    alone = of_one(size)  # first: what is loaded on first use is loaded once
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        children = [fork.Process(target=_process, args=(r, size, folder)) for r in range(size)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        return differences([torch.load(folder / f"{r}.pt") for r in range(size)], alone)


def main() -> None:
    """Measure and write the largest difference."""
    from benchmarks.results import Result

    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    found = {f"{size} processes": measure(size) for size in (2, 4)}
    result = Result(
        name="gradients_of_ranks",
        value=max(max(each.values()) for each in found.values()),
        stderr=None,
        unit="largest difference of a gradient to that of one process, over the largest gradient",
        estimator="each step of an epoch, each process, float64; a program with a global latent "
        "whose noise is data",
        published="",
        target="1e-12",
        data=f"made up, {N} rows",
        binarization="",
        seed=0,
        seconds=time.perf_counter() - start,
        device="cpu, 2 and 4 processes of 1 thread",
        details=found,
    )
    print(result.write())
    print(found)


if __name__ == "__main__":
    main()
