"""Batches for training: tensors on the device by index, or a loader's."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pyro_vae.errors import DataError
from pyro_vae.inference.batch import Batch, map_batch, num_rows
from pyro_vae.inference.program import Program

# Beyond this share of a GPU's free memory the data stay on the host and travel batch by batch.
_DEVICE_SHARE = 0.5


class TensorFeed:
    """Tensors indexed on the program's device by a fresh permutation each epoch.

    Arguments:
        data: One row per datum.
        batch_size: B; the last batch of an epoch may be smaller.
        device: Where the batches are used.
    """

    def __init__(self, data: Batch, batch_size: int, device: torch.device) -> None:
        self.size = num_rows(data)
        self.batch_size = min(batch_size, self.size)
        self.device = device
        self.data = map_batch(lambda leaf: leaf.to(device), data) if _fits(data, device) else data

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Yield the batches of one epoch, in an order that the seed alone decides."""
        # On the host: the same order on every device.
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed))
        home = order.to(self.device) if self._at_home() else order
        for index in home.split(self.batch_size):
            yield map_batch(lambda leaf, index=index: leaf[index].to(self.device), self.data)  # type: ignore[misc]

    def first(self) -> Batch:
        """Return one batch, to look at."""
        return map_batch(lambda leaf: leaf[: self.batch_size].to(self.device), self.data)

    def sample(self, rows: int) -> Batch:
        """Return the first rows, to judge the fit on."""
        return map_batch(lambda leaf: leaf[:rows].to(self.device), self.data)

    def _at_home(self) -> bool:
        found: list[torch.device] = []
        map_batch(lambda leaf: found.append(leaf.device) or leaf, self.data)  # type: ignore[func-returns-value]
        return all(device.type == self.device.type for device in found)


class LoaderFeed:
    """The batches of a ``DataLoader``, moved to the program's device and precision.

    Arguments:
        loader: A loader over a data set of known length.
        adapt: Turns what the loader yields into a batch.
    """

    def __init__(self, loader: DataLoader, adapt: Callable[[Any], Batch]) -> None:
        try:
            self.size = len(loader.dataset)  # type: ignore[arg-type]
        except TypeError as error:
            raise DataError(
                "the DataLoader's data set has no length; N is needed for the N/B scale"
            ) from error
        if self.size == 0:
            raise DataError("got no data (0 rows), expected at least one row")
        self.loader = loader
        self.adapt = adapt

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Yield the loader's batches; a loader without a generator of its own follows the seed."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            batches = iter(self.loader)
        for batch in batches:
            yield self.adapt(batch)

    def first(self) -> Batch:
        """Return one batch, to look at (no random number of the run is used up)."""
        with torch.random.fork_rng([]):
            return self.adapt(next(iter(self.loader)))

    def sample(self, rows: int) -> Batch:
        """Return up to ``rows`` rows of the first batch, to judge the fit on."""
        return map_batch(lambda leaf: leaf[:rows], self.first())


def make_feed(program: Program, data: Any, batch_size: int) -> TensorFeed | LoaderFeed:
    """Return the feed for tensors, arrays, a ``Dataset`` or a ``DataLoader``.

    Raises:
        DataError: No data, or data that cannot be read.
    """
    if isinstance(data, TensorDataset):
        data = data.tensors if len(data.tensors) > 1 else data.tensors[0]
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=batch_size, shuffle=True)
    if isinstance(data, DataLoader):
        return LoaderFeed(data, lambda batch: program.adapt(_single(batch)))
    return TensorFeed(program.adapt(data), batch_size, program.device)


def _single(batch: Any) -> Any:
    """Unwrap the one-tensor list that a loader makes of a one-tensor data set."""
    if isinstance(batch, list | tuple) and len(batch) == 1:
        return batch[0]
    return batch


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
