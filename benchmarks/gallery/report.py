"""The table of the gallery: a JSON of every answer, and a page of marks."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gallery.programs import ROWS
from benchmarks.gallery.verbs import VERBS
from benchmarks.results import FOLDER, Result

FILE = FOLDER / "gallery.json"
MARKS = {"ok": "ok", "refused": "refused", "wrong": "**wrong**", "raw": "**raw**", "absent": "–"}


def line(answers: Mapping[str, Any]) -> str:
    """Return one row's marks in one line: ``.`` ok, r refused, W wrong, X raw."""
    mark = {"ok": ".", "refused": "r", "wrong": "W", "raw": "X", "absent": "-"}
    return "".join(mark[answers[verb]["status"]] if verb in answers else " " for verb in VERBS)


def tally(rows: Mapping[str, Any]) -> Counter[str]:
    """Return the number of answers of each kind."""
    return Counter(answer["status"] for row in rows.values() for answer in row.values())


def write(rows: Mapping[str, Any], seconds: float, path: Path = FILE) -> None:
    """Write the JSON of all answers, the page of marks beside it."""
    found = tally(rows)
    asked = sum(found.values()) - found["absent"]
    result = Result(
        name=path.stem,
        value=round((found["ok"] + found["refused"]) / max(asked, 1), 4),
        stderr=None,
        unit="part of verbs x published Pyro programs answered rightly or refused clearly",
        estimator="one run of every verb on each program, unchanged, beside stock Pyro (|z| < 5)",
        published="",
        target="1",
        data="made up, of the shapes of each publication",
        binarisation="",
        seed=0,
        seconds=seconds,
        details={"tally": dict(found), "rows": {k: dict(v) for k, v in rows.items()}},
        command="python -m benchmarks.gallery --source DIR",
    )
    result.write(path.parent)
    path.with_suffix(".md").write_text(page(rows))


def page(rows: Mapping[str, Any]) -> str:
    """Return the Markdown table: a row per program, a column per verb; c where stock Pyro spoke."""
    verbs = list(VERBS)
    lines = [
        "| program | " + " | ".join(verbs) + " |",
        "|---|" + "---|" * len(verbs),
    ]
    for name in ROWS:
        if name in rows:
            cells = [_cell(rows[name].get(verb)) for verb in verbs]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(answer: Mapping[str, Any] | None) -> str:
    if answer is None:
        return ""
    mark = MARKS[answer["status"]]
    return f"{mark} ✓" if answer.get("checked") else mark


def failures(rows: Mapping[str, Any]) -> str:
    """Return what is left to mend, the worst first: wrong, raw, refused without need."""
    found: dict[tuple[int, str, str], list[str]] = {}
    for name, answers in rows.items():
        for verb, answer in answers.items():
            kind = answer["status"]
            if kind == "refused" and verb not in ROWS[name].no_answer:
                kind = "refused without need"
            order = ["wrong", "raw", "refused without need"]
            if kind in order:
                key = (order.index(kind), name, answer["message"][:240])
                found.setdefault(key, []).append(verb)
    lines = [f"# {sum(map(len, found.values()))} answers to mend: {dict(tally(rows))}"]
    for (rank, name, message), verbs in sorted(found.items()):
        kind = ["WRONG", "RAW", "REFUSED"][rank]
        lines.append(f"- {kind} **{name}** [{'; '.join(verbs)}]: {message}")
    return "\n".join(lines) + "\n"
