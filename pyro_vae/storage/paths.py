"""Folders as users name them."""

import os
import re
from pathlib import Path

from pyro_vae.arguments import shown
from pyro_vae.errors import ConfigError


def local_path(argument: str, path: str | os.PathLike[str]) -> Path:
    """Return a path of this machine, with ``~`` as the home folder.

    Raises:
        ConfigError: An address such as ``s3://bucket/run``, or no path at all.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        raise ConfigError(f"{argument}: got {path!r}, expected the path of a folder") from None
    if not isinstance(text, str) or "\0" in text or not text:
        raise ConfigError(f"{argument}: got {path!r}, expected the path of a folder")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        way_out = (
            "; pv.push_to_hub writes to the Hub, and pv.load reads hf://owner/name"
            if text.startswith("hf:")
            else " (pv.fit, pv.save and pv.load take addresses too, as s3://bucket/run)"
        )
        raise ConfigError(f"{argument}: got {text!r}, expected a folder of this machine{way_out}")
    return Path(text).expanduser()


def require_room(argument: str, folder: Path) -> None:
    """Require a folder, or a place where one can be made.

    Raises:
        ConfigError: It is a file or a link to nothing, or lies below one.
    """
    there = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), None)
    if there is None or there.is_dir():
        return
    what = "a file" if there.exists() else "a link to nothing"
    place = "which" if there == folder else f"where {there}"
    raise ConfigError(
        f"{argument}: got {shown(str(folder))}, {place} is {what}, expected a folder; name another"
    )
