"""Panels that answers draw themselves with: spreads over the data, bars, ranges and two clouds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae.arguments import shortened
from pyro_vae.plots.latent import plane
from pyro_vae.plots.style import (
    FAINT,
    INK,
    PALETTE,
    as_array,
    legend,
    named,
    new_figure,
    numbers,
    plain_axes,
    set_title,
)

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LETTERS = 44  # of a name, at most
_UPRIGHT = 30  # letters beside a panel
_POINTS = 5000  # of a cloud: more would only take time


def row(count: int, *, width: float = 4.2, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels side by side, and the panels; inches of each."""
    figure = new_figure(width * count, height)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def spread(axes: Axes, values: Any, label: str, title: str, limit: float | None = None) -> None:
    """Draw the histogram of a number per datum, and where it should not go beyond.

    Arguments:
        axes: the panel.
        values: ``(N,)``; those that are not finite are counted in the title.
        label: what the number is.
        title: of the panel.
        limit: drawn as a dashed line.
    """
    each = numbers(label, values).ravel()
    known = each[np.isfinite(each)]
    if len(known):
        low, high = known.min(), known.max()
        if high - low > 2e-7 * max(1.0, abs(high)):  # of rounding otherwise
            bins = min(40, max(8, len(known) // 8))
        else:  # one bar, around the number
            around = 0.1 * abs(low) or 0.5
            low, high, bins = low - around, high + around, 9
        axes.hist(known, bins=bins, range=(low, high), color=PALETTE[3])
    if limit is not None:
        axes.axvline(limit, color=PALETTE[1], lw=1.2, ls="--")
    axes.set(xlabel=label, ylabel="data")
    axes.locator_params(axis="y", integer=True)
    if not len(known):
        axes.set_yticks([])
        axes.text(
            0.5,
            0.5,
            "known of no datum",
            ha="center",
            transform=axes.transAxes,
            color=INK,
            fontsize=10,
        )
    unknown = len(each) - len(known)
    _finish(axes, f"{title}\n{unknown} not known" if unknown else title)


def bars(axes: Axes, heights: Any, label: str, title: str, even: float | None = None) -> None:
    """Draw a number for each of K as one outline, with the height that all had if equal."""
    shown = as_array(heights).astype(float)
    axes.stairs(shown, np.arange(len(shown) + 1) - 0.5, fill=True, color=PALETTE[3])
    if even is not None:
        axes.axhline(even, color=FAINT, lw=1, ls="--")
    axes.set(xlabel=label, ylabel="share", ylim=(0, None))
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    _finish(axes, title)


def ranges(axes: Axes, rows: Mapping[str, tuple[float, float]], label: str, title: str) -> None:
    """Draw a number and its error for each name, the first at the top."""
    for place, (value, error) in enumerate(rows.values()):
        bar = error if np.isfinite(error) else 0.0
        axes.errorbar(value, place, xerr=bar, fmt="o", color=PALETTE[0], capsize=3, lw=1.4)
    axes.set_yticks(range(len(rows)), [shortened(name, _LETTERS) for name in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.15)
    axes.set_xlabel(label)
    _finish(axes, title)


def clouds(axes: Axes, pair: Mapping[str, Any], title: str) -> None:
    """Draw two sets of points in the plane of their principal components, the first above."""
    sets = [numbers(name, points) for name, points in pair.items()]
    points, names = plane(np.concatenate(sets))
    parts = np.split(points, [len(sets[0])])
    for name, part, colour in reversed(list(zip(pair, parts, PALETTE, strict=False))):
        shown = part[:: -(-len(part) // _POINTS)]
        style: dict[str, Any] = {"s": min(22.0, max(8.0, 4000 / len(shown))), "linewidths": 0}
        axes.scatter(*shown.T, color=colour, alpha=0.5, label=named(name), **style)
    axes.set(xlabel=names[0], ylabel=names[1])
    _finish(axes, title)
    legend(axes)


def traces(axes: Axes, chains: Any, label: str, title: str) -> None:
    """Draw one coordinate along each chain.

    Arguments:
        axes: the panel.
        chains: ``(C, S)``.
        label: what the coordinate is.
        title: of the panel.
    """
    for place, chain in enumerate(as_array(chains)):
        colour = PALETTE[place % len(PALETTE)]
        axes.plot(np.arange(1, len(chain) + 1), chain, color=colour, lw=0.8, alpha=0.8)
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.set(xlabel="draw", ylabel=shortened(label, _UPRIGHT))
    _finish(axes, title)


def _finish(axes: Axes, title: str) -> None:
    plain_axes(axes)
    set_title(axes, title)
