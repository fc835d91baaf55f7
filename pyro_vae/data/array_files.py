"""Arrays of a user's own file, as the arguments of a program. Shapes: N rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import counted
from pyro_vae.data.count_files import load_sparse, sound_file
from pyro_vae.data.splits import EVERY, ByTurns, by_turns
from pyro_vae.data.table_files import read_table
from pyro_vae.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class Arrays(ByTurns):
    """Rows of a file in splits; ``all`` is not divided.

    Arguments:
        whole: one tensor, or tensors by the name of the program's argument, ``(N, ...)``.
    """

    whole: Tensor | dict[str, Tensor]

    def in_floats(self, *, labels: bool = True) -> "Arrays":
        """Return the same numbers as floats of torch's default type.

        Arguments:
            labels: leave a column of whole numbers beside other arrays, ``(N,)``, as it is.
        """
        if isinstance(self.whole, Tensor):
            return Arrays(self.whole.to(torch.get_default_dtype()))
        kept = labels and len(self.whole) > 1
        return Arrays({k: _floats(v, kept) for k, v in self.whole.items()})

    def flags_as_floats(self) -> "Arrays":
        """Return the same arrays, with 0 and 1 for flags."""
        named = self.whole if isinstance(self.whole, dict) else {"x": self.whole}
        flags = {k: _floats(v, False) if v.dtype == torch.bool else v for k, v in named.items()}
        return Arrays(flags if isinstance(self.whole, dict) else flags["x"])

    def _part(self, split: str) -> Any:
        whole = self.whole
        first = whole if isinstance(whole, Tensor) else next(iter(whole.values()))
        rows = torch.from_numpy(by_turns(len(first))[split])
        return whole[rows] if isinstance(whole, Tensor) else {k: v[rows] for k, v in whole.items()}


def read_arrays(path: Path) -> Arrays:
    """Return what a file holds, or a folder of images.

    Whole numbers come as int64, flags as they are, others as floats of torch's default type.

    Arguments:
        path: ``.npz`` (arrays by name, or what ``scipy.sparse.save_npz`` writes), ``.npy``,
            ``.pt`` (a tensor, or a dict of tensors; loading runs no code), ``.csv`` or ``.parquet``
            (numbers; all columns are one array), or a folder of images of one size, which
            become ``(N, C, H, W)`` in [0, 1], in the order of their names.

    Raises:
        ConfigError: A package that reads such files is not installed.
        DataError: No such file, an unsound one, arrays that are no numbers or of unequal lengths,
            or too few rows.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file")
    read = _images if path.is_dir() else READERS.get(path.suffix)
    if read is None:
        known = ", ".join(READERS)
        raise DataError(
            f"{path}: got a file {path.suffix!r}, expected {known} or a folder of images"
        )
    with sound_file(path):
        found = read(path)
    return Arrays(_checked(path, found))


def _checked(path: Path, found: Any) -> Tensor | dict[str, Tensor]:
    """Return tensors of equally many rows; a file of one array is one tensor."""
    named = found if isinstance(found, Mapping) else {"x": found}
    tensors = {str(k): _tensor(path, str(k), value) for k, value in named.items()}
    lengths = {name: len(value) for name, value in tensors.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"{path}: got arrays of {lengths or 'no'} rows, expected as many in each")
    rows = next(iter(lengths.values()))
    if rows < EVERY:
        raise DataError(f"{path}: got {counted(rows, 'row')}, expected at least {EVERY}")
    return tensors if len(tensors) > 1 or set(tensors) != {"x"} else tensors["x"]


def _floats(value: Tensor, labels: bool) -> Tensor:
    """Return a tensor as floats, but for whole numbers of one dimension where they are labels."""
    label = labels and value.ndim == 1 and not value.is_floating_point()
    return value.long() if label else value.to(torch.get_default_dtype())


def _tensor(path: Path, name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        value = np.asarray(value)
        if value.dtype.kind not in "fiub":
            raise DataError(f"{path}: {name} holds values of type {value.dtype}, expected numbers")
        value = torch.from_numpy(np.ascontiguousarray(value, value.dtype.newbyteorder("=")))
    if not value.ndim:
        raise DataError(f"{path}: {name} is a single number, expected rows")
    if value.dtype == torch.bool:
        return value
    return value.to(torch.get_default_dtype() if value.is_floating_point() else torch.int64)


def _npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as file:
        if "format" in file and "shape" in file:
            return load_sparse(path).toarray()
        return {name: file[name] for name in file.files}


def _npy(path: Path) -> Any:
    return np.load(path, allow_pickle=False)


def _pt(path: Path) -> Any:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a file from anywhere
        raise ValueError((str(error) or type(error).__name__).splitlines()[0]) from None
    values = list(found.values()) if isinstance(found, Mapping) else [found]
    if not values or not all(isinstance(value, Tensor) for value in values):
        raise DataError(
            f"{path}: got {type(found).__name__}, expected a tensor or a dict of tensors"
        )
    return found


def _table(path: Path) -> Any:
    frame = read_table(path)
    odd = [name for name in frame.columns if frame[name].dtype.kind not in "fiub"]
    if odd:
        raise DataError(f"{path}: column {odd[0]!r} holds no numbers; TableVAE takes such tables")
    whole = all(frame[name].dtype.kind in "iu" for name in frame.columns)
    if whole and not frame.isna().any(axis=None):
        return frame.to_numpy(np.int64)
    return frame.to_numpy(np.float32, na_value=np.nan)


def _images(path: Path) -> Any:
    from PIL import Image  # matplotlib brings it

    files = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
    if not files:
        raise DataError(f"{path}: got a folder without images, expected {', '.join(PICTURES)}")
    pictures = []
    for file in files:
        with Image.open(file) as image:
            mode = "L" if image.mode in ("1", "L", "I", "I;16", "F") else "RGB"
            pictures.append(np.asarray(image.convert(mode), np.float32) / 255)
        if pictures[-1].shape != pictures[0].shape:
            raise DataError(
                f"{file}: got {pictures[-1].shape}, expected {pictures[0].shape} as {files[0].name}"
            )
    stack = np.stack(pictures)
    return stack[:, None] if stack.ndim == 3 else stack.transpose(0, 3, 1, 2)


READERS = {".npz": _npz, ".npy": _npy, ".pt": _pt, ".csv": _table, ".parquet": _table}
