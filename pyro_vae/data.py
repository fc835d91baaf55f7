"""Data sets by name, as tensors with named splits and an explicit binarisation.

Nothing here is shipped: ``digits`` comes with scikit-learn, the others from
``$PYRO_VAE_DATA/<name>.npz``, the cache, or a download whose SHA-256 is known.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .files import atomic_write_bytes

# N data, D pixels, C channels, H height, W width

ENVIRONMENT = "PYRO_VAE_DATA"
MAX_BYTES = 2**30
NAMES = ("digits", "mnist", "mnist_static", "fashion_mnist")
BINARISATIONS = ("static", "dynamic", "threshold")

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Splits:
    """Training, validation and test data, one flattened image per row.

    Args:
        name: the data set.
        train: float32, shape `(N, D)`: in {0, 1}, or grey levels in [0, 1] (binarisation ``None``,
            and the training split of ``"dynamic"``).
        valid: as ``train``; binary whenever the data are binarised.
        test: as ``valid``.
        shape: of one image, `(C, H, W)`.
        labels: int64 classes, shape `(N)`, by split; empty where the source has none.
        binarisation: ``"static"``, ``"dynamic"``, ``"threshold"`` or ``None``. State it with every
            figure in nats: figures of different binarisations cannot be compared.
        transform: what ``pv.fit(..., transform=)`` applies to each training batch; ``None`` unless
            dynamic.
        seed: of the fixed Bernoulli draws.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    shape: tuple[int, int, int]
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    binarisation: str | None = None
    transform: Callable[[Tensor], Tensor] | None = None
    seed: int = 0

    def images(self, x: Tensor) -> Tensor:
        """Reshape rows to images: `(*, D)` to `(*, C, H, W)`."""
        if x.shape[-1:] != (math.prod(self.shape),):
            raise DataError(
                f"{self.name}: rows have {math.prod(self.shape)} pixels, got shape "
                f"{tuple(x.shape)}; pass flattened images"
            )
        return x.reshape(*x.shape[:-1], *self.shape)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{s}={len(getattr(self, s))}" for s in ("train", "valid", "test"))
        return f"Splits({self.name!r}, {sizes}, {self.shape}, binarisation={self.binarisation!r})"


def load(
    name: str,
    *,
    binarisation: str | None = None,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
) -> Splits:
    """Return a data set by name; the global random state is neither used nor changed.

    ========================  ===================  ========================================
    name                      train, valid, test   splits
    ========================  ===================  ========================================
    ``digits``                1297, 250, 250       scikit-learn's 8 x 8 digits, shuffled
    ``mnist``                 55000, 5000, 10000   validation is the end of the training set
    ``fashion_mnist``         55000, 5000, 10000   the same
    ``mnist_static``          50000, 10000, 10000  the published binary file, test shuffled
    ========================  ===================  ========================================

    The shuffles are fixed: ``seed`` moves no datum from one split to another.
    Binarisations: ``"static"`` is one Bernoulli draw with the grey levels as probabilities, fixed
    by ``seed`` (for ``mnist_static`` it is the published draw, which is another one, and the only
    one there); ``"dynamic"`` keeps the training split grey with ``transform`` drawing each batch
    afresh, and fixes validation and test as ``"static"`` does; ``"threshold"`` is grey >= 0.5.

    Args:
        name: ``"digits"``, ``"mnist"``, ``"mnist_static"`` or ``"fashion_mnist"``.
        binarisation: as above, or ``None`` for grey levels in [0, 1].
        seed: of the fixed draws.
        root: folder of ``<name>.npz``, in place of ``$PYRO_VAE_DATA`` and of the cache.

    Raises:
        DataError: unknown name or binarisation, file unusable, or data not to be had.

    References:
        | On the quantitative analysis of deep belief networks (Salakhutdinov and Murray, 2008)
        | The neural autoregressive distribution estimator (Larochelle and Murray, 2011)
        | Importance weighted autoencoders (Burda et al., 2015), arXiv:1509.00519
    """
    if name not in NAMES:
        raise DataError(f"unknown data set {name!r}; choose one of {', '.join(NAMES)}")
    if binarisation is not None and binarisation not in BINARISATIONS:
        raise DataError(
            f"unknown binarisation {binarisation!r}; choose None or {', '.join(BINARISATIONS)}"
        )
    if name == "mnist_static":
        if binarisation in ("dynamic", "threshold"):
            raise DataError(
                f"mnist_static is binary as published, got binarisation={binarisation!r}; "
                "leave it out, or load 'mnist'"
            )
        x, labels, shape = _mnist_static(_locate(name, root))
        binarisation = "static"
    else:
        grey, labels, shape = (
            _digits() if name == "digits" else _train_and_test(_locate(name, root))
        )
        x = _binarise(grey, binarisation, seed)
    return Splits(
        name,
        x["train"],
        x["valid"],
        x["test"],
        shape,
        labels=labels,
        binarisation=binarisation,
        transform=torch.bernoulli if binarisation == "dynamic" else None,
        seed=seed,
    )


