"""The lock of a run folder: one run writes into it, and a run that was killed gives it up."""

import contextlib
import json
import os
import secrets
import time
from pathlib import Path

from pyro_vae.errors import ConfigError
from pyro_vae.storage.atomic import host, is_running

NAME = "lock.json"
BEAT = 30.0  # seconds between two signs of life
held_here: set[str] = set()  # the locks that runs of this process hold, or are about to
STALE = 3600.0  # seconds without one, after which a run on another machine counts as dead
# The same of a run under this host's name that this machine cannot look for: it was restarted
# meanwhile, or the run is in another container, or on a machine of the same name.
UNSEEN = 300.0
_PROC = Path("/proc")


class FolderLock:
    """A file that names the process that writes into a folder, with the time it last did a step.

    Arguments:
        folder: The run folder; made where absent, and removed again if it stays empty.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._made: list[Path] = []
        self._text = ""
        self._last = 0.0
        self._device: int | None = None  # that the folder is on
        self.was_gone = False  # removed while this run held it

    def acquire(self) -> None:
        """Take the lock, also from a process that is dead.

        Raises:
            ConfigError: Another run holds it; it is named.
        """
        self._make_folder(self.path.parent)
        self._device = device_of(self.path.parent)
        self._text = json.dumps(here() | {"id": secrets.token_hex(8)})
        held_here.add(self._text)
        for _ in range(3):
            if self._create():
                return
            self._remove_stale()
        raise ConfigError(
            f"out: {self.path.parent} is being locked by others; choose another folder"
        )

    def beat(self) -> None:
        """Give a sign of life, if the last is old enough.

        Raises:
            ConfigError: Another run has taken the lock.
        """
        now = time.monotonic()
        if now - self._last > BEAT:
            self._last = now
            self.require()
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def require(self) -> None:
        """Require the lock to be this run's still: one that was long silent may have lost it.

        One that was removed, by hand or by a run that had it meanwhile, is taken again.

        Raises:
            ConfigError: It is another's.
        """
        with contextlib.suppress(OSError):  # the disk is away
            if not self.path.exists():
                self.require_place()
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.was_gone |= self._create()
            text = self.path.read_text(encoding="utf-8", errors="replace")
            owner = owner_of(text)
            if owner is not None and text != self._text:
                raise taken(self.path.parent, owner)

    def require_place(self) -> None:
        """Require a folder, or room for one on the disk where the run began.

        The point where a disk was mounted is on another one: what is written there is hidden when
        the disk is back.

        Raises:
            OSError: There is none; says what is there.
        """
        folder = self.path.parent
        there = next(each for each in (folder, *folder.parents) if each.exists())
        elsewhere = "or save the program elsewhere once the run has ended: pv.save(program, folder)"
        if not there.is_dir():
            raise NotADirectoryError(
                f"out: {there} is a file now, expected a folder of the run; move it away, "
                f"{elsewhere}"
            )
        if device_of(there) != self._device:
            raise FileNotFoundError(
                f"out: {folder} has gone with its disk: {there} is on another one; mount it again, "
                f"{elsewhere}"
            )

    def release(self) -> None:
        """Remove the lock, and the folders that were made for it and are empty."""
        held_here.discard(self._text)
        with contextlib.suppress(OSError):
            if self.path.read_text(encoding="utf-8", errors="replace") == self._text:
                self.path.unlink()
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _make_folder(self, folder: Path) -> None:
        absent = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._made = absent  # the innermost first

    def _create(self) -> bool:
        # Written beside it and linked: whoever finds a lock finds all of it.
        draft = self.path.with_name(f".{NAME}.{secrets.token_hex(4)}.tmp")
        try:
            draft.write_text(self._text, encoding="utf-8")
            try:
                os.link(draft, self.path)
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                with open(self.path, "x", encoding="utf-8") as stream:
                    stream.write(self._text)
        except FileExistsError:
            return False
        finally:
            with contextlib.suppress(OSError):
                draft.unlink()
        self._last = time.monotonic()
        return True

    def _remove_stale(self) -> None:
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
            age = time.time() - self.path.stat().st_mtime
        except FileNotFoundError:
            return
        owner = owner_of(text)
        if owner is None and age < BEAT:  # just being written, perhaps
            raise in_use(self.path.parent, "another process", age)
        if owner is not None and self.is_alive(owner, age, text):
            raise in_use(self.path.parent, named(owner), age)
        moved = self.path.with_name(f".{NAME}.{secrets.token_hex(4)}.tmp")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, moved)
            if moved.read_text(encoding="utf-8", errors="replace") != text:
                with contextlib.suppress(OSError):  # another was faster: it keeps its lock
                    os.link(moved, self.path)
            moved.unlink()

    @staticmethod
    def is_alive(owner: dict[str, object], age: float, text: str, unseen: float = UNSEEN) -> bool:
        pid, start = owner["pid"], owner.get("start")
        if owner["host"] != host() or not isinstance(pid, int):
            return age < STALE
        if owner.get("processes") not in (None, processes()):
            return age < unseen
        if pid == os.getpid():
            return (
                text in held_here
            )  # else an interrupt ended a run just before it gave its lock up
        # The number of a dead process may be given out again: then the start is another.
        return is_running(pid) and (start is None or start_of(pid) in (None, start))


def named(owner: dict[str, object]) -> str:
    """Return the name of the process that holds a lock."""
    return f"process {owner['pid']} on {owner['host']}"


def in_use(where: Path | str, owner: str, age: float) -> ConfigError:
    """Return the refusal of a folder that a run is writing into."""
    return ConfigError(
        f"out: {where} is in use by {owner}, whose last sign of life is {max(age, 0.0):.0f} s old; "
        f"choose another folder, or wait for that run (if it is dead, remove {NAME})"
    )


def taken(where: Path | str, owner: dict[str, object]) -> ConfigError:
    """Return the error of a run whose folder has been locked by another one meanwhile."""
    return ConfigError(
        f"out: {named(owner)} has begun a run in {where} as well; choose another folder for one of "
        "the two"
    )


def device_of(path: Path) -> int:
    """Return the number of the device that a file or folder is on."""
    return path.stat().st_dev


def owner_of(text: str) -> dict[str, object] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and {"pid", "host"} <= found.keys() else None


def here() -> dict[str, object]:
    """Return what names this process, among all that may reach a folder."""
    pid = os.getpid()
    return {"pid": pid, "host": host(), "processes": processes(), "start": start_of(pid)}


def processes() -> str | None:
    """Return what numbers the processes that this one sees: a start of a machine, a container."""
    try:
        boot = (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="utf-8")
        return f"{boot.strip()} {os.readlink(_PROC / 'self' / 'ns' / 'pid')}"
    except OSError:
        return None


def start_of(pid: int) -> str | None:
    """Return when a process was started, in a form of this machine's own; None if it hides it."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        return text.rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None
