"""Names that tell programs apart in Pyro's parameter store."""

import itertools

import pyro
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn

_serial = itertools.count()


def unique_name(kind: str) -> str:
    """Return a name that no other program of this process has, as "vae_0"."""
    return f"{kind}_{next(_serial)}"


def register(program: nn.Module, name: str) -> None:
    """Tell Pyro of a program's parameters, as ``pyro.module`` does, where nobody holds them yet.

    Stock ``SVI.step`` trains nothing without it. Where a handler of this library answers for the
    parameters, a message for each of them would only cost time (some 15 % of a small step), unless
    a stock loss is on the stack that looks for them in its traces.
    """
    held = any(getattr(handler, "holds_parameters", False) for handler in _PYRO_STACK)
    wanted = any(getattr(handler, "wants_parameters", False) for handler in _PYRO_STACK)
    if wanted or not held:
        pyro.module(name, program)
