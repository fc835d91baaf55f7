"""A deep top-down VAE. Shapes: B batch, Z_l units of layer l, H state, * sample dims."""

import functools
from collections.abc import Sequence

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import positive, typed
from pyro_vae.conditionals import Bernoulli, Gaussian, Observation, observation_config
from pyro_vae.models.latent_layers import PARAMETERS, Draw, Layers
from pyro_vae.models.networks import decoder_of, encoder_net
from pyro_vae.models.zoo_program import register
from pyro_vae.nn import MLP, Shape


@typed
class TopDownVAE(Layers):
    r"""Residual layers around a state that flows down; the guide reads it at every layer.

    .. math:: p(z_l \mid h_l), \quad q(z_l \mid h_l, d_l), \quad
        h_{l-1} = h_l + g_l(h_l, z_l), \quad x \sim p(x \mid h_0), \qquad
        d_1 = f_1(x), \; d_l = d_{l-1} + f_l(d_{l-1})

    h_L is learned. So that many layers train, both passes have skip connections, each network
    normalises what it reads (Ba et al., 2016), and the residuals start small, by 1 / sqrt(L).

    Arguments:
        data_dim: shape of one datum, as 784 or (1, 28, 28).
        latent_dims: units Z_l of each layer, the data side first.
        hidden: width H of the state and of all networks.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        observation: class of `pyro_vae.conditionals`, or a `functools.partial` of one.
        data_mean: training mean, shape of one datum; starts the decoder's output there.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Improving variational inference with inverse autoregressive flow (Kingma et al., 2016),
        arXiv:1606.04934, appendix C; Very deep VAEs (Child, 2021), arXiv:2011.10650.

    Example:
        >>> vae = TopDownVAE(784, (8,) * 12, hidden=32)
        >>> vae.descend(lambda layer, state: torch.zeros(5, 8)).shape
        torch.Size([5, 32])
    """

    kind = "top_down_vae"

    def __init__(
        self,
        data_dim: Shape,
        latent_dims: Sequence[int] = (16,) * 6,
        hidden: int = 256,
        *,
        activation: str = "silu",
        observation: Observation = Bernoulli,
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__(data_dim, latent_dims)
        dims, width = self.latent_dims, positive("hidden", hidden)
        self.config = {
            **(self.config or {}),
            "hidden": width,
            "activation": activation,
            "observation": observation_config(observation),
        }
        net = functools.partial(_reader, width=width, activation=activation)
        ends = ((width,), activation, "mlp", observation)
        first = encoder_net(self.data_shape, width, *ends)
        self.up = nn.ModuleList([first, *(net(width, width) for _ in dims[1:])])
        self.priors = nn.ModuleList(Gaussian(net(width, size * PARAMETERS)) for size in dims)
        self.posteriors = nn.ModuleList(
            Gaussian(net(2 * width, size * PARAMETERS)) for size in dims
        )
        self.down = nn.ModuleList(net(width + size, width) for size in dims)
        self.decoder = decoder_of(self.data_shape, width, *ends, data_mean)
        self.norm = nn.LayerNorm(width)
        self.start = nn.Parameter(torch.randn(width))
        with torch.no_grad():
            for residual in (*self.up[1:], *self.down):
                for parameter in residual[-1].output.parameters():
                    parameter.mul_(len(dims) ** -0.5)

    def prior(self, layer: int, state: Tensor) -> TorchDistributionMixin:
        """Return p(z_l | h_l), batch (*) | event (Z_l,)."""
        return self.priors[layer - 1](state)

    def descend(self, draw: Draw) -> Tensor:
        """Draw each latent given the state, and add what it says to it; return h_0, normalised."""
        state = self.start
        for layer in range(len(self.latent_dims), 0, -1):
            z = draw(layer, state)
            state = state + self.down[layer - 1](_beside(state, z))
        return self.norm(state)

    def guide(self, x: Tensor) -> None:
        """Go up without noise, then down, each posterior from the state and what was seen."""
        register(self)
        seen = [self.up[0](x)]
        for residual in self.up[1:]:
            seen.append(seen[-1] + residual(seen[-1]))

        def draw(layer: int, state: Tensor) -> Tensor:
            posterior = self.posteriors[layer - 1](_beside(state, seen[layer - 1]))
            return pyro.sample(f"z{layer}", posterior)

        with pyro.plate("data", len(x)):
            self.descend(draw)


def _reader(inputs: int, outputs: int, width: int, activation: str) -> nn.Sequential:
    """Return a network that normalises its inputs: the states that it reads may grow."""
    net = MLP(inputs, outputs, (width,), activation=activation)
    return nn.Sequential(nn.LayerNorm(inputs), net)


def _beside(a: Tensor, b: Tensor) -> Tensor:
    """Concatenate two tensors along the last dim; their leading dims broadcast."""
    lead = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return torch.cat([a.expand(*lead, -1), b.expand(*lead, -1)], -1)
