"""Files that a run was trained with, data or a program: where each lay, and what was in it.

A name, as it was typed, says neither: it is another file in another working directory, and copies
of a project have files of their own.
"""

import ast
import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

from pyro_vae.callers import of_user
from pyro_vae.data.array_files import PICTURES
from pyro_vae.storage.atomic import atomic_write_text

_BLOCK = 2**20  # bytes


@dataclass(frozen=True)
class KnownFile:
    """A file as a run saw it.

    Arguments:
        place: where it lies.
        sha256: what `contents` said of it at the training.
        name: of what commands take in it, where the settings of the run name something else.
    """

    place: str
    sha256: str
    name: str | None = None

    def lies_at(self, path: Path) -> bool:
        """Return whether a path, relative or through links, is the place."""
        return path.resolve() == Path(self.place)

    def is_unchanged(self, path: Path) -> bool:
        """Return whether a file holds what the run saw."""
        return path.exists() and contents(path) == self.sha256

    def is_at(self, path: Path) -> bool:
        """Return whether a file is this one, by its place (changed or not) or by its contents."""
        return path.exists() and (self.lies_at(path) or self.is_unchanged(path))

    def found(self, typed: str) -> str:
        """Return from where the file can be read now: at its place, or by its name as typed.

        A copy stands for a file that has gone or changed; else the place has its neighbours too.
        """
        path, place = Path(typed), Path(self.place)
        if not path.exists() or not place.exists():
            return typed if path.exists() else self.place  # its reader says what is missing
        restored = self.lies_at(path) or (self.is_unchanged(path) and not self.is_unchanged(place))
        return typed if restored else self.place


def known_file(path: Path) -> KnownFile | None:
    """Return a file as it is now; None where there is none."""
    return KnownFile(str(path.resolve()), contents(path)) if path.exists() else None


def remember(folder: Path, what: str, known: KnownFile | None) -> None:
    """Write into a run folder what is known of a file, where it is anything new.

    Arguments:
        folder: of the run.
        what: "data" or "program".
        known: None writes nothing.
    """
    if known is not None and known != recalled(folder, what):
        named = {} if known.name is None else {"name": known.name}
        found = {what: known.place, "sha256": known.sha256} | named
        atomic_write_text(folder / f"{what}_path.json", json.dumps(found, indent=2) + "\n")


def recalled(folder: Path, what: str) -> KnownFile | None:
    """Return what is known of a file; None of runs that did not record it."""
    try:
        found = json.loads((folder / f"{what}_path.json").read_text(encoding="utf-8"))
        return KnownFile(str(found[what]), str(found["sha256"]), found.get("name"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_same(known: KnownFile | None, typed: str, before: str) -> bool:
    """Return whether a name as typed means the file of a run.

    Arguments:
        known: of the file; None goes by places alone.
        typed: the name.
        before: the name in the settings of the run.
    """
    path = Path(typed)
    return path.resolve() == Path(before).resolve() if known is None else known.is_at(path)


def found_aloud(folder: Path, what: str, typed: str, then: str, way_out: str = "") -> str:
    """Return from where a file of a run can be read now; warn where that may not be meant.

    Arguments:
        folder: of the run.
        what: "data" or "program".
        typed: its name in the settings of the run.
        then: what follows where it has changed.
        way_out: how to have the file of that name that lies here.
    """
    known = recalled(folder, what)
    if known is None:
        return typed
    path = known.found(typed)
    tell_of_change(folder, what, path, then)
    if path != typed and Path(typed).exists() and not known.is_unchanged(Path(typed)):
        _warn(
            f"{what}: {path} is taken, the file of the run in {folder}; "
            f"{Path(typed).resolve()} differs from it{way_out}"
        )
    return path


def tell_of_change(folder: Path, what: str, path: str, then: str) -> None:
    """Warn of a file that does not hold what a run saw.

    Arguments:
        folder: of the run.
        what: "data" or "program".
        path: of the file.
        then: what follows.
    """
    known = recalled(folder, what)
    if known is not None and Path(path).exists() and not known.is_unchanged(Path(path)):
        _warn(f"{what}: {path} is not what the run in {folder} was trained with, {then}")


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=of_user())


def contents(path: Path) -> str:
    """Return a hash of a file, or of the names and contents of the images in a folder.

    That of a program is one of what it imports from its folder, too.
    """
    found = hashlib.sha256()
    if path.is_dir():
        for each in sorted(each for each in path.iterdir() if each.suffix.lower() in PICTURES):
            found.update(f"{each.name} {contents(each)}\n".encode(errors="surrogateescape"))
        return found.hexdigest()
    files = _with_imports(path.resolve()) if path.suffix == ".py" else [path]
    for each in files:
        with each.open("rb") as file:
            while block := file.read(_BLOCK):
                found.update(block)
    return found.hexdigest()


def _with_imports(program: Path) -> list[Path]:
    """Return the file of a program, and the files and packages beside it that it imports."""
    folder, found, left = program.parent, {program}, [program]
    while left:
        for name in _imported(left.pop()):
            package = folder / name  # without an __init__ it may be a folder of anything
            inside = "**/*.py" if (package / "__init__.py").exists() else "*.py"
            beside = {folder / f"{name}.py", *package.glob(inside)} - found
            more = {each for each in beside if each.is_file()}
            found, left = found | more, [*left, *more]
    return [program, *sorted(found - {program})]


def _imported(path: Path) -> set[str]:
    """Return the modules that a file imports anywhere, by their first names."""
    try:
        nodes = [*ast.walk(ast.parse(path.read_bytes()))]
    except (SyntaxError, ValueError):  # who runs it will say
        return set()
    names = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}
