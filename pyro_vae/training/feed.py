"""Batches for training: tensors on the device by index, or a loader's."""

import itertools
import operator
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from pyro_vae.arguments import counted, positive
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.program.batches.batch import (
    Batch,
    dense,
    map_batch,
    map_rows,
    named_arrays,
    named_leaves,
    num_rows,
)
from pyro_vae.program.batches.sparse_rows import SparseRows
from pyro_vae.program.batches.streams import (
    by_rows,
    filled,
    is_stream,
    is_table,
    join_batches,
    tensors_of,
    told_unmade,
)
from pyro_vae.program.parameters.modules import generators_kept
from pyro_vae.program.program import Program
from pyro_vae.storage.random_state import seeded_outside_torch
from pyro_vae.training.parallel import World
from pyro_vae.training.shared_buffers import digest

# Beyond this share of a GPU's free memory the data stay on the host and travel batch by batch.
_DEVICE_SHARE = 0.5

_END = object()  # what an exhausted loader answers
_COMPARED = 16  # rows by which data sets are told apart
_MANY = 2**22  # places in a data set that are counted at once

Size = int | Literal["count", "any"]
ANY: Literal["any"] = "any"  # N, where nobody asks for it


class TensorFeed:
    """Tensors indexed on the program's device by a fresh permutation each epoch.

    Arguments:
        data: One row per datum.
        batch_size: B; the last batch of an epoch may be smaller, or larger by a row: a last one of
            one row, of which batch normalisation knows no variance, is joined to the one before.
        device: Where the batches are used.
        world: The processes that train together; None is this one alone.
    """

    def __init__(
        self, data: Batch, batch_size: int, device: torch.device, world: World | None = None
    ) -> None:
        self.size = num_rows(data)
        self.sizes = batch_sizes(self.size, batch_size)
        self.batch_size = min(batch_size, self.size) if len(self.sizes) > 1 else self.size
        self.device = device
        self.world = world or World(device)
        self.data = map_batch(lambda leaf: leaf.to(device), data) if _fits(data, device) else data

    generators: Sequence[torch.Generator] = ()  # the order follows the seed

    def __len__(self) -> int:
        return len(self.sizes)

    def epoch(self, seed: int, number: int = 0) -> Iterator[Batch]:
        """Yield this process's rows of the batches, in an order that the seed alone decides."""
        # On the host: the same order on every device. A batch of all rows keeps theirs: a guide
        # with one factor per datum needs it, and no other gains by another order.
        order = torch.arange(self.size)
        if self.batch_size < self.size:
            order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed))
        home = order.to(self.device) if self._at_home() else order
        for whole in home.split(self.sizes):
            index = self.world.share(whole)
            picked = map_rows(lambda leaf, index=index: _rows(leaf, index), self.data)  # type: ignore[misc]
            yield map_batch(lambda leaf: leaf.to(self.device), picked)

    def first(self) -> Batch:
        """Return a copy of one batch, to look at."""
        return self.sample(self.batch_size)

    def sample(self, rows: int) -> Batch:
        """Return a copy of the first rows, to judge the fit on."""
        # A copy, so that a transform in place cannot reach the caller's data.
        return map_rows(lambda leaf: leaf[:rows].to(self.device, copy=True), self.data)

    def _at_home(self) -> bool:
        found: list[torch.device] = []
        map_batch(lambda leaf: found.append(leaf.device) or leaf, self.data)  # type: ignore[func-returns-value]
        return all(device.type == self.device.type for device in found)


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
        self.sampler = _row_sampler(loader)
        self.dealt = isinstance(self.sampler, DistributedSampler) and self.world.size > 1
        if self.dealt:
            _require_share(self.sampler, self.world)
        self.stream = isinstance(loader.dataset, IterableDataset)
        self.sharded = False  # known from the first batch
        self._filled = 0  # rows that the samplers of all processes deal a second time
        self._apart = False  # whether each process has a data set of its own
        self._first: Batch | None = None
        self._checked = False
        self._batches = 0  # of the last whole epoch, where all processes read the same
        own = self._items()
        if own == 0:
            raise DataError("got no data (0 rows), expected at least one row")
        # First: how the processes count the rows together hangs on it.
        self.world.agree(
            _of_one_kind(self._kind(), size) | {"its length is known": own is not None}
        )
        if self.world.size > 1:
            self.first()
        self.size = self._total(size, own)
        self._require_apart()

    def _kind(self) -> str:
        rows = "batches of a stream" if self.stream else "batches of a data set"
        return f"{rows}, dealt by a DistributedSampler" if self.dealt else rows

    def _total(self, told: Size | None, own: int | None) -> int:
        """Return N, from the sampler, the data set or the user.

        Where a loader of one process alone makes batches of other rows than its items, all count.
        """
        if own is not None and self.world.any(not self._deals_rows(own)):
            return int(told) if isinstance(told, int) else self._count()
        if own is not None and told == ANY:
            self._apart = self._has_own_set()
            return own
        if own is not None:
            return _agreed(told, self._of_all(own, told))
        if told is None:
            raise DataError(
                "got a stream, expected one that tells its length, since N is needed for the N/B "
                'scale; pass size=N, or size="count" to have its rows counted before training'
            )
        return self._count() if told == "count" else int(told if told != ANY else 0)

    def _of_all(self, own: int, told: Size | None) -> int:
        """Return the rows of an epoch, where the samplers of all processes deal each its own.

        Samplers that fill their parts up to one length, as a DistributedSampler does, deal fewer
        rows twice than there are processes. Where N is told, and is what all deal together,
        each process may have a data set of its own.

        Raises:
            DataError: They are more than there are: processes deal the same ones.
        """
        if self.stream or not self.sharded:
            return own
        dealt = round(self.world.sum(torch.tensor(float(own)).double()).item())
        there = len(self.loader.dataset)  # type: ignore[arg-type]
        self._filled = max(0, dealt - there)
        # Said to be so: it cannot be seen. In any process: another may have all rows.
        self._apart = self.world.any(dealt == told and dealt > there)
        if self._apart:
            self._filled = 0
        elif self._filled >= self.world.size:
            raise DataError(
                f"data: the samplers of {self.world.size} processes deal {dealt} rows in other "
                f"orders, and the data set has {there}; give all of them the whole data set, in "
                "one order (pv.fit deals the rows out) or with a DistributedSampler; where each "
                f"process has a data set of its own, say so by size={dealt}"
            )
        return dealt - self._filled

    def _has_own_set(self) -> bool:
        """Return whether each process has a data set of its own, by rows of the same numbers.

        They are read twice: of rows that come otherwise each time nothing is known. One set in
        other orders is taken for several too: where rows are judged the mean is the same.
        """
        if self.stream or not self.sharded or self.loader.batch_sampler is None:
            return False
        found = ""
        with suppress(Exception):  # of a user's data set: the loader may go about it otherwise
            first, again = (self._digests_of_some() for _ in range(2))
            found = first if first == again else ""
        told = self.world.gather(found.encode())
        return b"" not in told and len(set(told)) == len(told)

    def _digests_of_some(self) -> str:
        draws = _SharedDraws(0)
        with draws.continued():
            return " ".join(digest(leaf) for _, leaf in named_leaves(self.spread(_COMPARED)))

    def _require_apart(self) -> None:
        """Refuse samplers that deal one place of the data set to several processes.

        Of a stream this cannot be told: its rows have no numbers, and equal ones may be two data.

        Raises:
            DataError: They do; in all processes.
        """
        if self.stream or self._apart or not self.sharded:
            return
        dealt, there = self._places(), len(self.loader.dataset)  # type: ignore[arg-type]
        told = self.world.gather(str(there if dealt is not None else "unread").encode())
        if dealt is None or len(set(told)) > 1:
            return
        left_out, doubled, first = 0, 0, ""
        for start in range(0, there, _MANY):
            own = torch.zeros(min(_MANY, there - start))
            own[dealt[(dealt >= start) & (dealt < start + _MANY)] - start] = 1
            found = self.world.sum(own)
            left_out += int((found == 0).sum())
            places = (found > 1).nonzero().flatten().tolist()
            doubled += len(places)
            if places and not first:
                first = f"{int(found[places[0]])} processes deal row {start + places[0]}"
        if first and (left_out or doubled > self._filled):
            raise DataError(
                f"data: the samplers of {first} (and {doubled - 1} others so); let their parts not "
                "overlap, or give all processes the whole data set in one order (pv.fit deals the "
                "rows out)"
            )

    def _places(self) -> Tensor | None:
        """Return what this process's sampler deals, where it can be read without using it up.

        Draws with replacement are no parts of the data.
        """
        loader, places = self.loader, self._own_batches()
        if places is not None:
            places = itertools.chain.from_iterable(places)
        elif loader.batch_size is not None or loader.batch_sampler is None:
            own: Any = loader.sampler
            with suppress(TypeError):
                places = None if iter(own) is own else itertools.islice(own, len(own))
        if places is None or getattr(self.sampler, "replacement", False):
            return None
        draws = _SharedDraws(0)  # as in an epoch: parts of an order that all share
        with _kept(self.generators), draws.continued(), suppress(TypeError):
            return torch.from_numpy(np.fromiter(map(operator.index, places), np.int64))
        return None

    def _items(self) -> int | None:
        """Return how many items an epoch has, where that is known: those that a sampler deals."""
        batches = self._own_batches()
        if batches is not None:
            with _kept(self.generators), torch.random.fork_rng([]), generators_kept():
                return sum(map(len, batches))
        by_sampler = self.loader.batch_size is not None and not (self.dealt or self.stream)
        for source in (self.loader.sampler, self.loader.dataset)[0 if by_sampler else 1 :]:
            with suppress(TypeError):
                return len(source)  # type: ignore[arg-type]
        return None

    def _own_batches(self) -> Any:
        """Return a user's sampler of batches, where it can be read without using it up."""
        own: Any = self.loader.batch_sampler if self.loader.batch_size is None else None
        known = own is None or self.stream or self.dealt
        return None if known or iter(own) is own else own

    def _deals_rows(self, items: int) -> bool:
        """Return whether an item of the data set is a row, and no batch that somebody made."""
        by_rows = self.loader.batch_size is None and self.loader.batch_sampler is not None
        if by_rows or self.dealt or self.stream:
            return True
        return num_rows(self.first()) == min(self.loader.batch_size or 1, items)

    def _count(self) -> int:
        """Read a stream once, and return the rows of all processes."""
        self.first()
        with _kept(self.generators):
            own = sum(num_rows(batch) for batch in self._whole(0))
        return int(self.world.sum(torch.tensor(float(own)).double())) if self.sharded else own

    def require_all_rows(self, seen: float) -> None:
        """Refuse, once, a stream that had other rows than N in its first epoch.

        Arguments:
            seen: Rows of that epoch, in this process.

        Raises:
            DataError: Fewer or more; in all processes.
        """
        known = self._checked or not (self.stream or self.sharded)
        self._checked = True
        if known:
            return
        found = round(self.world.sum(torch.tensor(seen).double()).item())
        dropped = (self.batch_size or 1) * self.world.size if self.loader.drop_last else 1
        if not self.size - dropped < found <= self.size + self._filled:
            raise DataError(
                f"data: an epoch had {counted(found, 'row')} over {self.world.size} processes, "
                f"and N is {self.size}; let every row come once an epoch, and size= be their number"
            )

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

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """The generators that the loader or its sampler draws from, which a checkpoint holds."""
        own = (self.loader.generator, getattr(self.sampler, "generator", None))
        return [each for each in dict.fromkeys(own) if isinstance(each, torch.Generator)]

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
        for number in itertools.count():
            batch, known = next(batches, None), self._batches
            early = batch is None and 0 < number < known
            if early and not self.world.meet():  # no collective: the others may be in a step
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
        data = data.source if isinstance(data, _Batches) else data
        for part in (loader, self.sampler, loader.batch_sampler, data):
            if callable(begin := getattr(part, "set_epoch", None)):
                # The number, as all loops do; that sampler shuffles by our seed.
                begin(seed if isinstance(part, DistributedSampler) else number)

    def _whole(self, seed: int, number: int = 0) -> Iterator[Batch]:
        """Yield the batches as the loader makes them."""
        self._begin(seed, number)
        draws = _Draws(seed) if self.world.size == 1 else _SharedDraws(seed)
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
        with _kept(self.generators):
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


