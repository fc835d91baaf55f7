"""The run folder: configuration, history, TensorBoard events, checkpoints and weights.

One at an address has a copy here, into which all is written, and from which it is published.
"""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch

from pyro_vae._version import __version__
from pyro_vae.errors import ConfigError
from pyro_vae.program.program import Program
from pyro_vae.storage.atomic import atomic_write_text
from pyro_vae.storage.bundle import bundle_path
from pyro_vae.storage.checkpoint import has_checkpoint, written
from pyro_vae.storage.events import Events
from pyro_vae.storage.history import History
from pyro_vae.storage.lock import FolderLock
from pyro_vae.storage.paths import local_path, require_room
from pyro_vae.storage.remote import RemoteFolder, is_address
from pyro_vae.storage.remote_lock import RemoteLock
from pyro_vae.storage.save import NAME as PROGRAM
from pyro_vae.storage.save import describe


class RunFolder:
    """A folder that holds one run.

    Arguments:
        path: Made where absent, when there is something to write.
        resume: Whether the run in it goes on.
        events: Whether TensorBoard gets the history.
        remote: What ``path`` is a copy of, if anything.
    """

    def __init__(
        self, path: Path, resume: bool, events: bool = True, remote: RemoteFolder | None = None
    ) -> None:
        self.path = path
        self.name: Path | str = path if remote is None else remote.address
        self.resume = resume
        self._remote = remote
        self._events = Events(path) if events else None
        self._lock: FolderLock | RemoteLock
        self._lock = FolderLock(path) if remote is None else RemoteLock(remote)
        self._config = ""  # as this run has written it
        self._written: Any = None  # when the checkpoint was, as this run knows it

    @classmethod
    def open(cls, path: str | os.PathLike[str], resume: bool, events: bool = True) -> "RunFolder":
        """Return the folder, absent, empty or with the run to go on with; nothing is written.

        Raises:
            ConfigError: It cannot be made, or is an address that cannot be opened, or holds another
                run, or one that cannot be gone on with.
            OSError: The store of an address does not answer.
        """
        remote = RemoteFolder("out", os.fspath(path)) if is_address(path) else None
        folder = local_path("out", path) if remote is None else remote.copy()
        require_room("out", folder)
        found = cls(folder, resume, events, remote)
        found._require_free()
        return found

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out of the folder inside a block.

        Raises:
            ConfigError: Another run is writing into it, or has just begun one there.
            OSError: The folder cannot be made.
        """
        try:
            self._lock.acquire()
            self._require_free()  # looked at again: it may have been taken since
            if self._remote is not None and self._remote.newest() != self._remote.number:
                raise ConfigError(f"out: another run has just written to {self.name}; start anew")
            self._written = written(self.path)
            yield
        finally:
            try:
                self._leave()
            except BaseException:  # an interrupt in its midst
                self._leave()
                raise

    def _leave(self) -> None:
        if self._events is not None:
            self._events.close()
        self._lock.release()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return has_checkpoint(self.path)

    def write_config(self, program: Program, settings: dict[str, Any], changes: list[str]) -> None:
        """Write what was run: program, settings, versions, and what a continuation has changed."""
        path = self.path / "config.json"
        config = {
            **describe(program),
            "fit": settings,
            "versions": {
                "pyro_vae": __version__,
                "torch": torch.__version__,
                "pyro": pyro.__version__,
                "python": platform.python_version(),
            },
            "device": str(program.device),
        }
        changed = _changes_so_far(path) + changes
        if changed:
            config["changed_on_resume"] = changed
        self._config = json.dumps(config, indent=2) + "\n"
        atomic_write_text(path, self._config)

    def log(self, row: dict[str, float], step: int) -> None:
        """Send one row to TensorBoard."""
        if self._events is not None:
            if isinstance(self._lock, FolderLock) and not self._lock.path.exists():
                self._lock.require()  # which makes the folder anew where it was
                if not self._lock.path.exists():  # its disk is away
                    return
            self._events.log(row, step)

    def beat(self) -> None:
        """Show other processes that the run is alive.

        Raises:
            ConfigError: Another run has taken the folder.
        """
        self._lock.beat()

    def require(self) -> None:
        """Require the folder to be this run's still, before it is written to.

        One that was emptied or removed meanwhile is made anew: nothing of another run is in it.

        Raises:
            ConfigError: Another run has taken it, or has had it meanwhile.
            OSError: Its disk is away, or there is a file in its place.
        """
        if isinstance(self._lock, RemoteLock):  # it has a copy of its own: `publish` looks
            return
        if not self._lock.path.exists():
            self._lock.require_place()
        self._lock.require()
        if self._lock.was_gone and written(self.path) not in (None, self._written):
            raise ConfigError(_taken(self.name))
        self._lock.was_gone = False
        self._write_config_anew()

    def _write_config_anew(self) -> None:
        """Write the configuration where it is gone, as in a folder that was emptied meanwhile."""
        path = self.path / "config.json"
        if self._config and not path.exists():
            atomic_write_text(path, self._config)

    def publish(self) -> None:
        """Send what has been written here to the address, if there is one.

        Raises:
            ConfigError: Another run has taken the folder.
            OSError: The store failed; what was there is intact.
        """
        self._written = written(self.path)
        if self._remote is not None and isinstance(self._lock, RemoteLock):
            self._remote.keep_copy()
            try:
                self._lock.require()
                if self._lock.was_gone and self._remote.newest() > self._remote.number:
                    raise ConfigError(_taken(self.name))
                self._lock.was_gone = False
            except (OSError, ConfigError) as error:
                raise type(error)(f"{error}; its files are in {self.path}") from error
            self._remote.write(self.path, tidy=True)

    def write_history(self, history: History) -> None:
        """Write the history, for people."""
        if history.rows:
            history.write_csv(self.path / "history.csv")

    def _require_free(self) -> None:
        folder = self.path
        if (folder / "config.json").exists() and not self.resume:
            raise ConfigError(
                f"out: {self.name} holds another run; choose a new folder, or go on in it by "
                "resume=True (pyro-vae train: --resume true)"
            )
        if self.resume and not self.has_checkpoint and bundle_path(folder, PROGRAM).exists():
            raise ConfigError(
                f"resume: {self.name} holds a trained program and no checkpoint to go on from; "
                "choose a new folder (pv.load reads the program)"
            )


def _taken(folder: Path | str) -> str:
    return (
        f"out: another run has begun and ended in {folder} meanwhile; choose another folder for "
        "one of the two"
    )


def _changes_so_far(path: Path) -> list[str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return list(found.get("changed_on_resume", []))
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return []
