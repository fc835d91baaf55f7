"""Data as a user has them, made into a batch that a program takes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import DataError
from pyro_vae.program.batches.batch import (
    Batch,
    as_argument,
    as_rows,
    datum_first,
    map_arguments,
    named_arguments_of,
    named_arrays,
)
from pyro_vae.program.batches.sparse_rows import SparseRows
from pyro_vae.torch_private import storage_address


def adapted(data: Any, device: torch.device, dtype: torch.dtype | None, dim: int = 0) -> Batch:
    """Return data as a batch with the datum first, tensors on a device, floats in a precision.

    What is no array stays as it is; sparse arrays are rows that become dense a batch at a time.

    Arguments:
        data: A tensor, an array, or a tuple, list or dict of arguments.
        device: Of the result's tensors.
        dtype: Of the floats among them; None leaves theirs.
        dim: The dimension of the data's tensors that counts the data.

    Raises:
        DataError: An array that is no numeric one, or a sparse one whose columns are the data.
    """
    seen: set[int] = set()

    def on_device(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor | SparseRows):
            return leaf
        floats = leaf.is_floating_point()
        leaf = leaf.to(device, dtype if floats and dtype is not None else None)
        if isinstance(leaf, SparseRows):
            return leaf
        # Observed sites are told by the memory that they look at: each argument has its own.
        memory = storage_address(leaf)
        leaf = leaf.clone() if memory in seen else leaf
        seen.add(memory)
        return leaf

    alone = not isinstance(data, Mapping | tuple | list)
    batch = as_rows(data) if alone else _arguments(data)
    if dim and any(isinstance(leaf, SparseRows) for _, leaf in named_arrays(batch)):
        raise DataError(
            f"got a sparse array, and the data stand in dimension {dim} of the arguments, expected "
            "a dense one; pass x.toarray() (x.to_dense())"
        )
    return map_arguments(on_device, datum_first(batch, dim))


def _arguments(data: Batch) -> Batch:
    """Return arguments as a program takes them; an error names the one that is no numeric array."""
    try:
        return map_arguments(as_argument, data)
    except DataError:
        for name, leaf in named_arguments_of(data):
            try:
                as_argument(leaf)
            except DataError as error:
                raise DataError(f"{name}: {error}") from error
        raise
