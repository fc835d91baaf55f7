"""How much the codes tell of the data: mutual information and the aggregate posterior.

Shapes: M probes (draws of z whose own datum is known), N data, Z units.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.inference.batch import Batch, arguments, map_batch, num_rows
from pyro_vae.inference.bounds import passes
from pyro_vae.inference.handlers import data_frame, sample_sites
from pyro_vae.inference.joint import Joint
from pyro_vae.inference.program import Program

_LOG_2PI = math.log(2 * math.pi)
_PAIRS = 1 << 21  # (probe, datum) pairs at a time where they are cheap: 16 MB each tensor
_GUIDE_PAIRS = 1 << 14  # where each pair is a row of the guide's networks


@dataclass(frozen=True)
class Information:
    r"""Mutual information between data and code, and how far the codes are from the prior.

    .. math:: I_q(x; z) = \mathbb{E}\,\log \frac{q(z \mid x)}{q(z)}, \qquad
        \mathbb{E}\,\mathrm{KL}(q(z \mid x) \,\|\, p(z)) = I_q(x; z) + \mathrm{KL}(q(z) \,\|\, p(z))

    q(z) is the mean of q(z | x_n) over N data. With a draw's own datum among them the estimate lies
    below the information in the whole population, in expectation, and never exceeds log N; without
    it, above.

    Arguments:
        lower: The estimate with the own datum; unbiased for these N data, nats.
        upper: The estimate without it, nats.
        marginal_kl: KL(q(z) || p(z)), q(z) over these N data, nats.
        stderr, upper_stderr, marginal_kl_stderr: Standard errors over the M probes.
        probes: M.
        rows: N.

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

    @property
    def saturated(self) -> bool:
        """Whether N data are too few to tell: the lower estimate is within 1 nat of log N."""
        return self.lower > math.log(self.rows) - 1


def information(program: Program, batch: Batch, *, probes: int, rows: int) -> Information | None:
    """Estimate the information of all local latents together; None where q has no density.

    Call inside ``scoring``. A factorised Gaussian q costs two matrix products; any other guide is
    run on pairs of probe and datum, of which there are fewer then.

    Arguments:
        program: What is judged.
        batch: The data, checked.
        probes: M, at most.
        rows: N, at most.
    """
    if program.sites.size is not None or num_rows(batch) < 2:
        return None  # a program that draws its own minibatch cannot be asked about pairs
    joint = _one_draw(program, batch)
    normal = _is_normal(program, joint, batch)
    if not normal:  # a pair costs a pass of the guide's networks
        probes, rows = min(probes, 100), min(rows, 500)
    population = _subset(batch, min(rows, num_rows(batch)))
    total = num_rows(population)
    count = min(probes, total)
    try:
        drawn = _probe(program, joint, _first(population, count))
        pieces = (
            _normal_pairs(program, joint, drawn, population)
            if normal
            else _guide_pairs(program, joint, drawn, population)
        )
        log_q_others = _log_sum(pieces, drawn.log_q.new_full((count,), -math.inf))
    except (ProgramError, NotImplementedError):
        return None
    own = drawn.log_q
    with_own = torch.logaddexp(log_q_others, own) - math.log(total)
    lower = own - with_own
    upper = own - (log_q_others - math.log(max(1, total - 1)))
    marginal = with_own - drawn.log_p
    if not bool(torch.isfinite(lower).all()):  # a q of point masses: no density to speak of
        return None
    return Information(
        lower=lower.mean().item(),
        upper=upper.mean().item(),
        marginal_kl=marginal.mean().item(),
        stderr=_stderr(lower),
        upper_stderr=_stderr(upper),
        marginal_kl_stderr=_stderr(marginal),
        probes=count,
        rows=total,
    )


@dataclass(frozen=True)
class _Probes:
    """Draws of all local latents for the first M rows, with their own densities, (M,)."""

    traced: dict[str, Any]
    log_q: Tensor
    log_p: Tensor


def _one_draw(program: Program, batch: Batch) -> Joint:
    """Return the pair with the global latents, if any, held at one draw."""
    joint = program.joint(_first(batch, 1))
    return joint.fixing(joint.global_values()) if program.sites.global_ else joint


