"""Run folders at an address (``s3://bucket/run``): whole files, and a list of them written last.

``files/<SHA-256>.safetensors`` and the like are contents, each written once and never changed;
``list-00000012.json`` says which file of the folder has which, with a hash of its own. A reader
takes the newest list that is whole. A writer that is killed, or a store that fails, leaves the list
before it, whose contents are removed two lists later. No store has to rename, or to write a file in
one step.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyro_vae.errors import CheckpointError, ConfigError
from pyro_vae.extras import extra
from pyro_vae.storage.lock import NAME as LOCK

_LIST = re.compile(r"list-(\d{8})\.json")
_DIGEST = re.compile(r"[0-9a-f]{64}(\.[A-Za-z0-9]{1,16})?")
Files = dict[str, str]  # the object that holds each file


class RemoteFolder:
    """A folder in a store that fsspec opens.

    Arguments:
        argument: What it was given as, for messages.
        address: As ``protocol://path``.

    Raises:
        ConfigError: No such protocol, or its package is not installed.
    """

    def __init__(self, argument: str, address: str) -> None:
        self.address = address
        self._store, root = _opened(argument, address)
        self._root = root.rstrip("/")
        self.number = 0  # of the list last read or written
        self._kept: Any = None  # removes the copy here in the end

    def copy(self) -> Path:
        """Return a folder of this machine with its files, which goes with this object."""
        home = Path(tempfile.mkdtemp(prefix="pyro_vae-"))
        self._kept = weakref.finalize(self, shutil.rmtree, home, ignore_errors=True)
        self.read(home)
        return home

    def read(self, into: Path, only: Collection[str] | None = None) -> None:
        """Copy files of the newest list that is whole into a folder; there may be none.

        Raises:
            CheckpointError: No list is whole.
            OSError: The store does not answer.
        """
        with self._told("read"):
            for _ in range(3):  # what a writer has removed meanwhile is in no new list
                numbers = self._numbers()
                for number in reversed(numbers):
                    files = self._files(number)
                    if files is not None and self._fetched(files, into, only):
                        self.number = numbers[-1]  # the newest, whole or not: the next one follows
                        return
        if numbers:
            raise CheckpointError(
                f"{self.address}: none of its lists of files is whole; choose another folder, or "
                "restore its objects from a copy"
            )

    def write(self, folder: Path, *, tidy: bool = False) -> None:
        """Put the files of a folder beside those that are there, in the place of those of a name.

        Arguments:
            folder: Its hidden files stay, and its lock.
            tidy: Remove what two lists have not named: for who holds the lock.

        Raises:
            OSError: The store failed; what was there is intact, and the folder here is kept.
        """
        self.keep_copy()
        with self._told("written", f"; its files are in {folder}"):
            numbers = self._numbers()
            before = next(filter(None, map(self._files, reversed(numbers))), {})
            paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
            kept = set(before.values())
            files = before | {n: self._put(p, kept) for n, p in paths.items() if _is_name(n)}
            self.number = max(numbers, default=0) + (files != before)
            if files != before:
                self._store.pipe_file(self._place(self.number), _sealed(files))
        if self._kept is not None:
            self._kept = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        if tidy:
            with contextlib.suppress(Exception):  # what is left over does no harm
                self._tidy(files, before)

    def keep_copy(self) -> None:
        """Keep the copy here though this process ends, until it is written."""
        if self._kept is not None:
            self._kept.detach()

    def newest(self) -> int:
        """Return the number of the newest list, 0 where there is none."""
        with self._told("read"):
            return max(self._numbers(), default=0)

    def text(self) -> str | None:
        """Return the text of the lock, None where there is none."""
        with self._told("read"):
            try:
                return self._store.cat_file(f"{self._root}/{LOCK}").decode(errors="replace")
            except FileNotFoundError:
                return None

    def put_text(self, text: str | None) -> None:
        """Replace the lock, or remove it."""
        with self._told("written"):
            place = f"{self._root}/{LOCK}"
            if text is None:
                self._store.rm_file(place)
            else:
                self._store.makedirs(f"{self._root}/files", exist_ok=True)
                self._store.pipe_file(place, text.encode())

    def _numbers(self) -> list[int]:
        self._store.invalidate_cache()
        try:
            found = self._store.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        names = (_LIST.fullmatch(path.rstrip("/").rpartition("/")[2]) for path in found)
        return sorted(int(name[1]) for name in names if name)

    def _place(self, number: int) -> str:
        return f"{self._root}/list-{number:08d}.json"

    def _files(self, number: int) -> Files | None:
        """Return a list, None where it is not whole."""
        try:
            return _unsealed(self._store.cat_file(self._place(number)))
        except FileNotFoundError:
            return None

    def _fetched(self, files: Files, into: Path, only: Collection[str] | None) -> bool:
        """Copy files, and return whether all of them are what the list says."""
        for name, held in files.items():
            if only is not None and name not in only:
                continue
            path = into / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._store.get_file(f"{self._root}/files/{held}", str(path))
            except FileNotFoundError:
                return False
            if _digest(path) != held.partition(".")[0]:
                return False
        return True

    def _put(self, path: Path, known: set[str]) -> str:
        """Write a content, where the lists do not know it, and return its object."""
        plain = re.fullmatch(r"\.[A-Za-z0-9]{1,16}", path.suffix)  # of events it is the host's name
        held = _digest(path) + (path.suffix if plain else "")
        if held not in known:
            self._store.makedirs(f"{self._root}/files", exist_ok=True)
            self._store.put_file(str(path), f"{self._root}/files/{held}")
            known.add(held)
        return held

    def _tidy(self, files: Files, before: Files) -> None:
        """Remove all lists but the last two, and the contents that these do not name."""
        for number in self._numbers()[:-2]:
            self._store.rm_file(self._place(number))
        kept = {*files.values(), *before.values()}
        for path in self._store.ls(f"{self._root}/files", detail=False):
            if path.rpartition("/")[2] not in kept:
                self._store.rm_file(path)

    @contextmanager
    def _told(self, done: str, more: str = "") -> Iterator[None]:
        """Turn whatever a store raises into one kind of error, with the address."""
        try:
            yield
        except Exception as error:
            raise OSError(
                f"{self.address} cannot be {done} ({type(error).__name__}: {error}){more}"
            ) from error


def is_address(path: Any) -> bool:
    """Return whether a path is one that fsspec opens, not one of this machine or of the Hub."""
    with contextlib.suppress(TypeError):
        path = os.fspath(path)
    address = r"(?!hf:)[A-Za-z][A-Za-z0-9+.:-]+://."
    return isinstance(path, str) and re.match(address, path) is not None


def _opened(argument: str, address: str) -> tuple[Any, str]:
    with extra("remote", f"{argument}={address!r}"):
        from fsspec.core import url_to_fs
    try:
        store, root = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{argument}: got {address!r}, which cannot be opened ({error})"
        ) from None
    return store, root


def _is_name(name: str) -> bool:
    """Return whether a file belongs into a list, and may be written by one."""
    parts = name.split("/")
    return name != LOCK and not any(not p or p[0] == "." or set(p) & set(":\\\0") for p in parts)


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(2**20):
            found.update(piece)
    return found.hexdigest()


def _sealed(files: Files) -> bytes:
    text = json.dumps(files, indent=1)
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "files": text}).encode()


def _unsealed(data: bytes) -> Files | None:
    """Return what was sealed, None where it is not whole, or nothing that this module writes."""
    try:
        found = json.loads(data)
        text = found["files"]
        if hashlib.sha256(text.encode()).hexdigest() != found["sha256"]:
            return None
        files = json.loads(text)
        sane = all(_is_name(n) and _DIGEST.fullmatch(held) for n, held in files.items())
        return files if sane else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
