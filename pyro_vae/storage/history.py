"""The history of a run: one row per epoch, as arrays, as CSV, and for a logger."""

import csv
import io
import math
from array import array
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pyro_vae.storage.atomic import atomic_write_text


class History:
    """Rows of numbers with fixed columns; what one epoch did not measure is NaN."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._columns: dict[str, array[float]] = {}  # callbacks ask for all of them each epoch

    @classmethod
    def of_columns(cls, columns: Mapping[str, np.ndarray]) -> "History":
        """Return the history that has these arrays; of a row, what is not NaN."""
        history = cls()
        history._columns = {name: array("d") for name in columns}
        for values in zip(*columns.values(), strict=True):
            row = zip(columns, map(float, values), strict=True)
            history.append({name: value for name, value in row if not math.isnan(value)})
        return history

    def append(self, row: dict[str, float]) -> None:
        """Add the row of one epoch."""
        for name in [each for each in row if each not in self._columns]:
            self._columns[name] = array("d", [math.nan]) * len(self.rows)
        for name, column in self._columns.items():
            column.append(row.get(name, math.nan))
        self.rows.append(row)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return one array per column."""
        return {name: np.array(column) for name, column in self._columns.items()}

    def write_csv(self, path: Path) -> None:
        """Write all rows, replacing the file in one step."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        atomic_write_text(path, text.getvalue())
