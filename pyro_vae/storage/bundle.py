"""The one file format of the library: tensors in safetensors, everything else in JSON.

A *bundle* called ``model`` is two files of one folder::

    model-3f2a90c17be4.safetensors     tensors, named by the first 12 digits of their SHA-256
    model.json                         format version, the name, size and hash above, meta, own hash

The JSON is written last and replaced in one step, so it always names a complete tensor file: a
process that is killed, or a disk that fills, leaves the previous pair. Nothing is unpickled.
One writer per bundle; any number of readers.
"""

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.parameter import is_lazy

from pyro_vae.errors import CheckpointError, DeviceError
from pyro_vae.storage.atomic import atomic_write_bytes, atomic_write_text
from pyro_vae.storage.sealing import FORMAT, RESTORE, VERSION, seal, unseal

__all__ = [
    "MAX_JSON_BYTES",
    "atomic_write_bytes",
    "atomic_write_text",
    "check_state",
    "read_bundle",
    "write_bundle",
]

MAX_JSON_BYTES = 2**28
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def write_bundle(
    folder: str | os.PathLike[str],
    name: str,
    tensors: Mapping[str, Tensor],
    meta: dict[str, Any],
    *,
    allow_nonfinite: bool = False,
) -> None:
    """Write tensors and JSON-able ``meta`` so that a crash at any point leaves the last good pair.

    Tied, strided, conjugated and device tensors are copied; the caller's are not changed.

    Arguments:
        folder: created if absent.
        name: letters, digits, ``.``, ``_``, ``-``.
        tensors: dense tensors of any shape, by name; each is written whole.
        meta: what JSON can hold, with string keys (tuples come back as lists, NaN is refused).
        allow_nonfinite: write NaN and infinite values too.

    Raises:
        CheckpointError: for a value that the format cannot hold, before anything is written.
        OSError: disk full, no permission; the old pair is intact and no temporary file is left.
    """
    folder = Path(folder)
    _check_name(name)
    payload = _serialise(tensors, f"{folder / name}", allow_nonfinite)
    digest = hashlib.sha256(payload).hexdigest()
    file = _tensor_file(name, digest)
    body = {
        "format": FORMAT,
        "version": VERSION,
        "tensors": {"file": file, "bytes": len(payload), "sha256": digest},
        "meta": meta,
    }
    try:
        text = seal(body)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{folder / name}.json: meta is not plain JSON ({error}); "
            "keep finite numbers, strings, lists and dicts in it"
        ) from None
    if not isinstance(meta, dict) or not _string_keys(meta):
        raise CheckpointError(f"{folder / name}.json: meta must be a dict with string keys only")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        atomic_write_bytes(folder / file, payload)
        atomic_write_bytes(folder / f"{name}.json", text.encode())
    finally:
        _sweep(folder, name)


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
    folder = Path(folder)
    _check_name(name)
    path = folder / f"{name}.json"
    text = _read_bytes(path, MAX_JSON_BYTES)
    while True:
        body = unseal(path, text)
        entry = _tensor_entry(path, name, body)
        try:
            tensors = _read_tensors(folder / entry["file"], entry)
            break
        except CheckpointError:
            # A writer may have replaced the pair between the two reads: then the JSON has changed.
            again = _read_bytes(path, MAX_JSON_BYTES)
            if again == text:
                raise
            text = again
    if not allow_nonfinite:
        _check_finite(tensors, str(folder / entry["file"]))
    try:
        return {key: value.to(device) for key, value in tensors.items()}, body["meta"]
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(
            f"{path}: cannot be moved to device {device} ({reason}); use device='cpu'"
        ) from None


