"""Pictures of sequences: piano rolls, and what each step tells. Shapes: T steps, K keys."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from pyro_vae.arguments import integer, typed
from pyro_vae.errors import DataError
from pyro_vae.plots.style import (
    INK,
    LINES,
    MOST,
    Room,
    colours,
    first_of,
    head_title,
    legend,
    named,
    new_figure,
    numbers,
    panel_rows,
    plain_axes,
    set_title,
)

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 4
_WIDEST = 3.0  # inches that a long name gets; the rest of it is cut
_PITCHES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")
_HEARD = 0.1  # a key below it in every step is cut off at the border


@typed
def piano_rolls(
    rolls: Mapping[str, Any], *, lowest_key: int = 21, title: str | None = None
) -> Figure:
    """Draw sequences of keys, four in a line: steps to the right, pitch upwards, black if struck.

    Of more than 60 rolls the first 60 are drawn, and the title says so.

    Arguments:
        rolls: by name (data, reconstruction, sample), ``(T, K)`` of values in [0, 1]; T may differ.
            Cut sequences to their lengths before.
        lowest_key: MIDI number of the first key; 21 is the lowest A of a piano.
        title: ``None``: none but the names.

    Raises:
        DataError: no rolls, other shapes, numbers of keys that differ, or values beyond [0, 1].
    """
    each = {name: _roll(name, roll) for name, roll in rolls.items()}
    if not each:
        raise DataError("rolls: got none, expected at least one")
    keys = {roll.shape[1] for roll in each.values()}
    if len(keys) > 1:
        raise DataError(f"rolls: got {sorted(keys)} keys, expected one number of them")
    lowest = integer("lowest_key", lowest_key, 0)
    heard = np.flatnonzero(np.concatenate(list(each.values())).max(0) > _HEARD)
    low, high = (heard[0], heard[-1]) if len(heard) else (0, keys.pop() - 1)
    names = list(each)[:MOST]
    lines = [names[start : start + _COLUMNS] for start in range(0, len(names), _COLUMNS)]
    widths = [_widths(line, [len(each[name]) for name in line]) for line in lines]
    text = ". ".join(filter(None, (title, first_of(len(each), "rolls"))))
    room = Room(0.4, 0.15, 0.5, 0.3, head=0.3 if text else 0.0)
    figure, panels = panel_rows(widths, 0.4 + 0.055 * max(12, high - low), room)
    flat = [width for line in widths for width in line]
    for place, (axes, name) in enumerate(zip(panels, names, strict=True)):
        _name_pitches(axes, lowest, low, high)
        _draw_roll(axes, each[name], low, high)
        set_title(axes, name, flat[place])
        axes.tick_params(labelleft=place % _COLUMNS == 0)
    if text:
        head_title(figure, text)
    return figure


@typed
def step_kl(curves: Mapping[str, Any], *, title: str | None = None) -> Figure:
    """Draw what each step's latent tells, nats, one line for each model.

    Arguments:
        curves: by name, the KL of each step, ``(T,)``, as ``per_step(...).kl`` has it.
        title: ``None``: the default one.

    Raises:
        DataError: no curves, or one that is no finite vector.
    """
    if not curves:
        raise DataError("curves: got none, expected at least one")
    figure = new_figure(6.4, 3.4)
    axes = figure.add_subplot()
    shades = zip(curves.items(), colours(len(curves)), cycle(LINES), strict=False)
    for (name, curve), colour, line in shades:
        kl = numbers(name, curve)
        if kl.ndim != 1 or not kl.size or not np.isfinite(kl).all():
            raise DataError(f"{name}: got shape {kl.shape}, expected (T,), finite")
        dot = "o" if len(kl) == 1 else ""  # of one point there is no line
        steps = np.arange(1, len(kl) + 1)
        axes.plot(steps, kl, color=colour, ls=line, label=named(name), lw=1.3, marker=dot)
    axes.set(xlabel="step", ylabel="KL (nats)")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    last = axes.dataLim.x1
    axes.set_xlim(0.5, last + max(0.5, 0.02 * last))  # there is no step 0
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    plain_axes(axes)
    legend(axes)
    set_title(axes, title or "What the latent of each step tells")
    return figure


def _widths(names: list[str], lengths: list[int]) -> list[float]:
    """Return the widths of panels side by side, inches: none is narrower than most names."""
    least = min(_WIDEST, max(1.4, 0.105 * max(map(len, names))))
    whole = min(14.0, max(3.0 * len(names), 0.05 * sum(lengths) + 1.5))
    rest = max(0.0, whole - least * len(names)) / sum(lengths)
    return [least + rest * length for length in lengths]


def _draw_roll(axes: Axes, roll: np.ndarray, low: int, high: int) -> None:
    extent = (0.5, len(roll) + 0.5, low - 0.5, high + 0.5)
    shown = roll[:, low : high + 1].T
    axes.imshow(shown, cmap="gray_r", vmin=0, vmax=1, aspect="auto", origin="lower", extent=extent)
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.set_xlabel("step", fontsize=9, color=INK)
    plain_axes(axes)


def _roll(name: str, values: ArrayLike) -> np.ndarray:
    roll = numbers(name, values)
    if roll.ndim != 2 or not roll.size:
        raise DataError(f"{name}: got shape {roll.shape}, expected (T, K)")
    if not (np.isfinite(roll).all() and roll.min() >= 0 and roll.max() <= 1):
        raise DataError(f"{name}: got values beyond [0, 1], expected keys, or their probabilities")
    return roll


def _name_pitches(axes: Axes, lowest: int, low: int, high: int) -> None:
    """Write the name of each C beside its key; of the lowest key where there is none."""
    octaves = [key for key in range(low, high + 1) if (key + lowest) % 12 == 0] or [low]
    axes.set_yticks(octaves, [_pitch(key + lowest) for key in octaves])


def _pitch(number: int) -> str:
    return f"{_PITCHES[number % 12]}{number // 12 - 1}"
