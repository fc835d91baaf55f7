"""Planted bugs: each goes into a copy of the package, and the test named beside it must fail.

``python -m benchmarks.planted_bugs [--only WORD ...] [--again]``. The lists are
``tests/planted_bugs``, a file for each room. One process imports torch, Pyro and pytest once; each
bug is a fork of it that imports the changed copy and runs one test. Answers are kept in
``results/planted_bugs.json``, by files of tests: a second call runs what has none, or one of
another state of its two files.
"""

import argparse
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
ANSWERS = ROOT / "benchmarks" / "results" / "planted_bugs.json"
PACKAGE = "pyro_vae"
SECONDS = 300  # of one test
NO_VERDICT = "no verdict"  # the bug breaks more than the test can tell, or the test is broken
PASSED, FAILED, NO_ANSWER = 0, 1, 100  # pytest returns up to 5; others are no verdict either


class Copy:
    """A copy of the package and its tests, in which one file at a time is changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (PACKAGE, "tests"):
            shutil.copytree(ROOT / name, folder / name)
        shutil.copy(ROOT / "setup.cfg", folder)

    @contextmanager
    def planted(self, bug: Any) -> Iterator[None]:
        """Hold a bug in its file inside a block."""
        path = self.folder / PACKAGE / bug.file
        text = path.read_text()
        assert text.count(bug.original) == 1, f"{bug.file}: not once: {bug.original!r}"
        # Its bytecode is told by seconds and size, which two bugs may share.
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()
        path.write_text(text.replace(bug.original, bug.planted))
        try:
            yield
        finally:
            path.write_text(text)

    def run(self, *words: str, log: Path, seconds: int = SECONDS, writes: bool = False) -> int:
        """Run pytest on the copy in a fork of this process; return its answer, -1 for a hang."""
        child = os.fork()
        if child == 0:
            code = NO_ANSWER
            try:
                code = self._answer(words, log, writes)
            except BaseException:
                traceback.print_exc()
            finally:  # whatever happens: the fork must not go on as its parent
                os._exit(code)
        for _ in range(seconds * 20):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return -1

    def _answer(self, words: tuple[str, ...], log: Path, writes: bool) -> int:
        os.chdir(self.folder)
        os.environ["PYTHONPATH"] = str(self.folder)
        sys.path[:] = [str(self.folder), *(p for p in sys.path if p not in ("", str(ROOT)))]
        sys.dont_write_bytecode = not writes
        with open(log, "w") as file, redirect_stdout(file), redirect_stderr(file):
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            # pytest tells that its plugins were imported before it could rewrite them.
            options = ["-q", "-x", "--tb=short", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
            options += ["-p", "no:cacheprovider"]
            code = pytest.main([*options, "--rootdir", str(self.folder), *words])
            home = sys.modules[PACKAGE].__file__ or "" if PACKAGE in sys.modules else ""
            if home and not home.startswith(str(self.folder)):
                return NO_ANSWER  # another copy was tested
            for name in sorted(sys.modules):
                print("module", name)
            file.flush()
        return int(code)


def import_all(log: Path) -> None:
    """Import what a run has imported, but the package and what uses it; each fork has it then."""
    found = (ROOT / "tests").rglob("*.py")
    own = {each.stem for path in found for each in (path, path.parent)}  # a folder is a package
    own |= {PACKAGE, "tests", "benchmarks", "__main__"}
    for line in log.read_text().splitlines():
        word, _, name = line.partition(" ")
        # The compiler starts threads, which a fork must not have.
        if word == "module" and name.split(".")[0] not in own and "_inductor" not in name:
            with suppress(Exception):  # a module that only its parent imports
                importlib.import_module(name)
    assert PACKAGE not in sys.modules, "forks would test this copy of it"


def state_of(bug: Any) -> str:
    """Return a hash of a bug and of the two files that it is about."""
    files = (ROOT / PACKAGE / bug.file, ROOT / bug.test.split("::")[0])
    digest = hashlib.sha256(repr(tuple(bug)).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def verdict(code: int) -> str:
    """Return what an answer of pytest on a planted bug says."""
    return {PASSED: "survived", FAILED: "caught"}.get(code, NO_VERDICT)


def load_bugs() -> list[Any]:
    """Return the list of the tests, without importing the package."""
    sys.path.insert(0, str(ROOT / "tests"))
    return list(importlib.import_module("planted_bugs").BUGS)


def run_all(bugs: list[Any], keep: Callable[[dict[str, Any]], None]) -> None:
    """Plant the bugs one by one, and hand the answers of each file of tests to ``keep``."""
    by_file: dict[str, list[Any]] = {}
    for bug in bugs:
        by_file.setdefault(bug.test.split("::")[0], []).append(bug)
    with tempfile.TemporaryDirectory() as name:
        copy, log = Copy(Path(name)), Path(name) / "log"
        for file, group in by_file.items():
            tests = sorted({bug.test for bug in group})
            sound = copy.run(*tests, log=log, seconds=10 * SECONDS, writes=True) == PASSED
            if not sound:
                said = [x for x in log.read_text().splitlines() if not x.startswith("module ")]
                print(f"{file}: fails without a bug", *said[-20:], sep="\n")
            import_all(log)
            answers = {}
            for bug in group:
                start = time.perf_counter()
                answer = NO_VERDICT
                if sound:
                    with copy.planted(bug):
                        answer = verdict(copy.run(bug.test, log=log))
                seconds = round(time.perf_counter() - start, 2)
                kept = {"verdict": answer, "test": bug.test, "seconds": seconds}
                answers[bug.name] = {**kept, "state": state_of(bug)}
                print(f"{answer:<10} {seconds:6.1f} s  {bug.name}", flush=True)
            keep(answers)


def kept_answers(bugs: list[Any]) -> dict[str, Any]:
    """Return the answers of earlier calls that still hold."""
    if not ANSWERS.exists():
        return {}
    found = json.loads(ANSWERS.read_text())["details"]["bugs"]
    states = {bug.name: state_of(bug) for bug in bugs}
    return {name: row for name, row in found.items() if row["state"] == states.get(name)}


def write(answers: dict[str, Any], bugs: list[Any]) -> None:
    """Write the answers so far, in a fork: that imports the package, which no parent may."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        write_figure(answers, bugs)
    finally:
        os._exit(0)


