"""How much the codes tell of the data: mutual information and the aggregate posterior.

Shapes: M probes (draws of z whose own datum is known), N data, Z units.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.program.batches.batch import Batch, map_rows, num_rows
from pyro_vae.program.bounds import passes
from pyro_vae.program.densities.site_densities import masked_inside
from pyro_vae.program.densities.terms import Latent
from pyro_vae.program.handlers import data_frame, sample_sites
from pyro_vae.program.judged import Judged
from pyro_vae.program.program import Program
from pyro_vae.program.sites.plates import by_plates, data_dim, inner_plates, of_datum

_LOG_2PI = math.log(2 * math.pi)
FEW_ROWS = 500  # where each pair of probe and datum costs a pass of the guide's networks
_PAIRS = 1 << 21  # (probe, datum) pairs at a time where they are cheap: 16 MB each tensor


@dataclass(frozen=True)
class Information:
    r"""Mutual information between data and code, and how far the codes are from the prior.

    .. math:: I_q(x; z) = \mathbb{E}\,\log \frac{q(z \mid x)}{q(z)}, \qquad
        \mathbb{E}\,\mathrm{KL}(q(z \mid x) \,\|\, p(z)) = I_q(x; z) + \mathrm{KL}(q(z) \,\|\, p(z))

    q(z) is the mean of q(z | x_n) over N data. With a draw's own datum among them the estimate of
    the information lies below that in the whole population, in expectation, and never exceeds
    log N; without it, above. That of KL(q(z) || p(z)) is the other way round: their sum is the KL.

    Arguments:
        lower: The estimate with the own datum; unbiased for these N data, nats.
        upper: The estimate without it, nats.
        marginal_kl: KL(q(z) || p(z)) with the own datum, nats: at most. NaN where the guide draws
            an auxiliary variable that the prior does not know.
        stderr, upper_stderr, marginal_kl_stderr: Standard errors over the M probes.
        probes: M.
        rows: N.
        marginal_kl_lower: KL(q(z) || p(z)) without it, and no less than 0, nats: at least.
        marginal_kl_lower_stderr: Its standard error over the M probes.

    References:
        | ELBO surgery (Hoffman & Johnson, 2016)
        | On variational bounds of mutual information (Poole et al., 2019), arXiv:1905.06922
    """

    lower: float
    upper: float
    marginal_kl: float
    stderr: float
    upper_stderr: float
    marginal_kl_stderr: float
    probes: int
    rows: int
    marginal_kl_lower: float = math.nan
    marginal_kl_lower_stderr: float = math.nan

    @property
    def saturated(self) -> bool:
        """Whether N data are too few to tell: the lower estimate is within 1 nat of log N."""
        return self.lower > math.log(self.rows) - 1


def information(
    program: Program,
    batch: Batch,
    *,
    probes: int,
    rows: int,
    rows_of_pairs: int = FEW_ROWS,
    batch_size: int = 1024,
    held: Mapping[str, Tensor] | None = None,
) -> Information | None:
    """Estimate the information of all local latents together; None where q has no density.

    Call inside ``scoring``. A factorised Gaussian q costs two matrix products; any other guide is
    run on pairs of probe and datum, of which there are fewer then. A latent under a mask or a
    weight has no density to compare: None too.

    Arguments:
        program: What is judged.
        batch: The data, checked.
        probes: M, at most.
        rows: N, at most.
        rows_of_pairs: N, at most, where the guide is run on pairs.
        batch_size: Rows, or pairs, in any pass of the guide.
        held: The values of the global latents; None draws them.
    """
    if program.sites.size is not None or num_rows(batch) < 2 or program.rows.are_fixed(batch):
        return None  # a program that draws its own minibatch cannot be asked about pairs
    judged = Judged(program, batch, _one_draw(program, batch, held), batch_size)
    if program.tiled(_first(batch, 2)) and program.sites.num_plates > 1:
        return None  # pairs would have to stand in the rows of each plate
    normal = _is_normal(judged)
    if not normal:  # a pair costs a pass of the guide's networks
        probes, rows = min(probes, 100), min(rows, rows_of_pairs)
    population = judged.some(rows)
    total = num_rows(population)
    count = min(probes, total)
    try:
        drawn = _probe(judged, _first(population, count))
        if drawn is None:
            return None
        pairs = _normal_pairs if normal else _guide_pairs
        pieces = pairs(judged, drawn, population)
        log_q_others = _log_sum(pieces, drawn.log_q.new_full((count,), -math.inf))
    except (ProgramError, NotImplementedError):
        return None
    with_own = torch.logaddexp(log_q_others, drawn.log_q) - math.log(total)
    without = log_q_others - math.log(max(1, total - 1))
    if not bool(torch.isfinite(drawn.log_q - with_own).all()):
        return None  # a q of point masses: no density to speak of
    return _estimates(drawn, with_own, without, total)


def _estimates(drawn: "_Probes", with_own: Tensor, without: Tensor, rows: int) -> Information:
    """Return the estimates from log q(z) with each probe's own datum and without it, (M,)."""
    lower, upper = drawn.log_q - with_own, drawn.log_q - without
    at_most, at_least = with_own - drawn.log_p, without - drawn.log_p
    return Information(
        lower=lower.mean().item(),
        upper=upper.mean().item(),
        marginal_kl=at_most.mean().item(),
        stderr=_stderr(lower),
        upper_stderr=_stderr(upper),
        marginal_kl_stderr=_stderr(at_most),
        probes=len(lower),
        rows=rows,
        marginal_kl_lower=at_least.mean().clamp(min=0).item(),
        marginal_kl_lower_stderr=_stderr(at_least),
    )


