"""What the likelihood of a table says of its cells."""

import math
from typing import Any

from pyro_vae.conditionals.column_kinds import Column

UNITS = (
    "densities of real and censored cells are per standard deviation of the column, of positive "
    "cells per geometric mean; counts and categories have probabilities"
)


def cell_scores(program: Any) -> dict[str, str]:
    """Return by column whether its cells have probabilities, or densities in which unit.

    Arguments:
        program: of the run; nothing is returned of one that is no program of tables.
    """
    found = getattr(program, "columns", ())
    columns = found if isinstance(found, list | tuple) else ()
    return {str(c.name): _score(c) for c in columns if isinstance(c, Column)}


def _score(column: Column) -> str:
    if column.kind == "positive":
        return f"density, per {math.exp(column.center):.4g}"
    return f"density, per {column.scale:.4g}" if column.shifted else "probability"
