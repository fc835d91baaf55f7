"""How an epoch falls into batches: none is of one row where that can be helped."""

from collections.abc import Iterable, Iterator
from contextlib import suppress

import torch

from pyro_vae.errors import DataError
from pyro_vae.program.batches.batch import Batch, map_batch, num_rows
from pyro_vae.program.batches.streams import join_batches


def batch_sizes(rows: int, size: int) -> list[int]:
    """Return how many rows each batch has; a last one of one row is joined to the one before.

    Of one row, batch normalisation knows no variance.
    """
    whole, rest = divmod(rows, size)
    sizes = [size] * whole
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes


def with_last_joined(batches: Iterable[Batch], total: int = 0) -> Iterator[Batch]:
    """Yield batches; a last one of one row is joined to the one before, where the two fit.

    Those that are held back are copies: a loader may fill one buffer again and again.

    Arguments:
        batches: Of an epoch.
        total: Its rows; 0 where they are not known, and each batch is held back until it is clear
            that it is not one before the last row.
    """
    held: list[Batch] = []
    seen = 0
    for batch in batches:
        with suppress(DataError):  # a transform may have to make rows of it first
            seen += num_rows(batch)
        if total and not held and seen != total - 1:
            yield map_batch(torch.clone, batch)  # a program may write to it, a loader fill it anew
            continue
        held.append(map_batch(torch.clone, batch))
        if len(held) > 2:
            yield held.pop(0)
    if len(held) == 2 and num_rows(held[1]) == 1 < num_rows(held[0]):
        with suppress(DataError):
            held = [join_batches(held)]
    yield from held
