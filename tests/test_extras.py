"""What is not in the core: one sentence names the extra that brings it."""

import importlib
import sys

import pytest
import torch

import pyro_vae as pv
from pyro_vae import cli
from pyro_vae.errors import ConfigError
from pyro_vae.extras import extra
from pyro_vae.storage.events import Events


@pytest.fixture
def without(monkeypatch):
    """Make imports of packages fail as if they were not installed."""
    return lambda *names: [monkeypatch.setitem(sys.modules, name, None) for name in names]


@pytest.mark.parametrize(
    ("packages", "call", "said"),
    [
        (("sklearn", "sklearn.datasets"), lambda: pv.data.load("digits"), "digits needs sklearn"),
        (
            ("pooch",),
            lambda: pv.data.load("mnist", binarization="static"),
            "mnist: the cache needs pooch",
        ),
        (
            ("sklearn", "sklearn.manifold"),
            lambda: pv.plots.documents(torch.full((6, 2), 0.5)),
            "plots.documents needs sklearn",
        ),
    ],
)
def test_a_call_names_the_extra_that_it_needs(packages, call, said, without, monkeypatch):
    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)
    without(*packages)
    with pytest.raises(ConfigError, match=rf"{said}, .*pip install 'pyro-vae\[data\]'"):
        call()


def test_faults_other_than_a_missing_package_pass():
    with pytest.raises(ZeroDivisionError), extra("data", "this"):
        raise ZeroDivisionError


def test_the_command_line_says_what_it_lacks(without):
    without("jsonargparse")
    with pytest.raises(SystemExit, match=r"pip install 'pyro-vae\[cli\]'"):
        importlib.reload(cli)


def test_a_run_without_tensorboard_writes_no_events(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    events = Events(tmp_path)
    events.log({"loss": 1.0}, 1)
    assert not list(tmp_path.iterdir())
