"""``report.html`` of a run folder: one file, pictures inside, that a person can mail."""

import base64
import csv
import json
from html import escape
from pathlib import Path
from typing import Any

from pyro_vae.cli.answer_files import WEIGHTS, weights_in, weights_of_picture
from pyro_vae.cli.cell_scores import UNITS
from pyro_vae.storage.atomic import atomic_write_text

NAME = "report.html"
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;"
    "color:#222;background:#fff}h1,td{overflow-wrap:anywhere}table{border-collapse:collapse}"
    "td,th{padding:.15em 1.2em .15em 0;text-align:left;vertical-align:top;"
    "border-bottom:1px solid #ddd}figure{margin:0;overflow-x:auto}"
    "img{max-width:100%}pre{white-space:pre-wrap;overflow-wrap:anywhere}h2{margin-top:2em}"
    "@media(max-width:40em){img{max-width:none}}"  # letters stay legible, and wide pictures scroll
)
_UNITS = "Bounds, likelihoods and KL: nats per datum; KL of globals: nats of all data."
_LEFT_OUT = (
    "Left out, because the run has gone on since, until the commands that wrote them run again"
)
_TITLES = {"evaluation": "Evaluation", "refined": "Refined posteriors"}
_SITES = 12  # of a figure for each site
_PIXELS = 150 / 96  # of a picture for each of the page


def write_report(folder: Path) -> Path:
    """Write what lies in a run folder as one page; what a command adds is there at once.

    What is of other weights than those of the folder is left out, and named: the run has gone on.

    Arguments:
        folder: of the run, with ``train.json``.
    """
    parts = [f"<h1>{escape(folder.resolve().name)}</h1>"]
    figures = {name: _read(folder / f"{name}.json") for name in ("diagnosis", *_TITLES)}
    pictures = sorted(folder.glob("*.png"))
    older = _of_other_weights(folder, figures, pictures)
    for name, title in _TITLES.items():
        found = {} if f"{name}.json" in older else figures[name]
        shown = {k: v for k, v in found.items() if k != WEIGHTS}
        parts += [f"<h2>{title}</h2>", _table(shown)] if shown else []
        parts += [f"<p>{_UNITS}</p>"] if found and name == "evaluation" else []
        parts += [f"<p>In evaluations, {UNITS}.</p>"] if "cells" in found else []
    verdict = None if "diagnosis.json" in older else figures["diagnosis"].get("verdict")
    parts += [f"<h2>Diagnosis</h2><pre>{escape(str(verdict))}</pre>"] if verdict else []
    parts += [f"<p>{_LEFT_OUT}: {escape(', '.join(older))}.</p>"] if older else []
    parts += _training(folder / "history.csv")
    for picture in pictures:
        if picture.name in older:
            continue
        title = escape(picture.stem.replace("_", " ").capitalize())
        parts.append(f"<h2>{title}</h2><figure>{_picture(picture.read_bytes(), title)}</figure>")
    parts += ["<h2>Settings</h2>", _table(_read(folder / "train.json"))]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{escape(folder.resolve().name)}</title>"
    page = f"<!doctype html><html><head>{head}<style>{_STYLE}</style></head><body>\n"
    path = folder / NAME
    atomic_write_text(path, page + "\n".join(parts) + "\n</body></html>\n")
    return path


def _of_other_weights(
    folder: Path, figures: dict[str, dict[str, Any]], pictures: list[Path]
) -> list[str]:
    """Return the names of files of figures and of pictures that are of no weights of the folder.

    What does not say of which weights it is, another program has written.
    """
    now = weights_in(folder)
    found = {f"{name}.json": each.get(WEIGHTS) for name, each in figures.items()}
    found |= {path.name: weights_of_picture(path) for path in pictures}
    return [name for name, weights in found.items() if weights not in (None, now)]


def _picture(png: bytes, title: str) -> str:
    """Return a picture within the page, as large as on paper where there is room."""
    width = round(int.from_bytes(png[16:20], "big") / _PIXELS)  # its header begins so
    content = base64.b64encode(png).decode()
    return f'<img alt="{title}" width="{width}" src="data:image/png;base64,{content}">'


def _read(path: Path) -> dict[str, Any]:
    """Return a file of figures; nothing where it is not there or none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _training(path: Path) -> list[str]:
    """Return the last line of the history."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except OSError:
        return []
    last = {name: float(value) if value else None for name, value in (rows or [{}])[-1].items()}
    return ["<h2>Training, last epoch</h2>", _table(last)] if rows else []


def _table(figures: dict[str, Any]) -> str:
    """Return figures as rows, their errors beside them, one line for each site."""
    cells = [
        f"<tr><th>{escape(name.replace('_', ' '))}</th>"
        f"<td>{_cell(value, figures.get(f'{name}_stderr'))}</td></tr>"
        for name, value in figures.items()
        if value is not None and name.removesuffix("_stderr") not in figures.keys() - {name}
    ]
    return f"<table>{''.join(cells)}</table>"


def _cell(value: Any, error: Any) -> str:
    if isinstance(value, dict):
        errors = error if isinstance(error, dict) else {}
        lines = [f"{escape(name)}: {_cell(each, errors.get(name))}" for name, each in value.items()]
        more = [f"and {len(lines) - _SITES} more"] if len(lines) > _SITES else []
        return "<br>".join([*lines[:_SITES], *more])
    return escape(_number(value) + ("" if error is None else f" ± {_error(error)}"))


def _error(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
