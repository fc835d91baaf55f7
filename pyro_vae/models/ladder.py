"""The hierarchical and the ladder VAE. Shapes: B batch, Z_l units of layer l, H_l hidden units."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.conditionals import Gaussian
from pyro_vae.models.latent_layers import PARAMETERS, Chain
from pyro_vae.models.networks import encoder_net
from pyro_vae.models.zoo_program import register
from pyro_vae.nn import MLP, BatchNorm, activation_layer


def merge(
    prior: TorchDistributionMixin, likelihood: TorchDistributionMixin
) -> TorchDistributionMixin:
    r"""Return the normalised product of two diagonal Gaussians: Bayes' rule, unit by unit.

    .. math:: \sigma^{-2} = \sigma_p^{-2} + \hat\sigma^{-2}, \qquad
        \mu = \mu_p + \frac{\sigma_p^2}{\sigma_p^2 + \hat\sigma^2}\,(\hat\mu - \mu_p)

    Computed from the ratio of the scales: no precision can overflow in float32.

    Arguments:
        prior, likelihood: independent Normals, batch (*) | event (Z,), which broadcast.

    References:
        Ladder variational autoencoders (Sønderby et al., 2016), arXiv:1602.02282, section 2.2.

    Example:
        >>> import torch
        >>> unit = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        >>> merge(unit, unit).variance
        tensor([0.5000])
    """
    p, q = prior.base_dist, likelihood.base_dist
    ratio = (p.scale / q.scale).square()
    loc = p.loc + ratio / (1 + ratio) * (q.loc - p.loc)
    return dist.Normal(loc, p.scale * (1 + ratio).rsqrt()).to_event(1)


class HierarchicalVAE(Chain):
    r"""A chain of Gaussian layers, with a guide that goes from the data up.

    .. math:: z_L \sim N(0, I), \quad
        z_l \sim N(\mu_l(z_{l+1}), \mathrm{diag}\,\sigma_l^2(z_{l+1})), \quad
        x \sim p(x \mid z_1), \qquad
        q(z \mid x) = q(z_1 \mid x) \prod_{l > 1} q(z_l \mid z_{l-1})

    Above layer 1 the guide sees the data through a noisy draw: the upper layers tend to collapse.

    Arguments:
        data_dim: shape of one datum, as 784 or (1, 28, 28).
        latent_dims: units Z_l of each layer, the data side first.
        hidden: width of the networks at each layer, the data side first.
        depth: hidden layers of each network.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        batch_norm: normalise the hidden units.
        observation: class of `pyro_vae.conditionals`, or a `functools.partial` of one.
        data_mean: training mean, shape of one datum; starts the decoder's output there.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Stochastic backpropagation (Rezende et al., 2014), arXiv:1401.4082;
        Importance weighted autoencoders (Burda et al., 2016), arXiv:1509.00519.

    Example:
        >>> vae = HierarchicalVAE(784, (8, 4), hidden=(32, 16))
        >>> vae.prior(layer=1, state=vae.origin.expand(5, 4)).event_shape
        torch.Size([8])
    """

    kind = "hierarchical_vae"

    def _add_guide(
        self, widths: tuple[int, ...], depth: int, net: Callable[..., MLP], ends: dict[str, Any]
    ) -> None:
        dims = self.latent_dims
        first = encoder_net(self.data_shape, dims[0] * PARAMETERS, widths[:1] * depth, **ends)
        rest = (
            net(below, above * PARAMETERS, (width,) * depth)
            for below, above, width in zip(dims, dims[1:], widths[1:], strict=False)
        )
        self.posteriors = nn.ModuleList(Gaussian(each) for each in (first, *rest))

    def guide(self, x: Tensor) -> None:
        """Draw z_1 given x, and each further layer given the one below."""
        register(self)
        with pyro.plate("data", len(x)):
            below = x
            for layer, posterior in enumerate(self.posteriors, 1):
                below = pyro.sample(f"z{layer}", posterior(below))  # (B | Z_l)


class LadderVAE(Chain):
    r"""The model of `HierarchicalVAE`, with a guide that corrects its priors on the way down.

    .. math:: d_l = f_l(d_{l-1}), \; d_0 = x, \qquad
        q(z_l \mid z_{l+1}, x) \propto p(z_l \mid z_{l+1})\, N(z_l; \hat\mu_l(d_l),
        \mathrm{diag}\,\hat\sigma_l^2(d_l))

    A deterministic pass upward gives each layer its evidence; the pass downward merges it with the
    prior, each by its precision (`merge`). The top is merged with N(0, I) by the same rule (in the
    paper its evidence alone is the posterior): for a linear model the guide is then exact. Train
    with a warm-up to keep all layers active, slower higher up: `beta={"z1": ..., "z2": ...}`.

    Arguments:
        data_dim: shape of one datum, as 784 or (1, 28, 28).
        latent_dims: units Z_l of each layer, the data side first.
        hidden: width of the networks at each layer, the data side first.
        depth: hidden layers of each network.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        batch_norm: normalise the hidden units.
        observation: class of `pyro_vae.conditionals`, or a `functools.partial` of one.
        data_mean: training mean, shape of one datum; starts the decoder's output there.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Ladder variational autoencoders (Sønderby et al., 2016), arXiv:1602.02282.

    Example:
        >>> vae = LadderVAE(784, (8, 4), hidden=(32, 16))
        >>> [tuple(each.event_shape) for each in vae.evidence(vae.example(5))]
        [(8,), (4,)]
    """

    kind = "ladder_vae"

    def _add_guide(
        self, widths: tuple[int, ...], depth: int, net: Callable[..., MLP], ends: dict[str, Any]
    ) -> None:
        first = encoder_net(self.data_shape, widths[0], widths[:1] * (depth - 1), **ends)
        rest = (net(below, width, (width,) * (depth - 1)) for below, width in pairwise(widths))
        self.up = nn.ModuleList(
            nn.Sequential(
                block,
                BatchNorm(width) if ends["batch_norm"] else nn.Identity(),
                activation_layer(ends["activation"]),
            )
            for block, width in zip((first, *rest), widths, strict=True)
        )
        self.heads = nn.ModuleList(
            Gaussian(nn.Linear(width, size * PARAMETERS))
            for width, size in zip(widths, self.latent_dims, strict=True)
        )

    def evidence(self, x: Tensor) -> list[TorchDistributionMixin]:
        """Return what the upward pass says of each layer, data side first, (B) | event (Z_l,)."""
        found = []
        for block, head in zip(self.up, self.heads, strict=True):
            x = block(x)  # (B, H_l)
            found.append(head(x))
        return found

    def guide(self, x: Tensor) -> None:
        """Go up without noise, then down with the evidence."""
        register(self)
        seen = self.evidence(x)
        with pyro.plate("data", len(x)):
            self.descend(
                lambda layer, above: pyro.sample(
                    f"z{layer}", merge(self.prior(layer, above), seen[layer - 1])
                )
            )
