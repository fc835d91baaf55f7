"""The choice of p(x | z) as a program takes it and as JSON keeps it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pyro_vae.conditionals.continuous import Gaussian, IsotropicGaussian, SquaredError
from pyro_vae.conditionals.discrete import Bernoulli, Categorical, DiscretisedLogistic
from pyro_vae.errors import ConfigError

Observation = Callable[..., nn.Module] | Mapping[str, Any]
OBSERVATIONS: dict[str, type[Any]] = {
    c.__name__: c
    for c in (
        Bernoulli,
        Gaussian,
        IsotropicGaussian,
        Categorical,
        DiscretisedLogistic,
        SquaredError,
    )
}


def observation(spec: Observation) -> tuple[type[Any], dict[str, Any]]:
    """Return (class, options) of an observation of this module.

    Arguments:
        spec: a class, a `functools.partial` of one with keywords, or {"name": ..., "options": ...},
            the form in which a program's `config` keeps it.

    Raises:
        ConfigError: for anything else; nothing is imported or called by name.
    """
    options: dict[str, Any] = {}
    name: Any = spec
    if isinstance(spec, Mapping) and set(spec) <= {"name", "options"}:
        name, options = spec.get("name"), dict(spec.get("options", {}))
    elif isinstance(spec, functools.partial) and not spec.args:
        name, options = _name(spec.func), dict(spec.keywords)
    elif isinstance(spec, type):
        name = _name(spec)
    if not isinstance(name, str) or name not in OBSERVATIONS or isinstance(spec, str):
        raise ConfigError(
            f"observation={spec!r}; expected a class of pyro_vae.conditionals "
            f"({', '.join(OBSERVATIONS)}) or functools.partial(class, option=value); "
            "for a conditional of your own pass decoder=..."
        )
    for option, value in options.items():
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(f"observation option {option}={value!r}; expected a plain number")
    chosen = OBSERVATIONS[name]
    try:
        chosen.width(**options)
    except TypeError as error:
        raise ConfigError(f"observation {name} with options {options}: {error}") from error
    return chosen, options


def observation_config(spec: Observation) -> dict[str, Any]:
    """Return an observation as {"name", "options"}, which JSON can hold and `observation` reads."""
    chosen, options = observation(spec)
    return {"name": chosen.__name__, "options": options}


def _name(chosen: Any) -> str | None:
    """Return the name of a class in OBSERVATIONS itself, not of another class called the same."""
    name = getattr(chosen, "__name__", None)
    return name if isinstance(name, str) and OBSERVATIONS.get(name) is chosen else None
