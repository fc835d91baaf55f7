"""Have the chains mixed? Rank-normalised split R-hat and effective sample size, vectorised.

Shapes: C chain, S draw. Draws are `(C, S, *)`; every element of the trailing shape is diagnosed on
its own. A quantity that never moved has an R-hat of infinity or NaN: it is not known to have mixed.
"""

import math

import torch
from torch import Tensor

RHAT_LIMIT = 1.05  # above it chains are not called mixed


def split_rhat(draws: Tensor) -> Tensor:
    r"""Return the rank-normalised split R-hat of each quantity, the larger of bulk and folded.

    .. math:: \hat R = \sqrt{\frac{(S - 1) / S \cdot W + B / S}{W}}

    W is the variance within and B that between half chains of S draws, of the normal scores of the
    ranks; folded draws (their distance from the median) show chains of unequal spread.

    Arguments:
        draws: shape `(C, S, *)`, S >= 4 (else NaN)

    References: Rank-normalization, folding, and localization (Vehtari et al., 2021),
    arXiv 1903.08008.
    """
    return rhat_and_ess(draws)[0]


def bulk_ess(draws: Tensor) -> Tensor:
    r"""Return the effective number of independent draws for the centre of each quantity.

    The effective sample size (`ess`) of the rank-normalised half chains.

    Arguments:
        draws: shape `(C, S, *)`, S >= 8 (else NaN)

    References: Rank-normalization, folding, and localization (Vehtari et al., 2021),
    arXiv 1903.08008.
    """
    return rhat_and_ess(draws)[1]


def rhat_and_ess(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return `split_rhat` and `bulk_ess` at once: the ranks, which cost most, serve both."""
    halves = _halves(draws)
    if halves.shape[-1] < 2:
        unknown = draws.new_full(draws.shape[2:], math.nan)
        return unknown, unknown
    scores = _normal_scores(halves)
    centre = median(halves.flatten(-2))[..., None, None]
    folded = _normal_scores((halves - centre).abs())
    return torch.maximum(_rhat(scores), _rhat(folded)), _ess(scores)


def median(values: Tensor) -> Tensor:
    """Return the median over the last dimension: of an even number the mean of the middle two.

    `torch.median` returns the lower of these.
    """
    lower, upper = values.median(-1).values, -(-values).median(-1).values
    return torch.where(lower == upper, lower, (lower + upper) / 2)  # also where both are infinite


def ess(draws: Tensor) -> Tensor:
    r"""Return the effective number of independent draws for the mean of each quantity.

    .. math:: \mathrm{ESS} = \frac{C S}{-1 + 2 \sum_k (\hat\rho_{2k} + \hat\rho_{2k + 1})}

    Autocorrelations come from all chains at once, and the sum ends before the first pair that is
    not positive (Geyer's initial monotone sequence). Chains are cut into halves first.

    Arguments:
        draws: shape `(C, S, *)`, S >= 8 (else NaN)

    References: Practical Markov Chain Monte Carlo (Geyer, 1992); Vehtari et al. (2021),
    arXiv 1903.08008.
    """
    return _ess(_halves(draws))


def _halves(draws: Tensor) -> Tensor:
    """Return `(C, S, *)` as half chains `(*, 2C, S // 2)`; an odd middle draw is left out."""
    half = draws.shape[1] // 2
    both = torch.cat([draws[:, :half], draws[:, draws.shape[1] - half :]])
    return both.permute(*range(2, both.dim()), 0, 1).contiguous()


def _normal_scores(halves: Tensor) -> Tensor:
    """Replace values by the normal quantiles of their ranks; ties share their mean rank."""
    flat = halves.flatten(-2)
    count = flat.shape[-1]
    ordered, index = flat.sort(-1)
    place = torch.arange(count, device=flat.device).expand_as(index)
    fresh = torch.ones_like(index, dtype=torch.bool)
    fresh[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    first = torch.where(fresh, place, 0).cummax(-1).values
    ends = torch.ones_like(fresh)
    ends[..., :-1] = fresh[..., 1:]
    last = torch.where(ends, place, count).flip(-1).cummin(-1).values.flip(-1)
    rank = (first + last).double() / 2 + 1
    # In double precision: ndtri has no half on the CPU.
    scores = torch.special.ndtri((rank - 0.375) / (count + 0.25)).to(flat.dtype)
    return torch.empty_like(flat).scatter_(-1, index, scores).view_as(halves)


def _rhat(chains: Tensor) -> Tensor:
    draws = chains.shape[-1]
    within = chains.var(-1).mean(-1)
    between = chains.mean(-1).var(-1)
    return ((draws - 1) / draws + between / within).sqrt()


def _ess(chains: Tensor) -> Tensor:
    """Return the effective sample size of chains `(*, C, S)`."""
    count, draws = chains.shape[-2:]
    if draws < 4:
        return chains.new_full(chains.shape[:-2], math.nan)
    covariance = _autocovariance(chains).mean(-2)
    within = covariance[..., :1] * draws / (draws - 1)
    total = within * (draws - 1) / draws + chains.mean(-1).var(-1, keepdim=True)
    rho = 1 - (within - covariance) / total
    rho[..., 0] = 1
    even, odd = rho[..., 0 : draws - draws % 2 : 2], rho[..., 1::2]
    pairs = even + odd
    kept = (pairs > 0).to(rho.dtype).cumprod(-1)
    paired = (pairs.cummin(-1).values * kept).sum(-1)
    # The first pair left out still has an even lag: where positive it counts once (antithetic
    # chains are overestimated without it).
    end = kept.sum(-1, keepdim=True).long()
    even = torch.nn.functional.pad(even, (0, 1))
    tau = -1 + 2 * paired + even.gather(-1, end).squeeze(-1).clamp(min=0)
    size = count * draws
    # Antithetic draws may be worth more than independent ones, up to this bound.
    return size / tau.clamp(min=1 / math.log10(size))


def _autocovariance(chains: Tensor) -> Tensor:
    """Return the autocovariance at lags 0 .. S - 1, over S: by Fourier transform, O(S log S)."""
    draws = chains.shape[-1]
    length = 1 << (2 * draws - 1).bit_length()  # padded: no wrap-around
    spectrum = torch.fft.rfft(chains - chains.mean(-1, keepdim=True), length)
    return torch.fft.irfft(spectrum.abs().square(), length)[..., :draws] / draws
