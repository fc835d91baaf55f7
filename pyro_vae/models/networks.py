"""The pair of networks behind a program: an encoder, and a decoder that mirrors it.

The arguments are the ones that the programs' constructors share.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from pyro_vae.arguments import positive
from pyro_vae.conditionals import Categorical, Observation, observation, widen
from pyro_vae.errors import ConfigError
from pyro_vae.models.skip_network import SkipMLP
from pyro_vae.models.zoo_program import plain
from pyro_vae.nn import (
    MLP,
    ConvDecoder,
    ConvEncoder,
    OneHot,
    Shape,
    as_shape,
    sizes,
)

# Encoder and decoder by the name of a network.
NETWORKS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "mlp": (MLP, MLP),
    "conv": (ConvEncoder, ConvDecoder),
    "residual": (functools.partial(MLP, residual=True), functools.partial(MLP, residual=True)),
    "skip": (MLP, SkipMLP),
}


def checked_mean(data_mean: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a training mean; raises `ConfigError` unless it is finite, of one datum's shape."""
    if tuple(data_mean.shape) != tuple(shape):
        raise ConfigError(
            f"data_mean has shape {tuple(data_mean.shape)}; expected that of one datum, "
            f"{tuple(shape)}"
        )
    if not bool(data_mean.isfinite().all()):
        raise ConfigError("data_mean has entries that are not finite; look at the data's mean(0)")
    return data_mean


def shared_config(
    data_dim: Shape, latent_dim: int, hidden: Sequence[int], activation: str, network: str
) -> dict[str, Any]:
    """Return the constructor arguments that all networks share, for JSON."""
    if network not in NETWORKS:
        raise ConfigError(f'network={network!r}; expected "mlp", "conv", "residual" or "skip"')
    return {
        "data_dim": plain(as_shape("data_dim", data_dim)),
        "latent_dim": positive("latent_dim", latent_dim),
        "hidden": list(sizes("hidden", hidden)),
        "activation": activation,
        "network": network,
    }


def encoder_net(
    data_shape: tuple[int, ...],
    code_dim: int,
    hidden: Sequence[int],
    activation: str,
    network: str,
    spec: Observation,
    **more: Any,
) -> nn.Module:
    """Return the network x -> code; `more` are further options of the network, as batch_norm."""
    chosen, options = observation(spec)
    build = functools.partial(NETWORKS[network][0], **more)
    if chosen is not Categorical:
        return build(data_shape, code_dim, hidden, activation=activation)
    # A class number is a name, not a quantity.
    one_hot = OneHot(options["num_classes"], len(data_shape))
    in_shape = widen(data_shape, chosen.width(**options))
    return nn.Sequential(one_hot, build(in_shape, code_dim, hidden, activation=activation))


def decoder_of(
    data_shape: tuple[int, ...],
    latent_dim: int,
    hidden: Sequence[int],
    activation: str,
    network: str,
    spec: Observation,
    data_mean: Tensor | None,
    **more: Any,
) -> nn.Module:
    """Return the conditional z -> p(x | z), whose network mirrors the encoder's."""
    chosen, options = observation(spec)
    out_shape = widen(data_shape, chosen.width(**options))
    build = functools.partial(NETWORKS[network][1], **more)
    net = build(latent_dim, out_shape, tuple(hidden)[::-1], activation=activation)
    if data_mean is not None:
        checked_mean(data_mean, data_shape)
        net.set_output_bias(chosen.output_bias(data_mean, **options))
    return chosen(net, event_dim=len(data_shape), **options)
