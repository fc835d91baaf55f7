"""Bijections of vectors for flows: log-determinants kept with the values they belong to.

Each object lives for one call of a network, as its parameters do, so that what it remembers (a pair
x, y, by which a draw is scored without being inverted) never outlives them.
Shapes: * leading dims, D units, K bins.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import expm1, log
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions.transforms import AffineAutoregressive
from pyro.distributions.transforms.planar import ConditionedPlanar
from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_vae.conditionals.outputs import LOG_SCALE_LIMIT, bounded

_MIN = 1e-3  # least share of a bin in the box, and least slope at a knot
_IDENTITY = log(expm1(1.0))  # softplus of it is 1


class Planar(ConditionedPlanar):
    r"""Pyro's planar map, the identity at u = 0, and with an inverse.

    .. math:: y = x + \hat u \tanh(w^\top x + b), \quad w^\top \hat u \ge -1

    Pyro's map of u to û, Rezende and Mohamed's, has its identity at :math:`w^\top u = \log(e - 1)`;
    u is measured from there. The inverse solves one monotone equation in :math:`w^\top x` by
    bisection, and by one Newton step, which carries the gradient.

    Arguments:
        bias: b, shape (*, 1).
        u: u, shape (*, D).
        w: w, shape (*, D).
    """

    def __init__(self, bias: Tensor, u: Tensor, w: Tensor) -> None:
        identity = _IDENTITY * w / w.square().sum(-1, keepdim=True)
        super().__init__((bias, u + identity, w))

    def _inverse(self, y: Tensor) -> Tensor:
        bias, u, w = self._params
        u_hat = self.u_hat(u, w)
        slope, target = (w * u_hat).sum(-1, keepdim=True), (w * y).sum(-1, keepdim=True)
        with torch.no_grad():
            low, high = target - slope.abs(), target + slope.abs()
            for _ in range(40):  # to a part in 10^12
                middle = (low + high) / 2
                above = middle + slope * torch.tanh(middle + bias) > target
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        act = torch.tanh(low + bias)
        excess = low + slope * act - target
        root = low - excess / (1 + slope * (1 - act.square()).detach()).clamp(min=1e-6)
        x = y - u_hat * torch.tanh(root + bias)
        self._call(x)  # Pyro would go on with the log-determinant of another value
        return x


class Affine(AffineAutoregressive):
    r"""Pyro's affine autoregressive map, with an inverse in any precision and without syncs.

    .. math:: y_d = x_d \, e^{s_d(x_{<d})} + m_d(x_{<d})

    Log-scales are `bounded`: Pyro's clamp lets gradients through that are not those of its value.

    Arguments:
        network: x -> (m, s), each (*, D), masked.
        order: the units, from the first to the last.
    """

    def __init__(self, network: Callable[[Tensor], Any], order: list[int]) -> None:
        def limited(x: Tensor) -> tuple[Tensor, Tensor]:
            mean, log_scale = network(x)
            return mean, bounded(log_scale)

        limit = 2 * LOG_SCALE_LIMIT  # never reached: Pyro's clamp is the identity
        super().__init__(limited, log_scale_min_clip=-limit, log_scale_max_clip=limit)
        self.order = order

    def _inverse(self, y: Tensor) -> Tensor:
        x = [y.new_zeros(y.shape[:-1])] * y.shape[-1]
        for d in self.order:
            mean, log_scale = self.arn(torch.stack(x, -1))
            x[d] = (y[..., d] - mean[..., d]) * (-log_scale[..., d]).exp()
        self._cached_log_scale = log_scale
        return torch.stack(x, -1)


class Spline(Transform):
    r"""An autoregressive rational-quadratic spline on [-B, B]; the identity outside.

    Pyro's spline picks the points outside by boolean indexing, which neither the meta device nor a
    compiled graph can run; this one is the same function.

    Arguments:
        network: x -> (widths, heights, slopes), (*, K, D), (*, K, D) and (*, K - 1, D), masked; all
            zero is the identity.
        order: the units, from the first to the last.
        bound: B.

    References:
        Neural spline flows (Durkan et al., 2019), arXiv:1906.04032.
    """

    domain = codomain = constraints.real_vector
    bijective = True
    sign = +1

    def __init__(self, network: Callable[[Tensor], Any], order: list[int], bound: float) -> None:
        super().__init__(cache_size=1)
        self.network, self.order, self.bound = network, order, bound
        self._log_slopes: tuple[Tensor, Tensor] | None = None

    def _call(self, x: Tensor) -> Tensor:
        y, log_slope = rational_quadratic(x, self._knots(x), self.bound)
        self._log_slopes = (x, log_slope.sum(-1))
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x = [torch.zeros_like(y[..., 0])] * y.shape[-1]
        for d in self.order:
            knots = [each[..., d : d + 1, :] for each in self._knots(torch.stack(x, -1))]
            solved, _ = rational_quadratic(y[..., d : d + 1], knots, self.bound, inverse=True)
            x[d] = solved[..., 0]
        return torch.stack(x, -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant at x, shape (*)."""
        if self._log_slopes is None or self._log_slopes[0] is not x:
            self._call(x)
        assert self._log_slopes is not None
        return self._log_slopes[1]

    def _knots(self, x: Tensor) -> list[Tensor]:
        return [each.transpose(-1, -2) for each in self.network(x)]


