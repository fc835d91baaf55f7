"""The user's own program: ``my_program.py:Clicks``."""

import importlib.util
import inspect
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro_vae as pv
from pyro_vae.errors import ConfigError, PyroVaeError
from pyro_vae.program.parameters.object_graph import is_library


def is_own(model: str) -> bool:
    """Return whether a model is a file of the user's, in place of a name of `pv.models`."""
    return ".py" in model


def parted(model: str) -> tuple[str, str]:
    """Return the file of ``file.py:name``, whose folders may have colons, and the name, or ""."""
    file, suffix, name = model.rpartition(".py")
    return file + suffix, name.removeprefix(":")


@contextmanager
def imports_apart() -> Iterator[None]:
    """Leave no module of a project behind, and none of the places where it looks for them.

    Another project may have modules of the same names. What is installed stays.
    """
    path, before = [*sys.path], set(sys.modules)
    try:
        yield
    finally:
        folders = {*sys.path} - {*path}
        sys.path[:] = path
        new = sys.modules.keys() - before
        for name in [each for each in new if _is_of_project(each, folders)]:
            del sys.modules[name]


def _is_of_project(module: str, folders: Collection[str]) -> bool:
    """Return whether a module came from a file or a folder that belongs to no installed library.

    Arguments:
        module: its name.
        folders: of programs. What lies in them is no library, whatever lies above is called.
    """
    root = module.partition(".")[0]
    found = sys.modules.get(root)
    files = (getattr(found, "__file__", None), *getattr(found, "__path__", ()))
    places = [str(each) for each in files if each]
    if root not in sys.stdlib_module_names:  # Python itself may lie below a home folder
        below = [(each, f) for each in places for f in folders if each.startswith(f"{f}/")]
        places += [each.removeprefix(str(folder)) for each, folder in below]
    return root != "pyro_vae" and not all(map(is_library, places))


def own_program(model: str, options: dict[str, Any]) -> Any:
    """Return a new program.

    Arguments:
        model: ``file.py:name``, a class, a function that returns a program, or a program;
            ``file.py`` alone has functions `model` and `guide`.
        options: arguments of the class or function.

    Raises:
        ConfigError: no such file or name, a file that fails, options that are not in the signature,
            or no program.
    """
    file, name = parted(model)
    module = _module(Path(file), model)
    if not name:
        pair: list[Any] = [getattr(module, side, None) for side in ("model", "guide")]
        if not all(map(callable, pair)):
            raise ConfigError(f"{file}: has no functions model and guide; name one, as {file}:Name")
        return pv.Program(*pair)
    if not hasattr(module, name):
        raise ConfigError(f"{file}: has no {name!r}; it defines {_defined(module)}")
    value = getattr(module, name)
    made = inspect.isclass(value) or inspect.isroutine(value)
    if options and not made:
        raise ConfigError(f"options: {model} is a program already, and takes none")
    program = called(value, options, model) if made else value
    if not (
        callable(getattr(program, "model", None)) and callable(getattr(program, "guide", None))
    ):
        raise ConfigError(
            f"{model}: got {type(program).__name__}, expected an object with model and guide"
        )
    return program


def called(factory: Any, options: dict[str, Any], named: str) -> Any:
    """Return what a class or function makes of options, which its signature must have.

    Raises:
        ConfigError: It does not take them, or fails; without options its own error is raised.
    """
    if not callable(factory):
        raise ConfigError(f"{named}: got {type(factory).__name__}, expected a class or a program")
    signature = inspect.signature(factory)
    try:
        signature.bind(**options)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "no options"
        raise ConfigError(f"options: {named}: {error}; it takes {known}") from None
    try:
        return factory(**options)
    except PyroVaeError:
        raise
    except Exception as error:
        if not options:
            raise
        got = ", ".join(f"{name} {value!r}" for name, value in options.items())
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"options: {named}: got {got}, and fails with {reason}") from error


def _module(path: Path, named: str) -> Any:
    """Run a file and return its module; its neighbours can be imported, later on too."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, of the program {named}")
    spec = importlib.util.spec_from_file_location(path.resolve().stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: got no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)  # where dataclasses look for their annotations
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script without a guard ends the command
        raise ConfigError(f"{path}: fails with {type(error).__name__}: {error}") from error
    return module


def _defined(module: Any) -> str:
    mine = [
        name
        for name, value in vars(module).items()
        if name[0] != "_"
        and (isinstance(value, pv.Program) or getattr(value, "__module__", "") == module.__name__)
    ]
    return ", ".join(mine) or "nothing"
