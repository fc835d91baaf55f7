"""Random numbers that data sets and samplers draw, apart from those that training draws."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from pyro_vae.program.parameters.modules import generators_kept
from pyro_vae.storage.random_state import seeded_outside_torch


@contextmanager
def kept(generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Put generators back to where they stand."""
    before = [generator.get_state() for generator in generators]
    yield
    for generator, state in zip(generators, before, strict=True):
        generator.set_state(state)


class Draws:
    """A stream of torch's random numbers, drawn from by and by, beside the global one."""

    def __init__(self, seed: int) -> None:
        self._torch = torch.Generator().manual_seed(seed).get_state()

    @contextmanager
    def continued(self) -> Iterator[None]:
        """Draw on from where the stream stands inside; the global generators do not move."""
        before = torch.get_rng_state()  # by hand: fork_rng takes three times as long
        torch.set_rng_state(self._torch)
        try:
            yield
            self._torch = torch.get_rng_state()
        finally:
            torch.set_rng_state(before)


class SharedDraws(Draws):
    """NumPy's and Python's too: processes whose own differ read a loader in one order."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        with seeded_outside_torch(seed):
            self._note()

    def _note(self) -> None:
        self._outside = np.random.get_state(), random.getstate()  # noqa: NPY002

    @contextmanager
    def continued(self) -> Iterator[None]:
        """Draw on from where the streams stand inside; the global generators do not move."""
        with super().continued(), generators_kept():
            numpy, python = self._outside
            np.random.set_state(numpy)  # noqa: NPY002
            random.setstate(python)
            yield
            self._note()
