"""Posteriors of two latent units, beside what stands for them. Shapes: P panels, X by Y a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from pyro_vae.arguments import typed
from pyro_vae.errors import DataError
from pyro_vae.plots.style import (
    LINES,
    MOST,
    PALETTE,
    Room,
    first_of,
    head_title,
    legend,
    named,
    numbers,
    numbers_width,
    panel_rows,
    plain_axes,
    rows_of,
    set_title,
    text_width,
)

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MASSES = (0.99, 0.9, 0.5)  # of the regions that are shaded
_SHADES = ("#ececec", "#d2d2d2", "#b0b0b0")
_COLUMNS = 5
_LETTERS = 32  # of a name below the panels
_MOST_DRAWS = 1000  # per panel: more would hide the contours
_TURN = np.linspace(0, 2 * np.pi, 200)


@typed
def posterior(
    log_density: ArrayLike,
    grid: tuple[ArrayLike, ArrayLike],
    *,
    gaussians: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    draws: Mapping[str, ArrayLike] | None = None,
    titles: Sequence[str] | None = None,
    names: tuple[str, str] = ("$z_1$", "$z_2$"),
) -> Figure:
    r"""Shade a density's 50, 90 and 99 % regions; over them Gaussians and draws.

    .. math:: \{z : p(z) \ge c\}, \quad \int_{p \ge c} p(z) \, dz \in \{0.5, 0.9, 0.99\}

    Of more than 60 panels the first 60 are drawn, and the title says so.

    Arguments:
        log_density: log p up to a constant at each point of the grid, ``(P, X, Y)`` or ``(X, Y)``.
        grid: evenly spaced coordinates along the first latent, ``(X,)``, and the second, ``(Y,)``.
        gaussians: mean ``(P, 2)`` and covariance ``(P, 2, 2)`` by name; an ellipse holds 90 %.
        draws: points by name, ``(P, n, 2)``; at most 1000 are shown, evenly spaced.
        titles: of the panels.
        names: of the axes.

    Raises:
        DataError: shapes that do not fit each other, or a density that is nowhere finite.
    """
    if not isinstance(grid, Sequence) or len(grid) != 2:
        raise DataError(f"grid: got {type(grid).__name__}, expected the coordinates along two axes")
    x, y = (np.atleast_1d(numbers("grid", axis)) for axis in grid)
    surface = numbers("log_density", log_density)
    surfaces = surface[None] if surface.ndim == 2 else surface
    if surfaces.ndim != 3 or surfaces.shape[1:] != (len(x), len(y)) or min(surfaces.shape) < 1:
        raise DataError(
            f"log_density has shape {surface.shape}, expected (P, {len(x)}, {len(y)}) as the grid"
        )
    count = len(surfaces)
    ellipses = {
        name: (_panels(name, mean, count, (2,)), _panels(name, covariance, count, (2, 2)))
        for name, (mean, covariance) in (gaussians or {}).items()
    }
    points = {name: _points(name, value, count) for name, value in (draws or {}).items()}
    if len(names) != 2:
        raise DataError(f"names: got {list(names)}, expected two, of the axes")
    if titles is not None and len(titles) != count:
        raise DataError(f"got {len(titles)} titles, expected {count}: one per panel")
    drawn = min(count, MOST)
    names_of = [*points, *ellipses]
    longest = max((text_width(name[:_LETTERS]) for name in names_of), default=0.0)
    abreast = max(1, int(3.6 * min(drawn, _COLUMNS) / (longest + 0.7)))
    foot = 0.22 * -(-len(names_of) // abreast) + 0.1 if names_of else 0.0
    text = first_of(count, "panels")
    left = max(0.55, 0.3 + numbers_width(y[0], y[-1]))
    room = Room(left, 0.15, 0.5, 0.32, head=0.3 if text else 0.0, foot=foot)
    figure, panels = panel_rows(rows_of(drawn, _COLUMNS, 2.9), 2.6, room)
    for index, axes in enumerate(panels):
        _regions(axes, x, y, surfaces[index])
        _overlay(axes, {k: v[index] for k, v in points.items()}, dots=True)
        shown = {k: _ellipse(k, mean[index], cov[index]) for k, (mean, cov) in ellipses.items()}
        _overlay(axes, shown, dots=False, first=len(points))
        axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xlabel=names[0])
        plain_axes(axes)
        set_title(axes, titles[index] if titles else "", 3.0)
    for axes in panels[::_COLUMNS]:
        axes.set_ylabel(names[1])
    if text:
        head_title(figure, text)
    below = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.0)}
    legend(panels[0], owner=figure, **below, ncols=abreast, markerscale=4)
    return figure


def levels(log_density: np.ndarray) -> np.ndarray:
    """Return log densities at the borders of the 99, 90 and 50 % regions, of an even grid.

    Raises:
        DataError: a density that is NaN or infinite somewhere, or nowhere positive.
    """
    top = log_density.max()
    if not np.isfinite(top):  # minus infinity alone is a density of zero
        raise DataError("log_density is NaN, plus infinity, or nowhere finite")
    ordered = np.sort(log_density.ravel())[::-1]
    mass = np.exp(ordered - top).cumsum()
    places = np.searchsorted(mass, np.array(_MASSES) * mass[-1])
    return ordered[np.minimum(places, len(ordered) - 1)]


def _regions(axes: Axes, x: np.ndarray, y: np.ndarray, log_density: np.ndarray) -> None:
    # Contours of the density itself: its logarithm may be minus infinity.
    borders = np.exp(levels(log_density) - log_density.max())
    if (np.diff([*borders, 1.0001]) <= 0).any():
        raise DataError("the grid is too coarse: a cell holds half of the mass or more")
    density = np.exp(log_density - log_density.max()).T
    axes.contourf(x, y, density, levels=[*borders, 1.0001], colors=_SHADES)


def _overlay(axes: Axes, curves: Mapping[str, np.ndarray], *, dots: bool, first: int = 0) -> None:
    for index, (name, curve) in enumerate(curves.items(), start=first):
        colour = PALETTE[index % (len(PALETTE) - 1)]
        if dots:
            every = -(-len(curve) // _MOST_DRAWS)
            style: dict[str, Any] = {"ls": "", "marker": ".", "ms": 2.5, "alpha": 0.5, "mew": 0}
            axes.plot(*curve[::every].T, color=colour, label=named(name), **style)
        else:
            line = LINES[(index - first) % len(LINES)]
            axes.plot(*curve.T, color=colour, lw=1.8, ls=line, label=named(name))


def _ellipse(name: str, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return the closed border of a Gaussian's 90 % region, ``(200, 2)``."""
    try:
        factor = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        raise DataError(f"gaussians {name!r}: a covariance is not positive definite") from None
    radius = np.sqrt(-2 * np.log(0.1))  # of two dimensions: a chi-squared of 2 is exponential
    circle = np.stack([np.cos(_TURN), np.sin(_TURN)], -1)
    return mean + radius * circle @ factor.T


def _panels(name: str, values: Any, count: int, event: tuple[int, ...]) -> np.ndarray:
    array = numbers(name, values)
    if array.shape == event:
        array = array[None]
    if array.shape != (count, *event) or not np.isfinite(array).all():
        raise DataError(f"{name!r} has shape {array.shape}, expected {(count, *event)}, finite")
    return array


def _points(name: str, values: Any, count: int) -> np.ndarray:
    array = numbers(name, values)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[::2] != (count, 2) or not array.shape[1]:
        raise DataError(f"draws {name!r} have shape {array.shape}, expected ({count}, n, 2)")
    return array
