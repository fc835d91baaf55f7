"""An implicit posterior: a network that is fed with noise. Shapes: * leading dims, Z latent."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.arguments import positive, typed
from pyro_vae.conditionals.conditional import ReturnsDistribution
from pyro_vae.distributions import Implicit
from pyro_vae.nn import MLP, sizes


@typed
class NoiseFed(ReturnsDistribution):
    r"""A posterior of any shape, whose density nobody knows: `pv.AVB` trains it.

    .. math:: z = f(h(x), \epsilon), \quad \epsilon \sim N(0, I)

    The features h of a datum are computed once; K draws cost K passes of the small network f.

    Arguments:
        net: network (*, data) -> (*, features), h.
        latent_dim: number Z of latent units.
        noise_dim: size of ε.
        features: size of h.
        hidden: widths of the hidden layers of f.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Adversarial Variational Bayes (Mescheder et al., 2017), arXiv:1701.04722.

    Example:
        >>> q = NoiseFed(nn.Linear(6, 8), 2, features=8)
        >>> q(torch.zeros(5, 6)).rsample((3,)).shape
        torch.Size([3, 5, 2])
    """

    def __init__(
        self,
        net: nn.Module,
        latent_dim: int,
        *,
        noise_dim: int = 16,
        features: int = 64,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        self.net, self.latent_dim = net, positive("latent_dim", latent_dim)
        self.noise_dim = positive("noise_dim", noise_dim)
        self.mix = MLP(positive("features", features) + noise_dim, latent_dim, tuple(hidden))

    @staticmethod
    @typed
    def outputs(
        latent_dim: int,
        noise_dim: int = 16,
        features: int = 64,
        hidden: Sequence[int] = (64, 64),
    ) -> int:
        """Return the number of network outputs."""
        for name, size in (("latent_dim", latent_dim), ("noise_dim", noise_dim)):
            positive(name, size)
        sizes("hidden", hidden)
        return positive("features", features)

    def forward(self, x: Tensor) -> Implicit:
        """Return q(z | x), batch (*) | event (Z,)."""
        h = self.net(x)
        origin = h.new_zeros((*h.shape[:-1], self.noise_dim))
        noise = dist.Normal(origin, torch.ones_like(origin)).to_event(1)

        def mixed(noise: Tensor) -> Tensor:
            known = h.expand(noise.shape[:-1] + h.shape[-1:])
            return self.mix(torch.cat([known, noise], -1))

        return Implicit(noise, mixed, (self.latent_dim,))

    def extra_repr(self) -> str:
        return f"noise_dim={self.noise_dim}"
