"""Run the gallery: ``python -m benchmarks.gallery --source DIR [--only NAME ...]``."""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gallery import loading, report
from benchmarks.gallery.programs import ROWS
from benchmarks.gallery.verbs import VERBS, Bench, outcome

CPU_SECONDS = 400  # per program: a busy machine takes nothing off them


def run_one(name: str, source: Path, verbs: list[str]) -> dict[str, Any]:
    """Run the verbs on one program in this process."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    row = ROWS[name]
    if row.needs and not loading.installed([row.needs]):
        return _absent(verbs, f"needs {row.needs}")
    if not (source / row.path).exists():
        return _absent(verbs, f"{row.path} is not in the folder of the checkouts")
    bench = Bench(row, source)
    answers = {}
    for verb in verbs:
        answers[verb] = asdict(outcome(bench, verb))
        print(json.dumps({verb: answers[verb]}), flush=True)
    return answers


def _absent(verbs: list[str], reason: str) -> dict[str, Any]:
    answers = {verb: {"status": "absent", "message": reason} for verb in verbs}
    print(json.dumps(answers), flush=True)
    return answers


def in_a_process(name: str, source: Path, verbs: list[str]) -> dict[str, Any]:
    """Run one program in a process of its own: modules of one name do not meet."""
    command = [sys.executable, "-m", "benchmarks.gallery", "--source", str(source)]
    command += ["--here", name, "--verbs", *verbs]
    answers: dict[str, Any] = {}
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            answers.update(json.loads(line))
    why = done.stderr.strip()[-300:] or f"stopped by signal {-done.returncode}"
    for verb in verbs:
        answers.setdefault(verb, {"status": "raw", "message": f"no answer: {why}"})
    return answers


def known(path: Path) -> tuple[dict[str, Any], float]:
    """Return the rows measured before, and the seconds that they took."""
    if not path.exists():
        return {}, 0.0
    found = json.loads(path.read_text())
    return found["details"]["rows"], found["seconds"]


def unsettled(rows: Mapping[str, Any], name: str, verb: str) -> bool:
    """Return whether a verb has not answered yet."""
    return rows.get(name, {}).get(verb, {}).get("status") != "ok"


def main() -> None:
    """Run what was asked for and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder of the checkouts")
    parser.add_argument("--only", nargs="*", default=list(ROWS), help="rows to run")
    parser.add_argument("--missing", action="store_true", help="go on: only rows not in the file")
    parser.add_argument("--unsettled", action="store_true", help="only answers that were not ok")
    parser.add_argument("--verbs", nargs="*", default=list(VERBS))
    parser.add_argument("--here", help="run this one row in this process")
    parser.add_argument("--out", type=Path, default=report.FILE)
    parser.add_argument("--failures", type=Path, help="write the list of what to mend here")
    given = parser.parse_args()
    if given.here:
        run_one(given.here, given.source, given.verbs)
        return
    rows, before = known(given.out)
    start = time.perf_counter() - before
    for name in given.only:
        if given.missing and name in rows:
            continue
        verbs = [v for v in given.verbs if not given.unsettled or unsettled(rows, name, v)]
        answers = in_a_process(name, given.source, verbs)
        rows[name] = {**rows.get(name, {}), **answers}
        print(f"{name:34s} {report.line(rows[name])}", flush=True)
        report.write(
            {key: rows[key] for key in ROWS if key in rows}, time.perf_counter() - start, given.out
        )
    if given.failures:
        given.failures.write_text(report.failures(rows))


if __name__ == "__main__":
    main()
