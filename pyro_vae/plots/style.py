"""What all figures share: size, colours, titles and axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyro_vae.arguments import shown
from pyro_vae.errors import DataError

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
# "Muted" of Paul Tol, safe for colour-blind readers; black is the tenth.
PALETTE = (
    *("#332288", "#CC6677", "#117733", "#88CCEE", "#DDAA33"),
    *("#AA4499", "#44AA99", "#882255", "#999933", "#000000"),
)
INK, FAINT = "#222222", "#8a8a8a"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that pyplot does not know of; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def set_title(axes: Axes, text: str) -> None:
    """Write the title, flush left."""
    axes.set_title(text, fontsize=11, color=INK, loc="left")


def plain_axes(axes: Axes) -> None:
    """Leave the two axes that are read."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=9)


def as_array(values: Any) -> np.ndarray:
    """Return a tensor of any device, or anything array-like, as an array.

    Raises:
        DataError: Ragged rows.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(f"got {shown(values)}, expected an array: {error}") from None


def numbers(name: str, values: Any) -> np.ndarray:
    """Return anything array-like as an array of floats.

    Raises:
        DataError: Something else.
    """
    try:
        return as_array(values).astype(float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: got {shown(values)}, expected numbers: {error}") from None
