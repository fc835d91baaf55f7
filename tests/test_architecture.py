"""The house stands as drawn: imports point one way, and importing changes nothing."""

import ast
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_vae
from pyro_vae.arguments import counted

ROOT = Path(pyro_vae.__file__).parent
MODULES = {
    "pyro_vae" + "".join(f".{p}" for p in path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(ROOT.rglob("*.py"))
}
LEAVES = {
    *("errors", "arguments", "callers", "device", "extras", "frames", "heap", "interrupts"),
    *(
        "layouts",
        "names",
        "progress",
        "recording",
        "scan",
        "signatures",
        "stacks",
        "threads",
        "torch_private",
        "words",
        "_version",
    ),
}
# What each room may import besides itself and the leaves; "inference" has rooms of its own.
ALLOWED = {
    "errors": set(),
    "arguments": set(),
    "callers": set(),
    "device": set(),
    "extras": set(),
    "frames": set(),
    "heap": set(),
    "interrupts": set(),
    "layouts": set(),
    "names": set(),
    "progress": set(),
    "recording": set(),
    "scan": set(),
    "signatures": set(),
    "stacks": set(),
    "threads": set(),
    "torch_private": set(),
    "words": set(),
    "_version": set(),
    "nn": set(),
    "distributions": {"nn"},
    "conditionals": {"distributions", "nn"},
    "models": {"conditionals", "distributions", "nn"},
    "program": set(),
    "inference.sampling": set(),
    "inference.graphs": {"program", "inference.sampling"},
    "inference.posterior": {"program", "inference.sampling", "inference.graphs", "plots"},
    "inference.objectives": {"program", "inference.sampling", "inference.posterior"},
    "storage": {"program", "models"},
    "training": {
        "program",
        "storage",
        "inference.objectives",
        "inference.graphs",
        "inference.sampling",
        "inference.posterior",
        "plots",
    },
    "evaluation": {
        "plots",
        "program",
        "training",
        "inference.objectives",
        "inference.posterior",
        "inference.sampling",
        "inference.graphs",
    },
    "data": {"storage"},
    "plots": {"storage"},
}


@functools.cache
def parsed(module):
    """Return the tree of a module and its nodes, each of which several tests look at."""
    tree = ast.parse(MODULES[module].read_text())
    return tree, list(ast.walk(tree))


@pytest.fixture(scope="module", autouse=True)
def _forget():
    """Keep no trees, of many objects, beyond these tests."""
    yield
    parsed.cache_clear()


LONGEST_FUNCTION = 60  # lines of code: docstring, blank lines and comments do not count


def part(module):
    """Return the room of a module: pyro_vae.program.densities.terms is in program."""
    _, *rest = module.removesuffix(".__init__").split(".")
    if rest[:1] == ["inference"]:
        return ".".join(rest[:2])
    return rest[0] if rest else ""


@functools.cache
def imports(module, *, lazy=True):
    """Return the package's modules that a module imports; with those inside functions or not."""
    tree, nodes = parsed(module)
    found = set()
    nodes = nodes if lazy else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                is_package = MODULES[module].name == "__init__.py"
                parents = module.removesuffix(".__init__").split(".")
                keep = len(parents) - node.level + is_package
                base = ".".join([*parents[:keep], *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return {name for name in found if name.split(".")[0] == "pyro_vae"}


def known(name):
    """Return the module that an imported name lies in."""
    while name and name not in MODULES and f"{name}.__init__" not in MODULES:
        name = name.rpartition(".")[0]
    return name


TOP = ("pyro_vae.__init__", "pyro_vae.__main__")  # with cli: they import everything
CHECKED = [m for m in MODULES if m not in TOP and part(m) != "cli"]


@pytest.mark.parametrize("module", CHECKED)
def test_imports_point_one_way(module):
    here = part(module)
    if here == "inference":  # its docstring alone
        assert not imports(module)
        return
    assert here in ALLOWED, f"{module} belongs to no part of the house"
    for name in imports(module):
        there = part(known(name))
        if there in ("", here):
            continue
        assert there in ALLOWED[here] | LEAVES, f"{module} imports {name}"


def test_nobody_imports_the_command_line():
    for module in MODULES:
        if module != "pyro_vae.__main__" and part(module) != "cli":
            assert not any(part(known(n)) == "cli" for n in imports(module)), module


def test_no_cycle():
    graph = {
        m: {known(n) for n in imports(m, lazy=False)} & set(MODULES) - {m}
        for m in MODULES
        if not m.endswith("__init__")
    }
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path, module])
        if module in done:
            return
        path.append(module)
        for other in graph.get(module, ()):
            visit(other)
        path.pop()
        done.add(module)

    for module in graph:
        visit(module)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_runs_foreign_code(module):
    banned = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for node in parsed(module)[1]:
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & banned
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.split(".")[0] not in banned
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "__import__"), called
            if called == "torch.load":  # a file that the user names: tensors alone
                assert module == "pyro_vae.data.array_files"
                assert "weights_only=True" in ast.unparse(node)
            assert called not in ("torch.save", "pyro.clear_param_store"), called
            assert not called.endswith(("param_store.load", "load_module")), called
            pickles = [k for k in node.keywords if k.arg == "allow_pickle"]
            assert all(ast.unparse(k.value) == "False" for k in pickles)


@pytest.mark.parametrize("module", [m for m in MODULES if MODULES[m].read_text().strip()])
def test_every_module_is_documented_and_its_functions_are_small(module):
    text = MODULES[module].read_text()
    tree, nodes = parsed(module)
    if not module.endswith(("_version", "__init__", "__main__")):
        assert ast.get_docstring(tree), f"{module} has no docstring"
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = lines_of_code(node)
            assert lines <= LONGEST_FUNCTION, f"{module}.{node.name} has {lines} lines of code"
    assert not re.search(r"[\"'`](/[a-z][a-z0-9_.]+){2,}", text), "an absolute path"
    assert MODULES[module].name not in ("utils.py", "base.py")


