"""Programs and data of a run that have moved, were copied or have changed."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import FEW, PROGRAM, run, told

from pyro_vae.cli.known_files import _has_other_modules
from pyro_vae.cli.own_program import imports_apart, own_program
from pyro_vae.storage.bundle import read_bundle

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.filterwarnings("default:data")
def test_the_file_of_a_training_is_known_from_any_directory_and_by_its_contents(
    capsys, folder, monkeypatch
):
    """Its name alone is another file elsewhere, and a copy of it holds rows of the training."""

    def judged(line):
        assert run(f"evaluate {line} --num_particles 2") == 0
        out, err = capsys.readouterr()
        return out.partition(" data\n")[0], err

    Path("one").mkdir()
    for name in ("own.py", "counts.npz"):
        shutil.move(name, "one")
    monkeypatch.chdir("one")
    assert run("train own.py:Clicks --data counts.npz --out a", *FEW) == 0
    capsys.readouterr()
    assert judged("a --data ../counts.npy") == ("../counts.npy, all rows, 40", "")
    assert judged("a --data ./counts.npz") == ("./counts.npz, test split, 2", "")
    monkeypatch.chdir(folder / "one" / "a")  # where there is no own.py either
    assert judged("../a") == (f"{folder / 'one' / 'counts.npz'}, test split, 2", "")
    monkeypatch.chdir(folder / "one")
    shutil.copytree(folder / "one", folder / "two")
    monkeypatch.chdir(folder / "two")  # a copy of all
    assert judged("a --data counts.npz") == ("counts.npz, test split, 2", "")
    assert run("compare a ../one/a --num_particles 2") == 0
    capsys.readouterr()
    np.savez("counts.npz", x=np.ones((30, 5), np.uint16))
    assert judged("a --data counts.npz") == ("counts.npz, all rows, 30", "")
    place = folder / "one" / "counts.npz"
    assert judged("a") == (f"{place}, test split, 2", "")
    assert judged("a --data ../one/counts.npz") == ("../one/counts.npz, test split, 2", "")
    assert run("generate --seed 3 a 7") == run("generate --debug a 7") == 0
    with np.load("a/samples.npz") as arrays:
        assert len(arrays["x"]) == 7
    assert run("train own.py:Clicks --data counts.npz --out b", *FEW) == 0
    capsys.readouterr()
    assert run("compare b ../one/a --num_particles 2") == 2
    said = f"got runs of {place}, binarization none; counts.npz, binarization none; their"
    assert said in capsys.readouterr().err
    shutil.move(place, "moved.npz")
    assert run("evaluate a --data moved.npz --num_particles 2") == 0
    assert "moved.npz, test split, 2 data" in capsys.readouterr().out
    assert judged("a") == (f"{folder / 'two' / 'moved.npz'}, test split, 2", "")
    Path("moved.npz").unlink()
    told = "counts.npz is not what the run in a was trained with"
    table, warned = judged("a")  # what has the name now
    assert table == "counts.npz, test split, 2" and told in warned and warned.count("\n") == 1
    monkeypatch.chdir(folder / "one")
    assert run("evaluate a") == 2 and f"{place}: no such file" in capsys.readouterr().err
    shutil.copy(folder / "counts.npy", ".")
    np.savez("counts.npz", x=np.load("counts.npy")[::-1].astype(np.uint16))
    for data in ("", "--data counts.npz"):
        table, warned = judged(f"a {data}")
        assert table == "counts.npz, test split, 2" and told in warned


def test_a_folder_of_images_that_has_moved_is_missed_by_its_place(capsys, folder):
    assert run("train VAE --data images --hidden 3 --latent_dim 2 --out a", *FEW) == 0
    shutil.move("images", "pictures")
    capsys.readouterr()
    assert run("evaluate a") == 2
    assert f"{folder / 'images'}: no such file or folder; name once" in told(capsys)


@pytest.mark.filterwarnings("default:data")
def test_a_file_that_has_changed_is_told_of_where_its_split_is_judged(capsys, monkeypatch):
    """In words that the command can follow; others do not even read the file for it."""
    assert run("train TableVAE --data counts.csv --hidden 4 --out a", *FEW) == 0
    with Path("counts.csv").open("a") as file:
        file.write("\n1,2,3,4,5\n")
    shutil.copytree("a", "b")
    shutil.copy("counts.csv", "new.csv")
    capsys.readouterr()

    def warned(line):
        assert run(line) == 0
        return [each for each in capsys.readouterr().err.splitlines() if "counts.csv" in each]

    named, whole = "(--data FILE)", "(--split all)"
    (told,) = warned("evaluate a --num_particles 2")
    assert "is not what the run in a was trained with" in told and named in told and whole in told
    told = warned("compare a b --num_particles 2")
    assert len(told) == 2 and all(whole in each and named not in each for each in told)
    monkeypatch.setattr("pyro_vae.cli.known_files.contents", None)
    for line in ("generate a 2", "impute a new.csv --num_particles 2", "diagnose a --split all"):
        assert warned(line) == []


def test_a_program_that_is_named_is_never_another(capsys):
    """The file of the training stands for no wrong name, and the run keeps what it knew."""
    assert run("train own.py:Clicks --data counts.npz --out a", *FEW) == 0
    known = {path: path.read_bytes() for path in Path("a").glob("*.json")}
    for verb in ("evaluate", "refine"):
        capsys.readouterr()
        assert run(f"{verb} a --program nosuch.py:Clicks") == 2
        assert "nosuch.py: no such file" in told(capsys)
    assert run("evaluate a --binarization static") == 2 and "taken as it is" in told(capsys)
    assert {path: path.read_bytes() for path in Path("a").glob("*.json")} == known


OTHER = PROGRAM.replace("(z).exp()", "(z).exp() + 1")  # of the same parameters


@pytest.mark.filterwarnings("default:program", "default:.*plain values differ")
def test_a_program_is_known_from_any_directory_and_by_its_contents(
    capsys, folder, judged, monkeypatch
):
    """Another one fits the parameters as well, and gives other figures."""
    near = "from near import SHIFT\n" + PROGRAM.replace("(z).exp()", "(z).exp() + SHIFT")
    Path("own.py").write_text(near)
    Path("near.py").write_text("SHIFT = 0")
    assert run("train own.py:Clicks --data counts.npz --out a", *FEW) == 0
    capsys.readouterr()
    right = judged("a")
    assert right[1] == ""
    for copied, text in (("same: as it was", near), ("other", OTHER)):
        (folder / copied).mkdir()
        (folder / copied / "own.py").write_text(text)
        (folder / copied / "near.py").write_text("SHIFT = 5")
    (folder / "link.py").symlink_to(folder / "own.py")
    known = {path: path.read_bytes() for path in Path("a").glob("*.json")}
    with monkeypatch.context() as here:
        here.chdir("same: as it was")  # but for what it imports
        figures, err = judged("../a")
        assert figures == right[0] and "same: as it was/own.py may import other modules" in err
    with monkeypatch.context() as here:
        here.chdir("other")
        figures, err = judged("../a")
        assert figures == right[0] and err.count("\n") == 1
        assert f"{folder}/own.py is taken, the file of the run in ../a; {folder}/other/own" in err
        edited, err = judged("../a --program own.py:Clicks")
        assert edited != right[0] and "own.py is not what the run in ../a was trained with" in err
        for same in (folder / "own.py", "../own.py", "../link.py"):
            assert judged(f"../a --program {same}:Clicks") == right
    Path("own.py").write_text(OTHER)  # edited in its place
    told = "program: own.py is not what the run in a was trained with, and results are those of"
    assert judged("a")[0] == edited and told in judged("a")[1]
    with monkeypatch.context() as here:
        here.chdir("same: as it was")  # it is at hand, and the other is edited
        for near in (0, 5):
            # Of other sizes: Python knows what it has compiled by the second and the size.
            Path("near.py").write_text(f"SHIFT = {near}" + "\n" * (near + 1))
            figures, err = judged("../a")
            assert (figures == right[0]) == (near == 0)
            assert f"own.py is taken, as the run in ../a was trained with it; {folder}/own" in err
    Path("own.py").write_text(PROGRAM + "# edited\n")
    assert judged("a")[0] == right[0] and told in judged("a")[1]
    known.pop(Path("a/evaluation.json"))
    assert {path: path.read_bytes() for path in known} == known


@pytest.mark.filterwarnings("default:program", "default:load")
def test_a_program_that_moved_is_said_once(capsys, folder, judged):
    assert run("train own.py:Clicks --data counts.npz --out a", *FEW) == 0
    capsys.readouterr()
    right = judged("a")
    Path("own.py").rename("moved.py")
    assert run("generate a 3") == 2 and "own.py: no such file; say once" in told(capsys)
    Path("counts.npz").rename("moved.npz")
    assert run("evaluate a --program moved.py:Clicks") == 2 and "counts.npz: no" in told(capsys)
    assert judged("a --program moved.py:Clicks --data moved.npz") == judged("a") == right
    Path("moved.py").write_text(PROGRAM.replace("Clicks", "Taps"))
    capsys.readouterr()
    assert run("generate a 3") == 2 and "it defines Taps" in told(capsys)
    said = judged("a --program moved.py:Taps")
    assert said[0] == right[0] and "moved.py is not what the run in a was trained" in said[1]
    assert run("generate a 3") == 0
    assert json.loads(Path("a/train.json").read_text())["model"] == "own.py:Clicks"
    assert run("evaluate a --program VAE") == 2 and "expected FILE.py:NAME" in told(capsys)
    Path("moved.py").rename("own.py")  # edited, and then put back
    assert judged("a --program own.py:Taps")[0] == judged("a")[0] == right[0]
    Path("own.py").write_text(PROGRAM)
    assert judged("a") == right and json.loads(Path("a/train.json").read_text())["epochs"] == 1


SHIFTED = PROGRAM[PROGRAM.index("    def model") : PROGRAM.index("    def guide")].replace(
    "(z).exp()", "(z).exp() + 1"
)


@pytest.mark.filterwarnings("default:load")
def test_the_last_program_that_is_said_counts(capsys, judged):
    Path("own.py").write_text(PROGRAM + "\n\nclass Shifted(Clicks):\n" + SHIFTED)
    assert run("train own.py:Clicks --data counts.npz --out a", *FEW) == 0
    capsys.readouterr()
    right = judged("a")
    Path("own.py").rename("moved.py")
    by_mistake = judged("a --program moved.py:Shifted")[0]
    assert by_mistake == judged("a")[0] != right[0]
    assert judged("a --program moved.py:Clicks") == judged("a") == right


def test_a_run_that_changed_hands_is_judged_by_the_files_at_hand(capsys, folder, monkeypatch):
    """Where the home of its author may not be read."""
    assert run("train own.py:Clicks --data counts.npz --out a", *FEW) == 0
    shutil.copytree(".", "mine", ignore=shutil.ignore_patterns("mine"))
    monkeypatch.chdir("mine")
    closed = f"{folder}/counts.npz", f"{folder}/own.py"
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.realpath(path) not in closed)
    capsys.readouterr()
    assert run("evaluate a --num_particles 2") == 0
    out, err = capsys.readouterr()
    assert out.startswith("counts.npz, test split, 2 data\n") and err == ""


def test_a_run_without_a_record_of_contents_is_known_by_its_place(folder, judged, monkeypatch):
    assert run("train own.py:Clicks --data counts.npz --out a", *FEW) == 0
    right = judged("a")[0]
    Path("a/program_path.json").write_text(json.dumps({"program": str(folder / "own.py")}))
    (folder / "deep").mkdir()
    monkeypatch.chdir("deep")
    assert judged("../a")[0] == right


@pytest.mark.filterwarnings("default:program", "default:data")
@pytest.mark.parametrize("place", ["{}/own.py", "link.py", "../same/own.py", "own.py"])
def test_a_run_goes_on_from_any_directory_with_its_files(capsys, folder, place, monkeypatch):
    """As an unbroken one, whatever the path by which its files are named, and judged before."""
    (folder / "deep").mkdir()
    shutil.copytree(".", "same", ignore=shutil.ignore_patterns("same", "a"))
    (folder / "deep" / "link.py").symlink_to(folder / "own.py")
    each = ["--checkpoint_every", "1", "--epochs"]
    assert run("train own.py:Clicks --data counts.npz --out whole", *each, "2") == 0
    assert run("train own.py:Clicks --data counts.npz --out a", *each, "1") == 0
    assert run("evaluate a --num_particles 2", "--program", f"{folder}/own.py:Clicks") == 0
    before = json.loads(Path("a/train.json").read_text())
    capsys.readouterr()
    if place == "own.py":  # another one here
        Path("deep/own.py").write_text(OTHER)
        np.savez("deep/counts.npz", np.ones(3))
    with monkeypatch.context() as here:
        here.chdir("deep")
        out = f"{folder}/a --resume true"
        line = f"train {place.format(folder)}:Clicks --data ./counts.npz --out {out}"
        assert run(line, *each, "2") == 0
        assert run(line.replace("Clicks", "made"), *each, "2") == 2
        assert run(f"train --out={folder}/a --resume true --epochs 2") == 0  # nothing is left
    err = capsys.readouterr().err
    taken = {"own.py": 4, "../same/own.py": 1}.get(place, 0)
    assert err.count(" is taken, the file of the run in") == taken
    assert json.loads(Path("a/train.json").read_text()) == before | {"epochs": 2}
    whole, a = (read_bundle(each, "program", torch.device("cpu"))[0] for each in ("whole", "a"))
    assert all(torch.equal(whole[name], a[name]) for name in whole)
    Path("own.py").write_text(OTHER)
    line = "train own.py:Clicks --data counts.npz --out a --resume"
    assert run(line, "true", *each, "3") == 2  # its code is other code
    err = told(capsys)
    assert (
        "model with other code, or other numbers in it: edited since" in err and "python" not in err
    )
    assert "or go on as it is now by --resume settings\n" in err
    assert run(line, "settings", *each, "3") == 0
    assert "own.py is not what the run in a was trained with, and it is read as it is now" in told(
        capsys
    )
    assert run("evaluate a --num_particles 2") == 0 and told(capsys) == ""


@pytest.mark.filterwarnings("default:program", "default:.*plain values differ")
def test_a_run_goes_on_with_the_program_that_was_said(capsys, folder, judged, monkeypatch):
    """A file that has gone or changed is the one that is named since then."""
    assert run("train own.py:Clicks --data counts.npz --out a", *FEW) == 0
    before = json.loads(Path("a/train.json").read_text())
    Path("new").mkdir()
    Path("own.py").rename("new/own.py")
    capsys.readouterr()
    assert run("train --resume true --out a --epochs 2") == 2
    assert f"{folder}/own.py: no such file" in told(capsys)
    assert judged("a --program new/own.py:Clicks")[1] == ""
    monkeypatch.chdir("new")
    assert run("train --resume true --out ../a --epochs 2") == 0 and told(capsys) == ""
    assert json.loads(Path("../a/train.json").read_text()) == before | {"epochs": 2}
    monkeypatch.chdir(folder)
    Path("new/own.py").rename("other.py")  # and is edited
    Path("other.py").write_text(PROGRAM + "\nTaps = Clicks\n")
    line = "train other.py:Clicks --data counts.npz --resume settings --out a --epochs 3"
    assert run(line.replace("Clicks", "made")) == 2 and "model is 'other.py" in told(capsys)
    assert run(line) == 0
    assert "other.py is not what the run in a was trained with, and it is read" in told(capsys)
    Path("other.py").rename("last.py")
    assert judged("a --program last.py:Taps")[1] == ""
    assert run("train --resume settings --out a --epochs 4") == 0 and told(capsys) == ""
    assert judged("a")[1] == ""
    Path("deep").mkdir()
    shutil.copy("last.py", "deep")
    Path("last.py").write_text("edited")
    monkeypatch.chdir("deep")
    assert run("train last.py:Taps --data ../counts.npz --resume true --out ../a --epochs 5") == 0
    assert "last.py is taken, as the run in ../a was trained with it; " in told(capsys)


def test_a_project_that_is_copied_whole_has_the_same_modules():
    """Those in many folders are not compared: they may be others."""
    one = Path("one")
    for path in ("near.py", "parts/deep/far.py", "own.py"):
        (one / path).parent.mkdir(parents=True, exist_ok=True)
        (one / path).write_text("NAME = 1")
    two = Path(shutil.copytree(one, "two"))
    shutil.copytree("one", "one/.cache")

    def differ(here="two/own.py"):
        return _has_other_modules(os.path.realpath(here), os.path.realpath("one/own.py"))

    assert not differ()
    (two / "own.py").write_text("NAME = 2")  # the program itself is compared elsewhere
    assert not differ()
    for path in ("near.py", "parts/deep/far.py", "parts/new.py"):
        (two / path).write_text("NAME = 2")
        assert differ()
        shutil.rmtree(two)
        shutil.copytree("one", "two")
    shutil.copy("one/own.py", "two/parts/deep")
    (two / "parts/deep/far.py").unlink()
    assert not differ("two/parts/deep/own.py")  # it has none that it could import
    for n in range(100):
        (one / "parts" / str(n)).mkdir()
    assert differ()


@pytest.mark.parametrize("above", ["my-packages", "site-packages", "lib/dist-packages"])
def test_each_program_has_neighbours_of_its_own(above):
    """Runs of two projects are compared in one process, whatever the folder above is called."""
    one, two = f"{above}/one", f"{above}/two"
    for name in (one, two):
        Path(name, "parts").mkdir(parents=True)
        Path(name, "near.py").write_text("import parts.deep\nNAME = parts.deep.NAME")
        Path(name, "parts", "deep.py").write_text(f"NAME = {name!r}")
        text = (
            f"import sys\nsys.path.append({str(Path(name, 'src').resolve())!r})\nimport lib, near\n"
        )
        late = "def late():\n    import late\n    return late.NAME\n"
        text += f"{PROGRAM}\n{late}\nmade.name, made.lib, made.late = near.NAME, lib.NAME, late"
        Path(name, "own.py").write_text(text)
        Path(name, "late.py").write_text(f"NAME = {name!r}")
        Path(name, "src").mkdir()
        Path(name, "src", "lib.py").write_text(f"NAME = {name!r}")
    before = [*sys.path], {*sys.modules}
    for name in (one, two, one):
        with imports_apart():
            made = own_program(f"{name}/own.py:made", {})
            assert {made.name, made.lib, made.late()} == {name}
    assert ([*sys.path], {*sys.modules}) == before
