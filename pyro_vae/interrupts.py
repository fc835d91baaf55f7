"""Signals are answered between two steps: in the midst of a line they would break what it holds."""

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

from pyro_vae.stacks import stacks_kept

# Batch systems and containers send the first some seconds before they kill, Slurm the second before
# it takes a machine back (--signal=USR1@60). Windows has none of that name. The third is Ctrl-C.
_SENT = ("SIGTERM", "SIGUSR1", "SIGINT")
# Seconds in which signals are one: Slurm sends them to each process and torchrun to its own.
_BURST = 2.0
_GRACE = 1.0  # seconds to the next step, after which a run is ended where it stands (a slow loader)
_Handler = Callable[[int, FrameType | None], None]


class _Heard:
    """What signals have asked of the run under way, in the thread that hears them."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.end: BaseException | None = None  # what they have asked for
        self.since = 0.0
        self.open = True  # whether one may be answered at once, in the midst of anything
        self.waits = False  # whether the run has yet to answer
        self.lock = threading.RLock()  # held where no signal is sent a second time

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; raise for a second one, and in a forked process (a loader's worker)."""
        now, first = time.monotonic(), self.end is None
        if self.end is None:
            self.end = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
            self.since = now
        if os.getpid() != self.process:
            raise self.again()
        if first and self.waits:
            with suppress(RuntimeError):  # no thread is to be had
                # Not threading.Thread, whose locks the code that is interrupted may hold.
                _thread.start_new_thread(self._insist, (number, threading.get_ident()))
        elif not first and self.open and now - self.since >= _BURST:
            self.since = now
            raise self.again()

    def again(self) -> BaseException:
        """Return what has been asked for, as an error to raise."""
        assert self.end is not None
        return type(self.end)(*self.end.args)

    def answered(self) -> None:
        """Send no signal from here on."""
        before, self.open = self.open, False  # one that broke in would leave the lock held
        with self.lock:
            self.waits = False
        self.open = before

    def _insist(self, number: int, thread: int) -> None:
        """Send the signal a second time where the first has no answer: it wakes who sleeps."""
        time.sleep(_GRACE)
        with self.lock:
            if not self.waits:
                return
            self.since -= _BURST  # it is no part of a burst
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(thread, number)
            else:  # Windows
                _thread.interrupt_main(signal.Signals(number))


_heard: _Heard | None = None


@contextmanager
def terminated_softly() -> Iterator[None]:
    """Let these signals end the block at its next step, where nobody else has a use for them.

    An error raised by a handler goes off in any line, as that which takes a mode of PyTorch off
    its stack, and leaves it there. Hence a signal is noted, and the run asks (``end_if_asked``).
    One that comes to no step within seconds, and one that gets a second signal, is ended where it
    stands; those that come within a moment of one another are one.

    Python lets only the main thread set a handler; in others, and under a handler of the user's,
    nothing changes.

    Raises:
        SystemExit, KeyboardInterrupt: As asked, at the end of the block at the latest.
    """
    global _heard
    if not _hears():
        yield
        return
    if _heard is not None:  # in a callback of a run, which goes on afterwards
        waits = _heard.waits
        try:
            yield
        finally:  # a callback may catch its error
            _heard.waits = waits and _heard.end is None
        return
    heard = _Heard()
    with ExitStack() as stack:
        try:
            _heard = heard
            heard.waits = True
            for name in _SENT:
                if hasattr(signal, name):
                    stack.enter_context(_handled(getattr(signal, name), heard))
            with training_ends():
                yield
        finally:
            heard.open = False  # what comes now breaks into no exit
            heard.answered()
            _heard = None
    if heard.end is not None:
        raise heard.again()


@contextmanager
def training_ends() -> Iterator[None]:
    """End the block as a signal has asked, whatever error it, or what it broke off, has led to."""
    try:
        with stacks_kept(), _as_asked():
            yield
    finally:
        if _heard is not None and _hears():
            _heard.answered()


@contextmanager
def _as_asked() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if _heard is not None and _heard.end is not None and _hears():
            raise _heard.again() from error
        raise


def end_if_asked() -> None:
    """Raise what a signal has asked for, in the thread that hears signals."""
    if _heard is not None and _heard.end is not None and _hears():
        _heard.answered()
        raise _heard.again()


@contextmanager
def unbroken() -> Iterator[None]:
    """Answer a signal at the end of the block, or the second one: a tracer's state is in C++.

    What breaks off a tracer within its own blocks leaves dispatch keys behind that nothing puts
    back (later gradients are refused), or ends the process.

    Raises:
        KeyboardInterrupt: One has come in the block, outside a run, which is asked later.
    """
    if not _hears():
        yield
        return
    if _heard is not None:
        with _heard.lock:
            yield
        return
    heard = _Heard()
    with _handled(signal.SIGINT, heard):
        try:
            yield
        finally:
            heard.open = False
    if heard.end is not None:
        raise heard.again()


def _hears() -> bool:
    return threading.current_thread() is threading.main_thread()


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
