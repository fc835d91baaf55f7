"""Plain values as JSON tells of them: numbers, words, and of what is larger a hash."""

import array
import datetime
import hashlib
import itertools
import math
import random
import re
import zlib
from collections import deque
from collections.abc import Container
from contextlib import suppress
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from pyro_vae.program.memory.uses import address_of
from pyro_vae.torch_private import overlaps_itself

OTHER = {"kind": "other"}  # functions, modules, weights: what no file of numbers holds
MOST = 1 << 12  # entries that are kept
LARGEST = 1 << 24  # numbers of an array that are kept
_LOOKED_AT = 1 << 16  # numbers that are looked at of larger ones, and of each of many
_SHORT = 16  # entries that are told one by one
_LONGEST = 1 << 10  # letters
_SURROGATES = re.compile("[\ud800-\udfff]")  # in paths whose bytes are no Unicode: no file has them
ARRAYS = (Tensor, np.ndarray, np.generic)
_ATOMS = (type(None), bool, int, float, str)
# What no file holds, but Python writes in full: that a run has moved it can be told.
_BY_TEXT: tuple[Any, ...] = (
    *(int, float, str, bytes, complex, bytearray, array.array, range, slice),
    *(Decimal, Fraction, datetime.date, datetime.time, datetime.timedelta, itertools.count),
)
_OF_NUMPY = (np.random.Generator, np.random.BitGenerator)
_GENERATORS = (torch.Generator, *_OF_NUMPY, np.random.RandomState, random.Random)
CONTAINERS = {each.__name__: each for each in (dict, list, tuple, deque, set, frozenset)}


def kind_of(told: Any) -> str | None:
    """Return the kind of what is told by a hash, or packed; None of numbers, words and lists."""
    kind = told.get("kind") if isinstance(told, dict) else None
    return kind if isinstance(kind, str) else None


