"""What is written in place: tensors, arrays, generators of random numbers, long containers."""

import ctypes
import functools
import io
import mmap
import random
import warnings
from array import array
from collections import deque
from multiprocessing.sharedctypes import SynchronizedBase
from operator import is_
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from pyro_vae.callers import of_user
from pyro_vae.program.memory.iterators import Retold, record_of
from pyro_vae.program.memory.value_places import MANY, cached
from pyro_vae.program.parameters.object_graph import installed
from pyro_vae.torch_private import overlaps_itself, version_of

_SMALL = 1 << 20  # numbers of a tensor that is copied
_FEW = 1 << 17  # of an array or a weight; arrays have no version: they are compared after each run
_OF_NUMPY = (np.random.Generator, np.random.BitGenerator)
_GENERATORS = (random.Random, *_OF_NUMPY, np.random.RandomState, torch.Generator)
_VALUES_OF_C = (ctypes._SimpleCData, ctypes.Array, ctypes.Structure)


def is_weight(value: Any) -> bool:
    if not issubclass(type(value), Tensor):  # isinstance asks the object, as a proxy of nothing
        return False
    if is_lazy(value):
        return isinstance(value, UninitializedParameter)
    return isinstance(value, nn.Parameter) or (value.requires_grad and value.is_leaf)


def is_made_weight(value: Any) -> TypeGuard[nn.Parameter]:
    """Return whether a value is a parameter that has a shape."""
    return is_weight(value) and isinstance(value, nn.Parameter) and not is_lazy(value)


def is_state(value: Tensor) -> bool:
    """Return whether a tensor that is written to is put back: no large one."""
    weight = is_weight(value) and not is_lazy(value) and value.requires_grad
    return _is_plain(value) and value.numel() <= (_FEW if weight else _SMALL)


def _is_plain(value: Tensor) -> bool:
    if is_lazy(value) or value.is_inference() or value.is_meta or value.is_nested:
        return False
    plain = not _has_own_code(type(value)) and value.layout == torch.strided
    return plain and not overlaps_itself(value)  # else its base is written to


@functools.cache
def _has_own_code(kind: Any) -> bool:
    """Return whether a class of tensors has operations of its own."""
    function, plain = (getattr(k.__torch_function__, "__func__", None) for k in (kind, Tensor))
    inherited = kind is nn.Parameter or function is plain
    return not inherited or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__


def version(weight: Any) -> int:
    """Return how often a weight has been written to."""
    return -1 if is_lazy(weight) else version_of(weight)


def is_as_before(weight: Any, before: int) -> bool:
    """Return whether a weight has a version still; one that had no shape yet may have one now."""
    return before in (-1, version(weight))


class _Content:
    """What a thing holds that is written in place."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def hold(self) -> None:
        """Begin a look."""

    def let_go(self) -> None:
        """End one."""

    def copy(self) -> Any:
        """Return what it holds."""
        raise NotImplementedError

    def same(self, copy: Any) -> bool:
        """Return whether it still holds what a copy does."""
        raise NotImplementedError

    def put(self, copy: Any) -> None:
        """Put a copy back."""
        raise NotImplementedError

    def tell(self) -> None:
        """Warn of what could not be put back."""


class _Written(_Content):
    """A tensor, copied once for each of its versions.

    Arguments:
        value: The tensor.
        compared: Whether its numbers count too: NumPy and ``.data`` write without a new version.
    """

    def __init__(self, value: Tensor, *, compared: bool) -> None:
        super().__init__(value)
        self._compared = compared
        self.hold()

    def hold(self) -> None:
        self._copy: tuple[int, Tensor] = (-1, self._value)

    def copy(self) -> Any:
        if not self.same(self._copy):
            self._copy = version_of(self._value), self._value.detach().clone()
        return self._copy

    def same(self, copy: Any) -> bool:
        value, (version, was) = self._value, copy
        if version != version_of(value):
            return False
        alike = (value.shape, value.dtype) == (was.shape, was.dtype)
        return not self._compared or (alike and _equal(value.detach(), was))

    def put(self, copy: Any) -> None:
        if self._value.shape == copy[1].shape:
            self._value.detach().copy_(copy[1])
        else:  # set through ``.data``
            self._value.data = copy[1].clone()


class _Array(_Content):
    """A NumPy array."""

    def copy(self) -> Any:
        return self._value.copy()

    def same(self, copy: Any) -> bool:
        return bool(self._value.tobytes() == copy.tobytes())

    def put(self, copy: Any) -> None:
        np.copyto(self._value, copy)


class _Numbers(_Content):
    """An array of Python's, or bytes."""

    def copy(self) -> Any:
        return self._value[:]

    def same(self, copy: Any) -> bool:
        return bytes(self._value) == bytes(copy)  # NaN equals itself

    def put(self, copy: Any) -> None:
        self._value[:] = copy


class _OfC(_Content):
    """A value of C: a number, an array, a structure."""

    def copy(self) -> Any:
        return bytes(self._value)

    def same(self, copy: Any) -> bool:
        return bytes(self._value) == copy

    def put(self, copy: Any) -> None:
        ctypes.memmove(ctypes.byref(self._value), copy, len(copy))


class _Generator(_Content):
    """A generator of random numbers."""

    def copy(self) -> Any:
        value = self._value
        if isinstance(value, _OF_NUMPY):
            return _bits(value).state
        if isinstance(value, random.Random):
            return value.getstate()
        return value.get_state()

    def same(self, copy: Any) -> bool:
        now = self.copy()
        return torch.equal(now, copy) if isinstance(copy, Tensor) else repr(now) == repr(copy)

    def put(self, copy: Any) -> None:
        value = self._value
        if isinstance(value, _OF_NUMPY):
            _bits(value).state = copy
        elif isinstance(value, random.Random):
            value.setstate(copy)
        else:
            value.set_state(copy)


