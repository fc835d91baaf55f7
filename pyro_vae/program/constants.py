"""Tensors among the arguments that are no rows, where their lengths alone do not say so."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import combinations
from typing import Any, NamedTuple

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyro_vae.errors import DataError, ProgramError
from pyro_vae.program.batch import Batch, Form, named_arguments, num_rows, rows_of, under_handlers
from pyro_vae.program.checks import is_meta
from pyro_vae.program.cuts import Change, Pair, changes_beside, few_of
from pyro_vae.program.handlers import observes, sample_sites

Places = tuple[int | str, ...]  # positions, or names
Trying = Callable[
    [Batch], AbstractContextManager[Callable[[Batch, int, Mapping[str, Tensor]], Pair]]
]
_MOST_AT_ONCE = 3  # constants as long as the data


class _Place(NamedTuple):
    """Where an argument stands in data that are a tuple, and in those that are a dict."""

    position: int | None
    name: str | None

    def of(self, batch: Batch) -> Any:
        return self.name if isinstance(batch, Mapping) else self.position


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
        self._known: tuple[_Place, ...] = ()
        self.unclear: str | None = None  # an argument that only a term outside the plate reads
        self._values: tuple[Any, ...] = ()

    @property
    def found(self) -> bool:
        """Whether there are any."""
        return bool(self._known)

    def find(
        self,
        batch: Batch,
        model: Callable[..., Any],
        trace: Callable[[Batch], Trace],
        trying: Trying,
    ) -> bool:
        """Look for constants; return whether there are some.

        Arguments:
            batch: All arguments.
            model: Takes them.
            trace: Runs the pair, leaves nothing behind, and returns the trace of the model.
            trying: Yields what runs the pair on some rows at given latents (``Reader.trying``).

        Raises:
            DataError: The batch lacks one that the user has named.
        """
        found = self._of_other_lengths(batch, trace)
        names = _names(batch, model)
        if self._named is None:
            found += self._of_equal_length(batch, found, names, trying)
        else:
            for name in self._named:
                if name not in names.values():
                    raise DataError(
                        f"constants: got {name!r}, expected an argument of the model, one of "
                        f"{sorted(names.values())}"
                    )
            found += tuple(place for place, name in names.items() if name in self._named)
        order = {name: place for place, name in enumerate(_parameters(model))}
        self._known = tuple(
            _Place(place, names.get(place))
            if isinstance(place, int)
            else _Place(order.get(place), place)
            for place in _by_place(batch)
            if place in found
        )
        return self.found

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

    def require_clear(self) -> None:
        """Refuse to cut an argument that may be a constant.

        Raises:
            ProgramError: Only a term outside the plate of the data reads it.
        """
        if self.unclear is not None:
            raise ProgramError(
                f"argument {self.unclear!r} is as long as the data, and only terms outside their "
                "plate read it: in minibatches they would see a part of it; say that it is a "
                f"constant, Program(..., constants=[{self.unclear!r}]), or that it has rows which "
                "may be cut, Program(..., constants=[]), or train on all data at once"
            )

    def taken_out(self, batch: Batch) -> Batch:
        """Return a batch without the constants, which are kept for the functions.

        Raises:
            DataError: They are others than before: batches made with these are still about.
        """
        given, places = _by_place(batch), [place.of(batch) for place in self._known]
        if not places or not set(places) <= set(given):
            return batch
        values = tuple(given[place] for place in places)
        for place, before, now in zip(places, self._values, values, strict=False):
            if not _equal(before, now):
                raise DataError(
                    f"argument {place!r}: got other values than before, expected the same in all "
                    "data of a program: it has no rows, and none of them holds it; make a program "
                    "anew for it, pv.Program(model, guide), or give each row its own"
                )
        self._values = values
        return _without(batch, tuple(places))

    def put_back(self, batch: Batch) -> Batch:
        """Return a batch as it was given: what ``taken_out`` undoes."""
        return _with(batch, self._by_place_of(batch)) if self._values else batch

    def _by_place_of(self, batch: Batch) -> dict[int | str, Any]:
        places = (place.of(batch) for place in self._known)
        return dict(
            sorted(zip(places, self._values, strict=True), key=lambda pair: str(pair[0]).zfill(9))
        )

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of batches without the constants, for one that takes them."""
        if not self._known:
            return function

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if kwargs and not args:
                return function(**_with(kwargs, self._by_place_of(kwargs)))
            return function(*_with(args, self._by_place_of(args)), **kwargs)

        parameters = list(inspect.signature(under_handlers(function)).parameters.values())
        known = {key for place in self._known for key in (place.position, place.name)}
        kept = [p for i, p in enumerate(parameters) if not {i, p.name} & known]
        call.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
        return call


def _changes(batch: Batch, places: Places, trying: Trying) -> set[Change] | None:
    """Return what cuts change of the rows that stay, some arguments kept whole."""
    whole = {place: leaf for place, leaf in _by_place(batch).items() if place in places}
    rest = _without(batch, places)
    few, cuts = few_of(rest, num_rows(rest))
    with trying(batch) as run:
        found = changes_beside(
            lambda some, latents: run(_with(some, whole), num_rows(some), latents), few, cuts
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
