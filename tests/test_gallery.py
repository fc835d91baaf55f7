"""The gallery's own parts: what it loads of a published file, and when two samples agree."""

import json
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.distributions import constraints

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.gallery import loading, report, stock, training
from benchmarks.gallery.programs import ROWS
from benchmarks.gallery.subject import Published, Subject
from benchmarks.gallery.verbs import VERBS, Bench


def test_a_script_gives_its_definitions_and_runs_nothing_else(tmp_path):
    path = tmp_path / "published.py"
    path.write_text(
        "import no_such_package\nSIZE = 3\nclass Model:\n    size = 2\n"
        "def guide():\n    return SIZE\nraise RuntimeError('training')\n"
    )
    module = loading.load(path)
    assert module.Model.size == 2 and module.guide() == 3
    assert not hasattr(loading.load(path, assign=()), "SIZE")
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
    module = loading.load(path, assign=("K",))
    assert module.model() == 2 and not hasattr(module, "no")


def test_a_stand_in_takes_the_place_of_a_package_that_is_absent(tmp_path):
    (tmp_path / "beside.py").write_text("from no_such_pictures.draw import Figure\n")
    path = tmp_path / "asks_beside.py"
    path.write_text("import beside\nimport no_such_sound, json\nclass Mine(beside.Figure): pass\n")
    module = loading.load(path)
    assert issubclass(module.Mine, module.beside.Figure) and module.json is json
    with pytest.raises(ModuleNotFoundError, match="no_such_sound is not installed"):
        module.no_such_sound()


def _pair():
    weight = torch.nn.Parameter(torch.tensor(0.5))

    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z * pyro.param("weight", weight), scale), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * x, 0.05))

    return Subject(model, guide, torch.linspace(-1, 2, 8), 8)


def test_training_is_held_against_the_moves_of_stock_svi(monkeypatch):
    """Plain descent of both agrees; of twice the gradient, it does not."""
    monkeypatch.setattr(training, "SEEDS", range(4))
    monkeypatch.setattr(training, "PILOT", range(4, 5))
    bench = Bench(Published("pair", "", lambda path: _pair()), Path())
    training.require_equal(bench.aligned, None, Trace_ELBO, 4)
    whole = training._fit
    monkeypatch.setattr(
        training,
        "_fit",
        lambda *given: {name: 2 * move for name, move in whole(*given).items()},
    )
    with pytest.raises(stock.Disagreement, match=r"training: .* under stock SVI by"):
        training.require_equal(bench.aligned, None, Trace_ELBO, 4)
    pyro.clear_param_store()


def test_samples_agree_within_five_standard_errors_and_no_further():
    stock.agree("equal", [1.0, 1.0], [1.0, 1.0])
    stock.agree("noise", [1.0, 1.2, 0.8], [1.1, 0.9, 1.3])
    with pytest.raises(stock.Disagreement, match=r"shifted: got 3, stock Pyro 1 "):
        stock.agree("shifted", [3.0, 3.01, 2.99], [1.0, 1.01, 0.99])


def test_the_list_of_what_to_mend_puts_the_worst_first():
    name = "hmm 1"
    answers = {
        "infer": {"status": "refused", "message": "expected"},
        "elbo": {"status": "refused", "message": "not expected"},
        "fit": {"status": "raw", "message": "KeyError"},
        "generate": {"status": "wrong", "message": "mean"},
    }
    lines = report.failures({name: answers}).splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["WRONG", "RAW", "REFUSED"]
    assert "infer" not in "".join(lines)


def test_every_row_names_its_file_and_verbs_that_exist():
    assert len(ROWS) >= 45
    for row in ROWS.values():
        assert set(row.no_answer) <= set(VERBS)
        assert row.path or row.needs or row.name.startswith("contrib.")


def test_the_page_is_made_from_the_file():
    result = json.loads(report.FILE.read_text())
    rows = result["details"]["rows"]
    assert report.PAGE.read_text() == report.page(result)
    assert set(rows) == set(ROWS) and all(set(row) == set(VERBS) for row in rows.values())
    assert result["details"]["tally"] == dict(report.tally(rows))
