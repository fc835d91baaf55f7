"""``report.html`` of a run folder: one file, pictures inside, that a person can mail."""

import base64
import csv
import json
from html import escape
from pathlib import Path
from typing import Any

from pyro_vae.storage.atomic import atomic_write_text

NAME = "report.html"
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;"
    "color:#222}table{border-collapse:collapse}td,th{padding:.15em 1.2em .15em 0;text-align:left;"
    "vertical-align:top;border-bottom:1px solid #ddd}img{max-width:100%}"
    "pre{white-space:pre-wrap}h2{margin-top:2em}"
)


def write_report(folder: Path) -> Path:
    """Write what lies in a run folder as one page; what a command adds is there at once.

    Arguments:
        folder: of the run, with ``train.json``.
    """
    parts = [f"<h1>{escape(folder.resolve().name)}</h1>"]
    for name, title in (("evaluation", "Evaluation"), ("refined", "Refined posteriors")):
        found = _read(folder / f"{name}.json")
        parts += [f"<h2>{title}</h2>", _table(found)] if found else []
    verdict = _read(folder / "diagnosis.json").get("verdict")
    parts += [f"<h2>Diagnosis</h2><pre>{escape(str(verdict))}</pre>"] if verdict else []
    parts += _training(folder / "history.csv")
    for picture in sorted(folder.glob("*.png")):
        content = base64.b64encode(picture.read_bytes()).decode()
        title = escape(picture.stem.replace("_", " "))
        parts.append(f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{content}">')
    parts += ["<h2>Settings</h2>", _table(_read(folder / "train.json"))]
    head = f'<meta charset="utf-8"><title>{escape(folder.resolve().name)}</title>'
    page = f"<!doctype html><html><head>{head}<style>{_STYLE}</style></head><body>\n"
    path = folder / NAME
    atomic_write_text(path, page + "\n".join(parts) + "\n</body></html>\n")
    return path


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
    def shown(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name}: {shown(each)}" for name, each in value.items())
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    cells = [
        f"<tr><th>{escape(name.replace('_', ' '))}</th><td>{escape(shown(value))}</td></tr>"
        for name, value in figures.items()
        if value is not None
    ]
    return f"<table>{''.join(cells)}</table>"
