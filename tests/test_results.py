"""The measured figures: complete files, no machine in them, and a README table made from them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    command = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readme_is_short() -> None:
    before, rest = (ROOT / "README.md").read_text().split("<!-- results -->")
    written = before + rest.split("<!-- /results -->")[1]  # the tables are made, not written
    assert len(written.splitlines()) <= 140


def test_every_public_name_is_in_the_readme_or_a_tutorial() -> None:
    import pyro_vae as pv

    told = (ROOT / "README.md").read_text()
    told += "".join(path.read_text() for path in (ROOT / "tutorials").glob("*.py"))
    assert [name for name in pv.__all__ if not re.search(rf"\b{name}\b", told)] == ["__version__"]
