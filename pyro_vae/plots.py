"""Figures of what a program has learned, from tensors, arrays and dicts alone.

Each function returns a ``matplotlib.figure.Figure`` of its own: pyplot, its backend and its global
settings are never touched, so these work in scripts, notebooks and threads alike.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from .errors import ConfigError, DataError
from .files import atomic_write_bytes

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# N images, C channels, H height, W width, Z latent units

DPI = 150
# "Muted" of Paul Tol, safe for colour-blind readers; black is the tenth.
PALETTE = (
    *("#332288", "#CC6677", "#117733", "#88CCEE", "#DDAA33"),
    *("#AA4499", "#44AA99", "#882255", "#999933", "#000000"),
)
_INK, _FAINT = "#222222", "#8a8a8a"
_GAP = 0.12  # between images, in image widths
_INCH = 0.62  # width of one image


def samples(images: ArrayLike, *, columns: int | None = None, title: str | None = None) -> Figure:
    """Draw images on a square grid.

    Args:
        images: in [0, 1], 0 black, ``(N, H, W)``, ``(N, C, H, W)``, or square ones as ``(N, D)``.
        columns: images in a row; ``None``: as many as rows.
        title: ``None``: says how many.

    Raises:
        DataError: not images.
    """
    pixels = _images("images", images)
    columns = columns or math.ceil(math.sqrt(len(pixels)))
    figure, axes = _canvas(title or f"{len(pixels)} samples from the prior")
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        _place(axes, image, column, row)
    _fit(figure, axes, columns, math.ceil(len(pixels) / columns), pixels)
    return figure


def reconstructions(
    originals: ArrayLike, reconstructed: ArrayLike, *, columns: int = 12, title: str | None = None
) -> Figure:
    """Draw each image above its reconstruction.

    Args:
        originals: as in ``samples``.
        reconstructed: the same shape.
        columns: pairs in a row.
        title: ``None``: the default one.

    Raises:
        DataError: not images, or not pairs.
    """
    above, below = _images("originals", originals), _images("reconstructed", reconstructed)
    if above.shape != below.shape:
        raise DataError(
            f"originals have shape {above.shape} and reconstructed {below.shape}; expected pairs"
        )
    columns = min(columns, len(above))
    figure, axes = _canvas(title or "Test images and their reconstructions")
    blocks = math.ceil(len(above) / columns)
    pitch = 2.35  # two rows and a little air: a pair reads as one
    for index, pair in enumerate(zip(above, below, strict=True)):
        block, column = divmod(index, columns)
        for row, image in enumerate(pair):
            _place(axes, image, column, block * pitch + row)
    for block in range(blocks):
        for row, name in enumerate(("data", "model")):
            y = (block * pitch + row + 0.5) * (1 + _GAP) * _ratio(above)
            axes.text(
                -0.25, y, name, ha="right", va="center", fontsize=9, color=_FAINT, clip_on=False
            )
    _fit(figure, axes, columns, blocks * pitch - (pitch - 2), above, left=0.9)
    return figure


def interpolations(images: ArrayLike, *, title: str | None = None) -> Figure:
    """Draw one row of images for each line between two codes.

    Args:
        images: as ``pv.interpolate`` returns them, ``(N, steps, H, W)``, ``(N, steps, C, H, W)``,
            or square ones as ``(N, steps, D)``.
        title: ``None``: the default one.

    Raises:
        DataError: not rows of images.
    """
    array = _array(images)
    if array.ndim < 3 or 0 in array.shape:
        raise DataError(f"images have shape {array.shape}; expected (N, steps, H, W)")
    rows, steps = array.shape[:2]
    pixels = _images("images", array.reshape(rows * steps, *array.shape[2:]))
    figure, axes = _canvas(title or "Straight lines between two codes")
    for index, image in enumerate(pixels):
        row, column = divmod(index, steps)
        _place(axes, image, column, row)
    _fit(figure, axes, steps, rows, pixels)
    return figure


def latent_map(
    codes: ArrayLike, labels: ArrayLike | None = None, *, title: str | None = None
) -> Figure:
    r"""Scatter codes in two dimensions: their principal components where there are more.

    .. math:: Z - \bar Z = U S V^\top, \quad \text{coordinates } (U S)_{:, 1:2}

    Args:
        codes: ``(N, Z)``.
        labels: whole numbers, ``(N,)``, one colour each; ``None``: one colour for all.
        title: ``None``: the default one.

    Raises:
        DataError: fewer than two codes, or as many labels as there are not codes.
    """
    points, names = _plane(codes)
    groups = _groups(labels, len(points))
    figure = _figure(6.0, 5.4)
    axes = figure.add_subplot()
    colours = _colours(len(groups))
    size = min(22.0, max(3.0, 15000 / len(points)))
    for (name, chosen), colour in zip(groups, colours, strict=True):
        x, y = points[chosen].T
        axes.scatter(x, y, s=size, color=colour, alpha=0.75, linewidths=0, label=name)
    if groups[0][0]:
        _name_groups(axes, points, groups, colours)
        axes.legend(
            *(axes.get_legend_handles_labels()),
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            frameon=False,
            handletextpad=0.2,
            markerscale=math.sqrt(22 / size),
        )
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.set_aspect("equal", adjustable="datalim")
    _plain(axes)
    _title(axes, title or "Posterior means of the test data")
    return figure


def curves(history: Mapping[str, ArrayLike], *, title: str | None = None) -> Figure:
    """Draw training and validation ELBO beside the loss, with the KL weight where it varies.

    The first epochs, far below the rest, may lie outside the axes.

    Args:
        history: as ``pv.fit`` returns it, with ``epoch`` and any of ``elbo``, ``valid_elbo``,
            ``loss`` (nats per datum) and ``beta``.
        title: ``None``: the default one.

    Raises:
        DataError: no epochs, or none of the columns.
    """
    columns = {k: np.asarray(v, dtype=float) for k, v in history.items()}
    epoch = columns.get("epoch")
    if epoch is None or not len(epoch) or not {"elbo", "valid_elbo", "loss"} & set(columns):
        raise DataError(
            f"history has {', '.join(columns) or 'no columns'}; expected epoch with elbo, "
            "valid_elbo or loss"
        )
    figure = _figure(8.4, 3.6)
    left, right = figure.subplots(1, 2)
    _lines(left, epoch, columns, (("elbo", "training"), ("valid_elbo", "validation")))
    left.set(xlabel="epoch", ylabel="ELBO (nats per datum)")
    _mark_best(left, epoch, columns.get("valid_elbo"))
    _title(left, title or "Evidence lower bound")
    _lines(right, epoch, columns, (("loss", "loss"),))
    right.set(xlabel="epoch", ylabel="loss (nats per datum)")
    _title(right, "Loss, minimised")
    beta = columns.get("beta")
    if beta is not None and np.ptp(beta[np.isfinite(beta)]) > 0:
        _beta_axis(right, epoch, beta)
    if left.get_legend_handles_labels()[0]:
        left.legend(frameon=False, loc="lower right")
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure; what stood at ``path`` is replaced in one step, and never by half a file.

    Args:
        figure: from any function of this module.
        path: its suffix says the format (png, pdf, svg); its folder is made where absent.

    Raises:
        ConfigError: a format that matplotlib does not write.
    """
    path = Path(path)
    kind = path.suffix[1:].lower()
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise ConfigError(f"{path}: unknown format {kind!r}; choose one of {', '.join(known)}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=DPI, facecolor="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, buffer.getvalue())
    return path


