"""What is public: the names that the reference shows, each with a docstring of one layout."""

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pyro_vae


def modules() -> Iterator[tuple[str, ModuleType]]:
    """Yield the package and the modules that it names, each under its public name."""
    yield "pyro_vae", pyro_vae
    for name in pyro_vae.__all__:
        if isinstance(getattr(pyro_vae, name), ModuleType):
            yield f"pyro_vae.{name}", getattr(pyro_vae, name)


def names_of(module: ModuleType) -> list[str]:
    """Return the public names of a module that are no modules: those it lists, or defines."""
    if hasattr(module, "__all__"):
        listed = [name for name in module.__all__ if not name.startswith("_")]
        return [name for name in listed if not isinstance(getattr(module, name), ModuleType)]
    own = {name: getattr(value, "__module__", "") for name, value in vars(module).items()}
    return [name for name, home in own.items() if home == module.__name__ and name[0] != "_"]


def everything() -> dict[str, Any]:
    """Return every public value by its path, as ``pyro_vae.models.VAE``."""
    return {
        f"{path}.{name}": getattr(module, name)
        for path, module in modules()
        for name in names_of(module)
    }


def is_documented(value: Any) -> bool:
    """Return whether a value has a docstring of its own: a class or a function, no constant."""
    return inspect.isclass(value) or inspect.isfunction(value)


def home(value: Any) -> str:
    """Return the place where a class or function is defined."""
    return f"{value.__module__}.{value.__qualname__}"
