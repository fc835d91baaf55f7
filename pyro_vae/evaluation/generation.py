"""Data drawn from the model, with the latents that made them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyro_vae.arguments import positive, typed
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.evaluation.simulation import require_observed, simulated, values_at
from pyro_vae.evaluation.site_values import (
    Values,
    freed,
    join,
    values_of,
)
from pyro_vae.program.batch import Batch, Whole, num_rows
from pyro_vae.program.handlers import DrawnData
from pyro_vae.program.passes import Pass, Verb
from pyro_vae.program.program import Program
from pyro_vae.program.roles import latent_names, observed_names
from pyro_vae.program.streams import join_batches
from pyro_vae.threads import require_turn

_ROWS_PER_PASS = 1024
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
        given: The model's other inputs (labels, lengths, masks), n rows: a batch, whose observed
            values are ignored, or a dict of arguments by name, which may leave out what is
            observed. Without it the inputs are rows drawn at random from the data that the program
            has seen (up to a thousand rows of the largest set are remembered).
        mean: Return the mean of p(x | z) at the drawn latents, not a draw (smoother pictures).

    Returns:
        ``(n, *plates, *event)``; a dict by site where the model observes several.

    Raises:
        ConfigError: n below 1.
        DataError: ``given`` has another number of rows.
        ProgramError: The program has no prior, or has seen no data and is given none.
    """
    require_turn("generate")  # the inputs may be drawn
    wrapped = Program.of(program)
    batch = inputs(wrapped, positive("n", n), given)
    with wrapped.passes(batch, _GENERATE, rows=_ROWS_PER_PASS) as passes:
        times = n if isinstance(passes.batch, Whole) else 1  # its rows cannot be repeated
        pieces = [_observed(wrapped, piece, mean=mean) for _ in range(times) for piece in passes]
    return join("generate", pieces)


def _observed(program: Program, piece: Pass, *, mean: bool) -> dict[str, Tensor]:
    """Return the observed sites of a pass, drawn, or their means."""
    trace = simulated(program, piece, lambda model: freed(piece, model, mean=mean))
    return values_of(trace, observed_names(trace), len(piece), mean=mean)


def generate_with_latents(
    program: Program, n: int, verb: Verb, given: Any = None
) -> tuple[Batch, dict[str, Tensor], list[dict[str, Tensor]]]:
    """Return a simulated batch, and what made it: local latents by site, and those of all data.

    Local latents are ``(n, *plates, *event)``; the global ones are the draws of one verb's passes.
    """
    require_turn(verb.name)
    batches, latents = [], []
    with program.passes(inputs(program, n, given), verb, rows=_ROWS_PER_PASS) as passes:
        for piece in passes:
            trace = simulated(program, piece, DrawnData())
            values = values_at(trace, observed_names(trace))
            batches.append(require_observed(program, piece, values))
            latents.append(values_of(trace, latent_names(trace), len(piece), mean=False))
    joined = join(verb.name, latents) if latents[0] else {}
    if isinstance(joined, Tensor):
        joined = {next(iter(latents[0])): joined}
    return program.as_given(join_batches(batches)), joined, passes.draws


def inputs(program: Program, n: int, given: Any) -> Batch:
    """Return n rows of the model's inputs; ``given`` introduces a program that has seen no data."""
    if given is None:
        return program.as_given(program.examples.inputs(n))
    adapted = program.adapt(given)
    rows = num_rows(adapted)
    if rows != n and not isinstance(adapted, Whole):
        raise DataError(f"given: got {rows} rows, expected n = {n}")
    if not isinstance(given, Mapping):
        return given
    batch = program.examples.completed(given, n)
    try:
        program.read(program.adapt(batch))
    except ProgramError:  # what is observed may be optional, and no latent of the guide's
        batch = program.examples.completed(given, n, optional=True)
    return batch