def lines_of_code(function):
    """Count the lines of a function's statements: no signature, docstring, comment or blank."""
    lines = set()
    for statement in function.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue
        lines |= {
            line
            for node in ast.walk(statement)
            if hasattr(node, "lineno")
            for line in (node.lineno, node.end_lineno)
        }
    return len(lines)


def test_no_two_files_of_one_name():
    names = [path.name for path in MODULES.values() if path.name != "__init__.py"]
    assert not {name for name in names if names.count(name) > 1}


def test_inference_has_four_rooms():
    rooms = {path.relative_to(ROOT).parts[1] for path in (ROOT / "inference").rglob("*.py")}
    assert rooms == {"__init__.py", "objectives", "sampling", "posterior", "graphs"}


def run(code):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout


def test_importing_changes_nothing():
    """In a fresh process: no dtype, random state, flag or parameter moves; nothing heavy comes.

    A figure is drawn without pyplot, which would choose a backend for the whole process.
    Nor does a run with its log: warning filters, environment, loggers that speak, random states.
    """
    out = run(
        "import logging, os, random, sys, tempfile, warnings, numpy, torch, pyro\n"
        "from torch.distributions import Distribution\n"
        "from pyro.distributions import Normal\n"
        "def look(): return (torch.get_default_dtype(), torch.get_rng_state().sum().item(),\n"
        "    torch.initial_seed(), Distribution._validate_args, Normal._validate_args,\n"
        "    len(pyro.get_param_store()), pyro.settings.get(), torch.get_num_threads(),\n"
        "    random.getstate(), str(numpy.random.get_state()), torch.is_grad_enabled(),\n"
        "    torch.get_default_device(), torch.are_deterministic_algorithms_enabled(),\n"
        "    list(warnings.filters), dict(os.environ), logging.root.level,\n"
        "    logging.root.handlers[:],\n"
        "    [name for name, log in logging.root.manager.loggerDict.items()\n"
        "     if getattr(log, 'handlers', []) or getattr(log, 'level', 0)])\n"
        "before = look()\n"
        "import pyro_vae\n"
        "assert look() == before\n"
        "heavy = ('lightning_fabric', 'tensorboard', 'sklearn', 'pooch', 'matplotlib',\n"
        "    'torch.utils.tensorboard', 'jsonargparse', 'zuko', 'torch._inductor')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "import io\n"
        "pictures = pyro_vae.plots.samples(torch.zeros(2, 4, 4))\n"
        "pictures.savefig(io.BytesIO(), format='png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "program, x = pyro_vae.models.VAE(6, 2, (4,)), torch.eye(6)\n"
        "pyro_vae.elbo(program, x), pyro_vae.log_likelihood(program, x, num_particles=3)\n"
        "assert 'torch._dynamo' not in sys.modules, 'a verb imports the compiler: a second'\n"
        "before = look()\n"
        "out = tempfile.TemporaryDirectory()\n"
        "pyro_vae.fit(program, x, epochs=2, valid=x, out=out.name, progress=False)\n"
        "pyro_vae.encode(program, x), pyro_vae.reconstruct(program, x, mean=True)\n"
        "pyro_vae.infer(program, x), pyro_vae.interpolate(program, x, x)\n"
        "assert look() == before, [(a, b) for a, b in zip(before, look()) if a != b]\n"
    )
    assert out.strip() == "[]"


@pytest.mark.slow
def test_importing_costs_little_more_than_pyro():
    """CPU time beyond that of Pyro in the same fresh process, in one of three.

    As an installed package costs: its bytecode is there. Compiling it costs twice as much.
    """
    code = (
        "import time, pyro; of_pyro = time.process_time(); import pyro_vae; "
        "print(time.process_time() / of_pyro)"
    )
    assert any(float(run(code)) <= 1.2 for _ in range(3))  # the first may write bytecode


def test_the_public_names_exist():
    assert all(hasattr(pyro_vae, name) for name in pyro_vae.__all__)


# Of these there may be one: `counted` says what it is called.
MAYBE_ONE = "draws chains data rows units words cells classes categories samples lines columns"


def test_a_number_of_things_agrees_with_its_noun():
    """No text begins, or goes on after "got", a comma, a colon or a bracket, by `{number} rows`."""
    nouns = "|".join([*MAYBE_ONE.split(), "documents", "globals"])
    found = []
    for module, path in MODULES.items():
        texts = [node for node in parsed(module)[1] if type(node) is ast.JoinedStr]
        for text in texts:
            parts = [
                "\0" if isinstance(p, ast.FormattedValue) else str(p.value) for p in text.values
            ]
            alone = re.findall(rf"(?:^|got |[,:(] ?)\0 (?:{nouns})\b.*", "".join(parts))
            found += [f"{path.name}:{text.lineno}: {each}" for each in alone]
    # Of data without which nothing is told there are two; and a model draws counts.
    more = (" data tell", " data of ", " draws counts")
    found = [each for each in found if not any(words in each for words in more)]
    assert not found, "\n".join(found)
    said = [counted(n, *noun) for noun in (["draw"], ["datum", "data"], ["class"]) for n in (1, 0)]
    assert said == ["1 draw", "0 draws", "1 datum", "0 data", "1 class", "0 classes"]
    assert counted(2, "category") == "2 categories" and counted("no", "row") == "no rows"
