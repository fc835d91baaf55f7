"""What a run was made of, in words that another process can compare: functions, data, programs."""

import functools
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from pyro_vae.device import seeded
from pyro_vae.program.batches.batch import Batch, named_arguments_of, named_arrays
from pyro_vae.program.batches.sparse_rows import SparseRows
from pyro_vae.program.program import Program
from pyro_vae.storage.random_state import seeded_outside_torch
from pyro_vae.training.feed import TensorFeed
from pyro_vae.training.loader_feed import LoaderFeed
from pyro_vae.training.schedule_arguments import values_at

_POINTS = [index / 20 for index in range(21)]  # where a schedule is asked for its values
_ROWS = 16  # of the data, spread over all of them
_PYTHON = f"python {sys.version_info.major}.{sys.version_info.minor}"


def describe_schedule(value: Any) -> Any:
    """Return a number in full; of a function, its values over the course of a run."""
    if not callable(value):
        return repr(float(value))
    try:
        return {"schedule": values_at(value, _POINTS)}
    except Exception:  # it has no copy, or fails again where it is used
        return {"schedule": describe_function(value)}


def describe_function(function: Any) -> Any:
    """Return the name of a function, its constants and a hash of its code; None for None."""
    if function is None:
        return None
    if isinstance(function, functools.partial):
        named = {name: _text(value) for name, value in function.keywords.items()}
        positional = [_text(value) for value in function.args]
        return {"partial": describe_function(function.func), "args": positional, "keywords": named}
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    kind = function if hasattr(function, "__qualname__") else type(function)
    found: dict[str, Any] = {"name": f"{kind.__module__}.{kind.__qualname__}"}
    if isinstance(code, CodeType):
        cells = getattr(function, "__closure__", None) or ()
        held = [_text(cell.cell_contents) for cell in cells if _filled(cell)]
        defaults = [_text(value) for value in getattr(function, "__defaults__", None) or ()]
        found[_PYTHON] = _digest([*_code(code), *held, *defaults])
    return found


def describe_data(feed: TensorFeed | LoaderFeed) -> dict[str, Any]:
    """Return shapes, types and a hash of a few rows.

    Of a loader's data set they are read twice, from the same random state: rows that differ even
    so, or that cannot be read alone, are told by their shapes.
    """
    if isinstance(feed, TensorFeed):
        return describe_rows(feed.data)
    try:
        first, again = (_seeded_rows(feed) for _ in range(2))
    except Exception as error:  # of a user's data set: the loader may go about it in another way
        feed.unread = error
        return _shapes(feed.first())
    return first if first == again else _shapes(feed.first())


def _seeded_rows(feed: LoaderFeed) -> dict[str, Any]:
    with seeded(torch.device("cpu"), 0), seeded_outside_torch(0):
        return describe_rows(feed.spread(_ROWS))


def _shapes(batch: Batch) -> dict[str, Any]:
    return {
        name: {"row": list(leaf.shape[1:]), "dtype": str(leaf.dtype)}
        for name, leaf in named_arrays(batch)
    }


def describe_rows(batch: Batch) -> dict[str, Any]:
    """Return shape, type and a hash of rows spread over it, for each argument that has numbers."""
    found: dict[str, Any] = {}
    for name, leaf in named_arguments_of(batch):
        if isinstance(leaf, PackedSequence):
            lengths = pad_packed_sequence(leaf)[1]
            found[name] = _describe_array(leaf.data) | {"lengths": _describe_array(lengths)}
        elif isinstance(leaf, Tensor | SparseRows):
            found[name] = _describe_array(leaf)
    return found


def describe_architecture(program: Program) -> dict[str, Any]:
    """Return what weights do not tell of a program: its configuration, modules and functions."""
    source = program.source
    model, guide = (None, None) if source is program else (source.model, source.guide)
    return {
        "config": _as_json(getattr(source, "config", None)),
        # By name: layers defined in another order are the same program.
        "modules": describe_modules(program, {}),
        "model": describe_function(model),
        "guide": describe_function(guide),
    }


def describe_modules(program: Program, known: Mapping[str, str]) -> dict[str, str]:
    """Return what the modules of a program say of themselves, of known ones what they have said."""
    parts = program.own.parts.named_modules()
    return {name: known.get(name) or _describe_module(part) for name, part in parts}


def _describe_array(leaf: Tensor | SparseRows) -> dict[str, Any]:
    table = leaf.reshape(1) if isinstance(leaf, Tensor) and leaf.dim() == 0 else leaf
    index = torch.linspace(0, len(table) - 1, min(_ROWS, len(table)), dtype=torch.float64).long()
    rows = table[index.to(leaf.device)].detach().cpu().contiguous()
    data = rows.flatten().view(torch.uint8).numpy().tobytes() if rows.numel() else b""
    return {
        "shape": list(leaf.shape),
        "dtype": str(leaf.dtype),
        "rows": hashlib.sha256(data).hexdigest()[:12],
    }


def _describe_module(part: nn.Module) -> str:
    return _without_addresses(f"{type(part).__name__}({part.extra_repr()})")


def _code(code: CodeType) -> Iterable[str]:
    yield code.co_code.hex()
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant)
        else:
            yield _text(constant)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _text(value: Any) -> str:
    """Return a value as text that is the same in another process; its kind, where it has none."""
    if isinstance(value, bool | int | float | str | bytes | None):
        return repr(value)
    if isinstance(value, tuple):  # not a list, which changes as it is used
        return f"({', '.join(map(_text, value))})"
    if isinstance(value, Callable):  # type: ignore[arg-type]
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    return type(value).__qualname__


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="replace")).hexdigest()[:12]


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-fA-F]+", "0x", text)


def _as_json(value: Any) -> Any:
    """Return a configuration as JSON gives it back."""
    if isinstance(value, dict):
        return {str(name): _as_json(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_as_json(each) for each in value]
    return value if isinstance(value, bool | int | float | str | None) else _text(value)
