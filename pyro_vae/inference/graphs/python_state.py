"""What a program keeps in Python beside its tensors, described: what has changed since."""

import functools
import inspect
import io
import itertools
import operator
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.inference.graphs.course import memory_of
from pyro_vae.program.memory.iterators import Retold
from pyro_vae.program.parameters.object_graph import installed
from pyro_vae.torch_private import MODULE_HOOKS, version_of

_LIBRARIES = ("torch", "pyro", "numpy", "pyro_vae")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, np.generic)
_FIXED = (nn.Module, BuiltinFunctionType)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_DEEP = 4  # objects inside objects
_MANY = 64  # entries of one container that are looked at
_ALL = 10_000  # values that are looked at
_BYTES = 1 << 26  # of all arrays and tensors that are compared and copied
Place = tuple[int, str | None]  # a namespace or a cell, by identity, and the name in it
_CODE = (FunctionType, staticmethod, classmethod, property, functools.cached_property)


class PythonState:
    """What a program keeps in Python at one moment, and what has changed since.

    Attributes of the modules, of their classes and of the functions' owners, and the variables
    around the functions. Code of PyTorch, Pyro and this library is taken to keep its state in
    tensors.

    Arguments:
        owner: Holds the modules.
        functions: What runs, with the closures and globals that it uses.
    """

    def __init__(self, owner: nn.Module, functions: Iterable[Callable[..., Any]]) -> None:
        tensors = (*owner.parameters(), *owner.buffers())
        reader = _Reader({memory_of(tensor) for tensor in tensors} - {0})
        for name, part in owner.named_modules():
            library = _is_library(type(part))
            if library and not any(_own(part)):
                continue
            own = dict(_own(part))
            if not library:
                reader.watch(vars(part), own)
                reader.shadows(part)
            for key, value in own.items():
                reader.note_iterator(key, value)
                reader.note(f"{name}.{key}".lstrip("."), reader.describe(value, _DEEP))
            reader.note(f"{name}.", reader.of_class(type(part), _DEEP))
            for function in _hooks(part):
                reader.note("a hook", reader.around(function, _DEEP))
        for function in functions:
            home = getattr(function, "__self__", None)
            if home is not None and not isinstance(home, nn.Module):
                reader.note(type(home).__name__, reader.describe(home, _DEEP))
            for place, description in reader.around(function, _DEEP).items():
                reader.note(place, description)
        self._places = reader.places
        self._watched, self._cells = reader.watched, reader.cells
        self.iterators = reader.iterators
        self.size = reader.size  # bytes of arrays and tensors that are no inputs

    def change_since(self, before: "PythonState") -> str | None:
        """Return the first place whose value is another than before, or None."""
        return next(
            (
                place
                for place in {**before._places, **self._places}
                if before._places.get(place, _ABSENT) != self._places.get(place, _ABSENT)
            ),
            None,
        )

    def moved(self) -> list[Place]:
        """Return which numbers, words and flags are others than at this moment.

        A hundredth of what a whole look costs: for before each step. Values in containers and
        attributes that have come since are left to `change_since`.
        """
        found = [
            (owner, name)
            for owner, home, name, value in self._watched
            if (now := home.get(name, _ABSENT)) is not value and _differ(now, value)
        ]
        return found + [
            (id(cell), None)
            for cell, value in self._cells
            if (now := cell.cell_contents) is not value and now != value
        ]


_ABSENT = object()


def _differ(now: Any, before: Any) -> bool:
    return now != before if isinstance(before, _PLAIN) else True  # an object is itself alone


def drawn_elsewhere(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether Python's or NumPy's shared generator moved (states of ``pyro.util``)."""
    arrays = zip(before["numpy"], after["numpy"], strict=True)
    same = all(np.array_equal(a, b) for a, b in arrays)
    return not same or before["random"] != after["random"]


def _own(part: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a module that are no parameters, buffers, parts or hooks."""
    if type(part).__name__ == "Program" and _is_library(type(part)):
        return  # it notes the batches that it has seen
    for key, value in vars(part).items():
        # The older weight_norm and spectral_norm set the weight anew at each call.
        recomputed = {f"{key}_orig", f"{key}_g"} & part._parameters.keys()
        if key not in _OF_EVERY_MODULE and not key.startswith("_pyro") and not recomputed:
            yield key, value


def _classes(kind: type) -> list[type]:
    """Return a user's classes among the bases of a class."""
    return [each for each in kind.__mro__ if not installed(each.__module__)]


def _hooks(part: nn.Module) -> list[Any]:
    return [hook for kind in MODULE_HOOKS for hook in getattr(part, kind, {}).values()]


def _is_library(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "").partition(".")[0] in _LIBRARIES


class _Same:
    """A value told apart by identity; kept alive, so that no other takes its place."""

    def __init__(self, value: Any, version: int = 0) -> None:
        self.value, self.version = value, version

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Same) and other.value is self.value and other.version == self.version
        )

    __hash__ = None  # type: ignore[assignment]


