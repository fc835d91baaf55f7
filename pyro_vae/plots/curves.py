"""Curves of a training run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from pyro_vae.arguments import typed
from pyro_vae.errors import DataError
from pyro_vae.plots.style import FAINT, PALETTE, legend, new_figure, numbers, plain_axes, set_title

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@typed
def curves(history: Any, *, title: str | None = None) -> Figure:
    """Draw training and validation ELBO beside the loss, with the KL weight where it varies.

    Without an ELBO, which a guide without a density has not, the critic's loss stands in its place.
    The first epochs, far below the rest, may lie outside the axes.

    Arguments:
        history: a ``pv.Run``, or a dict as its ``history``: ``epoch`` with any of ``elbo``,
            ``valid_elbo``, ``loss`` (nats per datum) and ``beta``.
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
    figure = new_figure(8.4, 3.6)
    left, right = figure.subplots(1, 2)
    if {"elbo", "valid_elbo"} & set(columns) or "critic" not in columns:
        _lines(left, epoch, columns, (("elbo", "training"), ("valid_elbo", "validation")))
        left.set(xlabel="epoch", ylabel="ELBO (nats per datum)")
        _mark_best(left, epoch, columns.get("valid_elbo"))
        set_title(left, title or "Evidence lower bound")
    else:
        _lines(left, epoch, columns, (("critic", "critic"),))
        left.set(xlabel="epoch", ylabel="loss of the critic")
        set_title(left, title or "Critic")
    _lines(right, epoch, columns, (("loss", "loss"),))
    right.set(xlabel="epoch", ylabel="loss (nats per datum)")
    set_title(right, "Loss, minimised")
    beta = columns.get("beta")
    if beta is not None and np.ptp(beta[np.isfinite(beta)]) > 0:
        _beta_axis(right, epoch, beta)
    legend(left, loc="lower right", fontsize=10)
    return figure


@typed
def _columns(history: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    return {name: numbers(name, column) for name, column in history.items()}


def _lines(
    axes: Axes,
    epoch: np.ndarray,
    columns: Mapping[str, np.ndarray],
    wanted: tuple[tuple[str, str], ...],
) -> None:
    drawn = []
    for (column, label), colour in zip(wanted, PALETTE, strict=False):
        if column in columns:
            single = "o" if len(epoch) == 1 else None  # a line of one point is invisible
            axes.plot(epoch, columns[column], color=colour, lw=1.6, label=label, marker=single)
            drawn.append(columns[column])
    axes.grid(axis="y", color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)
    axes.locator_params("x", integer=True, min_n_ticks=1)
    plain_axes(axes)
    if drawn:
        _zoom(axes, np.concatenate(list(_settled(drawn))))


def _settled(drawn: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the finite values after the first twentieth of the epochs."""
    for values in drawn:
        late = values[len(values) // 20 :]
        yield late[np.isfinite(late)]


def _zoom(axes: Axes, values: np.ndarray) -> None:
    if len(values) and np.ptp(values) > 0:
        margin = 0.06 * np.ptp(values)
        axes.set_ylim(values.min() - margin, values.max() + margin)


def _mark_best(axes: Axes, epoch: np.ndarray, valid: np.ndarray | None) -> None:
    if valid is None or not np.isfinite(valid).any():
        return
    best = int(np.nanargmax(valid))
    label = f"best: {valid[best]:.2f}, epoch {epoch[best]:.0f}".replace("-", "\N{MINUS SIGN}")
    axes.plot(
        epoch[best], valid[best], "o", ms=6, mfc="white", mec=PALETTE[1], mew=1.6, label=label
    )


def _beta_axis(axes: Axes, epoch: np.ndarray, beta: np.ndarray) -> None:
    twin = axes.twinx()
    twin.plot(epoch, beta, color=PALETTE[2], lw=1.2, ls="--", label="β")
    twin.set_ylabel("KL weight β", color=PALETTE[2])
    twin.tick_params(color=PALETTE[2], labelcolor=PALETTE[2], labelsize=9)
    twin.set_ylim(0, 1.05 * max(1.0, float(np.nanmax(beta))))
    for side in ("top", "left", "bottom"):
        twin.spines[side].set_visible(False)
    twin.spines["right"].set_color(FAINT)
