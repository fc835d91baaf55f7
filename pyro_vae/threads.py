"""One thread at a time: Pyro's handlers and the random generators belong to the whole process."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pyro_vae.errors import ConfigError


class _Turn:
    """Who trains now; the same thread may begin again inside (a callback that fits a probe)."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.holder = ""


_turn = _Turn()


def _renew() -> None:
    global _turn
    _turn = _Turn()  # a forked process has none of its parent's threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@contextmanager
def one_thread(verb: str) -> Iterator[None]:
    """Let one thread of this process into a block.

    Raises:
        ConfigError: Another thread is inside.
    """
    turn = _turn
    if not turn.lock.acquire(blocking=False):
        raise ConfigError(
            f"{verb}: thread {turn.holder!r} of this process is training. All threads share Pyro's "
            "handlers and the random generators, so that two runs would change each other's "
            "numbers; run one after the other, or each in a process of its own (multiprocessing)"
        )
    before, turn.holder = turn.holder, threading.current_thread().name
    try:
        yield
    finally:
        turn.holder = before
        turn.lock.release()
