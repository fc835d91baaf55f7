"""Tensors that a program is given before it has run: whether they fit shows as it runs."""

import warnings
from collections.abc import Callable, Set
from contextlib import suppress

import torch
from torch import Tensor

from pyro_vae.callers import of_user
from pyro_vae.errors import CheckpointError
from pyro_vae.program.parameters.values import listed


def unlike(name: str, got: torch.Size, expected: torch.Size, more: str = "") -> CheckpointError:
    """Return what says that a tensor which was loaded has another shape than its place."""
    return CheckpointError(
        f"{name!r}: got shape {tuple(got)} from what was loaded, expected {tuple(expected)}; "
        f"build the program as it was saved{more}"
    )


def _is_wide(got: torch.Size, expected: torch.Size) -> bool:
    """Return whether a value is broadcast, which no other number of data explains."""
    return len(got) != len(expected) or any(
        here == 1 != there for here, there in zip(got, expected, strict=True)
    )


class Loaded:
    """What is known of such tensors.

    Arguments:
        strict: Of ``load_state_dict``; None of a file, which knows more of what it holds.
        known: Names that were given, and of what had a place: a load tells itself what lacks there.
    """

    def __init__(self, strict: bool | None, known: Set[str] = frozenset()) -> None:
        self.strict, self.known = strict, known
        self._shapes: dict[str, tuple[torch.Size, torch.Size]] = {}  # got and expected, by key

    def compare(self, key: str, value: Tensor, start: Callable[[], Tensor]) -> Tensor | None:
        """Note the shape that a statement would give a value, where it is another.

        Arguments:
            key: Of the value.
            value: That was given, unconstrained.
            start: Returns that of the statement, unconstrained.

        Returns:
            What ``start`` does; None where that fails.
        """
        self._shapes.pop(key, None)
        cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        with suppress(Exception), torch.random.fork_rng(cards):  # whatever a user's function raises
            own = start()
            if own.shape != value.shape:
                self._shapes[key] = value.shape, own.shape
            return own
        return None

    def require_shapes(self, error: Exception | None = None) -> None:
        """Refuse a value of another shape, where a run fails or the value is broadcast.

        Other shapes that run are those of parameters with a row for each datum.

        Raises:
            CheckpointError: Names the value and both shapes.
        """
        fails = "" if error is None else f"; the program fails with: {error}"
        for key, shapes in self._shapes.items():
            if _is_wide(*shapes) or error is not None:
                raise self._unlike(key, fails) from error

    def told(self) -> str:
        """Return which values have another shape than their statements give, behind a semicolon."""
        return "".join(f"; {self._unlike(key)}" for key in self._shapes)

    def _unlike(self, key: str, more: str = "") -> CheckpointError:
        shapes = self._shapes[key]
        same = "" if _is_wide(*shapes) else ", or, of values for each datum, give it the same data"
        return unlike(f"values.{key}", *shapes, same + more)

    def settle(self, missed: set[str], made: set[str], given: Set[str]) -> None:
        """Compare the names that were given with those that the first run has asked for.

        Arguments:
            missed: Names that it has not asked for. They are kept: other data may ask for them.
            made: Names that were not given.
            given: Names that the store of ``params=`` holds.

        Raises:
            CheckpointError: They are others, of a file or of what is loaded strictly.
        """
        kept = listed(sorted(missed))
        holds = f"what was loaded holds {kept}, which the first run has not asked for"
        if made and (self.strict or (self.strict is None and missed)):
            more = f"; {holds}" if missed else ""
            way_out = ", or load with strict=False" if self.strict else ""
            raise CheckpointError(
                f"{_lacks(made)}{more}; build the program as it was saved{way_out}"
            )
        told = [f"{_lacks(made - given)}{_ANEW}"] * bool(made - given)
        told += [f"{_lacks(made & given)}: they are those of params="] * bool(made & given)
        told += [f"{holds}: kept, should other data ask for it"] * bool(
            missed and self.strict is not None
        )
        if told:
            warnings.warn("; ".join(told), UserWarning, stacklevel=of_user())

    def require_known(self, here: Set[str]) -> None:
        """Compare names with those that were given, before any look at rows.

        Raises:
            CheckpointError: There are others, of a file or of what is loaded strictly.
        """
        new = here - self.known
        if new and self.strict is not False:
            raise CheckpointError(f"{_lacks(new)}; build the program as it was saved{READ_FIRST}")
        if new:
            self.known = self.known | new
            warnings.warn(f"{_lacks(new)}{_ANEW}", UserWarning, stacklevel=of_user())


# Where functions run that no look at rows has gone before.
READ_FIRST = (
    ", or, where the functions meet other data than in training (what was observed lacks, say), "
    "call program.read(rows) on such rows as in training before they run"
)
_ANEW = ": they start anew"


def _lacks(names: Set[str]) -> str:
    return f"the program makes {listed(sorted(names))}, which what was loaded does not hold"
