"""What a diagnosis found, what happened during training, and cures side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae.arguments import typed
from pyro_vae.errors import DataError
from pyro_vae.plots.style import FAINT, INK, PALETTE, as_array, new_figure, plain_axes, set_title

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACTIVE = 0.01  # the threshold of both criteria


@typed
def diagnosis(found: Any, *, title: str | None = None) -> Figure:
    """Draw a diagnosis: KL and variance of the mean per unit, histogram of posterior variances.

    Posterior variances are those of q(z | x), the other latents marginalised, over the prior's.

    Arguments:
        found: result of ``pv.diagnose``.
        title: ``None``: the first sentence of the verdict.

    Raises:
        DataError: a diagnosis without any site.
    """
    if not getattr(found, "kl", None):
        raise DataError("got a diagnosis without a site, expected the result of pv.diagnose")
    figure = new_figure(11.5, 3.6)
    left, middle, right = figure.subplots(1, 3)
    _units(left, found.unit_kl or {n: np.array([v]) for n, v in found.kl.items()})
    left.set(xlabel="unit, sorted", ylabel="KL (nats)")
    set_title(left, title or found.verdict.split(". ")[0].split(": ")[0])
    _units(middle, found.variance)
    middle.set(xlabel="unit, sorted", ylabel="variance of E[z | x] over the data")
    set_title(middle, "Active units: above the line")
    _histogram(right, found.histogram)
    set_title(right, "A collapsed unit stands at 1")
    return figure


def _units(axes: Axes, values: Mapping[str, Any]) -> None:
    for index, (name, value) in enumerate(values.items()):
        shown = np.sort(as_array(value).ravel())[::-1]
        places = np.arange(1, len(shown) + 1)
        axes.plot(
            places, np.maximum(shown, 1e-5), "o-", ms=3, lw=1, color=_colour(index), label=name
        )
    axes.axhline(_ACTIVE, color=FAINT, lw=1, ls="--")
    axes.set_yscale("log")
    plain_axes(axes)
    if len(values) > 1:
        axes.legend(frameon=False, fontsize=8)


def _histogram(axes: Axes, histogram: Mapping[str, Any]) -> None:
    for index, (name, counts) in enumerate(histogram.items()):
        share = as_array(counts) / max(1, as_array(counts).sum())
        edges = np.linspace(0, 1.2, len(share) + 1)
        axes.stairs(share, edges, color=_colour(index), lw=1.5, label=name)
    axes.set(xlabel="variance of q(z | x) over the prior's", ylabel="share", ylim=(0, None))
    plain_axes(axes)


@typed
def collapse_curves(history: Mapping[str, Any]) -> Figure:
    """Draw what a ``pv.CollapseMonitor`` saw: KL, information and active units by epoch.

    Arguments:
        history: its ``history``.

    Raises:
        DataError: nothing was seen.
    """
    epochs = as_array(history.get("epoch", []))
    if not len(epochs):
        raise DataError("got an empty history, expected that of a pv.CollapseMonitor after a run")
    figure = new_figure(9.2, 3.6)
    left, right = figure.subplots(1, 2)
    nats = {
        "kl": "KL",
        "information": "mutual information",
        "marginal_kl": "KL(q(z) || p(z)), at most",
    }
    for index, (name, label) in enumerate(nats.items()):
        if name in history and np.isfinite(as_array(history[name])).any():
            left.plot(epochs, as_array(history[name]), color=_colour(index), label=label)
    units = [name for name in history if name.startswith("active")]
    for index, name in enumerate(units):
        right.plot(epochs, as_array(history[name]), color=_colour(index), label=name)
    left.set(xlabel="epoch", ylabel="nats")
    right.set(xlabel="epoch", ylabel="active units")
    right.locator_params("y", integer=True)
    for axes in (left, right):  # a collapsed run is flat: its noise must not fill the panel
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), max(1.0, axes.get_ylim()[1]))
    set_title(left, "What the code tells")
    set_title(right, "Units in use")
    left.legend(frameon=False, fontsize=9)
    if len(units) > 1:
        right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        plain_axes(axes)
    return figure


@typed
def cures(arms: Mapping[str, Mapping[str, tuple[float, float]]]) -> Figure:
    """Draw cures side by side, best first: negative log-likelihood, with the KL beside each dot.

    Arguments:
        arms: (KL, negative log-likelihood) by program and cure; the cure "plain" is drawn as the
            line to stay below.

    Raises:
        DataError: nothing to draw.
    """
    if not arms:
        raise DataError("got no arms, expected (KL, NLL) by program and cure")
    columns = min(2, len(arms))
    lines = -(-len(arms) // columns)
    rows = max(len(points) for points in arms.values())
    figure = new_figure(5.6 * columns, (0.9 + 0.26 * rows) * lines)
    panels = np.ravel(figure.subplots(lines, columns))
    for axes in panels[len(arms) :]:
        axes.remove()
    for axes, (program, points) in zip(panels, arms.items(), strict=False):
        _ranked(axes, points)
        set_title(axes, program)
    return figure


def _ranked(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Draw one program's cures, the lowest negative log-likelihood at the top."""
    names = sorted(points, key=lambda name: points[name][1])
    for height, name in enumerate(names):
        kl, nll = points[name]
        if name == "plain":
            axes.axvline(nll, color=FAINT, lw=1, ls="--")
        axes.plot(nll, height, "o", color=INK if name == "plain" else _colour(0))
        text = f"KL {round(kl, 1) + 0.0:.1f}" if kl < 1e4 else f"KL {kl:.0e}"
        axes.annotate(
            text,
            (nll, height),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # over the line of "plain"
        )
    axes.set(xlabel="negative log-likelihood (nats)", yticks=range(len(names)), yticklabels=names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.2)
    plain_axes(axes)


def _colour(index: int) -> str:
    return PALETTE[index % (len(PALETTE) - 1)]
