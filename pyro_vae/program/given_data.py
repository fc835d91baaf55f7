"""What a user gives as data: flat tensors to all verbs, and back as the functions ask for it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vae.errors import DataError
from pyro_vae.program import checks
from pyro_vae.program.batches.adapt import adapted
from pyro_vae.program.batches.batch import (
    Batch,
    Part,
    Whole,
    datum_at,
    datum_moved,
    given_arguments,
    takes,
)
from pyro_vae.program.batches.listed_batches import joined, rows_of_numbers
from pyro_vae.program.batches.sparse_rows import SparseRows
from pyro_vae.program.batches.structure import Structure
from pyro_vae.program.handlers import scoring_data, without_data
from pyro_vae.program.looks.constants import Constants
from pyro_vae.program.parameters.modules import library_method
from pyro_vae.program.sites.whole import has_plate_of_rows

if TYPE_CHECKING:
    from pyro_vae.program.program import Program

Functions = tuple[Callable[..., Any], Callable[..., Any]]


class GivenData:
    """Reads the data of a program's user, in any form that its functions take.

    Arguments:
        program: Its functions, reader and examples.
        dim: The dimension of the tensors that counts the data.
        constants: Names of the arguments that are as long as the data, and are no rows.
        plate: Name of the plate that holds the data, where the user tells it.
    """

    def __init__(
        self, program: "Program", dim: int, constants: Sequence[str] | None, plate: str | None
    ) -> None:
        self._program, self._dim, self._told, self._plate = program, dim, constants, plate
        self.start_anew()

    def start_anew(self) -> None:
        """Find out anew which arguments the functions take."""
        self._structure, self._constants = Structure(), Constants(self._told)
        self._one_argument: dict[Any, bool] = {}  # by form, whether containers are one argument
        self._functions: Functions | None = None  # made of the program's, with the datum first

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the functions that are made of others: a copy makes them of its own."""
        return {**vars(self), "_functions": None}

    @property
    def functions(self) -> Functions:
        """The program's functions as ones of flat tensors with the datum first."""
        if self._functions is None:
            pair = self._program.model, without_data(self._program.guide)
            model, guide = map(self._structure.around, pair)
            around, dim = self._constants.around, self._dim
            self._functions = around(datum_moved(model, dim)), around(datum_moved(guide, dim))
        return self._functions

    def as_tensors(self, data: Any) -> Batch:
        """Return data as a batch that a transform has yet to make into what the program takes.

        Raises:
            DataError: An array that is no dense numeric one.
        """
        if isinstance(data, Part):  # of the program's own rows
            return Part(self.as_tensors(data.batch), data.rows.to(self._program.device))
        data = data.batch if isinstance(data, Whole) else data
        if isinstance(data, dict) and hasattr(data, "tocsr"):
            data = data.tocsr()  # a dok_matrix of scipy is a dict of its cells
        reads = library_method(self._program.source, "reads")
        data = data if reads is None else reads(data)
        if self._program.examples.offered:  # by a model of the library, of one array first of all
            rows = rows_of_numbers(data)
            data = data if rows is None else rows
        whole = self._as_one_argument(joined(data, self._program.model, self._runs_on))
        flat = self._structure.flattened(whole)
        batch = self._without_constants(self._adapted(flat))
        if self._program.examples.offered:
            return self._as_example(self._lone(batch))
        return self._program.reader.as_whole(batch)

    def unwrapped(self, batch: Any) -> Any:
        """Return what a loader's list of one tensor holds; the list, for functions that open it."""
        if not isinstance(batch, tuple | list) or len(batch) != 1:
            return batch
        whole = self._as_one_argument(batch)
        return batch[0] if whole is batch else whole

    def conform(self, batch: Batch) -> Batch:
        """Return a batch of tensors as the program takes it.

        Raises:
            DataError: Arguments that the program does not take.
        """
        examples, runs = self._program.examples, self._program.reader.runs
        if examples.conforming(batch):
            return batch
        if examples.offered:
            batch = self._lone(batch)
            checks.check_example(batch, examples.example(1))
        made = runs.as_taken(self._as_example(batch))
        if made is batch:
            examples.conforms(batch)
        return made

    @property
    def row_precision(self) -> torch.dtype | None:
        """Return the dtype to which rows are converted; None where the data come otherwise."""
        return None if self._dim else self._program.precision

    def as_given(self, batch: Batch) -> Batch:
        """Return a batch as a user gives it, its datum in the program's own dimension."""
        return self._structure.restored(datum_at(self._dim, self._constants.put_back(batch)))

    def _adapted(self, flat: Any) -> Batch:
        return adapted(flat, self._program.device, self._program.precision, self._dim)

    def _runs_on(self, data: Any) -> bool:
        """Return whether the functions score data in a form that may be meant otherwise."""
        flat = self._structure.flattened(data)
        with suppress(DataError):
            trace = self._program.reader.runs.trace_of_model
            seen = scoring_data(trace(self._adapted(flat)))  # which is not scored
            return bool(seen) and all(isinstance(site["value"], Tensor) for site in seen)
        return False

    def _as_one_argument(self, data: Any) -> Any:
        """Return a dict or a tuple as the one argument of functions that take it whole.

        As ``svi.step(batch)`` gives it to ``def model(batch)``: where it cannot be their arguments,
        and they run on it.
        """
        if not isinstance(data, Mapping | tuple | list) or not len(data):
            return data
        args, kwargs = ((), data) if isinstance(data, Mapping) else (tuple(data), {})
        model = self._program.model
        flat = takes(model, args, kwargs)  # one thing in a container may be meant either way
        if (flat and len(data) > 1) or not takes(model, (data,), {}):
            return data
        form = (type(data), *(data if isinstance(data, Mapping) else (len(data),)))
        if form not in self._one_argument:
            whole = self._runs_on((data,))
            self._one_argument[form] = whole and not (flat and self._runs_flat(data))
        return (data,) if self._one_argument[form] else data

    def _runs_flat(self, data: Any) -> bool:
        """Return whether one thing in a container is the argument itself, where both readings run.

        A flag in a tuple is one, and what bears the argument's name. Of an array in a tuple a plate
        tells it: ``batch[0]`` runs on the array too, and is its first row there.
        """
        told = isinstance(data, Mapping) or not hasattr(data[0], "__len__")
        return (told and self._runs_on(data)) or self._plate_follows(data)

    def _plate_follows(self, data: Any) -> bool:
        """Return whether the functions run on few of the rows, in a plate of as many."""
        flat = self._adapted(self._structure.flattened(data))
        with suppress(DataError):
            trace = self._program.reader.runs.trace_of_model
            return has_plate_of_rows(trace, flat, self._plate)
        return False

    def _without_constants(self, batch: Batch) -> Batch:
        reader, constants = self._program.reader, self._constants
        told = bool(self._program.examples.offered or self._dim)
        if not told and (reader.fresh or constants.told_more(batch)):
            find = partial(
                constants.find, trace=reader.runs.trace_of_model, trying=reader.runs.trying
            )
            if find(batch, self._program.model):
                self._functions = None
                self._program.forget()
            reader.unclear = constants.unclear
        return constants.taken_out(batch)

    def _lone(self, batch: Batch) -> Batch:
        """Return the one argument of a batch in a container, where the program's example is one."""
        if not isinstance(batch, Mapping | tuple):
            return batch
        names = self._program.examples.arguments
        args, kwargs = given_arguments(batch)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        known = [name for name, value in given.items() if value is not None]
        if known != names[:1] or len(args) > len(names):
            return batch
        example = self._program.examples.example(1)
        return given[names[0]] if isinstance(example, Tensor) else batch

    def _as_example(self, batch: Batch) -> Batch:
        """Return a lone tensor in the dtype of the program's own example, if it has one."""
        if not (self._program.examples.offered and isinstance(batch, Tensor | SparseRows)):
            return batch
        example = self._program.examples.example(1)
        return batch.to(example.dtype) if isinstance(example, Tensor) else batch
