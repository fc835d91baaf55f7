"""What a diagnosis found, what happened during training, and cures side by side."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae.arguments import shortened, typed
from pyro_vae.errors import DataError
from pyro_vae.plots.style import (
    FAINT,
    INK,
    LETTER,
    LINES,
    MARKERS,
    MOST,
    PALETTE,
    Room,
    as_array,
    colours,
    decimals,
    first_of,
    head_title,
    legend,
    named,
    new_figure,
    panel_rows,
    panel_width,
    plain_axes,
    rows_of,
    set_title,
    signed,
    text_width,
)

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACTIVE = 0.01  # the threshold of both criteria
_LINEAR = (
    0.001  # below it heights are not in logarithms: zero and what is negative have their place
)
_FEW = 12  # units that are points without a line
_SITES = 6  # that have a colour each; more are the places of one axis
_LETTERS = 30  # of the name of a cure, at most
_VARIANCES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
_NAMES = [*(f"{value:.1f}" for value in _VARIANCES[:-1]), "1.2+"]  # the last bin has all beyond


@typed
def diagnosis(found: Any, *, title: str | None = None) -> Figure:
    """Draw a diagnosis: KL and variance of the mean per unit, histogram of posterior variances.

    Both variances are over the prior's; those of q(z | x) have the other latents marginalised. The
    KL of global latents has a panel of its own, where there are some. More than six sites (steps of
    time) stand side by side: the largest, the middle and the smallest unit of each, and shades in
    place of histograms. Latents without variances, as those of classes, have the panel of KL alone.

    Arguments:
        found: result of ``pv.diagnose``.
        title: ``None``: the first sentence of the verdict.

    Raises:
        DataError: a diagnosis without any site.
    """
    if not getattr(found, "kl", None):
        raise DataError("got a diagnosis without a site, expected the result of pv.diagnose")
    shared = getattr(found, "global_kl", {})
    longest = max((text_width(shortened(name, _LETTERS)) for name in shared), default=0.0)
    known = {"variance": found.variance, "histogram": found.histogram, "globals": shared}
    panels = ["kl", *(name for name, values in known.items() if values)]
    figure = new_figure(3.85 * len(panels) + longest, 3.6)
    row = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
    names = dict.fromkeys([*found.kl, *found.unit_kl, *found.variance, *found.histogram])
    shades = dict(zip(names, colours(len(names)), strict=True))
    many = len(names) > _SITES
    units, shares = (_by_site, _shares_by_site) if many else (_units, _histogram)
    set_title(row["kl"], title or found.verdict.split(". ")[0].split(": ")[0])
    kl = {name: found.unit_kl.get(name, [value]) for name, value in found.kl.items()}
    units(row["kl"], kl, shades)
    row["kl"].set(ylabel="KL (nats)")
    if found.variance:
        set_title(row["variance"], "Units above the line are active")
        units(row["variance"], found.variance, shades)
        row["variance"].set(ylabel="variance of E[z | x] / the prior's")
    if found.histogram:
        set_title(row["histogram"], "A collapsed unit stands at 1")
        shares(row["histogram"], found.histogram, shades)
    if shared:
        _globals(row["globals"], found)
    if len(names) > 1:
        legend(row["kl"], owner=figure)
    return figure


def _globals(axes: Axes, found: Any) -> None:
    """Draw the KL of the global latents, the largest first."""
    order = sorted(found.global_kl, key=lambda name: -found.global_kl[name])[:_FEW]
    kl = [found.global_kl[name] for name in order]
    errors = np.array([found.global_kl_stderr[name] for name in order])
    bars = np.where(np.isfinite(errors), errors, 0.0)
    lines: dict[str, Any] = {"ecolor": INK, "capsize": 3, "lw": 1.2}
    axes.barh(range(len(kl)), kl, 0.6, xerr=bars, color=PALETTE[3], error_kw=lines)
    digits = decimals(*kl)
    for place, (value, error) in enumerate(zip(kl, errors, strict=True)):
        text = signed(value, f".{digits}f") + (f" ± {error:.{digits}f}" if bars[place] else "")
        end = max(0.0, value) + bars[place], place
        style: dict[str, Any] = {"va": "center", "color": INK, "fontsize": 10}
        axes.annotate(text, end, (5, 0), textcoords="offset points", **style)
    axes.set_yticks(range(len(order)), [shortened(name, _LETTERS) for name in order])
    axes.set_ylim(max(len(order), 4) - 0.5, -0.5)  # one bar alone is as thin as one of four
    axes.margins(x=0.5)  # for the numbers
    axes.set_xlabel("KL, once for all data (nats)")
    plain_axes(axes)
    most = f"The {_FEW} largest of {len(found.global_kl)} globals"
    set_title(axes, most if len(found.global_kl) > _FEW else "Global latents")


def _units(axes: Axes, values: Mapping[str, Any], shades: Mapping[str, Any]) -> None:
    """Draw each site's values, the largest first: points, and a line where they are many."""
    for (name, value), marker in zip(values.items(), MARKERS, strict=False):
        shown = np.sort(as_array(value).ravel())[::-1]
        places, few = np.arange(1, len(shown) + 1), len(shown) <= _FEW
        style: Any = {"ms": 6, "ls": ""} if few else {"ms": 3, "lw": 1}
        axes.plot(places, shown, marker=marker, color=shades[name], label=named(name), **style)
    axes.axhline(_ACTIVE, color=FAINT, lw=1, ls="--")
    most = max((as_array(value).size for value in values.values()), default=1)
    beside = max(0.5, 0.04 * most)
    axes.set_xlim(1 - beside, most + beside)
    axes.locator_params("x", integer=True, min_n_ticks=1)
    axes.set_xlabel("unit, largest first")
    _decades(axes)


