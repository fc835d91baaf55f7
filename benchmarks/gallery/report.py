"""The table of the gallery: a JSON of every answer, and a page of marks."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gallery.programs import ROWS
from benchmarks.gallery.verbs import VERBS
from benchmarks.results import FOLDER, Result

FILE = FOLDER / "gallery.json"
KINDS = ("ok", "refused", "wrong", "raw", "unmeasured")
PAGE = FOLDER.parent.parent / "docs" / "gallery.md"
_WIDTH = 220  # of a message
MARKS = {
    "ok": "ok",
    "refused": "refused",
    "wrong": "**wrong**",
    "raw": "**raw**",
    "absent": "–",
    "unmeasured": "?",
}


def line(answers: Mapping[str, Any]) -> str:
    """Return one row's marks in one line: ``.`` ok, r refused, W wrong, X raw."""
    mark = {"ok": ".", "refused": "r", "wrong": "W", "raw": "X", "absent": "-", "unmeasured": "?"}
    return "".join(mark[answers[verb]["status"]] if verb in answers else " " for verb in VERBS)


def tally(rows: Mapping[str, Any]) -> Counter[str]:
    """Return the number of answers of each kind."""
    return Counter(answer["status"] for row in rows.values() for answer in row.values())


def write(rows: Mapping[str, Any], seconds: float, path: Path = FILE) -> None:
    """Write the JSON of all answers, the page of marks beside it."""
    found = tally(rows)
    asked = sum(found.values()) - found["absent"] - found["unmeasured"]
    result = Result(
        name=path.stem,
        value=round((found["ok"] + found["refused"]) / max(asked, 1), 4),
        stderr=None,
        unit="part of verbs x published Pyro programs answered rightly or refused clearly",
        estimator="one run of every verb on each program, unchanged, beside stock Pyro",
        published="",
        target="1",
        data="made up, of the shapes of each publication",
        binarization="",
        seed=0,
        seconds=seconds,
        details={"tally": dict(found), "rows": {k: dict(v) for k, v in rows.items()}},
        command="python -m benchmarks.gallery --source DIR",
    )
    result.write(path.parent)
    written = json.loads(path.read_text())
    (PAGE if path == FILE else path.with_suffix(".md")).write_text(page(written))


HEAD = """# Published Pyro programs, unchanged

Programs of Pyro's examples and tutorials, of its wheel, of three single-cell packages and of eight
other repositories, loaded from a folder that the user names and run as they were published through
every verb. A tick says that a number of stock Pyro stood beside the answer: the mean loss and the
mean move of every parameter under plain gradient descent for `fit` (|t| < 8), the bound for `elbo`,
bounds on the likelihood for `log_likelihood`, `ais` and `gaps`, means of data and codes (|z| < 5),
equal bounds at equal noise for `save, load`. A question mark is an answer that was not measured
again after a change. Made from
[gallery.json](../benchmarks/results/gallery.json), which holds every message, by

    python -m benchmarks.gallery --source DIR

where DIR holds the checkouts, `DIR/OWNER/NAME`. None of that code is in this repository.
"""


def page(result: Mapping[str, Any]) -> str:
    """Return the page of a result: the counts, a table of programs by verbs, every refusal."""
    rows = result["details"]["rows"]
    verbs = list(VERBS)
    lines = [HEAD, counts(result), "", "| program | " + " | ".join(verbs) + " |"]
    lines.append("|---|" + "---|" * len(verbs))
    for name in ROWS:
        if name in rows:
            cells = [_cell(rows[name].get(verb)) for verb in verbs]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "## What is not answered, and why", "", *_reasons(rows)]) + "\n"


def trainings(rows: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many trainings were accepted and equal to stock SVI's, and of how many."""
    asked = [row[v] for row in rows.values() for v in row if v.startswith("fit")]
    asked = [answer for answer in asked if answer["status"] not in ("absent", "unmeasured")]
    return sum(answer["status"] == "ok" for answer in asked), len(asked)


def counts(result: Mapping[str, Any]) -> str:
    """Return the sums of a result in a sentence or two."""
    rows = result["details"]["rows"]
    found, (equal, asked) = tally(rows), trainings(rows)
    kinds = ", ".join(f"{found[kind]} {kind}" for kind in KINDS if kind in found)
    used = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    times = sorted(a.get("measured", "") for row in rows.values() for a in row.values())
    first = next(filter(None, times), "never")
    return (
        f"{len(rows)} programs: {kinds}. Of {asked} trainings measured {equal} were accepted and "
        f"equal to those of stock SVI ({100 * equal / max(asked, 1):.0f} %). Measured "
        f"from {first} to "
        f"{max(times, default=first)} UTC, seed {result['seed']}, {result['device']}, {used}."
    )


def _reasons(rows: Mapping[str, Any]) -> list[str]:
    """Return one line for each kind of refusal or fault, with the programs and verbs it met."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in ROWS:
        for verb, answer in rows.get(name, {}).items():
            if answer["status"] not in ("ok", "absent", "unmeasured"):
                reason = re.sub(r"^[\w, ]+: (?=site|the |no )", "", _short(answer["message"]))
                found.setdefault((answer["status"], reason), []).append(f"{name} ({verb})")
    order = ("wrong", "raw", "refused")
    ranked = sorted(found.items(), key=lambda item: order.index(item[0][0]))
    return [f"- {kind}: {reason}: {'; '.join(where)}" for (kind, reason), where in ranked]


def _short(message: str) -> str:
    """Return a message in one line of Markdown, without the error's type and the site's name."""
    line = re.sub(r"\s+", " ", message.partition(": ")[2] or message)
    line = line.replace("|", "/").replace("<", "").replace(">", "")
    return line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "..."


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
