"""Grids of images. Shapes: N images, C channels, H height, W width, D pixels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from pyro_vae.arguments import counted, positive, typed
from pyro_vae.errors import DataError
from pyro_vae.plots.style import FAINT, INK, LETTER, MOST, first_of, in_lines, new_figure, numbers

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GAP = 0.12  # between images, in image widths
_INCH = 0.62  # width of one image
_TITLE = 4.5  # inches that a line of a title has at least


@typed
def samples(images: ArrayLike, *, columns: int | None = None, title: str | None = None) -> Figure:
    """Draw images on a square grid.

    Arguments:
        images: in [0, 1], 0 black, ``(N, H, W)``, ``(N, C, H, W)``, or square ones as ``(N, D)``.
        columns: images in a row; ``None``: as many as rows.
        title: ``None``: says how many.

    Raises:
        DataError: not images.
    """
    pixels = _images("images", images, "pv.generate")
    square = math.ceil(math.sqrt(len(pixels)))
    columns = square if columns is None else positive("columns", columns)
    figure, axes = _canvas()
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        _place(axes, image, column, row)
    text = title or f"{counted(len(pixels), 'sample')} from the prior"
    _fit(figure, axes, text, columns, math.ceil(len(pixels) / columns), pixels)
    return figure


@typed
def reconstructions(
    originals: ArrayLike, reconstructed: ArrayLike, *, columns: int = 12, title: str | None = None
) -> Figure:
    """Draw each image above its reconstruction.

    Arguments:
        originals: as in ``samples``.
        reconstructed: the same shape.
        columns: pairs in a row.
        title: ``None``: the default one.

    Raises:
        DataError: not images, or not pairs.
    """
    above = _images("originals", originals, "pv.reconstruct, after the data,")
    below = _images("reconstructed", reconstructed, "pv.reconstruct")
    if above.shape != below.shape:
        raise DataError(
            f"originals have shape {above.shape} and reconstructed {below.shape}; expected pairs"
        )
    columns = min(positive("columns", columns), len(above))
    figure, axes = _canvas()
    blocks = math.ceil(len(above) / columns)
    pitch = 2.35  # two rows and a little air: a pair reads as one
    for index, pair in enumerate(zip(above, below, strict=True)):
        block, column = divmod(index, columns)
        for row, image in enumerate(pair):
            _place(axes, image, column, block * pitch + row)
    for block in range(blocks):
        for row, name in enumerate(("data", "model")):
            y = (block * pitch + row + 0.5) * (1 + _GAP) * _ratio(above)
            style: dict[str, Any] = {"ha": "right", "va": "center", "clip_on": False}
            size = min(9.0, 60 * _INCH * _ratio(above))  # as high as a flat image
            axes.text(-0.25, y, name, fontsize=size, color=FAINT, **style)
    text = title or "Test images and their reconstructions"
    _fit(figure, axes, text, columns, blocks * pitch - (pitch - 2), above, left=0.9)
    return figure


@typed
def interpolations(images: ArrayLike, *, title: str | None = None) -> Figure:
    """Draw one row of images for each line between two codes.

    Of more than 60 lines the first 60 are drawn, and the title says so.

    Arguments:
        images: as ``pv.interpolate`` returns them, ``(N, steps, H, W)``, ``(N, steps, C, H, W)``,
            or square ones as ``(N, steps, D)``.
        title: ``None``: the default one.

    Raises:
        DataError: not rows of images.
    """
    array = numbers("images", images, "pv.interpolate")
    if array.ndim < 3 or 0 in array.shape:
        raise DataError(f"images have shape {array.shape}; expected (N, steps, H, W)")
    text = ". ".join(
        filter(None, (title or "Straight lines between two codes", first_of(len(array), "lines")))
    )
    array = array[:MOST]
    rows, steps = array.shape[:2]
    pixels = _images("images", array.reshape(rows * steps, *array.shape[2:]))
    figure, axes = _canvas()
    for index, image in enumerate(pixels):
        row, column = divmod(index, steps)
        _place(axes, image, column, row)
    _fit(figure, axes, text, steps, rows, pixels)
    return figure


def _images(name: str, values: ArrayLike, verb: str = "") -> np.ndarray:
    """Return ``(N, H, W)`` or ``(N, H, W, 3)``."""
    array = numbers(name, values, verb)
    if array.ndim == 2:
        side = math.isqrt(array.shape[1])
        array = array.reshape(len(array), side, side) if side**2 == array.shape[1] else array
    if array.ndim == 4 and array.shape[1] in (1, 3):
        array = np.moveaxis(array, 1, -1) if array.shape[1] == 3 else array[:, 0]
    elif array.ndim != 3:
        raise DataError(f"{name} have shape {array.shape}; expected (N, H, W) or (N, C, H, W)")
    if 0 in array.shape:
        raise DataError(f"{name} have shape {array.shape}; expected at least one image")
    if not np.isfinite(array).all():
        raise DataError(f"{name} hold NaN or infinity; expected numbers in [0, 1]")
    return array.clip(0, 1)


def _ratio(pixels: np.ndarray) -> float:
    """Return height over width of one image."""
    return pixels.shape[1] / pixels.shape[2]


def _canvas() -> tuple[Figure, Axes]:
    """Return a figure with bare axes, in units of image widths, y downwards."""
    figure = new_figure(4, 4)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_anchor("NW")  # the title begins above the first image
    return figure, axes


def _place(axes: Axes, image: np.ndarray, column: float, row: float) -> None:
    """Draw one image in a cell of the grid."""
    high = _ratio(image[None])
    x, y = column * (1 + _GAP), row * (1 + _GAP) * high
    axes.imshow(
        image,
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        extent=(x, x + 1, y + high, y),
    )


def _fit(
    figure: Figure,
    axes: Axes,
    title: str,
    columns: float,
    rows: float,
    pixels: np.ndarray,
    left: float = 0.0,
) -> None:
    """Set title, limits and size: every image is equally large on any figure."""
    width = columns * (1 + _GAP) - _GAP + left
    height = (rows * (1 + _GAP) - _GAP) * _ratio(pixels)
    axes.set(xlim=(-left, width - left), ylim=(height, 0), aspect="equal")
    lines = in_lines(title, max(_TITLE, width * _INCH))
    axes.set_title(lines, fontsize=11, color=INK, loc="left")
    longest = LETTER * max(map(len, lines.splitlines()))
    high = height * _INCH + 0.2 + 0.2 * len(lines.splitlines())
    figure.set_size_inches(max(longest, width * _INCH) + 0.1, high)