def _rows(leaf: Tensor | SparseRows, index: Tensor) -> Tensor:
    """Return some rows, in the tensor's own memory format; sparse ones are made dense."""
    if isinstance(leaf, SparseRows):
        return leaf[index.to(leaf.device)]
    # The first is up to three times as fast on the CPU, and the second keeps channels last.
    return leaf.index_select(0, index) if leaf.is_contiguous() else leaf[index]


def make_feed(
    program: Program,
    data: Any,
    batch_size: int,
    *,
    shuffle: bool = True,
    world: World | None = None,
    adapt: Callable[[Any], Batch] | None = None,
    size: Size | None = None,
) -> TensorFeed | LoaderFeed:
    """Return the feed for tensors, arrays, data sets, loaders and other iterables of batches.

    Arguments:
        program: What the batches are for.
        data: In any of these forms.
        batch_size: B; a loader brings its own.
        shuffle: Whether a data set is read in an order of the seed.
        world: The processes that train together; None is this one alone.
        adapt: Turns data into a batch; None is what the program takes as it is.
        size: N, of a stream that does not tell; ``"count"`` has its rows counted.

    Raises:
        ConfigError: N is told, and the data have other rows.
        DataError: No data, data that cannot be read, or a stream of unknown length.
    """
    adapt = adapt or program.adapt
    size = size if size in (None, "count", ANY) else positive("size", size)
    data = by_rows(tensors_of(data), program.row_precision)
    data = _as_loader(data, batch_size, shuffle)
    if isinstance(data, DataLoader):
        return LoaderFeed(data, lambda batch: adapt(program.unwrapped(batch)), world, size)
    batch = adapt(data)
    if world is not None:
        kinds = {name: str(leaf.dtype) for name, leaf in named_arrays(batch)}
        world.agree(_of_one_kind("tensors", size) | {"types": kinds})
    if adapt == program.adapt:  # it is what the program takes: no transform is to come
        batch = program.rows.numbered(batch)
    feed = TensorFeed(batch, batch_size, program.device, world)
    _agreed(size, feed.size)
    return feed