# -- Images ----------------------------------------------------------------------------------------


def _array(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    return np.asarray(values)


def _images(name: str, values: ArrayLike) -> np.ndarray:
    """Return ``(N, H, W)`` or ``(N, H, W, 3)``."""
    array = _array(values).astype(np.float64)
    if array.ndim == 2:
        side = math.isqrt(array.shape[1])
        array = array.reshape(len(array), side, side) if side**2 == array.shape[1] else array
    if array.ndim == 4 and array.shape[1] in (1, 3):
        array = np.moveaxis(array, 1, -1) if array.shape[1] == 3 else array[:, 0]
    elif array.ndim != 3:
        raise DataError(f"{name} have shape {array.shape}; expected (N, H, W) or (N, C, H, W)")
    if 0 in array.shape:
        raise DataError(f"{name} have shape {array.shape}; expected at least one image")
    if not np.isfinite(array).all():
        raise DataError(f"{name} hold NaN or infinity; expected numbers in [0, 1]")
    return array.clip(0, 1)


def _ratio(pixels: np.ndarray) -> float:
    """Return height over width of one image."""
    return pixels.shape[1] / pixels.shape[2]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def _canvas(title: str) -> tuple[Figure, Axes]:
    """Return a figure with bare axes, in units of image widths, y downwards."""
    figure = _figure(4, 4)
    axes = figure.add_subplot()
    axes.set_axis_off()
    _title(axes, title)
    return figure, axes


def _place(axes: Axes, image: np.ndarray, column: float, row: float) -> None:
    """Draw one image in a cell of the grid."""
    high = _ratio(image[None])
    x, y = column * (1 + _GAP), row * (1 + _GAP) * high
    axes.imshow(
        image,
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        extent=(x, x + 1, y + high, y),
    )


def _fit(
    figure: Figure,
    axes: Axes,
    columns: float,
    rows: float,
    pixels: np.ndarray,
    left: float = 0.0,
) -> None:
    """Set limits and size: every image is equally large on any figure."""
    width = columns * (1 + _GAP) - _GAP + left
    height = (rows * (1 + _GAP) - _GAP) * _ratio(pixels)
    axes.set(xlim=(-left, width - left), ylim=(height, 0), aspect="equal")
    figure.set_size_inches(max(2.6, width * _INCH) + 0.1, height * _INCH + 0.4)


# -- Scatter and lines -----------------------------------------------------------------------------


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=11, color=_INK, loc="left")


