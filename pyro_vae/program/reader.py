"""Reading a pair: one trace of model and guide tells the sites of a batch, once per structure."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import counted
from pyro_vae.errors import DataError, ProgramError, PyroVaeError
from pyro_vae.program import checks
from pyro_vae.program.batches.batch import (
    Batch,
    Form,
    Part,
    Whole,
    arguments,
    check_finite,
    is_infinite,
    map_batch,
    named_arguments,
    named_arrays,
    num_rows,
    signature,
    signs_of,
    takes,
    told_by,
    under_handlers,
)
from pyro_vae.program.batches.counters import Counters, looks_of
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.densities.terms import nesting
from pyro_vae.program.handlers import (
    PLATE,
    DrawnRows,
    Message,
    data_frame,
    is_data,
    observes,
    sample_sites,
    validation,
)
from pyro_vae.program.looks.contrasts import Contrasts
from pyro_vae.program.looks.cuts import (
    Change,
    Kind,
    PairOf,
    Term,
    changes_beside,
    changes_by_others,
    cut_to,
    few_of,
    kinds_of_terms,
    parts_of,
    takes_parts,
    with_equal_noise,
)
from pyro_vae.program.looks.dependence import carriers_of, dependence, points_of_guide
from pyro_vae.program.looks.failures import where_holes_fail
from pyro_vae.program.looks.filled_runs import filled
from pyro_vae.program.looks.findings import Dependence
from pyro_vae.program.looks.in_training import of_training
from pyro_vae.program.looks.quiet_runs import Runs
from pyro_vae.program.looks.refusals import (
    require_parts,
    tell_of_batches,
    tell_of_constants,
    tell_of_moving,
)
from pyro_vae.program.looks.row_bytes import RowBytes
from pyro_vae.program.looks.rows_as_events import warn_of_rows_as_events
from pyro_vae.program.parameters.discovery import Discovery
from pyro_vae.program.parameters.modules import leaves_behind
from pyro_vae.program.sites.holes import Holes, observed_holes, of_joint_rows
from pyro_vae.program.sites.holes_of_factors import of_factors
from pyro_vae.program.sites.masks import is_masked, tell_of_masks
from pyro_vae.program.sites.observed import Binding, Copies, bindings_of
from pyro_vae.program.sites.plates import (
    AroundOne,
    Canonical,
    DataPlate,
    OneDatum,
    find_plate,
    plate_around,
    shown_canonically,
    widened,
    with_name_in_guide,
)
from pyro_vae.program.sites.sites import Sites, read_sites
from pyro_vae.program.sites.whole import is_whole, one_datum, require_observed, require_plates
from pyro_vae.program.told import Told, silenced, silent
from pyro_vae.torch_private import TracingContext

if TYPE_CHECKING:
    from pyro_vae.program.program import Program


_MOST_ROWS = 1 << 14  # of a batch that is cut into parts


class Reader:
    """Runs a program on batches of a new structure, and keeps what it has found out of each.

    Arguments:
        program: Its functions, parameters and examples.
        plate: Name of the plate that holds the data, where the user tells it.
        observed: Arguments by observed site, where the user tells them.
        whole: Whether all data are one datum, though a plate has their rows.
    """

    def __init__(
        self,
        program: "Program",
        plate: str | None,
        observed: Mapping[str, str] | None,
        *,
        whole: bool = False,
    ) -> None:
        self._program = program
        self.runs = Runs(program, plate)
        self._observed, self.told_whole = dict(observed or {}), whole
        self.told = Told()
        self._holes = Holes(self.runs.model_under, self.told, plate, self._cut)
        self.rows_read = 1
        self.unclear: str | None = None  # an argument that may have no rows
        self.row_bytes = RowBytes(self.runs, self._takes_any_rows)
        self.forget()

    def forget(self) -> None:
        """Read anew: model or guide has been replaced."""
        self.last: Sites | None = None  # of the batch that was read last
        self.runs.forget()
        self._layouts: dict[Any, Sites] = {}  # by what must stay equal of a batch
        self._newest: dict[Any, tuple[Any, ...]] = {}  # such a key, by what needs no values
        self._contrasts = Contrasts()  # of the rows that layouts were read from
        self._dependences: dict[Any, Dependence] = {}  # found so far, by what the sites are
        self._run_again = False  # from one state, to see whether it is equal
        # Whether the data are one datum; None: not known.
        self._whole: bool | None = self.told_whole or None
        self._met: set[str] = set()  # sites of ``observed`` that a batch had
        self._weights: dict[str, Any] | None = None  # in train mode, where they are others there
        self._counters = Counters()
        self.row_bytes.forget()

    @property
    def fresh(self) -> bool:
        """Whether no batch has been read."""
        return not self._layouts

    def _takes_any_rows(self, batch: Batch) -> bool:
        """Return whether the program is known to run on other rows than those it was read on."""
        if self.fresh:
            return self._program.rows.fixed is False
        subsampled = self.last is not None and self.last.size is not None
        return not subsampled and not self._program.rows.are_fixed(batch)

    @property
    def sites(self) -> Sites:
        """The sites of the last batch, or of an example."""
        return self.last if self.last is not None else self.read(self._program.examples.example())

    def read(self, batch: Batch) -> Sites:
        """Look at one batch with validation on, once per signature, and return the sites.

        Raises:
            DataError: Not finite, of a wrong shape, or outside an observed site's support.
            ProgramError: Model and guide disagree, or no plate holds the data, or two could.
        """
        self.told.give()
        batch = self.runs.as_taken(batch)
        key = self._key(batch)
        more = self._contrasts.more_in(batch)
        if key in self._layouts and not more:
            if not self._program.training:  # a step sees to it, before it is traced
                self.fill_expected(batch)
            self.last = self._layouts[key]
            return self.last
        likely = None if more else self._counters.candidate(key)
        if likely is not None and self._counters.confirmed(key, batch, self.runs.once(batch)):
            self.last = likely
            return likely
        try:
            floats = self._read_anew(batch)
        except (DataError, ProgramError):
            if key not in self._layouts:
                raise
            self._contrasts.meet(batch)  # known, and no look at the rest of it
            self.last = self._layouts[key]
            return self.last
        if floats is not batch:
            self.last = self._layouts[key] = self.read(floats)
        return self.last  # type: ignore[return-value]

    def _key(self, batch: Batch) -> tuple[Any, ...]:
        """Return what a layout is kept under; of values that a tracer hides, what the last was."""
        alike, signs = signature(batch), signs_of(batch)
        if signs is not None:
            self._newest[alike] = (*alike, signs)
        return self._newest.get(alike, alike)

    def _read_anew(self, batch: Batch) -> Batch:
        """Read a batch; return it, or as it comes if some of its integers come as floats."""
        with self.runs.memory_kept():
            return self._read_in_turn(batch)

    def _read_in_turn(self, batch: Batch) -> Batch:
        self.require_finite(batch)
        with Discovery.during(self._program.own) as discovery, Copies() as copies:
            drawn = DrawnRows()
            model, guide = self.runs.once(batch, drawn)
            floats = self.runs.as_taken(batch)
            if floats is not batch:
                return floats
            looks = looks_of((model, guide))
            plate = self._find_plate(model, guide, batch)
            self._tell_of_plate_around(model, plate, batch)
            self._show(model, guide, plate, batch)
            checks.check_pair(model, guide)
            of_batch = partial(self._carriers, batch), partial(self._summed, guide, batch)
            tell_of_masks(model, guide, *of_batch, self.told)
            bindings = self._bindings(model, batch, plate, copies)
            floats = self._with_counts_as_floats(model, bindings, batch)
            if floats is not batch:
                return floats
            checks.check_values(model, self.told)
            discovery.hold_used(lambda: self._leaves(batch))
        self._program.examples.meet(batch)
        self.runs.plate_before, self.runs.plate_names = plate.name, plate.names
        sites = read_sites(model, guide, plate, bindings)
        draws_rows = sites.size is not None and bool(drawn.plates)
        frame = data_frame(model.nodes[sites.observed[0]]) if sites.observed else None
        sites = replace(
            sites,
            dependence=self._dependence(sites, batch, (model, guide)),
            draws_rows=draws_rows,
            rows_drawn=(
                _drawn_of(plate, drawn)
                if draws_rows and not (frame and frame.size == num_rows(batch))
                else 0
            ),
            parts_beside=_beside(plate, drawn),
            parts_in_guide=self._drawn_by_guide(batch) if drawn.plates else (),
            parts_weighed=_weighed(model),
            values=frozenset(discovery.used),
        )
        if self._contrasts.more_in(batch):
            self._layouts = {}  # those were read from rows that told less
            self._contrasts.meet(batch)
        key = self._key(batch)
        self.last = self._layouts[key] = sites
        self._counters.meet(key, sites, looks)
        self.rows_read = num_rows(batch)
        if not (self._run_again or silenced()):
            self._run_again = True
            tell_of_moving(self.runs.moving(batch))
        return batch

    def require_finite(self, batch: Batch, first_row: int = 0) -> None:
        """Refuse NaN and infinity in data, but where they are a code that the program masks.

        Raises:
            DataError: Names the tensor, the first such row, counted from ``first_row``, and its
                value.
        """
        try:
            check_finite(batch, first_row)
        except DataError as error:
            spoiled = error
        else:
            return
        if self._scores_finite(batch):
            return
        if self._program.examples.unlike(batch):  # which may be all that is wrong
            with self.runs.undone():
                self.runs.once(batch)
        infinite = is_infinite(batch)
        if not infinite:
            self._require_fit(batch, first_row)
        masked = "" if infinite else self._about_holes(batch)
        try:
            check_finite(self._program.examples.by_argument(batch), first_row)  # by their names
        except DataError as error:
            spoiled = error
        head = str(spoiled).partition(", expected finite numbers")[0]
        raise DataError(f"{head}; {masked}") if masked else spoiled

    def _require_fit(self, batch: Batch, first_row: int) -> None:
        """Refuse what a program refuses alike where there are numbers in the place of NaN.

        Raises:
            DataError, ProgramError: What it is, which has nothing to do with NaN.
        """
        error = self._error_on(batch, first_row)
        alike = error is not None and self._error_on(filled(batch, high=True), first_row)
        if error is not None and str(error) == str(alike):
            raise error

    def _error_on(self, batch: Batch, first_row: int) -> DataError | ProgramError | None:
        """Return what is wrong about a program on a batch, whatever its numbers are."""
        try:
            with self.runs.undone(), silent():
                model, guide = self.runs.once(batch)
                self._show(model, guide, self._find_plate(model, guide, batch), batch)
                checks.check_pair(model, guide)
                checks.check_values(model, Told(), first_row)
        except (DataError, ProgramError) as error:
            return error
        return None

    def _about_holes(self, batch: Batch) -> str:
        """Return where NaN still counts in a program that masks what it observes; else nothing.

        Raises:
            ProgramError: It masks in a way that has nothing to do with the numbers.
        """
        with self.runs.undone(), suppress(DataError):
            model, _ = self.runs.once(map_batch(torch.nan_to_num, batch))
            if not any(is_masked(s) for _, s in sample_sites(model) if s["is_observed"]):
                return of_joint_rows(model) or of_factors(model)
            try:
                model, _ = self.runs.once(batch)
            except DataError as error:
                return where_holes_fail(error)
            return observed_holes(model)
        return ""

    def _scores_finite(self, batch: Batch) -> bool:
        """Return whether a program that masks data runs, and all its densities are numbers.

        One without a mask may have made a number of it by accident: ``NaN > 0.5`` is false.
        """
        found = False
        with self.runs.undone(), suppress(ValueError, RuntimeError):  # all of ours are such
            model, guide = self.runs.once(batch)
            sites = [site for trace in (model, guide) for _, site in sample_sites(trace)]
            sites = [site for site in sites if checks.has_density(site["fn"])]
            # What cells with holes hold is looked at by their support, later.
            terms = [
                s["fn"].filled(s["value"])
                if hasattr(s["fn"], "filled")
                else scale_and_mask(s["fn"].log_prob(s["value"]), 1.0, s["mask"])
                for s in sites
            ]
            masked = any(is_masked(s) for _, s in sample_sites(model) if s["is_observed"])
            found = masked and all(bool(torch.isfinite(term).all()) for term in terms)
            if found:
                named = self._program.examples.by_argument(batch)
                self._holes.tell(batch, named, model, guide)
        return found

    @contextmanager
    def _cut(
        self, batch: Batch, rows: Tensor
    ) -> Iterator[tuple[Batch, dict[str, Any], Trace, Trace]]:
        """Give some rows, their arguments by name and the traces of a run on them, for a while."""
        few = cut_to(batch, rows)
        with self.runs.nothing_kept():
            model, guide = self.runs.once(few)
            yield few, dict(self._program.examples.by_argument(few)), model, guide

    def _carriers(self, batch: Batch) -> dict[str, list[str]]:
        """Return which auxiliary sites of the guide its point masses are transforms of."""
        with self.runs.quiet(batch), validation(False):
            return carriers_of(self.runs.functions(batch)[1], *arguments(batch))

    def _summed(self, guide: Trace, batch: Batch) -> tuple[Trace, int]:
        """Return the model's trace at all values of what a guide leaves out, and its plates."""
        joint = Joint(*self.runs.functions(batch), *arguments(batch))
        with self.runs.quiet(batch), validation(False):
            return joint.summed_trace(guide), joint.num_plates + 1

    def _dependence(self, sites: Sites, batch: Batch, seen: tuple[Trace, Trace]) -> Dependence:
        if checks.is_meta(batch):
            return Dependence()
        if isinstance(batch, Whole):
            with self.runs.quiet(batch), validation(False):
                guide = self.canonical(sites, batch)[1]
                points = points_of_guide(guide, batch, seen, self.runs.memory_kept)
            return Dependence(**points)
        beside, kinds = (set(), set()) if sites.size is not None else self._changes_beside(batch)
        functions = self.canonical(sites, batch)
        both = Joint(*functions, *arguments(batch)).sampled_traces
        off_zero = partial(self.runs.off_zero, both)
        with self.runs.quiet(batch), validation(False):
            try:
                found = dependence(
                    functions, batch, seen, beside, kinds, self.runs.memory_kept, off_zero
                )
            except ValueError as error:  # shapes that only another number of rows shows
                if isinstance(error, PyroVaeError):
                    raise
                raise self.runs.refusal(batch, error) from error
        if found.counted and num_rows(batch) > 1:
            found = self._with_part(found, batch)
        # A fact about these sites, whichever rows have shown it.
        named = (sites.observed, sites.local, sites.global_, sites.enumerated)
        kind = (isinstance(batch, Part), *named, told_by(batch))
        self._dependences[kind] = self._dependences.get(kind, found).joined_with(found)
        return self._dependences[kind]

    def _with_part(self, found: Dependence, batch: Batch) -> Dependence:
        """Return what is known once fewer rows have told which weights depend on their number."""
        few = cut_to(batch, torch.arange(num_rows(batch) // 2))
        with (
            suppress(Exception),
            self.runs.running(few) as run,
        ):  # whatever a user's function raises
            return found.with_part(run(few, num_rows(few), {}))
        return found

    def _changes_beside(self, batch: Batch) -> tuple[set[Change], set[tuple[Term, Kind]]]:
        """Return what changes of some rows where others are cut away; nothing where none can be.

        And what terms outside the plate are of the rows. Looked at with the weights off zero, which
        hides what it multiplies; as they are where that tells nothing.
        """
        if num_rows(batch) < 2:
            return set(), set()
        rows = num_rows(batch)
        few, cuts = few_of(batch, rows)
        changes: set[Change] = set()
        kinds: set[tuple[Term, Kind]] = set()

        def look(run: PairOf) -> bool:
            nonlocal few, cuts
            found = changes_beside(run, few, cuts)
            if found is None and num_rows(few) < rows <= _MOST_ROWS:
                taken = (parts for parts in parts_of(rows) if takes_parts(run, batch, parts))
                told = (changes_beside(run, batch, parts) for parts in taken)
                found = next((each for each in told if each is not None), None)
                few = few if found is None else batch
            plain = found is not None
            if found is None:  # its numbers change from run to run
                found = changes_by_others(run, few)
                if found is None and rows <= _MOST_ROWS:  # it takes no number of rows but this
                    few, found = batch, changes_by_others(run, batch)
                found = found or set()
                if takes_parts(run, few, cuts):
                    with suppress(Exception):  # as in changes_beside
                        run = with_equal_noise(run, few)
                    found |= {c for c in changes_beside(run, few, cuts) or () if not c.inside}
            outside = {(change.side, change.site) for change in found if not change.inside}
            changes.update(found)
            kinds.update(kinds_of_terms(run, few, outside) if outside else ())
            return plain

        with self.runs.running(few) as run_rows:
            run: PairOf = lambda some, *more: run_rows(some, num_rows(some), *more)  # noqa: E731
            with self.runs.off_zero(lambda: run(few, {})) as moved:
                told = moved and look(run)
            # Off zero is where most shows; a gate that is open at zero alone, as they are.
            if not told or (moved and changes_beside(run, few, cuts[:1])):
                look(run)
        return changes, kinds

    def read_anew(self, batch: Batch) -> Sites:
        """Read a batch with no regard to what is known: an attribute may have been another.

        Raises:
            DataError, ProgramError: As ``read``; then all is as before.
        """
        names = "last", "_layouts", "_contrasts", "_dependences", "_counters"
        before = {name: getattr(self, name) for name in names}
        self._contrasts, self._dependences, self._layouts = Contrasts(), {}, {}
        self._counters = Counters()
        try:
            return self.read(batch)
        except (DataError, ProgramError):
            vars(self).update(before)
            raise

    def look_over(self, data: Batch, transform: Callable[[Batch], Batch] | None = None) -> None:
        """Read some rows from all over a data set: its first ones may tell less.

        What was found before is forgotten (``read_anew``).

        Arguments:
            data: All rows.
            transform: What makes batches of them.
        """
        few, _ = few_of(data, num_rows(data))
        if transform is not None:
            try:
                few = transform(few)
            except Exception:  # it is written for batches of one size, say
                return
        try:
            with silent(), self.runs.nothing_kept():
                self.read_anew(few)
        except (DataError, ProgramError):  # it takes no such number of rows
            pass
        else:  # a weight times so few rows may be N by chance
            named = self._dependences.items()
            self._dependences = {kind: replace(found, counted=()) for kind, found in named}

    def require_parts(self, first: Batch, total: int) -> None:
        """Refuse to train on parts of the data where these are another model's.

        Arguments:
            first: One.
            total: N.

        Raises:
            ProgramError: Names the site.
        """
        self._begin_with(first, total)  # anew, after a look all over
        for (numbered_, *_), found in self._dependences.items():
            if numbered_ == isinstance(first, Part):
                require_parts(found, num_rows(first), total, self.unclear)
                tell_of_constants(self.in_training(found), num_rows(first), total)

    def tell_of_batches(self, first: Batch, total: int) -> None:
        """Warn of what weighs otherwise in a loader's batches than in steps of stock SVI.

        Arguments:
            first: One.
            total: N.
        """
        self._begin_with(first, total)
        for found in map(self.in_training, self._dependences.values()):
            tell_of_batches(found, num_rows(first), total)
            tell_of_constants(found, num_rows(first), total)

    def in_training(self, found: Dependence) -> Dependence:
        """Return what is found with the weights that the program has in train mode."""
        return found if self._weights is None else replace(found, **self._weights)

    def _begin_with(self, first: Batch, total: int) -> None:
        """Read a first batch, and forget which constants were N/B in batches of another size."""
        named = {kind: found.at(num_rows(first)) for kind, found in self._dependences.items()}
        if named != self._dependences:
            self._layouts, self._dependences = {}, named
        found = self.read(first).dependence
        told = of_training(self._program, first, found, total)
        own = {"counted": told.counted, "by_count": told.by_count}
        self._weights = None if told is found else own

    def _with_counts_as_floats(
        self, model: Trace, bindings: Mapping[str, Binding], batch: Batch
    ) -> Batch:
        """Return the batch as it comes once it is known which of its integers are counts."""
        counts = self.runs.counts
        observed = [(name, site) for name, site in sample_sites(model) if is_data(site)]
        with self.runs.quiet(batch), validation(False):
            candidates = counts.candidates(observed, bindings, batch)
        counts.settle(candidates, batch, self._program.precision, self.runs.once)
        return self.runs.as_taken(batch)

    def canonical(
        self, sites: Sites, batch: Batch
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return model and guide with the data plate under its canonical name and size."""
        model, guide = self.runs.functions(batch)
        if sites.plate.canonical:
            return model, guide
        if isinstance(sites.plate, OneDatum):
            return AroundOne(sites.plate)(model), AroundOne(sites.plate)(guide)
        handler = Canonical(sites.plate, num_rows(batch))
        return handler(model), handler(guide)

    def look(self, batch: Batch) -> tuple[Trace, Trace]:
        """Trace model and guide once: in eval mode, no gradient, and no random number used up."""
        return self.traced(batch)[:2]

    def traced(self, batch: Batch) -> tuple[Trace, Trace, DataPlate]:
        """Return what ``look`` does, with the plate of the data."""
        with silent():
            model, guide = self.runs.once(batch)
        batch = self.runs.as_taken(batch)
        plate = self._find_plate(model, guide, batch)
        self._show(model, guide, plate, batch)
        return model, guide, plate

    def asked(self, batch: Batch) -> frozenset[str]:
        """Return the keys of the values of ``pyro.param`` that a batch asks for itself."""
        with silent(), self.runs.memory_kept(), Discovery.during(self._program.own) as discovery:
            self.runs.once(batch)
        return frozenset(discovery.used)

    def hold_made(self, batch: Batch) -> None:
        """Train the networks that a run of a batch has made since such batches were read.

        Raises:
            ProgramError: Each call makes its own.
        """
        own = self._program.own
        own.hold_made(own.search())
        self._hold_used(batch)

    def fill_expected(self, batch: Batch) -> None:
        """Give a batch like those before what a load has kept for it, before it runs."""
        own = self._program.own
        if own.loads.expected and own.watch is None and TracingContext.try_get() is None:
            with suppress(DataError):
                self._hold_used(batch)

    def _hold_used(self, batch: Batch) -> None:
        own = self._program.own
        with silent(), self.runs.memory_kept(), Discovery.during(own) as discovery:
            self.runs.once(batch)
            discovery.hold_used(lambda: self._leaves(batch))

    def as_whole(self, batch: Batch) -> Batch:
        """Return a batch as one datum, never to be cut, where no plate holds the data."""
        if self._whole is None and self.fresh and not checks.is_meta(batch):
            self._whole = is_whole(self.runs.trace_of_model, batch, self.runs.plate)
            if self._whole:
                warn_of_rows_as_events(self.runs, batch)
        return self.known_whole(batch)

    def known_whole(self, batch: Batch) -> Batch:
        """Return a batch as one datum where the program is known to take it so."""
        return Whole(batch) if self._whole and not isinstance(batch, Whole) else batch

    def _find_plate(self, model: Trace, guide: Trace, batch: Batch) -> DataPlate:
        whole = isinstance(batch, Whole)
        # What stands left of all plates is of no datum, though there be as many rows as features.
        require_plates(model, guide, left_of=0 if whole else nesting(model, guide))
        aside = partial(self.runs.aside, batch)
        require_observed(model, guide, batch, self._program.functions[0], aside)
        if whole:
            return one_datum(model, guide)
        try:
            plate = find_plate(model, num_rows(batch), self.runs.plate, self.runs.plate_before)
        except DataError as error:
            raise DataError(f"{error}; got {checks.shapes(batch)}") from None
        sites = (site for _, site in sample_sites(model) if observes(site))
        wide = any(widened(site, plate.dim) is not None for site in sites)
        return with_name_in_guide(replace(plate, wide=wide), model, guide, num_rows(batch))

    def _tell_of_plate_around(self, model: Trace, plate: DataPlate, batch: Batch) -> None:
        """Warn where another plate may be that of the data: time, or words, come first then."""
        if plate.name in (PLATE, self.runs.plate) or self._program.moves_data:
            return
        around = None if isinstance(plate, OneDatum) else plate_around(model, plate)
        if around is None:
            return
        shapes = [leaf.shape for _, leaf in named_arrays(batch) if len(leaf.shape)]
        # What has fewer dimensions counts the data by its first one, along whichever the rest do.
        dims = [
            d
            for d in range(1, max(map(len, shapes), default=0))
            if all(shape[d if len(shape) > d else 0] == around.size for shape in shapes)
        ]
        if dims:
            self.told.warn(
                ("rows", plate.name),
                f"the rows of the data are read along dimension 0, {num_rows(batch)} of plate "
                f"{plate.name!r}; that stands inside plate {around.name!r}, of "
                f"{counted(around.size, 'row')} and latents of its own: if these are the data, "
                f"pv.Program(model, guide, dim={dims[0]}); if not, plate={plate.name!r} says so",
            )

    def _drawn_by_guide(self, batch: Batch) -> tuple[str, ...]:
        """Return the plates of the guide that draw some of their rows."""
        args, kwargs = arguments(batch)
        drawn = DrawnRows()
        with self.runs.aside(batch), drawn:
            self.runs.functions(batch)[1](*args, **kwargs)
        return tuple(drawn.plates)

    def _show(self, model: Trace, guide: Trace, plate: DataPlate, batch: Batch) -> None:
        for trace in (model, guide):
            shown_canonically(trace, plate, num_rows(batch))

    def _bindings(
        self, model: Trace, batch: Batch, plate: DataPlate, copies: Copies
    ) -> dict[str, Binding]:
        args, kwargs = arguments(batch)
        function = self._program.functions[0]
        names = [n for n, site in sample_sites(model) if is_data(site)]
        values = {name: model.nodes[name] for name in names}
        places = tuple(arg if isinstance(arg, Form) else i for i, arg in enumerate(args))
        keys = named_arguments(function, places, {k: k for k in kwargs})
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        self._met |= self._observed.keys() & model.nodes.keys()
        self._require_declared(names, args, kwargs)
        rows = None if isinstance(batch, Whole) else num_rows(batch)
        return bindings_of(values, given, keys, self._observed, rows, plate.dim, copies)

    def _require_declared(
        self, names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Refuse declared sites that lack where their arguments are given; warn where some do."""
        met = {self._observed[site] for site in self._met}
        lacks = {site: name for site, name in self._observed.items() if name not in met}
        if not args or not isinstance(args[-1], Form):  # of containers the signature says nothing
            lacks = {site: name for site, name in lacks.items() if self._is_due(name, args, kwargs)}
        elif met:
            return
        told = (
            f"observed: got {sorted(lacks)}, which the model does not sample, "
            f"expected names of observed sites, among {names}, each with that of its argument"
        )
        if lacks and not met:
            raise ProgramError(told)
        if lacks:  # a model may look at an argument before it samples
            self.told.warn(("observed", "lacks"), told)

    def _is_due(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Return whether a batch has an argument, or none can: sites of others may lack."""
        function = self._program.functions[0]
        given = named_arguments(function, args, kwargs)
        if name in given:
            return given[name] is not None
        if not takes(function, args, {**kwargs, name: None}):
            return True
        if name not in inspect.signature(under_handlers(function)).parameters:
            self.told.warn(
                ("observed", name),
                f"observed: argument {name!r} is not in this batch, and no name in the signature "
                "of the model, which takes any (**): if no batch has it, correct the name",
            )
        return False

    def _leaves(self, batch: Batch) -> list[Tensor]:
        """Run the functions once and return the leaf tensors that their densities depend on."""
        args, kwargs = arguments(map_batch(torch.detach, batch))
        with self.runs.quiet(batch), torch.enable_grad(), validation(False):
            pair = Joint(*self.runs.functions(batch), args, kwargs).sampled_traces()
            try:
                terms = [_term(site).sum() for trace in pair for _, site in sample_sites(trace)]
            except RuntimeError as error:  # a density of tensors of two types, say
                raise self.runs.refusal(batch, error) from error
        return [leaf for term in terms for leaf in leaves_behind(term)]


def _term(site: Message) -> Tensor:
    """Return the log density of a site; of one without, its value."""
    fn, value = site["fn"], site["value"]
    return fn.log_prob(value) if checks.has_density(fn) else value


def _drawn_of(plate: DataPlate, drawn: DrawnRows) -> int:
    """Return how many rows of the data a program draws."""
    own = (plate.name, plate.in_guide)
    counts = {name: count for name, (count, _) in drawn.plates.items()}
    return next((counts[name] for name in own if name in counts), max(counts.values()))


def _beside(plate: DataPlate, drawn: DrawnRows) -> dict[str, tuple[int, int]]:
    """Return the plates that draw some of their rows, but that of the batch's rows."""
    own = () if isinstance(plate, OneDatum) else (plate.name, plate.in_guide)
    return {name: rows for name, rows in drawn.plates.items() if name not in own}


def _weighed(model: Trace) -> dict[str, tuple[int, int]]:
    """Return the plates but that of the batch's rows that hold some of their rows, weighed by N/B.

    Arguments:
        model: Its data plate under the canonical name.
    """
    frames = [frame for _, site in sample_sites(model) for frame in site["cond_indep_stack"]]
    return {
        PLATE if frame.name == f"{PLATE}_" else frame.name: (frame.size, frame.full_size)
        for frame in frames
        if frame.name != PLATE and frame.full_size not in (None, frame.size)
    }
