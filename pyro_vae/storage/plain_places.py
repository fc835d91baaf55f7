"""Where a user's code keeps values, by names that another process gives them too."""

import dis
import functools
import inspect
from collections import deque
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum, EnumMeta
from types import CodeType, FunctionType, MappingProxyType, ModuleType
from typing import Any

import numpy as np
from torch import nn

from pyro_vae.program.memory.value_places import Home, Names, homes_of
from pyro_vae.program.parameters.object_graph import holders, installed
from pyro_vae.program.program import Program

_COUNTING = 6  # instructions from the reading of a count to its writing
# What is inside of these belongs to the value that holds them.
_INSIDE = (dict, list, deque, set, bytearray, np.ndarray, functools._lru_cache_wrapper)
_Named = tuple[str, Any, Home, tuple[str, ...]]  # prefix, whose, where, names of what has no key


@dataclass(frozen=True)
class Place:
    """An attribute, or a variable around a function.

    Arguments:
        owner: The object or the function.
        home: Where its values are.
        index: Among these; that behind the last one for an attribute that is not yet set.
        key: The name of the attribute.
        value: What is there.
    """

    owner: Any
    home: Home
    index: int
    key: str
    value: Any

    @property
    def at(self) -> tuple[int, str]:
        """Where it is in this process."""
        return id(self.home.owner), self.key

    @property
    def of_torch(self) -> bool:
        """Whether a class of torch holds it."""
        return type(self.owner).__module__.partition(".")[0] == "torch"

    def set(self, value: Any) -> None:
        """Put another value there."""
        keys, values = self.home.state()
        if self.index == len(values):
            keys = (*keys, self.key)
        self.home.put(keys, (*values[: self.index], value, *values[self.index + 1 :]))


def places(
    program: Program, known: Mapping[tuple[int, str], str] = MappingProxyType({})
) -> dict[str, Place]:
    """Return where values stand that calls may move.

    Arguments:
        program: Whose.
        known: Names that places (``Place.at``) have already, and keep.
    """
    unnamed: dict[tuple[int, str], tuple[str, Place]] = {}
    for prefix, owner, home, names in _homes(program):
        keys, values = home.state()
        # A variable that is not yet set has a name and no value.
        labels = names[: len(values)] or (*map(str, range(len(values) - len(keys))), *keys)
        for index, (key, value) in enumerate(zip(labels, values, strict=True)):
            if not _is_made_of_weights(owner, key):
                place = Place(owner, home, index, key, value)
                unnamed.setdefault(place.at, (f"{prefix}.{key}".lstrip("."), place))
    found: dict[str, Place] = {}
    for at, (name, place) in unnamed.items():
        if known.get(at, "").rstrip("'") == name:  # else another object is there by now
            found[known[at]] = place
    named = {place.at for place in found.values()}
    for at, (name, place) in unnamed.items():
        if at not in named:
            while name in found:  # of two objects of one class
                name += "'"
            found[name] = place
    return found


def key_of(name: str) -> str:
    """Return the attribute or variable that the name of a place ends in."""
    return name.rpartition(".")[2].rstrip("'")


def vacant_place(program: Program, name: str) -> Place | None:
    """Return where an attribute goes that no call has set yet; its value is that of the class.

    None where the class has code of this name.
    """
    prefix, _, key = name.rpartition(".")
    for at, owner, home, _ in _homes(program):
        fits = isinstance(home, Names) and key.isidentifier() and key not in home.owner
        if prefix and at == prefix and fits:
            default = inspect.getattr_static(type(owner), key, None)
            if not (callable(default) or hasattr(type(default), "__get__")):
                return Place(owner, home, len(home.state()[1]), key, default)
    return None


def _homes(program: Program) -> Iterator[_Named]:
    parts = dict(program.own.parts.named_modules())
    for name, part in parts.items():
        # Pyro's guides are set up anew by their first call.
        if name and type(part).__module__.partition(".")[0] not in ("pyro", "pyro_vae"):
            yield name, part, Names(part.__dict__), ()
    for thing in holders(*program.own.functions):
        kind = type(thing)
        if kind is FunctionType:
            around = thing.__code__.co_freevars
            for index, home in enumerate(homes_of(thing)):  # these, the globals, its own
                prefix = "" if index <= len(around) else thing.__name__
                yield prefix, thing, home, around[index : index + 1]
        elif not issubclass(kind, (*_INSIDE, nn.Module, Enum, EnumMeta)):
            prefix = thing.__name__ if issubclass(kind, ModuleType) else kind.__name__
            prefix = f"class {thing.__name__}" if issubclass(kind, type) else prefix
            names = (thing.name,) if kind is ContextVar else ()
            yield from ((prefix, thing, home, names) for home in homes_of(thing))


def _is_made_of_weights(owner: Any, key: str) -> bool:
    """Return whether a call makes an attribute anew: that of the older weight_norm."""
    own = owner._parameters if issubclass(type(owner), nn.Module) else ()
    return f"{key}_orig" in own or f"{key}_g" in own


def names_in_code(program: Program) -> tuple[set[str], set[str]]:
    """Return the attributes and variables that code reads, not to count them on alone, and writes.

    Also words, for ``getattr`` and ``setattr``, and as read what modules of other libraries hold,
    whose code is not looked at.
    """
    parts = (part for part in program.own.parts.modules() if installed(type(part).__module__))
    read, written = {key for part in parts for key in vars(part)}, set[str]()
    things = holders(*program.own.functions)
    codes = [thing.__code__ for thing in things if type(thing) is FunctionType]
    while codes:
        code = codes.pop()
        codes += [each for each in code.co_consts if isinstance(each, CodeType)]
        steps = [(each.opname, each.argval) for each in dis.get_instructions(code)]
        if "setattr" in code.co_names:
            written |= {each for each in code.co_consts if isinstance(each, str)}
        for index, (step, name) in enumerate(steps):
            if "FAST" in step or not isinstance(name, str):
                continue
            if step.startswith("STORE_"):
                written.add(name)
            elif step.startswith("LOAD_"):
                ahead = steps[index + 1 : index + _COUNTING]
                if all(v != name or not n.startswith("STORE_") for n, v in ahead):
                    read.add(name)
    return read, written
