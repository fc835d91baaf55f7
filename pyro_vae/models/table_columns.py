"""From a data frame to a tensor of cells and back. Shapes: N rows, D columns.

pandas is imported by whoever has a frame; nothing here needs it before.
"""

import re
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import counted
from pyro_vae.callers import of_user
from pyro_vae.conditionals.column_kinds import KINDS, Column
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.models.plain_cells import is_number, plain, require_plain

_WHOLE = re.compile(r"(?:sparse\[)?(bool|u?int\d+)")  # Int8, int8[pyarrow], Sparse[int8, 0]
_OPTIONS = ("distribution", "categories", "low", "high")  # of a column, beside its kind


def is_frame(data: Any) -> bool:
    """Return whether data are a pandas data frame, or a kind of one, without importing pandas."""
    bases = ((base.__name__, base.__module__.split(".")[0]) for base in type(data).__mro__)
    return ("DataFrame", "pandas") in bases


def columns_of(frame: Any, kinds: Mapping[Any, Any] | None) -> list[Column]:
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
    names = list(frame.columns)
    require_different(names)
    return {str(name): frame.iloc[:, place] for place, name in enumerate(names)}


def require_different(names: Sequence[Any]) -> None:
    """Refuse names of columns that are equal, or the same as text: a file could not tell them.

    Raises:
        DataError: Names one.
    """
    for alike in (names, [str(name) for name in names]):
        twice = [name for name in alike if alike.count(name) > 1]
        if twice:
            raise DataError(f"got two columns {str(twice[0])!r}, expected each name once")


def _column(name: Any, series: Any, asked: Any) -> Column:
    present = series[~series.isna()]
    if not len(present):
        raise DataError(f"column {name!r}: all cells are missing; leave it out")
    options: dict[str, Any] = dict(asked) if isinstance(asked, Mapping) else {"kind": asked}
    chosen = options.pop("kind", None)
    require_plain(f"column {name!r}", series)
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
        raise _of_one_value(name, f"{plain(found[0])!r}")
    text = {"name": _own(name), "kind": kind, "dtype": str(series.dtype), **options}
    if kind in ("categorical", "ordinal"):
        listed = getattr(getattr(series, "cat", None), "categories", None)
        given = options.get("categories")
        if isinstance(given, str):
            raise ConfigError(f"kinds: column {name!r}: categories {given!r}; expected a list")
        names = sorted(found, key=_rank) if listed is None else list(listed)
        text["categories"] = tuple(plain(c) for c in (names if given is None else given))
        if kind == "ordinal" and given is None and not getattr(series.dtype, "ordered", False):
            _require_order(name, text["categories"])
        column = Column(**text)
        if chosen is None and listed is None:
            _tell_of_many(name, len(found), len(present))
        return column
    return _scaled(Column(**text), series)


def _own(name: Any) -> Any:
    """Return a name as a file keeps it: that of a column of several levels is a tuple."""
    if isinstance(name, tuple) and all(isinstance(level, str | int) for level in name):
        return name
    return name if isinstance(name, int) else str(name)


def _require_order(name: Any, found: tuple[Any, ...]) -> None:
    """Refuse ranks whose order nobody has said: that of numbers is known, the alphabet's is none.

    Raises:
        ConfigError: Shows how to say it.
    """
    if not all(isinstance(category, int | float) for category in found):
        raise ConfigError(
            f"kinds: column {name!r} has ranks that are text, whose order the table does not tell; "
            f"give kinds={{{name!r}: {{'kind': 'ordinal', 'categories': {list(found)}}}}}, lowest "
            "first"
        )


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
    except (TypeError, NotImplementedError):
        raise DataError(
            f"column {name!r}: got cells of type {type(present.iloc[0]).__name__}, expected "
            "numbers or categories"
        ) from None


def _tell_of_many(name: Any, categories: int, cells: int) -> None:
    """Warn of text that names nearly each row, or is numbers."""
    if categories > max(20, cells // 2):
        warnings.warn(
            f"column {name!r}: got {counted(categories, 'category')} in {counted(cells, 'cell')}. "
            f"Make numbers of text (pd.to_numeric(table[{name!r}])), leave out what names each "
            f"row, or say kinds={{{name!r}: 'categorical'}}",
            stacklevel=of_user(),
        )


def _kind_of(series: Any, present: Any) -> str:
    """Return the kind that cells suggest: whole numbers from 0 are counts, others are real."""
    dtype = series.dtype
    if str(dtype) == "category":
        return "ordinal" if dtype.ordered else "categorical"
    letter = getattr(dtype, "kind", "O")
    if letter == "f":
        return "real"
    objects = letter == "O" and all(map(is_number, present))
    if letter in "iu" or (objects and all(isinstance(cell, Integral) for cell in present)):
        return "count" if present.min() >= 0 else "real"
    return "real" if objects else "categorical"


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
    require_plain(f"column {column.name!r}", series)
    if column.named:
        places = {category: place for place, category in enumerate(column.categories)}
        missing = series.isna().to_numpy()
        found = np.full(len(series), np.nan)
        for row, value in enumerate(series):
            if missing[row]:
                continue
            name = plain(value)
            place = places.get(name) if isinstance(name, Hashable) else None
            if place is None:
                raise DataError(
                    f"column {column.name!r}: got {value!r} in row {row}, expected one of "
                    f"{list(column.categories)}"
                )
            found[row] = place
        return found
    return kept_cells(column, _numbers(column, series))


def _numbers(column: Column, series: Any) -> np.ndarray:
    try:
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"column {column.name!r}: got cells of type {series.dtype}, expected numbers of a "
            f"{column.kind} column ({error})"
        ) from error
    require_possible(column.name, column.kind, values)
    return values


def require_possible(name: Any, kind: str, values: np.ndarray) -> None:
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


def index_of(frames: Sequence[Any]) -> Any:
    """Return the index of the rows of several data frames, one after the other."""
    first, *rest = (frame.index for frame in frames)
    return first.append(rest) if rest else first


def completed(
    frames: Sequence[Any], cells: Tensor, missing: Tensor, columns: Sequence[Column]
) -> Any:
    """Return data frames as one, their missing cells filled in, the others as they stand."""
    import pandas as pd  # an extra: who has a frame has it

    sizes = [len(frame) for frame in frames]
    parts = zip(frames, cells.split(sizes), missing.split(sizes), strict=True)
    whole = [_completed(*part, columns) for part in parts]
    return whole[0] if len(whole) == 1 else pd.concat(whole)


def _completed(data: Any, cells: Tensor, missing: Tensor, columns: Sequence[Column]) -> Any:
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
    found = _WHOLE.match(dtype.lower())
    if found is None:
        return None
    if found[1] == "bool":
        return 0.0, 1.0
    info = np.iinfo(found[1])
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
    try:
        return series.astype(column.dtype)
    except (TypeError, NotImplementedError):  # a type with parts of its own, which no text tells
        return series if column.named else series.astype(np.float64)


def _rank(value: Any) -> tuple[str, Any]:
    return type(value).__name__, value
