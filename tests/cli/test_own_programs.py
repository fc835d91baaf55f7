"""The command line for work of one's own: programs of a file, arrays of a file."""

import base64
import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import FEW, PROGRAM, run, told

import pyro_vae as pv
from pyro_vae import cli
from pyro_vae.cli.compare import _table
from pyro_vae.cli.report import table
from pyro_vae.cli.report_file import write_report
from pyro_vae.cli.runs import chosen_split, fresh_folder, removed_if_empty, settings_of
from pyro_vae.data.array_files import read_arrays
from pyro_vae.errors import ConfigError
from pyro_vae.storage.bundle import read_bundle

pytestmark = pytest.mark.usefixtures("folder")


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
        ("train own.py:Clicks --data own.npd", "unknown data set 'own.npd', and no such file; cho"),
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
    assert run(line) == 130
    err = capsys.readouterr().err
    assert "go on by pyro-vae train --resume true --out a\n" in err and "pv.fit" not in err
    Path("stop").unlink()
    assert run("train --resume true --out a") == 0
    assert run(line + " --resume true --lr 0.1") == 2  # of a run that was there, nothing is written
    assert json.loads(Path("a/train.json").read_text())["lr"] == 0.001


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


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train own.py:Clicks --data counts.npz --warmup 2", "warmup: got 2.0, expected a number"),
        ("train VEA", "did you mean VAE?"),
        ("train --data digit", "or a folder of images"),
        ("train --objective foo", "'ELBO', "),
        ("impute a", "got a run of own.py:Clicks, expected one of TableVAE"),
        ("evaluate a", "where the data of the run in a lie now: pyro-vae evaluate a --data FILE"),
    ],
)
def test_a_wrong_line_is_told_what_is_right(line, said, capsys):
    Path("moved.npz").write_bytes(Path("counts.npz").read_bytes())
    assert run("train own.py:Clicks --data moved.npz --out a", *FEW) == 0
    Path("moved.npz").unlink()
    capsys.readouterr()
    assert run(line) == 2
    err = capsys.readouterr().err
    assert said in err and "'elbo'" not in err and err.count("\n") == 1
    assert not Path("runs").exists() or not [*Path("runs").iterdir()]


def test_two_runs_without_a_folder_take_one_each(capsys):
    one = fresh_folder(Path("runs") / "clicks-counts")  # as another run that has just begun
    assert run("train own.py:Clicks --data counts.npz", *FEW) == 0
    assert "run folder: runs/clicks-counts-2" in capsys.readouterr().out and one.is_dir()
    with pytest.raises(RuntimeError), removed_if_empty(one):
        raise RuntimeError
    assert not one.exists()


def test_runs_that_lie_behind_a_link_to_nothing_are_refused():
    Path("runs").symlink_to("disk_that_is_not_there")
    told = r"^out: got 'runs', which is a link to nothing, expected a folder; name another$"
    with pytest.raises(ConfigError, match=told):
        fresh_folder(Path("runs") / "clicks")


def test_a_demo_that_is_refused_leaves_no_folder(capsys):
    for refused in ("--device cuda:99", "--epochs 0"):
        assert run(f"demo {refused} --progress false") == 2
        assert not Path("runs/demo").exists()


def test_a_run_that_was_killed_says_how_it_goes_on(capsys):
    own = "own.py:Clicks --data counts.npz --checkpoint_every 1 --epochs 1"
    assert run(f"train {own} --out", "a b") == 0
    assert "pyro-vae evaluate 'a b'\n" in capsys.readouterr().out
    Path("a b/program.safetensors").unlink()  # which is written last
    assert run("evaluate", "a b") == 2
    err = capsys.readouterr().err
    assert "the run has not come to its end" in err and "--resume true --out 'a b'\n" in err


def test_a_run_of_python_that_was_killed_is_told_the_way_of_python_alone(capsys):
    program, x = runpy.run_path("own.py")["Clicks"](), torch.from_numpy(np.load("counts.npy"))
    pv.fit(program, x, epochs=1, out="a", checkpoint_every=1, progress=False)
    args = "--program own.py:Clicks --data counts.npy"
    assert run(f"evaluate a {args} --num_particles 2") == 0
    Path("a/program.safetensors").unlink()
    capsys.readouterr()
    assert run("evaluate a") == 2
    assert told(capsys).endswith("go on by pv.fit(..., resume=True)\n")


@pytest.mark.filterwarnings("default:refine")
def test_a_report_leaves_out_what_is_of_weights_before_the_run_went_on(capsys):
    few = "--rows 1 --num_draws 4 --warmup 4"
    ways = "evaluate a --num_particles 3", "diagnose a", f"refine a {few}"
    sections = "Evaluation", "Refined posteriors", "Diagnosis"
    own = "own.py:Clicks --data counts.npz --checkpoint_every 1"
    assert run(f"train {own} --out a --epochs 1") == 0
    for line in ways:
        assert run(line) == 0
    Path("a/mine.png").write_bytes(Path("a/curves.png").read_bytes())

    def page():
        return Path("a/report.html").read_text()

    first, before = page(), json.loads(Path("a/evaluation.json").read_text())
    assert all(f"<h2>{each}</h2>" in first for each in sections) and "weights" not in first
    assert run("train --resume true --out a --epochs 1") == 0
    assert "Left out" not in page()  # it has trained no more
    assert run("train --resume true --out a --epochs 2") == 0
    assert "<h2>Mine</h2>" in page() and page().count("<h2>Diagnosis</h2>") == 0
    assert not any(f"<h2>{each}</h2>" in page() for each in sections)
    told = "run again: diagnosis.json, evaluation.json, refined.json, diagnosis.png."
    assert told in page()
    assert run(ways[0]) == 0
    assert [f"<h2>{each}</h2>" in page() for each in sections] == [True, False, False]
    after = json.loads(Path("a/evaluation.json").read_text())
    assert after["weights"] != before["weights"] and after["elbo"] != before["elbo"]
