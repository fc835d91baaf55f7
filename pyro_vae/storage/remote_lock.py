"""The lock of a run folder at an address: an object that names the process that writes there."""

import contextlib
import json
import secrets
import time

from pyro_vae.storage.lock import FolderLock, held_here, here, in_use, named, owner_of, taken
from pyro_vae.storage.remote import RemoteFolder

BEAT = 300.0  # seconds between two signs of life: each is a request


class RemoteLock:
    """A lock that holds unless two runs begin within the same moment; then one stops at a beat.

    Object stores have no step that makes an object where there is none.

    Arguments:
        folder: What is locked.
    """

    def __init__(self, folder: RemoteFolder) -> None:
        self._folder = folder
        self._id = secrets.token_hex(8)
        self._last = 0.0
        self.was_gone = False  # removed while this run held it

    def acquire(self) -> None:
        """Take the lock, also from a process that is dead.

        Raises:
            ConfigError: Another run holds it; it is named.
            OSError: The store cannot be written.
        """
        text = self._folder.text()
        owner = owner_of(text) if text is not None else None
        if owner is not None:
            beat = owner.get("beat")
            age = time.time() - beat if isinstance(beat, int | float) else 0.0
            if FolderLock.is_alive(owner, age, str(owner.get("id")), unseen=3 * BEAT):
                raise in_use(self._folder.address, named(owner), age)
        held_here.add(self._id)
        self._write()
        self.require()

    def beat(self) -> None:
        """Give a sign of life, if the last is old enough.

        Raises:
            ConfigError: Another run has taken the lock.
        """
        if time.monotonic() - self._last > BEAT:
            self._last = time.monotonic()  # a store that is away is not asked at each step
            with contextlib.suppress(OSError):
                self.require()
                self._write()

    def require(self) -> None:
        """Require the lock to be this run's still; one that was removed is taken again.

        Raises:
            ConfigError: It is another's.
        """
        text = self._folder.text()
        if text is None:
            self.was_gone = True
            self._write()
        owner = owner_of(text or "")
        if owner is not None and owner.get("id") != self._id:
            raise taken(self._folder.address, owner)

    def release(self) -> None:
        """Remove the lock."""
        held_here.discard(self._id)
        with contextlib.suppress(OSError):
            owner = owner_of(self._folder.text() or "")
            if owner is not None and owner.get("id") == self._id:
                self._folder.put_text(None)

    def _write(self) -> None:
        self._folder.put_text(json.dumps(here() | {"id": self._id, "beat": time.time()}))
        self._last = time.monotonic()
