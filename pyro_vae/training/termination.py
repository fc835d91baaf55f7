"""SIGTERM and SIGUSR1 end a run as Ctrl-C does: what it has learnt is saved first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

# Batch systems and containers send the first some seconds before they kill, Slurm the other before
# it takes a machine back (--signal=USR1@60). Windows has none of that name.
_SENT = ("SIGTERM", "SIGUSR1")


@contextmanager
def terminated_softly() -> Iterator[None]:
    """Turn these signals into ``SystemExit`` inside a block, where nobody else has a use for them.

    Python lets only the main thread set a handler; in others, and under a handler of the user's,
    nothing changes.
    """
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for name in _SENT:
                if hasattr(signal, name):
                    stack.enter_context(_handled(getattr(signal, name)))
        yield


@contextmanager
def _handled(number: signal.Signals) -> Iterator[None]:
    if signal.getsignal(number) is not signal.SIG_DFL:
        yield
        return
    signal.signal(number, _exit)
    try:
        yield
    finally:
        if signal.getsignal(number) is _exit:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
