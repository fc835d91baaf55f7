"""By which a data set is known again: a hash of all its rows, in whatever type they come."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyro_vae.program.batches.batch import rows_of

_NUMBERS = 1 << 20  # that are hashed at once
_NARROW = {torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8}


def hash_of_rows(named: Mapping[str, Any], rows: int) -> str:
    """Return a hash of the rows, and one of the rows rounded to single precision.

    The same whatever the order of the arguments, and for 0 and NaN of either sign.

    Arguments:
        named: Arguments by name; those without rows are left out.
        rows: Their number.
    """
    exact, rounded = hashlib.sha256(), hashlib.sha256()
    for name, leaf in sorted(named.items()):
        if rows_of(leaf) == rows:
            table = leaf.data if isinstance(leaf, PackedSequence) else leaf
            told = name.encode()
            if isinstance(leaf, PackedSequence):
                order = leaf.sorted_indices
                told += f" {leaf.batch_sizes.tolist()}".encode()
                told += f" {list(range(rows)) if order is None else order.tolist()}".encode()
            own, narrow = _of_table(table)
            exact.update(told + own)
            rounded.update(told + narrow)
    return f"{exact.hexdigest()[:16]}-{rounded.hexdigest()[:16]}"


def are_alike(one: str, other: str) -> bool:
    """Return whether two hashes are of the same rows, or of these and of the same rounded."""
    (exact, rounded), (exact_too, rounded_too) = one.split("-"), other.split("-")
    in_single = exact == rounded or exact_too == rounded_too
    return exact == exact_too or (in_single and rounded == rounded_too)


def _of_table(table: Any) -> tuple[bytes, bytes]:
    """Return the hashes of a table and of its rounded numbers; equal where these are its own."""
    wide, narrow, lossless = hashlib.sha256(), hashlib.sha256(), True
    for piece in _pieces(table):
        single = _plain(piece.to(torch.float32))
        narrow.update(single.numpy().tobytes())
        if piece.dtype not in _NARROW:
            double = _plain(piece.to(torch.float64))
            wide.update(double.numpy().tobytes())
            lossless = lossless and bool(torch.isclose(double, single.double(), 0, 0, True).all())
    return (narrow if lossless else wide).digest(), narrow.digest()


def _pieces(table: Any) -> Iterator[Tensor]:
    """Yield the rows of a table in pieces of a bounded number of numbers."""
    rows = max(1, _NUMBERS * len(table) // max(1, table.numel()))
    for start in range(0, len(table), rows):
        yield table[start : start + rows].detach().cpu()


def _plain(piece: Tensor) -> Tensor:
    return (piece.masked_fill(piece.isnan(), torch.nan) + 0.0).contiguous()


def is_hash(found: Any) -> TypeGuard[str]:
    """Return whether a file holds such a hash."""
    return isinstance(found, str) and re.fullmatch("[0-9a-f]{16}-[0-9a-f]{16}", found) is not None
