"""The ELBO per datum, as a number: no gradient, weights in eval mode."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.arguments import positive, typed
from pyro_vae.errors import ProgramError
from pyro_vae.program.batches.batch import Batch, chunks, dense, num_rows
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.densities.points import points_of, tell_of_points
from pyro_vae.program.densities.terms import Terms
from pyro_vae.program.passes import Pass, Verb, most_rows, scoring
from pyro_vae.program.program import Program

_ELBO = Verb("elbo")


@typed
def elbo(
    program: Any,
    data: Any,
    *,
    num_particles: int = 1,
    num_global_samples: int = 1,
    batch_size: int = 1024,
) -> Tensor:
    r"""Estimate the evidence lower bound of each datum.

    .. math:: \mathbb{E}_{q(w)}\Big[\mathbb{E}_{q(z \mid x)} \log \frac{p(x, z \mid w)}{q(z \mid x)}
       + \frac{1}{N} \log \frac{p(w)}{q(w)}\Big]

    Discrete latents that the guide leaves out are summed out exactly; those that it draws are
    drawn, also where it marks them for enumeration: the estimate is then a sampled one.
    Weights that the program puts on its terms are in, as in training, and so are the guide's
    factors. The density of what the guide observes too, and marks as auxiliary (CEVAE), is taken
    off, as in the loss of stock SVI: no bound then; ``log_likelihood`` leaves it out. Where a site
    outside the plate depends on the data's latents, or on their rows (a global latent in the guide,
    too), one pass holds all data, whatever ``batch_size``. The mean over the data is the bound per
    datum; with global sites each datum bears 1/N of their KL, N being the number of rows given. All
    data see the same S draws of the globals. Random numbers come from torch's global generator.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        data: One row per datum, ``(N, ...)``, or a ``Dataset``, a ``DataLoader``, batches to come.
        num_particles: K draws of the local latents; of all latents, S K, from a guide that draws
            those of all data at once (AutoMultivariateNormal).
        num_global_samples: S draws of the global latents.
        batch_size: Particles times rows per pass; bounds the memory.

    Returns:
        ``(N,)``, nats.

    Raises:
        DataError: Data that the program cannot take.
        ProgramError: A latent that is summed out couples the data, and a pass holds a part of them.
    """
    values, of_globals = _parts(program, data, num_particles, num_global_samples, batch_size)
    return values + of_globals


def elbo_given_globals(program: Any, data: Any, *, num_global_samples: int = 10) -> Tensor:
    r"""Estimate the lower bound of each datum given the globals, whose own KL is in no datum's.

    .. math:: \mathbb{E}_{q(w)} \mathbb{E}_{q(z \mid x)} \log \frac{p(x, z \mid w)}{q(z \mid x)}

    What the data share divided by their number would depend on how many are asked.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        data: One row per datum, ``(N, ...)``.
        num_global_samples: S draws of the globals, the same for all data.

    Returns:
        ``(N,)``, nats.
    """
    return _parts(program, data, 1, num_global_samples, 1024)[0]


def _parts(
    program: Any, data: Any, num_particles: int, num_global_samples: int, batch_size: int
) -> tuple[Tensor, Tensor | float]:
    """Return what each datum bears alone, ``(N,)``, and its part of what all share."""
    count = positive("num_particles", num_particles)
    samples = positive("num_global_samples", num_global_samples)
    with Program.of(program).passes(
        data, _ELBO, rows=batch_size, particles=count, num_global_samples=samples
    ) as passes:
        dependence = passes.sites.dependence
        points: set[str] = set()

        def parts(piece: Pass) -> tuple[Tensor, Tensor | float]:
            if dependence.following:  # each draw of these globals goes with its own of the latents
                terms = [piece.free.terms(samples, count)]
            elif dependence.joined and count > 1:  # the latents of all data are one draw
                terms = [piece.free.terms(samples * count)]
            else:
                terms = [joint.terms(1, count) for joint in piece.joints]
            if terms[0].coupled and len(piece) < passes.total:
                raise ProgramError(
                    f"elbo: site {terms[0].coupled[0]!r} is summed out for all data at once; let "
                    f"one pass hold them: batch_size={count * passes.total}"
                )
            points.update(points_of(terms[0], dependence))
            if passes.program.reader.told_whole:  # latents of the rows are global then
                points.update(dependence.fixed)
            values = torch.stack([each.signal.mean((0, 1)) for each in terms]).mean(0)
            return values, sum(_of_globals(each) for each in terms) / len(terms)

        together = dependence.needs_all or bool(dependence.joined)
        found = [*map(parts, passes.together())] if together else passes.map(parts)
        tell_of_points("elbo", points)
        values = torch.cat([own for own, _ in found])
        shared = found[0][1]  # of every pass the same
        return values, shared / (passes.sites.size or len(values))


def mean_elbo(program: Program, batch: Batch, *, size: int, batch_size: int = 1024) -> float:
    """Return the mean ELBO per datum of checked data, for a training set of ``size`` (one sync)."""
    with scoring(program):
        joints = _joints(program, batch, size, batch_size, judged=True)
        values = [_per_datum(joint.terms()) for _, joint in joints]
    return torch.cat(values).mean().item()


def mean_bound(
    program: Program, batch: Batch, objective: Any, *, size: int, batch_size: int = 1024
) -> float:
    """Return minus the un-annealed loss of an objective on checked data, per datum (one sync)."""
    while num_rows(batch) % batch_size == 1 and batch_size > 2:
        batch_size -= 1  # one row alone has no other to be compared with
    with scoring(program):
        losses = [
            objective.per_datum(joint) * num_rows(piece)
            for piece, joint in _joints(program, batch, size, batch_size, judged=True)
        ]
    return -(torch.stack(losses).sum() / num_rows(batch)).item()


def _joints(
    program: Program, batch: Batch, size: int, batch_size: int, *, judged: bool = False
) -> Iterator[tuple[Batch, Joint]]:
    """Yield the passes of checked data, all at one draw of the globals.

    One pass holds all data where a bound speaks of those that a pass holds.
    """
    pieces = passes(program, batch, batch_size)
    held: dict[str, Tensor] = {}
    for place, piece in enumerate(pieces):
        sites = program.read(piece)
        if place == 0 and len(pieces) > 1 and sites.dependence.needs_all:
            whole = dense(batch)
            yield whole, program.joint(whole, size=size, judged=judged)
            return
        joint = program.joint(piece, size=size, judged=judged)
        if len(pieces) > 1 and sites.global_:
            held = {**joint.global_values(), **held}
            joint = joint.fixing(held)
        yield piece, joint


def _per_datum(terms: Terms) -> Tensor:
    return terms.signal.mean((0, 1)) + _of_globals(terms) / terms.size


def _of_globals(terms: Terms) -> Tensor | float:
    """Return what the globals add to a bound, the mean over their draws.

    Raises:
        ProgramError: The guide has no density at the draw that they are held at.
    """
    weight: Any = terms.global_signal
    if not isinstance(weight, Tensor):
        return 0.0
    for name, log_q in terms.global_log_q.items():
        if bool((log_q == -torch.inf).any()):
            raise ProgramError(
                f"site {name!r}: the guide draws it by no site (Delta(z, log_density=...)) and "
                "stands elsewhere when asked again, so that it cannot be held at one draw for all "
                "data; sample it from its distribution, or what it is a transform of from an "
                "auxiliary site (infer={'is_auxiliary': True})"
            )
    return weight.mean()


def passes(
    program: Program, batch: Batch, batch_size: int, *, particles: int = 1
) -> Sequence[Batch]:
    """Cut data into batches, or leave it whole where the program fixes its own batch size.

    Arguments:
        program: What runs on them.
        batch: Checked data.
        batch_size: Rows of one, at most.
        particles: Draws that stand side by side for each row; they count towards its bytes.
    """
    if program.sites.size is not None or program.rows.are_fixed(batch):
        return [batch]
    return chunks(batch, most_rows(program, batch, positive("batch_size", batch_size), particles))
