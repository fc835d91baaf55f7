"""A list of batches, made into one: it looks like the arguments of a function, which may be two."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import counted
from pyro_vae.callers import of_user
from pyro_vae.errors import DataError
from pyro_vae.program.batches.batch import Batch, as_argument, map_arguments, takes
from pyro_vae.program.batches.streams import join_batches


def joined(data: Any, model: Callable[..., Any], runs: Callable[[Batch], bool]) -> Any:
    """Return a list of batches (dicts; tuples or lists of a model's arguments) as one batch.

    Other data as they are. Where the list itself could be the arguments too, which are containers
    then, the program is run: they are, if it runs on them. So it is where a model takes one
    argument, which may be a batch, or the list.

    Arguments:
        data: Of any form.
        model: The user's.
        runs: Whether the program runs on a batch.

    Raises:
        DataError: Batches that do not fit together, data one by one, or tensors that may be either.
    """
    if not isinstance(data, list) or not data:
        return data
    listed = takes(model, tuple(data), {})
    if all(isinstance(each, Tensor) and not each.dim() for each in data):  # as of coin flips
        return data if listed else torch.stack(data)
    if all(isinstance(each, Mapping) for each in data):
        dicts = [map_arguments(as_argument, each) for each in data]
        _tell_of_copies(dicts)
        return join_batches(dicts)
    one = takes(model, (data,), {})  # the list may be one argument
    table = rows_of_numbers(data) if one else None
    if table is not None:
        return data if listed and runs(data) else table
    if all(isinstance(each, Tensor) for each in data):
        if one and not listed and _of_one_shape(data) and not runs((data,)):
            raise DataError(
                f"got a list of {counted(len(data), 'tensor')}, of which each may be a batch or a "
                "datum; give torch.cat(data) if these are batches, torch.stack(data) if each is "
                "a datum, and the one that the program is for (transform=lambda batch: batch[0] "
                "in pv.fit) if they are several arguments"
            )
        return data
    if not all(isinstance(each, tuple | list) and _has_array(each) for each in data):
        return data
    if not all(takes(model, tuple(each), {}) for each in data):
        if listed or not one or len({(type(each), len(each)) for each in data}) > 1:
            return data
        if runs((data,)):
            return data
    elif listed and runs(data):
        return data
    _require_batches(data)
    batches = [map_arguments(as_argument, tuple(each)) for each in data]
    _tell_of_copies(batches)
    return _as_first(data[0], join_batches(batches))


def rows_of_numbers(data: Any) -> np.ndarray | None:
    """Return lists of numbers, as ``x.tolist()`` gives them, as an array; None for other data."""
    if not isinstance(data, list) or not all(isinstance(each, list) for each in data):
        return None
    if not _holds_numbers(data):
        return None
    try:
        array = np.asarray(data)
    except (ValueError, TypeError, RuntimeError):  # unequal lengths; on a GPU, with a gradient
        return None
    return array if array.dtype.kind in "fiub" else None


def _holds_numbers(items: list[Any] | tuple[Any, ...]) -> bool:
    """Return whether all cells are numbers: tensors in lists are batches, though of one shape."""
    kinds = set(map(type, items))  # there are few; of millions of cells each takes long
    if all(issubclass(kind, list | tuple) for kind in kinds):
        return all(map(_holds_numbers, items))
    if any(issubclass(kind, Tensor | np.ndarray) for kind in kinds):
        return all(getattr(each, "ndim", 0) == 0 for each in items)
    return all(issubclass(kind, int | float | np.number | np.bool_) for kind in kinds)


def _tell_of_copies(batches: list[Any]) -> None:
    """Warn of tensors as long as the batches with the same numbers in each: constants, or rows."""
    given = [each if isinstance(each, Mapping) else dict(enumerate(each)) for each in batches]
    columns = {name: [each.get(name) for each in given] for name in given[0]}
    copies = {name for name, column in columns.items() if _are_copies(column)}
    rows = {_length(column[0]) for name, column in columns.items() if name not in copies} - {None}
    for name in columns:
        if name in copies and _length(columns[name][0]) in rows:
            warnings.warn(
                f"argument {name!r} has the same numbers in each of {len(batches)} batches, and is "
                "taken for rows, since it is as long as they are; if it is a constant, put one "
                "tensor (the same object) into all of them",
                stacklevel=of_user(),
            )


def _are_copies(column: list[Any]) -> bool:
    """Return whether an argument of each batch is another tensor, of the same numbers."""
    first, *others = column
    return (
        bool(others)
        and isinstance(first, Tensor)
        and all(
            isinstance(each, Tensor) and each.data_ptr() != first.data_ptr() and each.equal(first)
            for each in others
        )
    )


def _length(item: Any) -> int | None:
    return len(item) if isinstance(item, Tensor) and item.dim() else None


def _of_one_shape(tensors: list[Tensor]) -> bool:
    return len({tensor.shape[1:] for tensor in tensors}) == 1


def _as_first(first: Any, batch: tuple[Any, ...]) -> Any:
    """Return a batch in the class of the first one, where its parts have names."""
    return first._make(batch) if hasattr(first, "_make") else batch


def _has_array(items: Any) -> bool:
    return any(isinstance(each, Tensor | np.ndarray) for each in items)


def _require_batches(data: list[Any]) -> None:
    """Refuse the items of a data set: a number that each has for itself is no argument of all."""
    for column in zip(*data, strict=False):
        numbers = [each for each in column if _is_number(each)]
        if len(numbers) == len(data) and any(each != numbers[0] for each in numbers):
            raise DataError(
                f"got a list of {counted(len(data), 'datum', 'data')}, one by one, expected "
                "arrays with a row for each, or batches of them; give a DataLoader of the list, "
                "or stack it: tuple(map(torch.as_tensor, map(np.stack, zip(*data)))); if these "
                "are batches, give each row its own number: one that differs between them is no "
                "constant"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or getattr(value, "ndim", 1) == 0
