"""The table of graph trust: a JSON of every answer, and its counts."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.graph_trust.training import MODES
from benchmarks.results import FOLDER, Result

FILE = FOLDER / "graph_trust.json"
STATES = ("equal", "eager", "different", "SILENT", "broken")


def known(path: Path = FILE) -> dict[str, Any]:
    """Return the rows measured before."""
    return json.loads(path.read_text())["details"]["rows"] if path.exists() else {}


def line(row: Mapping[str, Any]) -> str:
    """Return one program's states, mode by mode."""
    return "  ".join(f"{row[mode]['status']:9s}" for mode in MODES if mode in row)


def counts(rows: Mapping[str, Any]) -> str:
    """Return the table of counts: a row per mode, a column per state."""
    lines = ["| mode | " + " | ".join(STATES) + " |", "|---|" + "---|" * len(STATES)]
    for mode in MODES:
        found = Counter(row[mode]["status"] for row in rows.values() if mode in row)
        lines.append(f"| {mode} | " + " | ".join(str(found[s]) for s in STATES) + " |")
    return "\n".join(lines)


def write(
    rows: Mapping[str, Any], path: Path = FILE, cost: Mapping[str, Any] | None = None
) -> None:
    """Write the JSON of all answers, with what the checks cost, measured now or before."""
    told = [answer for row in rows.values() for answer in row.values()]
    before = json.loads(path.read_text())["details"] if path.exists() else {}
    Result(
        name=path.stem,
        value=sum(answer["status"] == "SILENT" for answer in told),
        stderr=None,
        unit="trainings silently different from eager ones, programs x modes of pv.fit(compile=)",
        estimator="loss of each step, gradients of each epoch, trained weights, at equal noise",
        published="-",
        target="0",
        data="made up, of the shapes of each program",
        binarization="none",
        seed=0,
        seconds=sum(answer["cpu_seconds"] for answer in told),
        details={
            "cost": {**before.get("cost", {}), **(cost or {})},
            "programs": len(rows),
            "counts": {
                mode: dict(Counter(row[mode]["status"] for row in rows.values() if mode in row))
                for mode in MODES
            },
            "rows": dict(rows),
        },
        command="python -m benchmarks.graph_trust --source DIR",
    ).write(path.parent)
