"""Generation, reconstruction and codes: handlers around an unchanged model and guide."""

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import positive
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.program.batch import Batch, arguments, chunks, num_rows
from pyro_vae.program.bounds import passes, scoring
from pyro_vae.program.handlers import sample_sites
from pyro_vae.program.program import Program

_ROWS_PER_PASS = 1024
Values = Tensor | dict[str, Tensor]  # one site: its tensor; several: by name


def generate(program: Any, n: int, *, given: Any = None, mean: bool = False) -> Values:
    r"""Draw n data from the model: latents from the prior, then the observed sites.

    .. math:: z \sim p(z), \quad x \sim p(x \mid z)

    Global latents take one draw from the guide: what was learnt of them. Random
    numbers come from torch's global generator.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        n: Number of data.
        given: A batch of n rows with the model's other inputs (labels, lengths, masks); observed
            values in it are ignored. Without it the inputs are rows of the program's example.
        mean: Return the mean of p(x | z) at the drawn latents, not a draw (smoother pictures).

    Returns:
        ``(n, ...)``; a dict by site where the model observes several.

    Raises:
        ConfigError: n below 1.
        DataError: ``given`` has another number of rows.
        ProgramError: The program has no prior.
    """
    wrapped = Program.of(program)
    positive("n", n)
    batch = _inputs(wrapped, n, given)
    wrapped.require_prior("generate")
    pieces = []
    with scoring(wrapped):
        model, _ = _at_one_draw(wrapped, batch)
        for piece in chunks(batch, _ROWS_PER_PASS):
            args, kwargs = arguments(piece)
            trace = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
            pieces.append(_observed(wrapped, trace, mean))
    return _join(pieces)


def generate_with_latents(
    program: Program, n: int, given: Any = None
) -> tuple[Batch, dict[str, Tensor]]:
    """Return a simulated batch and the local latents that made it, ``(n, ...)`` by site."""
    batch = _inputs(program, n, given)
    program.require_prior("simulating data")
    args, kwargs = arguments(batch)
    with scoring(program):
        trace = poutine.trace(poutine.uncondition(program.functions[0])).get_trace(*args, **kwargs)
    drawn = {name: site["value"] for name, site in sample_sites(trace)}
    values = {name: drawn[name] for name in program.sites.observed}
    latents = {name: drawn[name] for name in program.sites.local}
    return program.replace(batch, values), latents


def _at_one_draw(program: Program, batch: Batch) -> tuple[Any, Any]:
    """Return model and guide with the global latents, if any, held at one draw from the guide."""
    joint = program.joint(batch)
    if program.sites.global_:
        joint = joint.fixing(joint.global_values())
    return joint.model, joint.guide


def _inputs(program: Program, n: int, given: Any) -> Batch:
    """Return n rows of the model's inputs; ``given`` introduces a program that has seen no data."""
    if given is None:
        return program.example(n)
    batch = program.adapt(given)
    if num_rows(batch) != n:
        raise DataError(f"given: got {num_rows(batch)} rows, expected n = {n}")
    program.read(batch)
    return batch


def reconstruct(program: Any, data: Any, *, mean: bool = True) -> Values:
    r"""Encode data and decode them again.

    .. math:: z \sim q(z \mid x), \quad \hat x = \mathbb{E}[x \mid z]

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        data: One row per datum, ``(N, ...)``.
        mean: Return the mean of p(x | z); False draws from it.

    Returns:
        ``(N, ...)``; a dict by site where the model observes several.

    Raises:
        DataError: Data that the program cannot take.
    """
    wrapped = Program.of(program)
    pieces = []
    batches = _checked(wrapped, data)
    with scoring(wrapped):
        model, guide = _at_one_draw(wrapped, batches[0])
        for piece in batches:
            args, kwargs = arguments(piece)
            codes = poutine.trace(guide).get_trace(*args, **kwargs)
            decoder = poutine.uncondition(poutine.replay(model, trace=codes))
            trace = poutine.trace(decoder).get_trace(*args, **kwargs)
            pieces.append(_observed(wrapped, trace, mean))
    return _join(pieces)


