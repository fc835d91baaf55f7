"""The tutorials as notebooks with the outputs of one full run, for the site and for code hosts.

``python docs/notebooks.py [NAME ...]`` runs ``tutorials/NAME.py`` from end to end and writes
``docs/tutorials/NAME.ipynb``; without names, those whose notebook is missing or of another text.
"""

import argparse
import base64
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import nbclient
import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from PIL import Image

import pyro_vae

ROOT = Path(__file__).resolve().parents[1]
TEXTS = sorted((ROOT / "tutorials").glob("*.py"))
FOLDER = ROOT / "docs" / "tutorials"
LARGEST = 1_500_000  # bytes of a notebook
PARTS_OF_A_FIGURE = ("Text(", "[Text(", "<matplotlib", "[<matplotlib")
COLOURS = 256  # of a figure's palette: a third of the bytes


def sources(notebook: Any) -> list[tuple[str, str]]:
    """Return what a notebook says: the kind and the text of each cell, no outputs."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def in_step(text: Path) -> bool:
    """Return whether a tutorial has its notebook, of the same cells."""
    path = FOLDER / text.with_suffix(".ipynb").name
    if not path.exists():
        return False
    return sources(nbformat.read(path, as_version=4)) == sources(jupytext.read(text))


class ThisInterpreter(KernelSpecManager):
    """Kernels of the interpreter that runs this file."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


class Manager(AsyncKernelManager):
    """Starts that kernel."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, kernel_spec_manager=ThisInterpreter())


def executed(text: Path) -> Any:
    """Return a tutorial as a notebook that was run, in an empty folder."""
    notebook = jupytext.read(text)
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook,
            timeout=None,
            kernel_manager_class=Manager,
            resources={"metadata": {"path": folder}},
            record_timing=False,
        )
        client.execute()
    return tidied(notebook)


def tidied(notebook: Any) -> Any:
    """Return the notebook without what differs from machine to machine, its figures made small."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "pyro_vae": pyro_vae.__version__,
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if not is_noise(out)]
        for output in cell.get("outputs", []):
            pictures = output.get("data", {})
            if "image/png" in pictures:
                pictures["image/png"] = smaller(pictures["image/png"])
    return notebook


def is_noise(output: Any) -> bool:
    """Return whether an output says nothing: stderr, or the name of a part of a figure."""
    if output.get("name") == "stderr":
        return True  # it names folders of this machine
    shown = output.get("data", {})
    return set(shown) == {"text/plain"} and shown["text/plain"].startswith(PARTS_OF_A_FIGURE)


def smaller(png: str) -> str:
    """Return a PNG, in base64, with a palette."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(COLOURS)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def main() -> None:
    """Run the tutorials that are named, or that need it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="as 01_from_autoencoder_to_vae, or 01")
    names = parser.parse_args().names
    FOLDER.mkdir(exist_ok=True)
    for text in TEXTS:
        wanted = any(text.stem.startswith(name) for name in names) if names else not in_step(text)
        if wanted:
            path = FOLDER / text.with_suffix(".ipynb").name
            nbformat.write(executed(text), path)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
