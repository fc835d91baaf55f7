"""What a user has been warned of: once each, and nothing that a silent look alone has met."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pyro_vae.callers import of_user

_SILENT = ContextVar("silent", default=False)
Key = tuple[str, str]  # the kind of warning, and the site


@contextmanager
def silent() -> Iterator[None]:
    """Drop a program's own warnings of rows that no user has given."""
    before = _SILENT.set(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _SILENT.reset(before)


def silenced() -> bool:
    """Return whether warnings are dropped."""
    return _SILENT.get()


class Told:
    """Warnings of sites, each given once; what a silent look meets waits until one is heard."""

    def __init__(self) -> None:
        self._given: set[Key] = set()
        self._waiting: dict[Key, str] = {}

    def __contains__(self, key: Key) -> bool:
        """Return whether a warning is known: there is no need to look for it again."""
        return key in self._given or key in self._waiting

    def warn(self, key: Key, message: str) -> None:
        """Give a warning that has not been given; in a silent look, once that is over."""
        if key not in self:
            self._waiting[key] = message
            self.give()

    def give(self) -> None:
        """Give the warnings that wait, where they are heard."""
        if silenced():
            return
        for key in list(self._waiting):
            self._given.add(key)
            warnings.warn(self._waiting.pop(key), UserWarning, stacklevel=of_user())
