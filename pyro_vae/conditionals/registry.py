"""A choice between classes of this package: as a program takes it, and as JSON keeps it."""

import functools
from collections.abc import Mapping
from typing import Any

from pyro_vae.errors import ConfigError


def choose(
    kind: str, table: Mapping[str, type[Any]], spec: Any
) -> tuple[type[Any], dict[str, Any]]:
    """Return (class, options) of one entry of `table`.

    Arguments:
        kind: the argument that chooses, for the error message.
        table: class by name.
        spec: a class of the table, a `functools.partial` of one with keywords, or
            {"name": ..., "options": ...}, the form in which a program's `config` keeps it.

    Raises:
        ConfigError: for anything else; nothing is imported or called by name.
    """
    options: dict[str, Any] = {}
    name: Any = spec
    if isinstance(spec, Mapping) and set(spec) <= {"name", "options"}:
        name, options = spec.get("name"), dict(spec.get("options", {}))
    elif isinstance(spec, functools.partial) and not spec.args:
        name, options = _name(table, spec.func), dict(spec.keywords)
    elif isinstance(spec, type):
        name = _name(table, spec)
    if not isinstance(name, str) or name not in table or isinstance(spec, str):
        own = {
            "observation": "a conditional of your own pass decoder=...",
            "posterior": "an encoder of your own pass encoder=...",
        }.get(kind, "a prior of your own pass a module")
        raise ConfigError(
            f"{kind}={spec!r}; expected a class of pyro_vae.conditionals "
            f"({', '.join(table)}) or functools.partial(class, option=value); for {own}"
        )
    for option, value in options.items():
        if not _is_plain(value):
            raise ConfigError(f"{kind} option {option}={value!r}; expected a plain number")
    return table[name], options


def choice_config(kind: str, table: Mapping[str, type[Any]], spec: Any) -> dict[str, Any]:
    """Return a choice as {"name", "options"}, which JSON can hold and `choose` reads."""
    chosen, options = choose(kind, table, spec)
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    return {"name": chosen.__name__, "options": listed}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(isinstance(each, int) for each in value)
    return isinstance(value, bool | int | float | str)


def _name(table: Mapping[str, type[Any]], chosen: Any) -> str | None:
    """Return the name of a class in the table itself, not of another class called the same."""
    name = getattr(chosen, "__name__", None)
    return name if isinstance(name, str) and table.get(name) is chosen else None
