"""Signals end a run as Ctrl-C does: what it has learnt is saved first."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

# Batch systems and containers send the first some seconds before they kill, Slurm the second before
# it takes a machine back (--signal=USR1@60). Windows has none of that name. The third is Ctrl-C.
_SENT = ("SIGTERM", "SIGUSR1", "SIGINT")
# Seconds in which signals are one: Slurm sends them to each process and torchrun to its own.
_BURST = 2.0
_Handler = Callable[[int, FrameType | None], None]


@contextmanager
def terminated_softly() -> Iterator[None]:
    """Turn these signals into ``SystemExit`` inside a block, where nobody else has a use for them.

    Those that come within a moment of one another end the run once: a second one would break into
    the last writes. Python lets only the main thread set a handler; in others, and under a handler
    of the user's, nothing changes.
    """
    last = [-_BURST]

    def end(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - last[0] >= _BURST:
            last[0] = now
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for name in _SENT:
                if hasattr(signal, name):
                    stack.enter_context(_handled(getattr(signal, name), end))
        yield


@contextmanager
def _handled(number: signal.Signals, end: _Handler) -> Iterator[None]:
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    if signal.getsignal(number) is not usual:
        yield
        return
    signal.signal(number, end)
    try:
        yield
    finally:
        if signal.getsignal(number) is end:
            signal.signal(number, usual)


@contextmanager
def ended_workers_unheard() -> Iterator[None]:
    """Let workers of a loader end inside, which a signal to all of a run's processes reaches too.

    torch's handler raises at the end of each, in the midst of a write as well.
    """
    number = getattr(signal, "SIGCHLD", None)  # which Windows lacks
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL if before is None else before)
