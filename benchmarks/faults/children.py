"""Processes forked from this one, which has imported everything: a trial costs no start."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any

Say = Callable[[str], None]


class Forked:
    """A forked process that runs an action and says lines meanwhile; its last line is its end.

    Arguments:
        action: Is given a function that sends a line; an error becomes the line ``! Type: text``.
    """

    def __init__(self, action: Callable[[Say], Any]) -> None:
        self._ours, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._ours)
            _run(action, theirs)
        os.close(theirs)
        self.text = ""
        self.code: int | None = None

    def read(self, seconds: float = 0.0) -> bool:
        """Read what there is, waiting so long at most; return whether anything came."""
        os.set_blocking(self._ours, False)
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(BlockingIOError):
                found = os.read(self._ours, 1 << 16)
                self.text += found.decode(errors="replace")
                return bool(found)
            if time.monotonic() >= end:
                return False
            time.sleep(0.002)

    def send(self, number: int) -> None:
        """Send a signal, if the process is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def ends_within(self, seconds: float) -> bool:
        """Return whether the process has ended by itself after so long."""
        end = time.monotonic() + seconds
        while not os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if time.monotonic() >= end:
                return False
            time.sleep(0.001)
        return True

    def wait(self, seconds: float) -> bool:
        """Wait for the end; a process that is not done by then is killed, and False returned."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._close(status)
                return True
            time.sleep(0.005)
        self.send(signal.SIGKILL)
        self._close(os.waitpid(self.pid, 0)[1])
        return False

    def _close(self, status: int) -> None:
        self.code = os.waitstatus_to_exitcode(status)
        while self.read():
            pass
        os.close(self._ours)

    @property
    def lines(self) -> list[str]:
        """What it has said so far, whole lines only."""
        return self.text.split("\n")[:-1]

    @property
    def error(self) -> str | None:
        """Its error, ``Type: text``."""
        found = [line[2:] for line in self.lines if line.startswith("! ")]
        return found[-1] if found else None


def _run(action: Callable[[Say], Any], theirs: int) -> None:
    def say(line: str) -> None:
        os.write(theirs, f"{line}\n".encode())

    code = 1
    try:
        action(say)
        code = 0
    except BaseException as error:
        text = " ".join(str(error).split())
        say(f"! {type(error).__module__}.{type(error).__name__}: {text}")
    finally:
        os._exit(code)


def is_ours(error: str | None) -> bool:
    """Return whether the error of a forked process is one that the library raises on purpose."""
    return error is not None and error.startswith("pyro_vae.errors.")
