"""From a data frame to a tensor of cells and back. Shapes: N rows, D columns.

pandas is imported by whoever has a frame; nothing here needs it before.
"""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.conditionals.column_kinds import KINDS, Column
from pyro_vae.errors import ConfigError, DataError

_OPTIONS = ("distribution", "categories", "low", "high")  # of a column, beside its kind


def is_frame(data: Any) -> bool:
    """Return whether data are a pandas data frame, or a kind of one, without importing pandas."""
    bases = ((base.__name__, base.__module__.split(".")[0]) for base in type(data).__mro__)
    return ("DataFrame", "pandas") in bases


def columns_of(frame: Any, kinds: Mapping[str, Any] | None) -> list[Column]:
    """Return the columns of a frame: their kinds, categories and scales, of observed cells only.

    Raises:
        DataError: A column without cells, of one value, or with cells of another kind.
        ConfigError: ``kinds`` names a column that is not there, or no kind.
    """
    kinds = dict(kinds or {})
    unknown = [name for name in kinds if name not in list(frame.columns)]
    if unknown:
        raise ConfigError(f"kinds: no column {unknown[0]!r}; expected {list(frame.columns)}")
    series = _by_name(frame)
    return [_column(name, series[str(name)], kinds.get(name)) for name in frame.columns]


def _by_name(frame: Any) -> dict[str, Any]:
    """Return the columns of a frame by their names as text, as a file has them."""
    names = [str(name) for name in frame.columns]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"got two columns {twice[0]!r}, expected each name once")
    return {name: frame[own] for name, own in zip(names, frame.columns, strict=True)}


def _column(name: Any, series: Any, asked: Any) -> Column:
    present = series[~series.isna()]
    if not len(present):
        raise DataError(f"column {name!r}: all cells are missing; leave it out")
    options: dict[str, Any] = dict(asked) if isinstance(asked, Mapping) else {"kind": asked}
    chosen = options.pop("kind", None)
    kind = chosen or _kind_of(series, present)
    unknown = [option for option in options if option not in _OPTIONS]
    if unknown:
        raise ConfigError(
            f"kinds: column {name!r} with {unknown[0]!r}; expected kind, {', '.join(_OPTIONS)}"
        )
    if kind not in KINDS:
        raise ConfigError(
            f"kinds: column {name!r} of kind {kind!r}; expected one of {', '.join(KINDS)}"
        )
    found = _different(name, present)
    if len(found) == 1:
        raise _of_one_value(name, f"{_plain(found[0])!r}")
    own = name if isinstance(name, int) else str(name)
    text = {"name": own, "kind": kind, "dtype": str(series.dtype), **options}
    if kind in ("categorical", "ordinal"):
        listed = getattr(getattr(series, "cat", None), "categories", None)
        given = options.get("categories")
        if isinstance(given, str):
            raise ConfigError(f"kinds: column {name!r}: categories {given!r}; expected a list")
        names = sorted(found, key=_rank) if listed is None else list(listed)
        text["categories"] = tuple(_plain(c) for c in (names if given is None else given))
        column = Column(**text)
        if chosen is None and listed is None:
            _tell_of_many(name, len(found), len(present))
        return column
    return _scaled(Column(**text), series)


def _scaled(column: Column, series: Any) -> Column:
    """Return a column with the center and the scale of its observed cells."""
    values = _numbers(column, series)
    known = values[~np.isnan(values)]
    if column.kind == "censored":  # what stands for a cell beyond a limit says nothing of others
        known = np.clip(known, column.low, column.high)
        if known.min() == known.max():
            raise _of_one_value(column.name, f"{known[0]:g}, where the limits are regarded")
    logs = {"positive": np.log, "count": np.log1p}.get(column.kind)
    known = known if logs is None else logs(known)
    with np.errstate(over="ignore"):  # told by the column
        return replace(column, center=float(known.mean()), scale=float(known.std()) or 1.0)


def _of_one_value(name: Any, value: str) -> DataError:
    return DataError(
        f"column {name!r}: all observed cells are {value}, of which there is nothing to learn; "
        "leave it out"
    )


