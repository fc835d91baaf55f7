"""What is written in place: tensors, arrays, generators of random numbers, long containers."""

import io
import random
import warnings
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from pyro_vae.program.memory.iterators import Retold
from pyro_vae.program.memory.value_places import MANY
from pyro_vae.torch_private import overlaps_itself, version_of

_SMALL = 1 << 20  # numbers of a tensor that is copied
_FEW = 1 << 17  # of an array or a weight; arrays have no version: they are compared after each run
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)


def is_weight(value: Any) -> bool:
    if not isinstance(value, Tensor) or is_lazy(value):
        return isinstance(value, UninitializedParameter)
    return isinstance(value, nn.Parameter) or (value.requires_grad and value.is_leaf)


def is_state(value: Tensor) -> bool:
    """Return whether a tensor that is written to is put back: no large one."""
    weight = is_weight(value) and not is_lazy(value) and value.requires_grad
    return _is_plain(value) and value.numel() <= (_FEW if weight else _SMALL)


def _is_plain(value: Tensor) -> bool:
    if is_lazy(value) or value.is_inference() or value.is_meta:
        return False
    plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
    return plain and not overlaps_itself(value)  # else its base is written to


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


class _Written(_Content):
    """A tensor, copied once for each of its versions.

    A small one is compared as well: ``.data`` and NumPy write to it without a new version.
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__(value)
        # Weights are moved through ``.data`` by looks themselves, which put them back.
        compared = value.device.type == "cpu" and not value.requires_grad
        self._small = compared and value.numel() <= _FEW
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
        return not self._small or (alike and _equal(value.detach(), was))

    def put(self, copy: Any) -> None:
        if self._value.shape == copy[1].shape:
            self._value.detach().copy_(copy[1])
        else:  # set through ``.data``
            self._value.data = copy[1].clone()


class _Given(_Written):
    """One that an iterator gives: compared at any size, for the source may fill it by NumPy."""

    def __init__(self, value: Tensor) -> None:
        super().__init__(value)
        self._small = True


class _Array(_Content):
    """A NumPy array."""

    def copy(self) -> Any:
        return self._value.copy()

    def same(self, copy: Any) -> bool:
        return bool(self._value.tobytes() == copy.tobytes())

    def put(self, copy: Any) -> None:
        np.copyto(self._value, copy)


class _Generator(_Content):
    """A generator of random numbers."""

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

    def put(self, copy: Any) -> None:
        value = self._value
        if isinstance(value, np.random.Generator):
            value.bit_generator.state = copy
        elif isinstance(value, random.Random):
            value.setstate(copy)
        else:
            value.set_state(copy)


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


class _Large(_Content):
    """A tensor that is too large to be copied: it is told of."""

    def copy(self) -> Any:
        return version_of(self._value)

    def same(self, copy: Any) -> bool:
        return version_of(self._value) == copy

    def put(self, copy: Any) -> None:
        warnings.warn(
            f"runs that look at the program have written to a tensor of {self._value.numel():,} "
            "numbers that it holds, which is too large to be copied and put back; write to it in "
            "train mode alone (`if self.training:`): these runs are in eval mode",
            stacklevel=3,
        )


class _Long(_Content):
    """A container of many entries: what has been added at its end is taken off."""

    def copy(self) -> Any:
        return len(self._value)

    def same(self, copy: Any) -> bool:
        return len(self._value) <= copy

    def put(self, copy: Any) -> None:
        while len(self._value) > copy:
            self._value.popitem() if isinstance(self._value, dict) else self._value.pop()


def _equal(one: Tensor, two: Tensor) -> bool:
    """Return whether two tensors of one shape hold the same, NaN at equal places too."""
    return torch.equal(one, two) or bool(((one == two) | (one != one) & (two != two)).all())


def content_of(value: Any) -> Any:
    """Return what is written to a thing in place, where it is small enough to be copied."""
    if isinstance(value, Tensor):
        large = _Large(value) if _is_plain(value) and not is_weight(value) else None
        return _Written(value) if is_state(value) else large
    if isinstance(value, np.ndarray):
        fit = value.size <= _FEW and value.flags.writeable and not value.dtype.hasobject
        return _Array(value.view(np.ndarray)) if fit else None
    if type(value) is Retold:
        return value
    if isinstance(value, dict | list | deque) and len(value) > MANY:
        return _Long(value)
    if isinstance(value, io.StringIO | io.BytesIO) and not value.closed:
        return _InMemory(value)
    return _Generator(value) if isinstance(value, _GENERATORS) else None


def content_given(value: Any) -> Any:
    """Return what a tensor or an array holds that an iterator gives, whatever its size."""
    if isinstance(value, Tensor):
        whole = value if value._base is None or _is_plain(value) else value._base  # of an expanded
        return _Given(whole) if _is_plain(whole) and not whole.requires_grad else None
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        shown = value if value.flags.writeable else value.base  # of a view that is read alone
        if isinstance(shown, np.ndarray) and shown.flags.writeable:
            return _Array(shown.view(np.ndarray))
    return None
