"""Published files as modules: what they define, without what they run, download or draw."""

import ast
import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)


class _StandIn(ModuleType):
    """A package that is not installed: each of its names is a class with nothing in it."""

    __path__: list[str] = []  # noqa: RUF012 - what makes a module a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ModuleNotFoundError(f"{self.__name__} is not installed")


class StandIns:
    """Finds packages for pictures and downloads that publications import and we do not need."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a specification for a package that was not found before."""
        if fullname.partition(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return the empty package."""
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing."""


_STAND_INS = StandIns()


def load(
    path: Path,
    *,
    assign: Collection[str] | None = None,
    cells: int | None = None,
    package: str = "",
) -> ModuleType:
    """Return what a script or a notebook defines.

    Arguments:
        path: A ``.py``, whose folder can be imported from, as when it is run as a script; or an
            ``.ipynb``, whose lines of the shell are left out.
        assign: The names whose assignments are run. None runs every one at the top level of a
            script, and none of a notebook's, which trains there.
        cells: Only so many of a notebook's cells of code: the last definition of a name counts.
        package: That the file's relative imports start from; it can be imported.
    """
    module = ModuleType(f"published_{path.stem}")
    module.__package__ = package or None
    sys.modules[module.__name__] = module
    if path.suffix == ".ipynb":
        body, assign = _cells(path, cells), assign or ()
    else:
        folder = str(path.parent)
        sys.path[:0] = [] if folder in sys.path else [folder]
        body = ast.parse(path.read_text()).body
    for node in body:
        chosen = isinstance(node, ast.Assign) and (assign is None or _names(node) & set(assign))
        guarded = isinstance(node, ast.Try) and isinstance(node.body[0], _DEFINITIONS[:2])
        if chosen or guarded or isinstance(node, _DEFINITIONS):
            _run(node, module)
    return module


def _cells(path: Path, first: int | None) -> list[ast.stmt]:
    body: list[ast.stmt] = []
    found = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    for cell in found[:first]:
        lines = "".join(cell["source"]).splitlines()
        kept = [line for line in lines if not line.lstrip().startswith(("%", "!"))]
        body += ast.parse("\n".join(kept)).body
    return body


def _names(node: ast.Assign) -> set[str]:
    return {leaf.id for t in node.targets for leaf in ast.walk(t) if isinstance(leaf, ast.Name)}


def _run(node: ast.stmt, module: ModuleType) -> None:
    """Run a statement; a package that it, or what it imports, does not find is stood in for."""
    code = compile(ast.Module([node], []), module.__name__, "exec")
    try:
        exec(code, module.__dict__)
    except ModuleNotFoundError as error:
        root = (error.name or "").partition(".")[0]
        if not isinstance(node, ast.Import | ast.ImportFrom) or root in _STAND_INS.names:
            raise
        if _STAND_INS not in sys.meta_path:
            sys.meta_path.append(_STAND_INS)  # type: ignore[arg-type]
        _STAND_INS.names.add(root)
        _run(node, module)


def installed(names: Iterable[str]) -> bool:
    """Return whether all modules can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in names)