def _different(name: Any, present: Any) -> list[Any]:
    """Return the different cells of a column."""
    try:
        return list(present.unique())
    except TypeError:
        raise DataError(
            f"column {name!r}: got cells of type {type(present.iloc[0]).__name__}, expected "
            "numbers or categories"
        ) from None


def _tell_of_many(name: Any, categories: int, cells: int) -> None:
    """Warn of text that names nearly each row, or is numbers."""
    if categories > max(20, cells // 2):
        warnings.warn(
            f"column {name!r}: got {categories} categories in {cells} cells. Make numbers of text "
            f"(pd.to_numeric(table[{name!r}])), leave out what names each row, or say "
            f"kinds={{{name!r}: 'categorical'}}",
            stacklevel=2,
        )


def _kind_of(series: Any, present: Any) -> str:
    """Return the kind that cells suggest: whole numbers from 0 are counts, others are real."""
    dtype = series.dtype
    if str(dtype) == "category":
        return "ordinal" if dtype.ordered else "categorical"
    _require_plain(series.name, dtype)
    letter = getattr(dtype, "kind", "O")
    if letter == "f":
        return "real"
    objects = str(dtype) == "object" and all(map(_is_number, present))
    if letter in "iu" or (objects and all(isinstance(cell, Integral) for cell in present)):
        return "count" if present.min() >= 0 else "real"
    return "real" if objects else "categorical"


def _is_number(cell: Any) -> bool:
    return isinstance(cell, Real | Decimal) and not isinstance(cell, bool | np.bool_)


def _require_plain(name: Any, dtype: Any) -> None:
    """Refuse dates, spans of time and complex numbers, whose parts or units are not said."""
    held = getattr(getattr(dtype, "categories", None), "dtype", dtype)
    if getattr(held, "kind", "O") in "mMc":
        raise DataError(
            f"column {name!r}: got {held}, expected numbers or categories; convert it, as to days "
            "since a date"
        )


def cells_of(frame: Any, columns: Sequence[Column], dtype: torch.dtype) -> Tensor:
    """Return a frame as cells (N, D), NaN where they are missing; columns go by their names.

    Raises:
        DataError: Names the column, the row and the value.
    """
    series, want = _by_name(frame), [str(c.name) for c in columns]
    lacking = [name for name in want if name not in series]
    surplus = [name for name in series if name not in want]
    if lacking or surplus:
        said = f"column {lacking[0]!r} is missing" if lacking else f"column {surplus[0]!r} is new"
        raise DataError(f"{said}; expected {want}")
    if not len(frame):
        raise DataError("got no data (0 rows), expected at least one row")
    cells = [_cells(column, series[name]) for column, name in zip(columns, want, strict=True)]
    return torch.as_tensor(np.stack(cells, 1)).to(dtype)


def _cells(column: Column, series: Any) -> np.ndarray:
    if column.named:
        places = {category: place for place, category in enumerate(column.categories)}
        missing = series.isna().to_numpy()
        found = np.full(len(series), np.nan)
        for row, value in enumerate(series):
            if missing[row]:
                continue
            plain = _plain(value)
            place = places.get(plain) if isinstance(plain, Hashable) else None
            if place is None:
                raise DataError(
                    f"column {column.name!r}: got {value!r} in row {row}, expected one of "
                    f"{list(column.categories)}"
                )
            found[row] = place
        return found
    return kept_cells(column, _numbers(column, series))


def _numbers(column: Column, series: Any) -> np.ndarray:
    _require_plain(column.name, series.dtype)
    try:
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"column {column.name!r}: got cells of type {series.dtype}, expected numbers of a "
            f"{column.kind} column ({error})"
        ) from error
    require_possible(column.name, column.kind, values)
    return values


