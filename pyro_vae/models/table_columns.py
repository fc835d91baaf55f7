"""From a data frame to a tensor of cells and back. Shapes: N rows, D columns.

pandas is imported by whoever has a frame; nothing here needs it before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.conditionals.column_kinds import KINDS, Column
from pyro_vae.errors import ConfigError, DataError

_OPTIONS = ("distribution", "categories", "low", "high")  # of a column, beside its kind


def is_frame(data: Any) -> bool:
    """Return whether data are a pandas data frame, without importing pandas."""
    return type(data).__name__ == "DataFrame" and hasattr(data, "columns")


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
    if len(set(frame.columns)) < len(frame.columns):
        raise DataError(f"got columns {list(frame.columns)}, expected each name once")
    return [_column(name, frame[name], kinds.get(name)) for name in frame.columns]


def _column(name: Any, series: Any, asked: Any) -> Column:
    present = series[~series.isna()]
    if not len(present):
        raise DataError(f"column {name!r}: all cells are missing; leave it out")
    options: dict[str, Any] = dict(asked) if isinstance(asked, Mapping) else {"kind": asked}
    kind = options.pop("kind", None) or _kind_of(series)
    unknown = [option for option in options if option not in _OPTIONS]
    if unknown:
        raise ConfigError(
            f"kinds: column {name!r} with {unknown[0]!r}; expected kind, {', '.join(_OPTIONS)}"
        )
    if kind not in KINDS:
        raise ConfigError(
            f"kinds: column {name!r} of kind {kind!r}; expected one of {', '.join(KINDS)}"
        )
    if len(present.unique()) == 1:
        raise DataError(
            f"column {name!r}: all observed cells are {_plain(present.iloc[0])!r}, of which there "
            "is nothing to learn; leave it out"
        )
    text = {"name": str(name), "kind": kind, "dtype": str(series.dtype), **options}
    if kind in ("categorical", "ordinal"):
        listed = getattr(getattr(series, "cat", None), "categories", None)
        found = list(listed) if listed is not None else sorted(present.unique(), key=_rank)
        given = options.get("categories")
        if isinstance(given, str):
            raise ConfigError(f"kinds: column {name!r}: categories {given!r}; expected a list")
        text["categories"] = tuple(_plain(c) for c in (found if given is None else given))
        return Column(**text)
    values = _numbers(str(name), kind, series)
    known = values[~np.isnan(values)]
    logs = {"positive": np.log, "count": np.log1p}.get(kind)
    known = known if logs is None else logs(known)
    return Column(**text, center=float(known.mean()), scale=float(known.std()) or 1.0)


def _kind_of(series: Any) -> str:
    """Return the kind that a dtype suggests: whole numbers from 0 are counts, floats are real."""
    dtype = series.dtype
    if str(dtype) == "category":
        return "ordinal" if dtype.ordered else "categorical"
    letter = getattr(dtype, "kind", "O")
    if letter in "iu":
        return "count" if series.min() >= 0 else "real"
    if letter == "f":
        return "real"
    if letter in "mMc":
        raise DataError(
            f"column {series.name!r}: got {dtype}, expected numbers or categories; convert it, as "
            "to days since a date"
        )
    return "categorical"


def cells_of(frame: Any, columns: Sequence[Column], dtype: torch.dtype) -> Tensor:
    """Return a frame as cells (N, D), NaN where they are missing; columns go by their names.

    Raises:
        DataError: Names the column, the row and the value.
    """
    have, want = [str(c) for c in frame.columns], [c.name for c in columns]
    lacking = [name for name in want if name not in have]
    surplus = [name for name in have if name not in want]
    if lacking or surplus:
        said = f"column {lacking[0]!r} is missing" if lacking else f"column {surplus[0]!r} is new"
        raise DataError(f"{said}; expected {want}")
    if not len(frame):
        raise DataError("got no data (0 rows), expected at least one row")
    series = {str(name): frame[name] for name in frame.columns}
    cells = [_cells(column, series[column.name]) for column in columns]
    return torch.as_tensor(np.stack(cells, 1)).to(dtype)


def _cells(column: Column, series: Any) -> np.ndarray:
    if column.named:
        places = {category: place for place, category in enumerate(column.categories)}
        missing = series.isna().to_numpy()
        found = np.full(len(series), np.nan)
        for row, value in enumerate(series):
            if missing[row]:
                continue
            place = places.get(_plain(value))
            if place is None:
                raise DataError(
                    f"column {column.name!r}: got {value!r} in row {row}, expected one of "
                    f"{list(column.categories)}"
                )
            found[row] = place
        return found
    return kept_cells(column, _numbers(column.name, column.kind, series))


def _numbers(name: str, kind: str, series: Any) -> np.ndarray:
    try:
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"column {name!r}: got cells of type {series.dtype}, expected numbers of a {kind} "
            f"column ({error})"
        ) from error
    require_possible(name, kind, values)
    return values


def require_possible(name: str, kind: str, values: np.ndarray) -> None:
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
        name = next(name for name in data.columns if str(name) == column.name)
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
    return _as(values if ends is None else np.clip(np.round(values), *ends), column)


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

    if column.dtype == "category":
        ordered = column.kind == "ordinal"
        return pd.Series(pd.Categorical(list(values), list(column.categories), ordered=ordered))
    series = pd.Series(values, dtype=object if column.named else None)
    if not column.dtype or series.isna().any():
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
