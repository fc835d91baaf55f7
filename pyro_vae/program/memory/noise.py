"""The global random states in which looks draw from iterators."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class Noise:
    """Random states that go on from draw to draw, where those of looks begin anew each time.

    A look runs under fixed seeds, and what it draws from an iterator goes to a step: under these
    the noise of steps would be that of looks, and equal after each of them. They derive from the
    global states at the first look.
    """

    def __init__(self) -> None:
        self._seed, self._states = 0, _States()

    def begin(self) -> None:
        """Derive the states from the global ones, unless they have begun."""
        if self._states.torch is None:
            outside = _States.now()
            try:
                seeds = _seeds()
                self._seed = seeds[0]
                torch.default_generator.manual_seed(seeds[0])
                np.random.seed(seeds[1])  # noqa: NPY002
                random.seed(seeds[2])
                self._states = _States.now(cards=False)
            finally:
                outside.put()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Run inside in these states, and go on from there next time."""
        self.begin()
        outside = _States.now()
        self._states.put()
        if outside.cards and not self._states.cards:
            torch.cuda.manual_seed_all(self._seed)
        try:
            yield
        finally:
            self._states = _States.now()
            outside.put()


class _States:
    """The global random states: of torch, of each CUDA device in use, of NumPy and of Python."""

    torch: Any = None
    cards: Any = ()
    numpy: Any = None
    python: Any = None

    @classmethod
    def now(cls, *, cards: bool = True) -> "_States":
        """Return those of this moment."""
        states = cls()
        states.torch = torch.get_rng_state()
        states.cards = (
            torch.cuda.get_rng_state_all() if cards and torch.cuda.is_initialized() else ()
        )
        states.numpy, states.python = np.random.get_state(), random.getstate()  # noqa: NPY002
        return states

    def put(self) -> None:
        """Make them the global ones."""
        torch.set_rng_state(self.torch)
        if self.cards:
            torch.cuda.set_rng_state_all(self.cards)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)


def _seeds() -> tuple[int, int, int]:
    """Draw a seed from each library's global generator."""
    of_torch = torch.randint(1 << 62, (), dtype=torch.int64, device="cpu")
    of_numpy = np.random.randint(1 << 32, dtype=np.int64)  # noqa: NPY002
    return int(of_torch), int(of_numpy), random.getrandbits(64)
