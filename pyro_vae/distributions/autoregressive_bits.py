"""Bits of a logistic autoregression. Shapes: * any leading dims, Z bits."""

from collections.abc import Sequence

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn import functional as F

from pyro_vae.arguments import shown, typed
from pyro_vae.distributions.expandable import Expandable
from pyro_vae.errors import ConfigError


@typed
class AutoregressiveBits(Expandable):
    r"""Binary units, each of which sees those before it (a logistic autoregression).

    .. math:: p(z) = \prod_i \mathrm{Bernoulli}\Big(z_i \mid
        \sigma\big(a_i + \textstyle\sum_{j<i} W_{ij} z_j\big)\Big)

    Scored in one pass; a draw takes the units one after another.

    Arguments:
        logits: a, shape (*, Z).
        weight: W, shape (Z, Z); only what is below its diagonal is used.

    Raises:
        ConfigError: logits without units, or weights of another number of them.

    References:
        Connectionist learning of belief networks (Neal, 1992); Deep autoregressive networks
        (Gregor et al., 2014), arXiv:1310.8499.

    Example:
        >>> p = AutoregressiveBits(torch.zeros(2), torch.tensor([[0.0, 0.0], [9.0, 0.0]]))
        >>> p.log_prob(torch.tensor([1.0, 1.0])).exp()
        tensor(0.4999)
    """

    arg_constraints = {  # noqa: RUF012
        "logits": constraints.real_vector,
        "weight": constraints.independent(constraints.real, 2),
    }
    batched = ("logits",)
    support = constraints.independent(constraints.boolean, 1)

    def __init__(
        self, logits: Tensor, weight: Tensor, *, validate_args: bool | None = None
    ) -> None:
        units = logits.shape[-1:]
        if not units or weight.shape != units * 2:
            raise ConfigError(
                f"logits and weight: got {shown(logits)} and {shown(weight)}, expected (*, Z) and "
                "(Z, Z)"
            )
        self.logits, self.weight = logits, weight
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability, shape (*), nats."""
        if self._validate_args:
            self._validate_sample(value)
        logits = self.logits + F.linear(value, self.weight.tril(-1))
        logits, value = torch.broadcast_tensors(logits, value)
        return -F.binary_cross_entropy_with_logits(logits, value, reduction="none").sum(-1)

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return bits, shape (sample, *, Z)."""
        with torch.no_grad():
            # Columns first: a unit's logits lie side by side, and so do its bits.
            logits = self.logits.expand(self._extended_shape(torch.Size(sample_shape)))
            logits = logits.movedim(-1, 0).clone()
            uniform, weight = torch.rand_like(logits), self.weight.tril(-1)
            bits = torch.empty_like(logits)
            lead = (-1,) + (1,) * (logits.dim() - 1)
            for i in range(len(logits)):
                bit = (uniform[i] < torch.sigmoid(logits[i])).to(logits.dtype)
                bits[i] = bit
                logits[i + 1 :] += weight[i + 1 :, i].reshape(lead) * bit
            return bits.movedim(0, -1)
