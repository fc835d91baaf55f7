"""Independent bits as one event."""

import pyro.distributions as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributions.utils import broadcast_all


class BernoulliArray(dist.Independent):
    r"""Independent bits as one event: ``Bernoulli(...).to_event``, scored without two copies.

    .. math:: \log p(x) = -\sum_d \mathrm{BCE}(l_d, x_d)

    The sign is taken after the sum over the event, not before it: for images the largest tensors
    of a training step.

    Arguments:
        base_distribution: a Pyro ``Bernoulli`` built from logits.
        reinterpreted_batch_ndims: rightmost batch dims that make one event.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability, shape (batch), nats."""
        if self.base_dist._validate_args:
            self.base_dist._validate_sample(value)
        logits, value = broadcast_all(self.base_dist.logits, value)
        cost = F.binary_cross_entropy_with_logits(logits, value, reduction="none")
        return -cost.sum(tuple(range(-self.reinterpreted_batch_ndims, 0)))
