"""One known bug."""

from typing import NamedTuple


class Bug(NamedTuple):
    """A change of one text in one file of the package, and the test that fails on it."""

    name: str
    file: str
    original: str
    planted: str
    test: str
