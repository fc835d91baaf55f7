"""Tensors among the arguments that are no rows, where their lengths alone do not say so."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import combinations
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyro_vae.errors import DataError
from pyro_vae.program.batches.batch import (
    Batch,
    Form,
    named_arguments,
    num_rows,
    rows_of,
    under_handlers,
)
from pyro_vae.program.checks import is_meta
from pyro_vae.program.handlers import observes, sample_sites
from pyro_vae.program.looks.contrasts import Contrasts
from pyro_vae.program.looks.cuts import Change, Pair, changes_beside, few_of

Places = tuple[int | str, ...]  # positions, or names
Path = tuple[Any, ...]  # of an argument in containers: its own name, then keys
Trying = Callable[
    [Batch], AbstractContextManager[Callable[[Batch, int, Mapping[str, Tensor]], Pair]]
]
_MOST_AT_ONCE = 3  # constants as long as the data


class Constants:
    """Arguments that are taken out of the batch, and put back where the functions are called.

    Of tensors of several lengths those of the most common one are the rows; where that is a tie, or
    no plate of the model has this length, the plate around the data tells which are. One that is as
    long as the data is told by what cuts do to the numbers of the rows that stay.

    Arguments:
        named: Those that are as long as the data, where the user tells them.
    """

    def __init__(self, named: Sequence[str] | None = None) -> None:
        self._named = named
        self._known: tuple[Path, ...] = ()
        self._parameters: list[str] = []  # of the model
        self.unclear: str | None = None  # one that only a term outside the plate reads, or none
        self._contrasts = Contrasts()  # of the rows that told which there are
        self._values: tuple[Any, ...] = ()

    def told_more(self, batch: Batch) -> bool:
        """Return whether a batch may show constants that none before it has shown."""
        return self._contrasts.more_in(batch)

    def find(
        self,
        batch: Batch,
        model: Callable[..., Any],
        trace: Callable[[Batch], Trace],
        trying: Trying,
    ) -> bool:
        """Look for constants besides those that are known; return whether there are some.

        Arguments:
            batch: All arguments.
            model: Takes them.
            trace: Runs the pair, leaves nothing behind, and returns the trace of the model.
            trying: Yields what runs the pair on some rows at given latents (``Reader.trying``).

        Raises:
            DataError: The batch lacks one that the user has named.
        """
        known, values = self._known, self._values
        self._known, self._values = (), ()  # the functions take all arguments inside
        self._parameters = _parameters(model)
        paths = self._paths(batch)
        before = tuple(place for place, path in paths.items() if path in known)
        try:
            found = dict.fromkeys((*before, *self._of_other_lengths(batch, trace)))
            found |= dict.fromkeys(self._told_or_seen(batch, model, tuple(found), trying))
        finally:
            self._known, self._values = known, values
        self._contrasts.meet(batch)
        if set(found) <= set(before):
            return False
        self._known, self._values = tuple(p for place, p in paths.items() if place in found), ()
        return True

    def _told_or_seen(
        self, batch: Batch, model: Callable[..., Any], known: Places, trying: Trying
    ) -> Places:
        """Return constants as long as the data: those that the user names, or else that cuts show.

        Raises:
            DataError: The batch lacks one that the user has named.
        """
        names = _names(batch, model)
        if self._named is None:
            return self._of_equal_length(batch, known, names, trying)
        for name in self._named:
            if name not in names.values():
                raise DataError(
                    f"constants: got {name!r}, expected an argument of the model, one of "
                    f"{sorted(names.values())}"
                )
        return tuple(place for place, name in names.items() if name in self._named)

    def _paths(self, batch: Batch) -> dict[int | str, Path]:
        """Return where a user holds each argument, by its place: the same in any form of data."""
        if isinstance(batch, Mapping):
            return {name: (name,) for name in batch}
        form = _form_of(batch)
        if form is not None:
            return {place: self._path_of(*path) for place, path in enumerate(form.paths)}
        return {place: self._path_of(place) for place in range(len(_by_place(batch)))}

    def _path_of(self, first: Any, *rest: Any) -> Path:
        """Return a path that begins with the name of an argument, where it has one."""
        if isinstance(first, int) and first < len(self._parameters):
            return (self._parameters[first], *rest)
        return (first, *rest)

    def _of_other_lengths(self, batch: Batch, trace: Callable[[Batch], Trace]) -> Places:
        lengths = {place: rows_of(leaf) for place, leaf in _by_place(batch).items()}
        lengths = {place: rows for place, rows in lengths.items() if rows is not None}
        if len(set(lengths.values())) < 2:
            return ()
        try:
            plates = _plates_of_data(trace(batch))
        except DataError:
            return ()  # its reader says what is wrong
        fitting = plates & set(lengths.values())
        if len(fitting) != 1 or fitting == {_rows(batch)}:
            return ()
        return tuple(place for place, rows in lengths.items() if rows not in fitting)

    def _of_equal_length(
        self, batch: Batch, known: Places, names: Mapping[int | str, str], trying: Trying
    ) -> Places:
        """Return constants that are as long as the data: where they stay whole, cuts do not tell.

        Looked for where a cut of all arguments changes the numbers of the rows that stay, or cannot
        run; the fewest arguments are taken that bring them back. One that terms outside the plate
        alone read may be a constant, or rows that these sum.
        """
        rest = _without(batch, known)
        rows = _rows(rest)
        long = [
            place
            for place, leaf in _by_place(rest).items()
            if isinstance(leaf, Tensor) and rows_of(leaf) == rows
        ]
        if rows is None or rows < 2 or len(long) < 2 or is_meta(batch):
            return ()
        changed = _changes(batch, known, trying)
        if changed == set():
            return ()
        inside = changed is None or any(change.inside for change in changed)
        for count in range(1, min(len(long), _MOST_AT_ONCE + 1)):
            for places in combinations(long, count):
                left = _changes(batch, (*known, *places), trying)
                if (
                    left is None
                    or (changed is not None and left >= changed)
                    or any(each.inside for each in left)
                ):
                    continue
                if inside:
                    return places
                self.unclear = names.get(places[0], str(places[0]))
                return ()
        return ()

    def taken_out(self, batch: Batch) -> Batch:
        """Return a batch without the constants, which are kept for the functions.

        Raises:
            DataError: They are others than before: batches made with these are still about.
        """
        given = _by_place(batch)
        places = {path: place for place, path in self._paths(batch).items() if place in given}
        missing = [path for path in self._known if path not in places]
        if missing and _form_of(batch) is not None:
            raise DataError(
                f"argument {_shown(missing[0])!r}: got data that hold no such, expected it in all "
                "data of a program: it has no rows; give all data in one form"
            )
        if missing or not self._known:
            return batch
        values = tuple(given[places[path]] for path in self._known)
        for path, before, now in zip(self._known, self._values, values, strict=False):
            if not _equal(before, now):
                raise DataError(
                    f"argument {_shown(path)!r}: got other values than before, expected the same "
                    "in all data of a program: it has no rows, and none of them holds it; make a "
                    "program anew for it, pv.Program(model, guide), or give each row its own"
                )
        self._values = values
        return _without(batch, tuple(places[path] for path in self._known))

    def put_back(self, batch: Batch) -> Batch:
        """Return a batch as it was given: what ``taken_out`` undoes."""
        return _with(batch, self._by_place_of(batch)) if self._values else batch

    def _by_place_of(self, batch: Batch) -> dict[int | str, Any]:
        values = dict(zip(self._known, self._values, strict=True))
        if isinstance(batch, Mapping):
            return {name: value for (name, *_), value in values.items()}
        whole = batch if _form_of(batch) is not None else (*batch, *self._values)
        places = self._paths(whole).items()
        return {place: values[path] for place, path in places if path in values}

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of batches without the constants, for one that takes them."""
        if not self._known:
            return function

        @functools.wraps(function, updated=())  # a module has attributes
        def call(*args: Any, **kwargs: Any) -> Any:
            if kwargs and not args:
                return function(**_with(kwargs, self._by_place_of(kwargs)))
            return function(*_with(args, self._by_place_of(args)), **kwargs)

        parameters = list(inspect.signature(under_handlers(function)).parameters.values())
        known = {path[0] for path in self._known if len(path) == 1}
        kept = [p for i, p in enumerate(parameters) if not {i, p.name} & known]
        call.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
        return call


