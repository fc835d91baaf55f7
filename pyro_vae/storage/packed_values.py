"""Plain values as a checkpoint holds them, in JSON and tensors, and made again from there."""

import math
from collections import deque
from collections.abc import Container, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.storage.plain_values import (
    ARRAYS,
    CONTAINERS,
    LARGEST,
    MOST,
    OTHER,
    base_of,
    description,
    entries_of,
    is_atom,
    is_number,
    kind_of,
    memory_of,
    with_article,
)

_IN_ALL = 1 << 15  # entries: the JSON of a file is read up to a size
_DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)
_DEEPEST = 6  # containers in containers
_NUMBERS = (bool, int, float, *ARRAYS)


class NotKeptError(Exception):
    """Why a value is not packed, or not made again."""


class Packing:
    """Values as JSON, and tensors beside.

    Arguments:
        weights: Addresses of the memory of weights (``address_of``).
    """

    def __init__(self, weights: Container[int]) -> None:
        self._weights = weights
        self.tensors: dict[str, Tensor] = {}
        self._room = _IN_ALL

    def pack(self, value: Any, name: str) -> Any:
        """Return a value as JSON, its arrays among ``tensors`` under this name.

        Raises:
            NotKeptError: It is too large, or no such value.
        """
        most = self._left = min(MOST, self._room)
        self._found: dict[str, Tensor] = {}
        packed = self._packed(value, name, _DEEPEST)
        self.tensors |= self._found
        self._room -= most - self._left
        return packed

    def _packed(self, value: Any, name: str, depth: int) -> Any:
        if is_atom(value):
            return value
        if isinstance(value, Enum):
            return {"kind": "member", "name": f"{type(value).__name__}.{value.name}"}
        told = description(value, self._weights)
        if type(value) is float:
            return told
        if told == OTHER and depth < _DEEPEST:
            return OTHER
        if isinstance(value, ARRAYS):
            self._found[name] = _as_tensor(value)
            return {**told, "tensor": name}
        if isinstance(value, torch.Generator):
            self._found[name] = value.get_state()
            return {**told, "tensor": name}
        base = base_of(value)
        if base is None or not depth:
            raise NotKeptError(f"a file holds no such {type(value).__name__}")
        keys, items = entries_of(value)
        self._left -= len(items)
        if self._left < 0:
            raise NotKeptError(f"more than {MOST:,} entries, or {_IN_ALL:,} with others")
        packed = {
            part: [self._packed(v, f"{name}/{part}{i}", depth - 1) for i, v in enumerate(values)]
            for part, values in (("keys", keys), ("items", items))
        }
        return {**packed, "kind": base.__name__, "of": type(value).__name__, "length": len(items)}


