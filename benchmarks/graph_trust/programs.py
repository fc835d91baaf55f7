"""Every subject: made to fool, the battery of the tests, shapes of publications, publications."""

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import pyro_vae as pv
from benchmarks.graph_trust.fooling import FOOLING
from benchmarks.graph_trust.subject import Subject

TESTS = Path(__file__).parents[2] / "tests"
N = 40


def fooling() -> dict[str, Subject]:
    """Return the programs that were made to fool a tracer."""
    return {f"fooling/{name}": subject for name, subject in FOOLING.items()}


def battery() -> dict[str, Subject]:
    """Return the programs of the contract battery of the tests."""
    cases = of_the_tests("programs").CASES
    return {
        f"battery/{name}": Subject(case.build, lambda case=case: _real(case.data(N + 2)))
        for name, case in cases.items()
    }


def shapes() -> dict[str, Subject]:
    """Return the programs of the tests that have the shapes of publications."""
    pairs = of_the_tests("programs_published").PAIRS
    return {
        f"shapes/{name}": replace(_subject(maker), dtype=torch.float32)
        for name, maker in pairs.items()
    }


def gallery(source: Path) -> dict[str, Subject]:
    """Return the published programs that lie in a folder of checkouts."""
    from benchmarks.gallery import loading
    from benchmarks.gallery.programs import ROWS

    def make(row: Any) -> Callable[[], Any]:
        def build() -> Any:
            _forget(source)
            return row.build(source / row.path)

        return build

    return {
        f"gallery/{name}": replace(_subject(make(row)), dtype=torch.float32, source=source)
        for name, row in ROWS.items()
        if (source / row.path).exists() and loading.installed([row.needs] if row.needs else [])
    }


def _forget(source: Path) -> None:
    """Forget the modules of publications: two repositories may each have one of the same name."""
    folder = str(source)
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(folder):
            del sys.modules[name]
    sys.path[:] = [path for path in sys.path if not path.startswith(folder)]


def _subject(make: Callable[[], Any]) -> Subject:
    """Return the subject of a maker of model, guide and data; all rows are one batch."""
    held: list[Any] = []  # the data belong to the program that is built just before them

    def build() -> pv.Program:
        pyro.clear_param_store()
        held[:] = [make()]
        found = held[0]
        return pv.Program(found.model, found.guide, **found.options)

    def data() -> Any:
        return _real(held[0].data)

    def options(program: Any) -> Mapping[str, Any]:
        made = getattr(held[0], "objective", None)
        objective = None if made is None else made()  # of Pyro's own losses none can be traced
        return {"objective": objective, "batch_size": max(2, held[0].rows)}

    return Subject(build, data, options, epochs=52)


def _real(data: Any) -> Any:
    """Return data whose real numbers have the default dtype."""
    if isinstance(data, Tensor):
        return data.to(torch.get_default_dtype()) if data.is_floating_point() else data
    if isinstance(data, Mapping):
        return {name: _real(value) for name, value in data.items()}
    if isinstance(data, PackedSequence):
        return data.to(torch.get_default_dtype())
    return tuple(_real(value) for value in data) if isinstance(data, tuple) else data


def of_the_tests(name: str) -> Any:
    """Return a module of the tests."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    return importlib.import_module(name)
