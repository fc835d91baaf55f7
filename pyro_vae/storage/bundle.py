"""The one file format of the library: a safetensors file whose metadata hold JSON and a hash.

A *bundle* called ``model`` is the file ``model.safetensors``. Any safetensors reader opens it; its
``__metadata__`` are::

    format     "pyro_vae bundle"
    version    "1"
    meta       JSON: everything that is no tensor
    sha256     of the whole file, with 64 zeros in this place

It is replaced in one step: a process that is killed, or a disk that fills, leaves the previous
file. Nothing is unpickled. Any number of readers and writers: a reader finds one writer's file.
"""

import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.parameter import is_lazy

from pyro_vae.errors import CheckpointError, DeviceError
from pyro_vae.storage.atomic import atomic_write_bytes, remove_leftovers

__all__ = ["bundle_path", "check_state", "mentions", "read_bundle", "serialise", "write_bundle"]

FORMAT = "pyro_vae bundle"
VERSION = 1
RESTORE = "restore the file from a copy, or load an older checkpoint"
MAX_HEADER_BYTES = 10**8  # safetensors' own limit
# What JSON may take in memory once it is read, besides twice the file.
SPARE_BYTES = 2**24
# At most, for each sign of it in a text: an object, a list, and what stands in them.
_MEMORY_OF = {b"{": 240, b"[": 72, b",": 60, b":": 60}
MAX_DEPTH = 32  # of lists and dicts in the JSON
MAX_AXES = 64  # of a tensor: torch's own limit
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Quotes inside a JSON string are escaped: outside the metadata's own entry this cannot occur.
_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_BLANK = b"0" * 64
_METADATA = b'{"__metadata__":'


def bundle_path(folder: str | os.PathLike[str], name: str) -> Path:
    """Return the file of a bundle.

    Raises:
        CheckpointError: A name with other characters than letters, digits, ``.``, ``_``, ``-``.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CheckpointError(
            f"{name!r} cannot name a bundle; use letters, digits, '.', '_' and '-'"
        )
    return Path(folder) / f"{name}.safetensors"


def write_bundle(
    folder: str | os.PathLike[str],
    name: str,
    tensors: Mapping[str, Tensor],
    meta: dict[str, Any],
    *,
    allow_nonfinite: bool = False,
    previous: str | None = None,
) -> None:
    """Write tensors and JSON-able ``meta`` so that a crash at any point leaves the last good file.

    Tied, strided, conjugated and device tensors are copied; the caller's are not changed.

    Arguments:
        folder: created if absent.
        name: letters, digits, ``.``, ``_``, ``-``.
        tensors: dense tensors of any shape, by name; each is written whole.
        meta: what JSON can hold, with string keys (tuples come back as lists, NaN is refused).
        allow_nonfinite: write NaN and infinite values too.
        previous: the name under which the file before this one is kept; None replaces it.

    Raises:
        CheckpointError: for a value that the format cannot hold, before anything is written.
        OSError: disk full, no permission; the old file is intact and no temporary file is left.
    """
    path = bundle_path(folder, name)
    older = None if previous is None else bundle_path(folder, previous)
    data = serialise(tensors, meta, str(path), allow_nonfinite=allow_nonfinite)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        atomic_write_bytes(path, data, previous=older)
    finally:
        remove_leftovers(path)


def serialise(
    tensors: Mapping[str, Tensor], meta: Any, where: str, *, allow_nonfinite: bool = False
) -> bytes:
    """Return the bytes of a bundle.

    Raises:
        CheckpointError: for a value that the format cannot hold, beginning with ``where``.
    """
    text = _render(meta, where)
    dense = _dense(tensors, where)
    if not allow_nonfinite:
        _check_finite(dense, where)
    try:
        plain = memoryview(safetensors.torch.save(dense))
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where}: safetensors cannot hold this ({error})") from None
    data = _with_metadata(plain, {"format": FORMAT, "version": str(VERSION), "meta": text}, where)
    seal = _SEAL.search(data)
    assert seal is not None  # it was just put there
    digest = hashlib.sha256(data).hexdigest().encode()
    return data[: seal.start(1)] + digest + data[seal.end(1) :]


def read_bundle(
    folder: str | os.PathLike[str],
    name: str,
    device: str | torch.device = "cpu",
    *,
    allow_nonfinite: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_bundle` wrote, or raise; never a part of it, never code.

    The bytes that were hashed are the bytes that are parsed.

    Arguments:
        folder: the folder given to :func:`write_bundle`.
        name: the name given to :func:`write_bundle`.
        device: where the tensors go.
        allow_nonfinite: accept NaN and infinite values.

    Raises:
        CheckpointError: one line with the file, what is wrong with it, and what to do.
        DeviceError: the device cannot be used.
    """
    path = bundle_path(folder, name)
    data = _read_bytes(path)
    meta = _read_meta(path, data)
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # whatever hostile bytes provoke, it is this file's fault
        raise _damaged(path, f"not a safetensors file ({_first_line(error)})") from None
    crooked = [key for key, value in tensors.items() if value.dim() > MAX_AXES]
    if crooked:
        raise _damaged(path, f"tensor {crooked[0]!r} has more than {MAX_AXES} axes")
    if not allow_nonfinite:
        _check_finite(tensors, str(path))
    try:
        return {key: value.to(device) for key, value in tensors.items()}, meta
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(
            f"{path}: cannot be moved to device {device} ({_first_line(error)}); use device='cpu'"
        ) from None


