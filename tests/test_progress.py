"""Progress bars: drawn where they can be redrawn."""

import io
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Notebook(io.StringIO):
    __module__ = "ipykernel.iostream"


@pytest.mark.parametrize(
    ("stream", "drawn"), [(Terminal, True), (Notebook, True), (io.StringIO, False)]
)
def test_a_bar_is_drawn_on_a_terminal_and_in_a_notebook_alone(stream, drawn, monkeypatch):
    for shown in (True, False):
        out = stream()
        monkeypatch.setattr("sys.stderr", out)
        assert list(progress_bar("abc", shown=shown, unit="batch")) == ["a", "b", "c"]
        with progress_bar(total=3, shown=shown) as bar:
            bar.update(3)
            bar.set_postfix({"elbo": "-1.0"})
        assert ("3/3" in out.getvalue()) == (shown and drawn) == bool(out.getvalue())


@pytest.mark.parametrize("of_data", [False, True])
def test_chains_are_shown_transition_by_transition(of_data, monkeypatch):
    """10 in the warm-up and 20 after it, shown as they are made."""
    out = Terminal()
    monkeypatch.setattr("sys.stderr", out)
    torch.manual_seed(0)
    x = torch.randn(20)

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def local(x):
        with pyro.plate("data", len(x)):
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def of_each(x):
        with pyro.plate("data", len(x)):
            pyro.sample("mean", dist.Normal(0.0, 0.2))

    program = pv.Program(model, lambda x: pyro.sample("mean", dist.Normal(0.0, 0.2)))
    program = pv.Program(local, of_each) if of_data else program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few draws mix nothing
        settings = pv.HMC(num_draws=20, warmup=10, chains=2, num_leapfrog=2)
        pv.refine(program, x, settings, progress=True)
    assert "/30 [" in out.getvalue() and "transition" in out.getvalue()


class Log:
    write = flush = print


@pytest.mark.parametrize("stream", [None, Log(), io.StringIO()], ids=["none", "log", "shut"])
def test_a_process_without_a_terminal_shows_none(stream, monkeypatch):
    if isinstance(stream, io.StringIO):
        stream.close()
    monkeypatch.setattr("sys.stderr", stream)
    assert list(progress_bar("abc", shown=True)) == ["a", "b", "c"]


def test_all_bars_are_such():
    files = Path(pv.__file__).parent.rglob("*.py")
    assert [path.name for path in files if "tqdm" in path.read_text()] == ["progress.py"]
