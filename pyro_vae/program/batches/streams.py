"""Data that come batch by batch: data sets, loaders and other iterables, in their own order."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)
from torch.utils.data.distributed import DistributedSampler

from pyro_vae.errors import DataError, PyroVaeError
from pyro_vae.program.batches.batch import (
    Batch,
    map_arguments,
    map_rows,
    named_arguments_of,
    num_rows,
    rows_of,
)

_END = object()  # what an exhausted stream answers
_OF_ALL = (RandomSampler, SequentialSampler, DistributedSampler)  # these pick every row
_ARRAYS = (Tensor, np.ndarray, Mapping, list, tuple, str, bytes, memoryview, PackedSequence)


def is_stream(data: Any) -> bool:
    """Return whether data are batches to come, and not a batch."""
    if isinstance(data, Dataset | DataLoader) or is_table(data):
        return True
    array = hasattr(data, "__array__") or hasattr(data, "toarray")
    return isinstance(data, Iterable) and not isinstance(data, _ARRAYS) and not array


def is_table(data: Any) -> bool:
    """Return whether data are a data set of rows by number: torch's, or one of its protocol."""
    if isinstance(data, Dataset):
        return not isinstance(data, IterableDataset)
    return hasattr(data, "__getitems__") and hasattr(data, "__len__")


def frames_of(data: Any) -> list[Any]:
    """Return the data frames that data are, alone or in one container; else none."""
    given = tuple(data.values()) if isinstance(data, Mapping) else data
    held = list(given) if isinstance(given, list | tuple) else [given]
    return held if all(hasattr(each, "columns") for each in held) else []


def tensors_of(data: Any) -> Any:
    """Return the tensors behind a ``TensorDataset``, other data as they are."""
    if isinstance(data, TensorDataset):
        return data.tensors[0] if len(data.tensors) == 1 else data.tensors
    return data


def by_rows(data: Any, precision: torch.dtype | None) -> Any:
    """Return arrays that map files, of another type than a program's, as a data set of their rows.

    As a batch they would be converted whole, and all in memory. Other data are as they were.
    """
    leaves = [leaf for _, leaf in named_arguments_of(data)]
    mapped = [leaf for leaf in leaves if isinstance(leaf, np.memmap) and leaf.ndim]
    if precision is None or all(str(precision) == f"torch.{leaf.dtype}" for leaf in mapped):
        return data
    alike = {len(leaf) if isinstance(leaf, np.ndarray) and leaf.ndim else 0 for leaf in leaves}
    return _Rows(data, len(mapped[0])) if alike == {len(mapped[0])} else data


class _Rows(Dataset):
    """The rows of one array, or of a tuple or dict of them."""

    def __init__(self, data: Any, rows: int) -> None:
        self._data, self._rows = data, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, place: int) -> Any:
        return map_arguments(lambda leaf: np.array(leaf[place]), self._data)


def batches(data: Any, rows: int) -> Iterator[Any]:
    """Yield the batches of a stream, as they come; no number of torch's global generator is used.

    A data set with a length is read in its own order, and so is a loader that shuffles it or drops
    its last rows: an answer per datum stands at the place of its datum.

    Arguments:
        data: A ``Dataset``, a ``DataLoader`` or any iterable of batches.
        rows: Of a batch, where the data do not say.

    Raises:
        DataError: An item that is no batch, or nothing at all.
    """
    count, source = 0, iter(_iterate(data, rows))
    while True:
        with told_unmade():
            batch = next(source, _END)
        if batch is _END:
            break
        count += 1
        yield batch
    if count == 0:
        raise DataError(f"got no data ({type(data).__name__} yields nothing), expected batches")


@contextmanager
def told_unmade() -> Iterator[None]:
    """Say of items inside that they make no batch: of several shapes, names or kinds.

    Raises:
        DataError: In place of what the loader raises.
    """
    try:
        yield
    except PyroVaeError:
        raise
    except (TypeError, RuntimeError, KeyError) as error:
        raise DataError(
            f"the data's items make no batch ({type(error).__name__}: {error}); give items of one "
            "shape and kind, or a DataLoader with a collate_fn"
        ) from error


def _iterate(data: Any, rows: int) -> Iterable[Any]:
    if isinstance(data, DataLoader):
        return _in_order(data)
    if isinstance(data, IterableDataset) or is_table(data):
        return DataLoader(filled(data), batch_size=rows, generator=torch.Generator())
    return data


def filled(data: Any) -> Any:
    """Return a data set that has rows, or does not tell how many.

    Raises:
        DataError: It has none.
    """
    if is_table(data) and len(data) == 0:
        raise DataError("got no data (0 rows), expected at least one row")
    return data


def _in_order(loader: DataLoader) -> DataLoader:
    """Return a loader of the same batches, in the order of the data set where it has one."""
    by_batches: Any = loader.batch_sampler
    known = by_batches is None or type(by_batches) is BatchSampler
    if not known or not isinstance(getattr(by_batches, "sampler", loader.sampler), _OF_ALL):
        return loader
    return DataLoader(
        loader.dataset,
        batch_size=getattr(by_batches, "batch_size", None),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator(),
    )


