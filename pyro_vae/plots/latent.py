"""A map of the latent space. Shapes: N codes, Z latent units."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from pyro_vae.arguments import typed
from pyro_vae.errors import DataError
from pyro_vae.plots.style import (
    PALETTE,
    as_array,
    colours,
    legend,
    new_figure,
    numbers,
    plain_axes,
    set_title,
    shortened,
    text_width,
)

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 30  # groups whose names stand among the points
_SHORT = 12  # letters of such a name, at most
_LETTERS = 32  # of a name beside the points, at most


@typed
def latent_map(
    codes: ArrayLike, labels: ArrayLike | None = None, *, title: str | None = None
) -> Figure:
    r"""Scatter codes in two dimensions: their principal components where there are more.

    .. math:: Z - \bar Z = U S V^\top, \quad \text{coordinates } (U S)_{:, 1:2}

    Arguments:
        codes: ``(N, Z)``.
        labels: whole numbers, ``(N,)``, one colour each; ``None``: one colour for all.
        title: ``None``: the default one.

    Raises:
        DataError: fewer than two codes, or as many labels as there are not codes.
    """
    points, names = plane(codes)
    return scatter(points, names, labels, title or "Posterior means of the test data")


def scatter(
    points: np.ndarray, names: tuple[str, str], labels: ArrayLike | None, title: str
) -> Figure:
    """Draw points, coloured and named by label.

    Arguments:
        points: ``(N, 2)``.
        names: of the axes.
        labels: ``(N,)``, or ``None``.
        title: of the figure.

    Raises:
        DataError: as many labels as there are not points.
    """
    groups = _groups(labels, len(points))
    longest = max((text_width(shortened(name, _LETTERS)) for name, _ in groups), default=0.0)
    figure = new_figure(5.4 + longest, 5.4)
    axes = figure.add_subplot()
    shades = colours(len(groups))
    size = min(22.0, max(3.0, 15000 / len(points)))
    for (name, chosen), colour in zip(groups, shades, strict=True):
        x, y = points[chosen].T
        axes.scatter(x, y, s=size, color=colour, alpha=0.75, linewidths=0, label=name)
    if groups[0][0]:
        _name_groups(axes, points, groups, shades)
        bigger = math.sqrt(22 / size)
        side = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        legend(axes, **side, fontsize=10, handletextpad=0.2, markerscale=bigger)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_aspect("equal", adjustable="datalim")
    plain_axes(axes)
    set_title(axes, title)
    return figure


def plane(codes: ArrayLike) -> tuple[np.ndarray, tuple[str, str]]:
    """Return ``(N, 2)`` coordinates and the names of their axes."""
    z = torch.as_tensor(numbers("codes", codes, "pv.encode"))
    if z.dim() != 2 or len(z) < 2 or not z.shape[1] or not z.isfinite().all():
        raise DataError(f"codes have shape {tuple(z.shape)}; expected (N, Z) finite, N at least 2")
    units = z.shape[1]
    if units == 1:  # the second axis only spreads the points
        return torch.cat([z, torch.linspace(0, 1, len(z))[:, None]], 1).numpy(), ("z", "datum")
    if units == 2:
        return z.numpy(), ("$z_1$", "$z_2$")
    _, scale, axes = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    share = 100 * scale.square() / scale.square().sum().clamp(min=1e-300)
    names = [f"principal component {i + 1} of {units} latents ({share[i]:.0f} %)" for i in (0, 1)]
    return ((z - z.mean(0)) @ axes[:2].mT).numpy(), (names[0], names[1])


def _groups(labels: ArrayLike | None, n: int) -> list[tuple[str, np.ndarray]]:
    """Return (name, indices) for each label, in order."""
    if labels is None:
        return [("", np.arange(n))]
    values = as_array(labels)
    if values.shape != (n,):
        raise DataError(f"labels have shape {values.shape}; expected ({n},), one for each code")
    return [(str(value), np.flatnonzero(values == value)) for value in np.unique(values)]


def _name_groups(
    axes: Axes, points: np.ndarray, groups: list[tuple[str, np.ndarray]], shades: list[Any]
) -> None:
    """Write each label at the median of its points: colour alone does not tell ten apart."""
    from matplotlib.patheffects import withStroke

    if len(groups) > _NAMED or max(len(name) for name, _ in groups) > _SHORT:
        return  # the names would hide the points, and each other
    size = 14 if len(groups) <= len(PALETTE) else 9
    for (name, chosen), colour in zip(groups, shades, strict=True):
        x, y = np.median(points[chosen], axis=0)
        outline = [withStroke(linewidth=3, foreground="white")]
        style: dict[str, Any] = {"ha": "center", "va": "center", "path_effects": outline}
        axes.text(x, y, name, fontsize=size, fontweight="bold", color=colour, **style)
