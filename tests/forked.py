"""Processes that a test forks: a fresh interpreter would import torch for seconds."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as torch_dist

FORK = multiprocessing.get_context("fork")
# A runner that shares tests out has a thread that waits for messages: it is not in the fork.
forks = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def fork(function: Callable[..., None], *args: object) -> Any:
    """Start a function in a fork of this process."""
    child = FORK.Process(target=function, args=args)
    child.start()
    return child


def connected(size: int, function: Callable[[int], Any], folder: Path) -> list[Any]:
    """Return what a function of the rank finds in each of several connected forks."""
    children = [fork(_connected, rank, size, function, folder) for rank in range(size)]
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * size
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _connected(rank: int, size: int, function: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    store = torch_dist.FileStore(str(folder / "store"), size)
    torch_dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    torch.save(function(rank), folder / f"{rank}.pt")
    torch_dist.destroy_process_group()
