"""What inference costs, datum by datum: the two gaps below log p(x)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae.arguments import shown, typed
from pyro_vae.errors import DataError
from pyro_vae.plots.style import FAINT, INK, PALETTE, as_array, new_figure, plain_axes, set_title

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FAMILY, _NETWORK = PALETTE[4], PALETTE[0]


@typed
def gaps(measured: Any, *, title: str | None = None) -> Figure:
    """Draw approximation and amortisation gap: their means, and both for each datum.

    A dot right of the dashed diagonal has lost more to the family of q, one left of it more to the
    network.

    Arguments:
        measured: one result of ``pv.gaps``, or several by name, a row each.
        title: ``None``: the default one.

    Raises:
        DataError: nothing to draw, or gaps that are not finite.
    """
    rows = measured if isinstance(measured, Mapping) else {"": measured}
    values = {name: _read(name, row) for name, row in rows.items()}
    if not values:
        raise DataError("got no gaps, expected one result of pv.gaps or several by name")
    figure = new_figure(9.2, max(3.4, 1.6 + 0.5 * len(values)))
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    _bars(left, values)
    set_title(left, title or "Where the bound is lost")
    _scatter(right, values)
    set_title(right, "Datum by datum")
    return figure


def _read(name: str, measured: Any) -> tuple[np.ndarray, np.ndarray]:
    if not hasattr(measured, "amortisation"):
        raise DataError(f"measured: got {shown(measured)}, expected a result of pv.gaps")
    pair = as_array(measured.approximation), as_array(measured.amortisation)
    if not len(pair[0]) or not all(np.isfinite(part).all() for part in pair):
        raise DataError(f"gaps {name!r}: expected finite gaps of at least one datum")
    return pair


def _bars(axes: Axes, values: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    places = np.arange(len(values))[::-1]
    for place, (approximation, amortisation) in zip(places, values.values(), strict=True):
        start = 0.0
        for part, colour in ((approximation, _FAMILY), (amortisation, _NETWORK)):
            axes.barh(place, part.mean(), left=start, height=0.6, color=colour)
            start += part.mean()
        total = approximation + amortisation
        error = total.std(ddof=1) / np.sqrt(len(total)) if len(total) > 1 else 0.0
        axes.errorbar(total.mean(), place, xerr=error, color=INK, lw=1.2, capsize=3)
        label = f" {approximation.mean():.2f} + {amortisation.mean():.2f} = {total.mean():.2f}"
        axes.annotate(
            label, (total.mean() + error, place), (4, 0), textcoords="offset points", va="center"
        )
    axes.barh(0, 0, color=_FAMILY, label="approximation: the family of q")
    axes.barh(0, 0, color=_NETWORK, label="amortisation: the network")
    axes.set_yticks(places, list(values))
    axes.set_ylim(-0.6, len(values) - 0.4)
    axes.margins(x=0.6)
    axes.set_xlabel("nats below log p(x), mean over the data")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2)
    plain_axes(axes)


def _scatter(axes: Axes, values: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    shown = PALETTE[1:4] + PALETTE[5:]
    for index, (name, (approximation, amortisation)) in enumerate(values.items()):
        size = min(18.0, max(4.0, 4000 / len(approximation)))
        colour = shown[index % len(shown)]
        axes.scatter(
            approximation, amortisation, s=size, color=colour, alpha=0.7, lw=0, label=name or None
        )
    axes.axline((0, 0), slope=1, color=FAINT, lw=1, ls="--", zorder=0)
    axes.set(xlabel="approximation gap (nats)", ylabel="amortisation gap (nats)")
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    plain_axes(axes)
    if len(values) > 1:
        axes.legend(frameon=False, markerscale=1.5, handletextpad=0.1)
