"""Progress bars, where somebody can watch them."""

import sys
from contextlib import suppress
from typing import Any

from tqdm import tqdm


def progress_bar(items: Any = None, *, shown: bool, **options: Any) -> Any:
    """Return a bar over items, drawn on stderr where that is a terminal or a notebook's.

    A file or a pipe would get all states of the bar, one behind the other.

    Arguments:
        items: What to iterate over; None for a bar that is moved by hand.
        shown: Whether the bar is asked for.
        options: Of ``tqdm``.
    """
    return tqdm(items, disable=not (shown and _redraws(sys.stderr)), **options)


def _redraws(stream: Any) -> bool:
    """Return whether a stream shows one line over another; that of Jupyter denies it."""
    terminal = False
    with suppress(AttributeError, ValueError):  # what takes its place may have no such, or be shut
        terminal = stream.isatty()
    return terminal or type(stream).__module__.startswith("ipykernel.")
