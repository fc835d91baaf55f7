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


def at_once(monkeypatch):
    """Return a terminal to which bars are drawn, the first state without delay."""
    out = Terminal()
    monkeypatch.setattr("sys.stderr", out)
    monkeypatch.setattr("pyro_vae.progress.DELAY", 0.0)
    return out


AIS = pv.AIS(num_temperatures=3, chains=2, num_leapfrog=1, pilot=4)
LOCAL = pv.Local(num_steps=2, num_particles=2)
ASKED = {
    "log_likelihood": (
        lambda vae, x, **o: pv.log_likelihood(vae, x, num_particles=2, **o),
        "batch",
    ),
    "fitted_log_likelihood": (
        lambda vae, x, **o: pv.fitted_log_likelihood(
            vae, x, num_draws=5, warmup=2, num_particles=2, **o
        ),
        "batch",
    ),
    "diagnose": (lambda vae, x, **o: pv.diagnose(vae, x, **o), "batch"),
    "impute": (lambda vae, x, **o: pv.impute(vae, x, num_particles=2, **o), "batch"),
    "ais": (lambda vae, x, **o: pv.ais(vae, x, AIS, **o), "transition"),
    "bdmc": (lambda vae, x, **o: pv.bdmc(vae, 3, AIS, given=x[:3], **o), "transition"),
    "gaps": (
        lambda vae, x, **o: pv.gaps(vae, x, annealed=AIS, local=LOCAL, num_particles=2, **o),
        "transition",
    ),
    "local": (lambda vae, x, **o: pv.infer(vae, x, how="local", settings=LOCAL, **o), "step"),
}


@pytest.mark.parametrize("verb", ASKED)
def test_long_verbs_show_unasked_what_they_do(verb, monkeypatch):
    """What is over within two seconds shows nothing."""
    ask, unit = ASKED[verb]
    x = torch.ones(4, 6)
    x[0, 1] = torch.nan
    vae = pv.models.VAE(6, 2, (4,), missing="nan")
    monkeypatch.setattr("sys.stderr", quick := Terminal())
    monkeypatch.setattr("pyro_vae.progress.DELAY", 600.0)
    ask(vae, x)
    assert not quick.getvalue()
    out = at_once(monkeypatch)
    ask(vae, x, progress=False)
    assert not out.getvalue()
    ask(vae, x)
    assert f"{verb}: " in out.getvalue() and f"{unit}/s" in out.getvalue()
    assert unit != "batch" or "0/1 [" in out.getvalue()  # and how much is to come


@pytest.mark.parametrize(("of_data", "length"), [(False, 2), (True, 2), (True, None)])
def test_chains_are_shown_transition_by_transition(of_data, length, monkeypatch):
    """10 in the warm-up and 20 after it, shown as they are made, unasked; 200 choose a length."""
    out = at_once(monkeypatch)
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
        settings = pv.HMC(num_draws=20, warmup=10, chains=2, num_leapfrog=length)
        pv.refine(program, x, settings)
    assert f"/{30 if length else 230} [" in out.getvalue() and "transition" in out.getvalue()


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
