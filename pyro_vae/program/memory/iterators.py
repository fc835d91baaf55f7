"""Iterators that a program draws on: what a look has drawn comes once more."""

import copy
import gc
import inspect
import io
import itertools
import math
import queue
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import queues
from multiprocessing.connection import Connection
from operator import is_, length_hint
from types import (
    BuiltinMethodType,
    FunctionType,
    GeneratorType,
    MethodType,
    MethodWrapperType,
    TracebackType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.callers import of_user
from pyro_vae.program.memory.uses import STATEMENTS, WEIGHTS
from pyro_vae.program.parameters.object_graph import installed
from pyro_vae.threads import another_runs

_MOST_PARTS = 1 << 12  # of one value
_TAKING = ("get", "recv")  # what takes from a queue or a pipe, others than what fills it
_QUEUES = (queue.Queue, queue.SimpleQueue, queues.Queue, queues.SimpleQueue, Connection)
_OF_ARRAYS = (np.flatiter, np.nditer)
_OTHER_CALLS, _OTHER_ORDER = "other calls", "another order"
_REASONS = {
    _OTHER_CALLS: "which does more than give values: runs that look at the program have moved it "
    "on, and nothing moves it back; keep a number",
    _OTHER_ORDER: "which shares a source with another one: runs that look at the program have "
    "drawn from both in another order than steps do; give each of them a source of its own",
    WEIGHTS: "which computes with weights: runs that look at the program have drawn ahead, and the "
    "next steps get what came of the weights of then; have it give numbers, and compute with "
    "weights in the model or the guide",
    STATEMENTS: "which holds pyro statements: runs that look at the program have drawn ahead, and "
    "the next steps lack these sites; write them in the model or the guide",
}
_NUMBERS = itertools.count()  # of draws
_Call = tuple[str, Any, Any]  # a method and its arguments


@dataclass
class Draw:
    """What has come of a call of an iterator.

    Arguments:
        value: What it has returned.
        error: What it has raised instead.
        trace: Where it has.
        again: Leaves all that the call has moved as the call has left it.
        uses: What it has used that is another at each call of a program.
        call: The method and its arguments.
        inner: Iterators in the value.
        number: Of the draw, among all.
    """

    value: Any = None
    error: Exception | None = None
    trace: TracebackType | None = None
    again: Callable[[], None] | None = None
    uses: Collection[str] = ()
    call: _Call = ("", (), {})
    inner: tuple["Record", ...] = ()
    number: float = math.inf

    @classmethod
    def of(cls, make: Callable[[], Any]) -> "Draw":
        """Return what comes of a function."""
        try:
            return cls(make())
        except Exception as error:
            return cls(error=error, trace=error.__traceback__)

    def give(self) -> Any:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error.with_traceback(self.trace)
        return self.value

    def repeat(self) -> Any:
        """Give it once more."""
        for each in self.inner:
            each.put(0)
        if self.again is not None:
            self.again()
        return self.give()


class Record:
    """What looks have drawn from an iterator, which nothing moves back.

    Inside looks it keeps what the source gives, so that these can begin anew; outside, it gives
    what is left of that first. With a value comes all that the source has moved to make it: a
    count in an attribute of the program, or the one buffer that it fills again and again.

    Arguments:
        source: The iterator.
    """

    _drawing = False  # whether one of all, older than the look, draws inside a look

    def __init__(self, source: Any) -> None:
        self.source, self.place, self.kept = source, 0, True
        self.stepped = False  # whether others than looks have drawn
        self._older = False  # than the look that runs: one made inside a look ends with it
        self._looks = 0  # that go on, one inside another
        self.beside: tuple[Record, ...] = ()  # those that draw on one source with it
        self._draws: deque[Draw] = deque()
        self._reasons: set[str] = set()  # to warn
        # Makes a draw, and notes what that moves and uses; set by whoever puts it back.
        self.watched: Callable[[Callable[[], Any]], Draw] = Draw.of

    @property
    def ahead(self) -> int:
        """How much it holds that the source has given and nobody has drawn."""
        return len(self._draws) - self.place

    @property
    def idle(self) -> bool:
        """Whether nothing is held of its source, and no look goes on that may draw."""
        return not any(each._draws or each._looks for each in (self, *self.beside))

    @property
    def number(self) -> float:
        """The number of the draw that it gives next."""
        return self._draws[self.place].number if self.ahead else math.inf

    @property
    def name(self) -> str:
        """The name of a generator, or the kind of an iterator."""
        return str(getattr(self.source, "__name__", type(self.source).__name__))

    def drawn(self, name: str, args: Any, kwargs: Any) -> Any:
        """Return what a method of the source gives, or has given to a look."""
        make = partial(getattr(self.source, name), *args, **kwargs)
        fills = isinstance(self.source, _QUEUES) and not name.startswith(_TAKING)
        if fills and another_runs():  # a thread of the program's
            return make()
        self.stepped = self.stepped or not self.kept
        if self.kept and Record._drawing:  # what another iterator draws has gone into its values
            return make()
        if self.ahead and not _alike((name, args, kwargs), self._draws[self.place].call):
            self._warn_of(_OTHER_CALLS)
            while self.ahead:
                self._draws.pop()
        if not self.kept and any(each.number < self.number for each in self.beside):
            self._warn_of(_OTHER_ORDER)
        if self.ahead:
            draw = self._draws[self.place]
            self._move_on()
            return draw.repeat()
        if not self.kept:
            return make()
        call, number = (name, _copied(args), _copied(kwargs)), next(_NUMBERS)
        draw = replace(self._noted(make), call=call, number=number)
        self._draws.append(draw)
        self._move_on()
        return draw.give()

    def _move_on(self) -> None:
        if self.kept:
            self.place += 1
        else:
            self._draws.popleft()

    def _noted(self, make: Callable[[], Any]) -> Draw:
        if isinstance(self.source, _QUEUES):  # moves nothing else; other threads may, meanwhile
            return Draw.of(make)
        before, Record._drawing = Record._drawing, Record._drawing or self._older
        try:
            draw = self.watched(make)
        finally:
            Record._drawing = before
        if draw.uses:
            self._warn_of(STATEMENTS if STATEMENTS in draw.uses else WEIGHTS)
        if draw.value is self.source:
            return draw
        known: dict[int, Retold] = {}
        value = exchanged(draw.value, lambda each: stand_in(each, known))
        inner = tuple(record_of(each) for each in known.values())
        for each in inner:
            each.watched = self.watched
        return replace(draw, value=value, inner=inner)

    def twin(self) -> "Record":
        """Return one that stands where this one does, and draws for itself."""
        other = Record(copy.copy(self.source))
        other._draws.extend(list(self._draws)[self.place :])
        other.kept = False
        return other

    def __getstate__(self) -> dict[str, Any]:
        ahead = [Draw(each.value, each.error, call=each.call) for each in self._draws]
        return {**vars(self), "watched": Draw.of, "_draws": deque(ahead), "beside": ()}

    def copy(self) -> int:
        """Return how far it is."""
        return self.place

    def same(self, place: int) -> bool:
        """Return whether it is there still."""
        return self.place == place

    def put(self, place: int) -> None:
        """Go back to a place."""
        self.place = place

    def hold(self) -> None:
        """Keep what is given from now on."""
        self.kept = self._older = True
        self._looks += 1
        for inner in self._inner() if self._looks == 1 else ():
            inner.hold()

    def let_go(self) -> None:
        """Give what lies ahead, and keep nothing of it, where no look goes on around."""
        self._looks = max(0, self._looks - 1)
        if self._looks:
            return
        for _ in range(self.place):
            self._draws.popleft()
        self.place, self.kept = 0, False
        for inner in self._inner():
            inner.put(0)
            inner.let_go()

    def _inner(self) -> list["Record"]:
        return [inner for draw in self._draws for inner in draw.inner]

    def _warn_of(self, reason: str) -> None:
        self._reasons.add(reason)
        if not self.kept:  # looks are silent, in part
            self.tell()

    def tell(self) -> None:
        """Warn of what looks have drawn and steps will lack."""
        while self._reasons:
            warnings.warn(
                f"the program draws on an iterator, {self.name}, {_REASONS[self._reasons.pop()]}",
                stacklevel=of_user(),
            )


class Retold:
    """Stands in the place of an iterator.

    Its own names must be none that iterators have: a file has a name, and tells where it is.

    Arguments:
        record: What it gives.
    """

    def __init__(self, record: Record) -> None:
        self._record = record

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._record.source)  # which a program may ask for

    def __reduce__(self) -> tuple[Any, ...]:
        return Retold, (self._record,)

    def __iter__(self) -> "Retold":
        return self

    def __next__(self) -> Any:
        return self._drawn("__next__")

    def __getitem__(self, key: Any) -> Any:
        return self._drawn("__getitem__", key)

    def _drawn(self, name: str, *args: Any, **kwargs: Any) -> Any:
        value = self._record.drawn(name, args, kwargs)
        return self if value is self._record.source else value

    def __copy__(self) -> "Retold":
        return Retold(self._record.twin())

    def __len__(self) -> int:
        return len(self._record.source)

    def __bool__(self) -> bool:
        return True  # as an iterator's, though it may have a length

    def __length_hint__(self) -> int:
        return self._record.ahead + length_hint(self._record.source, 1)

    def __getattr__(self, name: str) -> Any:
        hidden = name[:2] == "__" and name not in ("__name__", "__qualname__")
        if hidden or name == "_record":  # asked for by copies, say
            raise AttributeError(name)
        source = self._record.source
        value = getattr(source, name)
        if callable(value) and getattr(value, "__self__", None) is source:
            return _Method(self, name)
        # A number tells of what has been drawn: of the draw that it was asked after.
        return self._drawn("__getattribute__", name) if type(value) in (int, float) else value


