"""The list of planted bugs cannot rot: each text still stands in its file, each test exists."""

import functools
from collections import Counter
from pathlib import Path

import pytest
from planted_bugs import BUGS

import pyro_vae

PACKAGE = Path(pyro_vae.__file__).parent
ROOT = Path(__file__).parent.parent


@functools.cache
def text_of(path):
    return path.read_text() if path.exists() else ""


def fault_of(bug):
    """Return what stands in the way of planting a bug and seeing it caught, or None."""
    text = text_of(PACKAGE / bug.file)
    if text.count(bug.original) != 1:
        return f"the text stands {text.count(bug.original)} times in {bug.file}: write it anew"
    if bug.planted == bug.original:
        return "it changes nothing"
    path, _, name = bug.test.partition("::")
    there = f"\ndef {name.split('[')[0]}(" in text_of(ROOT / path)
    return None if there else f"{bug.test} is gone: name what catches it now"


def test_each_bug_can_be_planted_and_its_test_exists():
    faults = {bug.name: fault_of(bug) for bug in BUGS}
    assert not {name: fault for name, fault in faults.items() if fault is not None}


def test_each_test_with_parameters_is_collected(request):
    """Parameters change their names unseen; told where their files are collected as they are."""
    config = request.config
    if config.getoption("keyword") or any("::" in each for each in config.args):
        pytest.skip("some tests are left out")
    collected = {item.nodeid for item in request.session.items}
    files = {name.partition("::")[0] for name in collected}
    asked = {bug.test for bug in BUGS if bug.test.partition("::")[0] in files}
    assert not {test for test in asked if test.endswith("]")} - collected


def test_there_are_enough_bugs_each_once_and_in_all_rooms():
    assert len(BUGS) >= 80
    assert max(Counter(bug.name for bug in BUGS).values()) == 1
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert {bug.file.split("/")[0] for bug in BUGS} >= rooms
