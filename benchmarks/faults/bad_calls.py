"""Bad arguments at every public door: told in one sentence, or a fault.

Every public function, class and method is found by its signature, and each of its arguments gets
each value of `VALUES` in turn, the others good (`good_calls`). A call is told by an error of
`pyro_vae.errors` (or by a distribution's own constraints), or goes through, or is a fault: any
other error, more than `LIMIT` CPU seconds, or a tensor that is empty or NaN.
"""

import contextlib
import inspect
import io
import os
import signal
import tempfile
import traceback
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import pyro_vae as pv
from benchmarks.faults.good_calls import DOORS, GOOD, INNER, MADE, OF, RECORDS, Room
from benchmarks.faults.trials import Kind, Trial, Verdict

LIMIT = 20  # CPU seconds of one call
VOID = "a tensor that is empty or NaN"
MAPS = (
    "bounded",
    "output_bias",
    "adapt",
    "rows",
    "forward",
    "NoPrior.log_prob",
)  # of such tensors these give such

VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "no text": lambda: "",
    "text": lambda: "seven",
    "bytes": lambda: b"7",
    "-1": lambda: -1,
    "0": lambda: 0,
    "1.5": lambda: 1.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: -float("inf"),
    "huge": lambda: 2**70,
    "True": lambda: True,
    "complex": lambda: 1j,
    "[]": lambda: [],
    "()": lambda: (),
    "ragged": lambda: [[1], [1, 2]],
    "texts": lambda: ["a", "b"],
    "(0, -1)": lambda: (0, -1),
    "{}": dict,
    "dict": lambda: {"no": 1},
    "dict of texts": lambda: {"z": "seven"},
    "object": object,
    "class": lambda: type,
    "function": lambda: lambda *args, **kwargs: None,
    "spent": lambda: iter(()),
    "module": nn.Identity,
    "no rows": lambda: torch.zeros(0),
    "tensor ()": lambda: torch.tensor(2.0),
    "shape": lambda: torch.ones(3, 5, 7),
    "nans": lambda: torch.full((8, 6), torch.nan),
    "integers": lambda: torch.full((8, 6), 7),
    "complex tensor": lambda: torch.ones(8, 6, dtype=torch.complex64),
    "gradient": lambda: torch.ones(8, 6, requires_grad=True),
    "array of texts": lambda: np.array(["a", "b"]),
    "objects": lambda: np.array([object()] * 8),
}


@dataclass(frozen=True)
class Call:
    """A call with one bad argument, and what became of it."""

    name: str
    verdict: Verdict
    said: str


@dataclass(frozen=True)
class Door:
    """A public function, class or method.

    Arguments:
        name: As under ``pv``; a method's as ``Class.method``.
        function: What has the signature.
        owner: The class of a method that needs an instance.
    """

    name: str
    function: Any
    owner: str = ""

    def parameters(self) -> dict[str, inspect.Parameter]:
        """Return the named arguments, without ``self``."""
        skipped = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        found = inspect.signature(self.function).parameters
        named = {n: p for n, p in found.items() if p.kind not in skipped}
        return {n: p for n, p in named.items() if not (self.owner and n == "self")}

    def good(self, room: Room) -> dict[str, Any]:
        """Return the arguments of a call that goes through.

        Raises:
            KeyError: An argument that no table knows: a new door needs a row in `good_calls`.
        """
        own = OF.get(self.name, {})
        made = {}
        for name, parameter in self.parameters().items():
            if name in own:
                made[name] = own[name](room)
            elif parameter.default is parameter.empty:
                made[name] = GOOD[name](room)
        return made

    def bound(self, room: Room) -> Callable[..., Any]:
        """Return what is called: a method of an instance made anew, or the function."""
        if not self.owner:
            return self.function
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # short chains do not mix
            owner = instance(self.owner, room)
        method: Callable[..., Any] = getattr(owner, self.name.split(".")[-1])
        return method


def instance(owner: str, room: Room) -> Any:
    """Return an object of a public class."""
    if owner in MADE:
        return MADE[owner](room)
    door = next(door for door in doors() if door.name == owner)
    return door.function(**door.good(room))


