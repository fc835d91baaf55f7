"""What programs keep as plain Python values, which no file of weights holds."""

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from pyro_vae.callers import of_user
from pyro_vae.program.memory.uses import address_of
from pyro_vae.program.program import Program
from pyro_vae.storage.differences import differences
from pyro_vae.storage.plain_places import key_of, names_in_code, places
from pyro_vae.storage.plain_values import OTHER, description, kind_of, shown

_DATA = 1 << 16  # numbers of an array: larger ones are data
_SETTINGS = ("tensor", "array", "number", "float", "member", "dict", "tuple")
_TOLD = 12  # lines


def plain_state(program: Program) -> dict[str, Any]:
    """Return numbers and small arrays that a user's code keeps, by place and name, as JSON.

    An offset that the first call computes, for one: it is no buffer, so that it is not saved.
    They stand in attributes of modules and of other objects, and in variables around functions;
    torch's own modules are told by their class. Arrays are told by a hash.
    """
    return {name: told for name, told in _told(program).items() if _is_setting(told)}


def _told(program: Program) -> dict[str, Any]:
    weights = weights_of(program)
    return {
        name: OTHER if place.of_torch else description(place.value, weights)
        for name, place in places(program).items()
    }


def weights_of(program: Program) -> set[int]:
    """Return the addresses of the memory of weights and buffers."""
    return {address_of(each) for each in (*program.parameters(), *program.buffers())} - {0}


def tell_of_plain_state(program: Program, saved: Any, where: str) -> None:
    """Warn of plain values that differ from those of the program that was saved.

    Arguments:
        program: What the weights went to.
        saved: What the file says of the other; nothing is done with it but to compare.
        where: The file.
    """
    if isinstance(saved, dict):
        tell(list(settings_that_differ(program, saved)), where)


def tell(lines: list[str], where: str) -> None:
    """Warn of plain values."""
    if lines:
        more = f"; and {len(lines) - _TOLD} more" if len(lines) > _TOLD else ""
        warnings.warn(
            f"{where}: plain values differ from those of the program that was saved, and of these "
            f"only parameters and buffers are kept: {'; '.join(lines[:_TOLD])}{more}; set them, or "
            "register as a buffer what a call computes (register_buffer)",
            stacklevel=of_user(),
        )


def settings_that_differ(program: Program, saved: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is another here, but for what nothing reads: a count of calls, say."""
    here, (read, _) = _told(program), names_in_code(program)
    for name, before in saved.items():
        now = here.get(name)
        if key_of(name) not in read or not (_is_setting(before) and _is_setting(now)):
            continue
        if kind_of(before) is None and kind_of(now) is None:
            yield from differences(before, now, name)
        elif before != now:
            yield f"{name} = {shown(before)}, this run {shown(now)}"


def _is_setting(told: Any) -> bool:
    """Return whether a difference tells of another program.

    Words name devices and paths, what is computed of weights is of the last call, long lists are
    histories and large arrays data.
    """
    kind = kind_of(told)
    if kind is None:
        return not isinstance(told, str)
    shape = told.get("shape", [])
    sizes = shape if isinstance(shape, list) and all(type(n) is int for n in shape) else [_DATA + 1]
    return kind in _SETTINGS and "computed" not in told and math.prod(sizes) <= _DATA
