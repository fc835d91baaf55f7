"""Batches of two sources at a ratio: few labelled data, many without labels."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pyro_vae.arguments import counted, number, positive, typed
from pyro_vae.errors import ConfigError, DataError


@typed
def mixed(first: Any, second: Any, *, batch_size: int, share: float) -> DataLoader[Any]:
    """Return a loader whose batches have a share of their rows from one source.

    An epoch passes over the second source once; the rows of the first come round and round, in a
    new order each time. The order follows the seed of `pv.fit`.

    Arguments:
        first: few data, as labelled ones: a tensor, or a tuple or dict of tensors, arrays,
            columns of a data frame or arrays of xarray.
        second: many data, in the same form; where labels lack they are -1.
        batch_size: B.
        share: of the first source in a batch, in (0, 1): at least one row, and one of the second.

    Raises:
        ConfigError: a share that leaves one of the two without rows.
        DataError: sources of different forms.

    Example:
        >>> x, y = torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])
        >>> loader = mixed((x, y), (torch.ones(30, 2), torch.full((30,), -1)), batch_size=10,
        ...     share=0.2)
        >>> len(loader), next(iter(loader))[1].tolist().count(-1)
        (4, 8)
    """
    few = round(number("share", share, "(0, 1)") * positive("batch_size", batch_size))
    if not 0 < few < batch_size:
        raise ConfigError(
            f"share={share} of batch_size={batch_size}: {counted(few, 'row')} of the first "
            f"source, expected 1 to {batch_size - 1}"
        )
    rows = _Rows(first, second)
    return DataLoader(
        rows, batch_sampler=_TwoSources(*rows.counts, few, batch_size - few), collate_fn=_as_it_is
    )


class _Rows(Dataset[Any]):
    """Two sources, one after the other."""

    def __init__(self, first: Any, second: Any) -> None:
        one, other = _leaves(first), _leaves(second)
        if one.keys() != other.keys():
            raise DataError(f"second: got {sorted(other)}, expected {sorted(one)} as in first")
        for name, leaf in one.items():
            if leaf.shape[1:] != other[name].shape[1:]:
                raise DataError(
                    f"second: {name} has rows of shape {tuple(other[name].shape[1:])}, expected "
                    f"{tuple(leaf.shape[1:])} as in first"
                )
        self.leaves = {name: torch.cat([leaf, other[name]]) for name, leaf in one.items()}
        self.counts = len(next(iter(one.values()))), len(next(iter(other.values())))
        self.form = type(first)

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, place: int) -> Any:
        return self._in_form({name: leaf[place] for name, leaf in self.leaves.items()})

    def __getitems__(self, places: list[int]) -> Any:
        index = torch.tensor(places)
        return self._in_form({n: leaf.index_select(0, index) for n, leaf in self.leaves.items()})

    def _in_form(self, leaves: dict[Any, Tensor]) -> Any:
        if issubclass(self.form, Mapping):
            return leaves
        parts = tuple(leaves.values())
        return parts if issubclass(self.form, tuple | list) else parts[0]


class _TwoSources(Sampler[list[int]]):
    """Rows of batches: all of the second source once, the first again and again."""

    def __init__(self, first: int, second: int, few: int, many: int) -> None:
        self.first, self.second, self.few, self.many = first, second, few, many

    def __len__(self) -> int:
        return -(-self.second // self.many)

    def __iter__(self) -> Iterator[list[int]]:
        needed, rounds = len(self) * self.few, -(-len(self) * self.few // self.first)
        first = torch.cat([torch.randperm(self.first) for _ in range(rounds)])[:needed]
        second = self.first + torch.randperm(self.second)
        for one, other in zip(first.split(self.few), second.split(self.many), strict=True):
            yield [*one.tolist(), *other.tolist()]


def _leaves(source: Any) -> dict[Any, Tensor]:
    """Return the tensors of a source by place or name."""
    parts = source if isinstance(source, tuple | list | Mapping) else (source,)
    items = parts.items() if isinstance(parts, Mapping) else enumerate(parts)
    try:
        found = {name: _tensor(leaf) for name, leaf in items}
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"got {type(source).__name__}, expected tensors of rows: {error}"
        ) from error
    rows = {len(leaf) if leaf.dim() else 0 for leaf in found.values()}
    if len(rows) != 1 or 0 in rows:
        raise DataError(
            f"got a source of {[tuple(leaf.shape) for leaf in found.values()]}, expected tensors "
            "of equal numbers of rows, at least one"
        )
    return found


def _tensor(leaf: Any) -> Tensor:
    """Return a leaf as a tensor, a column of pandas or array of xarray by place, not by index."""
    if hasattr(leaf, "columns"):
        raise TypeError(
            "a data frame has columns of several kinds; give program.reads(frame) of a TableVAE, "
            "frame.to_numpy() of numbers"
        )
    return torch.as_tensor(np.array(leaf) if hasattr(leaf, "to_numpy") else leaf)


def _as_it_is(batch: Any) -> Any:
    return batch
