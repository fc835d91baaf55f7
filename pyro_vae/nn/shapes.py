"""Sizes and shapes as arguments, and the shapes of what goes into a network."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.arguments import counted, positive, shown, typed
from pyro_vae.errors import ConfigError, DataError

Shape = int | Sequence[int]


@typed
def sizes(name: str, values: Any) -> tuple[int, ...]:
    """Return a new tuple of positive integers, which may be empty.

    Arguments:
        name: What an error calls them.
        values: Any sequence, array or tensor of them.

    Raises:
        ConfigError: Anything else.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ConfigError(f"{name}={values!r}; expected a sequence of whole numbers, as in (400,)")
    if isinstance(values, Tensor):
        values = values.tolist() if values.dim() == 1 else [values]
    return tuple(positive(f"{name}[{i}]", value) for i, value in enumerate(values))


@typed
def as_shape(name: str, value: Any) -> tuple[int, ...]:
    """Return the shape of one datum as a tuple.

    Arguments:
        name: What an error calls it.
        value: A size as 784, or a shape as (1, 28, 28).

    Raises:
        ConfigError: Anything else, and no size at all.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return (positive(name, value),)
    shape = sizes(name, value)
    if not shape:
        raise ConfigError(f"{name}={value!r} is empty; expected a size as 784 or (1, 28, 28)")
    return shape


@typed
def image_shape(name: str, value: Any) -> tuple[int, int, int]:
    """Return the shape of an image, (C, H, W).

    Arguments:
        name: What an error calls it.
        value: Three sizes.

    Raises:
        ConfigError: Anything else.
    """
    shape = as_shape(name, value)
    if len(shape) != 3:
        raise ConfigError(
            f"{name}={value!r}; a convolution needs an image shape (C, H, W), as in (1, 28, 28): "
            "give one, or use an MLP"
        )
    return shape[0], shape[1], shape[2]


def leading_dims(x: Tensor, event: tuple[int, ...]) -> torch.Size:
    """Return the dims of x to the left of its event; raises `DataError` if the event differs."""
    if not isinstance(x, Tensor):
        raise DataError(f"network input: got {shown(x)}, expected a tensor")
    split = x.dim() - len(event)
    if split < 0 or tuple(x.shape[split:]) != event:
        raise DataError(
            f"network input has shape {tuple(x.shape)}; expected "
            f"(*, {', '.join(map(str, event))}): reshape the data, or build for their shape"
        )
    return x.shape[:split]


def flat_rows(x: Tensor, rows: int | None = None) -> Tensor:
    """Return data (B | data) as (B, D); raises `DataError` for no such data, or other rows."""
    known = isinstance(x, Tensor) and x.dim() > 0 and rows in (None, len(x))
    if not known:
        expected = (
            "one row per datum" if rows is None else f"{counted(rows, 'row')}, one for each code"
        )
        raise DataError(f"network input: got {shown(x)}, expected a tensor of {expected}")
    return x.reshape(len(x), math.prod(x.shape[1:]))  # of no rows -1 tells nothing