def encode(program: Any, data: Any, *, sample: bool = False) -> Values:
    r"""Return the code of each datum: the mean of q(z | x), or a draw from it.

    Latents below the first are encoded at the draws above them.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        data: One row per datum, ``(N, ...)``.
        sample: Draw in place of the mean (a distribution without a known mean is always drawn).

    Returns:
        ``(N, Z)``; a dict by site where there are several local latents.

    Raises:
        DataError: Data that the program cannot take.
    """
    wrapped = Program.of(program)
    pieces = []
    for piece in _checked(wrapped, data):
        args, kwargs = arguments(piece)
        with scoring(wrapped):
            guide = poutine.trace(wrapped.functions[1]).get_trace(*args, **kwargs)
        drawn = dict(sample_sites(guide))
        sites = {name: drawn[name] for name in wrapped.sites.local}
        pieces.append({name: s["value"] if sample else _mean(s) for name, s in sites.items()})
    return _join(pieces)


def interpolate(program: Any, first: Any, second: Any, *, steps: int = 8) -> Values:
    r"""Decode the straight lines between the codes of pairs of data.

    .. math:: z_t = (1 - t)\,\mathbb{E}_q[z \mid a] + t\,\mathbb{E}_q[z \mid b], \quad t = 0 \dots 1

    Arguments:
        program: Anything with ``.model`` and ``.guide``, with continuous latents.
        first, second: Data at the two ends, ``(N, ...)`` each.
        steps: Points on each line, both ends included; at least 2.

    Returns:
        Means of p(x | z), ``(N, steps, ...)``.

    Raises:
        ConfigError: Fewer than two steps.
        DataError: Unequal numbers of rows, or data that the program cannot take.
    """
    wrapped = Program.of(program)
    if positive("steps", steps) < 2:
        raise ConfigError(f"steps: got {steps}, expected at least 2")
    a, b = _as_dict(wrapped, encode(program, first)), _as_dict(wrapped, encode(program, second))
    start, rows = wrapped.adapt(first), num_rows(wrapped.adapt(second))
    if num_rows(start) != rows:
        raise DataError(f"got {num_rows(start)} and {rows} rows, expected pairs")
    pieces = []
    with scoring(wrapped):
        args, kwargs = arguments(start)
        model, _ = _at_one_draw(wrapped, start)
        for t in torch.linspace(0, 1, steps).tolist():
            codes = {name: torch.lerp(a[name], b[name], t) for name in a}
            pieces.append(_decoded(wrapped, model, codes, args, kwargs))
    if len(wrapped.sites.observed) == 1:
        return torch.stack([piece[wrapped.sites.observed[0]] for piece in pieces], dim=1)
    return {name: torch.stack([p[name] for p in pieces], dim=1) for name in pieces[0]}


def _decoded(
    program: Program, model: Any, codes: dict[str, Tensor], args: Any, kwargs: Any
) -> dict[str, Tensor]:
    # A replay, not a condition: conditioned sites count as observed, and would be drawn anew.
    trace = Trace()
    for name, value in codes.items():
        trace.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})
    replayed = poutine.uncondition(poutine.replay(model, trace=trace))
    return _observed(program, poutine.trace(replayed).get_trace(*args, **kwargs), mean=True)


def _checked(program: Program, data: Any) -> list[Batch]:
    batch = program.adapt(data)
    program.check(batch)
    program.require_guide("encoding")
    program.require_whole(batch)
    return passes(program, batch, _ROWS_PER_PASS)


def _observed(program: Program, trace: Trace, mean: bool) -> dict[str, Tensor]:
    drawn = dict(sample_sites(trace))
    sites = {name: drawn[name] for name in program.sites.observed}
    return {name: _mean(site) if mean else site["value"] for name, site in sites.items()}


def _mean(site: Any) -> Tensor:
    """Return the mean of a site's distribution; its value where no mean is known."""
    try:
        mean = site["fn"].mean
    except (NotImplementedError, AttributeError):
        return site["value"]
    # A categorical distribution answers NaN: class numbers have no mean.
    known = mean.shape == site["value"].shape and not bool(torch.isnan(mean).all())
    return mean if known else site["value"]


def _join(pieces: list[dict[str, Tensor]]) -> Values:
    joined = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    return next(iter(joined.values())) if len(joined) == 1 else joined


def _as_dict(program: Program, values: Values) -> dict[str, Tensor]:
    return values if isinstance(values, dict) else {program.sites.local[0]: values}
