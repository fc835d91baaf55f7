"""A VAE whose decoder has a posterior of its own. Shapes: B batch, Z latent."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyro_vae.arguments import number, typed
from pyro_vae.conditionals import bounded
from pyro_vae.models.vae import VAE
from pyro_vae.models.zoo_program import register
from pyro_vae.nn import Shape


@typed
class BayesianVAE(VAE):
    r"""A VAE that is uncertain of its decoder: each weight of it is a global latent.

    .. math:: \theta \sim N(0, s^2 I), \quad z_n \sim N(0, I), \quad
        x_n \sim p_\theta(x \mid z_n), \qquad q(\theta) = N(m, \mathrm{diag}\,v^2)

    The means m are the decoder's own weights, the sites ``decoder.<name>``; a minibatch stands for
    all N data (``pv.fit`` weighs it by N/B). For point estimates take ``VAE``.

    Arguments:
        data_dim, latent_dim, hidden: as of `VAE`.
        prior_scale: s, a standard deviation.
        scale: where the standard deviations v start.
        options: further arguments of `VAE`.

    Raises:
        ConfigError: for a scale that is not positive.

    References:
        Auto-encoding variational Bayes (Kingma and Welling, 2013), arXiv:1312.6114, App. F;
        Weight uncertainty in neural networks (Blundell et al., 2015), arXiv:1505.05424.

    Example:
        >>> vae = BayesianVAE(6, 2, (8,))
        >>> len(vae.log_scales)
        4
    """

    kind = "bayesian_vae"

    def __init__(
        self,
        data_dim: Shape,
        latent_dim: int,
        hidden: Sequence[int] = (400,),
        *,
        prior_scale: float = 1.0,
        scale: float = 0.02,
        **options: Any,
    ) -> None:
        super().__init__(data_dim, latent_dim, hidden, **options)
        for name, value in (("prior_scale", prior_scale), ("scale", scale)):
            number(name, value, "(0, inf)")
        if self.config is not None:
            self.config |= {"prior_scale": float(prior_scale), "scale": float(scale)}
        self.prior_scale = float(prior_scale)
        self.log_scales = nn.ParameterList(
            torch.full_like(weight, float(scale)).log() for weight in self.decoder.parameters()
        )

    def model(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Draw the decoder, then z; observe x, shape (B | data)."""
        register(self)
        weights = {}
        for name, loc in self.decoder.named_parameters():
            prior = dist.Normal(torch.zeros_like(loc), self.prior_scale * torch.ones_like(loc))
            weights[name] = pyro.sample(f"decoder.{name}", prior.to_event(loc.dim()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())  # (B | Z)
            datum = functional_call(self.decoder, weights, (z,))
            return pyro.sample("x", self.there(datum, x, observed), obs=x)

    def guide(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Draw the decoder from q(θ), and z from q(z | x)."""
        register(self)
        pairs = zip(self.decoder.named_parameters(), self.log_scales, strict=True)
        for (name, loc), log_scale in pairs:
            posterior = dist.Normal(loc, bounded(log_scale).exp())
            pyro.sample(f"decoder.{name}", posterior.to_event(loc.dim()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(self.known(x, observed)))
