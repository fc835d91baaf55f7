"""A prior whose units follow one another in time. Shapes: T steps, D units per step, * batch."""

from collections.abc import Sequence

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.arguments import number, positive, typed
from pyro_vae.distributions import AR1, FlatSequence
from pyro_vae.errors import ConfigError


@typed
class AR1Prior(nn.Module):
    r"""The prior of a code that is a sequence: its Z units are T steps of Z / T units each.

    Arguments:
        data_shape: shape of one datum (no part of this prior).
        latent_dim: number Z of latent units, a multiple of the steps.
        steps: T.
        correlation: α of neighbouring steps, in (-1, 1).

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> AR1Prior((784,), 14, steps=7, correlation=0.8)().sample((3,)).shape
        torch.Size([3, 14])
    """

    alpha: Tensor

    def __init__(
        self, data_shape: Sequence[int], latent_dim: int, *, steps: int, correlation: float = 0.9
    ) -> None:
        super().__init__()
        self.steps = positive("steps", steps)
        if positive("latent_dim", latent_dim) % self.steps:
            raise ConfigError(
                f"steps={steps}: {latent_dim} latent units are no multiple of it; choose another"
            )
        correlation = number("correlation", correlation, "(-1, 1)")
        self.units = latent_dim // self.steps
        self.floor = AR1.floor(correlation, self.steps)  # nats per unit of a step
        self.register_buffer("alpha", torch.tensor(correlation), persistent=False)

    def forward(self, encoder: nn.Module | None = None) -> TorchDistribution:
        """Return p(z), event (Z,)."""
        return FlatSequence(AR1(self.alpha, self.steps, self.units))

    def extra_repr(self) -> str:
        return f"steps={self.steps}, correlation={self.alpha.item():g}"
