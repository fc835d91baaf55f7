"""Whose turn it is: Pyro's handlers and the random generators belong to the whole process."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from pyro.poutine.runtime import _PYRO_STACK

from pyro_vae.errors import ConfigError
from pyro_vae.stacks import stacks_kept

PATIENCE = 60.0  # seconds that a verb waits for one of another thread


class _Turn:
    """The thread that runs a program now; the same thread may begin again inside (a callback)."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.owner: int | None = None
        self.training = False


_turn = _Turn()


def _renew() -> None:
    """Begin anew in a forked process: of its parent's threads it has the one that forked."""
    global _turn
    if _turn.owner not in (None, threading.get_ident()):
        _PYRO_STACK.clear()  # handlers of a thread that is not here
    _turn = _Turn()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@contextmanager
def one_thread(verb: str, *, training: bool = False) -> Iterator[None]:
    """Let one thread of this process into a block: the others wait for a verb, not for a training.

    Arguments:
        verb: Who asks, for messages.
        training: Whether the block trains; meanwhile all other threads are refused.

    Raises:
        ConfigError: Another thread trains, or has been inside for a minute.
    """
    turn = _turn
    if not turn.lock.acquire(blocking=False):
        _wait(turn, verb)
    before = turn.owner, turn.training
    try:
        turn.owner, turn.training = threading.get_ident(), training or turn.training
        with stacks_kept() if before[0] is None else nullcontext():
            yield
    finally:
        turn.owner, turn.training = before
        turn.lock.release()


def require_turn(verb: str) -> None:
    """Refuse a verb while another thread trains, before it draws a number.

    Raises:
        ConfigError: Names that thread.
    """
    if _turn.training and _turn.owner != threading.get_ident():
        raise _refusal(_turn, verb, "is training")


def another_runs() -> bool:
    """Return whether a thread other than this one runs a program."""
    return _turn.owner not in (None, threading.get_ident())


def _wait(turn: _Turn, verb: str) -> None:
    start = time.monotonic()
    while not turn.lock.acquire(timeout=0.05):
        if turn.training:
            raise _refusal(turn, verb, "is training")
        if time.monotonic() - start > PATIENCE:
            raise _refusal(turn, verb, f"has been in a verb for {PATIENCE:.0f} s")


def _refusal(turn: _Turn, verb: str, what: str) -> ConfigError:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return ConfigError(
        f"{verb}: thread {names.get(turn.owner, 'unknown')!r} of this process {what}. All threads "
        "share Pyro's handlers and the random generators, so that each would change the other's "
        "numbers; call one after the other (in a callback of the run, say), or use a process for "
        "each (multiprocessing)"
    )
