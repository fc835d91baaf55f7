"""Curves of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from pyro_vae.arguments import typed
from pyro_vae.errors import DataError
from pyro_vae.plots.style import (
    FAINT,
    INK,
    LINES,
    PALETTE,
    legend,
    new_figure,
    numbers,
    plain_axes,
    set_title,
    signed,
)

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FAR = 3.0  # times the range of the rest: the first epochs beyond it are off the axis


@dataclass(frozen=True)
class _Part:
    """What a panel draws: labels by column, a name of the axis and a title."""

    columns: dict[str, str]
    label: str
    title: str


_BOUND = _Part(
    {"elbo": "training", "valid_elbo": "validation", "valid_bound": "validation, own bound"},
    "ELBO (nats per datum)",
    "Evidence lower bound",
)
_LIKELIHOOD = replace(_BOUND, label="log p(x) (nats per datum)", title="Log-likelihood")
_CRITIC = _Part({"critic": "critic"}, "loss of the critic", "Critic")
_LOSS = _Part({"loss": "loss"}, "loss (nats per datum)", "Loss, minimised")


@typed
def curves(history: Any, *, title: str | None = None) -> Figure:
    """Draw training and validation ELBO beside the loss, with the KL weight where it varies.

    The mark is on the epoch whose weights were kept: that of the best validation ELBO, or where the
    objective judges epochs by itself (IWAE), of the best such value. Without an ELBO, which a guide
    without a density has not, the critic's loss stands in its place. Of a ``pv.Run`` of a program
    without latents the ELBO is called what it is, the log-likelihood. Where the first epochs lie
    far from the rest they are off the axis, which says how many are.

    Arguments:
        history: a ``pv.Run``, or a dict as its ``history``: ``epoch`` with any of ``elbo``,
            ``valid_elbo``, ``valid_bound``, ``loss`` (nats per datum) and ``beta``.
        title: ``None``: the default one.

    Raises:
        DataError: no epochs, or none of the columns.
    """
    columns = _columns(getattr(history, "history", history))
    epoch = columns.get("epoch")
    if epoch is None or not len(epoch) or not {"elbo", "valid_elbo", "loss"} & set(columns):
        raise DataError(
            f"history has {', '.join(columns) or 'no columns'}; expected epoch with elbo, "
            "valid_elbo or loss"
        )
    bound = _LIKELIHOOD if getattr(history, "without_latents", False) else _BOUND
    bound = bound if {"elbo", "valid_elbo"} & set(columns) else _CRITIC
    panels = [part for part in (bound, _LOSS) if set(part.columns) & set(columns)]
    figure = new_figure(4.2 * len(panels), 3.6)
    for axes, part in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        mark = _kept(epoch, columns, getattr(history, "best_epoch", None))
        _lines(axes, epoch, columns, part, None if part in (_CRITIC, _LOSS) else mark)
        set_title(axes, (title or part.title) if part is panels[0] else part.title)
    legend(figure.axes[0], owner=figure, fontsize=10)
    weights = {name: column for name, column in columns.items() if name.split("[")[0] == "beta"}
    varied = {name: column for name, column in weights.items() if len(np.unique(column)) > 1}
    if varied and panels[-1] is _LOSS:
        _beta_axis(figure.axes[-1], epoch, varied)
    return figure


@typed
def _columns(history: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    return {name: numbers(name, column) for name, column in history.items()}


def _lines(
    axes: Axes,
    epoch: np.ndarray,
    columns: Mapping[str, np.ndarray],
    part: _Part,
    kept: int | None,
) -> None:
    drawn = []
    shades = zip(part.columns.items(), PALETTE, ("-", "-", "--"), strict=False)
    for (column, label), colour, dashes in shades:
        if column in columns:
            known = np.isfinite(columns[column])
            single = "o" if known.sum() == 1 else None  # a line of one point is invisible
            line: dict[str, Any] = {"color": colour, "lw": 1.6, "ls": dashes, "marker": single}
            axes.plot(epoch[known], columns[column][known], label=label, **line)
            drawn.append((epoch[known], columns[column][known]))
    axes.grid(axis="y", color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)
    axes.set_xlim(epoch[0] - 0.5, epoch[-1] + max(0.5, 0.02 * np.ptp(epoch)))
    axes.locator_params("x", integer=True, min_n_ticks=1)
    marked = [] if kept is None else [_mark(axes, epoch, columns["valid_elbo"], kept)]
    early = _zoom(axes, epoch, drawn, marked)
    told = f"epoch ({early} of the first off the axis)" if early else "epoch"
    axes.set(xlabel=told, ylabel=part.label)
    if not any(len(values) for _, values in drawn):
        axes.set_yticks([])
        axes.text(
            0.5,
            0.5,
            "no finite number",
            ha="center",
            transform=axes.transAxes,
            color=INK,
            fontsize=10,
        )
    plain_axes(axes)


def _zoom(
    axes: Axes,
    epoch: np.ndarray,
    drawn: list[tuple[np.ndarray, np.ndarray]],
    marked: list[float],
) -> int:
    """Fit the height to all but far values of the first epochs; return how many these have."""
    after = epoch[len(epoch) // 20]
    settled = np.concatenate([*(y[x >= after] for x, y in drawn), marked])
    every = np.concatenate([y for _, y in drawn])
    if not len(settled) or not 0 < _FAR * np.ptp(settled) < np.ptp(every):
        return 0
    margin = 0.06 * np.ptp(settled)
    low, high = settled.min() - margin, settled.max() + margin
    axes.set_ylim(low, high)
    outside = [x[(y < low) | (y > high)] for x, y in drawn]
    return len(np.unique(np.concatenate(outside)))


def _kept(epoch: np.ndarray, columns: Mapping[str, np.ndarray], told: int | None) -> int | None:
    """Return the place of the epoch whose weights were kept, if one with an ELBO was.

    A dict does not tell: it is the best by the objective's own value where it has one.
    """
    valid = columns.get("valid_elbo", np.full(len(epoch), np.nan))
    names = [name for name in ("valid_objective", "valid_bound", "valid_elbo") if name in columns]
    places = list(np.flatnonzero(epoch == told))
    for values in (columns[name] for name in names):
        places += [np.nanargmax(values)] if np.isfinite(values).any() else []
    return int(places[0]) if places and np.isfinite(valid[places[0]]) else None


def _mark(axes: Axes, epoch: np.ndarray, valid: np.ndarray, kept: int) -> float:
    """Mark an epoch; return its value."""
    word = "best" if valid[kept] == np.nanmax(valid) else "kept"
    label = f"{word}: {signed(valid[kept])}, epoch {epoch[kept]:.0f}"
    style: dict[str, Any] = {"ms": 6, "mfc": "white", "mec": PALETTE[1], "mew": 1.6, "zorder": 3}
    axes.plot(epoch[kept], valid[kept], "o", label=label, **style)
    return float(valid[kept])


def _beta_axis(axes: Axes, epoch: np.ndarray, weights: Mapping[str, np.ndarray]) -> None:
    twin = axes.twinx()
    for (name, beta), line in zip(weights.items(), cycle((*LINES[1:], LINES[0])), strict=False):
        twin.plot(epoch, beta, color=PALETTE[2], lw=1.2, ls=line, label=name)
    twin.set_ylabel("KL weight β", color=PALETTE[2])
    twin.tick_params(color=PALETTE[2], labelcolor=PALETTE[2], labelsize=9)
    highest = max(float(np.nanmax(beta)) for beta in weights.values())
    twin.set_ylim(0, 1.05 * max(1.0, highest))
    if len(weights) > 1:
        legend(twin)
    for side in ("top", "left", "bottom"):
        twin.spines[side].set_visible(False)
    twin.spines["right"].set_color(FAINT)
