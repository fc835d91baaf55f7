"""The most probable words of each topic, as bars. Shapes: K topics, V words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from pyro_vae.arguments import counted, positive, shortened, typed
from pyro_vae.errors import DataError
from pyro_vae.plots.style import (
    INK,
    LETTER,
    MOST,
    PALETTE,
    Room,
    first_of,
    head_title,
    numbers,
    panel_rows,
    plain_axes,
    rows_of,
    set_title,
    text_width,
)

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

_COLUMNS = 5
_FEW = 1e-3  # probabilities below have numbers too long for a panel
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

    Of more than 60 topics the first 60 are drawn, and the title says so.

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
    every, size = shares.shape
    names = [str(word) for word in (range(size) if vocabulary is None else vocabulary)]
    if len(names) != size:
        raise DataError(f"vocabulary: got {counted(len(names), 'word')}, expected {size}")
    shown = min(positive("num_words", num_words), size)
    count = min(every, MOST)
    order = np.argsort(-shares[:count], axis=1, kind="stable")[:, :shown]
    labels = [[shortened(names[word], _LETTERS) for word in top] for top in order]
    longest = max(text_width(label) for row in labels for label in row)
    words = f"{shown} most probable words" if shown > 1 else "most probable word"
    text = title or f"The {words} of each topic"
    text = ". ".join(filter(None, (text, first_of(every, "topics"))))
    abreast = min(count, _COLUMNS)
    # A row is as wide as the title at least.
    least = (LETTER * len(text) + 0.2) / abreast - longest - 0.25
    widths = rows_of(count, _COLUMNS, max(1.1, least))
    room = Room(longest + 0.15, 0.1, 0.22, 0.28, head=0.3, foot=0.25)
    figure, panels = panel_rows(widths, 0.17 * shown + 0.1, room)
    highest = max(shares[place, top].max() for place, top in enumerate(order))
    unit, name = (1e-6, ", millionths") if 0 < highest < _FEW else (1.0, "")
    for place, axes in enumerate(panels):
        axes.barh(range(shown), shares[place, order[place]] / unit, color=PALETTE[3])
        axes.set_yticks(range(shown), labels[place], parse_math=False)  # a word may be $$
        axes.set_xlim(0, 1.05 * highest / unit)
        axes.invert_yaxis()
        plain_axes(axes)
        set_title(axes, f"topic {place}")
        axes.tick_params(labelbottom=place + _COLUMNS >= count)  # no panel stands below
    head_title(figure, text)
    figure.supxlabel(
        f"probability of the word{name}",
        fontsize=9,
        color=INK,
        y=0.05 / figure.get_figheight(),
        va="bottom",
    )
    return figure
