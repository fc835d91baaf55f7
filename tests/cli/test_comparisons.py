"""Runs side by side: paired differences, and what is not compared."""

import json
from pathlib import Path
from types import SimpleNamespace

import pyro.distributions as dist
import pytest
import torch
from command_line import FEW, PROGRAM, run, told

import pyro_vae as pv
from pyro_vae.cli.cell_scores import cell_scores
from pyro_vae.cli.compare import (
    _tell_of_other_cells,
    _tell_of_other_densities,
    paired,
    scored_by,
)
from pyro_vae.conditionals import Column

pytestmark = pytest.mark.usefixtures("folder")


def test_the_files_of_all_runs_are_looked_for_before_one_is_scored(capsys, monkeypatch):
    monkeypatch.setattr("pyro_vae.cli.compare.open_run", None)
    known = {"model": "own.py:Clicks", "data": "counts.npz", "binarization": "none", "seed": 0}
    others = {"a": {}, "b": {"model": "absent.py:A"}, "c": {"data": "absent.npz"}}
    for name, other in others.items():
        Path(name).mkdir()
        Path(name, "train.json").write_text(json.dumps(known | other))
    assert run("compare a b") == 2 and "absent.py: no such file; say once" in told(capsys)
    assert run("compare a c") == 2
    assert "absent.npz: no such file or folder; name once where the data of the run in c" in told(
        capsys
    )


def test_a_file_that_is_named_and_missing_is_no_moved_file_of_a_run(capsys):
    for out in "ab":
        assert run(f"train own.py:Clicks --data counts.npz --out {out}", *FEW) == 0
    capsys.readouterr()
    assert run("compare a b --data absent.npy") == 2
    assert told(capsys).endswith("absent.npy: no such file or folder; check --data\n")


@pytest.mark.parametrize("options", ["", "--data held.txt"])
def test_runs_of_sentences_in_other_words_are_refused(capsys, monkeypatch, options):
    monkeypatch.setattr("pyro_vae.cli.compare.open_run", None)
    known = {"model": "SentenceLM", "data": "lines.txt", "binarization": "none", "seed": 0}
    for name, words in {"a": "ape bear", "b": "ape bear cat", "c": "bear ape"}.items():
        Path(name).mkdir()
        Path(name, "train.json").write_text(json.dumps(known))
        Path(name, "vocabulary.txt").write_text(words.replace(" ", "\n") + "\n")
    for file in ("lines.txt", "held.txt"):
        Path(file).write_text("the ape\n")
    assert run(f"compare a b {options}") == 2
    assert "runs: got runs that know other words (a lacks cat), and score" in told(capsys)
    assert run(f"compare a c {options}") == 1  # it goes on to open them


def test_differences_are_paired():
    """What all data share is no error of the difference."""
    shared = torch.tensor([0.0, -100.0, 100.0, 7.0])
    found = paired({"worse": shared - 1.0, "better": shared})
    assert list(found) == ["better", "worse"]
    assert found["worse"]["difference"] == -1.0 and found["worse"]["difference_stderr"] == 0.0
    assert found["worse"]["log_likelihood_stderr"] > 30


def test_a_distribution_of_a_project_is_asked_beside_its_modules():
    """Only there can it import what it needs, and before the work is done."""
    late = "SUPPORT = torch.distributions.constraints.real\n"
    own = """
class Mine(dist.Poisson):
    @property
    def support(self):
        from late import SUPPORT
        return SUPPORT

    def expand(self, shape, _instance=None):
        return Mine(self.rate.expand(shape), validate_args=False)
"""
    text = PROGRAM.replace("class Clicks", f"{own}\nclass Clicks").replace(
        "dist.Poisson(s", "Mine(s"
    )
    for name in ("one", "two"):
        Path(name).mkdir()
        Path(name, "own.py").write_text(text)
        Path(name, "late.py").write_text(f"import torch\n{late}")
        assert run(f"train {name}/own.py:Clicks --data counts.npz --out {name}/a", *FEW) == 0
    assert run("compare one/a two/a --num_particles 2 --out c") == 0
    found = json.loads(Path("c/compare.json").read_text())["runs"]
    assert [each["observed"] for each in found.values()] == [{"x": "Mine"}] * 2


