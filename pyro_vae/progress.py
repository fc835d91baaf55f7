"""Progress bars, where somebody can watch them."""

import sys
from contextlib import suppress
from typing import Any

from torch import distributed
from tqdm import tqdm

DELAY = 2.0  # seconds: an answer that is there sooner needs no bar


def progress_bar(items: Any = None, *, shown: bool, verb: str | None = None, **options: Any) -> Any:
    """Return a bar over items, drawn on stderr where that is a terminal or a notebook's.

    A file or a pipe would get all states of the bar, one behind the other, and so would a terminal
    those of several processes: the first draws.

    Arguments:
        items: What to iterate over; None for a bar that is moved by hand.
        shown: Whether the bar is asked for.
        verb: What is asked; its bar comes after two seconds and goes with the answer. None: at
            once, and to stay.
        options: Of ``tqdm``.
    """
    if verb is not None:
        options |= {"desc": verb, "leave": False, "delay": DELAY}
    return tqdm(items, disable=not (shown and _first() and _redraws(sys.stderr)), **options)


def _first() -> bool:
    """Return whether this process is the first, or alone."""
    return not (distributed.is_available() and distributed.is_initialized()) or (
        distributed.get_rank() == 0
    )


def _redraws(stream: Any) -> bool:
    """Return whether a stream shows one line over another; that of Jupyter denies it."""
    terminal = False
    with suppress(AttributeError, ValueError):  # what takes its place may have no such, or be shut
        terminal = stream.isatty()
    return terminal or type(stream).__module__.startswith("ipykernel.")
