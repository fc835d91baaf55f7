"""Gaussian mixtures fitted to draws by expectation and maximisation."""

import math

import torch
from torch import Tensor

_ROUNDS, _MOST = 15, 4096
_PARTS = (1, 2, 5, 10, 30)
_NUGGET = 1e-6  # of the variances: draws may lie in a plane


class GaussianMixture:
    """The log density of a mixture of Gaussians, up to a constant that all of a dimension share.

    Arguments:
        log_weight: ``(K,)``.
        mean: ``(K, Z)``.
        covariance: ``(K, Z, Z)``.
    """

    def __init__(self, log_weight: Tensor, mean: Tensor, covariance: Tensor) -> None:
        self.log_weight, self.mean = log_weight, mean
        self.root = torch.linalg.cholesky(covariance)

    def parts(self, z: Tensor) -> Tensor:
        """Return the log density of draws ``(B, Z)`` together with each part, ``(K, B)``."""
        apart = (z - self.mean[:, None]).mT  # (K, Z, B)
        apart = torch.linalg.solve_triangular(self.root, apart, upper=False)
        size = self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (self.log_weight - size)[:, None] - 0.5 * apart.square().sum(1)

    def __call__(self, z: Tensor) -> Tensor:
        """Map draws ``(B, Z)`` to ``(B,)``."""
        return torch.cat([self.parts(some).logsumexp(0) for some in z.split(_MOST)])


def moments(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of draws ``(N, Z)``, the covariance of full rank."""
    covariance = torch.cov(draws.mT).reshape(draws.shape[1], draws.shape[1])
    variance = covariance.diagonal()
    least = _NUGGET * variance.max().clamp(min=torch.finfo(draws.dtype).tiny)
    return draws.mean(0), covariance + (_NUGGET * variance + least).diag()


def fitted(draws: Tensor, parts: int) -> GaussianMixture:
    r"""Return the mixture of K Gaussians that fits draws, ``(N, Z)``.

    .. math:: S_k = \frac{\sum_n r_{nk} (z_n - m_k)(z_n - m_k)^T + \nu\, K^{-2/Z} S}{n_k + \nu},
       \qquad \nu = Z + 2

    A part of few draws has in part the shape S of all of them, made smaller.
    """
    mean, covariance = moments(draws)
    if parts == 1:
        return GaussianMixture(draws.new_zeros(1), mean[None], covariance[None])
    draws, size = draws[:_MOST], draws.shape[1]
    prior = covariance * parts ** (-2 / size)
    level = draws.new_full((parts,), -math.log(parts))
    found = GaussianMixture(level, _spread(draws, covariance, parts), prior.expand(parts, -1, -1))
    for _ in range(_ROUNDS):
        share = found.parts(draws).softmax(0)  # (K, N)
        count = share.sum(1)
        means = (share @ draws) / count.clamp(min=1e-9)[:, None]
        apart = [
            (draws - one) * weight.sqrt()[:, None] for one, weight in zip(means, share, strict=True)
        ]
        around = torch.stack([each.mT @ each for each in apart])
        known = size + 2
        covariances = (around + known * prior) / (count + known)[:, None, None]
        found = GaussianMixture((count + 1e-3).log() - math.log(len(draws)), means, covariances)
    return found


def best_fitted(draws: Tensor, new: Tensor) -> GaussianMixture:
    """Return the mixture that gives new draws the most likelihood, of those of several sizes.

    It has at most half as many numbers as there are draws.
    """
    numbers = draws.shape[1] * (draws.shape[1] + 3)  # twice those of one Gaussian
    best, most, worse = fitted(draws, 1), -math.inf, 0
    for parts in _PARTS:
        if worse == 2 or (parts > 1 and parts * numbers > len(draws)):
            break  # two sizes in a row were of no use
        found = fitted(draws, parts)
        likelihood = found(new[:_MOST]).mean().item()
        worse = 0 if likelihood > most else worse + 1
        if likelihood > most:
            best, most = found, likelihood
    return best


def _spread(draws: Tensor, covariance: Tensor, count: int) -> Tensor:
    """Return some of the draws, far from each other (the seeds of k-means++), ``(count, Z)``."""
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(root, draws.mT, upper=False).mT
    rows = [int(torch.randint(len(draws), ()))]
    nearest = (white - white[rows[0]]).square().sum(-1)
    for _ in range(count - 1):
        rows.append(int(torch.multinomial(nearest.clamp(min=1e-12), 1)))
        nearest = nearest.minimum((white - white[rows[-1]]).square().sum(-1))
    return draws[rows]
