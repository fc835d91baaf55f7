"""Memory that the C library keeps for blocks to come: enough of it, and no more than that."""

import ctypes
import functools
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

_MIB = 2**20
_GROWTH = 256  # MiB of resident memory, since it was last looked at closely
_LARGEST = 32 * _MIB - 8192  # bytes: glibc learns from no larger one, its own few included
_STATM = Path("/proc") / "self" / "statm"


@functools.cache
def keep_freed_blocks() -> None:
    """Let glibc keep freed blocks of up to 32 MiB, and 64 MiB in all, for the next step.

    A block above its threshold it takes from the system, which clears each page, and gives it back
    when freed: a fifth of a step of convolutions. The threshold rises to the size of the largest
    block that was freed; this one is never written to, and costs microseconds.
    """
    torch.empty(_LARGEST, dtype=torch.uint8, device="cpu")


def resident() -> float:
    """Return the resident memory of this process in MiB; 0 where the system does not say."""
    try:
        return int(_STATM.read_text().split()[1]) * mmap.PAGESIZE / _MIB
    except (OSError, ValueError, IndexError):
        return 0.0


def release() -> None:
    """Give whole pages between the blocks in use back to the system (``malloc_trim`` of glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if resident() else None
    if trim is not None:
        trim(0)


def released(items: Iterable[T]) -> Iterator[T]:
    """Yield the items; between two, release memory where the process has grown.

    Batches of some MiB come from glibc's heap. What a pass answers is kept, and lies in a gap that
    a batch has left: the next one no longer fits there, and 20 GB of data took 10 GB. Costs ten
    microseconds an item, and 10 ms where memory is released.
    """
    most = resident() + _GROWTH
    for item in items:
        yield item
        del item  # a batch, while the next one is made
        if resident() > most:
            release()
            most = max(most, resident() + _GROWTH)
