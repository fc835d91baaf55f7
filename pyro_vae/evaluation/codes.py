"""Codes of data, and what is decoded from them: handlers around an unchanged model and guide."""

import warnings
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import positive, typed
from pyro_vae.callers import of_user
from pyro_vae.errors import ConfigError, DataError, ProgramError
from pyro_vae.evaluation.simulation import require_unread, simulated
from pyro_vae.evaluation.site_values import (
    AtMeans,
    Values,
    freed,
    join,
    mean_or_value,
    tell_of_others,
    values_of,
)
from pyro_vae.program.batches.batch import map_rows, num_rows
from pyro_vae.program.densities.joint import trace_of
from pyro_vae.program.handlers import sample_sites
from pyro_vae.program.passes import Pass, Verb
from pyro_vae.program.program import Program
from pyro_vae.program.sites.roles import latent_names, observed_names

_ROWS_PER_PASS = 1024
_ENCODE = Verb(
    "encode",
    local="there is nothing to encode: refine draws its global latents",
    summed=True,
    guide="posterior",
    codes=True,
)
_RECONSTRUCT = Verb("reconstruct", draws=True, answers=True)
_INTERPOLATE = Verb("interpolate", local="there are no codes to go between", draws=True)


@typed
def encode(program: Any, data: Any, *, sample: bool = False) -> Values:
    r"""Return the code of each datum: the mean of q(z | x), or a draw from it.

    Latents below the first are encoded at the means of those above them, at draws where those have
    no mean or are discrete. Global latents are held at one draw from the guide. No random number is
    used where every latent has a mean.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        data: One row per datum, ``(N, ...)``, or a ``Dataset``, a ``DataLoader``, batches to come.
        sample: Draw in place of the mean (a distribution without a known mean is always drawn).

    Returns:
        ``(N, *plates, *event)``; a dict by site where there are several local latents. Of a
        discrete latent that the guide leaves out, :math:`p(y \mid x, z)` of each of its values at
        the code of the others, ``(N, *plates, values)``, or a draw.

    Raises:
        DataError: Data that the program cannot take.
        ProgramError: The program has no local latent; or one outside the plate of the data is
            summed out.
    """

    def of(piece: Pass) -> dict[str, Tensor]:
        codes = _codes(piece, mean=not sample)
        found = values_of(codes, latent_names(codes), len(piece), mean=not sample)
        return found | (_discrete(piece, codes, sample=sample) if piece.sites.enumerated else {})

    with Program.of(program).passes(data, _ENCODE, rows=_ROWS_PER_PASS) as passes:
        return join("encode", passes.map(of))


def _discrete(piece: Pass, codes: Trace, *, sample: bool) -> dict[str, Tensor]:
    """Return what is known at given codes of the latents that the guide leaves out."""
    if not sample:
        found = piece.joint.posteriors_at(codes)
        return {name: value[0] for name, value in found.items()}
    complete = piece.joint.with_discrete(codes)
    trace = poutine.trace(poutine.replay(piece.joint.model, trace=complete))
    model = trace.get_trace(*piece.joint.args, **piece.joint.kwargs)
    return values_of(model, list(piece.sites.enumerated), len(piece), mean=False)


@typed
def reconstruct(program: Any, data: Any, *, mean: bool = True) -> Values:
    r"""Encode data and decode them again.

    .. math:: \hat x = \mathbb{E}[x \mid z], \quad z = \mathbb{E}_q[z \mid x]

    With ``mean=False`` both are drawn, z from q(z | x) and x from p(x | z). Of several observed
    sites each is decoded at draws of those before it. Discrete latents are drawn in any case, those
    that the guide leaves out from p(y | x, z). A model that reads the steps before from the
    argument which it observes is run step by step, as by ``generate``. Where no draw can take the
    place of the data that it reads (a total of them, say), it reads the data given, with a warning.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        data: One row per datum, ``(N, ...)``, or a ``Dataset``, a ``DataLoader``, batches to come.
        mean: Return the mean of p(x | z) at the code, the mode where values are names (sentences
            are decoded greedily); False draws both.

    Returns:
        ``(N, *plates, *event)``; a dict by site where the model observes several.

    Raises:
        DataError: Data that the program cannot take.
    """
    with Program.of(program).passes(data, _RECONSTRUCT, rows=_ROWS_PER_PASS) as passes:
        of = passes.program
        pieces = passes.map(lambda piece: decoded(of, piece, _codes(piece, mean=mean), mean=mean))
    return Program.of(program).shown(join("reconstruct", pieces), like=passes.frames)


