"""The gallery's own parts: what it loads of a published file, and when two samples agree."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.gallery import loading, report, stock
from benchmarks.gallery.programs import ROWS
from benchmarks.gallery.verbs import VERBS


def test_a_script_gives_its_definitions_and_runs_nothing_else(tmp_path):
    path = tmp_path / "published.py"
    path.write_text(
        "import no_such_package\nSIZE = 3\nclass Model:\n    size = 2\n"
        "def guide():\n    return SIZE\nraise RuntimeError('training')\n"
    )
    module = loading.script(path)
    assert module.Model.size == 2 and module.guide() == 3
    assert not hasattr(loading.script(path, assign=()), "SIZE")
    with pytest.raises(ModuleNotFoundError, match="no_such_package is not installed"):
        module.no_such_package()


def test_a_notebook_gives_the_assignments_that_are_asked_for(tmp_path):
    cells = [
        {"cell_type": "code", "source": ["%matplotlib inline\n", "K = 2\n", "other = 1 / 0\n"]},
        {"cell_type": "markdown", "source": ["def no(): pass"]},
        {"cell_type": "code", "source": ["def model():\n", "    return K\n"]},
    ]
    path = tmp_path / "tutorial.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    module = loading.notebook(path, assign=("K",))
    assert module.model() == 2 and not hasattr(module, "no")


def test_a_stand_in_takes_the_place_of_a_package_that_is_absent():
    finder = loading.StandIns(("no_such_pictures", "json"))
    assert finder.find_spec("json") is None and finder.find_spec("math") is None
    assert finder.find_spec("no_such_pictures.datasets") is not None


def test_samples_agree_within_five_standard_errors_and_no_further():
    stock.agree("equal", [1.0, 1.0], [1.0, 1.0])
    stock.agree("noise", [1.0, 1.2, 0.8], [1.1, 0.9, 1.3])
    with pytest.raises(stock.Disagreement, match=r"shifted: got 3, stock Pyro 1 "):
        stock.agree("shifted", [3.0, 3.01, 2.99], [1.0, 1.01, 0.99])


def test_the_list_of_what_to_mend_puts_the_worst_first():
    name = "hmm 1"
    answers = {
        "encode": {"status": "refused", "message": "expected"},
        "elbo": {"status": "refused", "message": "not expected"},
        "fit": {"status": "raw", "message": "KeyError"},
        "generate": {"status": "wrong", "message": "mean"},
    }
    lines = report.failures({name: answers}).splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["WRONG", "RAW", "REFUSED"]
    assert "encode" not in "".join(lines)
    assert "**wrong**" in report.page({name: answers})


def test_every_row_names_its_file_and_verbs_that_exist():
    assert len(ROWS) >= 45
    for row in ROWS.values():
        assert set(row.no_answer) <= set(VERBS)
        assert row.path or row.name.startswith("contrib.")
