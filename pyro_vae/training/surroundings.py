"""What libraries that a run loads on the way would leave behind in the process."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARIES = ("sympy", "torch")  # what a graph loads: filters of their own warnings
_VARIABLES = "TORCHINDUCTOR_"


@contextmanager
def surroundings_kept() -> Iterator[None]:
    """Take out the warning filters and environment variables that tracing and compiling add.

    What a callback sets for itself stays.
    """
    filters, variables = list(warnings.filters), set(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - variables:
            if name.startswith(_VARIABLES):
                del os.environ[name]
        warnings.filters[:] = [  # type: ignore[index]
            each
            for each in warnings.filters
            if each in filters or each[2].__module__.partition(".")[0] not in _LIBRARIES
        ]