def rational_quadratic(
    x: Tensor,
    knots: Sequence[Tensor],
    bound: float,
    *,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return y(x) and the log slope at x, or x(y) and minus the log slope; the shape of x.

    Arguments:
        x: points, shape (*, D).
        knots: logits of the bins' widths and of their heights, shape (*, D, K) each, and slopes at
            the inner knots before a softplus, shape (*, D, K - 1).
        bound: B, half the side of the box.
        inverse: whether x holds values of the spline.
    """
    widths, heights, slopes = knots
    inside = x.abs() < bound
    point = x.clamp(-bound, bound)
    across, up = _edges(widths, bound), _edges(heights, bound)
    inner = _MIN + F.softplus(slopes + log(expm1(1 - _MIN)))
    slope = F.pad(inner, (1, 1), value=1.0)
    edges = up if inverse else across
    index = (point.unsqueeze(-1) >= edges[..., 1:-1]).sum(-1, keepdim=True)
    pick = partial(_pick, index=index)
    left, width = pick(across[..., :-1]), pick(across.diff(dim=-1))
    low, height = pick(up[..., :-1]), pick(up.diff(dim=-1))
    s0, s1, chord = pick(slope[..., :-1]), pick(slope[..., 1:]), height / width
    bend = s0 + s1 - 2 * chord
    if inverse:
        rise = point - low
        a, b, c = height * (chord - s0) + rise * bend, height * s0 - rise * bend, -chord * rise
        t = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
    else:
        t = (point - left) / width
    between = t * (1 - t)
    below = chord + bend * between
    top = s1 * t.square() + 2 * chord * between + s0 * (1 - t).square()
    log_slope = 2 * chord.log() + top.log() - 2 * below.log()
    if inverse:
        found, log_slope = left + t * width, -log_slope
    else:
        found = low + height * (chord * t.square() + s0 * between) / below
    return torch.where(inside, found, x), torch.where(inside, log_slope, 0.0)


def _edges(logits: Tensor, bound: float) -> Tensor:
    """Return the K + 1 knots between -B and B of bins whose shares are a softmax."""
    bins = logits.shape[-1]
    shares = _MIN + (1 - _MIN * bins) * logits.softmax(-1)
    inner = 2 * bound * shares.cumsum(-1)[..., :-1] - bound
    return F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    lead = torch.broadcast_shapes(values.shape[:-1], index.shape[:-1])
    chosen = values.expand(*lead, values.shape[-1]).gather(-1, index.expand(*lead, 1))
    return chosen.squeeze(-1)
