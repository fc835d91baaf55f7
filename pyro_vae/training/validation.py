"""Validation rows: a batch in memory, or a stream that is read anew each time it is judged."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch

from pyro_vae.errors import ConfigError, DataError
from pyro_vae.program.batches.batch import Batch, chunks, named_leaves, num_rows
from pyro_vae.program.batches.streams import join_batches
from pyro_vae.program.passes import most_rows
from pyro_vae.program.program import Program
from pyro_vae.training.counted_rows import ANY
from pyro_vae.training.feed import TensorFeed, gather, make_feed
from pyro_vae.training.fingerprints import describe_data, describe_rows
from pyro_vae.training.loader_feed import LoaderFeed
from pyro_vae.training.parallel import World
from pyro_vae.training.shared_buffers import digest

_ROWS = 1024  # of a piece: as many as a pass over rows in memory has


class Validation:
    """The rows that epochs are judged on, never more of a stream in memory than one pass holds.

    Rows in memory are checked at once, those of a stream as they come for the first time. Latents
    that couple all rows need them in memory: such a program has them gathered.

    Arguments:
        program: What is judged.
        data: In any form that ``fit`` takes; a stream is read in its own order. Of several
            processes all have all rows, or each a loader or a data set of its own rows.
        batch_size: Rows of a batch, where the data do not say.
        world: The processes that judge together, each its rows.

    Raises:
        ConfigError: Rows that a ``DistributedSampler`` deals.
        DataError: Data that the program cannot take, or of which processes read some twice.
    """

    def __init__(self, program: Program, data: Any, batch_size: int, world: World) -> None:
        self._program, self._world = program, world
        self.feed = make_feed(program, data, batch_size, shuffle=False, world=world, size=ANY)
        if isinstance(self.feed, LoaderFeed) and self.feed.dealt:
            raise ConfigError(
                "valid: got a loader with a DistributedSampler, which deals some rows twice, "
                "expected all validation data in each process, whose rows pv.fit deals out, or in "
                "each a loader of rows of its own"
            )
        together = program.sites.dependence.needs_all or program.rows.total is not None
        in_memory = isinstance(self.feed, TensorFeed) or together
        self._all = gather(self.feed) if in_memory else None
        self.feed.first()  # which tells whether each process reads rows of its own
        self.apart = isinstance(self.feed, LoaderFeed) and self.feed.sharded
        self._checked = 0  # rows of a stream
        program.check(self.first)

    @property
    def first(self) -> Batch:
        """The rows, or a batch of a stream, to look at."""
        return self.feed.first() if self._all is None else self._all

    def describe(self) -> dict[str, Any]:
        """Return shapes, types and a hash of a few rows."""
        return describe_data(self.feed) if self._all is None else describe_rows(self._all)

    def require_read(self) -> None:
        """Tell of rows that this process alone cannot read, before descriptions are compared.

        Raises:
            DataError: Names the data set's own error; the other processes end with it.
        """
        error = self.feed.unread if isinstance(self.feed, LoaderFeed) else None
        failed = self._world.sum(torch.tensor(float(error is not None), dtype=torch.float64))
        if error is not None and failed < self._world.size:
            raise DataError(
                f"valid: the data set raised {type(error).__name__}: {error}, in process "
                f"{self._world.rank} and not in all; see to it that all can read every row"
            ) from error

    def pieces(self) -> Iterator[tuple[Batch, float]]:
        """Yield this process's rows, and for how many of all together they stand."""
        if self._all is not None:
            yield self._own(self._all)
            return
        assert isinstance(self.feed, LoaderFeed)  # tensors are in memory
        start, first = 0, not (self._checked or self.apart)
        seen = hashlib.sha256()
        for piece in _of_a_pass(self._program, self.feed.whole(0)):
            if first and self._world.size > 1:
                for _, leaf in named_leaves(piece):
                    seen.update(digest(leaf).encode())
            if start >= self._checked:
                self._program.check(piece)
            start += num_rows(piece)
            yield self._own(piece)
        self._checked = max(start, self._checked)
        if first and len(set(self._world.gather(seen.digest()))) > 1:
            raise DataError(
                f"valid: batches are others in each of {self._world.size} processes, and the first "
                "was the same in all; give all of them all rows in one order, or rows of their own "
                "from the first batch on"
            )

    def _own(self, batch: Batch) -> tuple[Batch, float]:
        if self.apart:
            return batch, num_rows(batch)
        part = self._world.share(batch)
        return part, self._world.rows(part)


def _of_a_pass(program: Program, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the rows of batches in other batches, of as many rows as a pass holds.

    Those that do not fit together (sequences of other lengths) stay as they come.
    """
    held: list[Batch] = []
    for batch in batches:
        held.append(batch)
        most = most_rows(program, batch, _ROWS)
        if sum(map(num_rows, held)) < most:
            continue
        *full, last = (piece for each in _joined(held) for piece in chunks(each, most))
        yield from full
        held = [last]
    if held:
        yield from _joined(held)


def _joined(batches: list[Batch]) -> list[Batch]:
    try:
        return [join_batches(batches)]
    except DataError:
        return batches
