"""Writing a figure to a file."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_vae.arguments import shown, typed
from pyro_vae.errors import ConfigError
from pyro_vae.plots.style import DPI
from pyro_vae.storage.atomic import atomic_write_bytes

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure


@typed
def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure; what stood at ``path`` is replaced in one step, and never by half a file.

    Arguments:
        figure: from any function of this module.
        path: its suffix says the format (png, pdf, svg); its folder is made where absent.

    Raises:
        ConfigError: a format that matplotlib does not write.
    """
    if not hasattr(figure, "canvas"):
        raise ConfigError(f"figure: got {shown(figure)}, expected a figure of pv.plots")
    return write(figure, Path(path))


def write(figure: Figure, path: Path, words: dict[str, str] | None = None) -> Path:
    """Do what ``save`` does, with words by their names inside the file.

    Arguments:
        figure: of matplotlib.
        path: of the file.
        words: such as the format has room for.
    """
    kind = path.suffix[1:].lower()
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise ConfigError(f"{path}: unknown format {kind!r}; choose one of {', '.join(known)}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=DPI, facecolor="white", metadata=words)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, buffer.getvalue())
    return path