@dataclass(frozen=True)
class _Probes:
    """Draws of all latents of the guide for M rows, with their densities.

    Arguments:
        values: By site, ``(M, *plates) | event``.
        sites: Those of the guide, for their plates and events.
        log_q: ``(M,)``.
        log_p: ``(M,)``; NaN where the guide has a site that the model has not.
    """

    values: dict[str, Tensor]
    sites: dict[str, Any]
    log_q: Tensor
    log_p: Tensor


def _one_draw(
    program: Program, batch: Batch, held: Mapping[str, Tensor] | None
) -> Mapping[str, Tensor]:
    """Return the values that the global latents, if any, are held at."""
    if held or not program.sites.global_:
        return held or {}
    return program.joint(_first(batch, 1)).global_values()


def _is_normal(judged: Judged) -> bool:
    program = judged.program
    trace = judged.on(_first(judged.batch, 2)).guide_trace(1)
    local = [site for name, site in sample_sites(trace) if name in program.sites.local]
    if len(local) != 1 or len([s for _, s in sample_sites(trace) if data_frame(s)]) != 1:
        return False
    return _normal_of(local[0]) is not None


def _normal_of(site: Any) -> Any:
    """Return the Normal behind a factorised Gaussian site of shape (B | Z), or None."""
    fn = site["fn"]
    base = getattr(fn, "base_dist", None)
    plain = type(base).__name__ == "Normal" and len(fn.batch_shape) == 1 and site["mask"] is None
    return base if plain and len(fn.event_shape) == 1 else None


