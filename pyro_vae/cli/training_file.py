"""The file that a run was trained on: where it lay, and what was in it.

Its name, as it was typed, says neither: it is another file in another working directory, and
copies of a project have files of their own.
"""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

from pyro_vae.callers import of_user
from pyro_vae.cli.datasets import SETS, kind_of
from pyro_vae.data.array_files import PICTURES
from pyro_vae.storage.atomic import atomic_write_text

_RECORD = "data_path.json"
_BLOCK = 2**20  # bytes


def is_file(settings: dict[str, Any], data: str) -> bool:
    """Return whether data are a file, and no named set of what the model of a run is of."""
    return data not in SETS[kind_of(settings["model"])]


def describe_file(settings: dict[str, Any]) -> dict[str, str]:
    """Return where the file of a run lies, and its contents; nothing of a set or of no file."""
    path = Path(settings["data"])
    if not is_file(settings, settings["data"]) or not path.exists():
        return {}
    return {"data": str(path.resolve()), "sha256": contents(path)}


def remember_file(folder: Path, found: dict[str, str]) -> None:
    """Write into a run folder what is known of the file, where it is anything new."""
    if found and found != _known(folder):
        atomic_write_text(folder / _RECORD, json.dumps(found, indent=2) + "\n")


def file_of_training(folder: Path, settings: dict[str, Any]) -> str:
    """Return from where the file of a run's training can be read now.

    Arguments:
        folder: of the run.
        settings: of the run, whose data are a file.
    """
    known, typed = _known(folder), str(settings["data"])
    if not known:
        return typed
    if not Path(known["data"]).exists():
        return typed if Path(typed).exists() else known["data"]  # its reader says what is missing
    here = Path(typed).exists() and (
        _lies_there(Path(typed), known) or _is_known(Path(typed), known)
    )
    return typed if here else known["data"]


def is_other(folder: Path, settings: dict[str, Any], data: str | None) -> bool:
    """Return whether data are others than those of a run's training; None are these.

    A copy of the file is the file. One that has changed at its place is it too, and so is any where
    nobody knows: its rows are divided as the training divided them, and `tell_of_change` warns.

    Arguments:
        folder: of the run.
        settings: of the run.
        data: a file, or the name of a set.
    """
    if data is None:
        return False
    if not is_file(settings, data) or not is_file(settings, settings["data"]):
        return data != settings["data"]
    known, path = _known(folder), Path(data)
    if not known:
        return path.resolve() != Path(settings["data"]).resolve()
    if not path.exists() or _lies_there(path, known) or not _is_certain(known):
        return False
    return not _is_known(path, known)


def tell_of_change(settings: dict[str, Any], way_out: str) -> None:
    """Warn of a file that is not what its run saw, where its rows are to be judged as divided.

    Arguments:
        settings: what `open_run` returned. Of a run of Python nobody knows what it saw.
        way_out: what the user of a command can do.
    """
    data, folder = str(settings["data"]), Path(settings["run"])
    known = {} if settings.get("undivided") or settings["other"] else _known(folder)
    if not known or not is_file(settings, data) or _is_known(Path(data), known):
        return
    doubt = f"may be other data than {known['data']}, of which nobody recorded what was in it,"
    what = "is not as it was" if _is_certain(known) else doubt
    warnings.warn(
        f"data: {data} {what} when the run in {folder} was trained, and what counts as new may be "
        f"rows of the training; {way_out}",
        UserWarning,
        stacklevel=of_user(),
    )


def data_of(settings: dict[str, Any]) -> str:
    """Return what tells the data of one run from those of another: a name, or what a file holds."""
    data, path = str(settings["data"]), Path(settings["data"])
    return contents(path) if is_file(settings, data) and path.exists() else data


def contents(path: Path) -> str:
    """Return a hash of a file, or of the names and contents of the images in a folder."""
    found = hashlib.sha256()
    if path.is_dir():
        for each in sorted(each for each in path.iterdir() if each.suffix.lower() in PICTURES):
            found.update(f"{each.name} {contents(each)}\n".encode(errors="surrogateescape"))
        return found.hexdigest()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _known(folder: Path) -> dict[str, str]:
    """Return what is known of the file; nothing of runs that did not record it.

    Some have recorded where it lay, and not what was in it.
    """
    try:
        found = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return {"data": str(found["data"])} | {k: str(v) for k, v in found.items() if k == "sha256"}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_known(path: Path, known: dict[str, str]) -> bool:
    """Return whether a file is that of the training; by what lies at its place, if need be."""
    if "sha256" in known:
        return contents(path) == known["sha256"]
    place = Path(known["data"])
    return _lies_there(path, known) or (place.exists() and contents(path) == contents(place))


def _is_certain(known: dict[str, str]) -> bool:
    """Return whether there is something to compare a file with."""
    return "sha256" in known or Path(known["data"]).exists()


def _lies_there(path: Path, known: dict[str, str]) -> bool:
    return path.resolve() == Path(known["data"])