def _bits(value: Any) -> Any:
    return getattr(value, "bit_generator", value)


class _Mapped(_Content):
    """A file mapped to memory: where it is read next."""

    def copy(self) -> Any:
        return None if self._value.closed else self._value.tell()

    def same(self, copy: Any) -> bool:
        return bool(self.copy() == copy)

    def put(self, copy: Any) -> None:
        if not self._value.closed:
            self._value.seek(copy or 0)


class _InMemory(_Content):
    """A file in memory."""

    def copy(self) -> Any:
        return self._value.tell(), self._value.getvalue()

    def same(self, copy: Any) -> bool:
        return bool(self.copy() == copy)

    def put(self, copy: Any) -> None:
        place, text = copy
        self._value.seek(0)
        self._value.truncate()
        self._value.write(text)
        self._value.seek(place)


class _TooLarge(_Content):
    """What is too large to be copied: where looks have left it as another, they tell of it."""

    _others = ""

    def tell(self) -> None:
        if self._others:
            words, self._others = self._others, ""
            warnings.warn(f"runs that look at the program have {words}", stacklevel=of_user())


class _Large(_TooLarge):
    """A tensor that is too large to be copied."""

    def copy(self) -> Any:
        return version_of(self._value)

    def same(self, copy: Any) -> bool:
        return version_of(self._value) == copy

    def put(self, copy: Any) -> None:
        self._others = (
            f"written to a tensor of {self._value.numel():,} numbers that it holds, which is too "
            "large to be copied and put back; write to it in train mode alone "
            "(`if self.training:`): these runs are in eval mode"
        )


class _Long(_TooLarge):
    """A container of many entries: what has been added at its end is taken off.

    What else has moved is told of, as far as its length and its ends show it.
    """

    def copy(self) -> Any:
        value = self._value
        if isinstance(value, set) or not value:
            return len(value), ()
        last = next(reversed(value)) if isinstance(value, dict) else value[-1]
        return len(value), (next(iter(value)), last)

    def same(self, copy: Any) -> bool:
        length, ends = self.copy()
        return bool(length == copy[0]) and all(map(is_, ends, copy[1]))

    def put(self, copy: Any) -> None:
        while len(self._value) > copy[0]:
            self._value.popitem() if isinstance(self._value, dict) else self._value.pop()
        if not self.same(copy):
            self._others = (
                f"moved a {type(self._value).__name__} of {copy[0]:,} entries that it holds, which "
                "is too long to be copied and put back; keep the number of the next entry"
            )


class _FullCache(_TooLarge):
    """A cache of ``functools`` that has no place left."""

    def copy(self) -> Any:
        return set(cached(self._value))

    def same(self, copy: Any) -> bool:
        now, most = self.copy(), self._value.cache_parameters()["maxsize"]
        full = most is not None and len(now) >= most
        return bool(not copy or copy == now or (copy <= now and not full))

    def put(self, copy: Any) -> None:
        self._others = (
            f"put results out of the cache of {self._value.__name__!r}, which holds "
            f"{len(copy):,}, for new ones; give its lru_cache a larger maxsize"
        )


def _equal(one: Tensor, two: Tensor) -> bool:
    """Return whether two tensors of one shape hold the same, NaN at equal places too."""
    return torch.equal(one, two) or bool(((one == two) | (one != one) & (two != two)).all())


def content_of(value: Any) -> Any:
    """Return what is written to a thing in place, where it is small enough to be copied."""
    kind = type(value)  # isinstance asks the object, as a proxy of nothing
    if issubclass(kind, Tensor):
        if is_state(value):
            # Weights are moved through ``.data`` by looks themselves, which put them back.
            fit = value.device.type == "cpu" and not value.requires_grad
            return _Written(value, compared=fit and value.numel() <= _FEW)
        return _Large(value) if _is_plain(value) and not is_weight(value) else None
    if issubclass(kind, np.ndarray):
        fit = value.size <= _FEW and value.flags.writeable and not value.dtype.hasobject
        return _Array(value.view(np.ndarray)) if fit else None
    if issubclass(kind, memoryview | SynchronizedBase):  # of memory that other processes share
        return content_of(value.obj if issubclass(kind, memoryview) else value.get_obj())
    if issubclass(kind, array | bytearray):
        return _Numbers(value) if len(value) <= _FEW else None
    if issubclass(kind, _VALUES_OF_C):
        return _OfC(value) if ctypes.sizeof(value) <= _FEW else None
    if kind is Retold:
        return record_of(value)
    if issubclass(kind, dict | list | deque | set) and len(value) > MANY:
        return _Long(value)
    if kind is functools._lru_cache_wrapper and not installed(value.__module__ or ""):
        return _FullCache(value)
    if issubclass(kind, io.StringIO | io.BytesIO) and not value.closed:
        return _InMemory(value)
    if issubclass(kind, mmap.mmap):
        return _Mapped(value)
    if issubclass(kind, random.SystemRandom):  # it has no state
        return None
    return _Generator(value) if issubclass(kind, _GENERATORS) else None


def content_given(value: Any) -> Any:
    """Return what a tensor or an array holds that an iterator gives, whatever its size.

    It is compared by its numbers: the source may fill it by NumPy.
    """
    if isinstance(value, Tensor):
        whole = value if value._base is None or _is_plain(value) else value._base  # of an expanded
        fit = _is_plain(whole) and not whole.requires_grad
        return _Written(whole, compared=True) if fit else None
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        shown = value if value.flags.writeable else value.base  # of a view that is read alone
        if isinstance(shown, np.ndarray) and shown.flags.writeable:
            return _Array(shown.view(np.ndarray))
    return None
