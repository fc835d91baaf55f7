"""Normalising flows, and posteriors made of them. Shapes: * leading dims, Z latent, M points."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import AffineTransform, Transform

from pyro_vae.arguments import integer, number, positive, typed
from pyro_vae.conditionals.conditional import ReturnsDistribution
from pyro_vae.conditionals.outputs import bounded
from pyro_vae.conditionals.transforms import Affine, Planar, Spline
from pyro_vae.distributions import FlowGaussian
from pyro_vae.errors import ConfigError
from pyro_vae.nn import sizes

_POINTS = 64  # draws of white noise behind a flow's mean


class AutoregressiveFlow(nn.Module):
    """A masked network and the bijection that it makes, the identity at the start.

    Arguments:
        transform: "affine" or "spline".
        latent_dim: number Z of units, at least 2.
        hidden: widths of the masked network, at least Z.
        context_dim: numbers on which the bijection depends besides; 0: none.
        num_bins: bins of a spline.
        bound: B, a spline's box.
        backwards: whether the last unit is the first in the order.

    References:
        MADE (Germain et al., 2015), arXiv:1502.03509.
    """

    def __init__(
        self,
        transform: str,
        latent_dim: int,
        hidden: Sequence[int],
        *,
        context_dim: int = 0,
        num_bins: int = 8,
        bound: float = 5.0,
        backwards: bool = False,
    ) -> None:
        super().__init__()
        if transform not in ("affine", "spline"):
            raise ConfigError(f'transform={transform!r}; expected "affine" or "spline"')
        if positive("latent_dim", latent_dim) < 2:
            raise ConfigError("latent_dim=1; an autoregressive flow needs at least 2 units")
        integer("context_dim", context_dim, 0)
        widths = sizes("hidden", hidden)
        if not widths or min(widths) < latent_dim:
            raise ConfigError(
                f"hidden={tuple(hidden)}; a masked network over {latent_dim} units needs hidden "
                f"layers of at least {latent_dim}: use ({max(64, 4 * latent_dim)},)"
            )
        if not 2 <= positive("num_bins", num_bins) <= 500:
            raise ConfigError(f"num_bins={num_bins}; expected between 2 and 500 bins")
        self.transform, self.bound = transform, number("bound", bound, "(0, inf)")
        self.order = list(range(latent_dim))[:: -1 if backwards else 1]
        counts = [1, 1] if transform == "affine" else [num_bins, num_bins, num_bins - 1]
        # Pyro's default order is drawn at random; alternating ones mix the units as well.
        network: Callable[..., Any] = partial(AutoRegressiveNN, latent_dim)
        if context_dim:
            network = partial(ConditionalAutoRegressiveNN, latent_dim, context_dim)
        place = torch.get_default_device()
        with torch.device("cpu"):  # it asks its masks for numbers, which the meta device has not
            order = torch.tensor(self.order)
            made = network(
                list(widths), param_dims=counts, permutation=order, nonlinearity=nn.ELU()
            )
        self.network: nn.Module = made.to(place)
        for parameter in self.network.get_submodule(f"layers.{len(widths)}").parameters():
            nn.init.zeros_(parameter)

    def forward(self, context: Tensor | None) -> Transform:
        """Return the bijection for a context of shape (*, context_dim)."""
        network = self.network if context is None else partial(self.network, context=context)
        if self.transform == "affine":
            return Affine(network, self.order)
        return Spline(network, self.order, self.bound)


class FlowPosterior(ReturnsDistribution):
    r"""A diagonal Gaussian whose noise goes through flows first; all of it depends on x.

    .. math:: z = \mu(x) + \sigma(x) \odot f(\epsilon;\, x), \quad \epsilon \sim N(0, I)

    The network gives μ and log σ, then what each flow needs.

    Arguments:
        net: network (*, data) -> (*, outputs).
        latent_dim: number Z of latent units.
    """

    points: Tensor
    density_costs_a_solve = True

    def __init__(self, net: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.net, self.latent_dim = net, positive("latent_dim", latent_dim)
        half = torch.randn(
            _POINTS // 2, latent_dim, generator=torch.Generator().manual_seed(0), device="cpu"
        )
        # Antithetic: the mean is exact where the flow is affine.
        self.register_buffer("points", torch.cat([half, -half]), persistent=False)

    def transforms(self, context: Tensor) -> list[Transform]:
        """Return the bijections of the noise, given what the network says of them."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> TorchDistributionMixin:
        """Return q(z | x), batch (*) | event (Z,)."""
        outputs = self.net(x)
        rest = outputs.shape[-1] - 2 * self.latent_dim
        loc, log_scale, context = outputs.split([self.latent_dim, self.latent_dim, rest], -1)
        noise = dist.Normal(torch.zeros_like(loc), torch.ones_like(loc)).to_event(1)
        # Cached, as the flows are: a draw is traced back by identity, not by arithmetic.
        last = AffineTransform(loc, bounded(log_scale).exp(), event_dim=1, cache_size=1)
        return FlowGaussian(noise, [*self.transforms(context), last], self.points)


