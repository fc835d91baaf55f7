"""Workers of a loader, which a signal that ends a run reaches too."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


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