def description(value: Any, weights: Container[int], room: int = 4 * MOST) -> Any:
    """Return a value as JSON gives it back; of arrays, generators, long lists kind and hash.

    Arguments:
        value: Any.
        weights: Addresses of the memory of weights (``address_of``).
        room: Entries that are looked at: what has more holds data.
    """
    kind = type(value)  # isinstance asks the object, as a proxy of nothing
    if is_atom(value):
        return value
    if issubclass(kind, Enum):
        return {"kind": "member", "name": f"{type(value).__name__}.{value.name}"}
    if issubclass(kind, ARRAYS):
        return _of_array(value, weights, max(_LOOKED_AT, LARGEST * room // (4 * MOST)))
    if issubclass(kind, _GENERATORS):
        with suppress(NotImplementedError):  # of the system
            return {"kind": "generator", "hash": _hash(repr(_state_of(value)).encode())}
    if kind is float:  # no finite one
        return {"kind": "float", "name": repr(value)}
    told = next((each for each in _BY_TEXT if issubclass(kind, each)), None)
    if told is not None:
        # A huge int has no decimal text, and a path's words may hold what is no Unicode.
        text = int.__format__(value, "x") if told is int else told.__repr__(value)
        name = f"{told.__module__}.{told.__name__}".removeprefix("builtins.")
        return {"kind": name, "hash": _hash(text.encode(errors="replace"))}
    base = base_of(value)
    if base is None:
        return OTHER
    keys, items = entries_of(value)
    if len(items) <= _SHORT and all(map(is_number, items)):
        if base in (list, tuple):
            return items
        if base is dict and all(type(key) is str and is_atom(key) for key in keys):
            return dict(zip(keys, items, strict=True))
    entries = [*keys, *items] if room else []
    some = entries[:: len(entries) // (room + 1) + 1]
    some += entries[-1:] if len(some) < len(entries) else []
    told = [description(each, weights, room // max(2, len(some))) for each in some]
    if told and all(each == OTHER for each in told):
        return OTHER
    # Networks in a cache are in the file as weights: what holds them is no setting either.
    of_weights = any(each == OTHER or "computed" in _as_dict(each) for each in told)
    computed = {"computed": True} if of_weights else {}
    hashed = _hash(repr(told).encode())
    return {"kind": base.__name__, "length": len(items), **computed, "hash": hashed}


def shown(told: Any) -> str:
    """Return what a description, or a packed value, tells a reader."""
    kind = kind_of(told)
    if kind is None:
        return f"{told!r:.150}"
    if "name" in told:
        return f"{told['name']!s:.150}"
    sizes = [f" of {each} {told[each]!s:.80}" for each in ("shape", "length") if each in told]
    return f"{with_article(kind):.20}{''.join(sizes)}"


def _as_dict(told: Any) -> dict[str, Any]:
    return told if isinstance(told, dict) else {}


def with_article(noun: str) -> str:
    """Return a noun behind "a" or "an"."""
    return f"a{'n' * (noun[:1] in 'aeio')} {noun}"


def is_atom(value: Any) -> bool:
    """Return whether JSON holds a value as it is."""
    if type(value) is str:
        return len(value) <= _LONGEST and (value.isascii() or not _SURROGATES.search(value))
    return type(value) in _ATOMS and is_number(value)


def is_number(value: Any) -> bool:
    """Return whether a value is a number that JSON holds, or None."""
    return value is None or (type(value) in (bool, int, float) and abs(value) < 2**63)


def is_constant(value: Any) -> bool:
    """Return whether a value is an array of one number throughout, as zeros are."""
    if not isinstance(value, ARRAYS) or math.prod(value.shape) == 0:
        return False
    return bool((value == value.reshape(-1)[0]).all())


def memory_of(value: Any) -> int:
    """Return where the memory of an array begins that may be written to; 0 of anything else."""
    if issubclass(type(value), Tensor):
        begins = address_of(value)
        odd = not begins or value.is_inference() or value.is_nested
        return 0 if odd or overlaps_itself(value) else begins
    if type(value) is not np.ndarray or not value.flags.writeable:
        return 0
    while isinstance(value.base, np.ndarray):
        value = value.base
    return int(value.ctypes.data)


def memories(value: Any, depth: int = 4) -> set[int]:
    """Return where the memory of the arrays in a value begins."""
    base: Any = base_of(value)
    if base is None or not depth or base.__len__(value) > MOST:
        return {memory_of(value)} - {0}
    return set[int]().union(*(memories(each, depth - 1) for each in entries_of(value)[1]))


def base_of(value: Any) -> type | None:
    """Return of which kind of container a value is."""
    return next((base for base in CONTAINERS.values() if issubclass(type(value), base)), None)


def entries_of(value: Any) -> tuple[list[Any], list[Any]]:
    """Return keys and items; members of a set in an order that another process gives them too."""
    base: Any = base_of(value)  # whose methods run no code of a user
    entries = list(base.__iter__(value))
    if base is dict:
        return entries, list(dict.values(value))
    if base in (set, frozenset) and len(entries) <= 4 * MOST:  # larger ones hold data
        entries.sort(key=_text_of)
    return [], entries


def _text_of(value: Any) -> str:
    return repr(value if is_atom(value) else description(value, (), _SHORT))  # no code of a user


def _of_array(value: Any, weights: Container[int], most: int) -> Any:
    try:
        return _of_plain_array(value, weights, most)
    except (RuntimeError, TypeError, ValueError):  # a class with operations of its own
        return OTHER


def _of_plain_array(value: Any, weights: Container[int], most: int) -> Any:
    if isinstance(value, Tensor):
        odd = is_lazy(value) or value.is_meta or value.layout != torch.strided
        if odd or address_of(value) in weights or (value.is_leaf and value.requires_grad):
            return OTHER
        some = _sample(value.detach(), most).cpu().resolve_conj().resolve_neg().contiguous()
        content = some.reshape(-1).view(torch.uint8).numpy().data
        kind = "tensor"
    elif value.dtype.hasobject or isinstance(value, np.memmap):
        return OTHER
    else:
        content = memoryview(_sample(value, most).tobytes())
        kind = "array" if isinstance(value, np.ndarray) else "number"
    told: dict[str, Any] = {"kind": kind, "shape": list(value.shape), "dtype": str(value.dtype)}
    if kind == "number":
        told["name"] = str(value)
    if isinstance(value, Tensor) and value.requires_grad:
        told["computed"] = True
    # A checksum of a large one takes a third of the time of a hash, at each checkpoint.
    large = len(content) > 8 * _LOOKED_AT
    return {**told, "hash": f"{zlib.crc32(content):08x}" if large else _hash(content)}


def _sample(value: Any, most: int) -> Any:
    """Return an array, or of a larger one a view of some numbers: one in each row, if they do."""
    if math.prod(value.shape) <= most:
        return value
    for axis in reversed(range(value.ndim)):
        count = math.prod(value.shape)
        if count > _LOOKED_AT:
            step = min(value.shape[axis], count // _LOOKED_AT + 1)
            value = value[(slice(None),) * axis + (slice(None, None, step),)]
    return value


def _state_of(generator: Any) -> Any:
    if isinstance(generator, _OF_NUMPY):
        bits: Any = getattr(generator, "bit_generator", generator)
        return bits.state
    if isinstance(generator, torch.Generator):
        return generator.get_state().tolist()
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _hash(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
