"""Transitions of state spaces. Shapes: Z one state, H what an encoder says of a step, * leading."""

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import integer, positive, typed
from pyro_vae.conditionals.conditional import ReturnsDistribution
from pyro_vae.conditionals.flows import AutoregressiveFlow


class _Gaussian(ReturnsDistribution):
    """A diagonal Gaussian whose scale is a softplus, never below 1e-4."""

    @staticmethod
    def _gaussian(loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
        return dist.Normal(loc, nn.functional.softplus(scale) + 1e-4).to_event(1)


@typed
class GatedTransition(_Gaussian):
    r"""A transition between a linear and a nonlinear one, unit by unit.

    .. math:: z_t \sim N\big((1 - g) \odot (W z_{t-1} + b) + g \odot h,\ \sigma^2(h)\big), \quad
        g = \mathrm{sigmoid}(\mathrm{net}(z_{t-1})), \quad h = \mathrm{net}'(z_{t-1})

    W starts as the identity.

    Arguments:
        latent_dim: Z.
        hidden: width of both networks' hidden layers.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Structured inference networks for nonlinear state space models (Krishnan et al., 2017),
        arXiv:1609.09869.

    Example:
        >>> import torch
        >>> GatedTransition(2, 8)(torch.zeros(5, 2)).event_shape
        torch.Size([2])
    """

    def __init__(self, latent_dim: int, hidden: int) -> None:
        super().__init__()
        size, width = positive("latent_dim", latent_dim), positive("hidden", hidden)
        self.into, self.out = nn.Linear(size, 2 * width), nn.Linear(width, size)
        self.gate, self.straight = nn.Linear(width, size), nn.Linear(size, size)
        self.scale = nn.Linear(size, size)
        nn.init.eye_(self.straight.weight)
        nn.init.zeros_(self.straight.bias)

    def forward(self, z: Tensor) -> TorchDistributionMixin:
        """Return p(z_t | z_{t-1}) of states (*, Z)."""
        one, other = self.into(z).relu().chunk(2, -1)
        gate, proposed = self.gate(one).sigmoid(), self.out(other)
        loc = (1 - gate) * self.straight(z) + gate * proposed
        return self._gaussian(loc, self.scale(proposed.relu()))


@typed
class Combiner(_Gaussian):
    r"""The posterior of a state, from the state before and what an encoder says of the step.

    .. math:: q(z_t \mid z_{t-1}, h_t) = N\big(V c + v, \mathrm{diag}\,\sigma^2(c)\big), \quad
        c = \tfrac{1}{2}\big(\tanh(W z_{t-1} + b) + h_t\big)

    Flows, the same for all steps, may bend the Gaussian. They start as the identity; a draw costs
    one pass through each, a density Z.

    Arguments:
        latent_dim: Z; with flows at least 2.
        hidden: H.
        num_flows: number of inverse autoregressive flows.

    Raises:
        ConfigError: an argument out of its range.

    References:
        | Structured inference networks for nonlinear state space models (Krishnan et al., 2017),
          arXiv:1609.09869
        | Improved variational inference with inverse autoregressive flow (Kingma et al., 2016),
          arXiv:1606.04934

    Example:
        >>> import torch
        >>> Combiner(2, 8)(torch.zeros(5, 2), torch.zeros(5, 8)).event_shape
        torch.Size([2])
    """

    def __init__(self, latent_dim: int, hidden: int, num_flows: int = 0) -> None:
        super().__init__()
        size, width = positive("latent_dim", latent_dim), positive("hidden", hidden)
        self.into, self.out = nn.Linear(size, width), nn.Linear(width, 2 * size)
        self.flows = nn.ModuleList(
            AutoregressiveFlow("affine", size, (4 * size,), backwards=bool(i % 2))
            for i in range(integer("num_flows", num_flows, 0))
        )

    def forward(self, z: Tensor, h: Tensor) -> TorchDistributionMixin:
        """Return q(z_t | z_{t-1}, h_t) of states (*, Z) and encodings (*, H)."""
        # Half of h is known for all steps at once; here the loop over time has an operation less.
        both = torch.add(0.5 * h, self.into(z).tanh(), alpha=0.5)
        gaussian = self._gaussian(*self.out(both).chunk(2, -1))
        if not self.flows:
            return gaussian
        return dist.TransformedDistribution(gaussian, [flow(None) for flow in self.flows])
