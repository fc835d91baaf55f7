"""Iterators that a program draws on: what a look has drawn comes once more."""

import copy
import io
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import is_, length_hint
from types import MethodType, MethodWrapperType
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.program.object_graph import installed

_MOST_PARTS = 1 << 12  # of one value
_Call = tuple[str, tuple[Any, ...], dict[str, Any]]


@dataclass
class _Draw:
    """What a call of an iterator has given.

    Arguments:
        call: A method and its arguments.
        value: What it has returned.
        again: Leaves all that the call has moved as the call has left it.
        inner: Iterators in the value.
    """

    call: _Call
    value: Any
    again: Callable[[], None] | None = None
    inner: tuple["Retold", ...] = ()

    def repeat(self) -> Any:
        """Give the value once more."""
        for each in self.inner:
            each.put(0)
        if self.again is not None:
            self.again()
        return self.value


class Retold:
    """Stands in the place of an iterator, which nothing moves back, and gives its values.

    Inside looks it keeps what it has given, so that these can begin anew; outside, it gives what
    is left of that first. With a value comes all that the source has moved to make it: a count in
    an attribute of the program, or the one buffer that it fills again and again.

    Its own names must be none that iterators have: a file has a name, and tells where it is.

    Arguments:
        source: The iterator.
    """

    def __init__(self, source: Any) -> None:
        self.source, self.place, self.kept = source, 0, True
        self._draws: deque[_Draw] = deque()
        # Starts a note of what a draw moves, set by whoever puts it back: called with the value.
        self.watch: Callable[[], Callable[[Any], Callable[[], None]]] | None = None

    @property
    def ahead(self) -> bool:
        """Whether it holds what the source has given and nobody has drawn."""
        return bool(self._draws)

    @property
    def source_name(self) -> str:
        """The name of a generator, or the kind of an iterator."""
        return str(getattr(self.source, "__name__", type(self.source).__name__))

    def __iter__(self) -> "Retold":
        return self

    def __next__(self) -> Any:
        return self._drawn("__next__")

    def _drawn(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Return what a method of the source gives, or has given to a look."""
        call = name, args, kwargs
        if self.place < len(self._draws) and not _alike(call, self._draws[self.place].call):
            self.warn_of_it()
            while len(self._draws) > self.place:
                self._draws.pop()
        if self.place < len(self._draws):
            value = self._draws[self.place].repeat()
        elif self.kept:
            self._draws.append(self._noted(call))
            value = self._draws[-1].value
        else:
            return self._of_source(call)
        if self.kept:
            self.place += 1
        else:
            self._draws.popleft()
        return value

    def _of_source(self, call: _Call) -> Any:
        name, args, kwargs = call
        value = getattr(self.source, name)(*args, **kwargs)
        return self if value is self.source else value

    def _noted(self, call: _Call) -> _Draw:
        moved = self.watch() if self.watch else None
        with torch.enable_grad():  # else a look would hide that a value depends on weights
            value = self._of_source(call)
        if any(isinstance(each, Tensor) and each.requires_grad for each in parts_of(value)):
            self.warn_of_it()
        known: dict[int, Retold] = {}
        value = exchanged(value, lambda each: stand_in(each, known)) if value is not self else self
        for inner in known.values():
            inner.watch = self.watch
        return _Draw(call, value, moved and moved(value), tuple(known.values()))

    def __getstate__(self) -> dict[str, Any]:
        ahead = [_Draw(each.call, each.value) for each in self._draws]
        return {**vars(self), "watch": None, "_draws": deque(ahead)}

    def __copy__(self) -> "Retold":
        """Return a copy that stands where this one does, and draws for itself."""
        other = Retold(copy.copy(self.source))
        other._draws.extend(list(self._draws)[self.place :])
        other.kept = False
        return other

    def __len__(self) -> int:
        return len(self.source)

    def __bool__(self) -> bool:
        return True  # as an iterator's, though it may have a length

    def __length_hint__(self) -> int:
        return len(self._draws) - self.place + length_hint(self.source, 1)

    def __getattr__(self, name: str) -> Any:
        hidden = name[:2] == "__" and name not in ("__name__", "__qualname__")
        if hidden or name == "source":  # asked for by copies, say
            raise AttributeError(name)
        value = getattr(self.source, name)
        mine = callable(value) and getattr(value, "__self__", None) is self.source
        return partial(self._drawn, name) if mine else value

    def copy(self) -> int:
        """Return how far it is."""
        return self.place

    def same(self, place: int) -> bool:
        """Return whether it is there still."""
        return self.place == place

    def put(self, place: int) -> None:
        """Go back to a place."""
        self.place = place

    def hold(self) -> None:
        """Keep what is given from now on."""
        self.kept = True
        for draw in self._draws:
            for inner in draw.inner:
                inner.hold()

    def let_go(self) -> None:
        """Give what lies ahead, and keep nothing of it."""
        for _ in range(self.place):
            self._draws.popleft()
        self.place, self.kept = 0, False
        for draw in self._draws:
            for inner in draw.inner:
                inner.put(0)
                inner.let_go()

    def warn_of_it(self) -> None:
        """Warn that looks have drawn what steps then lack."""
        warnings.warn(
            f"the program draws on an iterator, {self.source_name}, which does more than give "
            "values: runs that look at the program have moved it on, and nothing moves it back; "
            "keep a number",
            stacklevel=3,
        )


def _alike(one: Any, two: Any) -> bool:
    """Return whether two calls are the same."""
    try:
        return bool(one == two)
    except Exception:  # tensors, and whatever a user's class does
        return False


def parts_of(value: Any) -> Iterator[Any]:
    """Yield a value, and what it holds in containers of Python and in objects of a user's class."""
    waiting, met = [value], {id(value)}
    while waiting:
        value = waiting.pop()
        yield value
        inside = [each for each in _inside(value) if id(each) not in met]
        met |= set(map(id, inside))
        waiting += inside if len(met) < _MOST_PARTS else []


def keeps(value: Any) -> bool:
    """Return whether a value may hold others later: a container, or an object, but no network."""
    return isinstance(value, dict | list | set | deque) or _is_own(value)


def _is_own(value: Any) -> bool:
    kind = type(value)
    own = not installed(kind.__module__) and isinstance(getattr(value, "__dict__", None), dict)
    return own and not issubclass(kind, nn.Module | type) and not callable(value)


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | deque):
        return list(value)
    return list(vars(value).values()) if _is_own(value) else []


