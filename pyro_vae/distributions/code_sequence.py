"""Whole numbers in a sequence. Shapes: * any leading dims, P codes, K codebook."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.arguments import positive, shown, typed
from pyro_vae.distributions.expandable import Expandable
from pyro_vae.errors import DataError


@typed
class CodeSequence(Expandable):
    r"""Whole numbers, each of which sees those before it.

    .. math:: p(k) = \prod_i \mathrm{softmax}\big(net(k_{<i})_i\big)_{k_i}

    Scored in one pass; a draw takes the numbers one after another.

    Arguments:
        net: maps the first i numbers of a sequence, (N, i), to the logits of the first i + 1,
            (N, i + 1, K), where i < P.
        length: P.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Pixel recurrent neural networks (van den Oord et al., 2016), arXiv:1601.06759.

    Example:
        >>> net = lambda seen: torch.zeros(len(seen), seen.shape[1] + 1, 2)
        >>> coins = CodeSequence(net, 3)
        >>> coins.log_prob(torch.tensor([0, 1, 1])).exp()
        tensor(0.1250)
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(
        self, net: Callable[[Tensor], Tensor], length: int, *, validate_args: bool | None = None
    ) -> None:
        self.net = net
        super().__init__(
            torch.Size(), torch.Size((positive("length", length),)), validate_args=validate_args
        )

    @typed
    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability, shape (*), nats."""
        if value.shape[-1:] != self.event_shape or value.is_floating_point():
            raise DataError(
                f"got {shown(value)}, expected whole numbers of shape (*, {self.event_shape[0]})"
            )
        flat = value.reshape(-1, value.shape[-1])
        logits = self.net(flat[:, :-1])
        cost = F.cross_entropy(logits.flatten(0, 1), flat.flatten(), reduction="none")
        return -cost.reshape(value.shape).sum(-1)

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return numbers, shape (sample, batch, P)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            drawn = torch.empty(math.prod(shape[:-1]), 0, dtype=torch.long, device=self._device())
            for _ in range(shape[-1]):
                last = self.net(drawn)[:, -1].softmax(-1)
                drawn = torch.cat([drawn, torch.multinomial(last, 1)], -1)
            return drawn.reshape(shape)

    def _device(self) -> torch.device | None:
        parameters = self.net.parameters() if isinstance(self.net, nn.Module) else ()
        return next((parameter.device for parameter in parameters), None)
