"""Seeds, the device, and a guard: no test may leave the process other than it found it."""

import functools
import gc
import os
import random

import numpy as np
import pyro
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK
from tqdm import tqdm

import pyro_vae as pv

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
tqdm.monitor_interval = 0  # a lock that its thread holds while a test forks stays held in the fork

FLAGS = (
    "module_local_params",
    "validate_distributions_pyro",
    "validate_distributions_torch",
    "validate_infer",
    "validate_poutine",
)


def pytest_addoption(parser):
    parser.addoption(
        "--device", default="cpu", help="where programs run: cpu, cuda or cuda:N (`make cuda`)"
    )


def pytest_configure(config):
    """Refuse a device that is not here: skipped tests would look as if they had passed."""
    name = config.getoption("--device")
    if name == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else device="auto" would mean another one
        # torch.manual_seed keeps each seed, with the stack of its call, for devices that are not
        # here: half a millisecond, twenty thousand times.
        torch.random._manual_seed_impl = lambda seed: torch.default_generator.manual_seed(int(seed))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [f"cuda:{n}" for n in range(count)]
    # Tests compare devices with this one: "auto" would be equal to none.
    if name not in ("cpu", *gpus) and not (name == "cuda" and gpus):
        here = ", ".join(["cpu", *gpus])
        raise pytest.UsageError(f"--device: got {name!r}, this machine has {here}")


# Files whose tests share what takes seconds to make. A worker that has ended its own tests takes
# over half of those at another's end: of these it would make all anew, and be the last to end.
SHARING = ("test_tutorials", "test_parallel", "test_ranks_agree", "test_loaders_of_ranks")


def pytest_collection_modifyitems(config, items):
    """Begin with what is shared; leave out, on a GPU, the tests that take no device."""
    items.sort(key=lambda item: item.path.stem not in SHARING)
    if config.getoption("--device") == "cpu":
        return
    kinds = {True: [], False: []}
    for item in items:
        kinds["device" in getattr(item, "fixturenames", ())].append(item)
    config.hook.pytest_deselected(items=kinds[False])
    items[:] = kinds[True]


def pytest_collection_finish():
    """Have full collections of garbage leave out what is imported, which costs half a second.

    Young ones are rarer too: a trace makes many objects, and little of them is garbage.
    """
    gc.freeze()
    gc.set_threshold(10_000, 10, 100)


@pytest.fixture(scope="session")
def device(request):
    """Return the device of ``--device``."""
    return torch.device(request.config.getoption("--device"))


def surroundings():
    """Return what no verb may change."""
    store = pyro.get_param_store()
    return {
        "parameter store": {n: v.detach().clone() for n, v in store._params.items()},
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradient mode": torch.is_grad_enabled(),
        "Pyro's stack": list(_PYRO_STACK),
        **{flag: pyro.settings.get(flag) for flag in FLAGS},
    }


def random_state():
    """Return the global random states of Python, NumPy and torch."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global one is the point
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return (
        random.getstate(),
        (name, keys.tolist(), *rest),
        torch.get_rng_state().tolist(),
        [state.tolist() for state in cuda],
    )


def differences(before, after):
    """Return the names of the surroundings that differ."""
    changed = [k for k, v in before.items() if k != "parameter store" and v != after[k]]
    old, new = before["parameter store"], after["parameter store"]
    same = old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)
    return changed if same else [*changed, f"parameter store {sorted(old)} -> {sorted(new)}"]


@pytest.fixture(autouse=True)
def _guard(request):
    """Seed each test; fail one that leaves a global changed."""
    pyro.set_rng_seed(0)
    before = surroundings()
    yield
    changed = differences(before, surroundings())
    pyro.clear_param_store()
    _PYRO_STACK.clear()
    torch.set_default_dtype(before["default dtype"])
    for flag in FLAGS:
        pyro.settings.set(**{flag: before[flag]})
    assert not changed, f"{request.node.nodeid} left changed: {changed}"


@pytest.fixture(autouse=True)
def _fit_keeps_the_random_state(monkeypatch):
    """Check for every ``pv.fit`` of the suite that global random states survive it."""
    original = pv.fit

    @functools.wraps(original)
    def checked(*args, **kwargs):
        before = random_state()
        try:
            return original(*args, **{"progress": False, **kwargs})
        finally:
            assert random_state() == before, "pv.fit changed a global random state"

    monkeypatch.setattr(pv, "fit", checked)


@pytest.fixture
def store():
    """Give a test Pyro's parameter store, empty before and after."""
    pyro.clear_param_store()
    yield pyro.get_param_store()
    pyro.clear_param_store()
