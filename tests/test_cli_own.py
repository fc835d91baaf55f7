"""The command line for work of one's own: programs of a file, arrays of a file, comparisons."""

import base64
import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from PIL import Image
from scipy import sparse

import pyro_vae as pv
from pyro_vae import cli
from pyro_vae.cli.cell_scores import cell_scores
from pyro_vae.cli.compare import (
    _table,
    _tell_of_other_cells,
    _tell_of_other_densities,
    paired,
    scored_by,
)
from pyro_vae.cli.known_files import _has_other_modules
from pyro_vae.cli.own_program import imports_apart, own_program
from pyro_vae.cli.report import table
from pyro_vae.cli.report_file import write_report
from pyro_vae.cli.runs import chosen_split, settings_of
from pyro_vae.conditionals import Column
from pyro_vae.data.array_files import read_arrays
from pyro_vae.storage.bundle import read_bundle

PROGRAM = """
import pyro, pyro.distributions as dist, torch

class Clicks(torch.nn.Module):
    def __init__(self, latent_dim=2):
        super().__init__()
        self.rate, self.code = torch.nn.Linear(latent_dim, 5), torch.nn.Linear(5, 2 * latent_dim)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.rate.in_features), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(self.rate(z).exp()).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.code(x.log1p()).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

class Minibatch(Clicks):
    def model(self, x):
        with pyro.plate("data", len(x), subsample_size=5) as rows:
            pyro.sample("x", dist.Poisson(x[rows] + 1.0).to_event(1), obs=x[rows])

    def guide(self, x):
        pass

class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.vectors, self.code = torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4)
        self.out = torch.nn.Linear(2, 4)

    def model(self, words, lengths, kept):
        with pyro.plate("data", len(words)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            inside = (torch.arange(5) < lengths[..., None]) & kept
            each = dist.Categorical(logits=self.out(z).unsqueeze(-2).expand(*z.shape[:-1], 5, 4))
            pyro.sample("w", each.mask(inside).to_event(1), obs=words)

    def guide(self, words, lengths, kept):
        with pyro.plate("data", len(words)):
            loc, log_scale = self.code(self.vectors(words).mean(-2)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

made = Clicks(3)
model, guide = made.model, made.guide
half = torch.nn.Linear(2, 2)

def broken():
    return half
"""
GLOBALS = """
from __future__ import annotations
from dataclasses import dataclass
import pyro, pyro.distributions as dist, pyro_vae as pv, torch

@dataclass
class Prior:
    scale: float = 1.0

def model(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(5), Prior().scale).to_event(1))
    b = pyro.sample("b", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson((w + b).exp()).to_event(1), obs=x)

def guide(x):
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(5)), 0.1).to_event(1))
    pyro.sample("b", dist.Normal(torch.zeros(()), 0.1))

whole = pv.Program(model, guide)

def pair():
    return pv.Program(model, guide)

def rowwise(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Poisson(rate[:, None].expand(x.shape)).to_event(1), obs=x)

def by_rows():
    return pv.Program(rowwise, pyro.infer.autoguide.AutoNormal(rowwise))
"""
FEW = ["--epochs", "1", "--checkpoint_every", "null"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a program, and the same counts in each kind of file."""
    monkeypatch.chdir(tmp_path)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    x = torch.poisson(torch.full((40, 5), 2.0))
    Path("own.py").write_text(PROGRAM)
    Path("globals.py").write_text(GLOBALS)
    Path("syntax.py").write_text("def (")
    Path("script.py").write_text("raise SystemExit(0)")
    np.savez("counts.npz", x=x.numpy().astype(np.uint16))
    np.savez("two.npz", x=(x > 1).numpy(), c=np.arange(40) % 3)
    beyond = sparse.csr_matrix(np.eye(40, 5, dtype=np.float32))
    beyond.indices[0] = 10**6  # of 5 columns
    sparse.save_npz("beyond.npz", beyond)
    np.savez("named.npz", images=np.ones((40, 2)), labels=np.arange(40) % 3)
    np.savez("labelled.npz", x=x.numpy().astype(np.uint16), y=np.arange(40) % 3)
    words, kept = x.clamp(max=3).numpy().astype(np.uint8), np.ones((40, 5), bool)
    np.savez("text.npz", words=words, lengths=np.arange(40) % 5 + 1, kept=kept)
    np.savez("ragged.npz", x=np.ones((40, 2)), y=np.ones((30, 2)))
    np.savez("words.npz", x=np.full((40, 2), "a"))
    np.savez("few.npz", x=np.ones((4, 2)))
    Path("torn.npz").write_bytes(b"PK no")
    Path("text.npy").write_text("words")
    Path("semi.csv").write_text("a;b\n" + "1,5;2\n" * 40)
    Path("points.csv").write_text("a;b\n" + "1.5;2\n" * 40)
    Path("holes.csv").write_text("a,b,age,d,e\n1,2,,4,5\n" + "1,2,3,4,5\n" * 40)
    Path("torn.pt").write_bytes(b"PK no")
    Path("empty.pt").touch()
    np.save("counts.npy", x.numpy())
    np.save("bits.npy", (x > 1).numpy())
    torch.save(x.double(), "counts.pt")
    lines = [",".join("abcde"), *(",".join(str(int(v)) for v in row) for row in x)]
    Path("counts.csv").write_text("\n".join(lines))
    Path("images").mkdir()
    for n in range(20):
        Image.fromarray(np.full((4, 4), n * 12, np.uint8)).save(f"images/{n:02d}.png")
    yield tmp_path
    torch.random.set_rng_state(state)


def run(line, *more):
    quiet = line.split()[0] in ("train", "evaluate", "refine", "compare")
    return cli.main([*line.split(), *more, *(["--progress", "false"] if quiet else [])])


@pytest.mark.parametrize(
    ("line", "latents"),
    [
        ("own.py:Clicks --data counts.npz", 2),
        ("own.py:Clicks --data counts.npy --options.latent_dim 1", 1),
        ("own.py:made --data counts.pt", 3),
        ("own.py:Clicks --data bits.npy", 2),
        ("own.py --data counts.csv", 3),
        ("VAE --data images --hidden 3 --latent_dim 2", None),
        ("LadderVAE --data bits.npy --options.latent_dims [3,2] --options.hidden [8,4]", None),
        ("M2 --latent_dim 2 --hidden 4", None),
        ("SBN --data bits.npy --options.latent_dims [3]", None),
        ("DEF --data counts.npy --options.latent_dims [3,2] --hidden [4]", None),
    ],
)
def test_a_program_trains_by_name(line, latents):
    assert run(f"train {line} --out run", *FEW) == 0
    names = {path.name for path in Path("run").iterdir()}
    assert {"config.json", "train.json", "program.safetensors", "report.html"} <= names
    tensors, _ = read_bundle("run", "program", torch.device("cpu"))
    rates = [value.shape for name, value in tensors.items() if name.endswith("rate.weight")]
    assert rates == ([] if latents is None else [(5, latents)])


def test_labels_beside_the_rows_of_a_file_are_left_out_aloud(capsys):
    told = "labelled.npz: left out y, which the model does not take\n"
    assert run("train own.py:Clicks --data labelled.npz --out run", *FEW) == 0
    assert capsys.readouterr().out.startswith(told)
    assert run("evaluate run --num_particles 2") == 0
    assert capsys.readouterr().out.startswith(told)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train absent.py:A", "absent.py: no such file"),
        ("train own.py:Nope --data counts.npy", "has no 'Nope'; it defines Clicks"),
        ("train globals.py:Nope --data counts.npy", "it defines Prior, model, guide, whole, pair"),
        ("train own.py:half --data counts.npy", "got Linear, expected an object with model"),
        ("train own.py:broken --data counts.npy", "got Linear, expected an object with model"),
        ("train syntax.py:A --data counts.npy", "syntax.py: fails with SyntaxError"),
        ("train script.py:A --data counts.npy", "script.py: fails with SystemExit: 0"),
        ("train own.py:Clicks --options.width 3", "unexpected keyword argument 'width'; it takes"),
        ("train own.py:made --options.latent_dim 3", "is a program already, and takes none"),
        ("train own.py:Clicks --hidden 3", "or give --options.hidden"),
        (
            "train own.py:Clicks",
            "code', Linear(in_features=5, out_features=4, bias=True), got",
        ),
        ("train own.py:Clicks", "got shape (1297, 64)); these are digits, the default of --data"),
        ("train own.py:Minibatch --data counts.npy", "plate 'data' draws some of the rows"),
        ("train --program own.py:Clicks", "--program own.py:Clicks; did you mean --model?"),
        ("train own.py:Clicks --learning_rate 0.1", "--learning_rate 0.1; did you mean --lr?"),
        ("train own.py:Clicks --data absent.npz", "absent.npz: no such file"),
        ("train VAE --data bits.npy --binarization dynamic", "is a file, which is taken as it is"),
        ("train own.py:Clicks --data ragged.npz", "arrays of {'x': 40, 'y': 30} rows"),
        ("train own.py:Clicks --data words.npz", "expected numbers"),
        ("train own.py:Clicks --data few.npz", "got 4 rows, expected at least 20"),
        ("train own.py:Clicks --data torn.npz", "torn.npz: not a sound .npz file"),
        ("train own.py:Clicks --data beyond.npz", "beyond.npz: not a sound .npz file"),
        ("train own.py:Clicks --data text.npy", "text.npy: not a sound .npy file (another kind of"),
        ("train --data points.csv", "points.csv: got columns that commas do not part"),
        ("train own.py:Clicks --data semi.csv", "expected a comma between columns and a point"),
        ("train own.py:Clicks --data holes.csv", "; holes.csv has empty cells in age"),
        ("train VAE --data holes.csv", "or TableVAE on a table; holes.csv has empty cells in age"),
        (
            "train own.py:Clicks --options.latent_dim three",
            "got latent_dim 'three', and fails with",
        ),
        (
            "train --data counts.csv --kinds a=count",
            "expected values by their names, as '{\"visits",
        ),
        ("train own.py:Clicks --data torn.pt", "torn.pt: not a sound .pt file"),
        ("train own.py:Clicks --data empty.pt", "empty.pt: not a sound .pt file"),
        ("train own.py:Clicks --data own.py", "unknown data set 'own.py'; choose digits"),
        ("train MultimodalVAE --data two.npz", "missing a required argument: 'modalities'"),
        ("train vae --data counts.npy", "SentenceLM, TableVAE; did you mean VAE?"),
        ("train VAE --objective IWAB", "objective: got 'IWAB', expected one of 'ELBO', "),
        ("train VAE --resume maybe", "resume: got 'maybe', expected true or false or one of 'set"),
        ("train VAE --epochs one", "epochs: got 'one', expected an integer"),
        ("train VAE --beta much", "beta: got 'much', expected a number"),
        ("train VAE --hidden wide", "expected an integer or a list of integers, as [200,200]"),
        ("train VAE --z_dim 3", "unrecognized arguments: --z_dim 3; did you mean --latent_dim?"),
        ("train VAE --batchsize 3", "did you mean --batch_size?"),
        ("train own.py:Clicks counts.npy", "counts.npy; did you mean --data counts.npy?"),
        ("train --model VAE counts.npy", "counts.npy; did you mean --data counts.npy?"),
        ("generate absent --n=5 7", "unrecognized arguments: 7"),
        ("impute absent --how=mean counts.csv other.csv", "unrecognized arguments: other.csv"),
        ("evaluate absent other", "other; of several runs: pyro-vae compare RUN RUN"),
        ("evaluate absent --samples 3", "--samples 3; did you mean --num_particles?"),
        ("refine absent --samples 3", "--samples 3; did you mean --num_draws?"),
        ("fit own.py:Clicks", "'demo'); did you mean train?"),
        ("evaluate", "arguments are required: run"),
        (
            "train VAE --data named.npz",
            "has arrays images, labels, and the model takes x, observed",
        ),
        ("evaluate absent --num_particles few", "num_particles: got 'few', expected an integer"),
        ("train Nonesuch", "got 'Nonesuch', expected FILE.py:NAME or one of VAE"),
        ("refine absent", "(there is no such folder)"),
        ("compare absent", "expected two or more"),
        ("compare absent images/../absent", "expected two or more different folders"),
        ("compare absent other", "absent: no run of"),
        ("compare", "runs"),
    ],
)
def test_bad_lines_are_told_in_one(line, said, capsys):
    assert run(line) == 2
    out, err = capsys.readouterr()
    assert said in err and err.startswith("pyro-vae: error: ") and err.count("\n") == 1
    assert out == "" and not list(Path().rglob("program*"))


def test_a_report_has_numbers_in_full_and_a_line_for_each_site(tmp_path):
    many = {f"<z>_{k}": -6000310.8125 for k in range(30)}
    Path("evaluation.json").write_text(json.dumps({"kl": many, "kl_stderr": {"<z>_0": 0.25}}))
    page = write_report(Path()).read_text()
    assert "<td>&lt;z&gt;_0: -6000310.81 ± 0.25<br>&lt;z&gt;_1: -6000310.81<br>" in page
    assert "<br>&lt;z&gt;_11: -6000310.81<br>and 18 more</td>" in page


@pytest.mark.parametrize("site", ["z", "z_of_the_second_layer_from_the_top_of_the_decoder_network"])
@pytest.mark.parametrize("size", [1.0, 1e7])
def test_columns_of_what_is_said_stand_below_each_other(site, size):
    kl, units = {site: 3.0 * size, "k": -0.1}, {site: 40, "k": 1}
    figures = {"data": "a", "split": "test", "binarization": "none", "rows": 9, "num_particles": 5}
    figures |= {"elbo": -90 * size, "elbo_stderr": 2.0, "reconstruction": -8.0, "kl": kl}
    figures |= {"log_likelihood": -80 * size, "log_likelihood_stderr": None, "global_kl": kl}
    said = table(figures | {"active_units": units, "units": units}).splitlines()
    notes = ("nats", "E_q", "variance")
    assert len({max(map(line.find, notes)) for line in said[2:-1]}) == 1
    dots = {line.find(".") for line in said[2:-1] if " of " not in line.split("  variance")[0]}
    assert len(dots) == 1 and {len(said[1]), len(said[-1])} == {max(map(len, said))}
    runs = {"a" * 30: {"log_likelihood": -9.0 * size, "log_likelihood_stderr": 1.0, "model": "VAE"}}
    runs["b"] = runs["a" * 30] | {"difference": -size, "difference_stderr": 0.1}
    head, *rows, _ = _table(figures, runs).splitlines()[1:]
    assert {line.index(name) for line, name in zip(rows, ("aaa", "b ("), strict=True)} == {
        head.index("run")
    }


@pytest.mark.filterwarnings("default:refine")
def test_own_runs_are_judged_refined_drawn_and_compared(capsys):
    for name, options in {"a": "", "b": "--options.latent_dim 1"}.items():
        assert run(f"train own.py:Clicks --data counts.npz --out {name} {options}", *FEW) == 0
    capsys.readouterr()
    assert run("evaluate a --num_particles 5 --split train") == 0
    assert capsys.readouterr().out.startswith("counts.npz, train split, 36 data\n")
    assert run("diagnose a") == 0
    assert run("refine a --rows 2 --num_draws 4 --warmup 4 --chains 3") == 0
    warned = capsys.readouterr().err  # too short to mix
    assert warned.startswith("pyro-vae: warning: refine: R-hat") and warned.count("\n") == 1
    assert run("generate --seed 3 a") == run("generate -n 7 a") == 0
    with np.load("a/samples.npz") as arrays:
        x = arrays["x"]
    assert x.shape == (7, 5) and (x == x.round()).all()  # draws, not the means of p(x | z)
    with np.load("a/refined.npz") as arrays:
        assert arrays["z"].shape == (3, 4, 2, 2)
    page = Path("a/report.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert {base64.b64decode(picture)[:4] for picture in pictures} == {b"\x89PNG"}
    assert len(pictures) == 2 and "http" not in page and "elbo stderr" not in page
    assert "<th>posterior</th>" not in page  # of the models of the library
    assert re.search(r"<th>log likelihood</th><td>-\d+\.\d+ ± \d", page)
    assert '<meta name="viewport" content="width=device-width">' in page  # else a phone shrinks it
    capsys.readouterr()
    assert run("compare a b --num_particles 5 --out both --split valid") == 0
    assert "best" in capsys.readouterr().out and Path("both/compare.png").stat().st_size > 3000
    rows = json.loads(Path("both/compare.json").read_text())["runs"]
    first, last = rows.values()
    assert first["observed"] == last["observed"] == {"x": "Poisson"}
    assert last["difference"] == pytest.approx(last["log_likelihood"] - first["log_likelihood"])
    assert run("train own.py:Clicks --data counts.npy --out c", *FEW) == 0
    assert run("compare a c") == 2
    assert "their likelihoods cannot be compared" in capsys.readouterr().err


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
    assert f"{folder / 'images'}: no such file or folder\n" in told(capsys)


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


@pytest.mark.filterwarnings("default:refine")
@pytest.mark.parametrize("name", ["whole", "pair"])
def test_a_program_of_two_functions_is_judged_drawn_and_refined(name, capsys):
    """Of a file with annotations as text."""
    assert run(f"train globals.py:{name} --data counts.npy --out run", *FEW) == 0
    assert run("evaluate run --num_particles 5 --split train") == 0
    figures = json.loads(Path("run/evaluation.json").read_text())
    shared = figures["global_kl"]
    # Each KL is a closed form, and a datum has 1/36 of them: with the reconstruction they are the
    # ELBO, but for log q(w, b) - log p(w, b) at 10 draws: 0.015 nats of a datum (|z| < 5).
    assert shared["b"] == pytest.approx(0.5 * (0.01 - 1) - np.log(0.1))
    assert figures["global_kl_per_datum"] == pytest.approx(sum(shared.values()) / figures["rows"])
    total = figures["reconstruction"] - figures["global_kl_per_datum"]
    assert figures["elbo"] == pytest.approx(total, abs=5 * 0.015)
    said = capsys.readouterr().out
    assert f"nats once, {shared['b'] / figures['rows']:.2f} for each of" in said
    assert "nats per datum, 1/36 of the KL of globals in it" in said
    assert figures["num_samples"] == 21 and "median; k > 0.7 for " in said
    assert run("generate run -n 3") == 0
    with np.load("run/samples.npz") as arrays:
        assert arrays["x"].shape == (3, 5)
    assert run("refine run --num_draws 4 --warmup 4 --chains 2") == 0
    with np.load("run/refined.npz") as arrays:
        assert arrays["w"].shape == (2, 4, 5) and arrays["b"].shape == (2, 4)
    told = json.loads(Path("run/refined.json").read_text())
    assert told["rows"] == 2 and told["not_mixed"] in (0, 1)  # of 40: 2 test


def test_whole_numbers_and_flags_of_a_file_stay_what_they_are():
    """Words are an index, `kept` a mask; draws go by their site, beside the inputs they had."""
    assert run("train own.py:Words --data text.npz --out run", *FEW) == 0
    assert run("generate run -n 7 --mean false") == 0
    with np.load("run/samples.npz") as arrays:
        assert set(arrays) == {"w", "lengths", "kept"}
        assert arrays["w"].dtype == np.int64 and arrays["w"].shape == (7, 5)
        assert arrays["lengths"].shape == (7,) and len(set(arrays["lengths"])) > 1


def told(capsys):
    return capsys.readouterr().err


def test_a_run_of_fit_is_judged_where_its_program_is_named(capsys):
    """Once; by all rows, of which the command line knows no split."""
    own = runpy.run_path("own.py")
    x = np.load("counts.npy")
    pv.fit(own["Clicks"](), torch.from_numpy(x), epochs=1, out="run", progress=False)
    pv.fit(pv.models.VAE(5, 2), x > 1, epochs=1, out="vae", progress=False)
    pv.save(own["Clicks"](), "saved")
    assert run("evaluate saved/program.safetensors") == 2
    assert "expected the folder of pv.save or pv.fit(out=...) that holds it, saved" in told(capsys)
    line = "evaluate saved --program own.py:Clicks --data counts.npy --num_particles 2"
    assert run(line) == run("generate saved 3") == 0
    with np.load("saved/samples.npz") as arrays:
        assert arrays["x"].shape == (3, 5)
    for line in ("evaluate run", "compare saved run", "evaluate run --program own.py:Clicks"):
        assert run(line) == 2
        assert "once, and all commands know it from then on: pyro-vae evaluate run" in told(capsys)
    for words, lacks, line in (
        ("--program own.py:Clicks", "data are", "--program own.py:Clicks --data FILE"),
        ("--data counts.npy", "program is", "--program my_program.py:NAME --data counts.npy"),
    ):
        assert run(f"evaluate run {words}") == 2
        err = told(capsys)
        assert f"where its {lacks}; say it once" in err and err.endswith(f"evaluate run {line}\n")
    assert run("evaluate run --program own.py:Clicks --data absent.npy") == 2
    assert not Path("run/train.json").exists()
    line = "evaluate run --program own.py:Clicks --data counts.npy --num_particles 2"
    assert run(line) == 0
    assert capsys.readouterr().out.startswith("counts.npy, all rows, 40 data\n")
    assert run("generate run -n 3") == run("diagnose run --split test") == 0
    Path("moved.py").write_text(Path("own.py").read_text())
    np.save("others.npy", x[:25])
    assert run(line.replace("own.py", "moved.py").replace("counts.npy", "others.npy")) == 0
    Path("own.py").unlink()
    capsys.readouterr()
    assert run("evaluate run --num_particles 2") == 0
    assert capsys.readouterr().out.startswith("others.npy, all rows, 25 data\n")
    capsys.readouterr()
    assert run("train own.py:Clicks --data counts.npy --out run --resume true") == 2
    assert "pv.fit wrote the run in run; go on with pv.fit(" in capsys.readouterr().err
    assert run("evaluate vae --num_particles 2") == 2
    assert "where its data are; say it once" in capsys.readouterr().err
    assert run("evaluate vae --data bits.npy --num_particles 2") == 0
    assert run("evaluate vae --data digits --split all") == 2


@pytest.mark.filterwarnings("default:refine")
def test_a_guide_with_a_factor_of_each_row_is_trained_in_python_and_judged_by_all(capsys):
    """Rows that validate have no factor: train refused without a way out, refine 16 of the 40."""
    assert run("train globals.py:by_rows --data counts.npy --out a", *FEW) == 2
    err = told(capsys)
    assert "globals.py:by_rows: its guide has one factor per datum" in err
    assert "in Python, pv.fit(program, data, out='a')" in err
    made = runpy.run_path("globals.py")["by_rows"]()
    pv.fit(made, np.load("counts.npy"), epochs=1, out="b", progress=False)
    words = "--program globals.py:by_rows --data counts.npy"
    assert run(f"evaluate b {words} --num_particles 2") == 0
    assert run("generate b -n 3") == 0
    assert run("refine b --num_draws 100 --warmup 60 --chains 2") == 0
    assert json.loads(Path("b/refined.json").read_text())["rows"] == 40


@pytest.mark.parametrize(
    ("model", "data", "split"),
    [("TableVAE", "counts.csv", "all"), ("VAE", "bits.npy", "all"), ("VAE", "digits", "test")],
)
def test_a_run_of_fit_is_judged_by_all_rows_of_a_file(model, data, split):
    Path("run").mkdir()
    Path("run/config.json").write_text(json.dumps({"program": model}))
    assert chosen_split(None, settings_of("run", data=data)) == split


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


@pytest.fixture
def judged(capsys):
    def judged(line):
        assert run(f"evaluate {line} --num_particles 2") == 0
        out, err = capsys.readouterr()
        return out.partition(" data\n")[2].partition("written")[0], err

    return judged


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
    capsys.readouterr()
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


def test_a_run_that_ends_in_its_first_epoch_is_gone_on_with(capsys):
    ends = """
from pathlib import Path

class Ends(Clicks):
    steps = 0

    def guide(self, x):
        Ends.steps += len(x) == 3
        if Ends.steps == 5 and Path("stop").exists():
            raise KeyboardInterrupt
        super().guide(x)
"""
    Path("own.py").write_text(PROGRAM + ends)
    Path("stop").touch()
    line = "train own.py:Ends --data counts.npz --batch_size 3 --out a --epochs 1"
    assert run(line) == 130 and "pyro-vae train --resume true --out a\n" in told(capsys)
    Path("stop").unlink()
    assert run("train --resume true --out a") == 0
    assert run(line + " --resume true --lr 0.1") == 2  # of a run that was there, nothing is written
    assert json.loads(Path("a/train.json").read_text())["lr"] == 0.001


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


def test_files_of_one_array_hold_the_same_rows():
    whole = read_arrays(Path("counts.npz")).whole
    assert whole.dtype == read_arrays(Path("counts.csv")).whole.dtype == torch.int64
    for name in ("counts.npz", "counts.npy", "counts.pt", "counts.csv"):
        assert torch.equal(read_arrays(Path(name)).in_floats().whole, whole.float())
    two = read_arrays(Path("two.npz"))
    assert two.whole["x"].dtype == torch.bool
    two = two.in_floats()
    assert two.whole["c"].dtype == torch.int64 and two.whole["x"].dtype == torch.float32
    assert two.test["c"].tolist() == [0, 2] and len(two.train["x"]) == 36
    images = read_arrays(Path("images")).whole
    assert images.shape == (20, 1, 4, 4) and images[2].unique().item() == pytest.approx(24 / 255)


def test_a_config_is_printed_and_read(capsys):
    assert run("train own.py:Clicks --data counts.npz --print_config") == 0
    Path("a.yaml").write_text(capsys.readouterr().out)
    assert cli.main(["train", "--config", "a.yaml", "--out", "run", *FEW]) == 0
    assert json.loads(Path("run/train.json").read_text())["model"] == "own.py:Clicks"
