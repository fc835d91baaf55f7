"""The random generators of a run: torch's, and the global ones of NumPy and Python."""

# ruff: noqa: NPY002  (the global generator is what a user's transform draws from)

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import CheckpointError
from pyro_vae.program.parameters.modules import generators_kept

_NUMPY_WORDS, _PYTHON_WORDS = 624, 625
_OWN = "loader"


def take_random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the global generators, as tensors that a file can hold.

    Arguments:
        device: Whose generator draws the noise.
    """
    states = {"cpu": torch.get_rng_state(), "python": _python_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    numpy = _numpy_state()
    return states if numpy is None else {**states, "numpy": numpy}


def loader_states(states: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the states of a loader's generators under the names that a file has for them."""
    return {f"{_OWN}{index}": state for index, state in enumerate(states)}


def set_random_state(
    states: Mapping[str, Tensor], device: torch.device, own: Sequence[torch.Generator] = ()
) -> None:
    """Put the generators into the states that ``take_random_state`` returned."""
    torch.set_rng_state(states["cpu"])
    for index, each in enumerate(own):
        if f"{_OWN}{index}" in states:
            each.set_state(states[f"{_OWN}{index}"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if "numpy" in states:
        np.random.set_state(_as_numpy(states["numpy"]))
    random.setstate(_as_python(states["python"]))


def check_random_state(states: Mapping[str, Tensor], where: str) -> None:
    """Try the states on generators of their own.

    Raises:
        CheckpointError: One is no state of a generator.
    """
    try:
        for name, state in states.items():
            if name == "cpu" or name.startswith(_OWN):
                torch.Generator().set_state(state)
        states["cpu"]  # which there must be
        random.Random().setstate(_as_python(states["python"]))
        if "numpy" in states:
            np.random.RandomState().set_state(_as_numpy(states["numpy"]))
        if "cuda" in states and torch.cuda.is_available():
            torch.Generator("cuda").set_state(states["cuda"])
    except Exception as error:  # each generator has errors of its own
        raise CheckpointError(f"{where}: a random state is damaged ({error})") from None


def seed_outside_torch(seed: int) -> None:
    """Seed the global generators of NumPy and Python."""
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def seeded_outside_torch(seed: int) -> Iterator[None]:
    """Seed the global generators of NumPy and Python inside a block, and put both back."""
    with generators_kept():
        seed_outside_torch(seed)
        yield


def _numpy_state() -> Tensor | None:
    state: Any = np.random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":  # a user has put another in its place
        return None
    words, inner = state["state"]["key"], state["state"]["pos"]
    # Words of 32 bits: exact in double precision.
    numbers = [*words.tolist(), inner, state["has_gauss"], state["gauss"]]
    return torch.tensor(numbers, dtype=torch.float64)


def _as_numpy(state: Tensor) -> dict[str, Any]:
    if state.shape != (_NUMPY_WORDS + 3,):
        raise ValueError(f"NumPy's has shape {tuple(state.shape)}")
    *words, inner, has_gauss, gauss = state.tolist()
    _require_words([*words, inner])
    return {
        "bit_generator": "MT19937",
        "state": {"key": np.array(words, dtype=np.uint32), "pos": _position(inner)},
        "has_gauss": int(has_gauss != 0),
        "gauss": gauss,
    }


def _python_state() -> Tensor:
    _, words, gauss = random.getstate()
    return torch.tensor([*words, math.nan if gauss is None else gauss], dtype=torch.float64)


def _as_python(state: Tensor) -> tuple[Any, ...]:
    if state.shape != (_PYTHON_WORDS + 1,):
        raise ValueError(f"Python's has shape {tuple(state.shape)}")
    *words, gauss = state.tolist()
    _require_words(words)
    _position(words[-1])
    return 3, tuple(map(int, words)), None if math.isnan(gauss) else gauss


def _require_words(words: list[float]) -> None:
    if not all(0 <= word < 2**32 and word == int(word) for word in words):
        raise ValueError("words beyond 32 bits")


def _position(number: float) -> int:
    if not 0 <= number <= _NUMPY_WORDS:
        raise ValueError("a position outside its words")
    return int(number)
