"""Moments of each latent with the others marginalised, of the guide and of the prior.

Shapes: K draws, B data of a pass; the units of a site are its event, for each step of any second
plate.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.evaluation.moments import Moments, Said, relative
from pyro_vae.program.batches.batch import Batch, num_rows
from pyro_vae.program.bounds import passes
from pyro_vae.program.densities.terms import Latent, Terms
from pyro_vae.program.handlers import sample_sites
from pyro_vae.program.judged import Judged
from pyro_vae.program.sites.plates import by_datum, data_dim, inner_plates

_ROWS = 2000  # data behind the moments of a site below other latents
_DRAWS = 64_000  # of those latents, for all data together: a fifth of what an epoch of 50,000 costs
_FEWEST, _MOST = 32, 256  # draws per datum: a silent unit is off by sqrt(2 / N) / K, of 0.01
_PRIOR_DRAWS = 2048  # behind the variance of a prior without a closed form


def below_others(terms: Terms) -> list[str]:
    """Return the latents that the guide draws after another: what it says of them is conditional.

    One that ignores those others loses nothing: all its draws then agree.
    """
    return [name for name in list(terms.log_q)[1:] if name in terms.latents]


def add_conditional(moments: Moments, name: str, latent: Latent, scale: Any, terms: Terms) -> None:
    """Add what the guide says of a latent that it draws first: exact, whatever the draw."""
    particles, rows = terms.log_q[name].shape[1:]
    said = Said(latent.posterior, latent.weights[1][1], latent.plates, latent.data)
    mean, variance = (said.moment(which, particles, rows) for which in ("mean", "variance"))
    if mean is None:
        return
    if scale is None:  # the prior's own, for each datum
        prior = _prior(latent).moment("variance", particles, rows)
        scale = None if prior is None else prior[0]
    spread = None if variance is None else relative(variance[0], scale)
    moments.add(name, mean[0], spread, said.kept(name, particles, rows, mean.device), prior=scale)


def add_marginal(
    moments: Moments, judged: Judged, names: list[str], scales: Mapping[str, Tensor]
) -> None:
    r"""Add the moments of latents below others, those averaged over K draws, on some of the data.

    .. math:: \mathrm{Var}_q[z \mid x] = \mathbb{E}\,\mathrm{Var}[z \mid x, z']
        + \mathrm{Var}\,\mathbb{E}[z \mid x, z']

    The mean of K conditional means is off by a K-th of their variance, which is known and taken off
    again: in expectation the covariance of the means of two halves of the draws, at less noise.
    """
    some = judged.some(_ROWS)
    draws = min(_MOST, max(_FEWEST, _DRAWS // num_rows(some)))
    for piece in passes(judged.program, some, max(1, judged.batch_size // draws)):
        sums, kept = _draws(judged, piece, draws, names)
        for name in names:
            if (name, "mean") not in sums:
                continue
            mean = sums[name, "mean"] / draws
            between = (sums[name, "square"] / draws - mean.square()).clamp(min=0)
            between = between * (draws / (draws - 1))
            spread = None
            if (name, "variance") in sums:
                spread = relative(sums[name, "variance"] / draws + between, scales.get(name))
            prior = scales.get(name)
            moments.add(name, mean, spread, kept[name], noise=between / draws, prior=prior)


def _draws(
    judged: Judged, piece: Batch, draws: int, names: list[str]
) -> tuple[dict[tuple[str, str], Tensor], dict[str, Tensor | None]]:
    """Return sums over K draws of conditional moments, and masks, ``(B, *units)`` each."""
    sums: dict[tuple[str, str], Any] = {}
    kept: dict[str, Tensor | None] = {}
    rows, left, joint = num_rows(piece), draws, judged.on(piece)
    single = joint.alone or judged.program.sites.size is not None
    while left:
        count = 1 if single else min(left, judged.batch_size)
        left -= count
        sites: dict[str, Any] = dict(sample_sites(joint.guide_trace(count)))
        for name in names:
            site = sites[name]
            said = Said(site["fn"], site["mask"], inner_plates(site), data_dim(site))
            mean, variance = (said.moment(each, count, rows) for each in ("mean", "variance"))
            if mean is None:
                continue
            kept[name] = said.kept(name, count, rows, mean.device)
            for which, value in (("mean", mean), ("square", mean.square()), ("variance", variance)):
                if value is not None:
                    sums[name, which] = sums.get((name, which), 0) + value.sum(0)
    return sums, kept


def prior_variances(judged: Judged, terms: Terms) -> dict[str, Tensor]:
    """Return the prior's variance of each unit of the latents that have none in closed form.

    Those are drawn below others in the model, or have a distribution without one: their variance is
    that of 2048 draws, over all that stands above and all data. That of a latent which only the
    guide draws below others is the mean over the data of the closed form. No random number is used
    up.
    """
    drawn, closed = [], {}
    for place, (name, (latent, *_)) in enumerate(terms.latents.items()):
        shape = terms.log_q[name].shape[1:]
        if Said(latent.posterior, None, latent.plates, latent.data).moment("mean", *shape) is None:
            continue
        try:
            own = _prior(latent).moment("variance", *shape)
        except ProgramError as error:  # it has no units of one datum
            raise ProgramError(f"diagnose: site {name!r}: {error}") from error
        if place > 0 or own is None:
            drawn.append(name)
        elif name in below_others(terms):
            closed[name] = own[0].mean(0)
    if not drawn:
        return closed
    with judged.program.reader.runs.quiet(judged.batch):
        return closed | _variances_of_draws(judged, {n: terms.latents[n][0] for n in drawn})


def _prior(latent: Latent) -> Said:
    return Said(latent.prior, None, latent.plates, latent.data)


def _variances_of_draws(judged: Judged, latents: Mapping[str, Latent]) -> dict[str, Tensor]:
    some = judged.some(min(judged.batch_size, _PRIOR_DRAWS))
    rows, count, joint = num_rows(some), 0, judged.on(some)
    at_once = max(1, min(judged.batch_size, _PRIOR_DRAWS) // rows)
    if joint.alone or judged.program.sites.size is not None:
        at_once = 1
    sums: dict[str, Any] = {}
    while count < _PRIOR_DRAWS:
        values = joint.prior_values(at_once)
        for name, latent in latents.items():
            event = len(latent.posterior.event_shape)
            value = by_datum(values[name], event, latent.plates, at_once, rows, latent.data)
            value = value.double()
            both = torch.stack([value.sum((0, 1)), value.square().sum((0, 1))])
            sums[name] = sums.get(name, 0) + both
        count += at_once * rows
    return {
        name: second / count - (first / count).square() for name, (first, second) in sums.items()
    }
