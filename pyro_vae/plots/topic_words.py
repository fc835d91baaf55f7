"""The most probable words of each topic, as bars. Shapes: K topics, V words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from pyro_vae.arguments import positive, typed
from pyro_vae.errors import DataError
from pyro_vae.plots.style import INK, PALETTE, new_figure, numbers, plain_axes, set_title

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

_COLUMNS = 5
_LETTERS = 24  # of a word, at most


@typed
def topic_words(
    topics: ArrayLike,
    vocabulary: Iterable[str] | None = None,
    *,
    num_words: int = 8,
    title: str | None = None,
) -> Figure:
    """Draw the most probable words of each topic, one panel each, on one scale of probability.

    Arguments:
        topics: distributions of words, ``(K, V)``, as ``program.topics()`` gives them.
        vocabulary: the V words; ``None`` numbers them.
        num_words: words of a topic, at most.
        title: ``None``: the default one.

    Raises:
        DataError: topics that are no finite matrix, or another number of words.
    """
    shares = numbers("topics", topics)
    if shares.ndim != 2 or not shares.size or not np.isfinite(shares).all():
        raise DataError(f"topics have shape {shares.shape}; expected (K, V), finite")
    count, size = shares.shape
    names = [str(word) for word in (range(size) if vocabulary is None else vocabulary)]
    if len(names) != size:
        raise DataError(f"vocabulary: got {len(names)} words, expected {size}")
    shown = min(positive("num_words", num_words), size)
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    order = np.argsort(-shares, axis=1, kind="stable")[:, :shown]
    labels = [[_shortened(names[word]) for word in top] for top in order]
    longest = max(len(label) for row in labels for label in row)
    text = title or f"The {shown} most probable words of each topic"
    # Inches: bars of one width beside the longest word, in letters of 9 points; the title has 11.
    width = max((1.3 + 0.075 * longest) * columns, 0.2 + 0.08 * len(text))
    figure = new_figure(width, rows * (0.17 * shown + 0.6) + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
    for place, axes in enumerate(panels):
        if place >= count:
            axes.set_axis_off()
            continue
        axes.barh(range(shown), shares[place, order[place]], color=PALETTE[3])
        axes.set_yticks(range(shown), labels[place])
        axes.locator_params(axis="x", nbins=3)
        axes.invert_yaxis()
        plain_axes(axes)
        set_title(axes, f"topic {place}")
        axes.tick_params(labelbottom=place + columns >= count)  # no panel stands below
    figure.suptitle(text, fontsize=11, color=INK, x=0.01, ha="left")
    figure.supxlabel("probability of the word", fontsize=9, color=INK)
    return figure


def _shortened(word: str) -> str:
    return word if len(word) <= _LETTERS else f"{word[: _LETTERS - 1]}…"
