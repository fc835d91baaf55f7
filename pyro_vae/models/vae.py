"""The variational autoencoder. Shapes: B batch, Z latent, * leading sample dims."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.conditionals import Bernoulli, Gaussian, Observation, observation_config
from pyro_vae.errors import ConfigError
from pyro_vae.models.naming import register, unique_name
from pyro_vae.models.networks import decoder_of, encoder_net, plain, shapes, shared_config
from pyro_vae.nn import Shape


class VAE(nn.Module):
    r"""A deep latent Gaussian model with an amortised diagonal Gaussian posterior.

    .. math:: z \sim N(0, I), \quad x \sim p(x \mid decoder(z)),
        \qquad q(z \mid x) = N(\mu(x), \mathrm{diag}\,\sigma^2(x))

    Arguments:
        data_dim: shape of one datum, as 784 or (1, 28, 28).
        latent_dim: number Z of latent units.
        hidden: widths of the encoder's hidden layers ("conv": channels); the decoder mirrors them.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        observation: class of `pyro_vae.conditionals`, or a `functools.partial` of one.
        network: "mlp", or "conv" for images (C, H, W).
        encoder: module (*, data) -> distribution of z, event (Z,), in place of the built one.
        decoder: module (*, Z) -> distribution of x, event one datum, in place of the built one.
        data_mean: training mean, shape of one datum; starts the decoder's output there.

    References:
        Auto-encoding variational Bayes (Kingma and Welling, 2013), arXiv:1312.6114;
        Stochastic backpropagation (Rezende et al., 2014), arXiv:1401.4082.

    Example:
        >>> vae = VAE(784, 2)
        >>> vae.decoder(vae.prior().sample((5,))).event_shape
        torch.Size([784])
    """

    loc: Tensor

    def __init__(
        self,
        data_dim: Shape,
        latent_dim: int,
        hidden: Sequence[int] = (400,),
        *,
        activation: str = "relu",
        observation: Observation = Bernoulli,
        network: str = "mlp",
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.name = unique_name("vae")
        self.data_shape, self.latent_dim = shapes(data_dim, latent_dim)
        self.config: dict[str, Any] | None = {
            **shared_config(data_dim, latent_dim, hidden, activation, network),
            "observation": observation_config(observation),
        }
        if encoder is not None or decoder is not None:
            self.config = None
        if decoder is not None and data_mean is not None:
            raise ConfigError(
                "data_mean starts the built decoder; with your own decoder leave it out"
            )
        shape, size = self.data_shape, self.latent_dim
        nets = (hidden, activation, network, observation)
        if encoder is None:
            encoder = Gaussian(encoder_net(shape, size * Gaussian.width(), *nets))
        if decoder is None:
            decoder = decoder_of(shape, size, *nets, data_mean)
        self.encoder, self.decoder = encoder, decoder
        self.register_buffer("loc", torch.zeros(self.latent_dim), persistent=False)

    def prior(self) -> TorchDistributionMixin:
        """Return p(z) = N(0, I), event (Z,)."""
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(1)

    def model(self, x: Tensor) -> Tensor:
        """Draw z and observe x, shape (B | data)."""
        register(self, self.name)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())  # (B | Z)
            return pyro.sample("x", self.decoder(z), obs=x)  # (B | data)

    def guide(self, x: Tensor) -> None:
        """Draw z from q(z | x)."""
        register(self, self.name)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))  # (B | Z)

    def example(self, n: int = 2) -> Tensor:
        """Return a batch of n rows of zeros, shape (n | data)."""
        return self.loc.new_zeros(n, *self.data_shape)

    def extra_repr(self) -> str:
        return f"data_dim={plain(self.data_shape)}, latent_dim={self.latent_dim}"