def _of_one_kind(kind: str, size: Size | None) -> dict[str, Any]:
    """Return what processes must have in common before they read data: it decides what follows."""
    return {"valid": kind} if size == ANY else {"data": kind, "size": size}


def gather(feed: TensorFeed | LoaderFeed) -> Batch:
    """Return the data of a feed as one batch, on its device.

    Raises:
        DataError: Batches that do not fit together.
    """
    if isinstance(feed, TensorFeed):
        return map_batch(lambda leaf: leaf.to(feed.device), feed.data)
    return join_batches(list(feed.whole(0)))


def _as_loader(data: Any, batch_size: int, shuffle: bool) -> Any:
    """Return data that come batch by batch as a loader, and other data as they are."""
    if isinstance(data, DataLoader) or not is_stream(data):
        return data
    if is_table(data):
        return DataLoader(filled(data), batch_size=batch_size, shuffle=shuffle)
    if isinstance(data, IterableDataset):
        return DataLoader(data, batch_size=batch_size)
    return DataLoader(_Batches(data), batch_size=None, collate_fn=lambda batch: batch)


class _Batches(IterableDataset):
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


def _agreed(told: Size | None, own: int) -> int:
    """Return N as the data tell it.

    Raises:
        ConfigError: The user tells another.
    """
    if told not in (None, "count", ANY, own):
        raise ConfigError(
            f"size: got {told}, and the data have {counted(own, 'row')}; leave size out"
        )
    return own


