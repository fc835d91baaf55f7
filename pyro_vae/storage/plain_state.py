"""What modules keep as plain Python values, which no file of weights holds."""

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from pyro_vae.storage.differences import differences

_MOST = 16  # entries of a value: longer ones are histories


def plain_state(parts: nn.Module) -> dict[str, Any]:
    """Return the numbers that a user's modules keep in attributes, by module and name.

    An offset that the first call computes, for one: it is no buffer, so that it is not saved.
    torch's own modules are told by their class.
    """
    found: dict[str, Any] = {}
    for prefix, module in parts.named_modules():
        if type(module).__module__.partition(".")[0] in ("torch", "pyro", "pyro_vae"):
            continue
        for name, value in vars(module).items():
            if not (name.startswith("_") or name == "training") and _is_plain(value):
                found[f"{prefix}.{name}".lstrip(".")] = value
    return found


def tell_of_plain_state(here: Mapping[str, Any], saved: Any, where: str) -> None:
    """Warn of attributes that differ from those of the program that was saved.

    Arguments:
        here: Of the program that the weights went to, ``plain_state``.
        saved: What the file says of the other; nothing is done with it but to compare.
        where: The file.
    """
    if not isinstance(saved, dict):
        return
    found = list(_told(here, saved))
    if found:
        warnings.warn(
            f"{where}: attributes differ from those of the program that was saved, and only "
            f"parameters and buffers are kept: {'; '.join(found[:3])}; set them, or "
            "register as a buffer what a call computes (register_buffer)",
            stacklevel=4,
        )


def _told(here: Mapping[str, Any], saved: Mapping[str, Any]) -> Iterator[str]:
    for name, value in saved.items():
        if isinstance(name, str):
            yield from differences(value, here.get(name), name)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        keys = all(isinstance(key, str) for key in value)
        return keys and len(value) <= _MOST and all(map(_is_number, value.values()))
    return _is_number(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, bool | int | float) and abs(value) < math.inf)
