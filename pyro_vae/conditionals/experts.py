"""Guides of data in several modalities, some of which lack. Shapes: * leading dims, Z latent."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import typed
from pyro_vae.conditionals.conditional import ReturnsDistribution
from pyro_vae.distributions import FixedMixture
from pyro_vae.errors import ConfigError


@typed
class _Experts(ReturnsDistribution):
    """Networks of one modality each.

    Arguments:
        experts: modules (*, data) -> diagonal Gaussian of z, event (Z,).
    """

    def __init__(self, experts: Sequence[nn.Module]) -> None:
        super().__init__()
        if not experts:
            raise ConfigError("experts: got none, expected a module for each modality")
        self.experts = nn.ModuleList(experts)

    def heard(
        self, data: Sequence[Tensor], observed: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return loc and scale of each expert, (*, M, Z), and whether it counts, (*, M)."""
        said = [expert(x).base_dist for expert, x in zip(self.experts, data, strict=True)]
        loc = torch.stack([each.loc for each in said], -2)
        scale = torch.stack([each.scale for each in said], -2)
        there = torch.stack(torch.broadcast_tensors(*observed), -1)
        return loc, scale, there.expand(loc.shape[:-1])


class ProductOfExperts(_Experts):
    r"""A Gaussian for each modality that is there, times the prior N(0, I).

    .. math:: q(z \mid x_o) \propto N(z; 0, I) \prod_{m \in o} N\big(z; \mu_m(x_m),
        \mathrm{diag}\,\sigma_m^2(x_m)\big)

    Exact where each modality says of z what a Gaussian says. With none it is the prior.

    Arguments:
        experts: modules (*, data) -> diagonal Gaussian of z, event (Z,): one for each modality.

    Raises:
        ConfigError: no experts.

    References:
        Multimodal generative models for scalable weakly-supervised learning (Wu and Goodman,
        2018), arXiv:1802.05335.

    Example:
        >>> from pyro_vae.conditionals import Gaussian
        >>> q = ProductOfExperts([Gaussian(nn.Linear(3, 4)), Gaussian(nn.Linear(5, 4))])
        >>> there = torch.ones(7).bool()
        >>> q([torch.zeros(7, 3), torch.zeros(7, 5)], [there, ~there]).event_shape
        torch.Size([2])
    """

    def forward(self, data: Sequence[Tensor], observed: Sequence[Tensor]) -> TorchDistributionMixin:
        """Return q(z | x) of modalities (*, data) that are finite, and which are there, (*)."""
        loc, scale, there = self.heard(data, observed)
        precision = scale.pow(-2).masked_fill(~there.unsqueeze(-1), 0.0)
        total = 1 + precision.sum(-2)
        return dist.Normal((precision * loc).sum(-2) / total, total.rsqrt()).to_event(1)


class MixtureOfExperts(_Experts):
    r"""One of the modalities that are there says what z is, each as often.

    .. math:: q(z \mid x_o) = \frac{1}{|o|} \sum_{m \in o} N\big(z; \mu_m(x_m),
        \mathrm{diag}\,\sigma_m^2(x_m)\big)

    Each expert is trained to explain all modalities by its own. With none it is N(0, I).

    Arguments:
        experts: modules (*, data) -> diagonal Gaussian of z, event (Z,): one for each modality.

    Raises:
        ConfigError: no experts.

    References:
        Variational mixture-of-experts autoencoders for multi-modal deep generative models (Shi et
        al., 2019), arXiv:1911.03393.

    Example:
        >>> from pyro_vae.conditionals import Gaussian
        >>> q = MixtureOfExperts([Gaussian(nn.Linear(3, 4)), Gaussian(nn.Linear(5, 4))])
        >>> there = torch.ones(7).bool()
        >>> q([torch.zeros(7, 3), torch.zeros(7, 5)], [there, ~there]).event_shape
        torch.Size([2])
    """

    def forward(self, data: Sequence[Tensor], observed: Sequence[Tensor]) -> TorchDistributionMixin:
        """Return q(z | x) of modalities (*, data) that are finite, and which are there, (*)."""
        loc, scale, there = self.heard(data, observed)
        none = ~there.any(-1, keepdim=True)  # the prior is asked where nobody else can be
        loc = torch.cat([loc, torch.zeros_like(loc[..., :1, :])], -2)
        scale = torch.cat([scale, torch.ones_like(scale[..., :1, :])], -2)
        weights = torch.cat([there, none], -1).to(loc.dtype)
        return FixedMixture(dist.Categorical(weights), dist.Normal(loc, scale).to_event(1))


EXPERTS = {"product": ProductOfExperts, "mixture": MixtureOfExperts}
