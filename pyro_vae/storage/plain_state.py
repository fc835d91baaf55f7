"""What programs keep as plain Python values, which no file of weights holds."""

import dis
import hashlib
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.errors import CheckpointError
from pyro_vae.program.memory.uses import address_of
from pyro_vae.program.parameters.object_graph import PROGRAM, holders, installed, names_loaded
from pyro_vae.program.program import Program
from pyro_vae.storage.differences import differences

_MOST = 16  # entries of a value: longer ones are histories
_SMALL = 1 << 16  # numbers of an array: larger ones are data
_LONGEST = 64  # letters
_COUNTING = 6  # instructions from the reading of a count to its writing
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) | {PROGRAM}
# Numbers of NumPy that are no float of Python, too: a mean that one step makes of an array.
_ARRAYS = (Tensor, np.ndarray, np.float16, np.float32, np.integer)
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def plain_state(program: Program) -> dict[str, Any]:
    """Return numbers, words and small arrays that a user's code keeps, by place and name, as JSON.

    An offset that the first call computes, for one: it is no buffer, so that it is not saved.
    They stand in attributes of modules and of other objects, and in variables around functions;
    torch's own modules are told by their class. Arrays and random generators are told by a hash.
    """
    return {name: _description(place.value) for name, place in _told_places(program).items()}


def tell_of_plain_state(program: Program, saved: Any, where: str) -> None:
    """Warn of plain values that differ from those of the program that was saved.

    Arguments:
        program: What the weights went to.
        saved: What the file says of the other; nothing is done with it but to compare.
        where: The file.
    """
    if isinstance(saved, dict):
        _tell(list(_differing(program, saved)), where)


