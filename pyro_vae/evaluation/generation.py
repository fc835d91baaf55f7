"""Data drawn from the model, with the latents that made them."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_vae.arguments import counted, positive, shown, typed
from pyro_vae.errors import ConfigError, DataError, ProgramError, PyroVaeError
from pyro_vae.evaluation.simulation import (
    require_observed,
    require_unread,
    simulated,
    values_at,
)
from pyro_vae.evaluation.site_values import (
    Values,
    freed,
    join,
    tell_of_others,
    values_of,
)
from pyro_vae.program.batches.batch import (
    Batch,
    Whole,
    cuda_devices,
    map_rows,
    num_rows,
)
from pyro_vae.program.batches.streams import frames_of, join_batches
from pyro_vae.program.densities.particles import Scattered
from pyro_vae.program.handlers import DrawnData, sample_sites
from pyro_vae.program.passes import Pass, Verb, holding
from pyro_vae.program.program import Program
from pyro_vae.program.sites.roles import latent_names, observed_names
from pyro_vae.threads import require_turn

_ROWS_PER_PASS = 1024
_ROWS_OF_A_LOOK = 64  # draws of two values agree at all of them by chance nowhere
_DRAWS_OF_A_LOOK = 8  # where there are fewer rows
_SHOW = (
    "show the program what it draws, in data such as it was trained on: "
    "pv.Program.of(program).read(data); what is observed of them may be any values of its shape "
    "and support, for it is drawn anew"
)
_GENERATE = Verb("generate", prior=True, simulates=True)


@typed
def generate(program: Any, n: int, *, given: Any = None, mean: bool = False) -> Values:
    r"""Draw n data from the model: latents from the prior, then the observed sites.

    .. math:: z \sim p(z), \quad x \sim p(x \mid z)

    Global latents take one draw from the guide: what was learnt of them. A model that reads the
    steps before from the argument which it observes is run step by step. Random numbers come from
    torch's global generator.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        n: Number of data.
        given: The model's other inputs (labels, lengths, masks), n rows: a whole batch, whose
            observed values are drawn anew, or a dict of arguments by name, which may leave out what
            is observed, or have None there, ``(x, None)``. What is observed of a dict that leaves
            out some of it is kept, and the rest drawn given it: ``{"y": labels}`` of a model of
            images x with labels y. Without ``given`` the inputs are rows drawn at random from the
            data that the program has seen (up to a thousand rows of the largest set are
            remembered), which the answer does not tell: give lengths to know them,
            ``{"lengths": 20}`` for 20 steps of each. Steps behind a length are drawn too where the
            model masks them (``.mask(inside)``), and mean nothing; a
            ``Padded`` distribution has 0 there.
        mean: Return the mean of p(x | z) at the drawn latents, not a draw (smoother pictures);
            sentences are decoded greedily.

    Returns:
        ``(n, *plates, *event)``; a dict by site where the model observes several.

    Raises:
        ConfigError: n below 1.
        DataError: ``given`` has another number of rows, or names what is observed and no input.
        ProgramError: The program has no prior, or has seen no data and is given none; or what is
            kept depends on what is drawn, so that draws given it need a posterior.
    """
    require_turn("generate")  # the inputs may be drawn
    wrapped = Program.of(program)
    if hasattr(n, "shape") and n.shape:
        raise ConfigError(
            f"n: got {shown(n)}, expected a number of data; inputs of the model are given="
        )
    batch, kept = _inputs(wrapped, positive("n", n), given)
    pieces: list[dict[str, Tensor]] = []
    held: list[dict[str, Tensor]] = []
    for some in _of_own_number(wrapped, batch):
        with (
            holding(wrapped, held),
            wrapped.passes(some, _GENERATE, rows=_ROWS_PER_PASS) as passes,
        ):
            times = n if isinstance(passes.batch, Whole) else 1  # its rows cannot be repeated
            for _ in range(times):
                pieces += [_observed(wrapped, piece, kept, mean=mean) for piece in passes]
            held = passes.draws
    drawn = wrapped.shown(
        join("generate", pieces), like=None if given is None else frames_of(given)
    )
    return {k: v[:n] for k, v in drawn.items()} if isinstance(drawn, dict) else drawn[:n]


def _of_own_number(program: Program, batch: Batch) -> Iterator[Batch]:
    """Yield inputs, as many at a time as a program takes that is fixed to the number of its rows.

    Its guide has a factor for each of its own data, and says nothing of others but what all share.
    """
    own = program.rows.told or program.rows.fixed_to
    adapted = program.adapt(batch)
    if own is None or isinstance(adapted, Whole) or num_rows(adapted) == own:
        yield batch
        return
    rows = num_rows(adapted)
    filled = torch.arange(-(-rows // own) * own) % rows
    for some in filled.split(own):
        yield program.as_given(map_rows(lambda leaf, some=some: leaf[some], adapted))  # type: ignore[misc]


def _observed(
    program: Program, piece: Pass, kept: Collection[str], *, mean: bool
) -> dict[str, Tensor]:
    """Return the observed sites of a pass, drawn, or their means; some as they are given."""

    def draw(model: Any) -> Any:
        return freed(piece, model, mean=mean, but=kept)

    if kept and not piece.rows.start:
        _require_independent(program, piece, kept)
    require_unread(program, piece, draw)
    trace, _ = simulated(program, piece, draw)
    tell_of_others(piece, trace)
    given = values_of(trace, list(kept), len(piece), mean=False)
    return values_of(trace, observed_names(trace), len(piece), mean=mean) | given


def _require_independent(program: Program, piece: Pass, kept: Collection[str]) -> None:
    """Refuse observed values whose density moves with what is drawn: draws given them differ.

    Raises:
        ProgramError: Names the site.
    """
    several = _repeated(program, piece)
    found: list[dict[str, Tensor]] = []
    draws = 2 if several is not piece else _DRAWS_OF_A_LOOK
    # At last each value of a discrete latent at as many rows: one may be drawn once in a thousand.
    ways: list[AbstractContextManager[Any]] = [*[nullcontext()] * draws, Scattered(0)]
    for count, each in enumerate(ways):
        with torch.random.fork_rng(cuda_devices(piece.batch)), each:
            torch.rand(count + 1)
            trace, _ = simulated(program, several, DrawnData(kept))
        sites = dict(sample_sites(trace))
        found.append({name: sites[name]["fn"].log_prob(sites[name]["value"]) for name in kept})
    for name in kept:
        first, *others = (each[name] for each in found)
        if any(first.shape != o.shape or not torch.allclose(first, o, 1e-4, 1e-5) for o in others):
            raise ProgramError(
                f"generate: given has values of site {name!r}, whose distribution depends on what "
                "is drawn, so that draws given it need a posterior; keep of more draws those that "
                f"have it (pv.generate(program, n)[{name!r}]), or make it an input of the model, "
                "without obs= (of M2, m2.conditional with given={'c': ...})"
            )


def _repeated(program: Program, piece: Pass) -> Pass:
    """Return some rows again and again, where a program takes any number of them."""
    if program.rows.own is not None or piece.sites.size or len(piece) >= _ROWS_OF_A_LOOK:
        return piece
    again = torch.arange(_ROWS_OF_A_LOOK) % len(piece)
    batch = map_rows(lambda leaf: leaf[again.to(leaf.device)], piece.batch)
    joint = program.joint(batch)
    joint = joint.fixing(piece.globals_) if piece.globals_ else joint
    return replace(piece, batch=batch, rows=slice(0, len(again)), joints=[joint])


@dataclass(frozen=True)
class Simulated:
    """What the model drew for some rows, and the arguments on which it is scored.

    Arguments:
        batch: The rows, with the draws written in where the model observes its arguments.
        observed: Draws by site, as a trace holds them, where it computes what it observes: they are
            then observed in their own right, at the arguments as they were given. Else empty.
        data: The same draws by site, ``(B, *plates, *event)``.
        latents: The local latents that made them, by site, ``(B, *plates, *event)``.
    """

    batch: Batch
    observed: dict[str, Tensor]
    data: dict[str, Tensor]
    latents: dict[str, Tensor]


def simulate(program: Program, piece: Pass) -> Simulated:
    """Draw latents and data of the rows of a pass, at its first draw of the globals."""
    trace, batch = simulated(program, piece, DrawnData())
    names = observed_names(trace)
    observed = values = values_at(trace, names)
    bindings = [piece.sites.bindings.get(name) for name in names]
    if all(each is not None for each in bindings):
        try:
            batch, observed = require_observed(program, piece, values), {}
        except PyroVaeError:  # the model may not run on them either
            if not any(each is not None and each.computed for each in bindings):
                raise
    rows = len(piece)
    data = values_of(trace, names, rows, mean=False)
    return Simulated(batch, observed, data, values_of(trace, latent_names(trace), rows, mean=False))


def simulated_data(program: Program, made: list[Simulated]) -> Any:
    """Return the simulated batch of all passes; draws by site where it cannot hold them."""
    if any(each.observed for each in made):
        return join("bdmc", [each.data for each in made])
    return program.as_given(join_batches([each.batch for each in made]))


def inputs(program: Program, n: int, given: Any) -> Batch:
    """Return n rows of the model's inputs; ``given`` introduces a program that has seen no data.

    Raises:
        DataError: Another number of rows, or some of what is observed, which is drawn.
    """
    batch, kept = _inputs(program, n, given)
    if kept:
        raise _drawn_anyway(given)
    return batch


def _inputs(program: Program, n: int, given: Any) -> tuple[Batch, list[str]]:
    """Return n rows of inputs, and the sites whose observed values among them are kept."""
    if given is None:
        return program.as_given(program.examples.inputs(n)), []
    given = program.examples.in_rows(program.examples.without_none(given), n)
    if given is None:
        return _inputs(program, n, None)
    try:
        rows = num_rows(program.adapt(given))
        whole = isinstance(program.adapt(given), Whole)
        if rows == n or whole:
            return _completed(program, n, given)
    except DataError as error:
        raise DataError(f"{error}{_instead(program, given)}") from error
    except ProgramError as error:
        if program.examples.known:
            raise
        raise ProgramError(f"{error}; or {_SHOW}") from error
    raise DataError(f"given: got {counted(rows, 'row')}, expected n = {n}")


def _completed(program: Program, n: int, given: Any) -> tuple[Batch, list[str]]:
    named = given if isinstance(given, Mapping) else program.examples.by_name(given)
    if not isinstance(named, Mapping):
        if not program.examples.known:
            _read(program, given)
        return given, []
    lacks = isinstance(given, Mapping) and _lacks_observed(program, given)
    batch = program.examples.completed(named, n, optional=lacks)
    try:
        _read(program, batch)
    except (DataError, ProgramError):  # what is observed may be optional, and no latent of the
        # guide's, which may have no such option
        if not program.examples.known:
            raise
        batch = program.examples.completed(named, n, optional=True)
        _read(program, batch)
    observed = program.examples.observed(program.adapt(batch))
    others = program.examples.names(batch) - observed.keys()
    if named and named.keys() == observed.keys() and others:
        raise _drawn_anyway(named)
    kept = named.keys() & observed.keys() if observed.keys() - named.keys() else ()
    whole = isinstance(batch, Mapping) and batch.keys() == named.keys()
    return given if whole else batch, [s for name in kept for s in observed[name]]


def _lacks_observed(program: Program, named: Mapping[str, Any]) -> bool:
    """Return whether arguments have some of what the data seen had observed, and lack the rest.

    The model may run without the rest, and sum it out.
    """
    try:
        observed = program.examples.observed(program.examples.example()).keys()
    except ProgramError:  # they introduce the program
        return False
    return bool(observed & named.keys() and observed - named.keys())


def _read(program: Program, batch: Batch) -> None:
    """Read a program on inputs; one with a factor for each of its own rows is known, or refuses."""
    if program.rows.own is None:
        program.read(program.adapt(batch))


def _instead(program: Program, given: Any) -> str:
    """Return what ``given`` may hold, where the model cannot take it."""
    takes = program.examples.arguments
    values = given.values() if isinstance(given, Mapping) else given
    container = isinstance(given, Mapping | tuple | list)
    if container and not program.examples.known and any(each is None for each in values):
        return f"; {_SHOW}"
    if isinstance(given, Mapping):
        strange = [name for name in given if name not in takes]
        if strange:
            them = ", ".join(takes)
            return f"; given: {strange[:1]} is no argument of the model, which takes {them}"
        longer = "; given has lengths beyond the steps of the data that the program has seen"
        return longer if program.examples.lengthened(given) else ""
    return f"; name what is given: given={{{takes[-1]!r}: ...}}" if len(takes) > 1 else ""


def _drawn_anyway(given: Any) -> DataError:
    """Return what to say where observed values are given in place of inputs."""
    return DataError(
        f"given: got {sorted(given)} alone, which the model observes, so that it is drawn and "
        "conditions nothing; give what the model takes as an input, or ask one that takes it "
        "so (of M2, m2.conditional with given={'c': ...})"
    )