def mentions(folder: str | os.PathLike[str], name: str, entry: str) -> bool:
    """Return whether the JSON of a file may have an entry, without a look at tensors or hash."""
    try:
        with safetensors.safe_open(bundle_path(folder, name), "pt") as file:
            return json.dumps(entry) in (file.metadata() or {}).get("meta", "")
    except Exception:  # whatever hostile bytes provoke: who reads the file is told
        return False


def check_state(
    expected: Mapping[str, Tensor], got: Mapping[str, Tensor], where: str, more: str = ""
) -> None:
    """Refuse tensors that do not fit, all at once, before any of them is copied.

    Floating-point tensors may differ in precision (the copy casts); kinds may not be mixed.

    Arguments:
        expected: the tensors to be filled, e.g. ``module.state_dict()``.
        got: the tensors that were read.
        where: the file or program, for the message.
        more: another way out, for the message.

    Raises:
        CheckpointError: listing the missing, unexpected and misshaped tensors.
    """
    faults = [
        *(f"missing {key!r}" for key in expected if key not in got),
        *(f"unexpected {key!r}" for key in got if key not in expected),
        *_misfits(expected, got),
    ]
    if faults:
        others = f" and {len(faults) - 12} more" if len(faults) > 12 else ""
        raise CheckpointError(
            f"{where}: the tensors do not fit: {', '.join(faults[:12])}{others}; "
            f"build the program with the sizes and the names it was saved with{more}"
        )


# -- the JSON and its hash -------------------------------------------------------------------------


def _render(meta: Any, where: str) -> str:
    try:
        text = json.dumps(meta, ensure_ascii=False, allow_nan=False)
        text.encode()  # a lone surrogate has no UTF-8: fail here, as a ValueError
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: meta is not plain JSON ({error}); "
            "keep finite numbers, strings, lists and dicts in it"
        ) from None
    if not isinstance(meta, dict) or not _string_keys(meta):
        raise CheckpointError(f"{where}: meta must be a dict with string keys only")
    if _depth(meta) > MAX_DEPTH:
        raise CheckpointError(f"{where}: meta is nested deeper than {MAX_DEPTH}; make it flatter")
    return text


def _too_costly(text: bytes, size: int) -> bool:
    """Return whether JSON beside so many bytes of tensors may take far more memory than both."""
    cost = len(text) + sum(each * text.count(sign) for sign, each in _MEMORY_OF.items())
    return cost > 2 * (len(text) + size) + SPARE_BYTES


def _with_metadata(plain: memoryview, metadata: dict[str, str], where: str) -> bytes:
    """Return a safetensors file with metadata and a blank seal, in an order that is always one.

    Raises:
        CheckpointError: The metadata are too long for a reader.
    """
    # By hand: safetensors writes the entries in another order each time.
    length = struct.unpack("<Q", plain[:8])[0]
    tensors = bytes(plain[8 : 8 + length]).strip()[1:]  # less the opening brace
    entries = json.dumps({**metadata, "sha256": _BLANK.decode()}, separators=(",", ":"))
    if _too_costly(_METADATA + entries.encode(), len(plain)):
        raise CheckpointError(
            f"{where}: meta has {entries.count(',')} entries beside {len(plain)} bytes of tensors, "
            "which no reader accepts; keep long lists of numbers as tensors"
        )
    comma = b"" if tensors == b"}" else b","
    header = _METADATA + entries.encode() + comma + tensors
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    return b"".join((struct.pack("<Q", len(header)), header, plain[8 + length :]))


def _read_meta(path: Path, data: bytes) -> dict[str, Any]:
    """Check the hash of a whole file, and return its JSON."""
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 0 < length <= min(len(data) - 8, MAX_HEADER_BYTES):
        raise _damaged(path, f"not a safetensors file, or truncated ({len(data)} bytes)")
    seal = _SEAL.search(data, 8, 8 + length)
    end = 8 + length if seal is None else seal.end() + 1  # the seal is the last of its entries
    header = _metadata(path, data[8:end], len(data) - end)
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a file of this library (no 'format': {FORMAT!r})")
    version = header.get("version")
    if version != str(VERSION):
        raise CheckpointError(
            f"{path}: format version {version!r}, this pyro_vae reads {VERSION}; update it, or "
            f"{RESTORE}"
        )
    if seal is None or seal[1] != str(header.get("sha256")).encode():
        raise _damaged(path, "it has no SHA-256")
    view, hashed = memoryview(data), hashlib.sha256()
    for piece in (view[: seal.start(1)], _BLANK, view[seal.end(1) :]):
        hashed.update(piece)
    if hashed.hexdigest().encode() != seal[1]:
        raise _damaged(path, "SHA-256 mismatch, the file was changed or cut off")
    meta = _parse(path, str(header.get("meta")))
    if _depth(meta) > MAX_DEPTH:
        raise _damaged(path, f"its JSON is nested deeper than {MAX_DEPTH}")
    return meta