class _Reader:
    """Describes values so that equal descriptions mean that nothing changed.

    Arguments:
        inputs: Where the memory of parameters and buffers starts: these may move.
    """

    def __init__(self, inputs: Set[int]) -> None:
        self.places: dict[str, Any] = {}
        self.iterators: list[str] = []
        self.watched: list[tuple[int, Mapping[str, Any], str, Any]] = []
        self.cells: list[tuple[CellType, Any]] = []
        self._inputs = inputs
        self._seen: dict[int, Any] = {}  # the things too: an id may be given again
        self._left, self._bytes_left = _ALL, _BYTES
        self.size = 0

    def note(self, place: str, description: Any) -> None:
        """Keep a description under its place, or another where that is taken."""
        if description is None or description == {}:
            return
        names = itertools.chain([place], (f"{place} ({n})" for n in itertools.count(2)))
        self.places[next(name for name in names if name not in self.places)] = description

    def watch(self, home: Mapping[str, Any], entries: Mapping[str, Any], owner: Any = None) -> None:
        """Note numbers, words, flags and a user's objects in a namespace, and whose it is."""
        known = id(home if owner is None else owner)
        self.watched += [
            (known, home, name, value)
            for name, value in entries.items()
            if isinstance(value, _PLAIN) or not installed(type(value).__module__)
        ]

    def shadows(self, value: Any) -> None:
        """Note where such values of an object's classes may be hidden by others, nearer to it."""
        nearer = [(id(vars(value)), vars(value))] if hasattr(value, "__dict__") else []
        for each in _classes(type(value)):
            names = [name for name, entry in vars(each).items() if isinstance(entry, _PLAIN)]
            for name in names:
                free = [(known, home) for known, home in nearer if name not in home]
                self.watched += [(known, home, name, _ABSENT) for known, home in free]
            nearer.append((id(each), vars(each)))

    def _first(self, thing: Any) -> bool:
        """Return whether a thing is met for the first time."""
        new = id(thing) not in self._seen
        self._seen[id(thing)] = thing
        return new

    def around(self, function: Any, depth: int) -> dict[str, Any]:
        """Return the closure and the globals of a function, by name, each function once."""
        if isinstance(function, functools.partial):
            bound = {f"partial[{i}]": self.describe(a, depth) for i, a in enumerate(function.args)}
            bound |= {k: self.describe(v, depth) for k, v in function.keywords.items()}
            return bound | self.around(function.func, depth)
        found: dict[str, Any] = {}
        if hasattr(function, "cache_info"):
            found[f"cache of {function.__name__}"] = function.cache_info().misses
        function = inspect.unwrap(getattr(function, "__func__", function))
        if not isinstance(function, FunctionType):
            return found
        found[f"code of {function.__name__}"] = _Same(function.__code__)
        if _is_library(function) or not self._first(function):
            return found
        self.watch(vars(function), dict(vars(function)))
        found |= {name: self.describe(v, depth) for name, v in vars(function).items()}
        try:
            names = inspect.getclosurevars(function)
        except (TypeError, ValueError):  # a cell that is still empty
            return found
        self.watch(function.__globals__, names.globals)
        contents = [(cell, cell.cell_contents) for cell in function.__closure__ or ()]
        self.cells += [(cell, value) for cell, value in contents if isinstance(value, _PLAIN)]
        for name, value in {**names.globals, **names.nonlocals}.items():
            if not isinstance(value, BuiltinFunctionType):
                found[name] = self.describe(value, depth)
                self.note_iterator(name, value)
        return found

    def of_class(self, kind: type, depth: int) -> dict[str, Any]:
        """Return what a user's class and its bases hold, and what their methods use."""
        found: dict[str, Any] = {}
        for each in _classes(kind):
            if not self._first(each):
                continue
            for name, value in list(vars(each).items()):
                inner = getattr(value, "fget", getattr(value, "__func__", value))
                if isinstance(inner, FunctionType):
                    found[f"{each.__name__}.{name}"] = self.around(inner, depth)
                elif not isinstance(value, _CODE) and not name.startswith("__"):
                    found[f"{each.__name__}.{name}"] = self.describe(value, depth)
                    self.watch(vars(each), {name: value}, each)
        return found

    def describe(self, value: Any, depth: int) -> Any:
        """Return a description of a value, down to some depth."""
        self._left -= 1
        depth = depth if self._left > 0 else 0
        if isinstance(value, _PLAIN):
            return repr(value)  # NaN equals itself, and 1 is not True
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray):
            return self._array(value)
        if isinstance(value, _FIXED):
            return _Same(value)
        if isinstance(value, ModuleType | type):
            return self._namespace(value, depth)
        if isinstance(value, MethodType):
            home = value.__self__
            return _Same(home), self.describe(home, depth - 1) if depth else None
        if isinstance(value, FunctionType | functools.partial) or hasattr(value, "cache_info"):
            return self.around(value, depth - 1) if depth else None
        if isinstance(value, _GENERATORS):
            return self._generator(value)
        return self._inside(value, depth)

    def _tensor(self, value: Tensor) -> Any:
        if memory_of(value) in self._inputs or value.is_inference():
            return _Same(value)
        self.size += value.numel() * value.element_size()
        return _Same(value, version_of(value))

    def _array(self, value: np.ndarray) -> Any:
        self.size += value.nbytes
        if value.dtype.hasobject or value.nbytes > self._bytes_left:
            return _Same(value)
        self._bytes_left -= value.nbytes
        return value.tobytes()

    def _namespace(self, value: Any, depth: int) -> Any:
        """Return what a user's module or class holds that is plain."""
        if isinstance(value, type):
            return self.of_class(value, depth - 1) if depth else None
        if installed(value.__name__) or not depth or not self._first(value):
            return None
        plain = {k: v for k, v in vars(value).items() if isinstance(v, _PLAIN) and k[:2] != "__"}
        self.watch(vars(value), plain)
        return {name: repr(entry) for name, entry in plain.items()}

    def _generator(self, value: Any) -> Any:
        """Return the state of a random generator."""
        if isinstance(value, torch.Generator):
            state = value.get_state()
            return state.numpy().tobytes() if not state.is_cuda else repr(state)
        if isinstance(value, np.random.Generator):
            return repr(value.bit_generator.state)
        if isinstance(value, np.random.RandomState):
            return repr(value.get_state())
        return value.getstate()

    def _inside(self, value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            items = list(value.items())[:_MANY] if depth else []
            for key, entry in items:
                self.note_iterator(str(_label(key)), entry)
            return len(value), [(_label(k), self.describe(v, depth - 1)) for k, v in items]
        if isinstance(value, list | tuple | deque):
            ends = [value[-1]] if len(value) > _MANY else []
            items = [*itertools.islice(value, _MANY), *ends] if depth else []
            return len(value), [self.describe(item, depth - 1) for item in items]
        if isinstance(value, Set):
            return len(value)
        if _is_library(type(value)) or not depth:
            return type(value).__name__
        return self._object(value, depth)

    def _object(self, value: Any, depth: int) -> Any:
        """Return the attributes of an object of a user's class, in a dictionary or in slots."""
        if not self._first(value):
            return type(value).__name__
        own = dict(vars(value)) if hasattr(value, "__dict__") else {}
        if own:
            self.watch(vars(value), own)
        self.shadows(value)
        for each in _classes(type(value)):
            slots = vars(each).get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                if hasattr(value, slot) and slot not in ("__dict__", "__weakref__"):
                    own[slot] = getattr(value, slot)
        for name, entry in own.items():
            self.note_iterator(name, entry)
        of_class = self.of_class(type(value), depth - 1)
        return [(k, self.describe(v, depth - 1)) for k, v in own.items()], of_class

    def note_iterator(self, place: str, value: Any) -> None:
        """Note an iterator: a run that is not the user's would move it on, and none can move back.

        Files are no more than written to, and one at its end (of networks that are made, say) stays
        there.
        """
        if getattr(value, "__name__", "") == "__next__":
            value = getattr(value, "__self__", value)
        known = isinstance(value, io.IOBase | type) or _is_library(type(value))
        known = known and not isinstance(value, Retold)
        if hasattr(value, "__next__") and not known and operator.length_hint(value, 1):
            self.iterators.append(place)


_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)


def _label(key: Any) -> Any:
    return key if isinstance(key, str | int) else type(key).__name__
