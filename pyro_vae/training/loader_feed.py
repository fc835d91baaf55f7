"""Batches for training that a loader makes."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from pyro_vae.arguments import counted
from pyro_vae.errors import DataError
from pyro_vae.program.batches.batch import Batch, dense, map_batch, map_rows, named_leaves, num_rows
from pyro_vae.program.batches.streams import told_unmade
from pyro_vae.training.batch_sizes import batch_sizes, with_last_joined
from pyro_vae.training.counted_rows import CountedRows, Size, of_one_kind
from pyro_vae.training.draws import Draws, SharedDraws, kept
from pyro_vae.training.parallel import World
from pyro_vae.training.samplers import Samplers

_END = object()  # what an exhausted loader answers


class LoaderFeed:
    """The batches of a ``DataLoader``, moved to the program's device and precision.

    A last batch of one row is joined to the one before, as in ``TensorFeed``, where the two fit
    together.

    Arguments:
        loader: A loader over a data set, or over batches to come.
        adapt: Turns what the loader yields into a batch.
        world: The processes that train together; None is this one alone. Each runs the loader,
            in the same order, and keeps its rows; a ``DistributedSampler`` has dealt them already,
            and so has a loader whose first batch is not the same in all. The length of such a
            stream is that of all processes; an epoch ends where none has more.
        size: N, where the data set does not tell; ``"count"`` reads them once to count their rows.
    """

    def __init__(
        self,
        loader: DataLoader,
        adapt: Callable[[Any], Batch],
        world: World | None = None,
        size: Size | None = None,
    ) -> None:
        self.loader = loader
        self.batch_size = loader.batch_size
        self.adapt = adapt
        self.world = world or World(torch.device("cpu"))
        self.samplers = Samplers(loader, self.world)
        self.dealt, self.stream = self.samplers.dealt, self.samplers.stream
        self.sharded = False  # known from the first batch
        self.unread: Exception | None = None  # what single rows of the data set have led to
        self._first: Batch | None = None
        self._batches = 0  # of the last whole epoch, where all processes read the same
        own = self.samplers.items()
        if own == 0:
            raise DataError("got no data (0 rows), expected at least one row")
        # First: how the processes count the rows together hangs on it.
        self.world.agree(of_one_kind(self._kind(), size) | {"its length is known": own is not None})
        if self.world.size > 1:
            self.first()
        self._rows = CountedRows(self, self.samplers, self.world, self.sharded, size, own)
        self.size = self._rows.total
        self.require_all_rows = self._rows.require_all

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """The generators that the loader or its sampler draws from, which a checkpoint holds."""
        return self.samplers.generators

    def _kind(self) -> str:
        rows = "batches of a stream" if self.stream else "batches of a data set"
        return f"{rows}, dealt by a DistributedSampler" if self.dealt else rows

    def __len__(self) -> int:
        loader, size = self.loader, self.loader.batch_size
        if self.stream or self.sharded:
            rows = -(-self.size // self.world.size) if self.sharded else self.size
            size = size or num_rows(self.first())
            return max(1, rows // size) if loader.drop_last else len(batch_sizes(rows, size))
        if size is None or loader.drop_last:
            return len(loader)
        rows = len(loader.sampler)  # type: ignore[arg-type]
        return len(loader) - (-(-rows // size) - len(batch_sizes(rows, size)))

    def epoch(self, seed: int, number: int = 0) -> Iterator[Batch]:
        """Yield the loader's batches; a loader without a generator of its own follows the seed.

        Sampler and data set draw from a stream of their own: what training draws in between
        changes no order.

        Arguments:
            seed: Of this epoch alone.
            number: Of the epoch, from 0, for what has an order of its own in each.
        """
        batches = self.whole(seed, number)
        if self.sharded:
            yield from self._parts(batches)
        elif self.dealt:
            yield from map(self.world.own, batches)
        else:
            yield from map(self.world.share, self._alike(batches))

    def whole(self, seed: int, number: int = 0) -> Iterator[Batch]:
        """Yield the batches that this process reads, those of the others among them or not."""
        alone = not (self.sharded or self.dealt)
        return with_last_joined(self._whole(seed, number), self.size if alone else 0)

    def _alike(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches that all processes hold: all of a first epoch are compared, later the ends.

        Raises:
            DataError: They hold others, or one has fewer; in all processes.
        """
        slowest = 0.0
        for number in itertools.count():
            begun = time.monotonic()
            batch, known = next(batches, None), self._batches
            slowest = max(slowest, time.monotonic() - begun)
            early = batch is None and 0 < number < known
            # No collective: the others may be in a step.
            if early and not self.world.meet(slowest):
                raise DataError(
                    f"data: an epoch of process {self.world.rank} ended after "
                    f"{counted(number, 'batch', 'batches')}, and others go on (the one before had "
                    f"{known}); give all processes all rows in one order, or rows of their own "
                    "from the first batch on"
                )
            if not (0 < number < known or self.world.same(batch)):
                raise DataError(
                    f"data: batch {number} is another in each of {self.world.size} processes, and "
                    "the first was the same in all; give all of them all rows in one order, or "
                    "rows of their own from the first batch on"
                )
            if batch is None:
                self._batches = number
                return
            yield batch

    def _parts(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield this process's own batches until none has more; one without is of weight 0."""
        latest = self.first()
        while True:
            batch = next(batches, None)
            if not self.world.part(batch):
                return
            latest = latest if batch is None else batch
            yield latest

    def _begin(self, seed: int, number: int) -> None:
        """Tell the epoch to all that ask: else their order is that of the first."""
        loader: Any = self.loader
        data = loader.dataset
        data = data.source if isinstance(data, Batches) else data
        for part in (loader, self.samplers.by_rows, loader.batch_sampler, data):
            if callable(begin := getattr(part, "set_epoch", None)):
                # The number, as all loops do; that sampler shuffles by our seed.
                begin(seed if isinstance(part, DistributedSampler) else number)

    def _whole(self, seed: int, number: int = 0) -> Iterator[Batch]:
        """Yield the batches as the loader makes them."""
        self._begin(seed, number)
        draws = Draws(seed) if self.world.size == 1 else SharedDraws(seed)
        with draws.continued():
            batches = iter(self.loader)
        while True:
            with draws.continued(), told_unmade():
                batch = next(batches, _END)
            if batch is _END:
                return
            yield dense(self.adapt(batch))

    def first(self) -> Batch:
        """Return a copy of one batch, to look at."""
        if self._first is None:
            self._first = self._look()
            kinds = {name: str(leaf.dtype) for name, leaf in named_leaves(self._first)}
            self.world.agree({"first batch": kinds})
            self.sharded = not self.dealt and not self.world.same(self._first)
        return map_batch(torch.clone, self._first)

    def _look(self) -> Batch:
        """Return a batch; the loader's own generator is put back."""
        with kept(self.generators):
            batch = next(self._whole(0), None)
        if batch is None:
            raise DataError("got no data (the stream yields nothing), expected batches")
        return batch

    def sample(self, rows: int) -> Batch:
        """Return up to ``rows`` rows of one batch, to judge the fit on."""
        return map_rows(lambda leaf: leaf[:rows], self.first())

    def spread(self, rows: int) -> Batch:
        """Return rows spread over the data set, as it gives them; of a stream, its first batch.

        The caller puts the random state back; whatever the data set raises is raised.
        """
        data: Any = self.loader.dataset
        if self.stream or self.loader.batch_sampler is None:
            return self._look()
        places = torch.linspace(0, len(data) - 1, min(rows, len(data)), dtype=torch.float64)
        items = [data[place] for place in places.long().tolist()]
        return dense(self.adapt(self.loader.collate_fn(items)))

    def count(self) -> int:
        """Read a stream once, and return the rows of all processes."""
        self.first()
        with kept(self.generators):
            own = sum(num_rows(batch) for batch in self._whole(0))
        return int(self.world.sum(torch.tensor(float(own)).double())) if self.sharded else own


class Batches(IterableDataset):
    """Batches of an iterable that begins anew each time.

    Raises:
        DataError: It is an iterator.
    """

    def __init__(self, source: Iterable[Any]) -> None:
        if isinstance(source, Iterator):
            raise DataError(
                f"got {type(source).__name__}, an iterator, which can be read once, and an epoch "
                "reads all batches anew; give an object whose __iter__ makes a new iterator"
            )
        self.source = source

    def __iter__(self) -> Iterator[Any]:
        return iter(self.source)