def exchanged(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a value with what a function makes of it, of what a tuple of it holds, or of ``next``.

    The same value where there is nothing to change.
    """
    if type(value) is tuple or hasattr(type(value), "_make"):
        items = tuple(exchanged(item, change) for item in value)
        same = all(map(is_, items, value))
        return value if same else items if type(value) is tuple else value._make(items)
    bound = isinstance(value, MethodWrapperType | MethodType)
    if bound and value.__name__ == "__next__":
        inner = change(value.__self__)
        return value if inner is value.__self__ else inner.__next__
    return change(value)


def stand_in(value: Any, known: dict[int, Retold]) -> Any:
    """Return what stands in the place of an iterator, and anything else as it is.

    Arguments:
        value: Any.
        known: What has been made so far, by the identity of the source.
    """
    return known.setdefault(id(value), Retold(value)) if _is_iterator(value) else value


def stand_ins(values: Iterable[Any]) -> list[Retold]:
    """Return what would stand in the places of the iterators among some values."""
    known: dict[int, Retold] = {}
    for value in values:
        exchanged(value, lambda each: stand_in(each, known))
    return list(known.values())


def source_of(value: Any) -> Any:
    """Return the iterator of one that stands in its place and holds nothing of it any more."""
    return value.source if type(value) is Retold and not value.ahead else value


def _is_iterator(value: Any) -> bool:
    kind = type(value)
    plain = hasattr(kind, "__next__") and not hasattr(kind, "__getitem__")
    if not plain or kind is Retold or not installed(kind.__module__):
        return False
    written = isinstance(value, io.IOBase) and (value.closed or value.writable())
    return not written and length_hint(value, 1) > 0