class _Method:
    """A method of what stands in the place of an iterator: it has the names of any method.

    Arguments:
        of: What it is of.
        name: Of the iterator's method.
    """

    def __init__(self, of: Retold, name: str) -> None:
        self.__self__, self.__name__ = of, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__self__._drawn(self.__name__, *args, **kwargs)


_METHODS = (MethodWrapperType, MethodType, BuiltinMethodType, _Method)


def _alike(one: Any, two: Any) -> bool:
    """Return whether two calls, or arguments, are the same."""
    try:
        if isinstance(one, tuple | list):
            return len(one) == len(two) and all(map(_alike, one, two))
        if isinstance(one, dict):
            return one.keys() == two.keys() and all(_alike(one[k], two[k]) for k in one)
        if isinstance(one, BaseException):
            return type(one) is type(two) and _alike(one.args, two.args)
        if isinstance(one, Tensor):
            return torch.equal(one, two)
        if isinstance(one, np.ndarray):
            return np.array_equal(one, two)
        return bool(one == two)
    except Exception:  # of two kinds, and whatever a user's class does
        return False


def _copied(value: Any) -> Any:
    """Return arguments of a call as they are now: the next may write to them."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (tuple, list):
        return type(value)(map(_copied, value))
    return {k: _copied(v) for k, v in value.items()} if type(value) is dict else value


def parts_of(value: Any) -> Iterator[Any]:
    """Yield a value, and what it holds in containers of Python and in objects of a user's class."""
    waiting, met = [value], {id(value)}
    while waiting:
        value = waiting.pop()
        yield value
        inside = [each for each in _inside(value) if id(each) not in met]
        met |= set(map(id, inside))
        waiting += inside if len(met) < _MOST_PARTS else []