def test_runs_that_score_other_things_are_told(recwarn):
    def tell(observed):
        scores = {r: {s: scored_by(fn) for s, fn in each.items()} for r, each in observed.items()}
        _tell_of_other_densities(scores)

    normal, bits = dist.Normal(torch.zeros(2), 1.0), dist.Bernoulli(torch.full((2,), 0.5))
    part = pv.distributions.Incomplete(bits.to_event(1), torch.tensor([True, False]))
    mixed = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), normal)
    alike = (
        [dist.Poisson(1.0), bits],
        [normal, mixed],
        [part, bits],
        [dist.Delta(normal.loc), mixed],
    )
    for one, two in alike:
        tell({"a": {"x": one}, "b": {"y": two, "z": two}})
    for reals in ({"z": normal}, {"u": normal, "v": mixed}):
        tell({"a": {"x": bits, "z": normal}, "b": {"x": bits} | reals})
    assert not recwarn.list
    flags, counts = {"x": bits, "y": bits, "z": normal}, dist.Poisson(1.0)
    unlike = (
        ({"x": bits, "y": normal}, {"x": normal, "y": bits}),
        ({"x": bits, "y": counts, "z": normal}, {"x": bits, "y": normal, "z": normal}),
        (flags, {"x": bits, "y": normal, "w": normal}),
    )
    for one, two in unlike:
        with pytest.warns(UserWarning, match="different ways, so that the differences of their"):
            tell({"a": one, "b": two})
    for two in ({"u": bits, "v": normal}, {"x": bits, "u": normal, "v": bits}):
        with pytest.warns(UserWarning, match=r"unknown whether .*; give the sites the same names"):
            tell({"a": flags, "b": two})
    with pytest.warns(UserWarning, match=r"Incomplete \(probabilities\); b has x by Normal"):
        tell({"a": {"x": part}, "b": {"x": normal}})
    counts = dist.Multinomial(1, torch.ones(2) / 2)
    others = {"a": {"x": counts}, "b": {"w": pv.distributions.BagOfWords(logits=torch.zeros(2))}}
    told = r"a has x by Multinomial \(counts given their sum\); b has w by BagOfWords \(words in"
    with pytest.warns(UserWarning, match=told):
        tell(others)
    with pytest.warns(UserWarning, match=r"Bernoulli \(probabilities\); b has x by Normal"):
        tell({"a": {"x": bits}, "b": {"x": normal}})


def test_tables_whose_cells_are_scored_in_other_ways_are_told(recwarn):
    def scored(**options):
        return cell_scores(SimpleNamespace(columns=[Column("age", **options)]))

    counts, real = scored(kind="count"), scored(kind="real", scale=2.5)
    _tell_of_other_cells({"a": counts, "b": scored(kind="count", center=1.0, scale=2.0)})
    _tell_of_other_cells({"a": real, "b": scored(kind="real", center=1.0, scale=2.5)})
    _tell_of_other_cells({"a": {}, "b": {}})
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"age: a by probability, b by density, per 2\.5; train"):
        _tell_of_other_cells({"a": counts, "b": real})
    with pytest.warns(UserWarning, match=r"a by density, per 2\.5, b by density, per 2\.718"):
        _tell_of_other_cells({"a": real, "b": scored(kind="positive", center=1.0)})


def test_runs_of_other_files_are_compared_on_one_that_is_named(capsys):
    for data in ("counts.npz", "counts.npy"):
        assert run(f"train own.py:Clicks --data {data} --out {data[-3:]}", *FEW) == 0
    assert run("compare npz npy") == 2
    assert "--data FILE judges all on the rows of one file" in told(capsys)
    assert run("compare npz npy --data counts.csv --num_particles 2 --out c") == 0
    found = json.loads(Path("c/compare.json").read_text())
    assert (found["data"], found["split"], found["rows"]) == ("counts.csv", "all", 40)
    assert run("evaluate npz --data counts.csv --num_particles 2 --split all") == 0
    alone = json.loads(Path("npz/evaluation.json").read_text())["log_likelihood"]
    assert found["runs"]["npz"]["log_likelihood"] == pytest.approx(alone, rel=1e-6)