def public(module: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(name, object)`` for what a module says is public, and its public modules."""
    names = getattr(module, "__all__", None) or [
        n for n, o in vars(module).items() if getattr(o, "__module__", "") == module.__name__
    ]
    for name in names:
        found = getattr(module, name)
        if isinstance(found, types.ModuleType):
            yield from public(found, f"{prefix}{name}.")
        elif callable(found) and not name.startswith("_"):
            yield prefix + name, found


def doors() -> list[Door]:
    """Return every public function, class and method of the library."""
    from pyro_vae.inference.posterior.datum_posterior import Amortised, LocalPosterior

    seen: dict[int, str] = {}
    found: list[Door] = []
    returned = [("Amortised", Amortised), ("LocalPosterior", LocalPosterior)]
    for name, what in [*public(pv), *returned]:
        own = getattr(what, "__module__", "").startswith("pyro_vae")
        error = isinstance(what, type) and issubclass(what, Exception)
        if not own or error or id(what) in seen or name in INNER:
            continue
        seen[id(what)] = name
        if name not in RECORDS and not getattr(what, "_is_protocol", False):
            found.append(Door(name, what))
        if isinstance(what, type):
            found += methods(name, what)
    return [door for door in found if door.parameters()]


def methods(name: str, owner: type) -> Iterator[Door]:
    """Yield the public methods that a class has from this library."""
    for short in dir(owner):
        raw = inspect.getattr_static(owner, short)
        function = getattr(raw, "__func__", raw)
        own = inspect.isfunction(function) and function.__module__.startswith("pyro_vae")
        full = f"{name}.{short}"
        inner = full in INNER or (short in INNER and not full.startswith(DOORS))
        if short.startswith("_") or not own or inner:
            continue
        if isinstance(raw, staticmethod | classmethod):
            yield Door(full, getattr(owner, short))
        else:
            yield Door(full, function, name)


class _Late(BaseException):
    """A call has taken more than `LIMIT` CPU seconds."""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise _Late(f"more than {LIMIT} CPU seconds")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcome(call: Callable[[], Any]) -> tuple[Verdict, str]:
    """Return what became of a call, and what was said."""
    quiet = io.StringIO()
    try:
        with (
            _limited(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
        ):
            warnings.simplefilter("ignore")
            result = call()
    except pv.errors.PyroVaeError as error:
        return "ours", str(error)
    except (Exception, _Late) as error:
        return ("ours" if _by_constraint(error) else "raw"), _where(error)
    return ("raw", VOID) if _is_void(result) else ("ok", "")


def _by_constraint(error: BaseException) -> bool:
    """Return whether a distribution's own validation speaks."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    own = "torch/distributions" in last or "pyro/distributions" in last
    return own and isinstance(error, ValueError)


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "pyro_vae" in f.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "call"
    return f"{type(error).__name__} at {place}: {str(error)[:120]}"


def _is_void(result: Any) -> bool:
    if isinstance(result, Mapping):
        return any(map(_is_void, result.values()))
    if not isinstance(result, Tensor) or result.dtype == torch.bool:
        return False
    return result.numel() == 0 or bool(result.isnan().any())


def bad_arguments(door: Door, values: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield ``(argument, name of a value)`` for what is bad at a door: no default, no flag."""
    for name, parameter in door.parameters().items():
        flag = parameter.annotation is bool or isinstance(parameter.default, bool)
        for value in values:
            if not ((value == "None" and parameter.default is None) or (value == "True" and flag)):
                yield name, value


def calls(door: Door, room: Room, pairs: Iterable[tuple[str, str]]) -> Iterator[Call]:
    """Call a door with one bad argument after the other."""
    good, bound = door.good(room), door.bound(room)
    for name, value in pairs:
        given = {**good, name: VALUES[value]()}
        what, said = outcome(lambda given=given: bound(**given))
        if said == VOID and door.name.endswith(MAPS):
            what = "ok"
        yield Call(f"{door.name}({name} = {value})", what, said)


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    """Work in a folder of its own: a word is a folder to `save`."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        try:
            yield
        finally:
            os.chdir(before)


def _trials(first: int, seed: int) -> Iterator[Trial]:
    with _elsewhere():
        yield from _of_doors(first)


def _of_doors(first: int) -> Iterator[Trial]:
    count = 0
    for door in doors():
        room = Room()  # a call that trains, or resets weights, is not felt at the next door
        pairs = list(bad_arguments(door, list(VALUES)))
        skipped = max(0, first - count)
        count += len(pairs)
        if skipped < len(pairs):
            for call in calls(door, room, pairs[skipped:]):
                yield Trial(door.name, call.verdict, f"{call.name}: {call.said}")


CALLS = Kind(
    name="calls",
    unit="calls with one bad argument",
    target=sum(len(list(bad_arguments(door, list(VALUES)))) for door in doors()),
    how="each argument of each public function, class and method gets each of the bad values, the "
    "others good; ours: an error of the library, or a distribution's own constraint; ok: the value "
    "serves; raw: another error, an empty or NaN tensor, or more than 20 CPU seconds",
    trials=_trials,
)
