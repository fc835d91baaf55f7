"""JSON that carries the SHA-256 of its own text, so that any change of a byte is noticed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_vae.errors import CheckpointError

FORMAT = "pyro_vae bundle"
VERSION = 1
RESTORE = "restore the file from a copy, or load an older checkpoint"


def seal(body: Mapping[str, Any]) -> str:
    """Render the body with the SHA-256 of that rendering as its last entry."""
    return _render({**body, "sha256": hashlib.sha256(_render(body).encode()).hexdigest()})


def unseal(path: Path, data: bytes) -> dict[str, Any]:
    """Return the body that `seal` rendered; raise `CheckpointError` for any other bytes."""
    try:
        text = data.decode()
        body = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: not valid JSON ({reason}); {RESTORE}") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a file of this library (no 'format': {FORMAT!r})")
    version = body.get("version")
    if type(version) is int and version > VERSION:
        raise CheckpointError(
            f"{path}: format version {version}, this pyro_vae reads up to {VERSION}; update it"
        )
    if version != VERSION:
        raise CheckpointError(f"{path}: format version {version!r} is unknown; {RESTORE}")
    body.pop("sha256", None)
    try:
        # Equal texts, not only equal hashes: what is read is byte for byte what was written.
        intact = seal(body) == text
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise CheckpointError(f"{path}: SHA-256 mismatch, the text was changed; {RESTORE}")
    return body


def _render(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    text.encode()  # a lone surrogate has no UTF-8: fail here, as a ValueError
    return text


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")
