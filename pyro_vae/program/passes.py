"""The one door of every verb: data checked, globals held, passes bounded in rows and in bytes."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from pyro_vae.arguments import counted, positive
from pyro_vae.errors import ProgramError
from pyro_vae.heap import keep_freed_blocks, released
from pyro_vae.program.batches.batch import (
    Batch,
    Part,
    chunks,
    cuda_devices,
    dense,
    map_rows,
    named_arrays,
    num_rows,
)
from pyro_vae.program.batches.streams import (
    batches,
    by_rows,
    frames_of,
    is_stream,
    join_batches,
    tensors_of,
)
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.first_call import forgotten_on_error
from pyro_vae.program.handlers import validation
from pyro_vae.program.looks.refusals import require_each, require_posteriors, require_weights
from pyro_vae.program.parameters.modules import evaluating
from pyro_vae.program.ranks import Ranks, ranks, require_equal, shared_out
from pyro_vae.program.sites.sites import Sites
from pyro_vae.program.sites.whole import require_rows
from pyro_vae.progress import progress_bar
from pyro_vae.threads import require_turn
from pyro_vae.torch_private import pytree

if TYPE_CHECKING:
    from pyro_vae.program.program import Program
    from pyro_vae.program.rows import Rows

T = TypeVar("T")
_BYTES_HELD = 1 << 27  # of a stream, at most, where a verb needs rows from all over it
_ON_A_GPU = 16  # times as many particles in a run: there is no cache to fill, and many launches
BYTES_PER_PASS = 1 << 26  # of data, all particles counted: a row of an image can be a megabyte


@dataclass(frozen=True)
class Verb:
    """What a verb asks of a program; a program that lacks it is refused at the door.

    Arguments:
        name: As the user calls it; it begins every message.
        prior: Whether z is drawn from, or scored under, a prior.
        local: What to use where there is no latent of a datum; empty where the verb needs none.
        latents: What to use where there is no latent at all; empty where the verb needs none.
        continuous: Whether local latents must be continuous; what to use where they are not.
        globals_: Why the verb takes no global latents, and what to do; empty where it takes them.
        simulates: Whether the data are no data, but inputs to simulate some for.
        draws: Whether it returns draws or means of what the model observes.
        answers: Whether it answers a row for each datum in the form of the data.
        summed: Whether latents that are summed out count among those of a datum.
        sums: Whether it sums over the discrete latents of the guide too, those of few values.
        of_model: Whether it answers by the model itself, of any data: the guide is no more than
            where it begins.
        each: Whether it speaks of each datum alone, by a density of its own.
        guide: What it needs of the guide for each datum alone: a posterior, or a weight p / q.
        codes: Whether it asks the guide alone; the model too where it sums out latents.
    """

    name: str
    prior: bool = False
    local: str = ""
    latents: str = ""
    continuous: str = ""
    globals_: str = ""
    simulates: bool = False
    draws: bool = False
    answers: bool = False
    summed: bool = False
    sums: bool = False
    of_model: bool = False
    each: bool = False
    guide: Literal["", "posterior", "weight"] = ""
    codes: bool = False

    def require(self, sites: Sites) -> None:
        """Refuse a program that lacks what the verb needs.

        Raises:
            ProgramError: Names the site, the reason and the way out.
        """
        if self.each:
            require_each(sites.dependence, self.name)
            for plate, (held, size) in sites.parts_weighed.items():
                raise ProgramError(
                    f"{self.name}: the plate {plate!r} holds {held} of its {counted(size, 'row')} "
                    "(subsample=), weighed by N/B, which is a density of no data; give the plate "
                    "all its rows"
                )
        if self.guide:
            require_posteriors(sites.dependence, self.name)
        if self.guide == "weight":
            require_weights(sites.dependence, self.name)
        if (self.simulates or self.draws) and not sites.observed:
            raise ProgramError(
                f"{self.name}: the model observes no site: data that enter by pyro.factor alone "
                "cannot be drawn; write pyro.sample(name, distribution, obs=x)"
            )
        if self.prior and sites.priorless:
            raise ProgramError(
                f"{self.name}: site {sites.priorless[0]!r} has no prior (an autoencoder is no "
                "generative model); use a VAE, or one of reconstruct, encode, interpolate"
            )
        local = sites.continuous if self.sums and not sites.countless else sites.local
        drawn = local or (sites.global_ if self.latents else ())
        summed = sites.enumerated or sites.discrete
        if (self.local or self.latents) and not drawn and summed and not self.summed:
            way_out = "pv.encode has the probabilities of its values"
            shared = ", ".join(map(repr, sites.global_))
            raise ProgramError(
                f"{self.name}: site {summed[0]!r} is {'' if sites.enumerated else 'discrete and '}"
                "summed out, and the guide draws no other latent"
                f"{f' of a datum ({shared}: of all data)' if shared else ''}; "
                f"{way_out if sites.enumerated else 'use log_likelihood'}"
                f"{', and pv.refine the posterior of what all data share' if shared else ''}"
            )
        if self.local and not sites.local and not (self.summed and sites.enumerated):
            raise ProgramError(
                f"{self.name}: the program has no local latent (none stands in the plate of the "
                f"data); {self.local}"
            )
        if self.latents and not (sites.local or sites.global_ or sites.enumerated):
            raise ProgramError(f"{self.name}: the program has no latent; {self.latents}")
        discrete = sites.countless if self.sums else sites.discrete
        if self.continuous and discrete:
            many = ", of too many values to sum over" if self.sums else ""
            raise ProgramError(
                f"{self.name}: site {discrete[0]!r} is discrete{many}, and the verb needs "
                f"continuous latents; {self.continuous}"
            )
        if self.globals_ and sites.global_:
            raise ProgramError(f"{self.name}: site {sites.global_[0]!r} is global; {self.globals_}")


@dataclass(frozen=True)
class Pass:
    """Some rows of the data and the program on them.

    Arguments:
        batch: The rows.
        rows: Where they stand in the data.
        sites: The sites of this batch.
        joints: Model and guide on it, one pair for each draw of the globals.
        free: The pair that draws the globals itself.
        draws: The draws of the globals, by site; empty where there are none.
        row_bytes: The memory of a row, or of the widest tensor that the program makes of it.
    """

    batch: Batch
    rows: slice
    sites: Sites
    joints: list[Joint]
    free: Joint
    draws: list[dict[str, Tensor]]
    row_bytes: int

    @property
    def joint(self) -> Joint:
        """The pair at the first draw of the globals."""
        return self.joints[0]

    @property
    def globals_(self) -> dict[str, Tensor]:
        """The first draw of the globals, by site."""
        return self.draws[0] if self.draws else {}

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start


def _moved(answer: T) -> T:
    """Return a pass's answer in memory taken after what the pass itself held was given back.

    Else each answer lies in the midst of that, and the next pass finds no room there: a long stream
    fragments the heap.
    """
    return pytree.tree_map_only(Tensor, torch.clone, answer)


class Passes:
    """The data of one call of a verb, cut into passes, with one draw of the globals for all.

    Use it as a context: inside, weights are in eval mode and no gradient is taken. Data in memory
    are checked before the first pass, a stream (``Dataset``, ``DataLoader``, any iterable of
    batches) batch by batch.

    Arguments:
        program: What is asked.
        data: One row per datum, in any form that ``fit`` takes.
        verb: Who asks, and what for.
        rows: Data of one pass, at most.
        particles: Draws of the latents of each datum that stand side by side in a pass; they count
            towards the bound on rows.
        num_global_samples: S, draws of the global latents, where there are any.

    Raises:
        ConfigError: A count below 1, or another thread trains.
        DataError: Data that the program cannot take.
        ProgramError: The program lacks what the verb needs.
    """

    def __init__(
        self,
        program: "Program",
        data: Any,
        verb: Verb,
        *,
        rows: int = 1024,
        particles: int = 1,
        num_global_samples: int = 1,
    ) -> None:
        require_turn(verb.name)
        keep_freed_blocks()
        self.verb = verb
        self._rows = max(1, positive("batch_size", rows) // particles)
        self._particles = particles
        self._samples = positive("num_global_samples", num_global_samples)
        self._held = list(program.held)
        with ExitStack() as stack:
            stack.enter_context(forgotten_on_error(program))
            self._open(program, by_rows(tensors_of(data), program.row_precision))
            each = program.of_each_datum() if verb.guide and self.sites.dependence.joined else None
            if each is not None:
                self._open(each, by_rows(tensors_of(data), each.row_precision))
            self.program.rows.require_whole(
                self._first, in_guide=verb.codes and not self.sites.enumerated
            )
            verb.require(self.sites)
            # A verb that asks others of its data has told of them.
            if not (verb.simulates or verb.of_model or isinstance(data, Part)):
                self._tell_of_others(program.rows)
            self._stack = stack.pop_all()  # a stream may fail later

    def _open(self, program: "Program", data: Any) -> None:
        """Look at the first data, and read the program on them."""
        self.program = program
        self.frames: list[Any] = []  # data frames as they were given, for a verb that answers so
        self._rest: Iterator[Any] = iter(())
        self._streamed = is_stream(data)
        if self._streamed:
            self._rest = map(self._checked, map(program.unwrapped, batches(data, self._rows)))
            self._first = next(self._rest)
            require_rows(self._first)
        else:
            self._first = self._checked(data, alone=True)
        self._whole = program.rows.are_fixed(self._first)
        program.rows.require_own(self._first)
        self.sites = program.read(self._spread(self._first))

    def _checked(self, data: Any, alone: bool = False) -> Batch:
        """Return adapted data; ``alone``: all there are."""
        self.frames += frames_of(data) if self.verb.answers else []
        batch = self.program.adapt(data)
        batch = batch if alone else dense(batch)  # of a stream, it is no more than a batch
        if self.verb.simulates:
            batch = self.program.rows.stood_in(batch)
        elif alone:
            batch = self.program.rows.numbered(batch)
        self.program.check(batch, first_rows=self._rows_of(batch))
        batch = self.program.conform(batch)  # now that it is known which integers are counts
        if not self.verb.simulates:
            self.program.examples.remember(batch)
        return batch

    def _tell_of_others(self, rows: "Rows") -> None:
        """Tell of the first batch that the guide has no posteriors of, of a stream as they come."""
        rest, found = self._rest, rows.tell_of_others(self._first, self.verb.name)

        def watched() -> Iterator[Any]:
            told = found
            for batch in rest:
                told = told or rows.tell_of_others(batch, self.verb.name)
                yield batch

        self._rest = watched()

    @property
    def batch(self) -> Batch:
        """All data as one batch: what has come of a stream is kept."""
        rest = list(self._rest)
        if rest:
            self._first = join_batches([self._first, *rest])
            self._rest = iter(())
        return self._first

    @property
    def goes_on(self) -> bool:
        """Whether a stream has rows beyond those in memory."""
        following = next(self._rest, None)
        if following is not None:
            self._rest = chain([following], self._rest)
        return following is not None

    def beginning(self, rows: int) -> Batch:
        """Return all data in memory, or of a stream so many of its first rows, bounded in bytes.

        What a stream has beyond them is still to come.
        """
        held, count = [self._first], num_rows(self._first)
        most = self.rows_held(rows)
        while count < most and (batch := next(self._rest, None)) is not None:
            held.append(batch)
            count += num_rows(batch)
        if len(held) > 1:
            self._first = join_batches(held)
        return self._first

    def rows_held(self, rows: int) -> int:
        """Return how many rows of a stream may be held for a verb that asks for so many."""
        return max(1, min(rows, _BYTES_HELD // bytes_per_row(self._first)))

    @property
    def draws(self) -> list[dict[str, Tensor]]:
        """The draws of the globals, once a pass has been made; empty where there are none."""
        return self._held

    @property
    def total(self) -> int:
        """N; a stream is read to its end."""
        return num_rows(self.batch)

    def together(self) -> Iterator[Pass]:
        """Yield all data as one pass."""
        yield self.on(self.batch)

    def again(self, *, rows: int, num_global_samples: int = 1) -> "Passes":
        """Return the same data for another walk, in other passes and at other draws of the globals.

        Arguments:
            rows: Data of one pass, at most.
            num_global_samples: S.
        """
        self._first = self.batch
        other = copy.copy(self)
        other._rows, other._particles, other._samples = rows, 1, num_global_samples
        other._held, other._stack = list(self.program.held), ExitStack()
        return other

    def __enter__(self) -> "Passes":
        self._stack.enter_context(scoring(self.program))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def __iter__(self) -> Iterator[Pass]:
        start = 0
        first = self.batch if self._of_all else self._first
        for batch in released(chain([first], self._rest)):
            for piece in self._cut(batch):
                end = start + num_rows(piece)
                yield self.on(piece, slice(start, end))
                start = end

    def map(
        self, function: Callable[[Pass], T], *, progress: bool = False, lead: bool = False
    ) -> list[T]:
        """Return a function of each pass, in their order; processes share them out.

        Arguments:
            function: Of one pass.
            progress: Show a progress bar.
            lead: Whether the function keeps something of the first pass for the others.
        """
        pieces = iter(self.watched(progress))
        among = ranks()
        if among is None:
            return [_moved(function(piece)) for piece in pieces]
        require_equal(among, self._facts(among))
        return shared_out(among, pieces, lambda piece: _moved(function(piece)), lead=lead)

    def watched(self, progress: bool) -> Any:
        """Return the passes with a progress bar, where it is asked for; of a stream without end."""
        count = None if self._streamed else len(self._cut(self._first))
        return progress_bar(self, shown=progress, verb=self.verb.name, unit="batch", total=count)

    def _facts(self, among: Ranks) -> dict[str, str]:
        """Return what must be equal in all processes, hashed."""
        some = dict(named_arrays(self._spread(self._first)))
        sizes = f"{self._rows} {self._particles} {self._samples} {num_rows(self._first)}"
        return {
            "the verb": f"{self.verb.name} {sizes}",
            "the data": _digest(some),
            "the weights": _digest(self.program.state_dict()),
        }

    def on(self, piece: Batch, rows: slice | None = None) -> Pass:
        """Return the program on some rows, the globals held at the draws of this call."""
        joint = self.program.joint(piece)
        sites = self.program.read(piece)
        rows, width = rows or slice(0, num_rows(piece)), _row_bytes(self.program, piece)
        if not sites.global_:
            return Pass(piece, rows, sites, [joint], joint, [], width)
        self._hold(joint, sites)
        joints = [joint.fixing(held) for held in self._held]
        return Pass(piece, rows, sites, joints, joint, self._held, width)

    def _hold(self, joint: Joint, sites: Sites) -> None:
        """Draw the globals not held yet, from the guide on the first rows that have them.

        On all rows where it reads them.
        """
        self._held = self._held or [{} for _ in range(self._samples)]
        if not set(sites.global_) <= set(self._held[0]):
            if self._of_all:
                joint = self.program.joint(dense(self.batch))
            self._held = [{**joint.global_values(), **held} for held in self._held]

    @property
    def _of_all(self) -> bool:
        """Whether the guide draws globals that depend on the rows, or on latents of the data."""
        return bool(self.sites.dependence.informed or self.sites.dependence.following)

    def _spread(self, batch: Batch) -> Batch:
        """Return rows of one pass from all over a batch: what depends on them is seen by these."""
        rows = num_rows(batch)
        few = min(rows, max(2, self._rows_of(batch)))
        if self._whole or self.program.sites.size is not None or rows == few:
            return dense(batch)
        return map_rows(lambda leaf: leaf[torch.arange(few) * (rows - 1) // (few - 1)], batch)

    def _cut(self, batch: Batch) -> Sequence[Batch]:
        if self._whole or self.program.sites.size is not None:
            return [batch]  # such a program fixes its own batch
        return chunks(batch, self._rows_of(batch))

    def _rows_of(self, batch: Batch) -> int:
        """Return the rows of one pass at most."""
        rows = most_rows(self.program, batch, self._rows, self._particles)
        own = self.program.rows.total if isinstance(batch, Part) else None
        return min(rows, own or rows)


def _digest(tensors: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def holding(program: "Program", draws: list[dict[str, Tensor]]) -> Iterator[None]:
    """Let all verbs inside this block speak of the same draws of the global latents.

    Arguments:
        program: What is asked.
        draws: By site, as one verb's passes hold them; none: as ever.
    """
    before, program.held = program.held, draws
    try:
        yield
    finally:
        program.held = before


def runs(count: int, joint: Joint, piece: Pass, rows: int) -> list[int]:
    """Return K particles as runs of at most so many particle rows, bounded in bytes too."""
    if joint.alone:
        return [1] * count
    scale = _ON_A_GPU if cuda_devices(piece.batch) else 1
    most = max(1, min(scale * rows, BYTES_PER_PASS // piece.row_bytes) // len(piece))
    return [min(most, count - start) for start in range(0, count, most)]


def most_rows(program: "Program", batch: Batch, rows: int, particles: int = 1) -> int:
    """Return the rows of one pass, at most so many, bounded in bytes too.

    Arguments:
        program: What runs on them.
        batch: Some data.
        rows: The bound on rows.
        particles: Draws that stand side by side for each row.
    """
    return max(1, min(rows, BYTES_PER_PASS // (particles * _row_bytes(program, batch))))


def _row_bytes(program: "Program", batch: Batch) -> int:
    """Return the memory of a row, or of the widest tensor that a program makes of it."""
    return max(bytes_per_row(batch), program.reader.row_bytes.of(batch))


def bytes_per_row(batch: Batch) -> int:
    """Return the memory of the data of one row, at least 1."""
    whole = sum(leaf.numel() * leaf.element_size() for _, leaf in named_arrays(batch))
    return max(1, whole // num_rows(batch))


@contextmanager
def scoring(program: "Program") -> Iterator[None]:
    """Run inside with the program's parameters, in eval mode, at no gradient, unvalidated."""
    with evaluating(program), program.answering(), torch.no_grad(), validation(False):
        yield


def given_one_draw(held: Iterable[str]) -> str:
    """Return of which global latents an answer sees one draw, as it says so; "" without any."""
    names = ", ".join(map(repr, held))
    return f" given one draw of {names}" if names else ""
