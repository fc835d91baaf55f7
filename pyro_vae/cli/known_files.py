"""Files that a run was trained with, data or a program: where each lay, and what was in it.

A name, as it was typed, says neither: it is another file in another working directory, and copies
of a project have files of their own.
"""

import hashlib
import json
import os
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pyro_vae.callers import of_user
from pyro_vae.data.array_files import PICTURES
from pyro_vae.storage.atomic import atomic_write_text

_BLOCK = 2**20  # bytes
_MANY = 100  # folders, whose modules are not compared


@dataclass(frozen=True)
class KnownFile:
    """A file as a run saw it.

    Arguments:
        folder: of the run.
        what: "data" or "program".
        place: where it lies.
        sha256: what `contents` said of it at the training; None of runs that did not record it.
        said: the last other ``file.py:name`` that a command was told to take for it.
    """

    folder: Path
    what: str
    place: str
    sha256: str | None = None
    said: str | None = None

    def lies_at(self, path: str) -> bool:
        """Return whether a path, relative or through links, is the place."""
        return os.path.realpath(path) == os.path.realpath(self.place)

    def is_in(self, path: str) -> bool:
        """Return whether a file holds what the run saw; what lies at the place, if need be."""
        known = self.sha256
        if known is None and is_readable(self.place):
            known = contents(self.place)
        return is_readable(path) and contents(path) == known

    def is_kept(self) -> bool:
        """Return whether the file lies where it did, as it was."""
        return self.sha256 is not None and self.is_in(self.place)

    def is_meant(self, path: str) -> bool:
        """Return whether a file is this one, by its place (changed or not) or by its contents."""
        return is_readable(path) and (self.lies_at(path) or self.is_in(path))

    def found(self, typed: str) -> str:
        """Return from where the file can be read now: at its place, or by its name as typed.

        A copy stands for a file that has gone or changed; else the place has its neighbours too.
        """
        if not is_readable(self.place) or not is_readable(typed):
            return typed if is_readable(typed) else self.place  # its reader says what is missing
        if self.lies_at(typed) or (self.is_in(typed) and not self.is_in(self.place)):
            return typed
        return self.place

    def tell_of_change(self, path: str, then: str) -> None:
        """Warn of a file that does not hold what the run saw, and say what follows."""
        if is_readable(path) and not self.is_in(path):
            what = f"{path} {'may not be' if self.sha256 is None else 'is not'} what the run"
            _warn(f"{self.what}: {what} in {self.folder} was trained with, {then}")

    def tell_of_namesake(self, path: str, typed: str, way_out: str = "") -> None:
        """Warn of another file of the name as typed, where a path is taken in its stead.

        A copy of data is the data; that of a program may import other modules beside it.
        """
        taken, here = os.path.realpath(path), os.path.realpath(typed)
        if here == taken or not is_readable(here):
            return
        copied = self.is_in(here)
        if not copied or (self.what == "program" and _has_other_modules(here, taken)):
            differs = "may import other modules than it" if copied else "differs from it"
            _warn(
                f"{self.what}: {path} is taken, the file of the run in {self.folder}; "
                f"{here} {differs}{way_out}"
            )

    def tell_of_copy(self, path: str, way_out: str = "") -> None:
        """Warn of a copy that is taken since what lies at the place has changed."""
        if not self.lies_at(path) and is_readable(self.place):
            _warn(
                f"{self.what}: {path} is taken, as the run in {self.folder} was trained with it; "
                f"{self.place} has changed since, and other modules may lie beside it{way_out}"
            )

    def remember(self) -> None:
        """Write this into the run folder, where it is anything new."""
        found = {self.what: self.place, "sha256": self.sha256, "said": self.said}
        known = {name: value for name, value in found.items() if value is not None}
        path, text = _record(self.folder, self.what), json.dumps(known, indent=2) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
            atomic_write_text(path, text)


def recalled(folder: Path, what: str, typed: str) -> KnownFile:
    """Return what is known of a file: its name alone, of runs that recorded nothing else.

    Arguments:
        folder: of the run.
        what: "data" or "program".
        typed: the name of the file in the settings of the run.
    """
    try:
        found = json.loads(_record(folder, what).read_text(encoding="utf-8"))
        texts = {key: found[key] for key in ("sha256", "said") if isinstance(found.get(key), str)}
        return KnownFile(folder, what, os.path.realpath(found[what] or typed), **texts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return KnownFile(folder, what, os.path.realpath(typed))


def known_file(folder: Path, what: str, path: str) -> KnownFile | None:
    """Return a file as it is now; None where there is none."""
    if not is_readable(path):
        return None
    return KnownFile(folder, what, os.path.realpath(path), contents(path))


def is_readable(path: str) -> bool:
    """Return whether a path can be read; what may not be read is not there."""
    return os.access(path, os.R_OK)


def contents(path: str) -> str:
    """Return a hash of a file, or of the names and contents of the images in a folder."""
    if os.path.isdir(path):
        found = hashlib.sha256()
        for each in sorted(
            each for each in os.listdir(path) if Path(each).suffix.lower() in PICTURES
        ):
            text = f"{each} {contents(os.path.join(path, each))}\n"
            found.update(text.encode(errors="surrogateescape"))
        return found.hexdigest()
    state = os.stat(path)
    return _contents(os.path.realpath(path), state.st_size, state.st_mtime_ns)


@cache
def _contents(path: str, size: int, mtime_ns: int) -> str:
    """Return a hash of a file of that size and time: one command asks for it at several places."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _has_other_modules(copy: str, program: str) -> bool:
    """Return whether a copy of a program may import other modules beside it than the program."""
    near = _modules_beside(copy)
    if near is None:
        return True
    there = _modules_beside(program) if near else {}
    if there is None or (near and near.keys() != there.keys()):
        return True
    return any(contents(path) != contents(there[name]) for name, path in near.items())


def _modules_beside(program: str) -> dict[str, str] | None:
    """Return the other Python files around one, by their names; None of those in many folders."""
    home = os.path.dirname(program)
    found: dict[str, str] = {}
    for count, (folder, below, names) in enumerate(os.walk(home, followlinks=True)):
        if count == _MANY:
            return None
        below[:] = [each for each in below if each[0] != "."]
        paths = (os.path.join(folder, name) for name in names if name.endswith(".py"))
        found |= {os.path.relpath(path, home): path for path in paths if path != program}
    return found


def _record(folder: Path, what: str) -> Path:
    return folder / f"{what}_path.json"


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=of_user())
