"""Runs of a program that are looks at it: quiet ones, which leave nothing behind."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.errors import DataError, ProgramError, PyroVaeError
from pyro_vae.program import checks
from pyro_vae.program.batches.batch import (
    Batch,
    Part,
    arguments,
    cuda_devices,
    device_of,
    map_batch,
    num_rows,
    takes,
)
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.handlers import (
    FAILURES,
    DrawnRows,
    WrittenSizes,
    is_data,
    sample_sites,
    validation,
)
from pyro_vae.program.looks.cuts import Pair, cut_to, has_nan, unlike
from pyro_vae.program.looks.failures import (
    ONLY_ENUMERATED,
    about_arguments,
    about_calls,
    about_classes,
    about_drawn_rows,
    about_flags,
    about_layer,
    about_mask,
    about_numbers,
    about_rows,
    about_shapes,
    about_types,
    of_words,
    positive,
    site_of,
    where,
)
from pyro_vae.program.memory.kept_weights import KeptWeights
from pyro_vae.program.memory.noise import Noise
from pyro_vae.program.memory.own_state import OwnState
from pyro_vae.program.parameters.discovery import Discovery
from pyro_vae.program.parameters.modules import (
    buffers_kept,
    evaluating,
    generators_kept,
    off_zero,
    seed_generators,
)
from pyro_vae.program.sites.counts import Counts
from pyro_vae.program.sites.masks import require_masks_of_batch
from pyro_vae.program.sites.numbered import (
    forget_plates,
    guides_remembered,
    numbered,
    numbered_pair,
)
from pyro_vae.program.sites.plates import find_plate, shown_canonically, with_name_in_guide
from pyro_vae.program.told import silent
from pyro_vae.threads import one_thread
from pyro_vae.torch_private import as_written

if TYPE_CHECKING:
    from pyro_vae.program.program import Program

Ran = TypeVar("Ran")
PairOfRows = Callable[..., Pair]  # a batch, the number of its rows, latents, a seed
_REFUSED = "the program cannot take this batch"
_FEW_ROWS = 8  # on which a program is run again


class _Undone(Exception):
    """Ends a run of the model that leaves no parameter behind."""


class Runs:
    """Runs a program in eval mode, without gradients, and puts what it moves back.

    Arguments:
        program: Its functions and parameters.
        plate: Name of the plate that holds the data, where the user tells it.
    """

    def __init__(self, program: "Program", plate: str | None) -> None:
        self._program, self.plate, self.noise = program, plate, Noise()
        self.forget()

    def forget(self) -> None:
        """Begin anew: model or guide has been replaced."""
        self.plate_before: str | None = None  # the data plate of the batch before
        self.plate_names = "", ""  # its names in model and guide
        self.written: dict[
            str, int
        ] = {}  # sizes of the model's plates, where the guide's are other
        self._own_state: OwnState | None = None
        self._weights = KeptWeights(self._program)
        self.counts = Counts()

    def as_taken(self, batch: Batch) -> Batch:
        """Return a batch with floats in the place of the integers that are known as counts."""
        return self.counts.as_floats(batch, self._program.precision)

    def _on_floats_at_need(self, run: Callable[[Batch], Ran], batch: Batch) -> Ran:
        """Run on a batch; where that fails, on floats in the place of integers, if that helps."""
        try:
            return run(self.as_taken(batch))
        except DataError:
            if not self.counts.try_floats(batch, self._program.precision, run):
                raise
        return run(self.as_taken(batch))

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Leave nothing behind of what runs inside: no parameter, and no first rows of a guide."""
        put_back = guides_remembered(self._program.own.parts)
        with suppress(_Undone), Discovery.during(self._program.own):
            try:
                yield
            finally:
                put_back()
            raise _Undone

    @contextmanager
    def aside(self, batch: Batch) -> Iterator[None]:
        """Run inside, quietly and unvalidated, what leaves nothing behind and warns of nothing."""
        with self.undone(), self.quiet(batch), validation(False), silent():
            yield

    def trace_of_model(self, batch: Batch) -> Trace:
        """Run the pair, leave no parameter behind, and return the trace of the model.

        Raises:
            DataError: It does not run.
        """
        return self._on_floats_at_need(self._trace_of_model, batch)

    def _trace_of_model(self, batch: Batch) -> Trace:
        args, kwargs = arguments(batch)
        self._program.own.home = self.home(batch)
        try:
            with self.undone(), self.quiet(batch), validation(False):
                # The guide first, as always: a cache may fill in the order of its questions.
                model, _ = Joint(*self._program.functions, args, kwargs).sampled_traces()
        except Exception as error:
            forget_plates(self._program.own.parts)
            raise DataError(f"the program does not run: {error}") from error
        return model

    def model_under(self, batch: Batch, handler: Messenger, *, grad: bool = False) -> Trace | None:
        """Trace the model under a handler; None where it does not run.

        The guide runs first only if the model asks for what it leaves behind. Nothing is left.

        Arguments:
            batch: Some rows.
            handler: Has values for the latents.
            grad: Whether values tell if they depend on parameters.
        """
        args, kwargs = arguments(self.as_taken(batch))
        for alone in (True, False):
            with suppress(Exception), self.aside(batch), torch.set_grad_enabled(grad), handler:
                model, guide = self.functions(batch)
                if alone:
                    return poutine.trace(model).get_trace(*args, **kwargs)
                return Joint(model, guide, args, kwargs).sampled_traces()[0]
            forget_plates(self._program.own.parts)
        return None

    @contextmanager
    def quiet(self, batch: Batch) -> Iterator[None]:
        """Run inside with weights in eval mode, no gradient, and the random state put back."""
        with (
            evaluating(self._program),  # around the watch, which ends the modes of what it has met
            self._program.answering(),
            self.memory_kept(),
            self._weights.kept(),
            generators_kept(),
            torch.random.fork_rng(cuda_devices(batch)),
            torch.no_grad(),
            as_written(),
        ):
            yield

    @contextmanager
    def memory_kept(self) -> Iterator[None]:
        """Put what the program keeps from call to call back on leaving (``OwnState.kept``)."""
        looking = self._program.own.loads.looking()
        with one_thread("program"), looking, buffers_kept(self._program), self._state().kept():
            yield

    def release_iterators(self) -> None:
        """Let go of iterators of which looks have drawn no more than steps since."""
        if self._own_state is not None:
            self._own_state.release()

    def iterators_ahead(self) -> list[str]:
        """Return the names of iterators that looks have drawn from, where no step has."""
        return [] if self._own_state is None else self._own_state.only_looked_at()

    def _state(self) -> OwnState:
        functions = self._program.functions
        if self._own_state is None or self._own_state.functions != functions:
            self._own_state = OwnState(*functions, noise=self.noise)
        return self._own_state

    def once(self, batch: Batch, watch: Messenger | None = None) -> tuple[Trace, Trace]:
        """Trace the functions as they are, their plates under their own names, under a watch.

        Integers that they multiply come as floats, from the first run on that needs it.
        """
        return self._on_floats_at_need(partial(self._once, watch=watch), batch)

    def _once(self, batch: Batch, watch: Messenger | None) -> tuple[Trace, Trace]:
        checks.check_real(batch)
        self._program.own.home = self.home(batch)
        before = self._state().settled, dict(self.written)
        try:
            pair, settled = self._watched(batch, watch), self._state().settled
            # A first call that has left something for others is no such as these.
            again = (settled, self.written) != before
            return self._watched(batch, watch) if again else pair
        except (*FAILURES, AttributeError) as error:
            forget_plates(self._program.own.parts)
            of_another = isinstance(error, AttributeError) and not of_words(arguments(batch)[0])
            if isinstance(error, PyroVaeError) or of_another:
                raise
            mask = about_mask(error)
            if mask:
                raise ProgramError(mask) from error
            broken = "found invalid values" in str(error)
            raise (broken and self._outside(batch)) or self.refusal(batch, error) from error

    def moving(self, batch: Batch) -> set[str]:
        """Return the sites that are others when the program runs again from the same state.

        Of a few rows, and of all where the program does not run on these: a graph asks once more.
        """
        few, moved = batch, None
        with suppress(Exception):  # rows that cannot be cut
            few = cut_to(batch, torch.arange(min(_FEW_ROWS, num_rows(batch))))
        if few is not batch:
            with self.nothing_kept():
                moved = self._moving(few)
        return (self._moving(batch) if moved is None else moved) or set()

    @contextmanager
    def nothing_kept(self) -> Iterator[None]:
        """Keep nothing of a run on another number of rows: no parameter, and no size."""
        put_back, written = self._program.own.remembered(), dict(self.written)
        as_were = guides_remembered(self._program.own.parts)
        try:
            yield
        finally:
            put_back()
            as_were()
            self.written = written

    def _moving(self, batch: Batch) -> set[str] | None:
        """Return the sites that two runs from one state make others; None where they do not run.

        A first run may build parts for its number of rows, which the others find.
        """
        with suppress(Exception), self.quiet(batch):  # a density may be none to be asked again
            runs = (self._watched(batch, None) for _ in range(3))
            one, two = next(runs), next(runs)
            moved = {each.site for each in unlike(one, two)}
            return moved and {each.site for each in unlike(two, next(runs))}
        return None

    def refusal(self, batch: Batch, error: Exception) -> DataError:
        """Return what says that the program has failed on a batch."""
        args, kwargs = arguments(batch)
        named = self._program.examples.by_argument(batch)
        # Behind these words Pyro lists all of them.
        reason, broken, values = str(error).partition(", but found invalid values")
        reason = reason.partition("\n")[0] or where(error)  # Pyro adds a table of shapes
        drawn = about_drawn_rows(self._drawn_rows(batch), batch)
        of_layer = about_layer(reason, error, self._program.parts)
        unequal = "" if drawn or of_layer != reason else about_rows(reason, named)
        reason = (
            (unequal or of_layer)
            + about_flags(reason, error)
            + about_calls(reason)
            + (drawn or ("" if unequal else about_shapes(reason, error, batch)))
            + about_classes(reason, named)
            + about_arguments(reason, self._program.own.functions)
        )
        hint = f"; {checks.SURPLUS}" if self._has_surplus(args, kwargs) else ""
        hint += ONLY_ENUMERATED if not drawn and self._runs_enumerated(batch) else ""
        if broken:
            reason = f"{site_of(error)}{reason}"
            weights = self._about_weights()
            hint += f". {weights or positive(reason, values) or self._about_values(batch)}"
        hint += checks.padding_left(batch)
        floats = self._program.precision or torch.get_default_dtype()
        unlike = self._program.examples.unlike(batch)
        told = f"{unlike}; it fails with: " if unlike else f"{_REFUSED} ({checks.shapes(named)}): "
        return DataError(
            f"{told}{reason}{hint}{about_numbers(reason, named, floats)}"
            f"{of_words(args)}{about_types(reason, self._program.own.types.dtype)}"
        )

    def _drawn_rows(self, batch: Batch) -> dict[str, tuple[int, int]]:
        """Return how many rows each plate draws, of how many, as far as the program runs."""
        drawn = DrawnRows()
        with suppress(Exception), self.undone(), self.quiet(batch), silent(), drawn:
            Joint(*self.functions(batch), *arguments(self.as_taken(batch))).sampled_traces()
        return drawn.plates

    def _about_weights(self) -> str:
        """Return that weights may be at fault, and no data, after a training that has diverged."""
        if self._program.diverged:
            return (
                "pv.fit of this program has diverged, which may have spoiled its weights: begin "
                "anew"
            )
        for name, parameter in self._program.named_parameters():
            if bool(parameter.isnan().any()):
                return f"parameter {name.removeprefix('values.')!r} holds NaN, whatever the data"
        first = self._program.examples.first_rows if self._program.own.moved else None
        failure = None if first is None else self._failure_on(first)
        if failure and "found invalid values" in failure:
            return (
                "It fails on the first rows too: training has spoiled its weights; begin anew with "
                "a lower lr, or clip_norm"
            )
        return ""

    def _about_values(self, batch: Batch) -> str:
        """Return what about the data may have made a parameter no number."""
        unscaled = checks.unscaled(batch)
        below = [] if unscaled else self._program.examples.below(batch)
        # Of several arguments, that one is at fault without whose low numbers the program runs.
        told = [words for words, leaf, least in below if self._runs_from(least, leaf, batch)]
        for words in told or [words for words, *_ in below]:
            return f"{words}; the logarithm or root of a negative number is NaN"
        return unscaled

    def _runs_from(self, least: float, only: Tensor, batch: Batch) -> bool:
        """Return whether a program runs on a batch without the numbers of one argument below."""
        raised = map_batch(lambda leaf: leaf.clamp(min=least) if leaf is only else leaf, batch)
        return self._failure_on(raised) is None

    def _failure_on(self, batch: Batch) -> str | None:
        """Return what a run of the program on a batch raises; None where it runs."""
        try:
            with self.undone(), silent():
                self._watched(batch, None)
        except Exception as error:  # whatever a user's function raises
            return str(error)
        return None

    def _outside(self, batch: Batch) -> DataError | None:
        """Return what says that data lie outside the support of their site; None if none do.

        The guide, which runs first, may have made of them what is no number.
        """
        with suppress(Exception):
            observed = [
                each for each in sample_sites(self.trace_of_model(batch)) if is_data(each[1])
            ]
            try:
                for name, site in observed:
                    checks.check_value(name, site)
            except DataError as error:
                return error
        return None

    def _runs_enumerated(self, batch: Batch) -> bool:
        """Return whether a program that fails on draws runs with discrete latents enumerated."""
        args, kwargs = arguments(self.as_taken(batch))
        ran = False
        with suppress(Exception), self.undone(), validation(True), silent():
            for nesting in range(1, 4):
                elbo = TraceEnum_ELBO(max_plate_nesting=nesting, strict_enumeration_warning=False)
                with suppress(*FAILURES), self.quiet(batch):  # each at the noise that has failed
                    elbo.loss(*self.functions(batch), *args, **kwargs)
                    ran = True
        return ran

    def _watched(self, batch: Batch, watch: Messenger | None) -> tuple[Trace, Trace]:
        """Trace the functions, under a watch inside: handlers are one list of all threads."""
        valid = validation(not checks.is_meta(batch))
        sizes = WrittenSizes(self.written)
        with self.quiet(batch), valid, sizes, watch or nullcontext():
            pair = Joint(*self.functions(batch), *arguments(self.as_taken(batch))).sampled_traces()
            self._weights.note_run()
        for trace in pair:
            require_masks_of_batch(trace)
        return pair

    def _has_surplus(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Return whether the model takes the first argument, and not all of them."""
        model = self._program.functions[0]
        return not takes(model, args, kwargs) and takes(model, args[:1], {})

    @contextmanager
    def trying(self, batch: Batch) -> Iterator[PairOfRows]:
        """Yield a function that runs the pair on so many rows at given latents, weights off zero.

        Nothing is left behind of it. It raises what the program does.

        Arguments:
            batch: Some rows, for a first look.
        """
        with self.running(batch) as run:
            with suppress(Exception):  # a first run makes parameters
                run(batch, num_rows(batch), {})
            with self.off_zero(lambda: run(batch, num_rows(batch), {})):
                yield run

    @contextmanager
    def running(self, batch: Batch) -> Iterator[PairOfRows]:
        """Yield what ``trying`` does, with the weights as they are."""

        def run(some: Batch, rows: int, latents: Mapping[str, Tensor], seed: int = 0) -> Pair:
            seed_generators(seed)  # noise of the program's own would hide what the rows do
            joint = Joint(*self.functions(some), *arguments(self.as_taken(some)))
            with self.memory_kept(), self._weights.kept():  # a count of calls is equal in all runs
                pair = (joint.fixing(latents) if latents else joint).sampled_traces()
                self._weights.note_run()
            plate = find_plate(pair[0], rows, self.plate, self.plate_before)
            plate = with_name_in_guide(plate, *pair, rows)
            for trace in pair:
                shown_canonically(trace, plate, rows)
            return pair

        self._program.own.home = self.home(batch)
        cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        every_card = torch.random.fork_rng(cards)  # all are seeded
        with self.undone(), every_card, self.quiet(batch), validation(False), silent():
            yield run

    @contextmanager
    def off_zero(self, runs: Callable[[], Pair]) -> Iterator[bool]:
        """Have the weights off zero inside, so that none hides what it multiplies; yield if so.

        Arguments:
            runs: A run of the program; where it fails at such weights, or a density is NaN, they
                stay as they are.
        """
        with ExitStack() as stack:
            moved = stack.enter_context(off_zero(self._program))
            if moved:
                try:
                    moved = not has_nan(runs())
                except Exception:  # a covariance, for one, is none any more
                    moved = False
                if not moved:
                    stack.close()
            yield moved

    def functions(self, batch: Batch) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Return model and guide as they run on a batch: on their own rows where it has numbers.

        A plate of the model with a size written in has the rows of the batch, as beside a guide.
        """
        model, guide = self._program.functions
        if not isinstance(batch, Part) or self.plate_before is None:
            for name, size in self.written.items():
                rows = torch.arange(num_rows(batch), device=self.home(batch))
                model = numbered(model, name, size, rows, any_size=False)
            return model, guide
        total = self._program.rows.total or num_rows(batch)
        return numbered_pair((model, guide), self.plate_names, total, batch.rows)

    def home(self, batch: Batch) -> torch.device:
        """Return the device of a batch, or of the program where the batch has none."""
        return device_of(batch) or self._program.device
