"""What a program keeps from call to call beside its weights, in Python and in place: a way back."""

import ast
import dis
import functools
import inspect
import itertools
import operator
import random
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FunctionType, GeneratorType, ModuleType
from typing import Any

import numpy as np
import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from pyro_vae.program.object_graph import (
    NAMESPACES,
    PROGRAM,
    holders,
    installed,
    names_loaded,
)
from pyro_vae.torch_private import overlaps_itself, version_of

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) | {PROGRAM}
_DICTS = (dict, defaultdict, Counter, OrderedDict)
_MANY = 1 << 14  # entries of a container: longer ones are data
_SMALL = 1 << 20  # numbers of a tensor that is copied
_FEW = 1 << 17  # of an array, which has no version: it is compared after each run
_CODE = (FunctionType, staticmethod, classmethod, property)
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_State = tuple[tuple[Any, ...], tuple[Any, ...]]  # keys and values


class OwnState:
    """What functions hold beside their weights: counters, caches, flags, lists, generators.

    It stands among the attributes of modules, of other objects and of their classes, in slots,
    closures, globals and containers, and in small arrays and tensors that are written in place.

    Arguments:
        functions: Model and guide.
    """

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self.functions = functions
        self._all: _Holders | None = None
        self._depth, self.settled = 0, False

    def __getstate__(self) -> dict[str, Any]:  # cells of closures cannot be copied
        return {**vars(OwnState()), "functions": ()}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Leave what the functions hold, on leaving, as if none had run inside.

        All of it is put back, or nothing: a flag tells what a cache holds. Nothing is where a
        network or a weight has come meanwhile, or has been written to (made anew, it would be
        another one), or where a library has set a part up, as an EasyGuide its frames. Of blocks
        inside this one, what the first run leaves stays for the others: they find what a second
        call does.
        """
        if self._all is None or self._all.moved():
            self._all = _Holders(holders(*self.functions))
        before = _Moment(self._all)
        settled = self.settled if self._depth else False
        self.settled, self._depth = settled, self._depth + 1
        ended = False
        try:
            yield
            ended = True
        finally:
            self._depth -= 1
            if settled or not ended or self._depth == 0:
                before.put_back()
                self.settled = settled
            elif before.moved():
                self.settled = True


class _Holders:
    """Where values stand, and what is written in place, among the things that a walk has met."""

    def __init__(self, things: list[Any]) -> None:
        own = [thing for thing in things if thing is not _PYRO_STACK]
        self.homes = [home for thing in own for home in _homes_of(thing)]
        self.states = [home.state() for home in self.homes]
        values = [value for _, values in self.states for value in values]
        values += [each for thing in things if type(thing) is tuple for each in thing]
        weights = [value for value in values if _is_weight(value)]
        self.weights = list({id(w): w for w in weights if not _is_state(w)}.values())
        self.built = {id(t) for t in things if issubclass(type(t), nn.Module)}
        self.built |= {id(weight) for weight in weights}
        inside = {id(value): value for value in (*things, *values)}
        self.contents = [made for value in inside.values() if (made := _content_of(value))]

    def moved(self) -> bool:
        """Return whether a value is another than when the walk met it."""
        pairs = zip(self.homes, self.states, strict=True)
        return not all(home.same(home.state(), state) for home, state in pairs)


class _Moment:
    """All of this at one moment.

    Arguments:
        all_: Where it stands.
    """

    def __init__(self, all_: _Holders) -> None:
        self._all = all_
        self._contents = [(content, content.copy()) for content in all_.contents]
        self._versions = list(map(_version, all_.weights))

    def moved(self) -> bool:
        """Return whether something is another now."""
        return self._all.moved() or any(not c.same(copy) for c, copy in self._contents)

    def put_back(self) -> None:
        """Put all back, unless a network or a weight has come, or been written to."""
        pairs = zip(self._all.homes, self._all.states, strict=True)
        others = [(h, now, was) for h, was in pairs if not h.same(now := h.state(), was)]
        written = [(c, copy) for c, copy in self._contents if not c.same(copy)]
        if not (others or written) or self._built(others):
            return
        for home, _, was in others:
            home.put(*was)
        for content, copy in written:
            content.put(copy, self._all.homes)

    def _built(self, others: list[Any]) -> bool:
        """Return whether networks or weights are others than at this moment."""
        if self._versions != list(map(_version, self._all.weights)):
            return True
        gone = [v for _, (_, now), (_, was) in others for v in was if not any(v is w for w in now)]
        if any(isinstance(h, _Names) and h.prepared(now, was) for h, now, was in others):
            return True
        known = self._all.built
        if any(id(value) in known for value in gone):
            return True
        new = [v for _, (_, now), (_, was) in others for v in now if not any(v is w for w in was)]
        found = _Holders([*holders(*new), *new]).built | {id(v) for v in new if _is_weight(v)}
        return not found <= known


class _Home:
    """A place of values.

    Arguments:
        owner: Whose they are.
    """

    def __init__(self, owner: Any) -> None:
        self._owner = owner

    def state(self) -> _State:
        """Return keys and values."""
        raise NotImplementedError

    def put(self, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        """Set them as a state has them."""
        raise NotImplementedError

    def same(self, one: _State, two: _State) -> bool:
        """Return whether two states hold the same things."""
        return all(
            len(a) == len(b) and all(map(operator.is_, a, b)) for a, b in zip(one, two, strict=True)
        )

    def replace(self, old: Any, new: Any) -> None:
        """Put another value in the place of one."""
        keys, values = self.state()
        if any(value is old for value in values):
            self.put(keys, tuple(new if value is old else value for value in values))


class _Names(_Home):
    """The variables of a namespace, those of some names alone or all that are a user's."""

    def __init__(
        self,
        owner: dict[str, Any],
        names: frozenset[str] | None = None,
        libraries: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(owner)
        self._names, self._libraries = names, libraries

    def prepared(self, one: _State, two: _State) -> bool:
        """Return whether what library code writes differs between two states."""
        mine, its = (dict(zip(*state, strict=True)) for state in (one, two))
        return any(mine.get(name) is not its.get(name) for name in self._libraries)

    def state(self) -> _State:
        if self._names is not None:
            keys = tuple(name for name in self._names if name in self._owner)
        else:
            keys = tuple(name for name in self._owner if _is_own(name))
        return keys, tuple(map(self._owner.__getitem__, keys))

    def put(self, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        for name in set(self.state()[0]) - set(keys):
            del self._owner[name]
        self._owner.update(zip(keys, values, strict=True))


class _Entries(_Home):
    """The entries of a dictionary."""

    def state(self) -> _State:
        return tuple(self._owner), tuple(self._owner.values())

    def put(self, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        kind = OrderedDict if isinstance(self._owner, OrderedDict) else dict  # a user's may do more
        kind.clear(self._owner)
        kind.update(self._owner, zip(keys, values, strict=True))


class _Items(_Home):
    """The items of a list, a deque or a bytearray."""

    def state(self) -> _State:
        return (), tuple(self._owner)

    def put(self, _: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        self._owner.clear()
        self._owner.extend(values)


class _Members(_Home):
    """The members of a set."""

    def state(self) -> _State:
        return (), tuple(self._owner)

    def same(self, one: _State, two: _State) -> bool:
        return super().same(one, two) or {*map(id, one[1])} == {*map(id, two[1])}

    def put(self, _: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        self._owner.clear()
        self._owner.update(values)


class _Cell(_Home):
    """A variable of a closure."""

    def state(self) -> _State:
        try:
            return (), (self._owner.cell_contents,)
        except ValueError:  # still empty
            return (), ()

    def put(self, _: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        if values:
            self._owner.cell_contents = values[0]
        else:
            del self._owner.cell_contents


class _Slots(_Home):
    """The slots of an object.

    Arguments:
        owner: The object.
        names: Of the slots.
    """

    def __init__(self, owner: Any, names: list[str]) -> None:
        super().__init__(owner)
        self._names = names

    def state(self) -> _State:
        found = [name for name in self._names if hasattr(self._owner, name)]
        return tuple(found), tuple(getattr(self._owner, name) for name in found)

    def put(self, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        for name in set(self.state()[0]) - set(keys):
            object.__delattr__(self._owner, name)
        for name, value in zip(keys, values, strict=True):
            object.__setattr__(self._owner, name, value)  # a frozen dataclass has its own


class _OfClass(_Home):
    """What a class holds that is no code."""

    def state(self) -> _State:
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


def _homes_of(thing: Any) -> Iterator[_Home]:
    """Yield where a thing that a search has met may keep values."""
    kind: Any = type(thing)
    if issubclass(kind, nn.Module):  # isinstance would ask the object
        yield from (_Entries(part) for part in (thing._parameters, thing._buffers, thing._modules))
        if not installed(kind.__module__):
            yield _Names(vars(thing), libraries=_written_by_libraries(kind))
    elif kind is FunctionType:
        if not installed(thing.__module__ or ""):
            yield from map(_Cell, thing.__closure__ or ())
            yield _Names(thing.__globals__, names_loaded(thing))
            yield _Names(vars(thing))
    elif kind in (*_DICTS, list, deque, bytearray, set):
        if len(thing) <= _MANY:
            yield (_Entries if kind in _DICTS else _Members if kind is set else _Items)(thing)
    elif kind is ModuleType:
        if not installed(thing.__name__):
            yield _Names(vars(thing), frozenset(name for name in vars(thing) if name[:2] != "__"))
    elif issubclass(kind, type):
        if not installed(thing.__module__):
            yield _OfClass(thing)
    elif kind in NAMESPACES or not installed(kind.__module__):
        yield from _homes_of_object(thing)


def _homes_of_object(thing: Any) -> Iterator[_Home]:
    with suppress(AttributeError, TypeError):  # it has slots alone
        yield _Names(object.__getattribute__(thing, "__dict__"))  # and runs none of its code
    slots = [
        name
        for base in type(thing).__mro__
        for name, value in vars(base).items()
        if inspect.ismemberdescriptor(value) and not installed(base.__module__)
    ]
    if slots:
        yield _Slots(thing, slots)
    for base in (dict, list, set, deque):
        if isinstance(thing, base) and len(thing) <= _MANY:
            yield {dict: _Entries, set: _Members}.get(base, _Items)(thing)


@functools.cache
def _written_by_libraries(kind: type) -> frozenset[str]:
    """Return the attributes that library code writes to a user's class: an EasyGuide's frames."""
    bases = [base for base in kind.__mro__ if installed(base.__module__)]
    functions = [f for base in bases for f in vars(base).values() if isinstance(f, FunctionType)]
    found = (each for f in functions for each in dis.get_instructions(f))
    return frozenset(str(each.argval) for each in found if each.opname == "STORE_ATTR")


def _is_own(name: str) -> bool:
    """Return whether an attribute is a user's, and not Pyro's or of every module."""
    return name not in _OF_EVERY_MODULE and not name.startswith("_pyro")


def _is_weight(value: Any) -> bool:
    if not isinstance(value, Tensor) or is_lazy(value):
        return isinstance(value, UninitializedParameter)
    return isinstance(value, nn.Parameter) or (value.requires_grad and value.is_leaf)


def _is_state(value: Tensor) -> bool:
    """Return whether a tensor that is written to is put back: no weight, or a frozen one."""
    if is_lazy(value) or value.is_inference() or value.is_meta:
        return False
    plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
    plain = plain and not overlaps_itself(value)  # else its base is written to
    weight = _is_weight(value) and value.requires_grad
    return plain and not weight and value.numel() <= _SMALL


def _version(weight: Any) -> int:
    """Return how often a weight has been written to."""
    return -1 if is_lazy(weight) else version_of(weight)


class _Written:
    """A tensor, copied once for each of its versions.

    A small one is compared as well: ``.data`` and NumPy write to it without a new version.
    """

    def __init__(self, value: Tensor) -> None:
        self._value = value
        self._small = value.numel() <= _FEW and value.device.type == "cpu"
        self._copy: tuple[int, Tensor] = (-1, value)

    def copy(self) -> Any:
        """Return what it holds."""
        if not self.same(self._copy):
            self._copy = version_of(self._value), self._value.detach().clone()
        return self._copy

    def same(self, copy: Any) -> bool:
        """Return whether it still holds what a copy does."""
        value, (version, was) = self._value.detach(), copy
        if version != version_of(value):
            return False
        alike = (value.shape, value.dtype) == (was.shape, was.dtype)
        return not self._small or (alike and _equal(value, was))

    def put(self, copy: Any, _: list[_Home]) -> None:
        """Put a copy back."""
        if self._value.shape == copy[1].shape:
            self._value.detach().copy_(copy[1])
        else:  # set through ``.data``
            self._value.data = copy[1].clone()


class _Array:
    """A NumPy array."""

    def __init__(self, value: np.ndarray) -> None:
        self._value = value

    def copy(self) -> Any:
        return self._value.copy()

    def same(self, copy: Any) -> bool:
        return bool(self._value.tobytes() == copy.tobytes())

    def put(self, copy: Any, _: list[_Home]) -> None:
        np.copyto(self._value, copy)


class _Count:
    """An ``itertools.count``: another one takes its place."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def copy(self) -> Any:
        return repr(self._value)

    def same(self, copy: Any) -> bool:
        return repr(self._value) == str(copy)

    def put(self, copy: Any, homes: list[_Home]) -> None:
        try:
            start, *step = ast.literal_eval(f"[{copy[6:-1]}]")  # of "count(2)", or "count(2, 3)"
        except ValueError:  # fractions, infinity
            return _tell_of_what_moves("an itertools.count of no plain numbers")
        fresh = itertools.count(start, *step)
        for home in homes:
            home.replace(self._value, fresh)


class _Generator:
    """A generator of random numbers."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def copy(self) -> Any:
        value = self._value
        if isinstance(value, np.random.Generator):
            return value.bit_generator.state
        if isinstance(value, random.Random):
            return value.getstate()
        return value.get_state()

    def same(self, copy: Any) -> bool:
        now = self.copy()
        return torch.equal(now, copy) if isinstance(copy, Tensor) else repr(now) == repr(copy)

    def put(self, copy: Any, _: list[_Home]) -> None:
        value = self._value
        if isinstance(value, np.random.Generator):
            value.bit_generator.state = copy
        elif isinstance(value, random.Random):
            value.setstate(copy)
        else:
            value.set_state(copy)


class _Suspended:
    """A generator function that is under way: nothing moves it back."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def copy(self) -> Any:
        frame = self._value.gi_frame
        return None if frame is None else (frame.f_lasti, *map(id, frame.f_locals.values()))

    def same(self, copy: Any) -> bool:
        return bool(self.copy() == copy)

    def put(self, *_: Any) -> None:
        _tell_of_what_moves(f"a generator, {self._value.__name__}()")


def _tell_of_what_moves(iterator: str) -> None:
    warnings.warn(
        f"the program draws on {iterator}, which runs that look at the program have moved on, and "
        "nothing moves back; keep a number, or an itertools.count of plain ones",
        stacklevel=3,
    )


def _equal(one: Tensor, two: Tensor) -> bool:
    """Return whether two tensors of one shape hold the same, NaN at equal places too."""
    return torch.equal(one, two) or bool(((one == two) | (one != one) & (two != two)).all())


def _content_of(value: Any) -> Any:
    """Return what is written to a thing in place, where it is small enough to be copied."""
    if isinstance(value, Tensor):
        return _Written(value) if _is_state(value) else None
    if isinstance(value, np.ndarray):
        fit = value.size <= _FEW and value.flags.writeable and not value.dtype.hasobject
        return _Array(value.view(np.ndarray)) if fit else None
    if type(value) is itertools.count:
        return _Count(value)
    if isinstance(value, GeneratorType):
        return _Suspended(value)
    return _Generator(value) if isinstance(value, _GENERATORS) else None
