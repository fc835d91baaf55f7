"""Tensors among the arguments that are no rows, where their lengths alone do not say so."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyro_vae.errors import DataError
from pyro_vae.program.batch import Batch, num_rows, rows_of, under_handlers
from pyro_vae.program.handlers import observes, sample_sites


class Constants:
    """Arguments that are taken out of the batch, and put back where the functions are called.

    Of tensors of several lengths those of the most common one are the rows; where that is a tie, or
    no plate of the model has this length, the plate around the data tells which are.
    """

    def __init__(self) -> None:
        self._places: tuple[int | str, ...] = ()  # positions, or names
        self._values: dict[int | str, Any] = {}

    @property
    def found(self) -> bool:
        """Whether there are any."""
        return bool(self._places)

    def find(self, batch: Batch, trace: Callable[[Batch], Trace]) -> bool:
        """Look for constants among arguments of several lengths; return whether there are some.

        Arguments:
            batch: All arguments.
            trace: Runs the pair, leaves nothing behind, and returns the trace of the model.
        """
        lengths = {place: rows_of(leaf) for place, leaf in _by_place(batch).items()}
        lengths = {place: rows for place, rows in lengths.items() if rows is not None}
        if len(set(lengths.values())) < 2:
            return False
        try:
            plates = _plates_of_data(trace(batch))
        except DataError:
            return False  # its reader says what is wrong
        fitting = plates & set(lengths.values())
        if len(fitting) != 1 or fitting == {_rows(batch)}:
            return False
        self._places = tuple(place for place, rows in lengths.items() if rows not in fitting)
        return True

    def taken_out(self, batch: Batch) -> Batch:
        """Return a batch without the constants, which are kept for the functions.

        Raises:
            DataError: They are others than before: batches made with these are still about.
        """
        given = _by_place(batch)
        if not self._places or not set(self._places) <= set(given):
            return batch
        values = {place: given.pop(place) for place in self._places}
        for place, value in self._values.items():
            if not _equal(value, values[place]):
                raise DataError(
                    f"argument {place!r}: got other values than before, expected the same in all "
                    "data of a program: it has no rows, and none of them holds it; make a program "
                    "anew for it, pv.Program(model, guide), or give each row its own"
                )
        self._values = values
        return given if isinstance(batch, Mapping) else tuple(given.values())

    def put_back(self, batch: Batch) -> Batch:
        """Return a batch as it was given: what ``taken_out`` undoes."""
        if not self._values:
            return batch
        if isinstance(batch, Mapping):
            return {**batch, **self._values}
        return self._inserted(batch) if isinstance(batch, tuple) else batch

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of batches without the constants, for one that takes them."""
        if not self._places:
            return function

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            named = {
                place: value for place, value in self._values.items() if isinstance(place, str)
            }
            return function(*self._inserted(args), **kwargs, **named)

        parameters = list(inspect.signature(under_handlers(function)).parameters.values())
        kept = [p for i, p in enumerate(parameters) if not {i, p.name} & set(self._places)]
        call.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
        return call

    def _inserted(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        rest = list(args)
        for place, value in self._values.items():  # in the order of the arguments
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
    if one is two or not isinstance(one, Tensor) or not isinstance(two, Tensor):
        return one is two
    return one.shape == two.shape and torch.equal(one, two.to(one))


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
