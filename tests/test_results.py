"""The measured figures: complete files, no machine in them, and a README table made from them."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

import pyro_vae as pv
from benchmarks import front_page, tables

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
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


def test_the_chart_is_drawn_from_the_files() -> None:
    """Its file says of which figures; ``python benchmarks/front_page.py`` draws it anew."""
    assert Image.open(front_page.CHART).text["Description"] == front_page.fingerprint()


def test_the_front_page_names_every_model_and_every_objective() -> None:
    reference = (ROOT / "docs" / "api" / "objectives.md").read_text()
    blocks = re.findall(r"public:: pyro_vae\n((?: {3}.+\n)+)", reference)
    assert sorted(sum(front_page.OBJECTIVES.values(), ())) == sorted(" ".join(blocks).split())
    models = [name for name in pv.models.__all__ if name != "Resampled"]  # beside M2
    assert sorted(sum(front_page.MODELS.values(), ())) == sorted(models)
