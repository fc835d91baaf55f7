"""Faults of an HMC kernel, planted by the tests of `test_hmc` and `test_hmc_exact`."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_vae.inference.sampling import hmc


def all_accepted(accept_prob: Tensor, generator: torch.Generator | None) -> Tensor:
    """Accept every proposal: no Metropolis step."""
    return torch.ones_like(accept_prob, dtype=torch.bool)


def momentum_drawn_once() -> Callable[..., Tensor]:
    """Return a draw of the momentum that gives its first answer for ever."""
    first: list[Tensor] = []
    draw = hmc._draw_momentum

    def stale(*arguments: object) -> Tensor:
        if not first:
            first.append(draw(*arguments))  # type: ignore[arg-type]
        return first[0]

    return stale
