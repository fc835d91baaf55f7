"""Numbers that a program keeps in Python from call to call, as a count of its calls."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType, SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor, nn

from pyro_vae.program.object_graph import PROGRAM, holders, installed, names_loaded

_NUMBERS = (int, float, complex)
_FLAGS = (bool, type(None), str, bytes)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_ABSENT = object()
_MANY = 64
_Entry = tuple["_Home", Any, Any]  # where a value stands, under which key, and the value


class OwnNumbers:
    """The numbers and tensors that functions hold beside their parameters: a way to put them back.

    They stand among the attributes of modules and other objects, in closures, globals, lists and
    dictionaries. A weight that a count of calls anneals depends on them.

    Arguments:
        functions: Model and guide.
    """

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self.functions = functions
        self._homes: list[_Home] | None = None

    def __getstate__(self) -> dict[str, Any]:  # cells of closures cannot be copied
        return {"functions": (), "_homes": None}

    def _find(self) -> None:
        """Look for what the functions hold now."""
        found = list(holders(*self.functions))
        self._homes = [home for thing in found for home in _homes_of(thing)]
        self._sizes = self._sizes_now()
        self._numbers = self._entries(_is_number)
        self._built = self._entries(_is_built)

    def _sizes_now(self) -> list[int]:
        return [len(home) for home in self._homes or ()]

    def _entries(self, wanted: Callable[[Any], bool]) -> list[_Entry]:
        return [
            (home, key, value)
            for home in self._homes or ()
            for key, value in home.entries()
            if wanted(value)
        ]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put numbers back, on leaving, to what they were.

        None are put back where networks, flags or functions have come or gone meanwhile: numbers
        may be sizes of these, and a program that forgets some of what it has built builds it anew.
        """
        if self._homes is None or self._sizes != self._sizes_now():
            self._find()
        before = [(home, key, home.get(key)) for home, key, _ in self._numbers]
        try:
            yield
        finally:
            moved = [entry for entry in before if entry[0].get(entry[1]) is not entry[2]]
            more = self._sizes != self._sizes_now()
            if (moved or more) and not _same(self._built, self._entries(_is_built)):
                self._find()
            elif moved or more:
                self._put_back(moved)

    def _put_back(self, moved: list[_Entry]) -> None:
        known = {(id(home), key) for home, key, _ in self._numbers}
        come = [(h, k) for h, k, _ in self._entries(_is_number) if (id(h), k) not in known]
        for home, key in reversed(come):  # the last of a list first
            home.remove(key)
        for home, key, value in moved:
            if _is_number(home.get(key)):
                home.put(key, value)


class _Home:
    """A namespace or a container whose entries may be numbers.

    Arguments:
        values: A dictionary or a list.
        names: The keys that are looked at; None: all but those of every module.
    """

    def __init__(self, values: Any, names: frozenset[str] | None = None) -> None:
        self._values, self._names = values, names

    def __len__(self) -> int:
        return len(self._values) if self._names is None else 0

    def entries(self) -> list[tuple[Any, Any]]:
        """Return keys and values."""
        if isinstance(self._values, list):
            return list(enumerate(self._values))
        if self._names is not None:
            return [(n, self._values[n]) for n in self._names if n in self._values]
        return [(k, v) for k, v in self._values.items() if k not in _SKIPPED]

    def get(self, key: Any) -> Any:
        """Return the value under a key, or a mark that there is none."""
        try:
            return self._values[key]
        except LookupError:
            return _ABSENT

    def put(self, key: Any, value: Any) -> None:
        """Set a value."""
        self._values[key] = value

    def remove(self, key: Any) -> None:
        """Drop a value."""
        del self._values[key]


class _Cell(_Home):
    """A variable of a closure."""

    def __init__(self, cell: CellType) -> None:
        super().__init__({}, frozenset())
        self._cell = cell

    def entries(self) -> list[tuple[Any, Any]]:
        value = self.get(None)
        return [] if value is _ABSENT else [(None, value)]

    def get(self, key: Any) -> Any:
        try:
            return self._cell.cell_contents
        except ValueError:  # still empty
            return _ABSENT

    def put(self, key: Any, value: Any) -> None:
        self._cell.cell_contents = value

    def remove(self, key: Any) -> None:
        del self._cell.cell_contents


_SKIPPED = (_OF_EVERY_MODULE - {"_parameters", "_buffers", "_modules"}) | {PROGRAM}


def _homes_of(thing: Any) -> Iterator[_Home]:
    """Yield where a thing that a search has met may keep numbers."""
    if issubclass(type(thing), nn.Module):  # isinstance would ask the object
        yield from (_Home(part) for part in (thing._parameters, thing._buffers, thing._modules))
        if not installed(type(thing).__module__):
            yield _Home(vars(thing))
    elif isinstance(thing, FunctionType):
        if not installed(thing.__module__ or ""):
            yield from (_Cell(cell) for cell in thing.__closure__ or ())
            yield _Home(thing.__globals__, names_loaded(thing))
            yield _Home(vars(thing))
    elif type(thing) in (dict, list):
        yield from [_Home(thing)] if len(thing) <= _MANY else []  # longer ones are data
    elif type(thing) is SimpleNamespace or not installed(type(thing).__module__):
        try:
            own = object.__getattribute__(thing, "__dict__")  # and runs none of its code
        except (AttributeError, TypeError):  # it has slots, or is a class
            return
        yield _Home(own)


def _is_number(value: Any) -> bool:
    """Return whether a value may be a count, or a running mean, and no weight."""
    if isinstance(value, Tensor):
        return not (isinstance(value, nn.Parameter) or (value.requires_grad and value.is_leaf))
    return type(value) in _NUMBERS or isinstance(value, np.generic)


def _is_built(value: Any) -> bool:
    """Return whether a value is a flag, a network, a weight or a thing of a user's own class."""
    kind = type(value)
    if kind in _FLAGS or issubclass(kind, nn.Module | FunctionType | type):
        return True
    if isinstance(value, Tensor):
        return not _is_number(value)
    if isinstance(value, list | tuple | dict):
        inside = value.values() if isinstance(value, dict) else value
        return any(issubclass(type(each), nn.Module | nn.Parameter) for each in inside)
    return not installed(kind.__module__)


def _same(before: list[_Entry], after: list[_Entry]) -> bool:
    return len(before) == len(after) and all(
        a[0] is b[0] and a[1] == b[1] and (a[2] is b[2] or (type(a[2]) is str and a[2] == b[2]))
        for a, b in zip(before, after, strict=True)
    )
