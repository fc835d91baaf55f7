"""The constraints of values: files tell them by name, and they are compared with statements.

A file holds unconstrained numbers: what they stand for, the constraint of their statement tells.
The file names it too, as far as it takes no argument, so that a loaded value can be read before its
statement runs, and a statement with another constraint is noticed. So is one beside the first.
"""

import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import constraints
from torch.distributions import transform_to

from pyro_vae.callers import of_user
from pyro_vae.program.parameters.values import listed

if TYPE_CHECKING:
    from pyro_vae.program.parameters.parameters import Parameters

# What a file may name: constraints without arguments.
_NAMED = {
    name: getattr(constraints, name)
    for name in (
        *("real", "positive", "nonnegative", "softplus_positive", "unit_interval", "simplex"),
        *("ordered_vector", "positive_ordered_vector", "sphere", "lower_cholesky"),
        *("softplus_lower_cholesky", "unit_lower_cholesky", "corr_cholesky", "corr_matrix"),
        *("positive_definite", "positive_semidefinite"),
    )
}


class SavedConstraints:
    """The constraints of a program's values, as files and statements tell them."""

    def __init__(self, own: "Parameters") -> None:
        self._own = own

    def compare(self, key: str, name: str, constraint: Any) -> None:
        """Warn, once, of a statement under another constraint than the first one of its value."""
        kept = self._own.known[key].constraint
        if kept is None or _are_alike(kept, constraint):
            return
        self._own.told.warn(
            ("constraint", name),
            f"pyro.param({name!r}) is stated under {constraint}, and was first under {kept}, which "
            "stays its constraint, as in stock Pyro; give both the same, or two names",
        )

    def names(self) -> dict[str, str]:
        """Return the names of the values' constraints, by key, as far as a file can tell them."""
        known = self._own.known.items()
        told = {key: v.saved if v.constraint is None else v.constraint for key, v in known}
        named = {key: _name_of(constraint) for key, constraint in told.items()}
        return {key: name for key, name in named.items() if name is not None}

    def note(self, names: Any) -> None:
        """Note the constraints that a file tells of the values that it has given.

        Arguments:
            names: As ``names`` returns them; anything, where the file is none of ours.
        """
        told = constraints_of(names)
        for key in self._own.known:
            self._own.note(key, saved=told.get(key))
        self.warn_of_others()

    def warn_of_others(self) -> None:
        """Warn, once, of values that stand for other numbers than those that were saved."""
        asked = [k for k, v in self._own.known.items() if None not in (v.saved, v.constraint)]
        others = [f"values.{key}" for key in asked if not self._stands(key)]
        for key in asked:
            self._own.note(key, saved=None)
        if others:
            warnings.warn(
                f"what was loaded holds {listed(others)} under another constraint than that of "
                "its pyro.param statement, under which its numbers stand for other values; build "
                "the program as it was saved",
                UserWarning,
                stacklevel=of_user(),
            )

    def _stands(self, key: str) -> bool:
        """Return whether a value is what it was, under the constraint of its statement."""
        value, known = self._own.values[key], self._own.known[key]
        with torch.no_grad(), suppress(Exception):  # a file may name one that takes no such tensor
            return torch.equal(*(transform_to(c)(value) for c in (known.saved, known.constraint)))
        return False


def _are_alike(one: Any, other: Any) -> bool:
    """Return whether two constraints, or what they are made of, are written alike.

    They have no equality, and a function may make one anew in each run. Their tensors are not
    compared: a graph that is recorded has no numbers for them.
    """
    if one is other or isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return True
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_are_alike, one, other))
    if isinstance(one, constraints.Constraint) and isinstance(other, constraints.Constraint):
        made_of = list(vars(one).values()), list(vars(other).values())
        return (type(one) is type(other) and _are_alike(*made_of)) or _are_equal(one, other)
    return bool(one == other)


def _are_equal(one: Any, other: Any) -> bool:
    """Return whether the maps to two are one, as to positive numbers with and without 0."""
    with suppress(NotImplementedError):  # torch has none
        return bool(transform_to(one) == transform_to(other))
    return False


def constraints_of(names: Any) -> dict[str, Any]:
    """Return the constraints that a file tells by name, by key; what names none is left out."""
    told = names.items() if isinstance(names, dict) else ()
    return {key: _NAMED[name] for key, name in told if isinstance(name, str) and name in _NAMED}


def _name_of(constraint: Any) -> str | None:
    """Return the name of a constraint; None: it has arguments, or is a user's.

    Constraints have no equality, and copies of a program copy them.
    """
    alike = ((name, type(c), repr(c)) for name, c in _NAMED.items())
    return next((n for n, *c in alike if c == [type(constraint), repr(constraint)]), None)