@typed
class PlanarFlow(FlowPosterior):
    r"""A posterior of planar flows, whose parameters are outputs of the encoder.

    .. math:: f_l(\epsilon) = \epsilon + \hat u_l \tanh(w_l^\top \epsilon + b_l)

    Arguments:
        net: network (*, data) -> (*, outputs).
        latent_dim: number Z of latent units.
        num_flows: number of planar maps.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Variational inference with normalizing flows (Rezende and Mohamed, 2015), arXiv:1505.05770.

    Example:
        >>> q = PlanarFlow(nn.Linear(6, PlanarFlow.outputs(2, num_flows=3)), 2, num_flows=3)
        >>> q(torch.zeros(5, 6)).rsample().shape
        torch.Size([5, 2])
    """

    def __init__(self, net: nn.Module, latent_dim: int, *, num_flows: int = 8) -> None:
        super().__init__(net, latent_dim)
        self.num_flows = positive("num_flows", num_flows)
        # Directions start apart from each other and from 0, whatever the encoder says.
        self.directions = nn.Parameter(torch.randn(num_flows, latent_dim) / latent_dim**0.5)

    @staticmethod
    @typed
    def outputs(latent_dim: int, num_flows: int = 8) -> int:
        """Return the number of network outputs."""
        size = 2 * positive("latent_dim", latent_dim)
        return size + positive("num_flows", num_flows) * (size + 1)

    def transforms(self, context: Tensor) -> list[Transform]:
        size = self.latent_dim
        flows = context.unflatten(-1, (self.num_flows, 2 * size + 1))
        bias, u, w = flows.split([1, size, size], -1)
        w = w + self.directions
        return [Planar(bias[..., i, :], u[..., i, :], w[..., i, :]) for i in range(self.num_flows)]

    def extra_repr(self) -> str:
        return f"num_flows={self.num_flows}"


class _AutoregressivePosterior(FlowPosterior):
    """A posterior of autoregressive flows that share a context from the encoder."""

    def __init__(
        self, net: nn.Module, latent_dim: int, num_flows: int, build: Callable[..., nn.Module]
    ) -> None:
        super().__init__(net, latent_dim)
        self.flows = nn.ModuleList(
            build(backwards=bool(i % 2)) for i in range(positive("num_flows", num_flows))
        )

    @staticmethod
    def outputs(latent_dim: int, *, context_dim: int = 32, **options: Any) -> int:
        """Return the number of network outputs; no other option changes it."""
        return 2 * positive("latent_dim", latent_dim) + positive("context_dim", context_dim)

    def transforms(self, context: Tensor) -> list[Transform]:
        return [flow(context) for flow in self.flows]


@typed
class InverseAutoregressiveFlow(_AutoregressivePosterior):
    r"""A posterior of inverse autoregressive flows: drawing and scoring a draw take one pass each.

    .. math:: f_l(\epsilon)_d = \epsilon_d \, e^{s_d(\epsilon_{<d}, h(x))}
        + m_d(\epsilon_{<d}, h(x))

    Scoring any other point takes Z passes. It starts as the diagonal Gaussian.

    Arguments:
        net: network (*, data) -> (*, outputs).
        latent_dim: number Z of latent units, at least 2.
        num_flows: number of maps, in alternating order of the units.
        hidden: widths of each map's masked network, at least Z.
        context_dim: size of h(x).

    Raises:
        ConfigError: an argument out of its range.

    References:
        Improving variational inference with inverse autoregressive flow (Kingma et al., 2016),
        arXiv:1606.04934.
    """

    def __init__(
        self,
        net: nn.Module,
        latent_dim: int,
        *,
        num_flows: int = 2,
        hidden: Sequence[int] = (320,),
        context_dim: int = 32,
    ) -> None:
        build = partial(AutoregressiveFlow, "affine", latent_dim, hidden, context_dim=context_dim)
        super().__init__(net, latent_dim, num_flows, build)


@typed
class SplineFlow(_AutoregressivePosterior):
    r"""A posterior of autoregressive rational-quadratic splines of the noise on [-B, B].

    Scoring a point that was not drawn takes Z passes. It starts as the diagonal Gaussian.

    Arguments:
        net: network (*, data) -> (*, outputs).
        latent_dim: number Z of latent units, at least 2.
        num_flows: number of maps, in alternating order of the units.
        num_bins: bins of each spline.
        bound: B, in standard deviations of the noise.
        hidden: widths of each map's masked network, at least Z.
        context_dim: size of what the encoder tells the maps.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Neural spline flows (Durkan et al., 2019), arXiv:1906.04032.
    """

    def __init__(
        self,
        net: nn.Module,
        latent_dim: int,
        *,
        num_flows: int = 2,
        num_bins: int = 8,
        bound: float = 5.0,
        hidden: Sequence[int] = (320,),
        context_dim: int = 32,
    ) -> None:
        build = partial(
            AutoregressiveFlow,
            "spline",
            latent_dim,
            hidden,
            context_dim=context_dim,
            num_bins=num_bins,
            bound=bound,
        )
        super().__init__(net, latent_dim, num_flows, build)
