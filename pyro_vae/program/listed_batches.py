"""A list of batches, made into one: it looks like the arguments of a function, which may be two."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import DataError
from pyro_vae.program.batch import Batch, as_argument, map_arguments, takes
from pyro_vae.program.streams import join_batches


def joined(data: Any, model: Callable[..., Any], runs: Callable[[Batch], bool]) -> Any:
    """Return a list of batches (dicts; tuples or lists of a model's arguments) as one batch.

    Other data as they are. Where the list itself could be the arguments too, which are containers
    then, the program is run: they are, if it runs on them.

    Arguments:
        data: Of any form.
        model: The user's.
        runs: Whether the program runs on a batch.

    Raises:
        DataError: Batches that do not fit together, or data one by one.
    """
    if not isinstance(data, list) or not data:
        return data
    if all(isinstance(each, Tensor) and not each.dim() for each in data):  # as of coin flips
        return data if takes(model, tuple(data), {}) else torch.stack(data)
    if all(isinstance(each, Mapping) for each in data):
        return join_batches([map_arguments(as_argument, each) for each in data])
    if not all(isinstance(each, tuple | list) and _has_array(each) for each in data):
        return data
    if not all(takes(model, tuple(each), {}) for each in data):
        return data
    if takes(model, tuple(data), {}) and runs(data):
        return data
    _require_batches(data)
    return join_batches([map_arguments(as_argument, tuple(each)) for each in data])


def _has_array(items: Any) -> bool:
    return any(isinstance(each, Tensor | np.ndarray) for each in items)


def _require_batches(data: list[Any]) -> None:
    """Refuse the items of a data set: a number that each has for itself is no argument of all."""
    for column in zip(*data, strict=False):
        numbers = [each for each in column if _is_number(each)]
        if len(numbers) == len(data) and any(each != numbers[0] for each in numbers):
            raise DataError(
                f"got a list of {len(data)} data, one by one, expected arrays with a row for each, "
                "or batches of them; give a DataLoader of the list, or stack it: "
                "tuple(map(torch.as_tensor, map(np.stack, zip(*data))))"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or getattr(value, "ndim", 1) == 0
