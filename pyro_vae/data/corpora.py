"""Documents as counts of words, with their vocabulary. N documents, V words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import counted
from pyro_vae.data.readers import Arrays, read_npz
from pyro_vae.errors import DataError

# By name: the file's stem, whether it has labels, and its splits.
CORPORA = {
    "20news": ("20news_2000", True, ("train", "test")),
    "20news_etm": ("20news_etm", False, ("train", "valid", "test", "test_h1", "test_h2")),
}
_HELD_OUT = 20  # one training document of so many validates where the source has no such split


@dataclass(frozen=True, eq=False)
class Corpus:
    """Training, validation and test documents, one row of counts each.

    Arguments:
        name: the data set.
        train: float32 whole numbers, shape `(N, V)`, sparse where the file is; no row is empty.
        valid: as ``train``.
        test: as ``train``.
        vocabulary: the V words, in the order of the columns.
        labels: int64 classes, shape `(N)`, by split; empty where the source has none.
        halves: the words of each test document in two parts, ``(N, V)`` each, neither empty: what
            document completion sees and what it predicts; None where the source has none.
        dropped: documents without a word of the vocabulary, left out, by split.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    vocabulary: tuple[str, ...]
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    halves: tuple[Tensor, Tensor] | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{s}={getattr(self, s).shape[0]}" for s in ("train", "valid", "test"))
        gone = sum(self.dropped.values())
        return f"Corpus({self.name!r}, {sizes}, words={len(self.vocabulary)}, dropped={gone})"


def read_corpus(name: str, path: Path) -> Corpus:
    """Return the documents of a file of sparse rows, `*_indptr`, `*_indices` and `*_counts`.

    Raises:
        DataError: The file is no such corpus.
    """
    _, labelled, splits = CORPORA[name]
    sparse = (("indptr", np.integer), ("indices", np.integer), ("counts", np.integer))
    expected = {f"{split}_{key}": (kind, ()) for split in splits for key, kind in sparse}
    expected["vocab"] = (np.str_, ())
    if labelled:
        expected |= {f"{split}_label": (np.integer, ()) for split in splits}
    arrays = read_npz(path, expected)
    vocabulary = tuple(arrays["vocab"].tolist())
    rows = {split: _dense(path, arrays, split, len(vocabulary)) for split in splits}
    kept = {split: x.sum(-1) > 0 for split, x in rows.items()}
    halves = None
    if "test_h1" in rows:
        both = kept.pop("test_h1") & kept.pop("test_h2")
        halves = (rows.pop("test_h1")[both], rows.pop("test_h2")[both])
    labels = {s: torch.from_numpy(arrays[f"{s}_label"].astype(np.int64)) for s in kept if labelled}
    for split, label in labels.items():
        if len(label) != len(rows[split]):
            raise DataError(
                f"{path}: {counted(len(rows[split]), 'row')} in {split}, but {len(label)} labels"
            )
    gone = {split: int((~keep).sum()) for split, keep in kept.items()}
    rows = {split: x[kept[split]] for split, x in rows.items()}
    labels = {split: label[kept[split]] for split, label in labels.items()}
    if "valid" not in rows:
        for part in (rows, labels):
            _hold_out(part)
    return Corpus(name, **rows, vocabulary=vocabulary, labels=labels, halves=halves, dropped=gone)


def _hold_out(part: dict[str, Tensor]) -> None:
    """Move every twentieth training row to the validation rows: files are sorted by label."""
    if "train" in part:
        held = torch.arange(len(part["train"])) % _HELD_OUT == _HELD_OUT - 1
        part["valid"], part["train"] = part["train"][held], part["train"][~held]


def _dense(path: Path, arrays: Arrays, split: str, words: int) -> Tensor:
    """Return sparse rows as a matrix, after checking that they are rows."""
    ends = arrays[f"{split}_indptr"].astype(np.int64)
    columns = arrays[f"{split}_indices"].astype(np.int64)
    counts = arrays[f"{split}_counts"].astype(np.int64)
    sizes = np.diff(ends)
    sound = ends[0] == 0 and (sizes >= 0).all() and ends[-1] == len(columns) == len(counts)
    if not sound or columns.min() < 0 or columns.max() >= words or counts.min() < 1:
        raise DataError(
            f"{path}: {split}_indptr, _indices and _counts are no rows of counts of {words} words"
        )
    matrix = torch.zeros(len(sizes), words)
    rows = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))
    values = torch.from_numpy(counts).to(matrix.dtype)
    return matrix.index_put_((rows, torch.from_numpy(columns)), values, accumulate=True)