def _changes(batch: Batch, places: Places, trying: Trying) -> set[Change] | None:
    """Return what cuts change of the rows that stay, some arguments kept whole."""
    whole = {place: leaf for place, leaf in _by_place(batch).items() if place in places}
    rest = _without(batch, places)
    rows = _rows(rest)
    if rows is None:  # the others disagree
        return None
    few, cuts = few_of(rest, rows)
    with trying(_with(few, whole)) as run:
        found = changes_beside(
            lambda some, *more: run(_with(some, whole), num_rows(some), *more), few, cuts
        )
    return found


def _names(batch: Batch, model: Callable[..., Any]) -> dict[int | str, str]:
    """Return the names that the model's signature gives to the arguments, by place."""
    if isinstance(batch, Mapping):
        return {name: name for name in batch}
    arguments_ = _by_place(batch)
    places = tuple(leaf if isinstance(leaf, Form) else i for i, leaf in arguments_.items())
    try:
        named = named_arguments(model, places, {})
    except DataError:  # its reader says what is wrong
        return {}
    return {place: name for name, place in named.items() if isinstance(place, int)}


def _parameters(model: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(under_handlers(model)).parameters)


def _without(batch: Batch, places: Places) -> Batch:
    if not places:
        return batch
    rest = {place: leaf for place, leaf in _by_place(batch).items() if place not in places}
    return rest if isinstance(batch, Mapping) else tuple(rest.values())


