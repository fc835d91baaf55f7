"""The networks that can be reached from Pyro functions: a search of what the functions refer to."""

import argparse
import asyncio
import dis
import functools
import gc
import inspect
import queue
import sys
import sysconfig
import tempfile
import threading
from collections import ChainMap, OrderedDict, UserDict, UserList, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from types import (
    BuiltinMethodType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Distribution, Transform
from torch.quasirandom import SobolEngine

from pyro_vae.torch_private import MODULE_HOOKS, MODULE_TABLES

# The key under which an object keeps the program that was read from it.
PROGRAM = "_pyro_vae_program"
_MOST_OBJECTS = 5_000  # what lies behind so many is found when it is used
_MOST_ITEMS = 1024  # of a container: longer ones hold data
_ATOMS = frozenset(
    (int, float, complex, str, bytes, bool, type(None), range, slice, Tensor, nn.Parameter)
)
# Namespaces, containers and others of libraries whose attributes are a user's values.
NAMESPACES = (
    *(SimpleNamespace, argparse.Namespace, UserDict, UserList, ChainMap),
    *(WeakKeyDictionary, WeakValueDictionary, SobolEngine),
    *(asyncio.Queue, asyncio.LifoQueue, asyncio.PriorityQueue, tempfile._TemporaryFileWrapper),
)
_OF_LIBRARIES = (
    *(functools.partial, threading.local, *NAMESPACES),
    *(Messenger, Distribution, Transform),
)
_INSTALLED = tuple(
    {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
)


def reachable(*functions: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that functions can reach, the nearest first, named by the way to them.

    Followed are closures, the globals that the code reads, defaults, arguments of ``partial``,
    containers, attributes of objects, and those methods whose name occurs in the code. The insides
    of installed libraries are not looked into.
    """
    yield from _Search(functions).run()


def empty_globals(*functions: Any) -> frozenset[str]:
    """Return the globals that functions read and that are None: a first run may put networks there.

    Followed is what ``reachable`` follows.
    """
    return frozenset(_searched(functions).empty)


def holders(*functions: Any) -> list[Any]:
    """Return what functions can reach and that may hold values, the functions themselves too.

    Followed is what ``reachable`` follows.
    """
    return list(_searched(functions).met.values())


def _searched(functions: Iterable[Any]) -> "_Search":
    """Return a walk that has come to its end."""
    search = _Search(functions)
    deque(search.run(), maxlen=0)
    return search


def names_loaded(function: FunctionType) -> frozenset[str]:
    """Return the globals that the code of a function reads."""
    return frozenset(_names_of(function.__code__)[0])


def names_mentioned(function: FunctionType) -> frozenset[str]:
    """Return all names in the code of a function: globals, attributes, methods."""
    return _names_of(function.__code__)[1]


class _Search:
    """A breadth-first walk over what functions can reach; each object is visited once."""

    def __init__(self, functions: Iterable[Any]) -> None:
        self._queue: deque[tuple[str, Any]] = deque()
        self.met: dict[int, Any] = {}  # the objects too: an id may be given again
        self._classes: set[int] = set()
        self._mentioned: set[str] = set()
        self._waiting: dict[str, list[tuple[str, Any]]] = {}
        self.empty: set[str] = set()
        for function in functions:
            self.push("", function)

    def push(self, path: str, value: Any) -> None:
        if type(value) not in _ATOMS and id(value) not in self.met:
            self.met[id(value)] = value
            self._queue.append((path, value))

    def run(self) -> Iterator[tuple[str, nn.Module]]:
        while self._queue and len(self.met) < _MOST_OBJECTS:
            path, value = self._queue.popleft()
            if issubclass(type(value), nn.Module):  # isinstance would ask the object
                path = path or type(value).__name__
                yield path, value
                self._module(path, value)
            else:
                self._visit(path, value)

    def _visit(self, path: str, value: Any) -> None:
        kind = type(value)
        if kind is FunctionType:
            self._function(value)
        elif kind is MethodType:
            self.push("", value.__self__)
            self.push("", value.__func__)
        elif issubclass(kind, functools.partial):
            self._partial(path, value)
        elif issubclass(kind, dict | list | tuple | deque | set | frozenset):
            if len(value) <= _MOST_ITEMS:
                self._container(path, value)
        elif kind is np.ndarray:
            if value.dtype == object and value.size <= _MOST_ITEMS:
                self._container(path, value.ravel().tolist())
        elif kind is MappingProxyType:
            self.push(path, gc.get_referents(value)[0])
        elif kind in (BuiltinMethodType, MethodWrapperType):  # {}.get, or [].__iter__, say
            self.push(path, value.__self__)
        elif kind in (staticmethod, classmethod):
            self.push(path, value.__func__)
        elif kind in (property, functools.cached_property):
            self.push(path, value.fget if kind is property else value.func)
        elif issubclass(kind, ModuleType):
            if not installed(value.__name__):
                self._wait(path, vars(value))
        elif issubclass(kind, type):
            self._class(path, value)
        else:
            self._object(path, value)

    def _container(self, path: str, value: Any) -> None:
        values = dict.values(value) if isinstance(value, dict) else value
        if len(value) > 16 and _ATOMS.issuperset(map(type, islice(values, 16))):
            return  # data
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for index, (key, item) in enumerate(zip(keys, list(values), strict=False)):
            self.push(_join(path, key if isinstance(key, str | int) else index), item)
            if hasattr(type(key), "__next__"):
                self.push("", key)

    def _function(self, function: FunctionType) -> None:
        code = function.__code__
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                self.push(name, cell.cell_contents)
            except ValueError:  # not yet filled
                continue
        for name, value in list(vars(function).items()):  # __wrapped__, and a user's own
            self.push("" if name == "__wrapped__" else name, value)
        if is_library(code.co_filename):
            return
        names = code.co_varnames[: code.co_argcount]
        defaults = function.__defaults__ or ()
        for name, value in zip(reversed(names), reversed(defaults), strict=False):
            self.push(name, value)
        for name, value in (function.__kwdefaults__ or {}).items():
            self.push(name, value)
        loaded, mentioned = _names_of(code)
        for name in loaded:
            if name in function.__globals__:
                self.push(name, function.__globals__[name])
                self.empty |= {name} if function.__globals__[name] is None else set()
        self._mention(mentioned)

    def _partial(self, path: str, value: Any) -> None:
        self.push(path, value.func)
        names = _argument_names(value.func)
        for index, item in enumerate(value.args):
            self.push(names[index] if index < len(names) else _join(path, index), item)
        for name, item in value.keywords.items():
            self.push(name, item)

    def _module(self, path: str, module: nn.Module) -> None:
        """Follow what a user's module holds besides its registered parts."""
        for name, part in module.named_modules():
            self.met[id(part)] = part
            for hook in (h for kind in MODULE_HOOKS for h in getattr(part, kind, {}).values()):
                self.push("", hook)
            if installed(type(part).__module__):
                continue
            inside = _join(path, name)
            for key, value in list(vars(part).items()):
                if key not in (*MODULE_TABLES, PROGRAM):
                    self.push(_join(inside, key), value)
            self._class(inside, type(part))

    def _object(self, path: str, value: Any) -> None:
        kind = type(value)
        if issubclass(kind, queue.Queue):  # its items belong to other threads too
            return
        if installed(kind.__module__) and not issubclass(kind, _OF_LIBRARIES):
            for name in ("__wrapped__", "__self__"):  # of functools.lru_cache, of a bound function
                self.push("", _attributes(value).get(name))
            return
        attributes = _attributes(value)
        for base in kind.__mro__:
            slots = vars(base).get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                attributes.setdefault(slot, inspect.getattr_static(value, slot, None))
                if inspect.ismemberdescriptor(attributes[slot]):
                    attributes[slot] = getattr(value, slot, None)
        for name, item in attributes.items():
            if name != PROGRAM:
                self.push(_join(path, name), item)
        self._class(path, kind)

    def _class(self, path: str, kind: type) -> None:
        for base in kind.__mro__:
            if id(base) not in self._classes and not installed(base.__module__):
                self._classes.add(id(base))
                self.met[id(base)] = base
                self._wait(path, vars(base))

    def _wait(self, path: str, names: Any) -> None:
        """Follow the entries of a namespace whose names occur in the code."""
        for name, value in list(names.items()):
            if name in self._mentioned or name in ("__call__", "forward"):
                self.push(_join(path, name), value)
            elif type(value) not in _ATOMS:
                self._waiting.setdefault(name, []).append((_join(path, name), value))

    def _mention(self, names: frozenset[str]) -> None:
        for name in sorted(names - self._mentioned):
            for path, value in self._waiting.pop(name, ()):
                self.push(path, value)
        self._mentioned |= names


@functools.lru_cache(1024)
def _names_of(code: CodeType) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the globals that a code reads, in order, and all names in it; inner codes too."""
    loaded: OrderedDict[str, None] = OrderedDict()
    mentioned = set(code.co_names)
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            loaded[instruction.argval] = None
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner, names = _names_of(constant)
            loaded.update(dict.fromkeys(inner))
            mentioned |= names
    return tuple(loaded), frozenset(mentioned)


def _argument_names(function: Any) -> tuple[str, ...]:
    """Return the names of a user's function's positional arguments."""
    skip = 0
    if isinstance(function, MethodType):
        function, skip = function.__func__, 1
    code = getattr(function, "__code__", None)
    if code is None or is_library(code.co_filename):
        return ("",) * 8 if code is not None else ()
    return code.co_varnames[skip : code.co_argcount]


def _join(path: str, key: Any) -> str:
    text = "".join(c if c.isalnum() or c == "_" else "_" for c in str(key))
    return f"{path}_{text}" if path and text else path or text


def _attributes(value: Any) -> dict[str, Any]:
    """Return an object's own attributes, without running any of its code."""
    try:
        if issubclass(type(value), threading.local):  # it has one for each thread
            return dict(vars(value))
        return dict(object.__getattribute__(value, "__dict__"))
    except (AttributeError, TypeError):
        return {}


@functools.lru_cache(1024)
def installed(module: str) -> bool:
    """Return whether a Python module belongs to an installed library, this one included."""
    if not isinstance(module, str):  # some metaclass's own idea
        return True
    root = module.partition(".")[0]
    if root == "pyro_vae" or root in sys.stdlib_module_names:
        return True
    return is_library(getattr(sys.modules.get(module), "__file__", None) or "")


def is_library(file: str) -> bool:
    """Return whether a file belongs to an installed library."""
    folders = ("/site-packages/", "/dist-packages/")  # of any environment
    return file.startswith((*_INSTALLED, "<frozen")) or any(each in file for each in folders)
