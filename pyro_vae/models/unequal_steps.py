"""Batches of sequences of unequal steps, as one. Shapes: B sequences, T steps."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import counted
from pyro_vae.errors import DataError


def padded_to_one(data: Any, dim: int, *, told: bool) -> Any:
    """Return a list of batches of unequal T as one, zeros behind the shorter; other data as given.

    What a sequence holds is the same: its length says where it ends.

    Arguments:
        data: a list of batches, each x, (x,), (x, lengths) or a dict of them, x of shape (B, T, *).
        dim: dims of x.
        told: whether the lengths must be told, where none are given: those of all steps then.
    """
    parts = [_parts(each, dim) for each in data] if isinstance(data, list) else []
    whole = [part for part in parts if part is not None]
    if not whole or len(whole) < len(parts) or len({x.shape[1:] for x, _ in whole}) < 2:
        return data
    if len({x.shape[2:] for x, _ in whole}) > 1 or len({ls is None for _, ls in whole}) > 1:
        return data
    steps = max(x.shape[1] for x, _ in whole)
    x = torch.cat([_longer(x, steps) for x, _ in whole])
    if whole[0][1] is None and not told:
        return {"x": x}
    lengths = [torch.full(x.shape[:1], x.shape[1]) if ls is None else ls for x, ls in whole]
    return {"x": x, "lengths": torch.cat(lengths)}


def require_batches(data: Any, dim: int) -> None:
    """Refuse a list of single sequences, which would be taken for arguments, and one of text.

    Arguments:
        data: what a verb was given.
        dim: dims of a batch.

    Raises:
        DataError: Says what makes a batch of it.
    """
    pieces = data if isinstance(data, list | tuple) else [data]
    if pieces and all(isinstance(each, str) for each in pieces):
        raise DataError(
            "x: got text, expected a batch of numbers of words; of lines, "
            "words = pv.data.Vocabulary.of(lines) and words.numbers(lines) make it"
        )
    if isinstance(data, list) and data and all(getattr(x, "ndim", 0) == dim - 1 for x in data):
        raise DataError(
            f"x: got a list of {counted(len(data), 'sequence')}, expected one batch; of tensors, "
            "pv.data.pad(x) makes it, with their lengths"
        )


def _parts(batch: Any, dim: int) -> tuple[Tensor, Tensor | None] | None:
    """Return sequences and their lengths; None of what is no batch of them."""
    if isinstance(batch, Mapping):
        given = [batch.get("x"), batch.get("lengths")] if batch.keys() <= {"x", "lengths"} else []
    else:
        given = list(batch) if isinstance(batch, tuple | list) else [batch]
    given = [torch.as_tensor(g) if isinstance(g, np.ndarray) else g for g in given]
    x, lengths = (*given, None)[:2] if 1 <= len(given) <= 2 else (None, None)
    if not isinstance(x, Tensor) or x.dim() != dim:
        return None
    if lengths is not None and getattr(lengths, "shape", None) != x.shape[:1]:
        return None
    return x, lengths


def _longer(x: Tensor, steps: int) -> Tensor:
    return torch.cat([x, x.new_zeros(len(x), steps - x.shape[1], *x.shape[2:])], 1)