def _metadata(path: Path, header: bytes, size: int) -> dict[str, Any]:
    """Return the first entry of a header; a stranger's can have a million more, which cost memory.

    Whoever writes such a file with its metadata elsewhere breaks the hash, and is not read.
    """
    if not header.startswith(_METADATA):
        return {}
    if _too_costly(header, size):
        raise _damaged(path, "its JSON would take far more memory than the file")
    try:
        found, _ = json.JSONDecoder(
            object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        ).raw_decode(header[len(_METADATA) :].decode().lstrip())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"not valid JSON ({_first_line(error)})") from None
    return found if isinstance(found, dict) else {}


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"not valid JSON ({_first_line(error)})") from None
    if not isinstance(found, dict):
        raise _damaged(path, "its JSON is no object")
    return found


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _depth(value: Any) -> int:
    """Return how deeply lists and dicts are nested."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list | tuple)]:
        depth += 1
        level = [
            inner for each in level for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def _string_keys(value: Any) -> bool:
    """Say whether all keys are strings: JSON would write the key 1 as "1", silently."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _string_keys(v) for k, v in value.items())
    return not isinstance(value, list | tuple) or all(map(_string_keys, value))


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: {what}; {RESTORE}")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# -- the tensors -----------------------------------------------------------------------------------


def _dense(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return plain copies of tensors, each with memory of its own, on the CPU."""
    dense: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in tensors.items():
        if not isinstance(key, str) or key == "__metadata__":
            raise CheckpointError(f"{where}: {key!r} cannot name a tensor; rename it")
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise CheckpointError(f"{where}: {key!r} is {kind}, not a tensor; put it in meta")
        if is_lazy(value):
            raise CheckpointError(
                f"{where}: tensor {key!r} of a lazy layer has no values yet; run the program on a "
                "batch first, by program.read(batch) or any verb"
            )
        if value.is_meta or value.layout is not torch.strided:
            kind = "on the meta device" if value.is_meta else f"{value.layout}"
            raise CheckpointError(
                f"{where}: tensor {key!r} is {kind}; save dense tensors (of a "
                "buffer that is made anew: register_buffer(..., persistent=False))"
            )
        plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        dense[key] = plain.clone() if storage in seen else plain  # tied: each name has its own copy
        seen.add(storage)
    return dense


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    floats = {k: t for k, t in tensors.items() if t.is_floating_point() or t.is_complex()}
    bad = [key for key, value in floats.items() if not _is_finite(value)]
    if bad:
        raise CheckpointError(
            f"{where}: NaN or infinite values in {', '.join(map(repr, bad[:12]))}; "
            "use an earlier checkpoint, or allow_nonfinite=True to look at this one"
        )


def _is_finite(value: Tensor) -> bool:
    if value.element_size() == 1:  # the 8-bit floats have no `isfinite`
        value = value.float()
    return bool(torch.isfinite(value).all())


def _misfits(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> Iterator[str]:
    for key in expected:
        if key not in got or is_lazy(expected[key]):  # a lazy layer takes the shape it is given
            continue
        want, have = expected[key], got[key]
        if want.shape != have.shape:
            yield f"{key!r} has shape {tuple(have.shape)}, expected {tuple(want.shape)}"
        elif _kind(want) != _kind(have):
            yield f"{key!r} is {have.dtype}, expected {want.dtype}"


def _kind(value: Tensor) -> str:
    if value.dtype is torch.bool:
        return "bool"
    if value.is_complex():
        return "complex"
    return "float" if value.is_floating_point() else "integer"


# -- the file --------------------------------------------------------------------------------------


def _read_bytes(path: Path) -> bytes:
    """Read a regular file, as large as it says it is; a FIFO or device is not opened."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CheckpointError(f"{path}: not a regular file; give the folder of a checkpoint")
        with open(path, "rb") as stream:
            # The size of the file that was opened: another may have taken its place since.
            return stream.read(os.fstat(stream.fileno()).st_size + 1)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path}: {_why_absent(path)}") from None
    except NotADirectoryError:
        raise CheckpointError(
            f"{path.parent}: is a file, expected the folder that pv.save or pv.fit(out=) wrote"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be read ({reason}); check the path") from None


def _why_absent(path: Path) -> str:
    if path.with_suffix(".json").exists():
        return (
            f"no such file; {path.stem}.json beside it is of a development version, which wrote "
            "two files; load it with that version, and train or save it again with this one"
        )
    return "no such file; check the folder and the name"
