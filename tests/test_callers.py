"""Which files are the library's own, wherever Python has found them."""

import importlib.util
from pathlib import Path

import pyro
import pytest
import torch

from pyro_vae import callers

FOLDER = Path(callers.__file__).parent
ABOVE = FOLDER.parent


@pytest.mark.parametrize("folder", [FOLDER, ABOVE / ".." / ABOVE.name / FOLDER.name])
def test_a_library_knows_its_files_by_any_path(folder):
    """``sys.path.insert(0, "..")``, as in notebooks, leaves ``..`` in the name of each file."""
    spec = importlib.util.spec_from_file_location("found", folder / "callers.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    assert found.is_inside(found.of_user.__code__.co_filename)
    assert all(found.is_inside(each.__file__) for each in (pyro, torch, callers))
    assert not found.is_inside(__file__)
