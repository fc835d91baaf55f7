"""What a schedule is a function of: the progress of a run, and no number of epochs or steps."""

import inspect
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

from pyro_vae.errors import ConfigError

# What an argument is called that counts, and what one is that is the progress.
_COUNTS = re.compile(r".*(epoch|step|iter|batch|update).*|e|ep|i|it|idx|j|k|n")
_SHARES = re.compile(r"t|p|u|.*(progress|share|frac).*")
_TAKEN_AT_ITS_WORD = re.compile(r"p|u|.*(progress|share|frac).*")
_FAR = 1e5, 1e6  # numbers of epochs or steps at which a warm-up is over
_SMALL = 0.02  # multipliers of the learning rate below which they are taken for rates


def warn_of_rates(name: str, value: Any) -> None:
    """Warn of a multiplier of the learning rate that is a learning rate itself."""
    try:
        values = [float(value(t)) for t in (0.0, 0.25, 0.5, 1.0)] if callable(value) else [value]
    except Exception:  # what else it does is told where it is used
        return
    if 0 < max(values) < _SMALL:
        what = "a function with values of at most " if callable(value) else ""
        warnings.warn(
            f"{name}: got {what}{max(values):g}, by which lr is multiplied, expected a factor (1 "
            "leaves lr as it is); a learning rate is lr=, and a schedule of rates lambda t: "
            "rate(t) / lr",
            UserWarning,
            stacklevel=3,
        )


def warn_of_counts(name: str, value: Any) -> None:
    """Warn of a function that does in many epochs or steps what it leaves undone in [0, 1].

    One whose argument is called ``progress`` or ``share`` is taken at its word: it is asked for
    nothing beyond 1. Many call an epoch ``t``.
    """
    argument = (_arguments(value) or [])[:1] if callable(value) else []
    if not argument or _TAKEN_AT_ITS_WORD.fullmatch(argument[0].lower()):
        return
    try:
        start, end, far, farther = (float(value(t)) for t in (0.0, 1.0, *_FAR))
    except Exception:  # it is made for [0, 1]; what else it does is told where it is used
        return
    way = far - start
    if abs(end - start) < abs(way) / 2 < math.inf and abs(farther - far) <= 0.01 * abs(way):
        warnings.warn(
            f"{name}: the schedule goes from {start:g} to {end:g} in this run, and to {far:g} "
            f"beyond it; it is given the progress, from 0 to 1: {_way_out('epoch')}, or call its "
            "argument progress if that is meant",
            UserWarning,
            stacklevel=2,
        )


def require_progress(name: str, schedule: Callable[[float], float]) -> None:
    """Refuse a function whose arguments say that it wants another thing than the progress.

    Raises:
        ConfigError: It is one of epochs or steps, or of another number of arguments.
    """
    arguments = _arguments(schedule)
    if arguments is None or (len(arguments) == 1 and not _counts(arguments[0].lower())):
        return
    what = f"of {arguments[0]!r}" if len(arguments) == 1 else f"of {len(arguments)} arguments"
    counted = "step" if "step" in "".join(arguments) else "epoch"
    raise ConfigError(
        f"{name}: got a function {what}, expected one of the progress t, which goes from 0 to 1 in "
        f"a run; {_way_out(counted)}"
    )


def _counts(argument: str) -> bool:
    return bool(_COUNTS.fullmatch(argument)) and not _SHARES.fullmatch(argument)


def _way_out(counted: str) -> str:
    return (
        f"for the {counted} write t * {counted}s (lambda t: min(1.0, t * {counted}s / 10)), or "
        "take pv.schedules.linear(over=0.25)"
    )


def _arguments(schedule: Callable[[float], float]) -> list[str] | None:
    """Return the arguments that a function has to be given; None where nobody knows."""
    try:
        found = inspect.signature(schedule).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_POSITIONAL for p in found):
        return None
    places = [p for p in found if p.kind <= p.POSITIONAL_OR_KEYWORD]
    needed = [p.name for p in places if p.default is p.empty]
    return needed or [p.name for p in places[:1]]
