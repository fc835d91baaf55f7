"""Sequences of unequal length, padded, with their lengths. N sequences, T steps, X units."""

import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from pyro_vae.arguments import counted, integer, positive, shown, typed
from pyro_vae.data.readers import read_npz
from pyro_vae.data.vocabulary import Vocabulary
from pyro_vae.errors import DataError

Padded = dict[str, Tensor]
_KEYS = 88
_SPLITS = ("train", "valid", "test")
_VALID = 1000
_NO_WORDS = Vocabulary()


@dataclass(frozen=True, eq=False)
class SequenceSets:
    """Training, validation and test sequences, each ``{"x": ..., "lengths": ...}``.

    Arguments:
        name: the data set.
        train: ``x`` zero beyond each length: float32 piano rolls ``(N, T, 88)``, or int64 words
            ``(N, T)``; ``lengths`` int64 ``(N)``. T is the longest of the split.
        valid: as ``train``.
        test: as ``train``.
        vocabulary: the words by number; empty where steps are no words.
    """

    name: str
    train: Padded
    valid: Padded
    test: Padded
    vocabulary: Vocabulary = _NO_WORDS

    def __repr__(self) -> str:
        parts = [getattr(self, split) for split in _SPLITS]
        sizes = ", ".join(f"{s}={len(p['x'])}" for s, p in zip(_SPLITS, parts, strict=True))
        steps = sum(int(part["lengths"].sum()) for part in parts)
        words = f", words={len(self.vocabulary)}" if self.vocabulary else ""
        return f"SequenceSets({self.name!r}, {sizes}, steps={steps}{words})"


@typed
def pad(sequences: Sequence[Tensor]) -> Padded:
    """Return sequences of unequal length as one batch, zero beyond each length.

    Arguments:
        sequences: each (T_i, *units), all of one type.

    Raises:
        DataError: None, or steps of unequal shape or type.

    Example:
        >>> pad([torch.tensor([4, 5, 6]), torch.tensor([7])])["x"]
        tensor([[4, 5, 6],
                [7, 0, 0]])
    """
    if not sequences:
        raise DataError("sequences: got none, expected at least one")
    first = sequences[0]
    for each in sequences:
        if each.dim() < 1 or each.shape[1:] != first.shape[1:] or each.dtype != first.dtype:
            raise DataError(
                f"sequences: got {shown(each)}, expected steps as in {shown(first)}, (T, *units)"
            )
    lengths = torch.tensor([len(each) for each in sequences])
    return {"x": torch.nn.utils.rnn.pad_sequence(list(sequences), True), "lengths": lengths}


