"""How a program finds what it has of a datum: by the number of its row, or its place in a batch."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pyro_vae.errors import DataError, ProgramError
from pyro_vae.program.batches.batch import Batch, arguments, num_rows
from pyro_vae.program.handlers import have_rows, validation
from pyro_vae.program.looks.cuts import PairOf, few_of
from pyro_vae.program.looks.places import finds_parameters, goes_by_place, may_find_parameters
from pyro_vae.program.parameters.modules import set_apart
from pyro_vae.program.sites.numbered import DrawLast, LookUps, forget_plates, last_of, numbered_pair
from pyro_vae.program.told import silent

if TYPE_CHECKING:
    from pyro_vae.program.program import Program
    from pyro_vae.program.reader import Reader

_FEW_NUMBERS = 3  # of rows that a guide is asked to look up


class RowFactors:
    """Looks whether a program looks up what it has of each datum, and by what.

    Arguments:
        program: Whose functions they are.
        reader: Runs them on a batch.
    """

    def __init__(self, program: "Program", reader: "Reader") -> None:
        self._program = program
        self._reader = reader

    def go_by_number(self, some: Callable[[int], Batch], total: int) -> bool:
        """Return whether the program looks up what it has of N data by the plate's row numbers.

        Arguments:
            some: Makes a batch of so many rows. It is asked for fewer than N, the last ones by
                their numbers: what is made of the batch has no such rows.
            total: N.
        """
        if total < 2:
            return False
        count, runs = min(_FEW_NUMBERS, total - 1), self._reader.runs
        few = some(count)
        rows = last_of(total, count, runs.home(few))
        seen = LookUps([rows], total, count)
        with suppress(DataError, ProgramError), silent():
            model, guide, plate = self._reader.traced(few)
            if not have_rows((model, guide), count):
                return False
            args, kwargs = arguments(runs.as_taken(few))
            pair = numbered_pair(self._program.functions, plate.names, total, rows)
            for run in reversed(pair):  # the guide first, as always
                with runs.quiet(few), validation(False), seen:
                    with suppress(Exception):  # it may index the few rows as well
                        run(*args, **kwargs)
                    forget_plates(self._program.own.parts)
        return seen.found

    def go_by_drawn_numbers(self, some: Callable[[int], Batch], drawn: int, total: int) -> bool:
        """Return whether the program looks up what it has of N data by numbers that it draws.

        Arguments:
            some: Makes a batch of so many rows. It is not asked for N.
            drawn: How many the program draws.
            total: N.
        """
        if drawn >= total:
            return False
        few, runs = some(drawn + 1 if drawn + 1 != total else drawn + 2), self._reader.runs
        args, kwargs = arguments(runs.as_taken(few))
        seen = LookUps([], total, drawn)
        for run in reversed(self._program.functions):
            with runs.quiet(few), validation(False), DrawLast(seen), seen:
                with suppress(Exception):  # whatever a user's function raises
                    run(*args, **kwargs)
                forget_plates(self._program.own.parts)
        return seen.found

    def go_by_place(self, batch: Batch) -> bool:
        """Return whether the program looks up what it has of a datum by its place in the batch.

        Arguments:
            batch: Some rows, more than one.
        """
        few, _ = few_of(batch, num_rows(batch))
        with self._reader.runs.running(few) as run_rows:
            run: PairOf = lambda some, *more: run_rows(some, num_rows(some), *more)  # noqa: E731
            with suppress(Exception):  # a first run makes parameters
                run(few, {})
            # What follows takes as long as some steps.
            if not may_find_parameters(self._program.parameters(), num_rows(batch)):
                return False
            with set_apart(self._program) as parameters:
                found = goes_by_place(run, few)
                if found is not None:
                    return found and finds_parameters(run, few, parameters)
            # It does not run on such weights.
            return bool(goes_by_place(run, few)) and finds_parameters(run, few, parameters)