@contextmanager
def _kept(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Put generators back to where they stand."""
    before = [generator.get_state() for generator in generators]
    yield
    for generator, state in zip(generators, before, strict=True):
        generator.set_state(state)


class _Draws:
    """A stream of torch's random numbers, drawn from by and by, beside the global one."""

    def __init__(self, seed: int) -> None:
        self._torch = torch.Generator().manual_seed(seed).get_state()

    @contextmanager
    def continued(self) -> Iterator[None]:
        """Draw on from where the stream stands inside; the global generators do not move."""
        before = torch.get_rng_state()  # by hand: fork_rng takes three times as long
        torch.set_rng_state(self._torch)
        try:
            yield
            self._torch = torch.get_rng_state()
        finally:
            torch.set_rng_state(before)


class _SharedDraws(_Draws):
    """NumPy's and Python's too: processes whose own differ read a loader in one order."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        with seeded_outside_torch(seed):
            self._note()

    def _note(self) -> None:
        self._outside = np.random.get_state(), random.getstate()  # noqa: NPY002

    @contextmanager
    def continued(self) -> Iterator[None]:
        """Draw on from where the streams stand inside; the global generators do not move."""
        with super().continued(), generators_kept():
            numpy, python = self._outside
            np.random.set_state(numpy)  # noqa: NPY002
            random.setstate(python)
            yield
            self._note()


def _row_sampler(loader: DataLoader) -> Any:
    """Return what picks the rows of a loader, behind a sampler of batches too."""
    by_batches = loader.batch_sampler if loader.batch_size is None else None
    return getattr(by_batches, "sampler", loader.sampler)


def _require_share(sampler: DistributedSampler, world: World) -> None:
    """Refuse a sampler that deals to another number of processes, or to another of them.

    Raises:
        ConfigError: Some rows would be left out, or come twice.
    """
    if (sampler.rank, sampler.num_replicas) != (world.rank, world.size):
        raise ConfigError(
            f"data: got a DistributedSampler for process {sampler.rank} of {sampler.num_replicas} "
            f"in process {world.rank} of {world.size}; leave num_replicas and rank out"
        )


def _fits(data: Batch, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    sizes: list[int] = []

    def count(leaf: Tensor) -> Tensor:
        sizes.append(leaf.numel() * leaf.element_size())
        return leaf

    map_batch(count, data)
    free, _ = torch.cuda.mem_get_info(device)
    return sum(sizes) < _DEVICE_SHARE * free
