"""Folders as users name them."""

import os
import re
from pathlib import Path

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