def _plain(axes: Axes) -> None:
    """Leave the two axes that are read."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_FAINT)
    axes.tick_params(color=_FAINT, labelcolor=_INK, labelsize=9)


def _plane(codes: ArrayLike) -> tuple[np.ndarray, tuple[str, str]]:
    """Return ``(N, 2)`` coordinates and the names of their axes."""
    z = torch.as_tensor(_array(codes)).double()
    if z.dim() != 2 or len(z) < 2 or not z.shape[1] or not z.isfinite().all():
        raise DataError(f"codes have shape {tuple(z.shape)}; expected (N, Z) finite, N at least 2")
    units = z.shape[1]
    if units == 1:  # the second axis only spreads the points
        return torch.cat([z, torch.linspace(0, 1, len(z))[:, None]], 1).numpy(), ("z", "datum")
    if units == 2:
        return z.numpy(), ("$z_1$", "$z_2$")
    _, scale, axes = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    share = 100 * scale.square() / scale.square().sum().clamp(min=1e-300)
    names = [f"principal component {i + 1} of {units} latents ({share[i]:.0f} %)" for i in (0, 1)]
    return ((z - z.mean(0)) @ axes[:2].mT).numpy(), (names[0], names[1])


def _groups(labels: ArrayLike | None, n: int) -> list[tuple[str, np.ndarray]]:
    """Return (name, indices) for each label, in order."""
    if labels is None:
        return [("", np.arange(n))]
    values = _array(labels)
    if values.shape != (n,):
        raise DataError(f"labels have shape {values.shape}; expected ({n},), one for each code")
    return [(str(value), np.flatnonzero(values == value)) for value in np.unique(values)]


def _name_groups(
    axes: Axes, points: np.ndarray, groups: list[tuple[str, np.ndarray]], colours: list[Any]
) -> None:
    """Write each label at the median of its points: colour alone does not tell ten apart."""
    from matplotlib.patheffects import withStroke

    for (name, chosen), colour in zip(groups, colours, strict=True):
        x, y = np.median(points[chosen], axis=0)
        outline = [withStroke(linewidth=3, foreground="white")]
        style: dict[str, Any] = {"ha": "center", "va": "center", "path_effects": outline}
        axes.text(x, y, name, fontsize=14, fontweight="bold", color=colour, **style)


def _colours(n: int) -> list[Any]:
    if n <= len(PALETTE):
        return list(PALETTE[:n])
    from matplotlib import colormaps

    return [colormaps["viridis"](i / (n - 1)) for i in range(n)]


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
    _plain(axes)
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
    twin.spines["right"].set_color(_FAINT)