def keeps(value: Any) -> bool:
    """Return whether a value may hold others later: a container, or an object, but no network."""
    return isinstance(value, dict | list | set | deque) or _is_own(value)


def _is_own(value: Any) -> bool:
    kind = type(value)
    own = not installed(kind.__module__) and isinstance(getattr(value, "__dict__", None), dict)
    return own and not issubclass(kind, nn.Module | type) and not callable(value)


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | deque):
        return list(value)
    return list(vars(value).values()) if _is_own(value) else []


def exchanged(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a value with what a function makes of it, of what a tuple holds, or a method is of.

    The same value where there is nothing to change.
    """
    if issubclass(type(value), tuple) or type(value) is frozenset:
        items = tuple(exchanged(item, change) for item in value)
        return value if all(map(is_, items, value)) else _made_of(items, value)
    if issubclass(type(value), _METHODS):  # isinstance asks the object, as a proxy of nothing
        of = change(value.__self__)
        return value if of is value.__self__ else getattr(of, value.__name__)
    return change(value)


def _made_of(items: tuple[Any, ...], like: Any) -> Any:
    """Return a tuple of a class, whatever its constructor takes, or a frozen set, of items."""
    made = (frozenset if type(like) is frozenset else tuple).__new__(type(like), items)
    if own := getattr(like, "__dict__", None):
        vars(made).update(own)
    return made


def stand_in(value: Any, known: dict[int, Retold]) -> Any:
    """Return what stands in the place of an iterator, and anything else as it is.

    Arguments:
        value: Any.
        known: What has been made so far, by the identity of the source.
    """
    return known.setdefault(id(value), Retold(Record(value))) if _is_iterator(value) else value


def stand_ins(values: Iterable[Any]) -> list[Retold]:
    """Return what would stand in the places of the iterators among some values."""
    known: dict[int, Retold] = {}
    for value in values:
        exchanged(value, lambda each: stand_in(each, known))
    return list(known.values())


def record_of(value: Retold) -> Record:
    """Return what stands behind what stands in the place of an iterator."""
    return value._record


def tie(records: list[Record]) -> None:
    """Note which iterators draw on one source: the order of all their draws counts."""
    homes: dict[int, Record] = {id(each.source): each for each in records}
    for record in records:
        for inner in _sources(record.source):
            other = homes.setdefault(id(inner), record)
            if other is not record:
                all_ = {id(r): r for r in (record, other, *record.beside, *other.beside)}.values()
                for each in all_:
                    each.beside = tuple(r for r in all_ if r is not each)


def _sources(iterator: Any) -> list[Any]:
    """Return the iterators that an iterator draws on, as far as it holds them itself."""
    met, waiting = {id(iterator)}, [iterator]
    found: list[Any] = []
    while waiting and len(met) < _MOST_PARTS:
        inside = _held(waiting.pop())
        new = [i for i in inside if isinstance(i, tuple | FunctionType) or _draws(i)]
        new = list({id(i): i for i in new if id(i) not in met}.values())
        met |= set(map(id, new))
        waiting += new
        found += filter(_draws, new)
    return found


def _draws(value: Any) -> bool:
    return hasattr(type(value), "__next__")


def _held(value: Any) -> Iterable[Any]:
    if isinstance(value, GeneratorType):
        return inspect.getgeneratorlocals(value).values()
    if isinstance(value, FunctionType):
        return [each for cell in value.__closure__ or () for each in gc.get_referents(cell)]
    return gc.get_referents(value)


def source_of(value: Any) -> Any:
    """Return the iterator of one that stands in its place and holds nothing of it any more."""
    return value._record.source if type(value) is Retold and value._record.idle else value


def _is_iterator(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, _QUEUES) or kind in _OF_ARRAYS:
        return True
    plain = hasattr(kind, "__next__") and not hasattr(kind, "__getitem__")
    if not plain or not installed(kind.__module__):
        return False
    return not _is_written_to(value) and length_hint(value, 1) > 0


def _is_written_to(value: Any) -> bool:
    """Return whether a value is a file that is not read, or one in memory."""
    if not isinstance(value, io.IOBase):
        return False
    in_memory = isinstance(value, io.StringIO | io.BytesIO)
    return value.closed or in_memory or (value.writable() and not value.readable())
