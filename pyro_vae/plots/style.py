"""What all figures share: size, colours, titles, legends, axes, and panels in rows."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyro_vae.arguments import shortened, shown
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
# To some readers the second, third and seventh colour are one: marks and lines differ besides.
MARKERS = "os^DvP"
LINES = ("-", "--", "-.")  # with a period of three no two that look alike share one
INK, FAINT = "#222222", "#8a8a8a"
LETTER = 0.09  # mean width of a letter of a title, inches
_NAMED = 12  # lines of a legend, at most
_UNDER = 4  # lines that a legend may have below its panel
_LEGEND_LETTERS = 32  # of a line of a legend, at most
_LINE = 0.21  # of a legend, inches
_BELOW = 0.46  # inches from a panel to its legend: numbers and a name of the axis are between
_TICKS = 9  # intervals of an axis, at most
_SPACE = 0.12  # between its numbers at least, inches
_WRITTEN_OUT = (-6, 8)  # powers of ten beyond which numbers have one
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
    """Write the title, flush left, in lines as long as the panel; cut to one if its width is told.

    Arguments:
        axes: the panel.
        text: of the title.
        width: of the panel, inches, where another stands above it.
    """
    if width is None:
        text = in_lines(text, 1.2 * panel_width(axes))  # the layout makes panels wider than that
    else:
        text = shortened(text, int(width / LETTER))
    axes.set_title(text, fontsize=11, color=INK, loc="left")


def in_lines(text: str, width: float) -> str:
    """Return a title in lines of some width, inches; formulas are left whole."""
    if "$" in text:
        return text
    letters = max(1, int(width / LETTER))
    return "\n".join(part for line in text.splitlines() for part in textwrap.wrap(line, letters))


def panel_width(axes: Axes) -> float:
    """Return about how wide a panel is, inches: a layout that is solved settles it when drawn."""
    figure: Any = axes.figure
    return float(axes.get_position().width * figure.get_figwidth())


def head_title(figure: Figure, text: str) -> None:
    """Write the title of a whole figure at its top, flush left."""
    y = 1 - 0.08 / figure.get_figheight()
    figure.suptitle(text, fontsize=11, color=INK, x=0.01, y=y, ha="left", va="top")


def signed(value: float, form: str = ".2f") -> str:
    """Return a number for a title, with a true minus as on the axes."""
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def decimals(*values: float) -> int:
    """Return how many decimals show three digits of the largest number, six at most."""
    largest = max((abs(value) for value in values if np.isfinite(value)), default=0.0)
    return min(6, max(0, 2 - int(np.floor(np.log10(largest))))) if largest > 0 else 2


def plain_axes(axes: Axes) -> None:
    """Leave the two axes that are read, dark on white whatever style is set, numbers written out.

    It is called when all is drawn: only as many numbers stand below a panel as have room there.
    """
    axes.set_facecolor("white")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=INK, fontsize=10)
        axis.get_offset_text().set_color(INK)
    _write_out(axes)


def _write_out(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    for axis in (axes.xaxis, axes.yaxis):
        form = axis.get_major_formatter()
        if isinstance(form, ScalarFormatter):
            form.set_useOffset(False)  # a term that all numbers have in common is not read
            form.set_powerlimits(_WRITTEN_OUT)
    if isinstance(axes.xaxis.get_major_locator(), MaxNLocator):
        for most in range(_TICKS, 0, -1):
            axes.locator_params(axis="x", nbins=most)
            if _apart(axes):
                break


def _apart(axes: Axes) -> bool:
    """Return whether the numbers below a panel stand apart."""
    low, high = sorted(axes.get_xlim())
    places = [place for place in axes.get_xticks() if low <= place <= high]
    texts = axes.xaxis.get_major_formatter().format_ticks(places)
    pitch = max(map(text_width, texts), default=0.0) + _SPACE
    return (len(texts) - 1) * pitch < panel_width(axes)


def colours(count: int) -> list[Any]:
    """Return so many colours: those of the palette, or of viridis where there are more."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    from matplotlib import colormaps

    return [colormaps["viridis"](place / (count - 1)) for place in range(count)]


def named(name: str) -> str:
    """Return a name as a label: matplotlib leaves out those that begin with an underscore."""
    return f"\N{ZERO WIDTH SPACE}{name}" if name.startswith("_") else name


def legend(axes: Axes, *, owner: Any = None, **options: Any) -> None:
    """Name what is drawn, never over it: below the panel, or beside it where the names are many.

    Of more than twelve names twelve stand there.

    Arguments:
        axes: whose lines are named.
        owner: the figure, to name below all its panels; None: these axes.
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
    labels = [shortened(label, _LEGEND_LETTERS) for label in labels]
    if "loc" not in options:
        many = owner is None and count > _UNDER
        options |= _beside() if many else _below(axes, owner, labels)
    settings = {"frameon": False, "fontsize": 9, "labelcolor": INK, **options}
    drawn = (owner or axes).legend(handles, labels, **settings)
    drawn.get_title().set(color=INK, fontsize=9)


def _beside() -> dict[str, Any]:
    return {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}


def _below(axes: Axes, owner: Any, labels: list[str]) -> dict[str, Any]:
    """Make the figure higher by the lines of a legend; return where and in how many columns."""
    from matplotlib.transforms import ScaledTranslation

    figure: Any = axes.figure
    width = figure.get_figwidth() - 0.2 if owner else 1.1 * panel_width(axes)
    columns = max(1, int(width / (max(map(text_width, labels)) + 0.6)))
    columns = min(len(labels), columns)
    figure.set_figheight(figure.get_figheight() + 0.1 + _LINE * -(-len(labels) // columns))
    if owner:
        return {"loc": "outside lower left", "ncols": columns}
    down = axes.transAxes + ScaledTranslation(0, -_BELOW, figure.dpi_scale_trans)
    place = {"bbox_to_anchor": (0, 0), "bbox_transform": down, "borderaxespad": 0.0}
    return {"loc": "upper left", "ncols": columns, **place}


def numbers_width(low: float, high: float) -> float:
    """Return about how wide the numbers beside an axis are, inches."""
    from matplotlib.ticker import AutoLocator, ScalarFormatter

    form: Any = ScalarFormatter(useOffset=False)
    form.create_dummy_axis()
    form.set_powerlimits(_WRITTEN_OUT)
    form.axis.set_view_interval(low, high)
    return max(map(text_width, form.format_ticks(AutoLocator().tick_values(low, high))))


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
