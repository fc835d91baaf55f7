"""Rows that are mostly zeros, kept as compressed sparse rows and made dense a few at a time.

Shapes: N rows, V columns, E stored entries.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import DataError


class SparseRows:
    """A matrix whose rows are dense tensors once they are picked: ``rows[index]`` is ``(B, V)``.

    It has what a batch asks of a tensor of data, and no more: a model never sees it.

    Arguments:
        ends: Where each row begins, and the last ends, among the entries, ``(N + 1,)``.
        columns: Of the entries, each once in a row, ``(E,)``.
        values: ``(E,)``.
        num_columns: V.
    """

    def __init__(self, ends: Tensor, columns: Tensor, values: Tensor, num_columns: int) -> None:
        self._ends, self._columns, self._values = ends, columns, values
        self.shape = torch.Size([len(ends) - 1, num_columns])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Return some rows, in the order of the index, as a dense tensor on the same device."""
        index = torch.arange(len(self), device=self.device)[rows]
        starts = self._ends[index].long()
        sizes = self._ends[index + 1].long() - starts
        row = torch.repeat_interleave(sizes)
        within = torch.arange(len(row), device=self.device) - (sizes.cumsum(0) - sizes)[row]
        entry = starts[row] + within
        dense = self._values.new_zeros(len(index), self.shape[1])
        dense[row, self._columns[entry].long()] = self._values[entry]
        return dense

    @property
    def values(self) -> Tensor:
        """The stored entries, ``(E,)``."""
        return self._values

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self._values.dtype

    @property
    def device(self) -> torch.device:
        """Of the values, and of the rows that are picked."""
        return self._values.device

    def is_floating_point(self) -> bool:
        """Return whether the values are floats."""
        return self._values.is_floating_point()

    def numel(self) -> int:
        """Return the number of values, zeros included."""
        return self.shape.numel()

    def element_size(self) -> int:
        """Return the bytes of a value."""
        return self._values.element_size()

    def to(self, *args: Any) -> "SparseRows":
        """Return the rows on another device or in another dtype, as ``Tensor.to`` does."""
        values = self._values.to(*args)
        ends, columns = self._ends.to(values.device), self._columns.to(values.device)
        return SparseRows(ends, columns, values, self.shape[1])

    def part(self, start: int, stop: int) -> "SparseRows":
        """Return the rows of a range, sparse as they are (views, no copies)."""
        first, last = int(self._ends[start]), int(self._ends[stop])
        ends = self._ends[start : stop + 1] - first
        return SparseRows(ends, self._columns[first:last], self._values[first:last], self.shape[1])

    def first_infinite(self) -> int | None:
        """Return the first row that holds NaN or infinity; None where all values are numbers."""
        finite = torch.isfinite(self._values)
        if bool(finite.all()):
            return None
        entry = (~finite).nonzero()[0]
        return int(torch.searchsorted(self._ends.long(), entry, right=True)) - 1


def is_sparse(leaf: Any) -> bool:
    """Return whether an argument is a sparse matrix of scipy or of torch."""
    if isinstance(leaf, Tensor):
        return leaf.layout not in (torch.strided, torch.jagged)
    return hasattr(leaf, "toarray")


def sparse_rows(leaf: Any, as_tensor: Callable[[Any], Tensor]) -> SparseRows:
    """Return a sparse matrix as rows; memory is shared where it is in compressed rows already.

    Entries that stand in one place several times are added up, as ``toarray`` does.

    Arguments:
        leaf: Of scipy or torch, in any format.
        as_tensor: Makes tensors of its arrays.

    Raises:
        DataError: Not two dimensions, indices outside the matrix, or values that are no numbers.
    """
    if len(leaf.shape) != 2:
        raise DataError(
            f"got a sparse array of shape {tuple(leaf.shape)}, expected rows and columns; reshape "
            "it, or pass x.toarray() (x.to_dense())"
        )
    arrays = _of_torch(leaf) if isinstance(leaf, Tensor) else _of_scipy(leaf)
    ends, columns, values = map(as_tensor, arrays)
    rows, width = leaf.shape
    sizes = ends.diff()
    sound = int(ends[0]) == 0 and int(ends[-1]) == len(columns) and bool((sizes >= 0).all())
    if len(columns):
        sound = sound and int(columns.min()) >= 0 and int(columns.max()) < width
    if not sound or len(ends) != rows + 1:
        raise DataError(f"got a sparse array with indices outside its shape {tuple(leaf.shape)}")
    if not _distinct(ends, columns):
        row = torch.repeat_interleave(sizes.long())
        place, where = torch.unique(row * width + columns.long(), return_inverse=True)
        values = values.new_zeros(len(place)).index_add_(0, where, values)
        columns = place % width
        ends = torch.searchsorted(place, torch.arange(rows + 1, device=place.device) * width)
    return SparseRows(ends, columns, values, width)


def _distinct(ends: Tensor, columns: Tensor) -> bool:
    """Return whether the columns of each row rise, so that none stands there twice."""
    if len(columns) < 2:
        return True
    begins = torch.zeros(len(columns) + 1, dtype=torch.bool, device=columns.device)
    begins[ends.long()] = True
    return bool(((columns.diff() > 0) | begins[1:-1]).all())


def _of_torch(leaf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    leaf = leaf.detach()
    if leaf.layout == torch.sparse_csr:
        return leaf.crow_indices(), leaf.col_indices(), leaf.values()
    entries = leaf.to_sparse_coo().coalesce()
    row, column = entries.indices()
    counts = torch.bincount(row, minlength=len(leaf))
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]), column, entries.values()


def _of_scipy(leaf: Any) -> tuple[Any, Any, Any]:
    rows = leaf.tocsr()
    return rows.indptr, rows.indices, rows.data
