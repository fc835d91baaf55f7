"""Bits under a masked network. Shapes: * any leading dims, D dims of a datum."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn import functional as F

from pyro_vae.arguments import positive, shown, typed
from pyro_vae.distributions.expandable import Expandable
from pyro_vae.errors import ConfigError


@typed
class AutoregressiveBernoulli(Expandable):
    r"""Binary data, each dimension of which sees those before it, in raster order.

    .. math:: p(x) = \prod_d \mathrm{Bernoulli}\big(x_d \mid \sigma(a_d + y_d(x_{<d}))\big)

    Scored by one pass over the observed x (teacher forcing); a draw takes the dimensions one by
    one. It has no mean in closed form.

    Arguments:
        logits: a, shape (* | data).
        network: x -> y, (*, D) to (*, D), output d blind to the inputs from d on; with `draw`.
        event_dim: number of dims of one datum.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> from pyro_vae.conditionals.made import MaskedNetwork
        >>> p = AutoregressiveBernoulli(torch.zeros(4), MaskedNetwork(4, 8))
        >>> every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
        >>> torch.allclose(p.log_prob(every).exp().sum(), torch.tensor(1.0))
        True
    """

    arg_constraints = {}  # noqa: RUF012
    batched = ("logits",)

    def __init__(
        self,
        logits: Tensor,
        network: Callable[[Tensor], Tensor],
        event_dim: int = 1,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.network = logits, network
        split = logits.dim() - positive("event_dim", event_dim)
        if split < 0:
            raise ConfigError(f"logits: got {shown(logits)}, expected {event_dim} dims")
        super().__init__(logits.shape[:split], logits.shape[split:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.boolean, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability, shape (*), nats."""
        if self._validate_args:
            self._validate_sample(value)
        depth = len(self.event_shape)
        # The network sees x alone: K draws of z need one pass of it, not K.
        x = value.flatten(-depth).to(self.logits.dtype)
        logits, x = torch.broadcast_tensors(self.logits.flatten(-depth) + self.network(x), x)
        return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return bits, shape (sample, * | data)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            flat = self.logits.expand(shape).reshape(-1, self.event_shape.numel())
            network: Any = self.network
            return network.draw(flat).reshape(shape)
