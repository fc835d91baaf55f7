"""The data of a run, beside those of its training."""

from pathlib import Path
from typing import Any

from pyro_vae.cli.datasets import is_file
from pyro_vae.cli.known_files import contents, is_readable, recalled


def is_other(folder: Path, settings: dict[str, Any], data: str | None) -> bool:
    """Return whether data are others than those of a run's training; None are these.

    A copy of the file is the file. One that has changed at its place is it too: its rows are
    divided as the training divided them, and `tell_of_changed_rows` warns.

    Arguments:
        folder: of the run.
        settings: of the run.
        data: a file, or the name of a set.
    """
    if data is None:
        return False
    if not is_file(settings, data) or not is_file(settings, settings["data"]):
        return data != settings["data"]
    return not recalled(folder, "data", settings["data"]).is_meant(data)


def tell_of_changed_rows(settings: dict[str, Any], way_out: str) -> None:
    """Warn of a file that is not what its run saw, where its rows are to be judged as divided.

    Arguments:
        settings: what `open_run` returned. Of a run of Python nobody knows what it saw.
        way_out: what the user of a command can do.
    """
    data = str(settings["data"])
    if is_file(settings, data) and not settings.get("undivided") and not settings["other"]:
        then = f"and what counts as new may be rows of the training; {way_out}"
        recalled(Path(settings["run"]), "data", data).tell_of_change(data, then)


def data_of(settings: dict[str, Any]) -> str:
    """Return what tells the data of one run from those of another: a name, or what a file holds."""
    data = str(settings["data"])
    return contents(data) if is_file(settings, data) and is_readable(data) else data