def read_npz(
    path: str | os.PathLike[str],
    expected: Mapping[str, tuple[type, tuple[int, ...]]],
    *,
    optional: Mapping[str, tuple[type, tuple[int, ...]]] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Arrays:
    """Read named arrays of an ``.npz`` file after checking what it declares; never code.

    Args:
        path: a regular file.
        expected: by name, the kind of number (``np.uint8``, ``np.integer``, ...) and the shape of
            one row; the first axis is free.
        optional: the same, for arrays that may be absent.
        max_bytes: refuse a file that would unpack to more.

    Raises:
        DataError: naming the file and what is wrong with it.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{path}: not a regular file; expected an .npz file")
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive, max_bytes)
            wanted = {**expected, **{k: v for k, v in (optional or {}).items() if k in members}}
            missing = [key for key in wanted if key not in members]
            if missing:
                have = ", ".join(sorted(members)) or "nothing"
                raise DataError(f"{path}: no array {', '.join(missing)}; it has {have}")
            return {k: _read_member(path, archive, members[k], k, *wanted[k]) for k in wanted}
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # whatever hostile bytes provoke, it is this file's fault
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: not a sound .npz file ({reason}); fetch it again") from None


def _members(path: Path, archive: zipfile.ZipFile, max_bytes: int) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        key = info.filename.removesuffix(".npy")
        if not key.isidentifier() or key == info.filename or key in members:
            raise DataError(f"{path}: strange or repeated member {info.filename!r}")
        members[key] = info
    total = sum(info.file_size for info in members.values())
    if total > max_bytes:
        raise DataError(f"{path}: unpacks to {total} bytes, more than the {max_bytes} allowed")
    return members


def _read_member(
    path: Path,
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    key: str,
    kind: type,
    row: tuple[int, ...],
) -> np.ndarray:
    with archive.open(info) as stream:
        shape, dtype = _header(stream)
        # The header is checked first: NumPy would allocate what it claims.
        if not np.issubdtype(dtype, kind) or len(shape) != len(row) + 1 or shape[1:] != row:
            want = f"{kind.__name__} (N{''.join(f', {n}' for n in row)})"
            raise DataError(f"{path}: {key} is {dtype} {shape}, expected {want}")
        if shape[0] < 1:
            raise DataError(f"{path}: {key} is empty")
        if stream.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            raise DataError(f"{path}: {key} claims shape {shape}, but has {info.file_size} bytes")
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f".npy version {version}")
    return shape, dtype


# -- The four sources ------------------------------------------------------------------------------

_Source = tuple[dict[str, Tensor], dict[str, Tensor], tuple[int, int, int]]


def _digits() -> _Source:
    from sklearn.datasets import load_digits  # slow to import, and only this needs it

    bunch = load_digits()
    x = torch.as_tensor(bunch.data, dtype=torch.float32) / 16
    y = torch.as_tensor(bunch.target, dtype=torch.int64)
    order = _fixed_permutation(len(x))
    parts = dict(zip(("train", "valid", "test"), order.split((1297, 250, 250)), strict=True))
    return {k: x[i] for k, i in parts.items()}, {k: y[i] for k, i in parts.items()}, (1, 8, 8)


def _train_and_test(path: Path) -> _Source:
    image, label = (np.uint8, (28, 28)), (np.integer, ())
    arrays = read_npz(path, {"x_train": image, "y_train": label, "x_test": image, "y_test": label})
    for split in ("train", "test"):
        _check_lengths(path, arrays, split)
    held_out = len(arrays["x_train"]) // 12  # 5,000 of 60,000
    if held_out < 1:
        raise DataError(f"{path}: {len(arrays['x_train'])} training rows, expected at least 12")
    x, y = _unit(arrays["x_train"]), _classes(arrays["y_train"])
    grey = {"train": x[:-held_out], "valid": x[-held_out:], "test": _unit(arrays["x_test"])}
    labels = {"train": y[:-held_out], "valid": y[-held_out:], "test": _classes(arrays["y_test"])}
    return grey, labels, (1, 28, 28)


def _mnist_static(path: Path) -> _Source:
    splits = ("train", "valid", "test")
    arrays = read_npz(
        path,
        {f"x_{split}": (np.uint8, (28, 28)) for split in splits},
        optional={f"y_{split}": (np.integer, ()) for split in splits},
    )
    for split in splits:
        _check_lengths(path, arrays, split)
        if arrays[f"x_{split}"].max() > 1:
            raise DataError(f"{path}: x_{split} has values above 1, expected 0 and 1 only")
    binary = {s: torch.from_numpy(arrays[f"x_{s}"]).flatten(1).float() for s in splits}
    labels = {s: _classes(arrays[f"y_{s}"]) for s in splits if f"y_{s}" in arrays}
    # The published test set is sorted by digit: its first batch would be all zeros.
    order = _fixed_permutation(len(binary["test"]))
    for part in (binary, labels):
        if "test" in part:
            part["test"] = part["test"][order]
    return binary, labels, (1, 28, 28)


def _check_lengths(path: Path, arrays: Arrays, split: str) -> None:
    x, y = arrays[f"x_{split}"], arrays.get(f"y_{split}")
    if y is not None and len(x) != len(y):
        raise DataError(f"{path}: {len(x)} rows in x_{split}, but {len(y)} in y_{split}")


def _unit(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).flatten(1).float().div_(255)


def _classes(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _fixed_permutation(n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def _binarise(grey: dict[str, Tensor], binarisation: str | None, seed: int) -> dict[str, Tensor]:
    if binarisation is None:
        return grey
    if binarisation == "threshold":
        return {split: (x >= 0.5).float() for split, x in grey.items()}
    generator = torch.Generator().manual_seed(seed)
    # In this order, so that static and dynamic share validation and test draws.
    drawn = {s: torch.bernoulli(grey[s], generator=generator) for s in ("test", "valid")}
    if binarisation == "dynamic":
        return {"train": grey["train"], **drawn}
    return {"train": torch.bernoulli(grey["train"], generator=generator), **drawn}


# -- Where the files are ---------------------------------------------------------------------------


def _locate(name: str, root: str | os.PathLike[str] | None) -> Path:
    folder = root if root is not None else os.environ.get(ENVIRONMENT)
    if folder:
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            source = "root" if root is not None else f"${ENVIRONMENT}"
            raise DataError(f"{source} is {str(folder)!r}, which is not a folder; correct it")
        # A dangling link or a folder of that name is reported, not passed over.
        if os.path.lexists(folder / f"{name}.npz"):
            return folder / f"{name}.npz"
    import pooch  # only those without the files need it

    cache = Path(root).expanduser() if root is not None else Path(pooch.os_cache("pyro_vae"))
    path = cache / f"{name}.npz"
    return path if os.path.lexists(path) else _download(name, path)


def _download(name: str, path: Path) -> Path:
    import pooch

    download = _DOWNLOADS[name]
    parts = []
    for file, digest in download.files.items():
        url = f"{download.base}{file}"
        try:
            # pooch checks the hash before the file gets its name.
            part = pooch.retrieve(url, f"sha256:{digest}", fname=f"{name}-{file}", path=path.parent)
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"{name}: could not be downloaded from {url} ({reason}); "
                f"put {name}.npz into a folder and set {ENVIRONMENT} to it"
            ) from None
        parts.append(Path(part))
    if download.arrays is None:
        os.replace(parts[0], path)
        return path
    buffer = io.BytesIO()
    columns: dict[str, Any] = dict(download.arrays(parts))
    np.savez_compressed(buffer, **columns)
    atomic_write_bytes(path, buffer.getvalue())
    for part in parts:
        part.unlink()
    return path


def _idx_arrays(parts: list[Path]) -> Arrays:
    """Images and labels in LeCun's IDX format, in the order of the download."""
    keys = ("x_train", "y_train", "x_test", "y_test")
    return {k: read_idx(p) for k, p in zip(keys, parts, strict=True)}


def read_idx(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes: magic 0, 0, 8, rank; sizes; values.

    Args:
        path: the ``.gz`` file.
        max_bytes: refuse a file that would unpack to more.

    Raises:
        DataError: naming the file and what is wrong with it.
    """
    try:
        with gzip.open(path) as stream:
            data = stream.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a sound gzip file ({error}); fetch it again") from None
    rank = data[3] if len(data) > 3 else 0
    if len(data) > max_bytes or data[:3] != b"\0\0\x08" or not 1 <= rank <= 3:
        raise DataError(f"{path}: not an IDX file of bytes, or above {max_bytes} bytes")
    sizes = [int(n) for n in np.frombuffer(data[4 : 4 + 4 * rank].ljust(4 * rank, b"\0"), ">u4")]
    if len(data) != 4 + 4 * rank + math.prod(sizes):
        raise DataError(f"{path}: {len(data)} bytes do not hold the declared sizes {sizes}")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sizes)


def _amat_arrays(parts: list[Path]) -> Arrays:
    """Images as lines of 784 digits 0 or 1 between single spaces, in the order of the download."""
    keys = ("x_train", "x_valid", "x_test")
    text = {
        k: np.fromfile(p, np.uint8).reshape(-1, 2 * 784) for k, p in zip(keys, parts, strict=True)
    }
    return {k: (t[:, ::2] - ord("0")).reshape(-1, 28, 28) for k, t in text.items()}


@dataclass(frozen=True)
class _Remote:
    base: str
    files: dict[str, str]  # by file name, its SHA-256
    arrays: Callable[[list[Path]], Arrays] | None = None  # None: the file is the .npz itself


_DOWNLOADS = {
    # The hash is the one that Keras checks for the same file.
    "mnist": _Remote(
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        {"mnist.npz": "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"},
    ),
    # These hashes are the ones that TensorFlow Datasets checks for the same files.
    "fashion_mnist": _Remote(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
            ),
            "train-labels-idx1-ubyte.gz": (
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
            ),
            "t10k-images-idx3-ubyte.gz": (
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
            ),
            "t10k-labels-idx1-ubyte.gz": (
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
            ),
        },
        _idx_arrays,
    ),
    "mnist_static": _Remote(
        "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
        {
            "binarized_mnist_train.amat": (
                "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"
            ),
            "binarized_mnist_valid.amat": (
                "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"
            ),
            "binarized_mnist_test.amat": (
                "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"
            ),
        },
        _amat_arrays,
    ),
}
