"""Arguments that have the steps of each sequence, and sequences of as many steps."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
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


# Whether an argument is known to be no length of so many steps.
NoLength = Callable[[str, int], bool]


def with_steps(
    batch: Batch, given: Mapping[str, Any], seen: Mapping[str, Any], no_length: NoLength
) -> Batch:
    """Return sequences ``(n, T, *)`` with as many steps as the longest length that is given.

    Their last step is repeated: their values do not matter, and lie in the support of the data.
    What has other than T numbers in a row, as a label beside them, stays as it is. Lengths are
    told by a mask, or by what they are called, or from 1 to T, as no classes are that count from 0;
    of these by running the program, too.

    Arguments:
        batch: Data seen, the datum first.
        given: Arguments to generate for, by name.
        seen: The same of the data seen; an argument with more than T is no length.
        no_length: Runs the program.
    """
    sequences = [leaf for _, leaf in named_leaves(batch) if leaf.dim() in (2, 3)]
    steps = max(sequences, key=Tensor.dim).shape[1] if sequences else 0
    beyond = {name: most for name in given if (most := _range(given[name])[1]) > steps}
    told = _lengths(beyond, seen, steps, no_length) if steps > 1 else []
    if not told:
        return batch
    more = max(beyond[name] for name in told) - steps

    def longer(leaf: Tensor) -> Tensor:
        if leaf.dim() < 2 or leaf.shape[1] != steps:
            return leaf
        return torch.cat([leaf, leaf[:, -1:].repeat_interleave(more, 1)], 1)

    return map_batch(longer, batch)


def with_masks(
    left_out: Mapping[str, Any],
    given: Mapping[str, Any],
    seen: Mapping[str, Any],
    drawn: Callable[[], Collection[str]],
    no_length: NoLength,
) -> dict[str, Any]:
    """Return arguments that are left out, those that mask the steps by the lengths that are given.

    Such a mask is 1 at the steps of each sequence seen, and 0 behind, or the reverse.

    Arguments:
        left_out: Of other rows, by name, with as many steps as the answer will have.
        given: Arguments to generate for, by name.
        seen: The same of the data seen.
        drawn: Returns the names of those whose values are drawn anew.
        no_length: Runs the program.

    Raises:
        DataError: An argument of 0 and 1 at each step has other values in the data.
    """
    made = dict(left_out)
    for name, leaf in left_out.items():
        like: Any = seen.get(name)
        rows = [key for key, value in given.items() if _is_rows(as_argument(value))]
        told = [key for key in rows if _may_mask(like, seen.get(key))]
        found = [mask for key in told for mask in _follows(like, seen[key], leaf, given[key])]
        lengths = [
            key
            for key in told
            if _lengths([key], seen, like.shape[_steps(like, seen[key])], no_length)
        ]
        if found:
            made[name] = found[0]
        elif lengths and name not in drawn():
            raise DataError(
                f"given: has {lengths[0]!r} and lacks {name!r}, which is 0 or 1 at each step, and "
                f"not as {lengths[0]!r} would have it in the data seen; give {name!r} too"
            )
    return made


def _may_mask(mask: Any, lengths: Any) -> bool:
    """Return whether an argument is 0 or 1 at each step, and another has a number in each row."""
    if not (_is_rows(mask) and _is_rows(lengths)) or mask.dim() < 2 or lengths.dim() != 1:
        return False
    return len(lengths) in mask.shape[:2] and bool(((mask == 0) | (mask == 1)).all())


def _follows(like: Tensor, seen: Tensor, leaf: Tensor, given: Any) -> list[Tensor]:
    """Return the mask of the lengths that are given, where one is that of those seen."""
    steps = _steps(like, seen)
    pairs = zip(_masks(seen, like, steps), _masks(given, leaf, steps), strict=True)
    return [new for old, new in pairs if torch.equal(old, like)]


def _steps(mask: Tensor, lengths: Tensor) -> int:
    """Return the dimension of the steps: 0 where time comes first."""
    return int(len(mask) == len(lengths))


def _masks(lengths: Any, like: Tensor, steps: int) -> list[Tensor]:
    """Return what is 1 inside the lengths, and its reverse, in the shape of a mask."""
    ends = as_argument(lengths).to(like.device)
    inside = torch.arange(like.shape[steps], device=like.device) < ends[:, None]
    inside = inside if steps else inside.T
    wide = inside.view(*inside.shape, *[1] * (like.dim() - 2))
    inside = wide.expand(*inside.shape, *like.shape[2:])
    return [inside.to(like.dtype), (~inside).to(like.dtype)]


def _lengths(
    names: Iterable[str], seen: Mapping[str, Any], steps: int, no_length: NoLength
) -> list[str]:
    """Return the names of lengths among arguments, of sequences of so many steps at most."""
    found = []
    for name in names:
        least, most = _range(seen.get(name))
        masks = [mask for mask in seen.values() if _may_mask(mask, seen.get(name))]
        told = _LENGTHS.search(name) or (least > 0 and most == steps)
        masked = any(_follows(mask, seen[name], mask, seen[name]) for mask in masks)
        if most <= steps and (masked or (told and not no_length(name, steps))):
            found.append(name)
    return found


def _is_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _range(value: Any) -> tuple[int, int]:
    """Return the least and the largest of whole numbers, ``(n,)``; 0 of anything else."""
    numbers = as_argument(value)
    if not isinstance(numbers, Tensor) or numbers.dim() != 1 or not numbers.numel():
        return 0, 0
    return (0, 0) if numbers.is_floating_point() else (int(numbers.min()), int(numbers.max()))
