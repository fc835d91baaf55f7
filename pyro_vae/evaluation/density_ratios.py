"""A critic of two kinds of codes from a limited number of them: the ratio of their densities."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.evaluation.gaussian_mixtures import GaussianMixture, best_fitted, moments
from pyro_vae.inference.objectives.adversarial import told_apart
from pyro_vae.torch_private import foreach_lerp_

_BATCH, _WIDTH, _LOOKS, _HELD = 256, 32, 40, 0.2
_RATE, _DECAY, _AVERAGE = 1e-2, 1e-2, 0.98
_SHRUNK = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
_MOST = 1e6  # nats: a code in the tails of a spike has a finite gradient


class Sight:
    r"""What is known of the densities of q and p before a network is trained, as its inputs.

    .. math:: g(z) = \log \frac{\sum_k w_k N(z; m_k, S_k)}{\sum_k w'_k N(z; m'_k, S'_k)}, \qquad
       u, \quad \log(1 + u^2), \quad u = L^{-1} (z - c)

    with c and L of the moments of both together. A shift, a scale, a correlation and clusters are
    in g: a network is left to find the rest.

    Arguments:
        centre, covariance: Of both together, ``(Z,)`` and ``(Z, Z)``.
        q, p: The mixtures; None: g = 0.
    """

    def __init__(
        self,
        centre: Tensor,
        covariance: Tensor,
        q: GaussianMixture | None = None,
        p: GaussianMixture | None = None,
    ) -> None:
        self.centre, self.root = centre, torch.linalg.cholesky(covariance)
        self.q, self.p = q, p

    def ratio(self, z: Tensor) -> Tensor:
        """Map codes ``(B, Z)`` to g, ``(B,)``."""
        if self.q is None or self.p is None:
            return z.new_zeros(len(z))
        return (self.q(z) - self.p(z)).clamp(-_MOST, _MOST)

    @torch.no_grad()
    def __call__(self, z: Tensor) -> Tensor:
        """Map codes ``(B, Z)`` to inputs, ``(B, 1 + 2 Z)``."""
        u = torch.linalg.solve_triangular(self.root, (z - self.centre).mT, upper=False).mT
        return torch.cat([self.ratio(z)[:, None], u, u.square().log1p()], -1)


class Judge(nn.Module):
    """A small network besides what is known: T = a g + f, with f = 0 and a = 1 to begin with."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(inputs - 1, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, _WIDTH), nn.SiLU()
        )
        self.last = nn.Linear(_WIDTH, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, seen: Tensor) -> Tensor:
        """Map inputs ``(B, 1 + 2 Z)`` to ``(B,)``."""
        told: Tensor = self.gain * seen[:, 0] + self.last(self.net(seen[:, 1:])).squeeze(-1)
        return told


@torch.no_grad()
def sights(ours: Tensor, theirs: Tensor) -> list[Sight]:
    """Return what draws tell, ``(M, Z)`` and ``(N, Z)``: by Gaussians, and by mixtures of them.

    A fifth of them, held out, decides how far the one Gaussian is drawn to the other, or whether
    both are one, and of how many parts a mixture is.
    """
    (ours, told), (theirs, its) = _held_out(ours), _held_out(theirs)
    (mean, cov), (other, its_cov) = moments(ours), moments(theirs)
    apart = mean - other
    whole = (mean + other) / 2, (cov + its_cov) / 2 + torch.outer(apart, apart) / 4
    level = ours.new_zeros(1)
    p = GaussianMixture(level, other[None], its_cov[None])
    found = [Sight(*whole)]
    for shrunk in _SHRUNK:
        drawn = [torch.lerp(*pair, shrunk)[None] for pair in ((mean, other), (cov, its_cov))]
        found.append(Sight(*whole, GaussianMixture(level, *drawn), p))
    losses = [told_apart(each.ratio(told), each.ratio(its)).item() for each in found]
    mixtures = best_fitted(ours, told), best_fitted(theirs, its)
    several = any(len(each.mean) > 1 for each in mixtures)
    return [found[losses.index(min(losses))]] + ([Sight(*whole, *mixtures)] if several else [])


def trained(critic: nn.Module, ours: Tensor, theirs: Tensor, steps: int) -> tuple[float, float]:
    """Train a critic where it is; return its losses on what is held out, and at last on the rest.

    A fifth of the codes is held out: of all weights on the way (their moving averages) those stay
    that know these best, the first ones among them.

    Arguments:
        critic: T, codes ``(B, Z)`` to ``(B,)``; one without parameters stays as it is.
        ours: Draws of q, ``(M, Z)``.
        theirs: Draws of p, ``(N, Z)``.
        steps: Of Adam, at ever lower rates.
    """
    weights = [p for p in critic.parameters() if p.requires_grad]
    if not (weights and steps):
        return (_loss(critic, ours, theirs),) * 2
    (ours, told), (theirs, its) = _held_out(ours), _held_out(theirs)
    optimizer = torch.optim.AdamW(weights, _RATE, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    average = [p.detach().clone() for p in weights]
    best, kept = _loss(critic, told, its), [p.clone() for p in average]
    for step in range(1, steps + 1):
        rows, others = (torch.randint(len(z), (min(_BATCH, len(z)),)) for z in (ours, theirs))
        optimizer.zero_grad()
        told_apart(_of(critic, ours[rows]), _of(critic, theirs[others])).backward()
        optimizer.step()
        schedule.step()
        foreach_lerp_(average, [p.detach() for p in weights], 1 - min(_AVERAGE, step / (step + 9)))
        if step == steps or step % max(1, steps // _LOOKS) == 0:
            last = [p.detach().clone() for p in weights]
            _put(weights, average)
            found = _loss(critic, told, its)
            if found < best:
                best, kept = found, [p.clone() for p in average]
            if step == steps:
                floor = _loss(critic, ours, theirs)
            _put(weights, last)
    _put(weights, kept)
    return best, floor


def _held_out(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return most of the draws, and the others."""
    rest = max(1, int(_HELD * len(draws)))
    return draws[rest:], draws[:rest]


def _of(critic: nn.Module, z: Tensor) -> Tensor:
    told: Tensor = critic(z)
    return told.reshape(-1)


@torch.no_grad()
def losses_of(critic: nn.Module, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the critic's losses at each draw of q and of p, and T at those of q, in eval mode."""
    mode = critic.training
    critic.eval()
    told, its = (_of(critic, each).double() for each in (ours, theirs))
    critic.train(mode)
    return softplus(-told), softplus(its), told


def _loss(critic: nn.Module, ours: Tensor, theirs: Tensor) -> float:
    first, second, _ = losses_of(critic, ours, theirs)
    return (first.mean() + second.mean()).item()


@torch.no_grad()
def _put(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)
