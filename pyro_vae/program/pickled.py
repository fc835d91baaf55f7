"""Functions as pickle takes them: by the name under which another process finds them again."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from pyro_vae.errors import ProgramError


def require_named(functions: dict[str, Callable[..., Any]]) -> None:
    """Refuse to pickle functions that no name finds: made inside another function, or lambdas.

    Raises:
        ProgramError: Names the side.
    """
    for side, function in functions.items():
        named = _named(function)
        found: Any = sys.modules.get(named.__module__)
        for part in named.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not named:
            raise ProgramError(
                f"pickle: the {side} is {named.__qualname__}, which no other process finds by its "
                "name; keep the program by pv.save(program, folder) and read it by "
                "pv.load(folder, into=pv.Program(model, guide)), or define model and guide at the "
                "top of a module"
            )


def _named(function: Any) -> Any:
    """Return the function or class whose name pickle writes down."""
    while isinstance(function, partial):
        function = function.func
    owner = getattr(function, "__self__", None)  # of a method
    if owner is not None:
        return owner if isinstance(owner, type) else type(owner)
    return function if hasattr(function, "__qualname__") else type(function)
