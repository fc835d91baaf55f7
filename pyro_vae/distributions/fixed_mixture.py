"""A mixture whose weights no parameter moves. Shapes: batch, K components | event."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.arguments import typed


@typed
class FixedMixture(dist.MixtureSameFamily):
    r"""A mixture with constant weights, whose draws carry gradients.

    .. math:: p(z) = \sum_k \pi_k \, p_k(z), \qquad
        \nabla \mathbb{E}_p f(z) = \sum_k \pi_k \nabla \mathbb{E}_{p_k} f(z)

    Which component makes a draw depends on no parameter, so the gradient goes through the draws of
    the components alone. That is wrong where weights are learned: use Pyro's mixtures there.

    Arguments:
        mixture_distribution: a categorical distribution of K components, batch (*), whose
            probabilities are constants; those of 0 are none.
        component_distribution: the components, with `rsample`, batch (*, K) | event.

    Raises:
        ConfigError: an argument that is no distribution.
        ValueError: other numbers of weights and components.

    Example:
        >>> parts = dist.Normal(torch.tensor([[-1.0], [1.0]]), 1.0).to_event(1)
        >>> FixedMixture(dist.Categorical(torch.ones(2)), parts).rsample((5,)).shape
        torch.Size([5, 1])
    """

    has_rsample = True

    def __init__(
        self,
        mixture_distribution: dist.Categorical,
        component_distribution: TorchDistributionMixin,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(mixture_distribution, component_distribution, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: Any = None) -> Any:
        """Return the same distribution for another batch."""
        return super().expand(batch_shape, type(self).__new__(type(self)))

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return draws, shape (sample, batch | event)."""
        shape = torch.Size(sample_shape)
        drawn = self.component_distribution.rsample(shape)
        event = len(self.event_shape)
        over_event = (..., None, *(None,) * event)
        which = self.mixture_distribution.sample(shape)[over_event]
        index = which.expand(*which.shape[: -1 - event], 1, *self.event_shape)
        return drawn.gather(-1 - event, index).squeeze(-1 - event)