@typed
def bucketed(
    data: Mapping[str, Tensor], batch_size: int, *, widths: int = 4, seed: int | None = None
) -> DataLoader:
    """Return a loader of batches of sequences of about one length, cut to a few widths.

    Padding costs as much as steps do. Each width is a graph of its own in a compiled run.

    Arguments:
        data: ``x`` (N, T, *units) and ``lengths`` (N).
        batch_size: B; one batch may be smaller.
        widths: how many widths there are at most: quantiles of the lengths, rounded up to a
            multiple of 4.
        seed: of the order; None follows the run's.

    Raises:
        DataError: No such pair, no sequences, or a length below 1 or beyond T.

    Example:
        >>> data = {"x": torch.zeros(5, 9, 2), "lengths": torch.tensor([1, 3, 9, 8, 2])}
        >>> sorted(batch["x"].shape for batch in bucketed(data, 3, widths=2))
        [torch.Size([2, 9, 2]), torch.Size([3, 4, 2])]
    """
    size, most = positive("batch_size", batch_size), positive("widths", widths)
    seed = None if seed is None else integer("seed", seed, 0)
    if set(data) != {"x", "lengths"} or data["lengths"].shape != data["x"].shape[:1]:
        shapes = {name: tuple(leaf.shape) for name, leaf in data.items()}
        raise DataError(f"data: got {shapes}, expected x (N, T, *units) and lengths (N)")
    x, lengths = data["x"], data["lengths"]
    steps = x.shape[1]
    if not len(lengths):
        raise DataError("data: got no sequences, expected at least one")
    if not bool(((lengths >= 1) & (lengths <= steps)).all()):
        raise DataError(
            f"lengths: got {lengths.min().item()} to {lengths.max().item()}, expected 1 to "
            f"{steps}, the steps of x; drop empty sequences"
        )
    shares = torch.linspace(0, 1, most + 1, dtype=torch.float64)[1:]
    bounds = lengths.double().quantile(shares).ceil().long()
    bounds = ((bounds + 3) // 4 * 4).clamp(max=steps).unique()
    sampler = _OneWidth(torch.bucketize(lengths, bounds), size, seed)
    return DataLoader(
        TensorDataset(x, lengths), batch_sampler=sampler, collate_fn=partial(_cut, bounds)
    )


class _OneWidth(BatchSampler):
    """Batches of rows of about one width, in an order drawn anew each time.

    What is left of a width goes with the next wider one, so that only one batch is smaller.
    """

    def __init__(self, width: Tensor, batch_size: int, seed: int | None) -> None:
        self.rows = [torch.nonzero(width == each).flatten() for each in width.unique()]
        self.size = batch_size
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[list[int]]:
        batches: list[Tensor] = []
        left = self.rows[0][:0]
        for rows in self.rows:
            mixed = torch.cat([left, rows])
            mixed = mixed[torch.randperm(len(mixed), generator=self.generator)]
            whole = len(mixed) // self.size * self.size
            batches += mixed[:whole].split(self.size) if whole else ()
            left = mixed[whole:]
        batches += [left] if len(left) else []
        for index in torch.randperm(len(batches), generator=self.generator).tolist():
            yield batches[index].tolist()

    def __len__(self) -> int:
        return -(-sum(map(len, self.rows)) // self.size)


def _cut(bounds: Tensor, rows: Sequence[tuple[Tensor, Tensor]]) -> Padded:
    lengths = torch.stack([length for _, length in rows])
    width = int(bounds[torch.bucketize(lengths.max(), bounds)])
    return {"x": torch.stack([x[:width] for x, _ in rows]), "lengths": lengths}


def read_rolls(name: str, path: Path) -> SequenceSets:
    """Return piano rolls of a file of packed frames, `*_frames` and `*_lengths`.

    Raises:
        DataError: The file is none.
    """
    expected = {f"{split}_frames": (np.uint8, (-(-_KEYS // 8),)) for split in _SPLITS}
    arrays = read_npz(path, expected | {f"{split}_lengths": (np.integer, ()) for split in _SPLITS})
    parts: dict[str, Any] = {}
    for split in _SPLITS:
        frames = torch.from_numpy(np.unpackbits(arrays[f"{split}_frames"], axis=1)[:, :_KEYS])
        lengths = arrays[f"{split}_lengths"].astype(np.int64).tolist()
        if not lengths or min(lengths) < 1 or sum(lengths) != len(frames):
            raise DataError(f"{path}: {split}_lengths do not cut the {len(frames)} frames")
        parts[split] = pad(list(frames.float().split(lengths)))
    return SequenceSets(name, **parts)


def read_captions(name: str, train: Path, test: Path) -> SequenceSets:
    """Return sentences of two files of lines: words that training lines have three times.

    Lines are in lower case and cut at 25 words; each ends with ``<eos>``. The last thousand
    training lines validate.

    Raises:
        DataError: A file is no compressed text.
    """
    try:
        lines = [gzip.decompress(path.read_bytes()).decode().splitlines() for path in (train, test)]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{train} and {test}: no gzip-compressed text ({error})") from None
    kept = [[line for line in part if line.strip()] for part in lines]
    if len(kept[0]) <= _VALID or not kept[1]:
        raise DataError(
            f"{train}: {counted(len(kept[0]), 'line')}, expected more than {_VALID}, and some in "
            f"{test}"
        )
    vocabulary = Vocabulary.of(kept[0])
    parts = {"train": kept[0][:-_VALID], "valid": kept[0][-_VALID:], "test": kept[1]}
    numbers = {split: vocabulary.numbers(part) for split, part in parts.items()}
    return SequenceSets(name, **numbers, vocabulary=vocabulary)