class MovedState:
    """The plain values that a run moves: its continuation goes on with them.

    Arguments:
        program: As it is before the first step.
        main: Whether this is the process that writes the file, of several.
    """

    def __init__(self, program: Program, *, main: bool = True) -> None:
        self._program, self._main = program, main
        self._before = plain_state(program)

    def take(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return copies of what has moved since the run began: arrays, and what JSON holds."""
        before, now = self._before, _told_places(self._program)
        told = {name: _description(place.value) for name, place in now.items()}
        moved = {k: v for k, v in told.items() if k not in before or v != before[k]}
        arrays = {name: _as_tensor(now[name].value) for name in moved}
        kept = {name: array for name, array in arrays.items() if array is not None}
        return kept, {"before": before, "moved": moved}

    def put_back(self, arrays: Mapping[str, Tensor], saved: Any, where: str) -> None:
        """Set what the run had moved, and warn of what it had not and is another here.

        What was chosen anew for this continuation was not moved by the run: the next one may choose
        again. What a further process has begun with otherwise (its rank, a generator of its own
        seed) is none of the file, which is of the first.

        Arguments:
            arrays: Of the file, by name.
            saved: What else the file says, looked at by ``check_moved``.
            where: The file.
        """
        if saved is None:  # of an older version
            return
        before, moved, here = saved["before"], saved["moved"], self._before
        still = {name: value for name, value in here.items() if name not in moved}
        self._before = still | {name: before[name] for name in moved if name in before}
        places, device = _places(self._program), self._program.device
        shared: dict[tuple[int, str], Any] = {}
        lost = [
            f"{name} = {_shown(value)}, which the run has moved, is not kept"
            for name, value in moved.items()
            if not (name in places and _may_be_set(places[name].value))
            or not (self._main or here.get(name) in (before.get(name), value))
            or not _put(places[name], value, arrays.get(name), device, shared)
        ]
        unmoved = {name: value for name, value in before.items() if name not in moved}
        _tell([*lost, *(_differing(self._program, unmoved) if self._main else ())], where)


def check_moved(saved: Any, where: str) -> None:
    """Look at what a file says of the plain values of a run.

    Raises:
        CheckpointError: It is malformed.
    """
    found = [saved.get(key) for key in ("before", "moved")] if isinstance(saved, dict) else [saved]
    if saved is not None and not all(isinstance(each, dict) for each in found):
        raise CheckpointError(f"{where}: its record of plain values is malformed")


@dataclass(frozen=True)
class _Place:
    """An entry of a namespace, or a variable around a function."""

    home: dict[str, Any] | CellType
    key: str

    @property
    def value(self) -> Any:
        return self.home.get(self.key) if isinstance(self.home, dict) else self.home.cell_contents

    def set(self, value: Any) -> None:
        """Put a value there; a container stays the same one, for others may hold it too."""
        now = self.value
        if isinstance(now, dict) and isinstance(value, dict):  # one with a default, too
            now.clear()
            now.update(value)
        elif isinstance(now, list) and isinstance(value, list):
            now[:] = value
        elif isinstance(self.home, dict):
            self.home[self.key] = value
        else:
            self.home.cell_contents = value


def _places(program: Program) -> dict[str, _Place]:
    """Return where a user's code may keep values, by names that another process gives them too."""
    found: dict[str, _Place] = {}
    known: set[tuple[int, str]] = set()
    for prefix, place in _named(program):
        at = (id(place.home), place.key)
        if at not in known:
            known.add(at)
            label = f"{prefix}.{place.key}".lstrip(".")
            while label in found:  # of two objects of one class
                label += "'"
            found[label] = place
    return found


def _named(program: Program) -> Iterator[tuple[str, _Place]]:
    for name, part in program.own.parts.named_modules():
        if type(part).__module__.partition(".")[0] not in ("torch", "pyro", "pyro_vae"):
            # The older weight_norm and spectral_norm set the weight anew at each call.
            made = {key.removesuffix("_orig").removesuffix("_g") for key in part._parameters}
            own = vars(part).keys() - _OF_EVERY_MODULE - made
            yield from ((name, _Place(vars(part), key)) for key in vars(part) if key in own)
    for thing in holders(*program.own.functions):
        kind = type(thing)
        if kind is FunctionType and not installed(thing.__module__ or ""):
            names = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
            yield from (("", _Place(cell, name)) for name, cell in names if cell != CellType())
            names = names_loaded(thing) & thing.__globals__.keys()
            yield from (("", _Place(thing.__globals__, name)) for name in sorted(names))
        elif not issubclass(kind, nn.Module | type) and not installed(kind.__module__):
            own = getattr(thing, "__dict__", {})
            if type(own) is dict:
                yield from ((kind.__name__, _Place(own, key)) for key in own if key != PROGRAM)


def _told_places(program: Program) -> dict[str, _Place]:
    weights = {address_of(tensor) for tensor in (*program.parameters(), *program.buffers())} - {0}

    def is_told(value: Any) -> bool:
        if isinstance(value, _ARRAYS):
            return address_of(value) not in weights and _is_small(value)
        return isinstance(value, _GENERATORS) or _is_plain(value)

    return {k: place for k, place in _places(program).items() if is_told(place.value)}


# -- values ----------------------------------------------------------------------------------------


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        keys = all(isinstance(key, str) for key in value)
        return keys and len(value) <= _MOST and all(map(_is_number, value.values()))
    if isinstance(value, list):
        return len(value) <= _MOST and all(map(_is_number, value))
    return _is_number(value) or (isinstance(value, str) and len(value) <= _LONGEST)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, bool | int | float) and abs(value) < 2**63)


def _is_small(value: Any) -> bool:
    """Return whether an array may be a state: finite numbers, no mask and no way to a weight."""
    if not isinstance(value, Tensor):
        return value.dtype.kind in "iuf" and value.size <= _SMALL and bool(np.isfinite(value).all())
    fit = type(value) is Tensor and value.layout == torch.strided and value.device.type != "meta"
    fit = fit and value.numel() <= _SMALL and not (value.requires_grad or value.is_complex())
    try:
        return fit and value.dtype != torch.bool and bool(value.isfinite().all())
    except NotImplementedError:  # of eight bits
        return False


