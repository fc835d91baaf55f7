"""What a set of log importance weights says: its estimate and how far to trust it."""

import math

import torch
from torch import Tensor

MIN_TAIL = 5  # fewer points cannot carry a two-parameter fit


def log_mean_exp(log_weight: Tensor, dim: int = 0) -> Tensor:
    """Return log (1/K) sum_k exp(log w_k), in nats.

    Arguments:
        log_weight: log w, in nats, K along `dim`
        dim: the dim of the K draws; removed
    """
    return log_weight.logsumexp(dim) - math.log(log_weight.shape[dim])


def effective_sample_size(log_weight: Tensor, dim: int = 0) -> Tensor:
    """Return Kish's effective sample size (sum w)^2 / sum w^2, between 1 and K.

    NaN where no weight is finite.

    Arguments:
        log_weight: log w, in nats, K along `dim`
        dim: the dim of the K draws; removed
    """
    return (2.0 * log_weight.logsumexp(dim) - (2.0 * log_weight).logsumexp(dim)).exp()


def psis_k(log_weight: Tensor, dim: int = 0) -> Tensor:
    """Return the Pareto shape k of the upper tail of the weights, per column.

    Weights have finite variance where k < 1/2; estimates are usable up to about k = 0.7. Equal
    weights give 0 (they have every moment), fewer than five weights in the tail or a weight that is
    not a number give infinity (nothing is known).

    Arguments:
        log_weight: log w, in nats, K along `dim`
        dim: the dim of the K draws; removed

    References: Pareto smoothed importance sampling (Vehtari et al., 2015), arXiv 1507.02646.
    """
    log_weight = log_weight.movedim(dim, 0)
    return pareto_k_of_tail(log_weight.topk(tail_length(len(log_weight)) + 1, dim=0).values)


def tail_length(num_draws: int) -> int:
    """Return how many of the largest weights make the tail (Vehtari et al., 2015, §6)."""
    return min(math.ceil(min(0.2 * num_draws, 3.0 * math.sqrt(num_draws))), num_draws - 1)


def pareto_k_of_tail(top: Tensor) -> Tensor:
    """Return the Pareto shape of a tail: all that has to be kept of a stream of weights.

    Arguments:
        top: log w of the tail and, last, the largest weight outside it; descending, `(M + 1, *)`
    """
    rounding = 64.0 * torch.finfo(top.dtype).eps
    top = top.double()
    if len(top) - 1 < MIN_TAIL:
        return top.new_full(top.shape[1:], math.inf)
    weight = (top - top[:1]).exp()
    exceedance = (weight[:-1] - weight[-1:]).flip(0)
    k, _ = fit_generalized_pareto(exceedance)
    # Differences at rounding level are no tail: the exact guide must not be called unreliable.
    constant = top[0] - top[-1] <= rounding * top[0].abs().clamp(min=1.0)
    k = torch.where(constant, torch.zeros_like(k), k)
    return torch.where(k.isfinite() & top[0].isfinite(), k, torch.full_like(k, math.inf))


def fit_generalized_pareto(exceedance: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a generalised Pareto law to each column, with a weak prior on the shape around 1/2.

    .. math:: p(y) = (1 / sigma) (1 + k y / sigma)^{-1/k - 1}

    Arguments:
        exceedance: y >= 0, ascending along the first dim, shape `(N, *)`

    Returns:
        k and sigma, each `(*)`.

    References: A new and efficient estimation method for the generalized Pareto distribution
    (Zhang and Stephens, 2009), Technometrics 51(3).
    """
    num = len(exceedance)
    grid = 30 + math.isqrt(num)
    largest = exceedance[-1]
    quartile = exceedance[int(num / 4 - 0.5)]
    quartile = torch.where(quartile > 0.0, quartile, largest)  # ties at the cut-off

    candidates, log_likelihoods = [], []
    for j in range(1, grid + 1):  # a loop keeps the memory at one copy of the tail
        theta = 1.0 / largest + (1.0 - math.sqrt(grid / (j - 0.5))) / (3.0 * quartile)
        shape = torch.log1p(-theta * exceedance).mean(0)
        candidates.append(theta)
        log_likelihoods.append(num * (torch.log(-theta / shape) - shape - 1.0))
    theta_grid = torch.stack(candidates)
    posterior = torch.stack(log_likelihoods).softmax(0)
    theta = (posterior * theta_grid).sum(0)

    shape = torch.log1p(-theta * exceedance).mean(0)
    sigma = -shape / theta
    return (shape * num + 5.0) / (num + 10.0), sigma
