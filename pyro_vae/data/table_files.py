"""Tables of a user's own file. Shapes: N rows, D columns."""

import csv
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pyro_vae.arguments import counted
from pyro_vae.callers import of_user
from pyro_vae.data.splits import EVERY, ByTurns, by_turns
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.extras import extra

SUFFIXES = (".csv", ".parquet")
_COMMAS = (
    "expected a comma between columns and a point in numbers "
    "(pd.read_csv(FILE, sep=..., decimal=...).to_csv(FILE, index=False))"
)


@dataclass(frozen=True)
class Table(ByTurns):
    """A table in splits.

    Arguments:
        whole: all rows, a pandas data frame, of which the others are parts.
    """

    whole: Any

    def _part(self, split: str) -> Any:
        return self.whole[by_turns(len(self.whole))[split]].reset_index(drop=True)


def read_table(path: Path) -> Any:
    """Return a file as a pandas data frame: whole numbers with holes stay whole.

    Arguments:
        path: a file .csv with a line of names, or .parquet (which needs pyarrow).

    Raises:
        ConfigError: pandas, or for .parquet pyarrow, is not installed.
        DataError: The file is missing or no such thing, or has no rows, or no line of names; or its
            first column numbers the rows and has no name.
    """
    with extra("tables", f"{path}: a table"):
        import pandas as pd
    read = pd.read_parquet if path.suffix == ".parquet" else pd.read_csv
    try:
        frame = read(path, dtype_backend="numpy_nullable")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except ImportError:
        raise ConfigError(f"{path}: files .parquet need pyarrow; pip install pyarrow") from None
    except (OSError, ValueError) as error:  # of a parser, or of what is no text
        raise DataError(f"{path}: cannot be read as a table ({error})") from None
    if not len(frame):
        raise DataError(f"{path}: got no rows, expected at least one below the names of columns")
    return _with_names(path, frame) if path.suffix == ".csv" else frame


def _with_names(path: Path, frame: Any) -> Any:
    """Return a frame without names of its rows.

    Refused are a first row that would be lost as names, numbers of the rows as a column, and
    columns that something else parts.
    """
    names = [str(name) for name in frame.columns]
    if _are_numbers(names):
        raise DataError(
            f"{path}: got numbers in line 1 ({', '.join(names[:3])}), expected names of columns: "
            "write such a line above the rows"
        )
    lines = [line for line, _ in islice(_records(path), 2)]
    head, row = [*lines, "", ""][:2]
    below = ",".join(names[:3])
    if type(frame.index).__name__ != "RangeIndex":  # rows have more cells than names
        if row.endswith(",") and bool(frame[frame.columns[-1]].isna().all()):
            raise DataError(f"{path}: got rows that end in a comma, below {below}; take it off")
        if not _has_names_of_rows(path):
            raise DataError(
                f"{path}: got rows with more cells than line 1 has names ({below}); {_COMMAS}; or, "
                "if the first cell of a row is its name, write a name for such cells in line 1"
            )
        _warn(
            f"{path}: line 1 has no name for the first cell of a row, which is left out, or its "
            f"numbers have commas, and then columns are read wrong; {_COMMAS}"
        )
        frame = frame.reset_index(drop=True)
    first = frame[frame.columns[0]]
    sign = next((sign for sign in ";\t|" if sign in names[0]), "")
    if sign and len(names) == 1 and bool(first.astype(str).str.contains(sign, regex=False).all()):
        if head != f'"{names[0]}"':
            raise DataError(
                f"{path}: got columns that commas do not part, below {below}; {_COMMAS}; or, if "
                "this is one column, its name in quotes"
            )
        _warn(f"{path}: is read as one column, {names[0]!r}; {_COMMAS} if it holds more")
    unnamed = names[0].startswith("Unnamed: ") and first.dtype.kind in "iu" and len(names) > 1
    if unnamed and bool((first.diff()[1:] == 1).all()):
        raise DataError(
            f"{path}: got a first column without a name, which numbers the rows; leave it out "
            "(to_csv(index=False)), or give it a name if it is data"
        )
    return frame


def _has_names_of_rows(path: Path) -> bool:
    """Return whether all rows have a name in quotes, in front of as many cells as line 1 has names.

    So R writes them, each row by another name. Where a sign of other columns stands in them, or in
    line 1, commas part numbers.
    """
    (line, names), *rows = _records(path)
    if not names or any(len(cells) != 1 + len(names) for _, cells in rows):
        return False
    labels = [cells[0] for _, cells in rows]
    return (
        line.startswith(f'"{names[0]}"')
        and all(line.startswith(f'"{cells[0]}",') for line, cells in rows)
        and not any(sign in text for sign in ';\t|"' for text in (*names, *labels))
        and len(set(labels)) == len(labels)
    )


def _records(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the text and the cells of line 1 and of each row; quotes may hold line breaks.

    A row with a cell that is too long for `csv` has no cells, and is the last one.
    """
    taken: list[str] = []

    def lines() -> Iterator[str]:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            for line in file:
                taken.append(line)
                yield line

    try:
        for cells in csv.reader(lines()):
            text = "".join(taken).strip()
            taken.clear()
            if text:
                yield text, cells
    except csv.Error:
        yield "".join(taken).strip(), []


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=of_user())


def _are_numbers(names: list[str]) -> bool:
    """Return whether names are numbers that do not count on, as 0, 1, 2 or years do."""
    try:
        # pandas tells a name that comes again by a number more: 0.1, 0.1.1.
        bases = [name.rpartition(".")[0] for name in names]
        pairs = zip(bases, names, strict=True)
        numbers = [float(base if "." in base and base in names else name) for base, name in pairs]
    except ValueError:
        return False
    whole = all(name.strip().isdigit() for name in names)
    return not whole or numbers != [numbers[0] + n for n in range(len(numbers))]


def split_table(path: Path) -> Table:
    """Return a table whose every 20th row validates, and the tenth after it tests.

    Raises:
        DataError: The file is no table, or has too few rows.
    """
    frame = read_table(path)
    if len(frame) < EVERY:
        raise DataError(f"{path}: got {counted(len(frame), 'row')}, expected at least {EVERY}")
    return Table(frame)
