"""What a schedule is a function of: the progress of a run, and no number of epochs or steps."""

import copy
import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterable
from types import CellType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.callers import of_user
from pyro_vae.errors import ConfigError

# What an argument is called that counts, and what one is that is the progress.
_COUNTS = re.compile(r".*(epoch|step|iter|batch|update).*|e|ep|i|it|idx|j|k|n")
_SHARES = re.compile(r"t|p|u|.*(progress|share|frac).*")
_TAKEN_AT_ITS_WORD = re.compile(r"p|u|.*(progress|share|frac).*")
_FAR = 1e5, 1e6  # numbers of epochs or steps at which a warm-up is over
_SMALL = 0.02  # multipliers of the learning rate below which they are taken for rates
_LARGE = 1 << 20  # bytes of data that are not copied with a schedule
_DEPTH = 6  # of objects in objects in which such data are looked for
_LOOKS = 0.0, 0.11, 0.25, 0.37, 0.5, 0.79, 1.0  # a cycle may be at 0 at a half and a quarter


def values_at(schedule: Callable[[float], Any], points: Iterable[float]) -> list[float]:
    """Return values of a copy of a schedule: one may count its calls, and begins with the run.

    Random numbers that it draws of torch are drawn again in the run.

    Raises:
        Exception: There is no copy, or whatever the schedule raises.
    """
    twin = _copied(schedule)
    with torch.random.fork_rng([]):
        return [float(twin(t)) for t in points]


def _copied(schedule: Callable[[float], Any]) -> Callable[[float], Any]:
    """Return a copy of a schedule with all that it keeps; ``copy`` takes a function as it is."""
    if not isinstance(schedule, FunctionType):
        return copy.deepcopy(schedule, _shared([schedule, getattr(schedule, "__self__", None)]))
    around = schedule.__globals__
    named = [around.get(name) for name in schedule.__code__.co_names]
    kept = [each for each in named if isinstance(each, list | dict | set)]
    cells = [cell.cell_contents for cell in schedule.__closure__ or ()]
    places, names = schedule.__defaults__, schedule.__kwdefaults__
    defaults = [*(places or ()), *(names or {}).values()]
    shared = _shared([*cells, *defaults, *kept])
    cells, places, names, twins = copy.deepcopy((cells, places, names, kept), shared)
    others = {id(each): twin for each, twin in zip(kept, twins, strict=True)}
    twin = FunctionType(
        schedule.__code__,
        {name: others.get(id(each), each) for name, each in around.items()},
        schedule.__name__,
        places,
        tuple(CellType(each) for each in cells),
    )
    twin.__kwdefaults__ = names
    return twin


def _shared(held: Iterable[Any]) -> dict[int, Any]:
    """Return what a copy has in common with its original: modules, and data, which are large.

    Looked for among some objects, their attributes, and what these hold in turn.
    """
    found: dict[int, Any] = {}
    for _ in range(_DEPTH):
        held = list(held)
        found |= {id(each): each for each in held if _is_shared(each)}
        held = [part for each in held if id(each) not in found for part in _parts_of(each)]
    return found


def _is_shared(value: Any) -> bool:
    data = isinstance(value, Tensor | np.ndarray)
    return isinstance(value, ModuleType) or (data and value.nbytes > _LARGE)


def _parts_of(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    return list(getattr(value, "__dict__", {}).values())


def warn_of_rates(name: str, value: Any) -> None:
    """Warn of a multiplier of the learning rate that is a learning rate itself."""
    try:
        values = values_at(value, _LOOKS) if callable(value) else [value]
    except Exception:  # what else it does is told where it is used
        return
    if 0 < max(values) < _SMALL:
        what = "a function with values of at most " if callable(value) else ""
        warnings.warn(
            f"{name}: got {what}{max(values):g}, by which lr is multiplied, expected a factor (1 "
            "leaves lr as it is); a learning rate is lr=, and a schedule of rates lambda t: "
            "rate(t) / lr",
            UserWarning,
            stacklevel=of_user(),
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
        start, end, far, farther = values_at(value, (0.0, 1.0, *_FAR))
    except Exception:  # it is made for [0, 1]; what else it does is told where it is used
        return
    way = far - start
    if abs(end - start) < abs(way) / 2 < math.inf and abs(farther - far) <= 0.01 * abs(way):
        warnings.warn(
            f"{name}: the schedule goes from {start:g} to {end:g} in this run, and to {far:g} "
            f"beyond it; it is given the progress, from 0 to 1: {_way_out('epoch')}, or call its "
            "argument progress if that is meant",
            UserWarning,
            stacklevel=of_user(),
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
