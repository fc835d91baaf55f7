"""The rows that a program takes: within the support, and its own alone where it has some."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro.infer.autoguide import AutoContinuous
from pyro.poutine.trace_struct import Trace
from torch import nn

from pyro_vae.arguments import counted
from pyro_vae.callers import of_user
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.program import checks
from pyro_vae.program.batches.batch import (
    Batch,
    Part,
    Whole,
    arguments,
    check_finite,
    chunks,
    device_of,
    map_rows,
    num_rows,
    signature,
)
from pyro_vae.program.batches.counters import looks_of
from pyro_vae.program.batches.row_hashes import are_alike, hash_of_rows
from pyro_vae.program.handlers import data_frame, have_rows, is_data, sample_sites
from pyro_vae.program.passes import BYTES_PER_PASS, bytes_per_row, most_rows
from pyro_vae.program.row_factors import RowFactors
from pyro_vae.program.sites.masks import kept_units
from pyro_vae.program.sites.observed import Binding
from pyro_vae.program.sites.sites import Sites

if TYPE_CHECKING:
    from pyro_vae.program.program import Program
    from pyro_vae.program.reader import Reader

_MET = 5  # rows that a guide meets first, to see whether it makes factors of them
_ENOUGH = 3  # batches of one form, after which no more is asked for the supports of its sites


class _Support(NamedTuple):
    """Where the values of an observed site lie, whatever the parameters."""

    site: str
    support: Any
    kind: str
    binding: Binding
    masked: bool


class _Supports:
    """The supports of observed sites by the form of a batch.

    Sites may come and go with the values of a batch: the first few of a form are all looked at.
    """

    def __init__(self) -> None:
        self._known: dict[Any, tuple[Any, list[_Support | None], int]] = {}

    def of(
        self, batch: Batch, look: Callable[[], tuple[Trace, Trace]], sites: Sites
    ) -> list[_Support | None]:
        """Return the supports; None of a site whose own depends on parameters, or on all data.

        Arguments:
            batch: Some rows.
            look: Traces model and guide on them.
            sites: Theirs.
        """
        key = signature(batch)
        looks, found, count = self._known.get(key, (None, [], 0))
        if count < _ENOUGH:
            traces = look()
            same = looks == looks_of(traces)
            found = list(_supports(traces[0], sites))
            self._known[key] = looks_of(traces), found, count + 1 if same else 1
        return found


def _supports(model: Trace, sites: Sites) -> Iterator[_Support | None]:
    for name, site in sample_sites(model):
        if not is_data(site) or checks.is_unchecked(site):
            continue
        support, binding = checks.support_of_all(site["fn"]), sites.bindings.get(name)
        if support is None or binding is None or binding.computed:
            yield None
            continue
        masked = kept_units(site["fn"], site["mask"], site["value"].device) is not None
        yield _Support(name, support, checks.distribution_name(site["fn"]), binding, masked)


class Rows:
    """What is asked of the rows of a data set before a program runs on them.

    Arguments:
        program: Whose they are.
        reader: Runs the program on a batch.
    """

    def __init__(self, program: "Program", reader: "Reader") -> None:
        self._program = program
        self._reader = reader
        self._factors = RowFactors(program, reader)
        self._fixed: bool | None = None  # to the rows that the program was read with
        self._settled = False  # whether it is known if the guide has a factor for each datum
        self._by_place: bool | None = None  # whether it is; None: not known
        self._places: int | None = None  # N, trained by their places
        self._draws = 0  # how many rows of all the program draws itself, where it is seen to
        self.total: int | None = None  # N, where parts of the program's own rows go by number
        self.told: int | None = None  # N, where a file says that the guide has a factor for each
        self.trained: str | None = None  # hashes of the rows that these were trained on
        self._supports = _Supports()

    def forget(self) -> None:
        """Find out anew: model or guide has been replaced."""
        self._fixed, self._settled, self.total = None, False, None
        self._by_place = self._places = None
        self._draws = 0
        self._supports = _Supports()

    def numbered(self, data: Batch) -> Batch:
        """Return all data, with their row numbers where the guide has a factor for each datum.

        Such a guide makes its factors from the rows that it meets first: it meets all.

        Raises:
            DataError: Other rows than those that the guide has factors for.
        """
        if isinstance(data, Whole | Part) or checks.is_meta(data):
            return data
        self.require_own(data)
        self._settle(data)
        if self.total is None:
            return data
        self.require_own(data)
        return Part(data, torch.arange(self.total, device=device_of(data)))

    def stood_in(self, inputs: Batch) -> Batch:
        """Return inputs to simulate data for, under numbers of the program's own rows.

        Which rows these are tells nothing: latents of a datum come from the prior, and the guide is
        asked for what all data share.
        """
        if self.total is None or isinstance(inputs, Whole | Part):
            return inputs
        count = num_rows(inputs)
        return Part(inputs, torch.arange(count, device=device_of(inputs)) % self.total)

    def _settle(self, data: Batch) -> None:
        """Find out, once, whether the guide has a factor for each datum, and takes some of them."""
        rows = num_rows(data)
        if self._fixed is not None or self._program.examples.offered or rows < 2:
            return
        on_few = self._runs_on_few(data)
        by_number = self._looks_up(data, rows, made=not (on_few and self._reader.fresh))
        self._settled = True
        if on_few and not by_number:
            self._fixed = False
            return
        if self._reader.fresh or by_number == rows:
            self._reader.read(data)
        if self._reader.sites.rows_drawn:
            self._draws, self._fixed = self._reader.sites.rows_drawn, False
            return
        if self._reader.rows_read != rows:
            if by_number == self._reader.rows_read:
                self.total, self._fixed = by_number, False
            return
        if not (by_number or self.are_fixed(data)):
            return
        last = torch.arange(rows // 2, rows, device=device_of(data))
        self.total = rows
        self._fixed = not self._take(Part(map_rows(lambda leaf: leaf[rows // 2 :], data), last))
        if self._fixed:
            self.total = None

    def go_by_number(self, batch: Batch, total: int) -> bool:
        """Return whether the guide looks up its factors of N data by the plate's row numbers.

        One that sizes them by the rows that it meets first has them of these alone.
        """
        known = self._settled or self._program.examples.offered
        return not known and self._looks_up(batch, total) > 0

    def draws_factors(self, batch: Batch, total: int) -> bool:
        """Return whether the program looks up what it has of N data by numbers that it draws.

        These are places in the batch that it is given, whichever rows that has.
        """
        drawn = self._reader.sites.rows_drawn or self._draws
        if not drawn or isinstance(batch, Whole | Part):
            return False
        some = partial(_some, batch)
        with self._reader.runs.undone():
            sizes = {total, self._reader.rows_read}
            found = any(self._factors.go_by_drawn_numbers(some, drawn, size) for size in sizes)
        return found

    def makes_factors(self, batch: Batch, total: int) -> bool:
        """Return whether the guide of a new program has, or makes, factors of the rows it is given.

        Those of one row are, once made, like weights that all data share.
        """
        if self._program.examples.offered:
            return False
        fixed = False
        with self._reader.runs.undone():
            if self._take(_some(batch, _MET)) and not self._take(_some(batch, _MET - 1)):
                fixed = self._has_factors(_MET)
        return fixed or self._looks_up(batch, total) > 0 or self.go_by_place(batch)

    def go_by_place(self, batch: Batch) -> bool:
        """Return whether the program finds what it has of a datum by its place: ``loc[: len(x)]``.

        Batches train the first of these alone; or, where rows say their numbers and the program
        puts these in order, whichever come there. Found out once.
        """
        if isinstance(batch, Whole) or checks.is_meta(batch):
            return False
        if self._by_place is None:
            some = batch if num_rows(batch) > 1 else _some(batch, _MET)
            self._by_place = self._factors.go_by_place(some)
        return self._by_place

    def keep_places(self, total: int) -> None:
        """Fix a program to all N rows, whose places tell it what it has of each."""
        self._places, self._fixed = total, True

    def _runs_on_few(self, data: Batch) -> bool:
        """Return whether the program runs on a few rows, and then on another number of them."""
        taken = False
        with self._reader.runs.undone():
            # Factors of one row would be broadcast to the others.
            taken = all(self._take(_some(data, count)) for count in (2, 3))
        return taken

    def _looks_up(self, data: Batch, total: int, *, made: bool = True) -> int:
        """Return of how many rows the guide has what it looks up by their numbers; 0 of none.

        Arguments:
            data: Some rows.
            total: N, of which the guide may have a factor each.
            made: Whether it may instead have them of the rows that it has met first.
        """
        found = 0
        with self._reader.runs.undone():
            found = total if self._factors.go_by_number(partial(_some, data), total) else 0
        if found or not made:
            return found
        with self._reader.runs.undone():
            met = self._reader.rows_read
            if self._reader.fresh:
                met = _MET
                self._take(_some(data, met))
            found = met if self._factors.go_by_number(partial(_some, data), met) else 0
        return found

    def check(self, data: Batch, rows: int = 8192, first_rows: int = 1) -> None:
        """Check every row of a data set as ``read`` checks a batch, in chunks.

        Arguments:
            data: An adapted batch.
            rows: Of a chunk.
            first_rows: Rows of the first look, where the program has run on none yet.

        Raises:
            DataError: Names the site, the row, the value and the fix.
        """
        rows = max(1, min(rows, BYTES_PER_PASS // bytes_per_row(data)))
        try:
            check_finite(data)
        except DataError:
            size = max(rows, self._rows_to_read(data, first_rows))  # it may take no other number
            for index, piece in enumerate(chunks(data, size)):
                self._reader.require_finite(piece, index * size)
        self.require_own(data)
        known = self._reader.last
        if known is not None and known.size is not None:
            return  # such a program fixes its own batch
        head = self._rows_to_read(data, first_rows)
        first = map_rows(lambda leaf: leaf[:head], data)
        sites = self._reader.read(first)
        if checks.is_meta(data) or sites.size is not None:
            return
        supports = self._supports.of(first, lambda: self._reader.look(first), sites)
        moving = None in supports  # whether a support has to be asked of the model, batch by batch
        for each in (support for support in supports if support is not None):
            for index, piece in enumerate(chunks(data, rows)):
                value = each.binding.of(*arguments(piece))
                if not each.masked:
                    checks.check_support(
                        each.site, each.support, each.kind, value, index * rows, sites.data_dim
                    )
                elif not bool(each.support.check(value).all()):
                    moving = True  # it may lie where the mask of those rows takes it out
                    break
        if moving:
            size = max(min(rows, most_rows(self._program, data, rows)), head)
            size = min(size, self.total or size)  # those of others stand in a second time
            for index, piece in enumerate(chunks(data, size)):
                model, _ = self._reader.look(piece)
                checks.check_values(model, self._reader.told, index * size)

    def _rows_to_read(self, data: Batch, first_rows: int) -> int:
        """Return how many rows to look at: as many as before, in one pass.

        A guide with one factor per datum makes them from the rows that it sees first, and takes no
        other number of rows from then on.
        """
        rows = num_rows(data)
        if self._reader.fresh:
            return min(rows, first_rows)
        return self._reader.rows_read if self._reader.rows_read <= rows else 1

    def are_fixed(self, batch: Batch) -> bool:
        """Return whether the program runs on the rows alone that it was read with.

        So does one whose guide has one factor per datum. Found out once, by a look at half of them.
        """
        half = min(self._reader.rows_read, num_rows(batch)) // 2
        known = self._fixed is not None or half == 0 or checks.is_meta(batch)
        if not known and self._reader.sites.size is None:
            self._fixed = not self._take(map_rows(lambda leaf: leaf[:half], batch))
        return bool(self._fixed)

    def per_datum(self) -> bool:
        """Return whether the guide may have a factor of each row that the program was read on.

        One that is fixed to a number of rows without such has its batch size written in.
        """
        known = self.total is not None or self._places is not None
        return known or self._has_factors(self._reader.rows_read)

    def _has_factors(self, rows: int) -> bool:
        """Return whether a parameter of the guide has so many rows."""
        layers = {
            id(parameter)
            for part in self._program.modules()
            if type(part).__module__.startswith("torch.nn.modules") and not _is_a_table(part)
            for parameter in part.parameters(recurse=False)
        }
        own = (p for p in self._program.parameters() if id(p) not in layers)
        joint = (part for part in self._program.modules() if isinstance(part, AutoContinuous))
        known = any(rows in p.shape for p in own)
        return known or any(getattr(part, "latent_dim", 0) >= rows for part in joint)

    @property
    def fixed(self) -> bool | None:
        """Whether the program runs on the rows alone that it was read with; None: not known."""
        return self._fixed

    @property
    def fixed_to(self) -> int | None:
        """The number of rows that the program takes, none more or less; None where any."""
        return (self._places or self._reader.rows_read) if self._fixed else None

    @property
    def own(self) -> int | None:
        """The number of rows that the guide has a factor for each of; None where it has no such."""
        found = self.told or self.total or self.fixed_to
        return found if self.told or (found is not None and self.per_datum()) else None

    def are_new(self, batch: Batch) -> bool:
        """Return whether a guide with one factor per datum has none for rows, by their number."""
        return self.own is not None and self.own != num_rows(batch)

    def require_own(self, batch: Batch) -> None:
        """Refuse other rows than those that a program is fixed to.

        Raises:
            DataError: Their number differs.
        """
        rows = num_rows(batch)
        own = self.told or self.total or self.fixed_to or rows
        if rows != own and not isinstance(batch, Part):
            why = (
                "it finds what it has of a datum by its place (`loc[:len(x)]`), for those that it "
                "was trained on, all of them, as tensors; index its factors by the plate (`with "
                "pyro.plate(...) as i: loc[i]`), or give a guide that reads the data"
                if self._places and not self.told
                else "a guide with one factor per datum answers for the rows it was trained on, "
                "all of them, as tensors; for others ask pv.infer(program, rows, how='local'), or "
                "give a guide that reads the data"
                if self.told or (self.own is not None and self._has_factors(own))
                else "it runs on no other number; write len(x) where it has its batch size, or "
                "a plate its size, or give parts of that many rows"
            )
            raise DataError(
                f"got {counted(rows, 'row')}, expected the {own} that the program was first read "
                f"with: {why}"
            )

    def note_trained(self, data: Batch | None) -> None:
        """Note which rows a guide with one factor per datum is trained on; None: not known."""
        self.trained = None if data is None or self.own is None else self._hash_of(data)

    def tell_of_others(self, data: Batch, verb: str) -> bool:
        """Warn, and return so, where a guide with one factor per datum is asked for other rows."""
        if self.trained is None or self.own is None or checks.is_meta(data):
            return False
        others = not are_alike(self._hash_of(data), self.trained)
        if others:
            warnings.warn(
                f"{verb}: the guide has a posterior of each of the {self.own} rows that it was "
                "trained on, and these are others, or in another order: it answers as for the "
                "former; for these ask pv.infer(program, rows, how='local'), or give a guide that "
                "reads the data",
                UserWarning,
                stacklevel=of_user(),
            )
        return others

    def _hash_of(self, data: Batch) -> str:
        given = data.batch if isinstance(data, Whole | Part) else data
        return hash_of_rows(self._program.examples.all_by_argument(given), num_rows(data))

    def _take(self, batch: Batch) -> bool:
        try:
            traces = self._reader.look(batch)
        except (DataError, ProgramError):
            return False
        return have_rows(traces, num_rows(batch))

    def require_whole(self, batch: Batch, *, in_guide: bool = False) -> None:
        """Refuse a program that draws a random part of the rows it is given.

        Arguments:
            batch: Some rows.
            in_guide: Whether the guide alone is asked, and may lack a plate besides the data's.

        Raises:
            ProgramError: The plate holds fewer rows than the batch, or another one draws its own.
        """
        sites = self._reader.sites
        for name, (drawn, size) in sites.parts_beside.items():
            if in_guide and name not in sites.parts_in_guide:
                continue
            raise ProgramError(
                f"the plate {name!r} draws {drawn} of its {counted(size, 'row')}: this program "
                "draws its own minibatch, other rows at each run, so no verb but pv.fit can "
                "answer; leave subsample_size out"
            )
        if sites.size is None:
            return
        model, _ = self._reader.look(batch)
        frames = [data_frame(site) for _, site in sample_sites(model)]
        size = next(frame.size for frame in frames if frame is not None)
        if size != num_rows(batch):
            raise ProgramError(
                f"the plate {self._reader.sites.plate.name!r} holds {size} of the "
                f"{num_rows(batch)} rows: this program draws its own minibatch, so no verb can "
                "answer for each row; give it a plate of len(x) and let pv.fit make the minibatches"
            )


def _some(data: Batch, count: int) -> Batch:
    """Return the first rows of a batch, from the first one again where it has fewer."""
    rows = torch.arange(count) % num_rows(data)
    return map_rows(lambda leaf: leaf[rows.to(leaf.device)], data)


def _is_a_table(part: nn.Module) -> bool:
    """Return whether a layer may have a row of weights for each datum."""
    return isinstance(part, nn.Embedding | nn.EmbeddingBag | nn.ParameterList | nn.ParameterDict)
