"""Checks of arguments at the door of a verb, with one form of message: got, expected, the fix."""

import operator
from typing import Any

from pyro_vae.errors import ConfigError


def positive(name: str, value: Any) -> int:
    """Return an integer of at least 1 (NumPy's integers are integers too).

    Raises:
        ConfigError: Anything else.
    """
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ConfigError(f"{name}: got {value!r}, expected an integer of at least 1")
    return number
