r"""Schedules: functions of the training progress t in [0, 1], for KL weights and learning rates.

Anything callable as ``schedule(t) -> float`` serves; a float is a constant schedule. A function of
epochs or steps is refused by the name of its argument: write ``t * epochs`` for the epoch.
"""

import math
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, NoReturn

from pyro_vae.arguments import number, positive, typed
from pyro_vae.errors import ConfigError
from pyro_vae.names import refuse as _refuse
from pyro_vae.training.schedule_arguments import require_progress

Schedule = Callable[[float], float]


@typed
def linear(start: float = 0.0, end: float = 1.0, *, over: float = 1.0) -> Schedule:
    """Go from ``start`` to ``end`` in a straight line over the first part of the run, then stay.

    Arguments:
        start, end: First and last value.
        over: Share of the run that the ramp takes, in (0, 1].

    Raises:
        ConfigError: an argument out of its range.

    >>> schedule = linear(0.0, 1.0, over=0.5)
    >>> schedule(0.0), schedule(0.25), schedule(0.8)
    (0.0, 0.5, 1.0)
    """
    start, end = _ends(start, end)
    _over(over)
    return lambda t: start + (end - start) * min(1.0, t / over)


@typed
def cosine(start: float = 1.0, end: float = 0.0, *, over: float = 1.0) -> Schedule:
    """Go from ``start`` to ``end`` along half a cosine.

    .. math:: end + (start - end)\\,(1 + \\cos(\\pi t / over)) / 2

    Arguments:
        start, end: First and last value.
        over: Share of the run that the way down takes, in (0, 1].

    Raises:
        ConfigError: an argument out of its range.

    References:
        | SGDR: Stochastic Gradient Descent with Warm Restarts (Loshchilov & Hutter, 2017),
          arXiv:1608.03983

    >>> round(cosine(1.0, 0.0)(0.5), 12)
    0.5
    """
    start, end = _ends(start, end)
    _over(over)
    return lambda t: end + (start - end) * (1 + math.cos(math.pi * min(1.0, t / over))) / 2


@typed
def sigmoid(
    start: float = 0.0, end: float = 1.0, *, centre: float = 0.5, width: float = 0.1
) -> Schedule:
    """Go from ``start`` to ``end`` along a logistic curve (Bowman et al., 2016, arXiv:1511.06349).

    Arguments:
        start, end: Limits far from the centre (reached to ``exp(-centre / width)``).
        centre: Progress at which half of the way is done.
        width: Progress over which the log-odds grow by one.

    Raises:
        ConfigError: an argument out of its range.

    >>> sigmoid(centre=0.3)(0.3)
    0.5
    """
    start, end = _ends(start, end)
    number("centre", centre, "(-inf, inf)")
    number("width", width, "(0, inf)")
    # By tanh, which overflows nowhere.
    return lambda t: start + (end - start) * (1 + math.tanh((t - centre) / (2 * width))) / 2


@typed
def cyclical(
    start: float = 0.0, end: float = 1.0, *, cycles: int = 4, ramp: float = 0.5
) -> Schedule:
    """Repeat a linear ramp and a plateau (Fu et al., 2019, arXiv:1903.10145).

    Arguments:
        start, end: First and last value of each ramp.
        cycles: Number of cycles.
        ramp: Share of a cycle that the ramp takes, in (0, 1].

    Raises:
        ConfigError: an argument out of its range.

    >>> [cyclical(cycles=2)(t) for t in (0.0, 0.125, 0.25, 0.49, 0.5, 1.0)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 1.0]
    """
    number("ramp", ramp, "(0, 1]")
    start, end = _ends(start, end)
    positive("cycles", cycles)

    def value(t: float) -> float:
        phase = 1.0 if t >= 1.0 else (t * cycles) % 1.0
        return start + (end - start) * min(1.0, phase / ramp)

    return value


def _over(over: float) -> None:
    try:
        number("over", over, "(0, 1]")
    except ConfigError as error:
        raise ConfigError(f"{error}: a share of the run, 0.3 for 3 of 10 epochs") from None


def _ends(start: float, end: float) -> tuple[float, float]:
    return number("start", start, "(-inf, inf)"), number("end", end, "(-inf, inf)")


@typed
def as_schedule(name: str, value: float | Schedule) -> Schedule:
    """Return a schedule for a number or a callable, whose values are checked as they are asked for.

    Arguments:
        name: What an error calls it.
        value: A number of at least 0, or a function of the progress in [0, 1].

    Raises:
        ConfigError: Neither, or a number below zero or not finite, or a function of epochs or
            steps; from the schedule: the progress at which its value is one.
    """
    if isinstance(value, type):  # a scheduler of torch.optim
        raise ConfigError(
            f"{name}: got the class {value.__name__}, expected a number or a function of the "
            "progress in [0, 1], as pv.schedules.cosine()"
        )
    if callable(value):
        require_progress(name, value)
        return partial(_checked, name, value)
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < math.inf:
        raise ConfigError(f"{name}: got {value!r}, expected a number of at least 0 or a schedule")
    constant = float(value)
    return lambda t: constant


def _checked(name: str, schedule: Schedule, t: float) -> float:
    got = schedule(t)
    try:
        value = float(got)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < math.inf:
        way_out = "call it first, as pv.schedules.linear()" if callable(got) else "correct it"
        raise ConfigError(
            f"{name}: the schedule gave {got!r} at progress {t:.4g}, expected a number of at least "
            f"0; {way_out}"
        )
    return value


if not TYPE_CHECKING:  # as of the library itself

    def __getattr__(name: str) -> NoReturn:
        """Say what a schedule of another library is called here."""
        _refuse("pyro_vae.schedules", name, ("linear", "cosine", "sigmoid", "cyclical"), {})
