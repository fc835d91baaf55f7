"""What inference costs, datum by datum: the two gaps below log p(x)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae.arguments import shortened, shown, typed
from pyro_vae.errors import DataError
from pyro_vae.plots.style import (
    FAINT,
    INK,
    MARKERS,
    MOST,
    PALETTE,
    as_array,
    colours,
    decimals,
    first_of,
    legend,
    named,
    new_figure,
    plain_axes,
    set_title,
    signed,
    text_width,
)

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FAMILY, _NETWORK = PALETTE[4], PALETTE[0]
_LETTERS = 30  # of a name, at most
_SQUARE = 6  # results, from which on the panel of the data is square


@typed
def gaps(measured: Any, *, title: str | None = None) -> Figure:
    """Draw approximation and amortisation gap: their means, and both for each datum.

    A dot right of the dashed diagonal has lost more to the family of q, one left of it more to the
    network.

    Of more than 60 results the first 60 are drawn, and the title says so.

    Arguments:
        measured: one result of ``pv.gaps``, or several by name, a row each.
        title: ``None``: the default one.

    Raises:
        DataError: nothing to draw, or gaps that are not finite.
    """
    rows = measured if isinstance(measured, Mapping) else {"": measured}
    if not rows:
        raise DataError("got no gaps, expected one result of pv.gaps or several by name")
    values = {name: _read(name, row) for name, row in list(rows.items())[:MOST]}
    longest = max(text_width(shortened(name, _LETTERS)) for name in values)
    beside = 2.0 * longest if len(values) > 4 else longest  # left of the bars, right of the data
    figure = new_figure(8.8 + beside, max(3.1, 1.3 + 0.5 * len(values)))
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    _bars(left, values)
    set_title(left, title or "Where the bound is lost")
    _scatter(right, values)
    set_title(right, "Datum by datum")
    if len(values) > _SQUARE:  # as high as the bars the panel would be a strip
        right.set(box_aspect=1, anchor="N")
    if len(rows) > MOST:
        figure.suptitle(first_of(len(rows), "results"), fontsize=11, color=INK, x=0.01, ha="left")
    return figure


def _read(name: str, measured: Any) -> tuple[np.ndarray, np.ndarray]:
    if not hasattr(measured, "amortisation"):
        raise DataError(f"measured: got {shown(measured)}, expected a result of pv.gaps")
    pair = as_array(measured.approximation), as_array(measured.amortisation)
    if not len(pair[0]) or not all(np.isfinite(part).all() for part in pair):
        raise DataError(f"gaps {name!r}: expected finite gaps of at least one datum")
    return pair


def _bars(axes: Axes, values: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    digits = decimals(*((one + other).mean() for one, other in values.values()))
    places = np.arange(len(values))[::-1]
    for place, (approximation, amortisation) in zip(places, values.values(), strict=True):
        start = 0.0
        for part, colour in ((approximation, _FAMILY), (amortisation, _NETWORK)):
            axes.barh(place, part.mean(), left=start, height=0.6, color=colour)
            start += part.mean()
        total = approximation + amortisation
        error = total.std(ddof=1) / np.sqrt(len(total)) if len(total) > 1 else 0.0
        axes.errorbar(total.mean(), place, xerr=error, color=INK, lw=1.2, capsize=3)
        parts = [approximation.mean(), amortisation.mean(), total.mean()]
        one, other, both = (signed(part, f".{digits}f") for part in parts)
        sum_of = f"{one} + {other} = {both}".replace("+ \N{MINUS SIGN}", "\N{MINUS SIGN} ")
        end = max(0.0, parts[0], total.mean() + error), place
        style: dict[str, Any] = {"va": "center", "color": INK, "fontsize": 10}
        axes.annotate(sum_of, end, (6, 0), textcoords="offset points", **style)
    axes.barh(0, 0, color=_FAMILY, label="approximation: the family of q")
    axes.barh(0, 0, color=_NETWORK, label="amortisation: the network")
    axes.set_yticks(places, [shortened(name, _LETTERS) for name in values])
    axes.set_ylim(-0.6, len(values) - 0.4)
    axes.margins(x=0.6)
    axes.set_xlabel("nats below log p(x), mean over the data")
    if list(values) == [""]:
        axes.set_yticks([])
    plain_axes(axes)
    legend(axes)


def _scatter(axes: Axes, values: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    few = [PALETTE[k] for k in (1, 3, 7, 2, 5, 6, 8, 9)]  # the bars have the other two
    shown = few[: len(values)] if len(values) <= len(few) else colours(len(values))
    marked = zip(values.items(), shown, cycle(MARKERS), strict=False)
    for (name, (approximation, amortisation)), colour, marker in marked:
        size = min(18.0, max(4.0, 4000 / len(approximation)))
        style: dict[str, Any] = {"s": size, "marker": marker, "alpha": 0.7, "lw": 0}
        axes.scatter(approximation, amortisation, color=colour, label=named(name) or None, **style)
    axes.axline((0, 0), slope=1, color=FAINT, lw=1, ls="--", zorder=0)
    axes.set(xlabel="approximation gap (nats)", ylabel="amortisation gap (nats)")
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    plain_axes(axes)
    if len(values) > 1:
        legend(axes, markerscale=1.5, handletextpad=0.1)
