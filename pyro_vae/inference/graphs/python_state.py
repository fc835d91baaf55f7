"""What a program keeps in Python beside its tensors: counters, lists, generators, caches."""

import functools
import inspect
import itertools
import operator
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LIBRARIES = ("torch", "pyro", "numpy", "pyro_vae")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, np.generic)
_FIXED = (nn.Module, type, ModuleType, BuiltinFunctionType)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_DEEP = 4  # objects inside objects
_MANY = 64  # entries of one container that are looked at
_ALL = 10_000  # values that are looked at


def python_state(owner: nn.Module, functions: Iterable[Callable[..., Any]]) -> dict[str, Any]:
    """Return what a program keeps in Python, by place: two of them tell whether a run changed it.

    Attributes of the modules and of the functions' owners, and the variables around the functions.
    Code of PyTorch, Pyro and this library is taken to keep its state in tensors.

    Arguments:
        owner: Holds the modules.
        functions: What runs, with the closures and globals that it uses.
    """
    found: dict[str, Any] = {}
    reader = _Reader()
    for name, part in owner.named_modules():
        if _is_library(type(part)) and not any(_own(part)):
            continue
        for key, value in _own(part):
            found[f"{name}.{key}".lstrip(".")] = reader.describe(value, _DEEP)
        for function in (*_methods(type(part)), *_hooks(part)):
            found |= reader.around(function, _DEEP)
    for function in functions:
        home = getattr(function, "__self__", None)
        if home is not None and not isinstance(home, nn.Module) and not _is_library(type(home)):
            name = type(home).__name__
            found |= {f"{name}.{k}": reader.describe(v, _DEEP) for k, v in vars(home).items()}
            for method in _methods(type(home)):
                found |= reader.around(method, _DEEP)
        found |= reader.around(function, _DEEP)
    return found


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


def _methods(kind: type) -> list[FunctionType]:
    """Return the functions that a user's classes define."""
    classes = [each for each in kind.__mro__ if not _is_library(each) and each is not object]
    return [f for each in classes for f in vars(each).values() if isinstance(f, FunctionType)]


def _hooks(part: nn.Module) -> list[Any]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for kind in kinds for hook in getattr(part, kind, {}).values()]


def _is_library(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "").partition(".")[0] in _LIBRARIES


class _Same:
    """A tensor or array told apart by identity; kept alive, so that no other takes its place."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    __hash__ = None  # type: ignore[assignment]


class _Reader:
    """Describes values so that equal descriptions mean that nothing changed."""

    def __init__(self) -> None:
        self._functions: set[int] = set()
        self._left = _ALL

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
        if id(function) in self._functions or not isinstance(function, FunctionType):
            return found
        self._functions.add(id(function))
        if _is_library(function):
            return found
        try:
            names = inspect.getclosurevars(function)
        except (TypeError, ValueError):  # a cell that is still empty
            return found
        for name, value in {**names.globals, **names.nonlocals}.items():
            if isinstance(value, FunctionType | MethodType | functools.partial) or hasattr(
                value, "cache_info"
            ):
                found |= self.around(value, depth - 1) if depth else {}
            else:
                found[name] = self.describe(value, depth)
        return found

    def describe(self, value: Any, depth: int) -> Any:
        """Return a description of a value, down to some depth."""
        self._left -= 1
        depth = depth if self._left > 0 else 0
        if isinstance(value, _PLAIN):
            return repr(value)  # NaN equals itself, and 1 is not True
        if isinstance(value, Tensor):
            return _Same(value)
        if isinstance(value, np.ndarray):
            return value.tobytes() if value.nbytes < 1 << 16 else _Same(value)
        if isinstance(value, _FIXED):
            return None
        if isinstance(value, FunctionType | MethodType | functools.partial):
            return self.around(value, depth - 1) if depth else None
        state = _generator_state(value)
        if state is not None:
            return state
        return self._inside(value, depth)

    def _inside(self, value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            items = list(value.items())[:_MANY] if depth else []
            return len(value), [(_label(k), self.describe(v, depth - 1)) for k, v in items]
        if isinstance(value, list | tuple | deque):
            ends = [value[-1]] if len(value) > _MANY else []
            items = [*itertools.islice(value, _MANY), *ends] if depth else []
            return len(value), [self.describe(item, depth - 1) for item in items]
        if isinstance(value, Set):
            return len(value)
        if hasattr(value, "__next__"):
            return operator.length_hint(value, -1)
        if _is_library(type(value)) or not hasattr(value, "__dict__") or not depth:
            return type(value).__name__
        return [(k, self.describe(v, depth - 1)) for k, v in vars(value).items()]


def _label(key: Any) -> Any:
    return key if isinstance(key, str | int) else type(key).__name__


def _generator_state(value: Any) -> Any:
    """Return the state of a random generator or an endless iterator; None for anything else."""
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state())
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    return repr(value) if isinstance(value, itertools.count) else None