def write_figure(answers: dict[str, Any], bugs: list[Any]) -> None:
    """Write the answers as one figure."""
    from benchmarks.results import Result

    rows = {bug.name: answers[bug.name] for bug in bugs if bug.name in answers}
    counts: dict[str, int] = {}
    for row in rows.values():
        counts[row["verdict"]] = counts.get(row["verdict"], 0) + 1
    Result(
        name="planted_bugs",
        value=100 * counts.get("caught", 0) / max(1, len(rows)),
        stderr=None,
        unit=f"% of {len(rows)} planted bugs that the test named beside each catches",
        estimator="each bug in a copy of the package, one test run on it",
        published="–",
        target=">= 95 of at least 80",
        data="of the tests",
        binarization="–",
        seed=0,
        seconds=round(sum(row["seconds"] for row in rows.values()), 1),
        details={"listed": len(bugs), "counts": counts, "bugs": rows},
        command="python -m benchmarks.planted_bugs",
    ).write()


def main() -> None:
    """Run what is asked for and has no answer yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="in name or file")
    parser.add_argument("--again", action="store_true", help="run also what has an answer")
    options = parser.parse_args()
    bugs = load_bugs()
    answers = {} if options.again else kept_answers(bugs)
    chosen = [
        bug
        for bug in bugs
        if bug.name not in answers and any(w in f"{bug.name} {bug.file}" for w in options.only)
    ]

    def keep(found: dict[str, Any]) -> None:
        answers.update(found)
        write(answers, bugs)

    run_all(chosen, keep)


if __name__ == "__main__":
    main()
