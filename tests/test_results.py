"""The measured figures: complete files, no machine in them, and a README table made from them."""

import json
import re
import statistics
from pathlib import Path

import pytest
from PIL import Image

import pyro_vae as pv
from benchmarks import front_page, tables

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))
FIELDS = {
    "name",
    "value",
    "stderr",
    "unit",
    "estimator",
    "published",
    "target",
    "data",
    "binarization",
    "seed",
    "seconds",
    "device",
    "versions",
    "command",
}


def test_there_are_results() -> None:
    assert {"vae_mnist_static", "iwae5_mnist_static", "ais_mnist_static"} <= {f.stem for f in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_result_says_how_it_was_measured(path: Path) -> None:
    text = path.read_text()
    row = json.loads(text)
    assert row.keys() >= FIELDS
    assert row["name"] == path.stem
    python, *words = row["command"].replace("python -m benchmarks.", "python benchmarks/").split()
    assert python == "python" and words[0].startswith("benchmarks/")
    script = ROOT / words[0].removesuffix(".py")  # a folder, once a script grew too long
    assert script.exists() or script.with_suffix(".py").exists()
    assert not re.search(r'"/(?!\*)|/tmp/|/home/', text)


def test_the_tables_are_made_from_the_files() -> None:
    assert not tables.stale(), "run python benchmarks/tables.py"


def test_steps_on_a_gpu_have_a_table_of_their_own() -> None:
    """Beside the CPU's a number of another machine would stand unnoticed."""
    ratio, base = {"wall": {"median": 0.5}}, {"wall": {"median": 1.0}}
    rows = {name: ratio for names in tables.SPEED_ON_CUDA.values() for name in names}
    details = {
        "ratios": {"hand-written": base, **rows},
        "ours_over": {"hand-written, CUDA graph": {"wall": {"median": 1.07}}},
        "step_seconds": {"hand-written": 2e-4},
        "per_step": {tables.OURS: {"waits": 0.0, "launches": 2.0}},
    }
    row = {"name": "speed_vae_cuda", "device": "cuda, NVIDIA H200", "details": details}
    row["versions"] = {"torch": "2.11.0"}
    shown = tables.cuda_table([row], "results").splitlines()
    cells = shown[2].split(" | ")
    assert cells[:4] == ["| [vae](results/speed_vae_cuda.json)", "NVIDIA H200", "2.11.0", "0.20"]
    assert cells[-3:] == ["1.07", "0", "2 |"] and shown[2].count("|") == shown[0].count("|")
    assert "vae" not in tables.speed_table([row], "results")
    assert tables.cuda_table([], "results") == "None of these steps has run on a GPU."


def test_the_chart_is_drawn_from_the_files() -> None:
    """Its file says of which figures; ``python benchmarks/front_page.py`` draws it anew."""
    assert Image.open(front_page.CHART).text["Description"] == front_page.fingerprint()


def _details(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["details"]


def test_the_speed_of_the_front_page_is_that_of_the_models_that_it_counts() -> None:
    ratios = [
        row["ours_over"]["Pyro SVI(Trace_ELBO)"]["wall"]["median"]
        for row in _details("zoo_steps")["rows"].values()
        if "Pyro SVI(Trace_ELBO)" in row["ours_over"]
    ]
    told = re.search(r"takes ([\d.]+) of .* over the (\d+) models", README)
    assert told is not None
    assert told.groups() == (f"{statistics.geometric_mean(ratios):.2f}", str(len(ratios)))


def test_the_front_page_counts_the_published_programs_as_the_gallery_does() -> None:
    """Refused trainings are counted as such; the site's first page tells the same number."""
    rows = _details("gallery")["rows"]
    kinds = ("fit", "fit, published objective")
    ok = {kind: {n for n, row in rows.items() if row[kind]["status"] == "ok"} for kind in kinds}
    plain, own = ok["fit"], ok["fit, published objective"]
    every = [n for n, row in rows.items() if {a["status"] for a in row.values()} == {"ok"}]
    words = r"(\d+) published programs.*?(\d+) train .*?objective, (\d+) by .*?; (\d+) answer"
    (told,) = re.findall(words, README, re.DOTALL)
    assert plain <= own, "the sentence says by which objective the others are trained"
    assert list(map(int, told)) == [len(rows), len(plain), len(own - plain), len(every)]
    assert f"what {len(rows)} published" in (ROOT / "docs" / "index.md").read_text()


def test_the_front_page_names_every_model_and_every_objective() -> None:
    reference = (ROOT / "docs" / "api" / "objectives.md").read_text()
    blocks = re.findall(r"public:: pyro_vae\n((?: {3}.+\n)+)", reference)
    assert sorted(sum(front_page.OBJECTIVES.values(), ())) == sorted(" ".join(blocks).split())
    models = [name for name in pv.models.__all__ if name != "Resampled"]  # beside M2
    assert sorted(sum(front_page.MODELS.values(), ())) == sorted(models)
