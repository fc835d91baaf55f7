"""Where Python keeps values: namespaces, containers, closures, slots, classes."""

import dis
import functools
import gc
import inspect
import operator
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from torch import nn

from pyro_vae.program.parameters.object_graph import NAMESPACES, PROGRAM, installed, names_loaded

MANY = 1 << 14  # entries of a container: longer ones are data
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) | {PROGRAM}
_DICTS = (dict, defaultdict, Counter, OrderedDict)
_CODE = (FunctionType, staticmethod, classmethod, property)
State = tuple[tuple[Any, ...], tuple[Any, ...]]  # keys and values


def _are(one: tuple[Any, ...], two: tuple[Any, ...]) -> bool:
    return len(one) == len(two) and all(map(operator.is_, one, two))


class Home:
    """A place of values.

    Arguments:
        owner: Whose they are.
    """

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    @property
    def owner(self) -> Any:
        """Whose the values are."""
        return self._owner

    def state(self) -> State:
        """Return keys and values."""
        raise NotImplementedError

    def put(self, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        """Set them as a state has them."""
        raise NotImplementedError

    def same(self, one: State, two: State) -> bool:
        """Return whether two states hold the same things."""
        return _are(one[0], two[0]) and _are(one[1], two[1])

    def stands(self, state: State) -> bool:
        """Return whether a state is the one that it has now."""
        return self.same(self.state(), state)

    def exchange(self, change: Callable[[Any], Any]) -> None:
        """Put what a function makes of each value in its place."""
        keys, values = self.state()
        changed = tuple(map(change, values))
        if not _are(values, changed):
            self.put(keys, changed)


class Names(Home):
    """The variables of a namespace, those of some names alone or all that are a user's.

    Arguments:
        owner: The namespace.
        names: Those alone.
        libraries: Those that library code writes.
        without: Others than those.
    """

    def __init__(
        self,
        owner: dict[str, Any],
        names: frozenset[str] | None = None,
        libraries: frozenset[str] = frozenset(),
        without: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(owner)
        self._names, self._libraries, self._others = names, libraries, _OF_EVERY_MODULE | without

    def prepared(self, one: State, two: State) -> bool:
        """Return whether what library code writes differs between two states."""
        mine, its = (dict(zip(*state, strict=True)) for state in (one, two))
        return any(mine.get(name) is not its.get(name) for name in self._libraries)

    def state(self) -> State:
        if self._names is not None:
            keys = tuple(name for name in self._names if name in self._owner)
        else:
            own = [name for name in self._owner if name not in self._others]
            keys = tuple([name for name in own if not name.startswith("_pyro")])
        return keys, tuple(map(self._owner.__getitem__, keys))

    def put(self, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        for name in set(self.state()[0]) - set(keys):
            del self._owner[name]
        self._owner.update(zip(keys, values, strict=True))


class _Entries(Home):
    """The entries of a dictionary."""

    def state(self) -> State:
        return tuple(self._owner), tuple(self._owner.values())

    def stands(self, state: State) -> bool:
        # Most places are tables of a module with nothing in them, and are asked at each look.
        return not state[0] if not self._owner else super().stands(state)

    def put(self, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        kind = OrderedDict if isinstance(self._owner, OrderedDict) else dict  # a user's may do more
        kind.clear(self._owner)
        kind.update(self._owner, zip(keys, values, strict=True))

    def exchange(self, change: Callable[[Any], Any]) -> None:
        keys, values = self.state()
        changed = tuple(map(change, keys)), tuple(map(change, values))
        if not (_are(keys, changed[0]) and _are(values, changed[1])):
            self.put(*changed)


class _Objects(Home):
    """The items of an array of objects."""

    def state(self) -> State:
        return (), tuple(self._owner.ravel().tolist())

    def put(self, _: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        for place, value in zip(np.ndindex(self._owner.shape), values, strict=True):
            self._owner[place] = value


class _Items(Home):
    """The items of a list, a deque or a bytearray."""

    def state(self) -> State:
        return (), tuple(self._owner)

    def put(self, _: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        self._owner.clear()
        self._owner.extend(values)


class _Members(Home):
    """The members of a set."""

    def state(self) -> State:
        return (), tuple(self._owner)

    def same(self, one: State, two: State) -> bool:
        return super().same(one, two) or {*map(id, one[1])} == {*map(id, two[1])}

    def put(self, _: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        self._owner.clear()
        self._owner.update(values)


class _Cell(Home):
    """A variable of a closure."""

    def state(self) -> State:
        try:
            return (), (self._owner.cell_contents,)
        except ValueError:  # still empty
            return (), ()

    def put(self, _: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        if values:
            self._owner.cell_contents = values[0]
        else:
            del self._owner.cell_contents


class _Bound(Home):
    """The arguments of a ``functools.partial``."""

    def state(self) -> State:
        keywords = self._owner.keywords
        return tuple(keywords), (self._owner.func, *self._owner.args, *keywords.values())

    def put(self, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        function, *args = values[: len(values) - len(keys)]
        keywords = dict(zip(keys, values[len(values) - len(keys) :], strict=True))
        self._owner.__setstate__((function, tuple(args), keywords, vars(self._owner)))


def cached(function: Any) -> dict[Any, Any]:
    """Return the table in which ``functools.lru_cache`` keeps results."""
    tables = (each for each in gc.get_referents(function) if type(each) is dict)
    return next(each for each in tables if each is not vars(function))


class _Cache(Home):
    """What ``functools.lru_cache`` keeps: what has come since is taken away."""

    def state(self) -> State:
        table = cached(self._owner)
        return tuple(table), tuple(table.values())

    def put(self, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        table = cached(self._owner)
        if not keys:
            self._owner.cache_clear()
        for key in table.keys() - set(keys):
            del table[key]

    def exchange(self, change: Callable[[Any], Any]) -> None:
        """Leave it: no single value can be set."""


class _Context(Home):
    """The value of a ``ContextVar``."""

    def state(self) -> State:
        value = self._owner.get(PROGRAM)
        return (), () if value is PROGRAM else (value,)

    def put(self, _: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        for value in values:  # or there was none, and none can be taken away
            self._owner.set(value)


class _Slots(Home):
    """The slots of an object.

    Arguments:
        owner: The object.
        names: Of the slots.
    """

    def __init__(self, owner: Any, names: list[str]) -> None:
        super().__init__(owner)
        self._names = names

    def state(self) -> State:
        found = [name for name in self._names if hasattr(self._owner, name)]
        return tuple(found), tuple(getattr(self._owner, name) for name in found)

    def put(self, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        for name in set(self.state()[0]) - set(keys):
            object.__delattr__(self._owner, name)
        for name, value in zip(keys, values, strict=True):
            object.__setattr__(self._owner, name, value)  # a frozen dataclass has its own


class _OfClass(Home):
    """What a class holds that is no code."""

    def state(self) -> State:
        found = {
            name: value
            for name, value in vars(self._owner).items()
            if name[:2] != "__"
            and not isinstance(value, _CODE)
            and not inspect.isdatadescriptor(value)
        }
        return tuple(found), tuple(found.values())

    def put(self, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        for name in set(self.state()[0]) - set(keys):
            delattr(self._owner, name)
        for name, value in zip(keys, values, strict=True):
            if vars(self._owner).get(name, PROGRAM) is not value:
                setattr(self._owner, name, value)


def numbers_moved(now: State, before: State) -> set[str]:
    """Return the names under which numbers of two states of one place differ."""
    one, two = (
        dict(zip(keys if len(keys) == len(values) else range(len(values)), values, strict=True))
        for keys, values in (now, before)
    )
    return {
        name if isinstance(name, str) else "a variable"
        for name, value in one.items()
        if isinstance(value, int | float)
        if not (isinstance(two.get(name), int | float) and two[name] == value)
    }


def moved_since(current: State, before: State, after: State) -> State:
    """Return the current state of a place with what differs between two others as after it."""
    if any(len(keys) != len(values) for keys, values in (current, before, after)):
        return after  # a list, say, as a whole
    now, was, then = (dict(zip(*state, strict=True)) for state in (current, before, after))
    kept = {name: value for name, value in now.items() if name in then or name not in was}
    kept |= {k: v for k, v in then.items() if k not in was or v is not was[k]}
    return tuple(kept), tuple(kept.values())


def homes_of(thing: Any) -> Iterator[Home]:
    """Yield where a thing that a search has met may keep values."""
    kind: Any = type(thing)
    if issubclass(kind, nn.Module):  # isinstance would ask the object
        if kind is not PyroModule and not issubclass(kind, AutoGuide):  # what they make stays
            parts = thing._parameters, thing._buffers, thing._modules
            yield from map(_Entries, parts)
        libraries = _written_by_libraries(kind)
        if installed(kind.__module__):
            yield Names(vars(thing), without=libraries)
        else:
            yield Names(vars(thing), libraries=libraries)
    elif kind is FunctionType:
        if not installed(thing.__module__ or ""):
            yield from map(_Cell, thing.__closure__ or ())
            yield Names(thing.__globals__, names_loaded(thing))
            yield Names(vars(thing))
            yield _Slots(thing, ["__defaults__"])
            if thing.__kwdefaults__:
                yield _Entries(thing.__kwdefaults__)
    elif kind in (*_DICTS, list, deque, bytearray, set):
        if len(thing) <= MANY:
            yield (_Entries if kind in _DICTS else _Members if kind is set else _Items)(thing)
    elif kind is np.ndarray:
        if thing.dtype == object and thing.size <= MANY and thing.flags.writeable:
            yield _Objects(thing)
    elif kind is ModuleType:
        if not installed(thing.__name__):
            yield Names(vars(thing), frozenset(name for name in vars(thing) if name[:2] != "__"))
    elif issubclass(kind, type):
        if not installed(thing.__module__):
            yield _OfClass(thing)
    elif issubclass(kind, functools.partial):
        yield _Bound(thing)
    elif kind is functools._lru_cache_wrapper:
        if not installed(thing.__module__ or ""):
            yield _Cache(thing)
    elif kind is ContextVar:
        yield _Context(thing)
    elif issubclass(kind, threading.local):
        yield Names(vars(thing))
    elif kind in NAMESPACES or not installed(kind.__module__):
        yield from _of_object(thing)


def _of_object(thing: Any) -> Iterator[Home]:
    with suppress(AttributeError, TypeError):  # it has slots alone
        yield Names(object.__getattribute__(thing, "__dict__"))  # and runs none of its code
    slots = [
        name
        for base in type(thing).__mro__
        for name, value in vars(base).items()
        # Cython's functions have places of the interpreter's own, by names with underscores.
        if inspect.ismemberdescriptor(value) and name[:2] != "__" and not installed(base.__module__)
    ]
    if slots:
        yield _Slots(thing, slots)
    for base in (dict, list, set, deque):
        if issubclass(type(thing), base) and base.__len__(thing) <= MANY:
            yield {dict: _Entries, set: _Members}.get(base, _Items)(thing)


def _written_by_libraries(kind: type) -> frozenset[str]:
    """Return the attributes that library code writes to a user's class: an EasyGuide's frames."""
    bases = [base for base in kind.__mro__ if installed(base.__module__)]
    return frozenset[str]().union(*map(_written_by, bases))


@functools.cache
def _written_by(kind: type) -> frozenset[str]:
    """Return the attributes that the methods of a class write to; takes 10 ms for a module."""
    functions = [f for f in vars(kind).values() if isinstance(f, FunctionType)]
    found = (each for f in functions for each in dis.get_instructions(f))
    return frozenset(str(each.argval) for each in found if each.opname == "STORE_ATTR")
