"""Missing cells, given those that are there. Shapes: N data, K draws of the code."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_vae.arguments import positive, typed
from pyro_vae.errors import ProgramError
from pyro_vae.evaluation.site_values import known_mean
from pyro_vae.program.handlers import innermost
from pyro_vae.program.masks import kept_units
from pyro_vae.program.passes import Pass, Verb, runs
from pyro_vae.program.plates import of_datum
from pyro_vae.program.program import Program
from pyro_vae.program.terms import stack

_ROWS_PER_PASS = 4096
_DATA_PER_PASS = 256
_VERB = Verb("impute", prior=True, each=True, guide="weight")


@dataclass(frozen=True, repr=False)
class Imputed:
    """Data with their missing cells filled in.

    Arguments:
        values: The data, ``(N, *event)``, or a data frame: observed cells as they were given.
        missing: Which cells were missing, ``(N, *event)``.
        stderr: Standard error, by the sampling, of each mean that was filled in, in the units of
            the program's cells; 0 at observed cells, NaN where names were filled in, or draws.
        ess: Effective sample size of the weights of each datum, ``(N,)``, between 1 and K.
        samples: K.
    """

    values: Any
    missing: Tensor
    stderr: Tensor
    ess: Tensor
    samples: int

    def __repr__(self) -> str:
        return (
            f"Imputed({len(self.ess)} data, {int(self.missing.sum())} cells filled in, "
            f"samples={self.samples}, median ess={self.ess.median().item():.1f})"
        )


@typed
def impute(
    program: Any, data: Any, *, how: Literal["mean", "sample"] = "mean", samples: int = 1000
) -> Imputed:
    r"""Fill in missing cells, given the observed ones, by self-normalised importance sampling.

    .. math:: \mathbb{E}[x_m \mid x_o] \approx \sum_k \tilde w_k \, \mathbb{E}[x_m \mid z_k], \quad
        \tilde w_k \propto \frac{p(x_o, z_k)}{q(z_k \mid x_o)}, \quad z_k \sim q(z \mid x_o)

    A cell without a mean (a category, a rank) gets its most probable value: that of the averaged
    probabilities. With ``how="sample"`` a code is picked by its weight, and all missing cells are
    drawn at it: one draw of :math:`p(x_m \mid x_o)`, exact as K grows. Missing is what the model
    masks.

    Arguments:
        program: Anything that masks cells of its one observed site: ``VAE(missing="nan")``,
            ``TableVAE``, or a distribution under ``.mask``.
        data: One row per datum with holes, in any form that the program takes.
        how: "mean" or "sample" (a program's draws come from torch's global generator).
        samples: K.

    Returns:
        The data, and how far to trust what is new in them.

    Raises:
        DataError: Data that the program cannot take.
        ProgramError: The program masks nothing, observes several sites, or sums a latent out.

    References:
        | MIWAE (Mattei & Frellsen, 2019), arXiv:1812.02633
    """
    count = positive("samples", samples)
    wrapped = Program.of(program)
    parts = []
    with wrapped.passes(data, _VERB, rows=_DATA_PER_PASS) as passes:
        for piece in passes:
            parts.append(_filled(piece, count, how))
    values, missing, stderr, ess = (torch.cat(each) for each in zip(*parts, strict=True))
    completes: Any = getattr(wrapped.source, "completes", None)
    if completes is not None and hasattr(data, "columns"):
        values = completes(data, values, missing)
    return Imputed(values, missing, stderr, ess, count)


def _filled(piece: Pass, count: int, how: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return values, what was missing, errors of what is new, and sample sizes of a pass."""
    site = _site(piece)
    joint, mean, drawn = piece.joint.densities(), _Mean(), _Drawn()
    for size in runs(count, joint, piece.batch, _ROWS_PER_PASS):
        model, guide = joint.traces(size)
        log_weight = stack([joint.scored(model, guide, size)]).log_weight[0]  # (k, B)
        found: Any = model.nodes[site]
        mean.add(log_weight, _statistics(found, len(piece), size))
        if how == "sample":
            value = found["fn"].sample()
            drawn.add(log_weight, of_datum(found, value, len(piece), size))
    kept = kept_units(found["fn"], found["mask"], log_weight.device)
    if kept is None:
        raise ProgramError(
            f"impute: site {site!r} has no missing cells: the model masks none of them; use "
            'VAE(missing="nan"), TableVAE, or .mask around its distribution'
        )
    kept = of_datum(found, kept, len(piece), size if kept.shape[0] == size > 1 else 1)[0]
    given = of_datum(found, found["value"], len(piece))[0]
    error = mean.error() if how == "mean" else torch.full_like(mean.value(), torch.nan)
    new = drawn.value if how == "sample" else _values(found, mean.value())
    error = error if error.shape == given.shape else torch.full_like(given, torch.nan)
    zero = torch.zeros_like(error)
    return (
        torch.where(kept, given, new.to(given.dtype)),
        ~kept,
        torch.where(kept, zero, error),
        mean.ess(),
    )