def _probe(judged: Judged, batch: Batch) -> _Probes | None:
    """Draw a probe for each row; None where a mask or a weight changes a latent's density."""
    program, parts, log_q, log_p = judged.program, [], [], []
    for piece in passes(program, batch, judged.batch_size):
        here = judged.on(piece)
        model, guide = here.traces()
        terms = here.scored(model, guide, 1)
        if not all(is_plain(latent) for latent in terms.latents.values()):
            return None
        sites: dict[str, Any] = {n: s for n, s in sample_sites(guide) if n in terms.log_q}
        here_rows = num_rows(piece)
        parts.append({n: of_datum(s, s["value"], here_rows)[0] for n, s in sites.items()})
        log_q.append(torch.stack([each[0].double() for each in terms.log_q.values()]).sum(0))
        prior = torch.stack([terms.log_p[n][0].double() for n in program.sites.local]).sum(0)
        auxiliary = set(terms.log_q) != set(program.sites.local)
        log_p.append(prior.new_full(prior.shape, math.nan) if auxiliary else prior)
    return _Probes(
        values={name: torch.cat([part[name] for part in parts]) for name in parts[0]},
        sites=sites,
        log_q=torch.cat(log_q),
        log_p=torch.cat(log_p),
    )


def is_plain(latent: Latent) -> bool:
    """Return whether no mask and no weight changes a latent's densities, from outside or inside."""
    return latent.plain and not any(masked_inside(fn) for fn in (latent.prior, latent.posterior))


def _normal_pairs(judged: Judged, drawn: _Probes, population: Batch) -> Iterator[Tensor]:
    """Yield log q(z_m | x_n), (M, piece of N), of diagonal Gaussians: by two matrix products."""
    program = judged.program
    (z,) = drawn.values.values()
    z = z.double()
    square = z.square()
    rows = max(1, min(judged.batch_size, _PAIRS // len(z)))
    for piece in passes(program, population, rows):
        trace = judged.on(piece).guide_trace(1)
        base = _normal_of(next(s for n, s in sample_sites(trace) if n in program.sites.local))
        loc, scale = base.loc.double(), base.scale.double()
        precision = scale.square().reciprocal()
        constant = (loc.square() * precision + 2 * scale.log() + _LOG_2PI).sum(-1)
        yield z @ (loc * precision).mT - (square @ precision.mT + constant) / 2


def _guide_pairs(judged: Judged, drawn: _Probes, population: Batch) -> Iterator[Tensor]:
    """Yield log q(z_m | x_n), (M, piece of N), by running the guide at every pair."""
    program, batch_size, probes = judged.program, judged.batch_size, len(drawn.log_q)
    at_once = min(probes, batch_size)
    for piece in passes(program, population, max(1, batch_size // at_once)):
        here = judged.on(piece)
        found = []
        for start in range(0, probes, at_once):
            some = {name: value[start : start + at_once] for name, value in drawn.values.items()}
            values = {
                name: _beside(drawn.sites[name], value, num_rows(piece), program.sites.num_plates)
                for name, value in some.items()
            }
            log_q = here.guide_log_q(values, min(at_once, probes - start))
            found.append(torch.stack([each.double() for each in log_q.values()]).sum(0))
        yield torch.cat(found)


def _beside(site: Any, value: Tensor, rows: int, num_plates: int) -> Tensor:
    """Return a site's values ``(M, *plates, *event)`` beside each of B data, in Pyro's layout."""
    value = value.unsqueeze(1).expand(len(value), rows, *value.shape[1:])
    event = len(site["fn"].event_shape)
    return by_plates(value, event, inner_plates(site), num_plates, data_dim(site))


def _log_sum(pieces: Iterator[Tensor], total: Tensor) -> Tensor:
    """Return log of the sum of q over the data, leaving out each probe's own, (M,)."""
    start = 0
    for piece in pieces:
        width = piece.shape[1]
        end = max(start, min(start + width, len(total)))
        own = torch.arange(start, end, device=piece.device)
        piece = piece.index_put((own, own - start), piece.new_full((), -math.inf))
        total = torch.logaddexp(total, piece.logsumexp(1))
        start += width
    return total


def _first(batch: Batch, rows: int) -> Batch:
    return map_rows(lambda each: each[:rows], batch)


def _stderr(value: Tensor) -> float:
    return (value.std() / math.sqrt(len(value))).item() if len(value) > 1 else math.nan
