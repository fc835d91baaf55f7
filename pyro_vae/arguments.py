"""Checks of arguments at the door of a verb, with one form of message: got, expected, the fix."""

import operator
from numbers import Real
from typing import Any

from pyro_vae.errors import ConfigError

_IN_WORDS = {
    "(-inf, inf)": "a finite number",
    "(0, inf)": "a positive number",
    "[0, inf)": "a number of at least 0",
}


def integer(name: str, value: Any, at_least: int) -> int:
    """Return an integer of at least some number (NumPy's integers are integers too).

    Raises:
        ConfigError: Anything else.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < at_least:
        raise ConfigError(f"{name}: got {value!r}, expected an integer of at least {at_least}")
    return number


def positive(name: str, value: Any) -> int:
    """Return an integer of at least 1.

    Raises:
        ConfigError: Anything else.
    """
    return integer(name, value, 1)


def number(name: str, value: Any, interval: str) -> float:
    """Return a number of an interval in the notation of mathematics: "[0, 1)" holds 0 but not 1.

    Raises:
        ConfigError: Anything else, NaN included.
    """
    low, high = map(float, interval[1:-1].split(","))
    real = isinstance(value, Real) and not isinstance(value, bool)
    above = real and (low <= value if interval[0] == "[" else low < value)
    if not above or not (value <= high if interval[-1] == "]" else value < high):
        expected = _IN_WORDS.get(interval, f"a number in {interval}")
        raise ConfigError(f"{name}: got {value!r}, expected {expected}")
    return float(value)
