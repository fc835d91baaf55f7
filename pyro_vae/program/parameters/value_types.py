"""The types of values: of those that come late, and of those that were loaded.

A value that comes late is made in the type to which the program has been converted. One that was
loaded stands at first in the type in which it was saved. Its statement tells which it takes: that
of the statement, or it stays as it is where it agrees with the networks beside it; one that no
statement has asked for goes the way of the networks. They are converted when the first run ends,
since looks move weights in place.
"""

import warnings
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_vae.callers import of_user
from pyro_vae.program.parameters.values import listed

if TYPE_CHECKING:
    from pyro_vae.program.parameters.parameters import Parameters


class ValueTypes:
    """The types of a program's values."""

    def __init__(self, own: "Parameters") -> None:
        self._own = own
        self.dtype: torch.dtype | None = None  # to which all has been converted
        self.saved: torch.dtype | None = None  # of the networks in what was loaded
        self.converts_first = False  # whether what a first run makes is converted at once
        self._rounded: dict[str, torch.dtype] = {}  # what is to be told, by name

    def now(self, key: str) -> Tensor:
        """Return a value in the type that it will take."""
        value, dtype = self._own.values[key], self._own.known[key].type
        return value if dtype is None else value.to(dtype)

    @property
    def precision(self) -> torch.dtype | None:
        """The dtype of the first float among the parameters whose types are known."""
        own, waits = self._own, self._awaited is not None
        known = (v for key, v in own.values.items() if not (waits and self._is_unknown(key)))
        return type_of(chain(own.parts.parameters(), known))

    def convert(self, dtype: torch.dtype) -> None:
        """Make values that come late, and keep loaded ones, in the type that all was given."""
        self.dtype = dtype
        for key in self._own.known:
            self._own.note(key, type=None)

    def convert_first(self) -> bool:
        """Have a first run make values in the type that networks were converted to.

        Other than in the types of their statements, in which some programs run alone.

        Returns:
            Whether that is a change.
        """
        before, beside = self.converts_first, self._of_parts
        self.converts_first = self._own.fresh and None not in (beside, self.dtype)
        return self.converts_first and not before

    def of_new(self, value: Tensor) -> Tensor:
        """Return a value that is made where the data are, in the type of the rest.

        The function may not have said where they are. A first run tells which type the rest has.
        """
        kept = (self._own.fresh and not self.converts_first) or not value.is_floating_point()
        return value.to(self._own.home, None if kept else self.dtype)

    # -- what was loaded -------------------------------------------------------------------------

    def _is_unknown(self, key: str) -> bool:
        """Return whether a value was loaded and no statement has told which type it takes."""
        value, own = self._own.known[key], self._own
        return own.fresh and self.dtype is None and value.loaded and value.constraint is None

    def choose(self, key: str, start: Tensor | None) -> None:
        """Note the type that a loaded value takes, once a statement asks for it.

        It stays where it has that of the networks, or where values are all: they are as they were.

        Arguments:
            key: Of the value.
            start: With which the statement begins; None: that fails.
        """
        beside = self._of_parts
        stays = self._own.values[key].dtype == beside or (beside or self._awaited) is None
        dtype = beside if start is None else start.dtype
        if self._is_unknown(key) and not stays and dtype is not None and dtype.is_floating_point:
            self._own.note(key, type=dtype)

    def take(self) -> None:
        """Convert loaded values, once the first run has ended.

        What it has not asked for takes the type of the networks, where it had theirs when saved.
        """
        beside = self._of_parts
        for key, value in list(self._own.known.items()):
            left = self._is_unknown(key) and self._own.values[key].dtype == self.saved
            dtype = beside if left else value.type
            if dtype is not None:
                self._own.note(key, type=None)
                self.take_at_once(key, dtype)

    def take_at_once(self, key: str, dtype: torch.dtype) -> None:
        """Convert a value that was loaded, as the copy to a network does."""
        value = self._own.values[key]
        if value.is_floating_point():
            self.note_rounding(f"values.{key}", value, dtype)
            value.data = value.data.to(dtype)

    def note_rounding(self, name: str, value: Tensor, dtype: torch.dtype) -> None:
        """Note that what was loaded takes a type, where that rounds it."""
        if is_wider(value.dtype, dtype):
            self._rounded[name] = dtype

    def warn_of_rounding(self) -> None:
        """Warn of what has been rounded."""
        if self._rounded:
            tell_of_rounding(self._rounded)
            self._rounded = {}

    @property
    def _of_parts(self) -> torch.dtype | None:
        return type_of(self._own.parts.parameters())

    @property
    def _awaited(self) -> torch.dtype | None:
        """The type of loaded networks that the functions have yet to make."""
        return type_of(self._own.loads.expected.values())


def type_of(tensors: Iterable[Tensor]) -> torch.dtype | None:
    """Return the dtype of the first float among tensors; None where none is."""
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)


def is_wider(one: torch.dtype, other: torch.dtype) -> bool:
    """Return whether floats of one type are rounded by being given another."""
    floats = one.is_floating_point and other.is_floating_point
    return floats and torch.finfo(one).bits > torch.finfo(other).bits


def tell_of_rounding(rounded: Mapping[str, torch.dtype]) -> None:
    """Warn of tensors that were loaded in a wider type than a program has.

    Arguments:
        rounded: The program's types, by name.
    """
    types = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in rounded.values()}))
    warnings.warn(
        f"what was loaded holds {listed(sorted(rounded))} in a wider type than the program, which "
        f"has them in {types}: they are rounded; a program that is converted first keeps all "
        "digits, pv.Program.of(program).to(torch.float64)",
        UserWarning,
        stacklevel=of_user(),
    )
