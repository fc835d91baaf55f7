"""The fault tables: trials are counted, gone on with, and faults are seen."""

import itertools
import json
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from benchmarks.faults import killed_runs, stopped_runs
from benchmarks.faults.__main__ import KINDS, kind_of
from benchmarks.faults.trials import Kind, Trial, measure
from pyro_vae.storage.bundle import read_bundle, write_bundle


def made_up(target: int, how: str = "made up") -> Kind:
    """Return a kind whose every third trial is wrong, and whose notes hold a path."""

    def trials(first, seed):
        for number in itertools.count(first):
            yield Trial("a", "wrong" if number % 3 == 0 else "ours", f"{number} in /some/where")

    return Kind("made_up", "trials", target, how, trials)


def test_trials_are_counted_and_gone_on_with(tmp_path: Path) -> None:
    measure(made_up(4), seconds=60, folder=tmp_path)
    found = measure(made_up(10), seconds=60, folder=tmp_path)
    assert found == json.loads((tmp_path / "faults_made_up.json").read_text())
    assert found["details"]["total"] == {"ok": 0, "ours": 6, "lost": 0, "wrong": 4, "raw": 0}
    assert found["value"] == 4 and found["unit"] == "lost, wrong or raw in 10 trials"
    assert [note.split(",")[0] for note in found["details"]["faults"]] == ["0", "3", "6", "9"]
    assert "/some" not in json.dumps(found)
    assert measure(made_up(10), seconds=0, folder=tmp_path)["value"] == 4  # there is no more to do
    again = measure(made_up(3), seconds=60, seed=1, folder=tmp_path)
    assert sum(again["details"]["total"].values()) == 3  # another seed begins anew
    other = measure(made_up(2, "of another table"), seconds=60, seed=1, folder=tmp_path)
    assert sum(other["details"]["total"].values()) == 2  # as do other trials


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_on_the_command_line_is_there(name: str) -> None:
    kind = kind_of(name)
    assert kind.name == name and kind.target > 0


def test_a_stopped_run_of_a_labelled_program_has_labels_and_rows_that_lack_them() -> None:
    _, labels = stopped_runs._data("labels", stopped_runs.ROWS)
    assert sorted(set(labels.tolist())) == [-1, 0, 1, 2]
    key = ("semi-supervised", "Adam", False)
    trial = stopped_runs._stop(key, "step", 4, stopped_runs._fit(*key, None))
    assert trial.verdict == "ok", trial.note


@pytest.mark.parametrize(
    ("damage", "verdict"),
    [("none", "ok"), ("cut", "lost"), ("weight", "wrong"), ("loss", "wrong"), ("gone", "lost")],
)
def test_what_a_killed_run_leaves_is_seen(damage: str, verdict: str, tmp_path: Path) -> None:
    straight = killed_runs._Straight("eager")
    killed_runs._fit("eager", out=tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    tensors, meta = read_bundle(tmp_path, "checkpoint", allow_nonfinite=True)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "gone":
        for file in tmp_path.glob("checkpoint*"):
            file.unlink()
    elif damage == "weight":
        key = next(key for key in tensors if key.startswith("program."))
        tensors[key] = torch.zeros_like(tensors[key])
    elif damage == "loss":
        tensors["history.loss"][2] += 1e-9
    if damage in ("weight", "loss"):
        write_bundle(tmp_path, "checkpoint", tensors, meta, allow_nonfinite=True)
    found = killed_runs._look("a", tmp_path, killed_runs.EPOCHS, straight)
    assert found.verdict == verdict
    assert pv.load(tmp_path) is not None
