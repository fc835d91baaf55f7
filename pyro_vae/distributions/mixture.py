"""A mixture whose components are the same for all data. Shapes: * leading dims, K components."""

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.arguments import shown, typed
from pyro_vae.distributions.expandable import Expandable
from pyro_vae.errors import ConfigError, DataError


@typed
class Mixture(Expandable):
    r"""One of K distributions of a vector; scored at any number of points in one logsumexp.

    .. math:: p(z) = \sum_k \pi_k \, p_k(z)

    Diagonal Gaussian components are scored by two matrix products, in double precision because the
    squares in them cancel: no tensor (*, K, Z) is made, and 500 components cost little.

    Arguments:
        logits: log π up to a constant, (K,).
        components: distributions of z, batch (K) | event (Z,).

    Raises:
        ConfigError: other numbers of logits and components.
        DataError: points of another size.

    Example:
        >>> parts = dist.Normal(torch.tensor([[-1.0], [1.0]]), 1.0).to_event(1)
        >>> Mixture(torch.zeros(2), parts).log_prob(torch.zeros(5, 1)).shape
        torch.Size([5])
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012

    def __init__(
        self,
        logits: Tensor,
        components: TorchDistributionMixin,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if logits.shape != components.batch_shape or logits.dim() != 1:
            raise ConfigError(
                f"logits: got {shown(logits)} for components of batch shape "
                f"{tuple(components.batch_shape)}, expected (K,) of both"
            )
        self.logits, self.components = logits, components
        super().__init__(torch.Size(), components.event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    @property
    def weights(self) -> Tensor:
        """π, (K,)."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        mean = self.weights @ self.components.mean
        return mean.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        square = self.weights @ (self.components.variance + self.components.mean.square())
        mean = self.weights @ self.components.mean
        return (square - mean.square()).expand(self.batch_shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, shape (*), nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_prob = (self.logits.log_softmax(-1) + self.component_log_prob(value)).logsumexp(-1)
        log_prob = log_prob.to(value.dtype)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    @typed
    def component_log_prob(self, value: Tensor) -> Tensor:
        """Return log p_k(z) of z of shape (*, Z) under each component, (*, K)."""
        if value.shape[-1:] != self.event_shape:
            raise DataError(
                f"value: got shape {tuple(value.shape)}, expected (*, {self.event_shape[0]})"
            )
        normal = _normals(self.components)
        if normal is None:
            return self.components.log_prob(value.unsqueeze(-2))
        loc, scale, value = normal.loc.double(), normal.scale.double(), value.double()
        precision = scale.reciprocal().square()  # (K, Z)
        quadratic = value.square() @ precision.mT - 2 * value @ (loc * precision).mT
        constant = (loc.square() * precision).sum(-1) + 2 * scale.log().sum(-1)
        return -0.5 * (quadratic + constant + loc.shape[-1] * math.log(2 * math.pi))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return draws, shape sample_shape + batch | Z."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            which = dist.Categorical(logits=self.logits).sample(shape[:-1])
            normal = _normals(self.components)
            if normal is not None:
                return torch.normal(normal.loc[which], normal.scale[which])
            drawn = self.components.sample(shape[:-1])  # (*, K, Z)
            index = which[..., None, None].expand(*shape[:-1], 1, shape[-1])
            return drawn.gather(-2, index).squeeze(-2)


def _normals(components: Any) -> dist.Normal | None:
    """Return the Normal under diagonal Gaussian components of a vector; None for other ones."""
    base = getattr(components, "base_dist", None)
    diagonal = isinstance(components, dist.Independent) and isinstance(base, dist.Normal)
    return base if diagonal and components.reinterpreted_batch_ndims == 1 else None
