"""A map of the latent space. Shapes: N codes, Z latent units."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from pyro_vae.arguments import shortened, typed
from pyro_vae.errors import DataError
from pyro_vae.plots.style import (
    FAINT,
    PALETTE,
    as_array,
    colours,
    legend,
    named,
    new_figure,
    numbers,
    plain_axes,
    set_title,
    text_width,
)

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED = 30  # groups whose names stand among the points; more numbers are a range
_WIDE = 4.4  # of the panel, inches
_SHORT = 12  # letters of such a name, at most
_LETTERS = 32  # of a name beside the points, at most
_UNKNOWN = "not known"
_MISSING = ("None", "nan", "<NA>", "NaT")
_PLACE = "datum, in their order"


@typed
def latent_map(
    codes: ArrayLike, labels: ArrayLike | None = None, *, title: str | None = None
) -> Figure:
    r"""Scatter codes in two dimensions: their principal components where there are more.

    .. math:: Z - \bar Z = U S V^\top, \quad \text{coordinates } (U S)_{:, 1:2}

    Arguments:
        codes: ``(N, Z)``.
        labels: ``(N,)``, one colour each, NaN grey; numbers of more than 30 kinds, or of more than
            ten that are not whole, are shades with a bar; ``None``: one colour for all.
        title: ``None``: the default one.

    Raises:
        DataError: fewer than two codes, or as many labels as there are not codes.
    """
    points, names = plane(codes)
    figure = scatter(points, names, labels, title or "Posterior means of the test data")
    if names[1] == _PLACE:  # it only spreads the points
        figure.axes[0].set_yticks([])
    return figure


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
    values = None if labels is None else _checked(labels, len(points))
    size = min(22.0, max(3.0, 15000 / len(points)))
    style: dict[str, Any] = {"s": size, "alpha": 0.75, "linewidths": 0}
    if values is not None and _is_range(values):
        figure = _shaded(points, values, style)
    else:
        figure = _grouped(points, _groups(values, len(points)), style)
    axes = figure.axes[0]
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_aspect("equal", adjustable="datalim")
    plain_axes(axes)
    set_title(axes, title)
    return figure


def _shaded(points: np.ndarray, values: np.ndarray, style: dict[str, Any]) -> Figure:
    """Draw points in shades of a number, those without one grey and named below."""
    figure = new_figure(6.4, 5.4)
    axes = figure.add_subplot()
    known = np.isfinite(values)
    if not known.all():
        axes.scatter(*points[~known].T, color=FAINT, label=_UNKNOWN, **style)
    x, y = points[known].T
    drawn = axes.scatter(x, y, c=values[known], cmap="viridis", **style)
    bar = figure.colorbar(drawn, ax=axes, label="label", shrink=0.8)
    plain_axes(bar.ax)
    legend(axes)
    return figure


def _grouped(
    points: np.ndarray, groups: list[tuple[str, np.ndarray]], style: dict[str, Any]
) -> Figure:
    """Draw each group in its colour, named beside the points and among them."""
    longest = max((text_width(shortened(name, _LETTERS)) for name, _ in groups), default=0.0)
    figure = new_figure(5.4 + longest, 5.4)
    axes = figure.add_subplot()
    shades = colours(len(groups))
    if groups[-1][0] == _UNKNOWN:
        shades[-1] = FAINT
    for (name, chosen), colour in zip(groups, shades, strict=True):
        axes.scatter(*points[chosen].T, color=colour, label=named(name), **style)
    if groups[0][0]:
        _name_groups(axes, points, groups, shades)
        side = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        bigger = math.sqrt(22 / style["s"])
        legend(axes, **side, fontsize=10, handletextpad=0.2, markerscale=bigger)
        drawn: Any = axes.get_legend()
        for text in drawn.texts:
            text.set_parse_math(False)  # a class may be called $$
    return figure


def plane(codes: ArrayLike) -> tuple[np.ndarray, tuple[str, str]]:
    """Return ``(N, 2)`` coordinates and the names of their axes."""
    z = torch.as_tensor(numbers("codes", codes, "pv.encode"))
    if z.dim() != 2 or len(z) < 2 or not z.shape[1] or not z.isfinite().all():
        raise DataError(f"codes have shape {tuple(z.shape)}; expected (N, Z) finite, N at least 2")
    units = z.shape[1]
    if units == 1:  # as far apart as the codes
        places = torch.linspace(0, max(float(z.max() - z.min()), 1e-9), len(z))
        return torch.cat([z, places[:, None]], 1).numpy(), ("z", _PLACE)
    if units == 2:
        return z.numpy(), ("$z_1$", "$z_2$")
    _, scale, axes = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    share = 100 * scale.square() / scale.square().sum().clamp(min=1e-300)
    names = [f"principal component {i + 1} of {units} latents ({share[i]:.0f} %)" for i in (0, 1)]
    return ((z - z.mean(0)) @ axes[:2].mT).numpy(), (names[0], names[1])


def _checked(labels: ArrayLike, n: int) -> np.ndarray:
    values = as_array(labels)
    if values.shape != (n,):
        raise DataError(f"labels have shape {values.shape}; expected ({n},), one for each code")
    return values


def _is_range(values: np.ndarray) -> bool:
    """Return whether labels are numbers too many to be told apart one by one."""
    if values.dtype.kind not in "iuf":
        return False
    distinct = np.unique(values[np.isfinite(values)])
    return len(distinct) > (_NAMED if (distinct % 1 == 0).all() else len(PALETTE))


def _groups(values: np.ndarray | None, n: int) -> list[tuple[str, np.ndarray]]:
    """Return (name, indices) for each label, in order; what is not known comes last."""
    if values is None:
        return [("", np.arange(n))]
    if values.dtype.kind == "O":  # of kinds that may have no order
        values = values.astype(str)
        known = ~np.isin(values, _MISSING)
    else:
        known = np.isfinite(values) if values.dtype.kind == "f" else np.ones(n, dtype=bool)
    kinds, which = np.unique(values[known], return_inverse=True)
    names = [f"{kind:g}" if isinstance(kind, np.floating) else str(kind) for kind in kinds]
    places = np.flatnonzero(known)
    found = [(name, places[which == k]) for k, name in enumerate(names)]
    return found if known.all() else [*found, (_UNKNOWN, np.flatnonzero(~known))]


def _name_groups(
    axes: Axes, points: np.ndarray, groups: list[tuple[str, np.ndarray]], shades: list[Any]
) -> None:
    """Write each label at the median of its points: colour alone does not tell ten apart.

    Where another label stands already it is written above.
    """
    from matplotlib.patheffects import withStroke

    told = [each for each in groups if each[0] != _UNKNOWN]
    if len(told) > _NAMED or max((len(name) for name, _ in told), default=0) > _SHORT:
        return  # the names would hide the points, and each other
    size = 14 if len(groups) <= len(PALETTE) else 9
    inch = 1.1 * float(np.ptp(points, axis=0).max()) / _WIDE
    high = 1.3 * size / 72 * inch
    taken: list[tuple[float, float, float]] = []
    for (name, chosen), colour in zip(told, shades, strict=False):
        x, y = np.median(points[chosen], axis=0)
        wide = 1.2 * size / 9 * text_width(name) * inch
        for _ in range(len(taken)):
            tops = [b for a, b, w in taken if abs(x - a) < (wide + w) / 2 and abs(y - b) < high]
            y = max([y, *(top + high for top in tops)])
        taken.append((x, y, wide))
        outline = [withStroke(linewidth=3, foreground="white")]
        style: dict[str, Any] = {"ha": "center", "va": "center", "path_effects": outline}
        style["parse_math"] = False
        axes.text(x, y, name, fontsize=size, fontweight="bold", color=colour, **style)
