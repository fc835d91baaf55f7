"""Published files as modules: what they define, without what they run, download or draw."""

import ast
import importlib
import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)


class Absent:
    """What a failed import is bound to: plotting and downloads that no program needs to run."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ModuleNotFoundError(f"{self.name} is not installed")


class _StandIn(ModuleType):
    """A package that is not installed: each of its names is a class with nothing in it."""

    __path__: list[str] = []  # noqa: RUF012 - what makes a module a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class StandIns:
    """Finds packages for pictures and downloads that publications import and we do not need."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = {name for name in names if importlib.util.find_spec(name) is None}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a specification for a package that is not installed."""
        if fullname.partition(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return the empty package."""
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing."""


def script(path: Path, *, assign: Collection[str] | None = None) -> ModuleType:
    """Return what a script defines.

    Arguments:
        path: The file. Its folder can be imported from, as when it is run as a script.
        assign: The names whose assignments are run; None runs every one at the top level.
    """
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return _module(path.stem, ast.parse(path.read_text()).body, assign)


def notebook(path: Path, *, assign: Collection[str] = ()) -> ModuleType:
    """Return what the code cells of a notebook define.

    Arguments:
        path: The ``.ipynb``. Lines of the shell are left out.
        assign: The names whose assignments are run as well.
    """
    body: list[ast.stmt] = []
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines()
            kept = [line for line in lines if not line.lstrip().startswith(("%", "!"))]
            body += ast.parse("\n".join(kept)).body
    return _module(path.stem, body, assign)


def _module(stem: str, body: Iterable[ast.stmt], assign: Collection[str] | None) -> ModuleType:
    module = ModuleType(f"published_{stem}")
    sys.modules[module.__name__] = module
    for node in body:
        if (
            isinstance(node, ast.Assign) and (assign is None or _names(node) & set(assign))
        ) or isinstance(node, _DEFINITIONS):
            _run(node, module)
    return module


def _names(node: ast.Assign) -> set[str]:
    return {leaf.id for t in node.targets for leaf in ast.walk(t) if isinstance(leaf, ast.Name)}


def _run(node: ast.stmt, module: ModuleType) -> None:
    code = compile(ast.Module([node], []), module.__name__, "exec")
    try:
        exec(code, module.__dict__)
    except ImportError:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            raise
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            module.__dict__.setdefault(name, Absent(name))


def installed(name: str) -> bool:
    """Return whether a module can be imported."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