class Making:
    """Values made of what is packed in a file, which anybody may have written.

    Arguments:
        tensors: Of the file, by name.
        device: Where tensors go that replace none.
    """

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self._tensors, self._device = tensors, device

    def make(self, packed: Any, now: Any, *, words: bool) -> Any:
        """Return a value of the kind of the one that it replaces; generators are set at once.

        Arguments:
            packed: The value.
            now: What stands in its place; None takes any kind.
            words: Whether a word may come.

        Raises:
            NotKeptError: It is of another kind, or damaged.
        """
        try:
            return self._made(packed, now, words)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError):
            raise NotKeptError("damaged in the file") from None

    def _made(self, packed: Any, now: Any, words: bool) -> Any:
        kind = kind_of(packed)
        base = CONTAINERS.get(kind or "")
        if base is not None:
            return self._container(packed, base, now, words)
        if kind in ("tensor", "array", "number"):
            _require(now is None or _is_of_numbers(now), now)
            return self._array(packed, now)
        if kind == "generator":
            _require(isinstance(now, torch.Generator), now)
            return now.set_state(self._tensors[packed["tensor"]].cpu())
        if kind == "member":
            _require(isinstance(now, Enum), now)
            of, _, name = packed["name"].partition(".")
            _require(of == type(now).__name__, now)
            return type(now)[name]
        if packed == OTHER:
            _require(description(now, ()) == OTHER, now)
            return now
        if kind == "float" and packed["name"] in ("nan", "inf", "-inf"):
            packed = float(packed["name"])
        if isinstance(packed, str):
            _require(words and (now is None or type(now) is str), now)
        else:
            known = now is None or _is_of_numbers(now) or (packed is None and type(now) is str)
            _require(type(packed) is float or is_number(packed), now)
            _require(known, now)
        return packed

    def _array(self, packed: Any, now: Any) -> Any:
        tensor = self._tensors[packed["tensor"]]
        if "complex" in packed["dtype"]:
            tensor = torch.view_as_complex(tensor)
        if packed["kind"] == "tensor":
            return tensor.to(now.device if isinstance(now, Tensor) else self._device)
        array = tensor.cpu().numpy()
        return array[()] if packed["kind"] == "number" else array

    def _container(self, packed: Any, base: type, now: Any, words: bool) -> Any:
        of = base.__name__ if now is None else type(now).__name__
        _require(packed["of"] == of and (base is not deque or now is not None), now)
        keys, items = packed["keys"], packed["items"]
        if base is dict:
            keys = [self._made(key, None, True) for key in keys]
            there = [None if now is None else dict.get(now, key) for key in keys]
            pairs = zip(items, there, strict=True)
            return dict(zip(keys, [self._made(*pair, words) for pair in pairs], strict=True))
        there = [*now] if now is not None and base in (list, tuple, deque) else []
        there += [None] * (len(items) - len(there))
        values = [self._made(item, was, words) for item, was in zip(items, there, strict=False)]
        make = base if of == base.__name__ or base is not tuple else type(now)._make
        return make(values)


def filled(now: Any, value: Any, shared: Container[int]) -> Any:
    """Return a value, or the one in whose place it comes, filled: others may hold it too.

    Arguments:
        now: What is there.
        value: What comes.
        shared: Memory of arrays in which others see it (``memories``).
    """
    if isinstance(now, dict) and isinstance(value, dict):
        value = {key: filled(now.get(key), each, shared) for key, each in value.items()}
        now.clear()
        now.update(value)
    elif isinstance(now, list) and isinstance(value, list):
        pairs = zip(now, value, strict=False)
        now[:] = [*(filled(*pair, shared) for pair in pairs), *value[len(now) :]]
    elif isinstance(now, deque | set) and isinstance(value, deque | set):
        now.clear()
        now.extend(value) if isinstance(now, deque) else now.update(value)
    elif is_alike(now, value) and memory_of(now) in shared:
        if isinstance(now, Tensor):
            now.detach().copy_(value)
        else:
            np.copyto(now, value)
    else:
        return value
    return now


def is_alike(one: Any, two: Any) -> bool:
    """Return whether two values are tensors or arrays of one shape, or containers of one kind."""
    if not isinstance(one, Tensor | np.ndarray):
        return type(one) is type(two)
    return type(one) is type(two) and (one.shape, one.dtype) == (two.shape, two.dtype)


def _require(fits: bool, now: Any) -> None:
    if not fits:
        raise NotKeptError(f"{with_article(type(now).__name__)} stands in its place")


def _is_of_numbers(value: Any) -> bool:
    """Return whether numbers or arrays may come in the place of a value: no weight, no enum."""
    weight = isinstance(value, Tensor) and value.is_leaf and value.requires_grad
    return isinstance(value, _NUMBERS) and not isinstance(value, Enum | nn.Parameter) and not weight


def _as_tensor(value: Any) -> Tensor:
    if math.prod(value.shape) > LARGEST:
        raise NotKeptError(f"more than {LARGEST:,} numbers")
    try:
        if not isinstance(value, Tensor | np.generic) and type(value) is not np.ndarray:
            raise TypeError
        found = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        found = torch.view_as_real(found.resolve_conj()) if found.is_complex() else found
    except (TypeError, ValueError):
        found = None
    if type(found) is not Tensor or found.dtype not in _DTYPES:
        raise NotKeptError(f"a file holds no {type(value).__name__} of {value.dtype}")
    return found.clone()