def _site(piece: Pass) -> str:
    sites = piece.sites
    if sites.enumerated or len(sites.observed) != 1:
        which = sites.enumerated or sites.observed
        raise ProgramError(
            f"impute: got {', '.join(which)} {'summed out' if sites.enumerated else 'observed'}, "
            "expected one observed site and no sum; let the guide draw the latent, or ask for the "
            "sites one by one"
        )
    return sites.observed[0]


def _statistics(site: Any, rows: int, particles: int) -> Tensor:
    """Return what is averaged over codes, (k, B, S): means, or probabilities of classes."""
    fn = site["fn"]
    datum = getattr(fn, "datum", fn)
    if hasattr(datum, "statistics"):
        return _first(datum.statistics(), 1, rows, particles)
    mean = known_mean(fn)
    if _classes(fn) is not None:
        probs = _classes(fn).probs
        return _first(probs, 1 + len(fn.event_shape), rows, particles)
    if mean is None:
        raise ProgramError(
            f'impute: {type(innermost(fn)).__name__} has no mean; take how="sample", or another '
            "distribution of the cells"
        )
    return of_datum(site, mean, rows, particles)


def _first(value: Tensor, event: int, rows: int, particles: int) -> Tensor:
    """Return a statistic (*, B | event) as (k, B, *event)."""
    tail = value.shape[value.dim() - event :]
    return value.expand(*(particles,) * (particles > 1), *value.shape[-1 - event :]).reshape(
        -1, rows, *tail
    )


def _values(site: Any, mean: Tensor) -> Tensor:
    """Return the values that averaged statistics stand for, (B, *event)."""
    datum = getattr(site["fn"], "datum", site["fn"])
    if hasattr(datum, "of_statistics"):
        return datum.of_statistics(mean)
    return mean.argmax(-1) if _classes(site["fn"]) is not None else mean


def _classes(fn: Any) -> Any:
    """Return the categorical distribution of cells that are names, else None."""
    inner = innermost(getattr(fn, "datum", fn))
    return inner if isinstance(inner, torch.distributions.Categorical) else None


class _Mean:
    """Sums of weights times values, of a stream of them: no draw is kept."""

    def __init__(self) -> None:
        self.top: Tensor | None = None

    def add(self, log_weight: Tensor, value: Tensor) -> None:
        """Take in log weights (k, B) and values (k, B, *event)."""
        top = log_weight.amax(0)
        if self.top is None:
            self.top, self.sums = top, [torch.zeros(())] * 5
        shrink = (self.top - torch.maximum(self.top, top)).exp()
        self.top = torch.maximum(self.top, top)
        w = (log_weight - self.top).exp()
        tail = (..., *(None,) * (value.dim() - 2))
        v, s = w[tail], shrink[tail]
        new = [w.sum(0), w.square().sum(0), (v * value).sum(0)]
        new += [(v.square() * value).sum(0), (v.square() * value.square()).sum(0)]
        by = [shrink, shrink.square(), s, s.square(), s.square()]
        self.sums = [b * old + n for b, old, n in zip(by, self.sums, new, strict=True)]
        self.tail = tail

    def value(self) -> Tensor:
        """Return the self-normalised mean, (B, *event)."""
        return self.sums[2] / self.sums[0][self.tail]

    def ess(self) -> Tensor:
        return self.sums[0].square() / self.sums[1]

    def error(self) -> Tensor:
        r"""Return :math:`\sqrt{\sum_k \tilde w_k^2 (m_k - \bar m)^2}`, the delta method's error."""
        first, square, _, linear, quadratic = self.sums
        mean = self.value()
        spread = quadratic - 2 * mean * linear + mean.square() * square[self.tail]
        return spread.clamp(min=0).sqrt() / first[self.tail]


class _Drawn:
    """One of a stream of values, picked by its weight (the largest of log w + Gumbel noise)."""

    def __init__(self) -> None:
        self.best: Tensor | None = None

    def add(self, log_weight: Tensor, value: Tensor) -> None:
        """Take in log weights (k, B) and values (k or 1, B, *event)."""
        noise = -torch.empty_like(log_weight).exponential_().log()
        best, place = (log_weight + noise).max(0)
        value = value.expand(len(log_weight), *value.shape[1:])
        index = place.reshape(1, -1, *(1,) * (value.dim() - 2)).expand(1, *value.shape[1:])
        picked = value.gather(0, index)[0]
        if self.best is None:
            self.best, self.value = best, picked
            return
        better = best > self.best
        self.value = torch.where(better.reshape(-1, *(1,) * (picked.dim() - 1)), picked, self.value)
        self.best = torch.maximum(self.best, best)
