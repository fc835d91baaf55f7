"""Where the suite runs its programs: ``--device``."""

from types import SimpleNamespace

import conftest
import pytest


def config(name):
    told = []
    hook = SimpleNamespace(pytest_deselected=lambda items: told.extend(items))
    return SimpleNamespace(getoption=lambda _: name, hook=hook, told=told)


@pytest.mark.parametrize("name", ["cuda:99", "gpu"])
def test_a_device_that_is_not_here_stops_the_suite(name):
    """Instead of hundreds of skips that look as if the tests had passed."""
    with pytest.raises(pytest.UsageError, match=f"--device: got '{name}', .*cpu"):
        conftest.pytest_configure(config(name))


def test_on_a_gpu_only_the_tests_that_take_a_device_run():
    with_device = SimpleNamespace(fixturenames=["tmp_path", "device"])
    without, doctest = SimpleNamespace(fixturenames=["tmp_path"]), SimpleNamespace()
    for name, left_out in (("cpu", []), ("cuda", [without, doctest])):
        items, chosen = [with_device, without, doctest], config(name)
        conftest.pytest_collection_modifyitems(chosen, items)
        assert chosen.told == left_out and len(items) == 3 - len(left_out)