def _by_site(axes: Axes, values: Mapping[str, Any], shades: Mapping[str, Any]) -> None:
    """Draw the largest, the middle and the smallest unit of each site, in their order."""
    shown = [as_array(values.get(name, [])).ravel() for name in shades]
    shown = [each if each.size else np.array([np.nan]) for each in shown]
    places = np.arange(1, len(shown) + 1)
    style: Any = {"marker": "o", "ms": 3 if len(shown) <= 60 else 0, "lw": 1.2}
    if max(each.size for each in shown) > 1:
        least, most = (np.array([take(each) for each in shown]) for take in (np.min, np.max))
        axes.fill_between(places, least, most, color=PALETTE[3], alpha=0.35, lw=0)
        axes.plot(places, most, color=PALETTE[0], label="largest unit", **style)
        axes.plot(places, [np.median(each) for each in shown], color=FAINT, label="median", **style)
        axes.plot(places, least, color=PALETTE[1], label="smallest unit", **style)
    else:
        axes.plot(places, np.concatenate(shown), color=PALETTE[0], **style)
    axes.axhline(_ACTIVE, color=FAINT, lw=1, ls="--")
    _decades(axes)
    _name_sites(axes, list(shades))


def _shares_by_site(axes: Axes, counted: Mapping[str, Any], shades: Mapping[str, Any]) -> None:
    """Draw a column of shades for each site: the darker, the more of its posteriors are there."""
    from matplotlib.colors import PowerNorm

    histograms = [as_array(counted.get(name, [])) for name in shades]
    bins = max(1, *map(len, histograms))
    shares = np.full((bins, len(histograms)), np.nan)
    for place, counts in enumerate(histograms):
        if len(counts):
            shares[:, place] = counts / max(1, counts.sum())
    edges = np.arange(len(histograms) + 1) + 0.5, np.linspace(0, 1.2, bins + 1)
    norm = PowerNorm(0.5, 0.0, max(float(np.nanmax(shares, initial=0.0)), 0.1))  # few are seen too
    mesh = axes.pcolormesh(*edges, shares, cmap="Purples", norm=norm)
    bar = axes.figure.colorbar(mesh, ax=axes, label="share", shrink=0.8)
    plain_axes(bar.ax)
    axes.axhline(1.0, color=FAINT, lw=1, ls="--")
    axes.set_ylabel("variance of q(z | x) over the prior's")
    axes.set_yticks(_VARIANCES, _NAMES)
    plain_axes(axes)
    _name_sites(axes, list(shades))


