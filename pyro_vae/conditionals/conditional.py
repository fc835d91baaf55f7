"""What the conditionals have in common: a network, and the number of dims of one datum."""

from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.arguments import positive, typed


class ReturnsDistribution(nn.Module):
    """A module whose output is a distribution, and which ``torch.export`` takes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the distribution; arguments are not validated while a graph is exported.

        Validation branches on values, which are not there.
        """
        if not torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        with pyro.validation_enabled(False):
            return super().__call__(*args, **kwargs)


@typed
class Conditional(ReturnsDistribution):
    """A network whose output is a distribution.

    Arguments:
        net: network (*, input) -> (*, outputs).
        event_dim: number of dims of one datum.
    """

    def __init__(self, net: nn.Module, *, event_dim: int = 1) -> None:
        super().__init__()
        self.net, self.event_dim = net, positive("event_dim", event_dim)

    @staticmethod
    def width() -> int:
        """Return the number of network outputs per data dimension."""
        return 1

    @staticmethod
    @typed
    def output_bias(mean: Tensor) -> Tensor:
        """Return the training mean."""
        return mean