def single(batch: Any) -> Any:
    """Unwrap the one-tensor list that a loader makes of a one-tensor data set."""
    if isinstance(batch, list | tuple) and len(batch) == 1:
        return batch[0]
    return batch


def join_batches(pieces: list[Batch]) -> Batch:
    """Return batches as one; what has no rows is the same in all, and stays as it is.

    Raises:
        DataError: They do not fit together; names the argument.
    """
    if not pieces:
        raise DataError("got no data (nothing is left to read), expected batches")
    given = [dict(named_arguments_of(piece)) for piece in pieces]
    for names in given[1:]:
        if names.keys() != given[0].keys():
            raise DataError(
                f"the batches do not fit together: got arguments {sorted(names)} after "
                f"{sorted(given[0])}, expected the same in each"
            )
    rows = _rows_of_each(pieces, given)
    try:
        whole = iter([_joined(name, [each[name] for each in given], rows) for name in given[0]])
    except (RuntimeError, TypeError) as error:
        raise DataError(f"the batches do not fit together: {error}") from error
    return map_arguments(lambda leaf: next(whole), pieces[0])


def _rows_of_each(pieces: list[Batch], given: list[dict[str, Any]]) -> list[int]:
    """Return the rows of each batch; beside a constant, they are what differs between batches.

    Raises:
        DataError: Arguments of several lengths may be the rows.
    """
    try:
        return [num_rows(piece) for piece in pieces]
    except DataError:
        lengths = {name: tuple(rows_of(each[name]) for each in given) for name in given[0]}
        told = {
            found
            for name, found in lengths.items()
            if None not in found and not all(_equal(each[name], given[0][name]) for each in given)
        }
        if len(told) != 1:
            raise
        return list(told.pop())  # type: ignore[arg-type]


class SpreadRows:
    """Rows from all over a stream, evenly spaced: every one of a short stream.

    Arguments:
        most: How many are held, at most.
    """

    def __init__(self, most: int) -> None:
        self._most, self._every, self._seen = most, 1, 0
        self._held: list[Batch] = []

    def add(self, batch: Batch) -> None:
        """Hold every so manieth row of a batch; twice as few where they have become too many."""
        rows = num_rows(batch)
        first = -self._seen % self._every
        self._seen += rows
        if first < rows:
            self._held.append(_picked(batch, torch.arange(first, rows, self._every)))
        while sum(map(num_rows, self._held)) > self._most:
            self._every *= 2
            self._thin()

    def _thin(self) -> None:
        """Let go of every other row, batch by batch: all of them are never held twice."""
        thinned, seen = [], 0
        while self._held:
            batch = self._held.pop(0)
            places = torch.arange(seen % 2, num_rows(batch), 2)
            seen += num_rows(batch)
            if len(places):
                thinned.append(_picked(batch, places))
        self._held = thinned

    def joined(self) -> Batch:
        """Return the rows that are held."""
        return join_batches(self._held)


def _picked(batch: Batch, places: Tensor) -> Batch:
    return map_rows(lambda leaf: leaf[places.to(leaf.device)], batch)


def _joined(name: str, parts: list[Any], rows: list[int]) -> Any:
    """Return an argument of several batches as one.

    Arguments:
        name: Its name.
        parts: It, of each batch.
        rows: Of each batch. One tensor in all batches is a constant, however long.
    """
    one = len(parts) > 1 and all(_is_same_memory(part, parts[0]) for part in parts)
    if not one and [rows_of(part) for part in parts] == rows:
        if isinstance(parts[0], PackedSequence):
            steps = [row for part in parts for row in unpack_sequence(part)]
            return pack_sequence(steps, enforce_sorted=False)
        shapes = sorted({tuple(part.shape[1:]) for part in parts})
        if len(shapes) > 1:
            raise DataError(
                f"the batches do not fit together: argument {name!r} has data of shape {shapes[0]} "
                f"and {shapes[1]}, expected one; pad sequences to one length (pv.data.pad), or ask "
                "for each batch alone"
            )
        return torch.cat(parts)
    if all(_equal(part, parts[0]) for part in parts[1:]):
        return parts[0]
    raise DataError(
        f"the batches do not fit together: argument {name!r} has not a row for each of their "
        f"{sum(rows)} data, and is another in each; expected rows, or one value (None too) in all"
    )


def _is_same_memory(one: Any, other: Any) -> bool:
    tensors = isinstance(one, Tensor) and isinstance(other, Tensor)
    return tensors and one.data_ptr() == other.data_ptr() and one.shape == other.shape


def _equal(one: Any, other: Any) -> bool:
    """Return whether two constants are the same."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return one is other or (type(one) is type(other) and bool(one == other))
