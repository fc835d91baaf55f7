"""Layers of latents under one pass from the top down. Shapes: B batch, Z_l units, * sample dims.

Layer 1 is the nearest to the data, layer L the top; their sites are "z1" ... "zL". A program's one
pass downward, `descend`, asks `draw` for each latent: the model draws from the prior that it meets
there, a top-down guide from its posterior.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import counted, positive, typed
from pyro_vae.conditionals import Bernoulli, Gaussian, Observation, observation_config
from pyro_vae.errors import ConfigError
from pyro_vae.models.networks import decoder_of
from pyro_vae.models.zoo_program import ZooProgram, plain, register
from pyro_vae.nn import MLP, Shape, sizes

# Takes the number of a layer and the state above it; returns the layer's latent, (* | Z_l).
Draw = Callable[[int, Tensor], Tensor]
PARAMETERS = Gaussian.width()  # network outputs per latent unit


@typed
class Layers(ZooProgram):
    """What all of them share: sizes, the model around `descend`, the example."""

    decoder: nn.Module

    def __init__(self, data_dim: Shape, latent_dims: Sequence[int]) -> None:
        super().__init__(data_dim)
        self.latent_dims = sizes("latent_dims", latent_dims)
        if not self.latent_dims:
            raise ConfigError("latent_dims=() is empty; expected sizes, data side first: (64, 32)")
        self.config = {
            "data_dim": plain(self.data_shape),
            "latent_dims": list(self.latent_dims),
        }
        self.register_buffer("origin", torch.zeros(self.latent_dims[-1]), persistent=False)

    def prior(self, layer: int, state: Tensor) -> TorchDistributionMixin:
        """Return p(z_l | state above), batch (*) | event (Z_l,)."""
        raise NotImplementedError

    def descend(self, draw: Draw) -> Tensor:
        """Go from the top to the data, drawing each latent; return what the decoder reads."""
        raise NotImplementedError

    def model(self, x: Tensor) -> Tensor:
        """Draw the latents from the top down and observe x, shape (B | data)."""
        register(self)
        with pyro.plate("data", len(x)):
            state = self.descend(
                lambda layer, above: pyro.sample(f"z{layer}", self.prior(layer, above))
            )
            return pyro.sample("x", self.decoder(state), obs=x)  # (B | data)


@typed
class Chain(Layers):
    """The model of `HierarchicalVAE` and `LadderVAE`: each layer is drawn given the one above."""

    def __init__(
        self,
        data_dim: Shape,
        latent_dims: Sequence[int] = (64, 32, 16),
        hidden: Sequence[int] = (512, 256, 128),
        *,
        depth: int = 2,
        activation: str = "leaky_relu",
        batch_norm: bool = True,
        observation: Observation = Bernoulli,
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__(data_dim, latent_dims)
        widths, dims = sizes("hidden", hidden), self.latent_dims
        if len(widths) != len(dims):
            raise ConfigError(
                f"hidden={list(widths)} has {counted(len(widths), 'width')} for {len(dims)} "
                "latent layers; expected one each, the data side first"
            )
        options: dict[str, Any] = {"activation": activation, "batch_norm": bool(batch_norm)}
        self.config = {
            **(self.config or {}),
            "hidden": list(widths),
            "depth": positive("depth", depth),
            **options,
            "observation": observation_config(observation),
        }
        net: Callable[..., MLP] = functools.partial(MLP, **options)
        self.priors = nn.ModuleList(  # priors[l - 1]: z_{l+1} -> p(z_l | z_{l+1})
            Gaussian(net(above, below * PARAMETERS, (width,) * depth))
            for above, below, width in zip(dims[1:], dims, widths[1:], strict=False)
        )
        # Of the networks that meet the data.
        ends: dict[str, Any] = {"network": "mlp", "spec": observation, **options}
        layers = (widths[0],) * depth
        self.decoder = decoder_of(self.data_shape, dims[0], layers, data_mean=data_mean, **ends)
        self._add_guide(widths, depth, net, ends)

    def _add_guide(
        self, widths: tuple[int, ...], depth: int, net: Callable[..., MLP], ends: dict[str, Any]
    ) -> None:
        raise NotImplementedError

    def prior(self, layer: int, state: Tensor) -> TorchDistributionMixin:
        """Return p(z_l | z_{l+1}), batch (*) | event (Z_l,); N(0, I) at the top."""
        if layer < len(self.latent_dims):
            return self.priors[layer - 1](state)
        return dist.Normal(self.origin, torch.ones_like(self.origin)).to_event(1)

    def descend(self, draw: Draw) -> Tensor:
        """Draw each latent given the one above it; return z_1."""
        z = self.origin  # nothing stands above the top
        for layer in range(len(self.latent_dims), 0, -1):
            z = draw(layer, z)
        return z
