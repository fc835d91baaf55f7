"""Elementary functions as short ones, in single precision: right to within 4 roundings.

The compiler calls a library for ``tanh`` and ``log1p``, which is as slow as a whole layer.
"""

import torch
from torch import Tensor

_LEVELS = 5  # of Lambert's fraction: exact to 1e-9 where |x| < 0.7
_TERMS = 8  # of the series: exact to 2e-9


def tanh(x: Tensor) -> Tensor:
    """Return tanh(x) as (1 - e) / (1 + e) with e = exp(-2 |x|), near 0 as x / (1 + x² / (3 + ...)).

    Near 0 the first would cancel. Elsewhere it is 1 only where the library's is, and never above:
    programs take the root of 1 - tanh².

    References:
        | Mémoire sur quelques propriétés remarquables des quantités transcendentes circulaires
          et logarithmiques (Lambert, 1768)
    """
    above, below = [1.0], [2.0 * _LEVELS - 1]
    for level in range(_LEVELS - 1, 0, -1):
        above, below = below, _sum([(2 * level - 1) * c for c in below], [0.0, *above])
    first = below[0]
    square = x * x
    near = _horner([c / first for c in above], square) / _horner([c / first for c in below], square)
    e = torch.exp(-2 * x.abs())
    return torch.where(x.abs() < 0.7, x * near, torch.copysign((1 - e) / (1 + e), x))


def log1p(e: Tensor) -> Tensor:
    """Return log(1 + e), e in [0, 1], as 2 artanh(e / (2 + e)): a series in at most 1/9."""
    s = e / (2 + e)
    return s * _horner([2 / (2 * term + 1) for term in range(_TERMS)], s * s)


def bernoulli(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return Bernoulli's -log p and its mean, by e = exp(-|l|), which both have in common.

    -log p = (1 - x) l + max(-l, 0) + log(1 + e), and the mean is 1 / (1 + e) or e / (1 + e).
    """
    e = torch.exp(-logits.abs())
    cost = (1 - target) * logits + (-logits).clamp_min(0) + log1p(e)
    return cost, torch.where(logits >= 0, 1.0, e) / (1 + e)


def _sum(one: list[float], other: list[float]) -> list[float]:
    """Add two polynomials, coefficients from the constant upwards."""
    size = max(len(one), len(other))
    padded = ([*p, *[0.0] * (size - len(p))] for p in (one, other))
    return [a + b for a, b in zip(*padded, strict=True)]


def _horner(coefficients: list[float], x: Tensor) -> Tensor:
    """Return the polynomial with these coefficients, from the constant upwards."""
    *rest, before, last = coefficients
    total = x * last + before
    for coefficient in reversed(rest):
        total = total * x + coefficient
    return total
