"""Data as a user has them, made into a batch that a program takes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.program.batch import (
    Batch,
    as_argument,
    as_tensor,
    datum_first,
    map_arguments,
    map_batch,
)


def adapted(data: Any, device: torch.device, dtype: torch.dtype | None, dim: int = 0) -> Batch:
    """Return data as a batch with the datum first, tensors on a device, floats in a precision.

    What is no array stays as it is.

    Arguments:
        data: A tensor, an array, or a tuple, list or dict of arguments.
        device: Of the result's tensors.
        dtype: Of the floats among them; None leaves theirs.
        dim: The dimension of the data's tensors that counts the data.

    Raises:
        DataError: An array that is no dense numeric one.
    """
    seen: set[int] = set()

    def on_device(leaf: Tensor) -> Tensor:
        floats = leaf.is_floating_point()
        leaf = leaf.to(device, dtype if floats and dtype is not None else None)
        # Observed sites are told by the memory that they look at: each argument has its own.
        memory = int(leaf.untyped_storage()._cdata)
        leaf = leaf.clone() if memory in seen else leaf
        seen.add(memory)
        return leaf

    alone = not isinstance(data, Mapping | tuple | list)
    batch = as_tensor(data) if alone else map_arguments(as_argument, data)
    return map_batch(on_device, datum_first(batch, dim))
