"""SIGTERM ends a run as Ctrl-C does: what it has learnt is saved first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def terminated_softly() -> Iterator[None]:
    """Turn SIGTERM into ``SystemExit`` inside a block, where nobody else has a use for it.

    Batch systems and containers send it, some seconds before they kill. Python lets only the main
    thread set a handler; in others, and under a handler of the user's, nothing changes.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is _exit:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