def _on(joint: Joint, program: Program, batch: Batch) -> Joint:
    """Return the pair of one joint on another batch."""
    args, kwargs = arguments(batch)
    return Joint(
        joint.model,
        joint.guide,
        args,
        kwargs,
        tiled=joint.tiled,
        num_plates=program.sites.num_plates,
        size=num_rows(batch),
    )


def _is_normal(program: Program, joint: Joint, batch: Batch) -> bool:
    trace = _on(joint, program, _first(batch, 2)).guide_trace(1)
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


def _probe(program: Program, joint: Joint, batch: Batch) -> _Probes:
    here = _on(joint, program, batch)
    model, guide = here.traces()
    terms = here.scored(model, guide, 1)
    log_p = sum(terms.log_p[name] for name in program.sites.local)
    log_q = sum(terms.log_q[name] for name in terms.log_q)
    assert isinstance(log_p, Tensor) and isinstance(log_q, Tensor)  # there is a local latent
    sites = {name: s for name, s in sample_sites(guide) if data_frame(s) is not None}
    return _Probes(sites, log_q[0].double(), log_p[0].double())


def _normal_pairs(
    program: Program, joint: Joint, drawn: _Probes, population: Batch
) -> Iterator[Tensor]:
    """Yield log q(z_m | x_n), (M, piece of N), of diagonal Gaussians: by two matrix products."""
    ((_, site),) = drawn.traced.items()
    z = site["value"].double()
    square = z.square()
    for piece in passes(program, population, max(1, _PAIRS // len(z))):
        trace = _on(joint, program, piece).guide_trace(1)
        base = _normal_of(next(s for n, s in sample_sites(trace) if n in program.sites.local))
        loc, scale = base.loc.double(), base.scale.double()
        precision = scale.square().reciprocal()
        constant = (loc.square() * precision + 2 * scale.log() + _LOG_2PI).sum(-1)
        yield z @ (loc * precision).mT - (square @ precision.mT + constant) / 2


def _guide_pairs(
    program: Program, joint: Joint, drawn: _Probes, population: Batch
) -> Iterator[Tensor]:
    """Yield log q(z_m | x_n), (M, piece of N), by running the guide at every pair."""
    by_row = {name: _rows_first(site) for name, site in drawn.traced.items()}
    probes = len(drawn.log_q)
    step = max(1, _GUIDE_PAIRS // probes)
    for piece in passes(program, population, step):
        rows = num_rows(piece)
        values = {
            name: _beside(each, drawn.traced[name], rows) for name, each in by_row.items()
        }  # (M, ..., rows) | event
        log_q = _on(joint, program, piece).guide_log_q(values, probes)
        total = sum(log_q.values())
        assert isinstance(total, Tensor)  # there is a local latent
        yield total.double()


def _batch_dim(site: Any) -> int:
    """Return which dimension of a site's value is the plate of the data, from the right."""
    return -1 - len(site["fn"].event_shape)


def _rows_first(site: Any) -> Tensor:
    return site["value"].movedim(_batch_dim(site), 0)


def _beside(value: Tensor, site: Any, rows: int) -> Tensor:
    """Return values (M, ...) beside each of B data, (M, ..., B | event)."""
    place = value.dim() - len(site["fn"].event_shape)
    shape = (*value.shape[:place], rows, *value.shape[place:])
    return value.unsqueeze(place).expand(shape)


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


def _subset(batch: Batch, rows: int) -> Batch:
    """Return a random subset of the data, in random order."""
    total = num_rows(batch)
    leaf = next(iter(_leaves(batch)))
    order = torch.randperm(total, device=leaf.device)[:rows]
    return map_batch(lambda each: each[order], batch)


def _first(batch: Batch, rows: int) -> Batch:
    return map_batch(lambda each: each[:rows], batch)


def _leaves(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    map_batch(lambda leaf: found.append(leaf) or leaf, batch)  # type: ignore[func-returns-value]
    return found


def _stderr(value: Tensor) -> float:
    return (value.std() / math.sqrt(len(value))).item() if len(value) > 1 else math.nan
