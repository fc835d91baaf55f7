"""White noise sent through a flow. Shapes: * leading dims, Z latent, M points."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Transform

from pyro_vae.arguments import typed


@typed
class FlowGaussian(dist.TransformedDistribution):
    r"""White noise, sent through a flow: z = f(ε), ε ~ N(0, I), event (Z,).

    Its mean has no closed form; it is taken over the fixed points given, so that it is the same
    each time, with a standard error of the posterior scale over √M.

    Arguments:
        noise: N(0, I), batch (*) | event (Z,).
        transforms: the bijections, from noise to z.
        points: M points of white noise, shape (M | Z).

    Raises:
        ConfigError: an argument of another type.
    """

    def __init__(
        self, noise: TorchDistributionMixin, transforms: list[Transform], points: Tensor
    ) -> None:
        super().__init__(noise, transforms)
        self.points = points

    def expand(
        self, batch_shape: torch.Size | Sequence[int], _instance: Any = None
    ) -> "FlowGaussian":
        new = type(self).__new__(type(self)) if _instance is None else _instance
        super().expand(batch_shape, _instance=new)
        new.points = self.points
        return new

    @property
    def mean(self) -> Tensor:
        """E[z] over the fixed points, shape batch | Z."""
        z = self.points.reshape(len(self.points), *(1,) * len(self.batch_shape), -1)
        z = z.expand(-1, *self.batch_shape, -1)
        for transform in self.transforms:
            z = transform(z)
        return z.mean(0)