def _with(batch: Batch, values: Mapping[int | str, Any]) -> Batch:
    """Return a batch with the constants in it: what ``_without`` undoes."""
    if isinstance(batch, Mapping):
        return {**batch, **values}
    return _inserted(batch, values) if isinstance(batch, tuple) else batch


def _inserted(args: tuple[Any, ...], values: Mapping[int | str, Any]) -> tuple[Any, ...]:
    rest = list(args)
    for place, value in values.items():  # in the order of the arguments
        if isinstance(place, int):
            rest.insert(place, value)
    return tuple(rest)


def _shown(path: Path) -> Any:
    return path[0] if len(path) == 1 else "".join(map(str, path))


def _form_of(batch: Batch) -> Form | None:
    last = batch[-1] if isinstance(batch, tuple) and batch else None
    return last if isinstance(last, Form) else None


def _by_place(batch: Batch) -> dict[int | str, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, tuple | list) and not isinstance(batch, PackedSequence):
        return dict(enumerate(batch))
    return {}


def _equal(one: Any, two: Any) -> bool:
    """Return whether two constants are one, or the same numbers."""
    if one is two:
        return True
    if not isinstance(one, Tensor) or not isinstance(two, Tensor):
        # Numbers and words; of other things, nobody knows what equal means.
        return isinstance(one, int | float | str) and type(one) is type(two) and one == two
    if one.shape != two.shape or not one.is_floating_point():
        return one.shape == two.shape and torch.equal(one, two.to(one))
    return torch.allclose(one, two.to(one), rtol=0.0, atol=0.0, equal_nan=True)


def _rows(batch: Batch) -> int | None:
    try:
        return num_rows(batch)
    except DataError:
        return None


def _plates_of_data(model: Trace) -> set[int]:
    """Return the sizes of the plates that stand around every observed site."""
    sizes = [
        {frame.size for frame in site["cond_indep_stack"] if frame.vectorized}
        for _, site in sample_sites(model)
        if observes(site)
    ]
    return set.intersection(*sizes) if sizes else set()
