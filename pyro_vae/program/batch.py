"""A batch: a tensor, or a tuple or dict of tensors, one row per datum."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.errors import DataError, ProgramError

Batch = Any  # Tensor | tuple[Tensor, ...] | dict[str, Tensor]; recursive types help nobody here


def named_leaves(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Yield ``(name, tensor)`` for each tensor of a batch; a lone tensor is called ``"batch"``."""
    if isinstance(batch, Mapping):
        yield from batch.items()
    elif isinstance(batch, tuple | list):
        yield from ((f"batch[{i}]", leaf) for i, leaf in enumerate(batch))
    else:
        yield "batch", batch


def map_batch(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Apply a function to each tensor of a batch and keep the structure."""
    if isinstance(batch, Mapping):
        return {name: function(leaf) for name, leaf in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(function(leaf) for leaf in batch)
    return function(batch)


def arguments(batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return the ``(args, kwargs)`` with which a model and a guide take this batch."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    return (batch,), {}


def named_arguments(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return arguments by the names that a function's signature gives them.

    Raises:
        DataError: The function does not take these arguments.
    """
    try:
        signature = inspect.signature(_under_handlers(function))
        return dict(signature.bind_partial(*args, **kwargs).arguments)
    except (TypeError, ValueError) as error:
        raise DataError(f"the model does not take this batch: {error}") from error


def _under_handlers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that Pyro's handlers wrap: a wrapped one has no signature."""
    while isinstance(function, functools.partial) and isinstance(
        next(iter(function.args), None), Messenger
    ):
        function = function.args[1]
    return function


def replace_arguments(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with those replaced that go by the name of an observed site.

    Raises:
        ProgramError: A site is no argument of the function.
    """
    names = list(named_arguments(function, args, kwargs))
    for site in values:
        if site not in names:
            raise ProgramError(
                f"observed site {site!r} is no argument of the model {sorted(names)}; give the "
                "site and the argument one name"
            )
    positional = tuple(values.get(n, a) for n, a in zip(names, args, strict=False))
    return positional, {name: values.get(name, value) for name, value in kwargs.items()}


def num_rows(batch: Batch) -> int:
    """Return the number of data in a batch.

    Raises:
        DataError: The batch is empty, is no tensor, or its tensors disagree on the number of rows.
    """
    rows: dict[str, int] = {}
    for name, leaf in named_leaves(batch):
        if not isinstance(leaf, Tensor):
            raise DataError(
                f"{name}: got {type(leaf).__name__}, expected a tensor with one row per datum; "
                "convert it with torch.as_tensor"
            )
        if leaf.dim() == 0:
            raise DataError(f"{name}: got a scalar, expected a tensor with one row per datum")
        rows[name] = leaf.shape[0]
    if len(set(rows.values())) != 1:
        raise DataError(f"tensors of one batch need equal numbers of rows, got {rows or 'none'}")
    (count,) = set(rows.values())
    if count == 0:
        raise DataError("got no data (0 rows), expected at least one row")
    return count


def signature(batch: Batch) -> tuple[tuple[str, torch.Size, torch.dtype, str], ...]:
    """Return what must stay equal for a traced program to be used again: shapes and dtypes."""
    return tuple(
        (name, leaf.shape, leaf.dtype, leaf.device.type) for name, leaf in named_leaves(batch)
    )


def chunks(batch: Batch, size: int) -> Iterator[Batch]:
    """Cut a batch into pieces of at most ``size`` rows (views, no copies)."""
    rows = num_rows(batch)
    for start in range(0, rows, size):
        yield map_batch(lambda leaf, start=start: leaf[start : start + size], batch)  # type: ignore[misc]


def repeat_rows(batch: Batch, times: int) -> Batch:
    """Stack ``times`` copies of a batch: rows ``(times * B)``, copy-major (a copy of the data)."""
    return map_batch(lambda leaf: leaf.repeat(times, *(1,) * (leaf.dim() - 1)), batch)


def cuda_devices(batch: Batch) -> list[torch.device]:
    """Return the CUDA devices of a batch, whose random states a fork must save."""
    leaves = [leaf for _, leaf in named_leaves(batch) if isinstance(leaf, Tensor)]
    return list({leaf.device for leaf in leaves if leaf.is_cuda})


def check_finite(batch: Batch) -> None:
    """Refuse NaN and infinity in floating-point data (one device sync per tensor).

    Raises:
        DataError: Names the tensor, the first bad row and its value.
    """
    for name, leaf in named_leaves(batch):
        if not leaf.is_floating_point() or leaf.device.type == "meta":
            continue
        finite = torch.isfinite(leaf)
        if not bool(finite.all()):
            where = (~finite).nonzero()[0].tolist()
            raise DataError(
                f"{name}: value {leaf[tuple(where)].item()} in row {where[0]} (position "
                f"{where[1:]}), expected finite numbers; drop or impute the row"
            )


def as_tensor(leaf: Any) -> Tensor:
    """Return a tensor for a tensor or a numeric array (shared memory where possible).

    Raises:
        DataError: Objects, strings, ragged lists.
    """
    if isinstance(leaf, Tensor):
        return leaf.detach()
    try:
        array = np.asarray(leaf)
        if not array.flags.writeable:
            array = array.copy()  # torch warns of read-only memory, and must not write to it
        return torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"got {type(leaf).__name__}, expected a tensor or a numeric array: {error}"
        ) from error