def _description(value: Any) -> Any:
    """Return a value as JSON gives it back; of arrays and generators kind, shape and hash."""
    if isinstance(value, _GENERATORS):
        return {"kind": "generator", "hash": _hash(_state_of(value))}
    if isinstance(value, _ARRAYS):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        shape, dtype = list(value.shape), str(value.dtype)
        return {"kind": kind, "shape": shape, "dtype": dtype, "hash": _hash(_bytes(value))}
    if isinstance(value, dict):
        return {str(key): _description(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_description(each) for each in value]
    # NumPy's double is a float, and another type than JSON gives back.
    return float(value) if isinstance(value, float) else value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, Tensor):
        return value.tobytes()
    flat = value.detach().cpu().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _state_of(generator: Any) -> bytes:
    if isinstance(generator, torch.Generator):
        return _bytes(generator.get_state())
    if isinstance(generator, np.random.Generator):
        return repr(generator.bit_generator.state).encode()
    state = generator.getstate() if isinstance(generator, random.Random) else generator.get_state()
    return repr(state).encode()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _as_tensor(value: Any) -> Tensor | None:
    """Return a copy of what a file of tensors can hold; None of the rest."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, _ARRAYS):
        with suppress(TypeError, ValueError):  # of types that torch has not
            return torch.from_numpy(np.array(value))
        return None
    return value.get_state() if isinstance(value, torch.Generator) else None


def _may_be_set(value: Any) -> bool:
    """Return whether a file may set what stands there now: no function, module or weight.

    Nor a table of them.
    """
    if isinstance(value, dict | list):
        return _is_plain(value)
    if isinstance(value, Tensor) and (value.requires_grad or isinstance(value, nn.Parameter)):
        return False
    kinds = (int, float, str, *_ARRAYS, *_GENERATORS)
    return value is None or isinstance(value, kinds)


def _put(
    place: _Place,
    told: Any,
    array: Tensor | None,
    device: torch.device,
    shared: dict[tuple[int, str], Any],
) -> bool:
    """Set what a file says, and return whether it could be.

    Places that hold one array and are told the same go on with one: steps may write into it.
    """
    kind = _kind(told)
    if kind is None:
        if _is_plain(told):
            place.set(told)
        return _is_plain(told)
    if array is None:
        return False
    if kind == "generator":
        return _set_generator(place.value, array)
    now = place.value
    try:
        found = array.to(device) if kind == "tensor" else array.cpu().numpy()
    except TypeError:  # of a damaged file
        return False
    if kind == "array" and not isinstance(now, np.ndarray):
        found = found[()]  # a number, if it has no axis
    if isinstance(now, Tensor | np.ndarray):
        found = shared.setdefault((id(now), str(told.get("hash"))), found)
    place.set(found)
    return True


def _set_generator(generator: Any, state: Tensor) -> bool:
    if not isinstance(generator, torch.Generator):
        return False
    try:
        generator.set_state(state.cpu())
    except (RuntimeError, TypeError):  # of another device
        return False
    return True


# -- differences -----------------------------------------------------------------------------------


def _tell(lines: list[str], where: str) -> None:
    if lines:
        warnings.warn(
            f"{where}: plain values differ from those of the program that was saved, and of these "
            f"only parameters and buffers are kept: {'; '.join(lines[:3])}; set them, or register "
            "as a buffer what a call computes (register_buffer)",
            stacklevel=4,
        )


def _differing(program: Program, saved: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is another here, but for what nothing reads: a count of calls, say."""
    here, read = plain_state(program), _read(program)
    for name, before in saved.items():
        now = here.get(name)
        key = name.rpartition(".")[2].rstrip("'")
        if key not in read or not (_is_setting(before) and _is_setting(now)):
            continue
        if _kind(before) is None and _kind(now) is None:
            yield from differences(before, now, name)
        elif before != now:
            yield f"{name} = {_shown(before)}, this run {_shown(now)}"


def _read(program: Program) -> set[str]:
    """Return the attributes and variables that code reads, not to count them on alone.

    Also words, for ``getattr``, and what modules of other libraries hold, whose code is not read.
    """
    parts = (part for part in program.own.parts.modules() if installed(type(part).__module__))
    read = {key for part in parts for key in vars(part)}
    things = holders(*program.own.functions)
    codes = [thing.__code__ for thing in things if type(thing) is FunctionType]
    while codes:
        code = codes.pop()
        codes += [each for each in code.co_consts if isinstance(each, CodeType)]
        steps = [(each.opname, each.argval) for each in dis.get_instructions(code)]
        for index, (name, value) in enumerate(steps):
            if name.startswith("LOAD_") and "FAST" not in name and isinstance(value, str):
                ahead = steps[index + 1 : index + _COUNTING]
                if all(v != value or not n.startswith("STORE_") for n, v in ahead):
                    read.add(value)
    return read


def _is_setting(value: Any) -> bool:
    """Return whether a difference tells of another program: words name devices and paths."""
    return _kind(value) != "generator" and not isinstance(value, str)


def _kind(value: Any) -> str | None:
    """Return what is told by a hash: a tensor, an array, a generator; None of the rest."""
    kind = value.get("kind") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def _shown(value: Any) -> str:
    if _kind(value) is None:
        return f"{value!r:.150}"
    return f"a {_kind(value)}" + (f" of shape {value['shape']}" if "shape" in value else "")
