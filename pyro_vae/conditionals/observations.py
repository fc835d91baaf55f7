"""The choice of p(x | z) as a program takes it and as JSON keeps it."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from pyro_vae.arguments import typed
from pyro_vae.conditionals.continuous import Gaussian, IsotropicGaussian, SquaredError
from pyro_vae.conditionals.discrete import Bernoulli, Categorical, DiscretisedLogistic
from pyro_vae.conditionals.made import MADE
from pyro_vae.conditionals.registry import choice_config, choose
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
        MADE,
    )
}


@typed
def observation(spec: Observation) -> tuple[type[Any], dict[str, Any]]:
    """Return (class, options) of an observation of this module.

    Arguments:
        spec: a class, a `functools.partial` of one with keywords, or {"name": ..., "options": ...},
            the form in which a program's `config` keeps it.

    Raises:
        ConfigError: for anything else; nothing is imported or called by name.
    """
    chosen, options = choose("observation", OBSERVATIONS, spec)
    try:
        chosen.width(**options)
    except TypeError as error:
        name = chosen.__name__
        raise ConfigError(f"observation {name} with options {options}: {error}") from error
    return chosen, options


@typed
def observation_config(spec: Observation) -> dict[str, Any]:
    """Return an observation as {"name", "options"}, which JSON can hold and `observation` reads.

    Arguments:
        spec: A class of this module, a `functools.partial` of one, or such a dict.

    Raises:
        ConfigError: Anything else.
    """
    observation(spec)
    return choice_config("observation", OBSERVATIONS, spec)
