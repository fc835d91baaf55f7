"""Processes that a test forks: a fresh interpreter would import torch for seconds."""

import faulthandler
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

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


def torchrun(rank: int, size: int, port: int) -> dict[str, str]:
    """Return the environment in which torchrun starts a process, with its store at a port."""
    return {
        "TORCHELASTIC_RUN_ID": "run",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }


def connected(
    size: int, function: Callable[[int], Any], folder: Path, limit: float = 120
) -> list[Any]:
    """Return what a function of the rank finds in each of several connected forks.

    Arguments:
        size: How many there are.
        function: Of the rank.
        folder: For what they say.
        limit: Seconds until those that have not ended are killed, and the test fails.
    """
    end_well(_connected, [(rank, size, function, folder) for rank in range(size)], limit)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def end_well(
    function: Callable[..., None], arguments: Sequence[tuple[object, ...]], limit: float = 120
) -> None:
    """Run a function in a fork for each tuple of arguments; say where those are that do not end."""
    end = time.monotonic() + limit
    with tempfile.TemporaryFile() as stacks:
        children = [fork(_watched, stacks, function, *each) for each in arguments]
        for child in children:
            child.join(max(0.0, end - time.monotonic()))
        stuck = [child for child in children if child.exitcode is None]
        for child in stuck:
            os.kill(child.pid, signal.SIGABRT)
            child.join(10)
            child.kill()
            child.join()
        stacks.seek(0)
        where = stacks.read().decode()
    assert not stuck, f"{len(stuck)} of {len(children)} did not end within {limit} s:\n{where}"
    assert [child.exitcode for child in children] == [0] * len(children)


def _watched(stacks: IO[bytes], function: Callable[..., None], *args: object) -> None:
    faulthandler.enable(stacks)  # which an abortion makes write the frames of all threads
    function(*args)


def _connected(rank: int, size: int, function: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    store = torch_dist.FileStore(str(folder / "store"), size)
    torch_dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    torch.save(function(rank), folder / f"{rank}.pt")
    torch_dist.destroy_process_group()
