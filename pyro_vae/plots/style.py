"""What all figures share: size, colours, titles, legends, axes, and panels in rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyro_vae.arguments import shown
from pyro_vae.errors import DataError

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
# "Muted" of Paul Tol, safe for colour-blind readers; black is the tenth.
PALETTE = (
    *("#332288", "#CC6677", "#117733", "#88CCEE", "#DDAA33"),
    *("#AA4499", "#44AA99", "#882255", "#999933", "#000000"),
)
INK, FAINT = "#222222", "#8a8a8a"
LETTER = 0.09  # mean width of a letter of a title, inches
_NAMED = 12  # lines of a legend, at most
_INSIDE = 4  # lines that a legend may have within its panel
_LEGEND_LETTERS = 32  # of a line of a legend, at most
MOST = 60  # panels of a figure: more cannot be looked at, and take long


def new_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """Return an empty figure that pyplot does not know of; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")


@dataclass(frozen=True)
class Room:
    """Inches around each panel for its labels, and around all of them."""

    left: float
    right: float
    below: float
    above: float
    head: float = 0.0
    foot: float = 0.0


def panel_rows(
    widths: Sequence[Sequence[float]], height: float, room: Room
) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels in rows, and the panels, row by row.

    Places are computed: a layout that solves for them takes minutes for 200 panels.

    Arguments:
        widths: of the panels of each row, inches.
        height: of a panel.
        room: what is left free around them.
    """
    pitch = room.below + height + room.above
    sides = room.left + room.right
    width = max(sum(row) + sides * len(row) for row in widths)
    figure = new_figure(width, pitch * len(widths) + room.head + room.foot, "none")
    tall = figure.get_figheight()
    panels = []
    for line, row in enumerate(widths):
        x, y = 0.0, tall - room.head - pitch * line - room.above - height
        for each in row:
            box = ((x + room.left) / width, y / tall, each / width, height / tall)
            panels.append(figure.add_axes(box))
            x += each + sides
    return figure, panels


def rows_of(count: int, columns: int, width: float) -> list[list[float]]:
    """Return the widths of ``count`` equal panels, ``columns`` in a row."""
    return [[width] * min(columns, count - start) for start in range(0, count, columns)]


def first_of(count: int, what: str) -> str:
    """Return what a title says of panels that are left out: nothing where all are drawn."""
    return f"The first {MOST} of {count} {what}" if count > MOST else ""


def set_title(axes: Axes, text: str, width: float | None = None) -> None:
    """Write the title, flush left; cut where it is longer than a panel of some width, inches."""
    text = text if width is None else shortened(text, int(width / LETTER))
    axes.set_title(text, fontsize=11, color=INK, loc="left")


def head_title(figure: Figure, text: str) -> None:
    """Write the title of a whole figure at its top, flush left."""
    y = 1 - 0.08 / figure.get_figheight()
    figure.suptitle(text, fontsize=11, color=INK, x=0.01, y=y, ha="left", va="top")


def shortened(text: str, letters: int) -> str:
    """Return a text of so many letters at most: long names often differ at their ends."""
    if len(text) <= letters:
        return text
    end = max(1, letters // 3)
    return f"{text[: max(1, letters - end - 1)]}…{text[-end:]}"


def plain_axes(axes: Axes) -> None:
    """Leave the two axes that are read, dark on white whatever style is set."""
    axes.set_facecolor("white")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(INK)


def colours(count: int) -> list[Any]:
    """Return so many colours: those of the palette, or of viridis where there are more."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    from matplotlib import colormaps

    return [colormaps["viridis"](place / (count - 1)) for place in range(count)]


def legend(axes: Axes, *, owner: Any = None, **options: Any) -> None:
    """Name what is drawn: beside the panel where the names are many, and twelve at most.

    Arguments:
        axes: whose lines are named.
        owner: the figure or panel where the names stand; None: these axes.
        options: of matplotlib's legend.
    """
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    count = len(labels)
    if count > _NAMED:  # those of colours that are far from each other
        chosen = np.linspace(0, count - 1, _NAMED).round().astype(int)
        handles, labels = [handles[k] for k in chosen], [labels[k] for k in chosen]
        options["title"] = f"{_NAMED} of {count}:"
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if count > _INSIDE else {}
    drawn = (owner or axes).legend(
        handles,
        [shortened(label, _LEGEND_LETTERS) for label in labels],
        **{"frameon": False, "fontsize": 9, "labelcolor": INK, **beside, **options},
    )
    drawn.get_title().set(color=INK, fontsize=9)


def text_width(text: str) -> float:
    """Return about how wide a text of 9 points is, inches."""
    return 0.075 * len(text) + 0.035 * sum(map(text.count, "mwMW"))


def as_array(values: Any) -> np.ndarray:
    """Return a tensor of any device, or anything array-like, as an array.

    Raises:
        DataError: Ragged rows.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(f"got {shown(values)}, expected an array: {error}") from None


def numbers(name: str, values: Any, verb: str = "") -> np.ndarray:
    """Return anything array-like as an array of floats.

    Arguments:
        name: of the argument.
        values: array-like.
        verb: what returns such values of a program.

    Raises:
        DataError: Something else.
    """
    if callable(getattr(values, "model", None)) and callable(getattr(values, "guide", None)):
        says = f"what {verb} returns for it" if verb else "numbers"
        raise DataError(f"{name}: got a program ({type(values).__name__}), expected {says}")
    try:
        return as_array(values).astype(float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: got {shown(values)}, expected numbers: {error}") from None
