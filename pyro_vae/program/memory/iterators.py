"""Iterators that a program draws on: what a look has drawn comes once more."""

import copy
import dis
import io
import warnings
from collections import deque
from collections.abc import Callable
from itertools import islice
from operator import length_hint
from types import GeneratorType, MethodWrapperType
from typing import Any

from pyro_vae.program.object_graph import installed

_OF_A_FUNCTION = type(iter(int, 1))


class Retold:
    """Stands in the place of an iterator, which nothing moves back, and gives its values.

    Inside looks it keeps what it has given, so that these can begin anew; outside, it gives what
    is left of that first. Of a source whose values come of what is put back (a generator that
    counts in an attribute of the program), what was kept is dropped: it gives them again.

    Arguments:
        source: The iterator.
    """

    def __init__(self, source: Any) -> None:
        self.source, self.place, self.kept = source, 0, True
        self._values: deque[Any] = deque()
        # Starts a check of whether what looks put back moves: told by whoever puts it back.
        self.watch: Callable[[], Callable[[], bool]] | None = None
        self._repeats = False  # a draw has moved some of it: the source gives its values again

    def __iter__(self) -> "Retold":
        return self

    def __next__(self) -> Any:
        if self.place == len(self._values):
            moved = self.watch() if self.kept and self.watch else None
            self._values.append(next(self.source))
            self._repeats = self._repeats or (moved is not None and moved())
        if not self.kept:
            return self._values.popleft()
        self.place += 1
        return self._values[self.place - 1]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "watch": None}

    def __copy__(self) -> "Retold":
        """Return a copy that stands where this one does, and draws for itself."""
        other = Retold(copy.copy(self.source))
        other._values.extend(islice(self._values, self.place, None))
        other.kept = False
        return other

    def __len__(self) -> int:
        return len(self.source)

    def __bool__(self) -> bool:
        return True  # as an iterator's, though it may have a length

    def __length_hint__(self) -> int:
        return len(self._values) - self.place + length_hint(self.source, 1)

    def __getattr__(self, name: str) -> Any:
        hidden = name[:2] == "__" and name not in ("__name__", "__qualname__")
        if hidden or name == "source":  # asked for by copies, say
            raise AttributeError(name)
        if name in ("send", "throw"):
            self._tell()
        return getattr(self.source, name)

    def copy(self) -> int:
        """Return how far it is."""
        return self.place

    def same(self, place: int) -> bool:
        """Return whether it is there still."""
        return self.place == place

    def put(self, place: int) -> None:
        """Go back to a place."""
        self.place = place
        while self._repeats and len(self._values) > place:
            self._values.pop()
        stores = isinstance(self.source, GeneratorType) and _stores(self.source)
        # ``iter(function, end)`` has no place of its own: it is where the function is.
        if stores or (self._repeats and not isinstance(self.source, _OF_A_FUNCTION)):
            self._tell()

    def hold(self) -> None:
        """Keep what is given from now on."""
        self.kept = True

    def let_go(self) -> None:
        """Give what lies ahead, and keep nothing of it."""
        for _ in range(self.place):
            self._values.popleft()
        self.place, self.kept = 0, False

    def _tell(self) -> None:
        name = getattr(self.source, "__name__", type(self.source).__name__)
        warnings.warn(
            f"the program draws on an iterator, {name}, which does more than give values: runs "
            "that look at the program have moved it on, and nothing moves it back; keep a number",
            stacklevel=3,
        )


def _stores(generator: Any) -> bool:
    """Return whether a generator writes to what stands outside it."""
    found = [(each.opname, each.argval) for each in dis.get_instructions(generator.gi_code)]
    outside = {("STORE_DEREF", name) for name in generator.gi_code.co_freevars}
    return any(op in ("STORE_ATTR", "STORE_GLOBAL") or (op, x) in outside for op, x in found)


def with_retold(value: Any, known: dict[int, Retold]) -> Any:
    """Return a value with each iterator that it is, holds in a tuple or gives next of, retold.

    The same value where there is none.

    Arguments:
        value: Any.
        known: What has been made so far, by the identity of the source.
    """
    if type(value) is tuple:
        items = tuple(with_retold(item, known) for item in value)
        return value if all(map(lambda a, b: a is b, items, value)) else items
    if type(value) is MethodWrapperType and value.__name__ == "__next__":
        inner = with_retold(value.__self__, known)
        return value if inner is value.__self__ else inner.__next__
    kind = type(value)
    plain = hasattr(kind, "__next__") and not hasattr(kind, "__getitem__")
    plain = plain and installed(kind.__module__)
    if not plain or isinstance(value, io.IOBase | Retold) or not length_hint(value, 1):
        return value
    return known.setdefault(id(value), Retold(value))