@typed
def interpolate(program: Any, first: Any, second: Any, *, steps: int = 8) -> Values:
    r"""Decode the straight lines between the codes of pairs of data.

    .. math:: z_t = (1 - t)\,\mathbb{E}_q[z \mid a] + t\,\mathbb{E}_q[z \mid b], \quad t = 0 \dots 1

    Other inputs of the model (labels, lengths, real ones too) are not interpolated: up to t = 1/2
    a point is decoded with those of the first datum, beyond it with those of the second, so that
    each end is its own reconstruction. A model that reads the steps before from the argument which
    it observes is run step by step, as by ``reconstruct``.

    Arguments:
        program: Anything with ``.model`` and ``.guide``, with continuous latents.
        first, second: Data at the two ends, ``(N, ...)`` each.
        steps: Points on each line, both ends included; at least 2.

    Returns:
        Means of p(x | z), ``(N, steps, *plates, *event)``; sentences are decoded greedily.

    Raises:
        ConfigError: Fewer than two steps.
        DataError: Unequal numbers of rows, or data that the program cannot take.
        ProgramError: No local latent, one with class numbers for values, or ends that differ in
            their sites.
    """
    if positive("steps", steps) < 2:
        raise ConfigError(f"steps: got {steps}, expected at least 2")
    wrapped = Program.of(program)
    rows = max(1, _ROWS_PER_PASS // steps)
    passes = wrapped.passes(first, _INTERPOLATE, rows=rows)
    ends = wrapped.passes(second, _INTERPOLATE, rows=rows).batch
    if passes.total != num_rows(ends):
        raise DataError(f"got {passes.total} and {num_rows(ends)} rows, expected pairs")
    pieces = []
    with passes:
        for piece in passes:
            there = map_rows(lambda leaf, rows=piece.rows: leaf[rows], ends)  # type: ignore[misc]
            pieces.append(_line(passes.program, piece, passes.on(there, piece.rows), steps))
    return join("interpolate", pieces)


def _line(program: Program, start: Pass, end: Pass, steps: int) -> dict[str, Tensor]:
    """Return the points between the data of two passes, ``(B, steps, ...)`` by observed site."""
    a, b = (_means(piece) for piece in (start, end))
    _require_alike("have", a, b)
    points = []
    for t in torch.linspace(0, 1, steps).tolist():
        codes = trace_of({name: torch.lerp(value, b[name], t) for name, value in a.items()})
        points.append(decoded(program, start if t <= 0.5 else end, codes, mean=True))
    _require_alike("observe", points[0], points[-1])
    return {name: torch.stack([p[name] for p in points], dim=1) for name in points[0]}


def _require_alike(verb: str, first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Refuse the two ends of a line whose sites are others, or of other shapes."""
    if first.keys() != second.keys():
        raise ProgramError(
            f"interpolate: the first data {verb} the sites {sorted(first)}, the second "
            f"{sorted(second)}; give both the same inputs"
        )
    for name, value in first.items():
        if value.shape != second[name].shape:
            raise ProgramError(
                f"interpolate: site {name!r} has shape {tuple(value.shape)} at the first data and "
                f"{tuple(second[name].shape)} at the second; pad sequences to one length, both in "
                "one call of pv.data.pad or Vocabulary.numbers"
            )


def _means(piece: Pass) -> dict[str, Tensor]:
    """Return the codes of the local latents in the shapes of their sites."""
    codes = _codes(piece, mean=True)
    sites = dict(sample_sites(codes))
    means = {name: mean_or_value(sites[name]) for name in latent_names(codes)}
    for name, value in means.items():
        if not value.is_floating_point():
            raise ProgramError(
                f"interpolate: site {name!r} has class numbers for values, and nothing lies "
                "between two of them; use a one-hot distribution"
            )
    return means


def _codes(piece: Pass, *, mean: bool) -> Trace:
    """Return the trace of the guide, at means where it has them or at draws."""
    guide = AtMeans()(piece.joint.guide) if mean else piece.joint.guide
    return poutine.trace(guide).get_trace(*piece.joint.args, **piece.joint.kwargs)


def decoded(program: Program, piece: Pass, codes: Trace, *, mean: bool) -> dict[str, Tensor]:
    """Return the observed sites of the model at given latents, ``(B, *plates, *event)`` each."""
    if piece.sites.enumerated:
        codes = piece.joint.with_discrete(codes)

    def draw(model: Any) -> Any:
        # A replay, not a condition: conditioned sites count as observed, and would be drawn anew.
        return freed(piece, poutine.replay(model, trace=codes), mean=mean)

    try:
        require_unread(program, piece, draw)
        trace, _ = simulated(program, piece, draw)
    except ProgramError as error:
        run = poutine.trace(draw(piece.joint.model))
        trace = run.get_trace(*piece.joint.args, **piece.joint.kwargs)  # may say why it cannot
        told = f"the data given are read where what is decoded cannot be: {error}"
        warnings.warn(told, stacklevel=of_user())
    tell_of_others(piece, trace)
    return values_of(trace, observed_names(trace), len(piece), mean=mean)
