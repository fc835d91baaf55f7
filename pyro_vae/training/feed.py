"""Batches for training: tensors on the device by index, or a loader's."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pyro_vae.arguments import positive
from pyro_vae.program.batches.batch import Batch, map_batch, map_rows, named_arrays, num_rows
from pyro_vae.program.batches.sparse_rows import SparseRows
from pyro_vae.program.batches.streams import (
    by_rows,
    filled,
    is_stream,
    is_table,
    join_batches,
    tensors_of,
)
from pyro_vae.program.program import Program
from pyro_vae.training.batch_sizes import batch_sizes
from pyro_vae.training.counted_rows import ANY, Size, agreed, of_one_kind
from pyro_vae.training.loader_feed import Batches, LoaderFeed
from pyro_vae.training.parallel import World

# Beyond this share of a GPU's free memory the data stay on the host and travel batch by batch.
_DEVICE_SHARE = 0.5


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
        world.agree(of_one_kind("tensors", size) | {"types": kinds})
    if adapt == program.adapt:  # it is what the program takes: no transform is to come
        batch = program.rows.numbered(batch)
    feed = TensorFeed(batch, batch_size, program.device, world)
    agreed(size, feed.size)
    return feed


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
    return DataLoader(Batches(data), batch_size=None, collate_fn=lambda batch: batch)


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
