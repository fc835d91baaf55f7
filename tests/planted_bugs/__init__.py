"""Known bugs, each with the test that catches it; ``benchmarks/planted_bugs.py`` plants them.

A file for each room of the package.
"""

import importlib
import pkgutil

BUGS = [
    bug
    for room in pkgutil.iter_modules(__path__)
    if room.name != "bug"
    for bug in importlib.import_module(f"{__name__}.{room.name}").BUGS
]
