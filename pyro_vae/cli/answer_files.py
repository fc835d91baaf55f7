"""What commands write into a run folder about its weights, each with a digest of these.

A run that goes on gets other weights: what is of the old ones is told by its digest.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_vae.plots.figure_files import write
from pyro_vae.storage.atomic import atomic_write_text
from pyro_vae.storage.bundle import bundle_path
from pyro_vae.storage.save import NAME

if TYPE_CHECKING:  # matplotlib is slow to import
    from matplotlib.figure import Figure

WEIGHTS = "weights"  # the entry of a file of figures, and of a picture
_LETTERS = 16


def weights_in(folder: Path) -> str | None:
    """Return a digest of the weights that lie in a run folder; None where there are none."""
    path = bundle_path(folder, NAME)
    if not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()[:_LETTERS]


def write_figures(path: Path, figures: dict[str, Any], weights: str | None) -> None:
    """Write figures as JSON, with the weights that they are of."""
    told = {**figures, WEIGHTS: weights}
    atomic_write_text(path, json.dumps(told, indent=2, allow_nan=False) + "\n")


def write_picture(path: Path, figure: "Figure", weights: str | None) -> None:
    """Write a picture, with the weights that it is of."""
    write(figure, path, {WEIGHTS: weights} if weights else None)


def weights_of_picture(path: Path) -> str | None:
    """Return the weights that a picture is of; None where it does not say."""
    from PIL import Image  # matplotlib brings it

    with suppress(OSError), Image.open(path) as picture:  # a file of another format
        return picture.info.get(WEIGHTS)
    return None
