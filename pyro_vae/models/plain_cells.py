"""What may be a cell of a table, or a label: numbers, names and truth values."""

from collections.abc import Iterable
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from pyro_vae.errors import DataError

_TIMES = (np.datetime64, np.timedelta64)  # the second is an integer to Python
_NEITHER = (*_TIMES, complex, np.complexfloating)


def require_plain(what: str, cells: Any) -> None:
    """Refuse dates, spans of time and complex numbers, and truth values beside their numbers.

    Arguments:
        what: how a message calls the cells.
        cells: an array, or a column of a data frame.

    Raises:
        DataError: units or parts of a cell are not said, or two are equal and not the same.
    """
    held = getattr(getattr(cells.dtype, "categories", None), "dtype", cells.dtype)
    if getattr(held, "kind", "O") in "mMc":
        raise _unplain(what, str(held))
    if str(cells.dtype) == "object":
        _require_plain_objects(what, list(cells))


def _require_plain_objects(what: str, cells: Iterable[Any]) -> None:
    cells = [cell for cell in cells if isinstance(cell, Real | complex | np.generic)]
    wrong = next((cell for cell in cells if isinstance(cell, _NEITHER)), None)
    if wrong is not None:
        raise _unplain(what, type(wrong).__name__)
    truth = {bool(cell) for cell in cells if isinstance(cell, bool | np.bool_)}
    both = [cell for cell in cells if is_number(cell) and cell in truth]
    if both:
        raise DataError(
            f"{what}: got {bool(both[0])} beside {both[0]}, which count as one value; make all "
            "cells numbers (.astype(float)) or text (.astype(str))"
        )


def _unplain(what: str, kind: str) -> DataError:
    return DataError(
        f"{what}: got {kind}, expected numbers or categories; convert it, as to days since a date"
    )


def is_number(cell: Any) -> bool:
    """Return whether a cell is a quantity, and no truth value."""
    return isinstance(cell, Real | Decimal) and not isinstance(cell, (bool, np.bool_, *_TIMES))


def plain(value: Any) -> Any:
    """Return a category as JSON keeps it."""
    return (
        value.item() if isinstance(value, np.generic) and not isinstance(value, _TIMES) else value
    )