def require_possible(name: str | int, kind: str, values: np.ndarray) -> None:
    """Refuse infinite cells, and those that no column of the kind has.

    Raises:
        DataError: Names the column, the row and the value.
    """
    wrong, expected = np.isinf(values), "finite numbers"
    if kind == "positive":
        wrong, expected = wrong | (values <= 0), "positive numbers"
    if kind == "count":
        wrong, expected = wrong | (values < 0) | (values != np.floor(values)), "whole numbers >= 0"
        wrong &= ~np.isnan(values)
    if wrong.any():
        row = int(wrong.nonzero()[0][0])
        raise DataError(
            f"column {name!r}: got {values[row]:g} in row {row}, expected {expected} of a {kind} "
            "column (missing cells are NaN)"
        )


def kept_cells(column: Column, values: np.ndarray) -> np.ndarray:
    """Return numbers in the units in which cells are kept."""
    if column.kind == "censored":
        values = np.clip(values, column.low, column.high)
    if column.shifted:
        return (values - column.center) / column.scale
    return values / np.exp(column.center) if column.kind == "positive" else values


def frame_of(cells: Tensor, columns: Sequence[Column], index: Any = None) -> Any:
    """Return cells (N, D) as a data frame of the dtypes that the table had, and of its index."""
    import pandas as pd  # an extra: who asks for a frame has it

    values = cells.detach().cpu().double().numpy()
    made = pd.DataFrame(
        {column.name: _series(column, values[:, place]) for place, column in enumerate(columns)}
    )
    return made if index is None else made.set_axis(index)


def completed(data: Any, cells: Tensor, missing: Tensor, columns: Sequence[Column]) -> Any:
    """Return a data frame with its missing cells filled in, the others as they stand."""
    made, frame = frame_of(cells, columns), data.copy()
    for place, column in enumerate(columns):
        name = next(name for name in data.columns if str(name) == str(column.name))
        holes = missing[:, place].cpu().numpy()
        if holes.any():
            new = made[column.name].to_numpy(dtype=object)
            values = np.where(holes, new, data[name].to_numpy(dtype=object))
            frame[name] = _as(values, column).set_axis(data.index)
    return frame


def _series(column: Column, values: np.ndarray) -> Any:
    if column.named:
        names = [None if np.isnan(v) else column.categories[int(v)] for v in values]
        return _as(names, column)
    if column.shifted:
        values = values * column.scale + column.center
        for limit in (column.low, column.high):  # a mass stands there: not beside it
            if limit is not None:
                values = np.where(np.abs(values - limit) < 1e-5 * column.scale, limit, values)
    elif column.kind == "positive":
        values = values * np.exp(column.center)
    ends = _ends(column.dtype)
    if ends is None:
        return _as(values, column)
    least = max(ends[0], 1.0) if column.kind == "positive" else ends[0]
    return _as(np.clip(np.round(values), least, ends[1]), column)


def _ends(dtype: str) -> tuple[float, float] | None:
    """Return the least and the greatest number of a type of whole numbers, as floats within it."""
    name = dtype.lower()
    if name.startswith("bool"):
        return 0.0, 1.0
    if not name.startswith(("int", "uint")):
        return None
    info = np.iinfo(name)
    greatest = float(info.max)
    return float(info.min), greatest if int(greatest) <= info.max else np.nextafter(greatest, 0)


def _as(values: Any, column: Column) -> Any:
    """Return a column in the table's type, or as it is where a cell would not stay what it is."""
    import pandas as pd

    if column.dtype == "category" and column.named:
        ordered = column.kind == "ordinal"
        return pd.Series(pd.Categorical(list(values), list(column.categories), ordered=ordered))
    series = pd.Series(values, dtype=object if column.named else None)
    if column.dtype in (None, "", "category") or series.isna().any():
        return series
    ends = None if column.named else _ends(column.dtype)
    if ends is not None:
        numbers = series.to_numpy(dtype=np.float64)
        if (numbers != np.clip(np.round(numbers), *ends)).any():
            return pd.Series(numbers)
    return series.astype(column.dtype)


def _plain(value: Any) -> Any:
    """Return a category as JSON keeps it."""
    return value.item() if isinstance(value, np.generic) else value


def _rank(value: Any) -> tuple[str, Any]:
    return type(value).__name__, value
