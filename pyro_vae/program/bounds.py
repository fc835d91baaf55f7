"""The ELBO per datum, as a number: no gradient, weights in eval mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from pyro_vae.arguments import positive
from pyro_vae.program.batch import Batch, chunks, num_rows
from pyro_vae.program.handlers import validation
from pyro_vae.program.modules import evaluating
from pyro_vae.program.program import Program
from pyro_vae.program.terms import Terms


def elbo(
    program: Any, data: Any, *, num_particles: int = 1, num_samples: int = 1, batch_size: int = 1024
) -> Tensor:
    r"""Estimate the evidence lower bound of each datum.

    .. math:: \mathbb{E}_{q(w)}\Big[\mathbb{E}_{q(z \mid x)} \log \frac{p(x, z \mid w)}{q(z \mid x)}
       + \frac{1}{N} \log \frac{p(w)}{q(w)}\Big]

    Weights that the program puts on its terms are in, as in training, and so are the guide's
    factors. The mean over the data is the bound per datum; with global sites each datum bears 1/N
    of their KL, N being the number of rows given. Random numbers come from torch's global
    generator.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        data: One row per datum, ``(N, ...)``.
        num_particles: K draws of the local latents.
        num_samples: S draws of the global latents.
        batch_size: Particles times rows per pass; bounds the memory.

    Returns:
        ``(N,)``, nats.

    Raises:
        DataError: Data that the program cannot take.
    """
    pyro_program = Program.of(program)
    batch = pyro_program.adapt(data)
    count = positive("num_particles", num_particles)
    rows = num_rows(batch)
    pyro_program.check(batch)
    pyro_program.require_guide("elbo")
    pyro_program.require_whole(batch)
    samples = positive("num_samples", num_samples)
    rows_per_pass = max(1, positive("batch_size", batch_size) // count)
    parts = []
    with scoring(pyro_program):
        for piece in passes(pyro_program, batch, rows_per_pass):
            parts.append(_per_datum(pyro_program.joint(piece, size=rows).terms(samples, count)))
    return torch.cat(parts)


def mean_elbo(program: Program, batch: Batch, *, size: int, batch_size: int = 1024) -> float:
    """Return the mean ELBO per datum of checked data, for a training set of ``size`` (one sync)."""
    with scoring(program):
        pieces = passes(program, batch, batch_size)
        if program.sites.enumerated:
            return _enumerated_elbo(program, pieces, size) / num_rows(batch)
        values = [_per_datum(program.joint(piece, size=size).terms()) for piece in pieces]
    return torch.cat(values).mean().item()


def _enumerated_elbo(program: Program, pieces: list[Batch], size: int) -> float:
    """Return the summed ELBO of a model whose discrete latents are summed out in parallel."""
    # One dimension more than the plates: enumeration takes those to the left of it.
    loss = TraceEnum_ELBO(max_plate_nesting=program.sites.num_plates)
    total = 0.0
    for piece in pieces:
        joint = program.joint(piece, size=size)
        summed = loss.loss(joint.model, joint.guide, *joint.args, **joint.kwargs)
        total -= summed / joint.size * num_rows(piece)
    return total


def mean_bound(
    program: Program, batch: Batch, objective: Any, *, size: int, batch_size: int = 1024
) -> float:
    """Return minus the un-annealed loss of an objective on checked data, per datum (one sync)."""
    with scoring(program):
        pieces = passes(program, batch, batch_size)
        losses = [
            objective.per_datum(program.joint(piece, size=size)) * num_rows(piece)
            for piece in pieces
        ]
    return -(torch.stack(losses).sum() / num_rows(batch)).item()


@contextmanager
def scoring(program: Program) -> Iterator[None]:
    """Run inside with the program's parameters, in eval mode, at no gradient, unvalidated."""
    with program.running(), evaluating(program), torch.no_grad(), validation(False):
        yield


def _per_datum(terms: Terms) -> Tensor:
    weight: Any = terms.global_signal
    shared = weight.mean() / terms.size if isinstance(weight, Tensor) else 0.0
    return terms.signal.mean((0, 1)) + shared


def passes(program: Program, batch: Batch, batch_size: int) -> list[Batch]:
    """Cut data into batches, or leave it whole where the program fixes its own batch size."""
    if program.sites.size is not None:
        return [batch]
    return list(chunks(batch, positive("batch_size", batch_size)))
