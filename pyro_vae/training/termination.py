"""Signals end a run as Ctrl-C does: what it has learnt is saved first."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

# Batch systems and containers send the first some seconds before they kill, Slurm the second before
# it takes a machine back (--signal=USR1@60). Windows has none of that name. The third is Ctrl-C.
_SENT = ("SIGTERM", "SIGUSR1", "SIGINT")
# Seconds in which signals are one: Slurm sends them to each process and torchrun to its own.
_BURST = 2.0
_Handler = Callable[[int, FrameType | None], None]
_lost: list[BaseException] = []  # what a signal has raised where Python drops errors


@contextmanager
def terminated_softly() -> Iterator[None]:
    """Turn these signals into ``SystemExit`` inside a block, where nobody else has a use for them.

    Those that come within a moment of one another end the run once: a second one would break into
    the last writes. Python lets only the main thread set a handler; in others, and under a handler
    of the user's, nothing changes.

    One that falls into a ``__del__`` or a callback of a weak reference, where Python drops errors,
    ends the run at its next step (``end_if_asked``), or at the end of the block.
    """
    last = [-_BURST]
    raised: list[BaseException] = []

    def end(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - last[0] >= _BURST:
            last[0] = now
            asked = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
            raised[:] = [asked]
            raise asked

    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(_drops_noted(raised))
            for name in _SENT:
                if hasattr(signal, name):
                    stack.enter_context(_handled(getattr(signal, name), end))
        yield


def end_if_asked() -> None:
    """Raise what a signal has asked for in vain, in the thread that hears signals."""
    if _lost and threading.current_thread() is threading.main_thread():
        lost = _lost.pop()
        raise type(lost)(*lost.args)


@contextmanager
def _drops_noted(raised: list[BaseException]) -> Iterator[None]:
    """Note where Python drops one of these errors inside, and raise it at the end of the block."""
    before = sys.unraisablehook

    def note(dropped: Any) -> None:
        if dropped.exc_value in raised:
            _lost[:] = [dropped.exc_value]
        else:
            before(dropped)

    sys.unraisablehook = note
    try:
        yield
    except BaseException:
        _lost[:] = [each for each in _lost if each not in raised]  # it ends for another reason
        raise
    finally:
        if sys.unraisablehook is note:
            sys.unraisablehook = before
    end_if_asked()


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
