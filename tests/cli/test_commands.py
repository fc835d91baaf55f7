"""The command line: help, defaults, complaints, and a small run from training to pictures."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import pyro_vae as pv
from pyro_vae import cli
from pyro_vae.cli import datasets, options, runs
from pyro_vae.cli.train import _told_of_data, about_whole_numbers
from pyro_vae.conditionals import Column
from pyro_vae.data.count_files import read_counts, read_vocabulary
from pyro_vae.data.table_files import Table, split_table
from pyro_vae.errors import DataError

SMALL = ["--latent_dim", "2", "--hidden", "8", "--device", "cpu", "--progress", "false"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)


def train(*options):
    return cli.main(["train", *SMALL, "--epochs", "2", *options])


def complaint(capsys, arguments):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("pyro-vae: error: ") and err.count("\n") == 1
    return err


def test_the_dicts_of_names_are_the_choices():
    assert set(get_args(options.Observation)) == set(options.OBSERVATIONS)
    named = get_args(options.Objective)
    assert {options.in_small(name) for name in named} == set(options.OBJECTIVES) < set(named)
    assert all(hasattr(pv, name) for name in set(named) - set(options.OBJECTIVES))
    assert set(options.MODELS) == {*pv.models.__all__} - {"Resampled"}  # beside M2
    assert set().union(*datasets.SETS.values()) == {*pv.data.NAMES}
    assert get_args(options.Binarization) == (*pv.data.BINARISATIONS, "none")


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)


def test_a_reader_that_has_had_enough_ends_a_command_quietly(monkeypatch, capfd):
    """As behind ``| head``: no traceback, and the exit code of a process that SIGPIPE ended."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as shut:
        monkeypatch.setattr("sys.stdout", shut)
        with pytest.raises(SystemExit, match="141"):
            cli.main(["--help"])
        shut.write("what Python still holds at its end goes nowhere")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_tells_each_option_its_meaning_and_its_default(command, capsys):
    assert cli.main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, parameter in inspect.signature(cli.COMMANDS[command]).parameters.items():
        positional = parameter.default is inspect.Parameter.empty
        assert (name if positional else f"--{name}") in text
        if not positional and parameter.default is not None and name != "hidden":
            shown = str(parameter.default)
            shown = shown.lower() if isinstance(parameter.default, bool) else shown
            assert f"default: {shown})" in text or f"default: {parameter.default})" in text
    documented = inspect.getdoc(cli.COMMANDS[command]).partition("Arguments:")[2].strip()
    for line in documented.splitlines():
        assert " ".join(line.partition(": ")[2].split()[:3]) in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "command"),
        (["tran"], "tran"),
        (["train", "--epoch_count", "3"], "epoch_count"),
        (["train", "--epochs", "many"], "epochs"),
        (["train", "--epochs", "0"], "epochs"),
        (["train", "--model", "GAN"], "GAN"),
        (["train", "--data", "cifar"], "cifar"),
        (["train", "--binarization", "maybe"], "maybe"),
        (["train", "--hidden", "[8,x]"], "hidden"),
        (["train", "--lr", "-1"], "lr"),
        (["train", "--beta", "-1"], "beta"),
        (["train", "--momentum", "1"], "momentum"),
        (["train", "--warmup", "2"], "warmup: got 2.0"),
        (["train", "--latent_dim", "0"], "latent_dim"),
        (["train", "--device", "abacus"], "abacus"),
        (["train", "--num_particles", "0"], "num_particles"),
        (["train", "--resume", "true"], "--out"),
        (["train", "--binarization", "none", "--observation", "Bernoulli"], "site 'x'"),
        (["train", "--model", "LinearVAE", "--observation", "Gaussian"], "observation"),
        (["train", "--model", "LinearVAE", "--network", "conv"], "network"),
        (["train", "--config", "absent.yaml"], "absent.yaml"),
        (["train", "--model", "ProdLDA"], "digits is no set of documents, which ProdLDA models"),
        (["train", "--model", "LDA", "--data", "absent.npz"], "absent.npz: no such file"),
        (
            ["train", "--model", "LDA", "--data", "none"],
            "choose 20news, 20news_etm, reuters or a file .npz",
        ),
        (["train", "--data", "20news"], "no set of images"),
        (["train", "--vocab", "words.txt"], "vocab"),
        (["train", "--model", "DMM", "--data", "jsb", "--network", "conv"], "network: DMM"),
        (["topics", "absent"], "absent"),
        (["evaluate"], "run"),
        (["evaluate", "absent"], "absent"),
        (["generate", "absent"], "absent"),
        (["diagnose", "absent"], "absent"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(arguments, named, capsys, tmp_path):
    assert named in complaint(capsys, arguments)
    assert list(tmp_path.rglob("program*")) == []


def test_a_run_from_training_to_pictures(capsys, tmp_path):
    assert train("--out", "run", "--objective", "IWAE", "--num_particles", "2") == 0
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert json.loads((run / "train.json").read_text())["objective"] == "iwae"
    expected = {"config.json", "train.json", "history.csv", "program.safetensors", "curves.png"}
    assert expected <= names and "tensorboard" in names
    assert "run folder: run" in capsys.readouterr().out

    options = ["--num_particles", "8", "--device", "cpu", "--progress", "false"]
    assert cli.main(["evaluate", "run", "--rows", "40", *options]) == 0
    table = capsys.readouterr().out
    figures = json.loads((run / "evaluation.json").read_text())
    # The figures are those of the verbs, on the same data.
    vae = pv.load(run)
    x = pv.data.load("digits", binarization="dynamic").test[:40]
    torch.manual_seed(0)
    expected = pv.log_likelihood(vae, x, num_particles=8)
    assert figures["log_likelihood"] == expected.mean
    assert figures["log_likelihood_stderr"] == expected.stderr
    assert figures["elbo"] <= figures["log_likelihood"]
    torch.manual_seed(0)  # those of `pyro-vae diagnose` with this seed
    assert figures["kl"] == pv.diagnose(vae, x).kl
    assert "by these draws" in table and "1 draw each" in table
    assert (figures["rows"], figures["units"]) == (40, {"z": 2})
    for text in (f"{expected.mean:.2f} ± {expected.stderr:.2f}", "K = 8", "ELBO", "active units"):
        assert text in table
    assert table.startswith("digits, test split, 40 data, binarization dynamic\n")

    assert cli.main(["generate", "run", "-n", "5", "--device", "cpu"]) == 0
    with np.load(run / "samples.npz") as arrays:
        images = arrays["images"]
    assert images.shape == (5, 1, 8, 8) and images.min() >= 0 and images.max() <= 1
    assert (run / "samples.png").read_bytes().startswith(b"\x89PNG")

    capsys.readouterr()
    assert cli.main(["diagnose", "run", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    found = json.loads((run / "diagnosis.json").read_text())
    assert "one draw of the guide each" in said
    assert "unit   0" in said and " ".join(found["verdict"].split()) in " ".join(said.split())
    assert (run / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    assert "got a VAE, expected a topic model" in complaint(capsys, ["topics", "run"])
    # A folder that holds a run is never trained over, unless asked to go on.
    before = (run / "program.safetensors").read_bytes()
    assert "another run" in complaint(capsys, ["train", *SMALL, "--out", "run"])
    assert (run / "program.safetensors").read_bytes() == before


@pytest.fixture
def counts(tmp_path):
    """Return counts of two topics of three words each; a document in ten has no words."""
    torch.manual_seed(0)
    x = torch.poisson(torch.tensor([[4.0, 2, 1, 0, 0, 0], [0, 0, 0, 3, 3, 3]]).repeat(60, 1))
    x[::10] = 0
    (tmp_path / "words.txt").write_text("ant\nbee\ncat\nmusik\nnoise\nsöng\n", encoding="utf-8")
    np.savez(tmp_path / "dense.npz", counts=x.numpy().astype(np.uint8))
    sparse.save_npz(tmp_path / "rows.npz", sparse.csr_matrix(x.numpy()))
    sparse.save_npz(tmp_path / "places.npz", sparse.coo_array(x.numpy()))
    sparse.save_npz(tmp_path / "columns.npz", sparse.csc_matrix(x.numpy()))
    return x


def test_counts_are_the_same_in_whatever_form_scipy_wrote_them(counts):
    whole = read_counts(Path("dense.npz"))
    for name in ("rows", "places", "columns"):
        found = read_counts(Path(f"{name}.npz"))
        for split in ("train", "valid", "test"):
            assert np.array_equal(getattr(found, split).toarray(), getattr(whole, split))


@pytest.mark.filterwarnings("default:data")
def test_a_run_of_documents_knows_its_words(counts, capsys, monkeypatch, tmp_path):
    """The columns mean what they meant in training, whatever has become of the file of words."""
    words = (tmp_path / "words.txt").read_text(encoding="utf-8")
    np.savez("dense.npz", x=counts[counts.sum(-1) > 0].numpy())
    sparse.save_npz("rows.npz", sparse.csr_matrix(counts[counts.sum(-1) > 0].numpy()))
    options = ("--model", "GSM", "--data", "rows.npz", "--vocab", "words.txt", "--out", "run")
    assert train(*options, "--checkpoint_every", "1") == 0
    assert cli.main(["topics", "run"]) == 0
    first = (tmp_path / "run" / "topics.json").read_text()
    (tmp_path / "words.txt").write_text(words.replace("bee", "wasp"), encoding="utf-8")
    capsys.readouterr()
    said = "got 'wasp' as word 1, but the run in run was trained with 'bee'"
    assert said in complaint(capsys, ["topics", "run", "--vocab", "words.txt"])
    again = ["train", *SMALL, *options, "--epochs", "3", "--resume", "true"]
    assert said in complaint(capsys, again)
    for same in ("rows.npz", "./rows.npz", str(tmp_path / "rows.npz")):
        (tmp_path / "run" / "topics.json").unlink()
        assert cli.main(["topics", "run", "--data", same]) == 0
        again = json.loads((tmp_path / "run" / "topics.json").read_text())
        assert again == json.loads(first) | {"data": same}
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir("deep")  # where another file has the name
    np.savez("rows.npz", x=np.ones((40, 6)))
    assert cli.main(["topics", "../run", "--data", "../rows.npz"]) == 0
    again = json.loads((tmp_path / "run" / "topics.json").read_text())
    assert again == json.loads(first) | {"data": "../rows.npz"}
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    sparse.save_npz("rows.npz", sparse.csr_matrix(counts[1:100:2].numpy()))
    assert cli.main(["topics", "run"]) == 0
    (warned,) = [line for line in capsys.readouterr().err.splitlines() if "rows.npz" in line]
    assert "is not what the run in run was trained with" in warned and warned.endswith(
        "(--data FILE)"
    )
    # A form feed, or a line break of other systems, is no end of a word.
    (tmp_path / "words.txt").write_bytes("\r\n".join(words.split()).replace("a", "\x0c").encode())
    odd = words.replace("a", "\x0c").strip("\n").split("\n")
    assert read_vocabulary(tmp_path / "words.txt") == (*odd,)


def test_topics_of_a_file_from_training_to_their_words(counts, capsys, tmp_path):
    """Sparse and dense rows are the same data, and the figures are those of the verbs."""
    options = ("--data", "rows.npz", "--vocab", "words.txt", "--out", "rows")
    assert train("--model", "ProdLDA", "--momentum", "0.99", *options) == 0
    assert "0.99,\n" in (tmp_path / "rows" / "config.json").read_text()
    assert "left out 12 documents without words" in capsys.readouterr().out
    shown = []
    for name in ("dense", "rows"):
        np.savez(f"{name}_again.npz", **np.load(f"{name}.npz"))
        assert cli.main(["topics", "rows", "--words", "3", "--data", f"{name}_again.npz"]) == 0
        shown.append(capsys.readouterr().out.replace("dense", "rows"))
    assert shown[0] == shown[1] and "söng" in shown[0]
    assert not (tmp_path / "rows" / "topics.json").exists()  # other documents: files of their own
    judged = json.loads((tmp_path / "rows" / "topics_rows_again.json").read_text())
    assert judged["documents"] == int((counts.sum(-1) > 0).sum())
    assert (tmp_path / "rows" / "topics_dense_again.png").exists()
    assert cli.main(["topics", "rows", "--words", "3"]) == 0
    capsys.readouterr()
    few = ["--num_particles", "2", "--progress", "false"]
    assert cli.main(["evaluate", "rows", "--data", "dense_again.npz", *few]) == 0
    assert "dense_again.npz, all rows, 108 data\n" in capsys.readouterr().out
    figures = json.loads((tmp_path / "rows" / "topics.json").read_text())
    program, full = pv.load(tmp_path / "rows"), counts.sum(-1) > 0
    turn = torch.arange(120) % 20
    test = counts[(turn == 9) & full]
    assert figures["documents"] == len(test) == 6
    words = (tmp_path / "words.txt").read_text(encoding="utf-8").split()
    found = pv.topics(
        program, counts[(turn != 9) & (turn != 19) & full], vocabulary=words, num_words=3
    )
    assert figures["words"] == found.words and figures["npmi"] == pytest.approx(found.coherence)
    torch.manual_seed(0)
    bound = pv.perplexity(program, test)
    assert figures["perplexity_per_document"] == pytest.approx(bound.per_document, rel=1e-6)
    assert figures["perplexity_corpus_stderr"] == pytest.approx(bound.corpus_stderr, rel=1e-4)
    assert 1 < figures["completion_per_document"] < 20
    assert (tmp_path / "rows" / "topics.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["evaluate", "rows", "--num_particles", "3", "--progress", "false"]) == 0
    capsys.readouterr()
    assert "ProdLDA draws counts" in complaint(capsys, ["generate", "rows"])


COMPRESSED = {
    "data": np.ones(40),
    "indices": np.zeros(40, int),
    "indptr": np.arange(41),
    "shape": np.array([40, 3]),
    "format": np.array("csr"),
}


@pytest.mark.parametrize(
    ("arrays", "vocabulary", "said"),
    [
        ({"x": np.full((40, 3), 0.5)}, None, "got 0.5, expected whole counts"),
        ({"x": -np.ones((40, 3))}, None, "got -1.0"),
        ({"x": np.full((40, 3), np.nan)}, None, "got nan"),
        ({"x": np.full((40, 3), "a")}, None, "expected counts"),
        ({"x": np.ones(40)}, None, r"{'x': (40,)}, expected x or one array, counts (N, V)"),
        ({"y": np.ones((40, 3)), "z": np.ones(3)}, None, "'z': (3,)}, expected x or one array"),
        ({"x": np.ones((40, 3))}, "one\ntwo\n", "got 2 words, expected 3"),
        ({"x": np.eye(40)[:, :3]}, None, "got 3 documents with words"),
        ({"x": np.array([None])}, None, "not a sound .npz file"),
        ({"x": np.ones((40, 3))}, "one\ntwo\none\n", "got 'one' twice"),
        (COMPRESSED | {"shape": np.array([40, 10**9])}, None, "got 1000000000 words"),
        (COMPRESSED | {"format": np.array(["csr", "csr"])}, None, "not a sound .npz file"),
        ({"format": "csr", "shape": [40, 3]}, None, "not a sound .npz file"),
        ({"format": 3, "shape": [40, 3]}, None, "not a sound .npz file"),
        (COMPRESSED | {"format": "csc", "shape": [3, 40]}, None, "got 1 document with words"),
        (COMPRESSED | {"format": "csc", "shape": [3, 40], "indices": [9] * 40}, None, "not a"),
    ],
)
def test_bad_files_of_counts(arrays, vocabulary, said, capsys, tmp_path):
    if isinstance(arrays, dict):
        np.savez("bad.npz", **arrays)
    else:
        sparse.save_npz("bad.npz", arrays)
    words = []
    if vocabulary is not None:
        (tmp_path / "words.txt").write_text(vocabulary)
        words = ["--vocab", "words.txt"]
    arguments = ["train", *SMALL, "--model", "NVDM", "--data", "bad.npz", *words]
    error = complaint(capsys, arguments)
    assert said in error and ("bad.npz" in error or "words.txt" in error)


def test_a_damaged_file_of_counts_is_named(counts, capsys, tmp_path):
    whole = (tmp_path / "rows.npz").read_bytes()
    deflated = whole[:60] + b"\xff" * 30 + whole[90:]
    for damaged in (whole[: len(whole) // 2], deflated, b"", b"PK no"):
        (tmp_path / "rows.npz").write_bytes(damaged)
        arguments = ["train", *SMALL, "--model", "LDA", "--data", "rows.npz"]
        assert "rows.npz: not a sound .npz file" in complaint(capsys, arguments)


@pytest.mark.parametrize("model", ["NVDM", "GSM", "ETM", "LDA"])
def test_every_topic_model_trains_from_the_shell(model, counts):
    options = ("--objective", "analytic_elbo") if model != "LDA" else ()
    assert train("--model", model, "--data", "rows.npz", "--out", "run", *options) == 0
    assert cli.main(["topics", "run", "--num_particles", "3", "--rows", "1"]) == 0


def test_sequences_from_training_to_figures_per_step(monkeypatch, capsys, tmp_path):
    torch.manual_seed(0)
    part = pv.data.pad([torch.bernoulli(torch.full((n, 5), 0.3)) for n in (3, 6, 2, 6, 5, 4)])
    sets = pv.data.SequenceSets("jsb", part, part, part)
    monkeypatch.setattr(pv.data, "load", lambda *args, **options: sets)
    options = ("--data", "jsb", "--epochs", "1", "--batch_size", "3", "--out", "run")
    assert train("--model", "VRNN", *options) == 0
    assert cli.main(["evaluate", "run", "--num_particles", "3", "--progress", "false"]) == 0
    assert "bound per step" in capsys.readouterr().out
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    torch.manual_seed(0)
    bound = pv.elbo(pv.load("run"), part, num_particles=200).sum() / -26
    assert figures["per_step"] == pytest.approx(bound.item(), abs=5 * figures["per_step_stderr"])
    capsys.readouterr()
    assert cli.main(["generate", "run", "-n", "8"]) == 0
    with np.load("run/samples.npz") as arrays:
        rolls, lengths = torch.tensor(arrays["rolls"]), arrays["lengths"].tolist()
    assert rolls.shape == (8, 6, 5) and lengths == [3, 6, 2, 6, 5, 4, 3, 6]
    kept = torch.arange(6) < torch.tensor(lengths)[:, None]
    assert ((rolls > 0) & (rolls < 1)).all(-1).equal(kept)  # means; nothing behind the lengths
    assert (tmp_path / "run" / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_sentences_of_a_file_from_training_to_text(capsys, tmp_path):
    """The words of a run are its own, whatever data it is asked about."""
    torch.manual_seed(0)
    words = [["the", "a"], ["cat", "dog", "cow"], ["sees", "hears"], ["it", "me"]]
    lines = [" ".join(w[int(torch.randint(len(w), ()))] for w in words) for _ in range(100)]
    (tmp_path / "lines.txt").write_text("\n\n".join(lines), encoding="utf-8-sig")
    others = ["me hears cat", "zebra it"] * 10  # zebra is <unk>
    (tmp_path / "other.txt").write_text("\n".join(others))
    for model in ("SentenceVAE", "SentenceLM"):
        assert train("--model", model, "--data", "lines.txt", "--out", model) == 0
        bound = "ELBO" if model == "SentenceVAE" else "log-likelihood"
        assert f": validation {bound} -" in capsys.readouterr().out
        arguments = ["evaluate", model, "--data", "other.txt", "--num_particles", "2"]
        assert cli.main([*arguments, "--progress", "false"]) == 0
        said = capsys.readouterr().out
        assert "bound per step" in said and ("KL of z" in said) == (model == "SentenceVAE")
    known = pv.data.Vocabulary(Path("SentenceLM/vocabulary.txt").read_text().split())
    assert known[4:] == tuple(sorted(word for each in words for word in each))
    figures = json.loads((tmp_path / "SentenceLM" / "evaluation.json").read_text())
    x = known.numbers(others)  # another file is judged whole
    exact = pv.log_likelihood(pv.load("SentenceLM"), x, num_particles=1).log_prob
    assert figures["rows"] == 20 and figures["split"] == "all"
    assert figures["log_likelihood"] == pytest.approx(exact.mean().item())
    assert figures["per_step"] == pytest.approx(-exact.mean().item() / 3.5)
    assert cli.main(["generate", "SentenceVAE", "-n", "5"]) == 0
    drawn = (tmp_path / "SentenceVAE" / "samples.txt").read_text()
    assert drawn in capsys.readouterr().out and drawn.count("\n") == 5
    assert set(drawn.split()) <= {*known}
    for changed, message in (
        (["--hidden", "[3,4]"], "expected one width for SentenceVAE"),
        (["--data", "absent.txt"], "absent.txt: no such file"),
        (["--vocab", "lines.txt"], "twice"),
        (["--data", "jsb"], "jsb is no set of sentences"),
    ):
        arguments = ["train", *SMALL, "--model", "SentenceVAE", "--data", "lines.txt", *changed]
        assert message in complaint(capsys, arguments)


def test_resume_ends_where_an_unbroken_run_does(capsys, tmp_path):
    every = ["--checkpoint_every", "1"]
    assert train("--out", "whole", "--epochs", "3", *every) == 0
    assert train("--out", "broken", *every) == 0
    assert train("--out", "broken", "--epochs", "3", "--resume", "true", *every) == 0
    whole, broken = (pv.load(tmp_path / name).state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    capsys.readouterr()
    arguments = ["train", *SMALL, "--out", "broken", "--resume", "true", "--latent_dim", "3"]
    assert "latent_dim is 3" in complaint(capsys, arguments)


def test_a_run_that_patience_has_ended_says_how_it_goes_on(capsys):
    """By the line that it says; with as much patience no epoch is trained, and that is said."""

    def epochs():
        return len(Path("run/history.csv").read_text().splitlines()) - 1

    np.save("bits.npy", np.random.default_rng(0).normal(size=(60, 2)) > 0)
    bits = ["--data", "bits.npy", "--lr", "1"]
    assert train("--out", "run", *bits, "--patience", "2", "--epochs", "60") == 0
    ended, said = epochs(), capsys.readouterr().out
    assert ended < 60
    assert f"ended after epoch {ended} of 60, 2 epochs without a better one (--patience 2)" in said
    go = ["train", "--resume", "true", "--out", "run", "--progress", "false", "--epochs"]
    assert cli.main([*go, "70"]) == 0
    assert epochs() == ended
    assert f"ended after epoch {ended} of 70" in capsys.readouterr().out
    assert cli.main([*go, str(ended + 2), "--patience", "null"]) == 0
    assert epochs() == ended + 2
    assert "ended after epoch" not in capsys.readouterr().out


def test_settings_of_a_run_give_way_to_the_environment_and_may_hold_any_name(capsys, monkeypatch):
    name = "\N{GRINNING FACE}.npy"
    np.save(name, np.random.default_rng(0).normal(size=(60, 2)) > 0)
    assert train("--out", "run", "--data", name) == 0
    path = Path("run/train.json")
    before = json.loads(path.read_text())
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    for option, value in {"RESUME": "settings", "OUT": "run", "LR": "0.5", "EPOCHS": "3"}.items():
        monkeypatch.setenv(f"PYRO_VAE_TRAIN__{option}", value)
    assert cli.main(["train", "--progress", "false"]) == 0
    assert json.loads(path.read_text()) == before | {"lr": 0.5, "epochs": 3}
    capsys.readouterr()
    for wrong in ({"lr": "abc"}, {"hidden": "wide"}, {"gone": 1}):
        path.write_text(json.dumps(before | wrong))
        assert "error: run/train.json: " in complaint(capsys, ["train", "--progress", "false"])


def test_a_run_goes_on_by_its_folder_alone(capsys, tmp_path):
    """However that is written; what is typed outranks its settings, a default too."""
    assert train("--out", "run", "--lr", "0.01", "--patience", "7") == 0
    before = json.loads(Path("run/train.json").read_text())
    Path("go.yaml").write_text("resume: true\nout: run\n")
    quiet = ["--progress", "false", "--epochs"]
    go = ["train", "--out", "run", "--resume", "yes", *quiet, "3"]
    assert cli.main(["train", "--config", "go.yaml", *quiet, "2"]) == 0
    assert json.loads(Path("run/train.json").read_text()) == before | {"epochs": 2}
    assert cli.main([*go, "--patience", "null"]) == 0
    assert json.loads(Path("run/train.json").read_text())["patience"] is None
    capsys.readouterr()
    assert "lr is 0.001, but the run in run has 0.01" in complaint(capsys, [*go, "--lr", "0.001"])
    damaged = ({"model": 5}, {"data": None}, {"options": [1]})
    for text in ("[" * 100_000, *(json.dumps(before | each) for each in damaged)):
        Path("run/train.json").write_text(text)
        assert "train.json: " in complaint(capsys, go)
        assert "train.json: " in complaint(capsys, ["evaluate", "run"])
    go[2] = "typo"
    assert "typo is no folder, so that nothing says what to train" in complaint(capsys, go)
    Path("typo").mkdir()
    assert "typo has no train.json, so that nothing says" in complaint(capsys, go)
    Path("typo/config.json").touch()
    by_python = "pv.fit wrote the run in typo; go on with pv.fit(..., resume=True); or, if `pyro-va"
    assert by_python in complaint(capsys, go)
    assert len([*Path("typo").iterdir()]) == 1
    assert train("--data", "digits", "--out", "new", "--resume", "true") == 0


def test_a_run_goes_on_with_another_learning_rate_when_asked_to(capsys, tmp_path):
    every = ["--checkpoint_every", "1", "--out", "run", "--lr"]
    assert train(*every, "0.01") == 0
    capsys.readouterr()
    again = ["train", *SMALL, "--epochs", "3", *every, "0.001", "--resume"]
    assert "or --resume settings" in complaint(capsys, [*again, "true"])
    assert cli.main([*again, "settings"]) == 0
    assert json.loads((tmp_path / "run" / "train.json").read_text())["lr"] == 0.001
    changed = json.loads((tmp_path / "run" / "config.json").read_text())["changed_on_resume"]
    assert len(changed) == 1 and "lr = 0.01, this run 0.001" in changed[0]


def test_a_config_file_sets_options_and_a_run_leaves_one(tmp_path):
    (tmp_path / "a.yaml").write_text("model: LinearVAE\nlatent_dim: 3\nepochs: 1\n")
    assert cli.main(["train", "--config", "a.yaml", "--out", "a", "--progress", "false"]) == 0
    assert pv.load(tmp_path / "a").latent_dim == 3
    again = ["train", "--config", "a/train.json", "--latent_dim", "4", "--out", "b"]
    assert cli.main([*again, "--progress", "false"]) == 0
    assert isinstance(pv.load(tmp_path / "b"), pv.models.LinearVAE)
    assert pv.load(tmp_path / "b").latent_dim == 4


@pytest.mark.parametrize("observation", list(options.OBSERVATIONS))
def test_every_observation_trains_on_the_data_it_is_for(observation):
    kind = "threshold" if observation == "Bernoulli" else "none"
    assert train("--observation", observation, "--binarization", kind, "--out", "run") == 0


def test_convolutions_and_the_autoencoder(capsys, tmp_path):
    assert train("--network", "conv", "--out", "conv") == 0
    assert cli.main(["evaluate", "conv", "--rows", "9", "--num_particles", "2"]) == 0
    assert train("--model", "Autoencoder") == 0
    assert (tmp_path / "runs" / "autoencoder-digits" / "program.safetensors").exists()
    capsys.readouterr()
    assert cli.main(["evaluate", "runs/autoencoder-digits", "--progress", "false"]) == 2
    assert "prior" in capsys.readouterr().err


def test_the_demo_draws_four_figures_and_never_overwrites(capsys, tmp_path):
    options = ["--epochs", "1", "--num_particles", "4", "--device", "cpu", "--progress", "false"]
    assert cli.main(["demo", *options]) == 0
    text = capsys.readouterr().out
    for name in ("samples", "reconstructions", "latent_map", "curves"):
        assert f"{name}.png" in text
        assert (tmp_path / "runs" / "demo" / f"{name}.png").stat().st_size > 5000
    assert all(word in text for word in ("ELBO", "log-likelihood", "K = 4", "KL of z", "active"))
    assert runs.fresh_folder(tmp_path / "runs" / "demo").name == "demo-2"


def test_a_failure_while_running_is_exit_code_one(monkeypatch, capsys):
    def fail(run: str) -> None:
        raise RuntimeError("disk\nfull")

    monkeypatch.setitem(cli.COMMANDS, "diagnose", fail)
    assert cli.main(["diagnose", "x"]) == 1
    assert capsys.readouterr().err == "pyro-vae: error: RuntimeError: disk full\n"
    with pytest.raises(RuntimeError, match="disk"):
        cli.main(["diagnose", "x", "--debug"])


def test_the_module_is_the_same_command():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pyro_vae", "train", "--epochs", "x"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("pyro-vae: error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("objective", ["FreeBits", "target_kl", "lagging"])
def test_cures_of_collapse_train_from_the_shell(objective, tmp_path):
    options = ("--objective", objective, "--nats", "0.25", "--posterior", "DeltaGaussian")
    assert train("--out", "run", *options) == 0
    assert type(pv.load(tmp_path / "run").encoder).__name__ == "DeltaGaussian"


@pytest.mark.parametrize(
    ("objective", "options", "column"),
    [
        ("aae", (), "valid_elbo"),
        ("wae", (), "valid_elbo"),
        ("avb", ("--posterior", "NoiseFed"), "valid_objective"),
        ("vaegan", ("--binarization", "none"), "valid_elbo"),
    ],
)
def test_objectives_with_a_critic_train_from_the_shell(objective, options, column, tmp_path):
    assert train("--out", "run", "--objective", objective, *options) == 0
    history = (tmp_path / "run" / "history.csv").read_text().splitlines()[0]
    assert column in history and ("critic" in history) == (objective != "wae")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--objective", "vaegan"), "--binarization none"),
        (("--posterior", "NoiseFed"), "use --objective avb"),
        (("--objective", "aae", "--model", "NVDM", "--data", "20news"), "takes models of images"),
    ],
)
def test_objectives_that_do_not_go_with_a_model_are_told(options, said, capsys):
    assert train("--out", "run", *options) != 0
    assert said in capsys.readouterr().err


@pytest.fixture
def table(tmp_path):
    """Write a table of two groups with holes, and return it whole."""
    rng, group = np.random.default_rng(0), np.arange(80) % 2
    whole = pd.DataFrame(
        {
            "height": (160 + 20 * group + rng.normal(size=80)).round(1),
            "visits": rng.poisson(1 + 6 * group),
            "income": np.exp(7 + group).round(2) + rng.integers(0, 9, 80),
            "town": np.where(group == 1, "Bonn", "Ayr"),
            "member": group == 1,
        }
    )
    holes = np.random.default_rng(1).random(whole.shape) < 0.1
    table = whole.astype({"visits": "Int64", "member": "boolean"}).mask(holes)
    table.to_csv(tmp_path / "table.csv", index=False)
    return table


def test_a_table_from_training_to_filled_cells(table, capsys, tmp_path):
    kinds = ["--kinds", '{"income": "positive"}']
    assert train("--data", "table.csv", "--out", "run", *kinds, "--objective", "iwae") == 0
    said = " ".join(capsys.readouterr().out.split())
    for kind in ("height real (normal)", "visits count (", "income positive (", "member categ"):
        assert kind in said
    assert "town categorical (categorical, 2 categories)" in said
    few = table[table.columns[::-1]][:9]  # by their names
    few.to_csv("few.csv", index=False)
    assert cli.main(["impute", "run", "few.csv", "--num_particles", "20", "--device", "cpu"]) == 0
    assert f"{int(few['town'].isna().sum())} filled in" in capsys.readouterr().out
    filled = pd.read_csv(tmp_path / "run" / "filled.csv")
    assert list(filled.columns) == list(few.columns) and not filled.isna().any().any()
    for name in few.columns:
        there = ~few[name].isna()
        assert (filled[name][there] == few[name][there]).all()
    assert filled["visits"].dtype.kind == "i"
    assert cli.main(["generate", "run", "-n", "5", "--device", "cpu"]) == 0
    assert pd.read_csv(tmp_path / "run" / "samples.csv").shape == (5, 5)
    options = ["--num_particles", "4", "--device", "cpu", "--progress", "false"]
    pd.concat([table] * 2).to_csv("twice.csv", index=False)
    assert cli.main(["evaluate", "run", "--data", "twice.csv", *options]) == 0
    said = capsys.readouterr().out
    assert f"twice.csv, all rows, {2 * len(table)} data\n" in said
    assert "per standard deviation" in said
    assert "per standard deviation" in (tmp_path / "run" / "report.html").read_text()
    bad = {
        "column 'town': got 'Rome' in row 2": few.assign(town=["Ayr", "Ayr", "Rome"] * 3),
        "column 'income' is missing": few.drop(columns="income"),
        "column 'income': got -1 in row 0": few.assign(income=-1.0),
        "column 'height': got cells of type": few.assign(height="tall"),
    }
    for text, frame in bad.items():
        frame.to_csv("bad.csv", index=False)
        assert text in complaint(capsys, ["impute", "run", "bad.csv"])
    few.assign(**dict.fromkeys(few.columns, np.nan)).to_csv("none.csv", index=False)
    assert cli.main(["impute", "run", "--num_particles", "5", "none.csv", "--out", "all.csv"]) == 0
    assert not pd.read_csv("all.csv").isna().any().any()  # nothing is known: the prior's means
    assert cli.main(["impute", "run", "--num_particles", "5", "--out", "own.csv"]) == 0
    assert len(pd.read_csv("own.csv")) == len(table)  # that of the training


def test_whole_numbers_that_stand_as_floats_are_told():
    frame = pd.DataFrame({"visits": [3.0, np.nan, 0.0], "debt": [3.0, -1.0, 0.0], "age": 0.5})
    told = [about_whole_numbers(Column(name, "real"), Table(frame)) for name in frame]
    assert told == ['; whole numbers: --kinds \'{"visits": "count"}\' if they are counts', "", ""]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("word", "rows", "told"), [("nan", "1,", 1), ("nan", "1,2", 0), ("Finance", "1,", 0)]
)
def test_empty_cells_are_told_where_they_are_the_cause(word, rows, told):
    """Of a table as R writes it nothing is said twice."""
    Path("table.csv").write_text(f'"a","b"\n"1",3,4\n"2",{rows}\n')
    with pytest.raises(DataError) as error, _told_of_data("own.py:A", "table.csv"):
        raise DataError(f"value {word}")
    assert str(error.value) == f"value {word}" + "; table.csv has empty cells in b" * told


def test_rows_of_a_table_are_split_once():
    Path("rows.csv").write_text("a,b\n" + "".join(f"{n},{n % 3}\n" for n in range(50)))
    found = split_table(Path("rows.csv"))
    parts = [found.train["a"], found.valid["a"], found.test["a"]]
    assert sorted(pd.concat(parts)) == list(range(50))
    assert list(parts[1]) == [19, 39] and list(parts[2]) == [9, 29, 49]


@pytest.mark.parametrize(
    ("column", "options", "said"),
    [
        ({"height": np.nan}, [], "column 'height': all cells are missing; leave it out"),
        ({"height": 1.5}, [], "column 'height': all observed cells are 1.5"),
        ({"height": np.inf}, [], "column 'height': all observed cells are inf"),
        ({}, ["--kinds", '{"weight": "real"}'], "kinds: no column 'weight'"),
        ({}, ["--kinds", '{"town": "count"}'], "column 'town': got cells of type"),
        ({}, ["--model", "VAE"], "column 'town' holds no numbers; TableVAE takes such tables"),
        (
            {"town": 1.0, "member": 0.0},
            ["--model", "VAE"],
            "table.csv: has missing cells, expected numbers alone; train a VAE with --options.mis",
        ),
        ({}, ["--vocab", "words.txt"], "vocab: got 'words.txt', expected none"),
    ],
)
def test_bad_tables_are_told_by_their_column(table, column, options, said, capsys):
    table.assign(**column).to_csv("table.csv", index=False)
    assert said in complaint(capsys, ["train", *SMALL, "--data", "table.csv", *options])


@pytest.mark.parametrize("names", ["0,1,2", "2019,2020,2021", "a,1,2.5"])
def test_names_of_columns_may_be_numbers_that_count_on(names):
    Path("rows.csv").write_text(f"{names}\n" + "3,0,7\n" * 30)
    assert len(split_table(Path("rows.csv")).whole) == 30


def test_names_of_rows_and_one_column_are_read_where_quotes_show_them():
    """As R writes the first; other files have commas in numbers, or columns that a bar parts."""
    rows = "".join(f'"{n}",{n % 3}.5,{n}\n' for n in range(30))
    Path("rows.csv").write_text('\ufeff"u","v"\n' + rows)
    with pytest.warns(UserWarning, match="no name for the first cell .* or its numbers have comm"):
        found = split_table(Path("rows.csv")).whole
    assert found.to_dict("list") == {"u": [0.5, 1.5, 2.5] * 10, "v": [*range(30)]}
    Path("one.csv").write_text('"genre|s"\n' + "x|y\ny|z\n" * 15)
    with pytest.warns(UserWarning, match="read as one column, 'genre|s'"):
        found = split_table(Path("one.csv")).whole
    assert found.to_dict("list") == {"genre|s": ["x|y", "y|z"] * 15}
    Path("one.csv").write_text('"genre|\ns"\n' + "x|y\ny|z\n" * 15)
    with pytest.warns(UserWarning, match="read as one column"):
        assert list(split_table(Path("one.csv")).whole) == ["genre|\ns"]


@pytest.mark.parametrize(
    ("names", "row"),
    [
        ('"";"v"', '"{n}";0,{n}'),
        ('"id;v"', '"{n};0",{n}'),
        ('"v"', '"{n}"\t0,{n}'),
        ('"id" "v"', '"{n}" 0,{n}'),
        ('"id","u" "v"', '"{n}",1 0,5 2,{n}'),
        ('"a","b\nc"', '"{n}",1{end}'),
        ('"a"', '"x",{n}'),
        ('"a"', "{n},5"),
        ('"a"', '"{n}",5,3'),
        ('"a|b"', '"{n}",5'),
    ],
)
def test_cells_that_commas_of_numbers_part_are_not_read(names, row):
    """One comma in each number of one column gives a row one cell more, as does one long row."""
    rows = [row.format(n=n, end=",7" * (n == 0)) for n in range(30)]
    Path("rows.csv").write_text("\n".join([names, *rows]))
    with pytest.raises(DataError, match="got rows with more cells than line 1 has names"):
        split_table(Path("rows.csv"))


def test_files_that_are_no_tables_are_told(capsys):
    Path("empty.csv").write_text("")
    Path("names.csv").write_text("a,b\n")
    Path("few.csv").write_text("a,b\n1,2\n3,4\n")
    Path("bytes.csv").write_bytes(b"\xff\xfe\x00a,b\n" * 30)
    Path("table.parquet").write_bytes(b"PAR1")
    Path("numbers.csv").write_text("0.5,-1\n" * 30)
    Path("counts.csv").write_text("3,0,7\n" * 30)
    Path("twice.csv").write_text("0.1,0.1,0.5\n" * 30)
    pd.DataFrame({"a": [0.5] * 30, "b": 1.0}).to_csv("index.csv")
    Path("ends.csv").write_text("a,b\n" + "1,2,\n" * 30)
    Path("more.csv").write_text("a,b\n" + "".join(f"{n},5,2\n" for n in range(30)))  # or 0.5, 1.5
    Path("bar.csv").write_text("a|b\n" + "1|2\n" * 30)
    for name, said in {
        "absent.csv": "absent.csv: no such file",
        "empty.csv": "empty.csv: cannot be read as a table",
        "names.csv": "names.csv: got no rows",
        "few.csv": "few.csv: got 2 rows, expected at least 20",
        "bytes.csv": "bytes.csv: cannot be read as a table",
        "table.parquet": "table.parquet: ",
        "numbers.csv": "numbers.csv: got numbers in line 1 (0.5, -1), expected names of columns",
        "counts.csv": "counts.csv: got numbers in line 1 (3, 0, 7)",
        "twice.csv": "twice.csv: got numbers in line 1 (0.1, 0.1.1, 0.5)",
        "ends.csv": "ends.csv: got rows that end in a comma, below a,b; take it off",
        "more.csv": "more.csv: got rows with more cells than line 1 has names (a,b)",
        "bar.csv": "or, if this is one column, its name in quotes",
        "index.csv": "index.csv: got a first column without a name, which numbers the rows",
    }.items():
        assert said in complaint(capsys, ["train", *SMALL, "--data", name])
    assert "kinds: VAE has no columns" in complaint(
        capsys, ["train", *SMALL, "--kinds", '{"a": "real"}']
    )
