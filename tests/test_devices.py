"""Where the suite runs its programs: ``--device``."""

from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest
import torch


def config(name):
    told = []
    hook = SimpleNamespace(pytest_deselected=lambda items: told.extend(items))
    return SimpleNamespace(getoption=lambda _: name, hook=hook, told=told)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "auto", "meta", "cpu:0"])
def test_a_device_that_is_not_here_stops_the_suite(name):
    """Instead of hundreds of skips that look as if the tests had passed."""
    with pytest.raises(pytest.UsageError, match=f"--device: got '{name}', this machine has cpu"):
        conftest.pytest_configure(config(name))


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1"])
def test_a_device_that_is_here_is_taken(name, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    conftest.pytest_configure(config(name))


def test_on_a_gpu_only_the_tests_that_take_a_device_run():
    path = Path("test_devices.py")
    with_device = SimpleNamespace(path=path, fixturenames=["tmp_path", "device"])
    without = SimpleNamespace(path=path, fixturenames=["tmp_path"])
    doctest = SimpleNamespace(path=path)
    for name, left_out in (("cpu", []), ("cuda", [without, doctest])):
        items, chosen = [with_device, without, doctest], config(name)
        conftest.pytest_collection_modifyitems(chosen, items)
        assert chosen.told == left_out and len(items) == 3 - len(left_out)
