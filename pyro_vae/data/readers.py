"""Readers of array files that trust nothing a file declares, and run none of it."""

import gzip
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from pyro_vae.arguments import positive, typed
from pyro_vae.errors import DataError

MAX_BYTES = 2**30
Arrays = dict[str, np.ndarray]


@typed
def read_npz(
    path: str | os.PathLike[str],
    expected: Mapping[str, tuple[type, tuple[int, ...]]],
    *,
    optional: Mapping[str, tuple[type, tuple[int, ...]]] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Arrays:
    """Read named arrays of an ``.npz`` file after checking what it declares; never code.

    Arguments:
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
            members = _members(path, archive, positive("max_bytes", max_bytes))
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


@typed
def read_idx(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes: magic 0, 0, 8, rank; sizes; values.

    Arguments:
        path: the ``.gz`` file.
        max_bytes: refuse a file that would unpack to more.

    Raises:
        DataError: naming the file and what is wrong with it.
    """
    try:
        with gzip.open(path) as stream:
            sizes = _idx_header(path, stream)
            length = math.prod(sizes)
            if length > positive("max_bytes", max_bytes):
                raise DataError(f"{path}: claims {length} bytes, above {max_bytes} bytes")
            data = stream.read(length + 1)  # no more than it declares, whatever it unpacks to
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a sound gzip file ({error}); fetch it again") from None
    if len(data) != length:
        have = f"more than {length}" if len(data) > length else len(data)
        raise DataError(f"{path}: {have} bytes do not hold the declared sizes {sizes}")
    return np.frombuffer(data, np.uint8).reshape(sizes)


def _idx_header(path: str | os.PathLike[str], stream: gzip.GzipFile) -> list[int]:
    """Return the sizes that a file declares."""
    head = stream.read(4)
    rank = head[3] if len(head) == 4 else 0
    if head[:3] != b"\0\0\x08" or not 1 <= rank <= 3:
        raise DataError(f"{path}: not an IDX file of bytes")
    declared = stream.read(4 * rank)
    if len(declared) < 4 * rank:
        raise DataError(f"{path}: {len(declared)} bytes do not hold the declared sizes")
    return [int(n) for n in np.frombuffer(declared, ">u4")]