def check_state(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors that do not fit, all at once, before any of them is copied.

    Floating-point tensors may differ in precision (the copy casts); kinds may not be mixed.

    Arguments:
        expected: the tensors to be filled, e.g. ``module.state_dict()``.
        got: the tensors that were read.
        where: the file or program, for the message.

    Raises:
        CheckpointError: listing the missing, unexpected and misshaped tensors.
    """
    faults = [
        *(f"missing {key!r}" for key in expected if key not in got),
        *(f"unexpected {key!r}" for key in got if key not in expected),
        *_misfits(expected, got),
    ]
    if faults:
        more = f" and {len(faults) - 12} more" if len(faults) > 12 else ""
        raise CheckpointError(
            f"{where}: the tensors do not fit: {', '.join(faults[:12])}{more}; "
            "build the program with the sizes it was saved with"
        )


def _sweep(folder: Path, name: str) -> None:
    """Remove the tensor and temporary files of this name that the JSON on disk does not name."""
    path = folder / f"{name}.json"
    try:
        keep = _tensor_entry(path, name, unseal(path, _read_bytes(path, MAX_JSON_BYTES)))["file"]
    except CheckpointError:
        if os.path.lexists(path):
            return  # damaged: whatever it named may still be rescued by hand
        keep = None
    tensor_file = re.escape(name) + r"-[0-9a-f]{12}\.safetensors"
    temporary = rf"\.(?:{tensor_file}|{re.escape(name)}\.json)\.[0-9a-f]{{8}}\.tmp"
    stale = re.compile(f"{tensor_file}|{temporary}")
    # What cannot be removed does no harm, and must not hide the error that is under way.
    with contextlib.suppress(OSError):
        for file in os.listdir(folder):
            if file != keep and stale.fullmatch(file):
                (folder / file).unlink()


def _serialise(tensors: Mapping[str, Tensor], where: str, allow_nonfinite: bool) -> bytes:
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
            raise CheckpointError(f"{where}: tensor {key!r} is {kind}; save dense tensors")
        plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        dense[key] = plain.clone() if storage in seen else plain  # tied: each name has its own copy
        seen.add(storage)
    if not allow_nonfinite:
        _check_finite(dense, where)
    try:
        return safetensors.torch.save(dense)
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where}: safetensors cannot hold this ({error})") from None


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


def _read_tensors(path: Path, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    payload = _read_bytes(path, entry["bytes"])
    if len(payload) != entry["bytes"]:
        raise CheckpointError(
            f"{path}: {len(payload)} bytes, expected {entry['bytes']}: truncated; {RESTORE}"
        )
    if hashlib.sha256(payload).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{path}: SHA-256 mismatch, the file was changed; {RESTORE}")
    try:
        return safetensors.torch.load(payload)
    except Exception as error:  # whatever hostile bytes provoke, it is this file's fault
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not a safetensors file ({reason}); {RESTORE}") from None


def _read_bytes(path: Path, limit: int) -> bytes:
    """Read a regular file of at most ``limit`` bytes; a FIFO or device is not opened."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: not a regular file; give the folder of a checkpoint")
        if status.st_size > limit:
            raise CheckpointError(
                f"{path}: {status.st_size} bytes, expected at most {limit}; {RESTORE}"
            )
        with open(path, "rb") as stream:
            return stream.read(limit + 1)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; check the folder and the name") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be read ({reason}); check the path") from None


def _tensor_entry(path: Path, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked record of the tensor file: only the name that its hash gives it."""
    entry = body.get("tensors")
    if isinstance(entry, dict) and isinstance(body.get("meta"), dict):
        digest, size = entry.get("sha256"), entry.get("bytes")
        sane = isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None
        if sane and type(size) is int and 0 <= size < 2**63:
            if entry.get("file") == _tensor_file(name, str(digest)):
                return entry
            raise CheckpointError(
                f"{path}: names the tensor file {entry.get('file')!r}, "
                f"expected {_tensor_file(name, str(digest))!r}; {RESTORE}"
            )
    raise CheckpointError(f"{path}: 'tensors' or 'meta' is malformed; {RESTORE}")


def _string_keys(value: Any) -> bool:
    """Say whether all keys are strings: JSON would write the key 1 as "1", silently."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and _string_keys(v) for k, v in value.items())
    return not isinstance(value, list | tuple) or all(map(_string_keys, value))


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


def _tensor_file(name: str, digest: str) -> str:
    return f"{name}-{digest[:12]}.safetensors"


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CheckpointError(
            f"{name!r} cannot name a bundle; use letters, digits, '.', '_' and '-'"
        )
