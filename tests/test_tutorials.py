"""Each tutorial runs from end to end, as a notebook, and is listed where readers look."""

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

jupytext = pytest.importorskip("jupytext", reason="needs the extra 'tutorials'")
nbformat = pytest.importorskip("nbformat", reason="needs the extra 'tutorials'")
nbclient = pytest.importorskip("nbclient", reason="needs the extra 'tutorials'")
pytest.importorskip("ipykernel", reason="needs the extra 'tutorials'")

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.py"))
NAMES = [path.name for path in TUTORIALS]

every_tutorial = pytest.mark.parametrize("path", TUTORIALS, ids=NAMES)


class ThisInterpreter(KernelSpecManager):
    """Kernels of the interpreter that runs the tests, whatever is installed on the machine."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


# Once: a moment's training pays for no graph (03 asks for its own) and needs few digits, figures
# are drawn in one pass, and no bar of a slow machine's is shown: it would be taken for a warning.
PLAIN = """
import dataclasses, functools, pyro_vae
def few(name, load=pyro_vae.data.load, replace=dataclasses.replace, **options):
    whole = load(name, **options)
    if name != "digits":
        return whole
    rows = {"train": 400, "valid": 80, "test": 100}
    splits = {split: getattr(whole, split)[:n] for split, n in rows.items()}
    labels = {split: whole.labels[split][:n] for split, n in rows.items()}
    return replace(whole, labels=labels, **splits)
pyro_vae.data.load = few
pyro_vae.progress.DELAY = float("inf")
from matplotlib_inline.config import InlineBackend
pyro_vae.fit = functools.partial(pyro_vae.fit, compile=False)
InlineBackend.instance().print_figure_kwargs = {"bbox_inches": None}
"""

# Between two tutorials: a namespace, figures and a parameter store as a new kernel has them.
CLEAN = """
import os, matplotlib.pyplot, pyro
os.chdir({folder!r})
matplotlib.rcdefaults()
matplotlib.rcParams["figure.dpi"] = 40  # the time of a figure is that of its pixels
matplotlib.pyplot.close("all")
pyro.clear_param_store()
get_ipython().reset(new_session=True)
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start one kernel of this interpreter for all tutorials: importing torch takes seconds."""
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings, kernel_spec_manager=ThisInterpreter())

    home = tmp_path_factory.mktemp("jupyter")
    environment = {
        "PYRO_VAE_SMOKE": "1",
        "OMP_NUM_THREADS": "1",
        "IPYTHONDIR": str(home / "ipython"),  # no start-up files or history of this machine
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        # tqdm's, where ipywidgets is not installed, and of guides trained for a moment; any other
        # warning fails the test below.
        "PYTHONWARNINGS": "ignore:IProgress not found,ignore:impute",
    }
    client = nbclient.NotebookClient(
        nbformat.v4.new_notebook(),
        timeout=300,  # of a cell that hangs, on a machine however busy
        shutdown_kernel="immediate",  # it has nothing to put in order
        kernel_manager_class=Manager,
        resources={"metadata": {"path": str(home)}},
    )
    with ExitStack() as running:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            running.enter_context(client.setup_kernel())
        run_cell(client, PLAIN)
        yield client


def run_cell(kernel: Any, source: str) -> None:
    """Run a cell of our own, which shows nothing."""
    cell = nbformat.v4.new_code_cell(source)
    kernel.nb = nbformat.v4.new_notebook(cells=[cell])
    kernel.reset_execution_trackers()
    kernel.execute_cell(cell, 0)
    assert not cell.outputs, cell.outputs


def execute(kernel: Any, notebook: Any, folder: Path) -> None:
    """Run a notebook in place, in an empty folder, as a kernel just started would."""
    run_cell(kernel, CLEAN.format(folder=str(folder)))
    kernel.nb = notebook
    for index, cell in enumerate(notebook.cells):
        kernel.execute_cell(cell, index)


def outputs(notebook: Any) -> list[Any]:
    return [out for cell in notebook.cells for out in cell.get("outputs", [])]


def test_there_are_tutorials_numbered_from_one() -> None:
    assert [name[:3] for name in NAMES] == [f"{n:02d}_" for n in range(1, len(NAMES) + 1)]
    assert NAMES


# Jupyter's own deprecations; those of this project are raised in the kernel, and looked for below.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq")
@pytest.mark.slow
@every_tutorial
def test_runs_as_a_notebook(path: Path, kernel: Any, tmp_path: Path) -> None:
    notebook = jupytext.read(path)

    execute(kernel, notebook, tmp_path)

    shown = outputs(notebook)
    figures = [out.data for out in shown if "Figure" in out.get("data", {}).get("text/plain", "")]
    assert figures, "it draws no figure"
    assert all("image/png" in data for data in figures), "a figure is named, not shown"
    warned = [out.text for out in shown if out.get("name") == "stderr"]
    assert not warned, warned
    assert not list(tmp_path.iterdir()), "it leaves files behind"


def test_a_failing_cell_fails_the_test(kernel: Any, tmp_path: Path) -> None:
    """The negative control of the test above: also that the kernel is this interpreter."""
    cell = f"import sys\nassert sys.executable == {sys.executable!r}\nassert 1 == 2, 'on purpose'"
    notebook = jupytext.reads(f"# %%\n{cell}\n", fmt="py:percent")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="on purpose"):
        execute(kernel, notebook, tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq")
def test_a_notebook_finds_nothing_of_the_one_before(kernel: Any, tmp_path: Path) -> None:
    before = "import pyro, torch\nleft = 1\npyro.param('left', torch.ones(1))"
    execute(kernel, jupytext.reads(f"# %%\n{before}\n", fmt="py:percent"), tmp_path)
    after = "import pyro\nassert 'left' not in globals() and not pyro.get_param_store().keys()"
    execute(kernel, jupytext.reads(f"# %%\n{after}\n", fmt="py:percent"), tmp_path)


@every_tutorial
def test_is_plain_percent_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    ast.parse(text)  # no magics: it runs as a script too
    notebook = jupytext.reads(text, fmt="py:percent")
    assert jupytext.reads(text).metadata["jupytext"]["text_representation"]["format_name"] == (
        "percent"
    )
    kinds = {cell.cell_type for cell in notebook.cells}
    assert kinds == {"markdown", "code"}
    assert notebook.cells[0].source.startswith("# "), "the first cell is the title"
    assert not outputs(notebook)
    assert all(cell.source.strip() for cell in notebook.cells)
    assert "PYRO_VAE_SMOKE" in text


@every_tutorial
def test_names_no_path_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.findall(
        r"[\"'\s(](?:/(?:home|root|tmp|work|Users|mnt)\b|[A-Z]:\\)[^\s\"']*", text
    )


@every_tutorial
def test_is_listed(path: Path) -> None:
    assert f"({path.name})" in (ROOT / "tutorials" / "README.md").read_text(encoding="utf-8")


def test_the_list_has_no_tutorial_that_is_gone() -> None:
    text = (ROOT / "tutorials" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\((\d\d_\w+\.(?:py|ipynb))\)", text)) <= set(NAMES)
