"""Values that come late to a training: other batches than its first ask for them.

They join the optimizer as they come. A run that goes on from a checkpoint is lent those that the
run had, before its optimizer is made. It takes at once those that this was made over, and withholds
all others, which join later in the order in which they had.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch
from torch import Tensor, nn

from pyro_vae.program.parameters.modules import generators_kept, seed_generators
from pyro_vae.program.parameters.values import AVERAGES, Value, key_of

if TYPE_CHECKING:
    from pyro_vae.program.parameters.parameters import Parameters


@dataclass(frozen=True)
class Kept:
    """A value that the first batch of a run does not ask for, as a checkpoint keeps it."""

    value: Tensor
    name: str | None  # of its statement
    constraint: Any  # of that; None: a file cannot name it
    trained: bool  # whether an optimizer holds it
    late: bool  # whether it has joined that within the run


class LateValues:
    """Which values of a program come late to its training."""

    def __init__(self, own: "Parameters") -> None:
        self._own = own
        self.asked: frozenset[str] = frozenset()  # keys that the first batch asks for
        # Keys of what is still to join the optimizer, and whether it has in the run that goes on.
        self.withheld: dict[str, bool] = {}
        self.early: set[str] = set()  # keys of what the optimizer has been made over
        self._lent: set[str] = set()  # keys of what is given and may be taken back
        self._seed: int | None = None  # of a training that runs

    @contextmanager
    def drawn_by(self, seed: int) -> Iterator[None]:
        """Draw starts inside, in a training, by its seed and their names."""
        before, self._seed = self._seed, seed
        try:
            yield
        finally:
            self._seed = before

    @contextmanager
    def drawing(self, name: str) -> Iterator[None]:
        """Draw the start of a value, alike in a look, as rows are judged, and in a step.

        Noise goes on as if it had not been drawn: whether it is met in a look first, which uses up
        no random number, is none of the training's business.
        """
        if self._seed is None or self._own.fresh:
            yield
            return
        cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        with generators_kept(), torch.random.fork_rng(cards):
            seed_generators(crc32(f"{self._seed} {name}".encode()))
            yield

    @property
    def unasked(self) -> list[str]:
        """The keys of values for which a program that reads the same data alone has no place.

        Other data have asked for them, before the training or within it, or a load has left them.
        """
        known = {key for key, value in self._own.known.items() if value.found} | self.asked
        averages = key_of(AVERAGES)  # they are made anew
        return [k for k in self._own.values if k not in known and not k.startswith(averages)]

    @property
    def withheld_tensors(self) -> set[Tensor]:
        """The values that are withheld."""
        values = self._own.values
        return {values[key] for key in self.withheld.keys() & values.keys()}

    def begin(self, trained: Iterable[nn.Parameter]) -> None:
        """Note what an optimizer is made over: values that come later join it."""
        first = {*trained}
        self.early = {key for key, value in self._own.values.items() if value in first}

    def lend(self, kept: Mapping[str, Kept], device: torch.device) -> None:
        """Hold values, by key, that the functions may ask for on other data."""
        own = self._own
        given = {key: each for key, each in kept.items() if key not in own.values}
        for key, each in given.items():
            value = nn.Parameter(each.value.to(device).clone())
            own.put(key, value, Value(each.name, each.constraint))
            own.shown[value] = each.trained
        self._lent = set(given)
        own.version += bool(given)
        late = [key for key in self.unasked if key not in kept or kept[key].late]
        self.withheld = {key: key in kept and kept[key].trained for key in late}

    def keep_lent(self) -> None:
        """Hold them from now on."""
        self._lent = set()

    def take_back(self) -> None:
        """Hold them no longer, and withhold none."""
        for key in self._lent:
            self._own.drop(key)
        self._own.version += bool(self._lent)
        self._lent, self.withheld = set(), {}
