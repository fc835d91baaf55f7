"""Arguments that have the steps of each sequence, and sequences of as many steps."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import DataError
from pyro_vae.program.batches.batch import Batch, as_argument, map_batch, named_leaves

# What such arguments are called.
_LENGTHS = re.compile("(^|_)(seq)?(lens?|lengths?|steps?|horizons?|durations?)(_|$)", re.IGNORECASE)


def in_rows(given: Mapping[str, Any], seen: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Return arguments with a number, where the data seen have one in each row, in n rows.

    Raises:
        DataError: No whole number, where the data seen have such.
    """
    count = max((len(each) for each in seen.values() if _is_rows(each)), default=0)
    told = {
        name: torch.full((n,), value)
        for name, value in given.items()
        if isinstance(value, int | float) and getattr(seen.get(name), "shape", None) == (count,)
    }
    for name, rows in told.items():
        if rows.is_floating_point() and not seen[name].is_floating_point():
            raise DataError(f"given: got {given[name]} as {name!r}, expected a whole number")
    return {**given, **told}


def with_steps(batch: Batch, given: Mapping[str, Any], seen: Mapping[str, Any]) -> Batch:
    """Return sequences ``(n, T, *)`` with as many steps as the longest length that is given.

    Their last step is repeated: their values do not matter, and lie in the support of the data.
    What has other than T numbers in a row, as a label beside them, stays as it is. Lengths are
    told by what they are called, or from 1 to T, as no classes are that count from 0.

    Arguments:
        batch: Data seen, the datum first.
        given: Arguments to generate for, by name.
        seen: The same of the data seen; an argument with more than T is no length.
    """
    sequences = [leaf for _, leaf in named_leaves(batch) if leaf.dim() in (2, 3)]
    steps = max(sequences, key=Tensor.dim).shape[1] if sequences else 0
    told = [0]
    for name, value in given.items():
        least, most = _range(seen.get(name))
        if most <= steps and (_LENGTHS.search(name) or (least > 0 and most == steps)):
            told.append(_range(value)[1])
    more = max(told) - steps
    if steps < 2 or more <= 0:
        return batch

    def longer(leaf: Tensor) -> Tensor:
        if leaf.dim() < 2 or leaf.shape[1] != steps:
            return leaf
        return torch.cat([leaf, leaf[:, -1:].repeat_interleave(more, 1)], 1)

    return map_batch(longer, batch)


def _is_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _range(value: Any) -> tuple[int, int]:
    """Return the least and the largest of whole numbers, ``(n,)``; 0 of anything else."""
    numbers = as_argument(value)
    if not isinstance(numbers, Tensor) or numbers.dim() != 1 or not numbers.numel():
        return 0, 0
    return (0, 0) if numbers.is_floating_point() else (int(numbers.min()), int(numbers.max()))
