"""Tables of a user's own file. Shapes: N rows, D columns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyro_vae.arguments import counted
from pyro_vae.data.splits import EVERY, ByTurns, by_turns
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.extras import extra

SUFFIXES = (".csv", ".parquet")


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
        DataError: The file is missing or no such thing, or has no rows.
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
    return frame


def split_table(path: Path) -> Table:
    """Return a table whose every 20th row validates, and the tenth after it tests.

    Raises:
        DataError: The file is no table, or has too few rows.
    """
    frame = read_table(path)
    if len(frame) < EVERY:
        raise DataError(f"{path}: got {counted(len(frame), 'row')}, expected at least {EVERY}")
    return Table(frame)