def _name_sites(axes: Axes, names: list[str]) -> None:
    """Name five sites at most below their places, evenly spaced."""
    step = -(-len(names) // 5)
    chosen = np.arange(1, len(names) + 1, step)
    letters = max(4, int(panel_width(axes) * step / len(names) / LETTER))
    axes.set_xticks(chosen, [shortened(names[place - 1], letters) for place in chosen])
    axes.set_xlim(0.5, len(names) + 0.5)
    axes.set_xlabel(f"site, {len(names)} of them")


def _decades(axes: Axes) -> None:
    """Let the height be in logarithms, down to near zero, the threshold on it."""
    axes.set_yscale("symlog", linthresh=_LINEAR, linscale=0.6)
    low, high = axes.dataLim.intervaly
    space = axes.yaxis.get_transform()
    ends = space.transform(np.array([min(low, _ACTIVE / 2), max(high, 1.0)]))  # with their ticks
    axes.set_ylim(*space.inverted().transform(ends + 0.05 * np.ptp(ends) * np.array([-1, 1])))
    plain_axes(axes)


def _histogram(axes: Axes, histogram: Mapping[str, Any], shades: Mapping[str, Any]) -> None:
    for (name, counts), line in zip(histogram.items(), cycle(LINES), strict=False):
        share = as_array(counts) / max(1, as_array(counts).sum())
        edges = np.linspace(0, 1.2, len(share) + 1)
        axes.stairs(share, edges, color=shades[name], lw=1.5, ls=line, label=named(name))
    axes.axvline(1.0, color=FAINT, lw=1, ls="--")
    axes.set(xlabel="variance of q(z | x) over the prior's", ylabel="share", ylim=(0, None))
    axes.set_xticks(_VARIANCES, _NAMES)
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
    dot = "o" if len(epochs) == 1 else ""  # a line of one point is invisible
    nats = {
        "kl": "KL",
        "information": "mutual information",
        "marginal_kl": "KL(q(z) || p(z)), at most",
    }
    for (name, label), colour, line in zip(nats.items(), PALETTE, LINES, strict=False):
        if name in history and np.isfinite(as_array(history[name])).any():
            style = {"color": colour, "ls": line, "marker": dot, "label": label}
            left.plot(epochs, as_array(history[name]), **style)
    units = [name for name in history if name.startswith("active")]
    for name, colour, line in zip(units, colours(len(units)), cycle(LINES), strict=False):
        site = name.removeprefix("active_units[").removesuffix("]")
        style = {"color": colour, "ls": line, "marker": dot, "label": named(site)}
        right.plot(epochs, as_array(history[name]), **style)
    left.set(xlabel="epoch", ylabel="nats")
    right.set(xlabel="epoch", ylabel="active units")
    right.locator_params("y", integer=True)
    for axes in (left, right):
        axes.locator_params("x", integer=True, min_n_ticks=1)
    for axes in (left, right):  # a collapsed run is flat: its noise must not fill the panel
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), max(1.0, axes.get_ylim()[1]))
    set_title(left, "What the code tells")
    set_title(right, "Units in use")
    legend(left)
    if len(units) > 1:
        legend(right)
    for axes in (left, right):
        plain_axes(axes)
    return figure


@typed
def cures(arms: Mapping[str, Mapping[str, tuple[float, float]]]) -> Figure:
    """Draw cures side by side, best first: negative log-likelihood, with the KL beside each dot.

    Of more than 60 programs the first 60 are drawn, and the title says so.

    Arguments:
        arms: (KL, negative log-likelihood) by program and cure; the cure "plain" is drawn as the
            line to stay below.

    Raises:
        DataError: nothing to draw.
    """
    if not arms:
        raise DataError("got no arms, expected (KL, NLL) by program and cure")
    shown = dict(list(arms.items())[:MOST])
    rows = max(len(points) for points in shown.values())
    names = {shortened(name, _LETTERS) for points in shown.values() for name in points}
    longest = max(map(text_width, names), default=0.0)
    text = first_of(len(arms), "programs")
    room = Room(0.25 + longest, 0.2, 0.5, 0.3, head=0.3 if text else 0.0)
    figure, panels = panel_rows(rows_of(len(shown), 2, 4.2), 0.1 + 0.26 * rows, room)
    for axes, (program, points) in zip(panels, shown.items(), strict=True):
        _ranked(axes, points)
        set_title(axes, program, 4.2)
    if text:
        head_title(figure, text)
    return figure


def _ranked(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Draw one program's cures, the lowest negative log-likelihood at the top."""
    names = sorted(points, key=lambda name: points[name][1])
    for height, name in enumerate(names):
        kl, nll = points[name]
        if name == "plain":
            axes.axvline(nll, color=FAINT, lw=1, ls="--")
        axes.plot(nll, height, "o", color=INK if name == "plain" else PALETTE[0])
        text = f"KL {round(kl, 1) + 0.0:.1f}" if kl < 1e4 else f"KL {kl:.0e}"
        axes.annotate(
            text,
            (nll, height),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # over the line of "plain"
        )
    axes.set(xlabel="negative log-likelihood (nats)")
    axes.set_yticks(range(len(names)), [shortened(name, _LETTERS) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.2)
    plain_axes(axes)
