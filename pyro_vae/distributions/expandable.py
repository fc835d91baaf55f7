"""How our distributions take a larger batch."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution


class Expandable(TorchDistribution):
    """A distribution whose `expand` broadcasts the attributes in `batched` and shares the rest.

    Each attribute in `batched` is a tensor or a distribution with the batch dims first.
    """

    batched: ClassVar[tuple[str, ...]] = ()

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: Any = None) -> Any:
        """Return the same distribution for another batch, without a copy of its parameters."""
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(vars(self))
        new._batch_shape = torch.Size(batch_shape)
        for name in self.batched:
            value = getattr(self, name)
            event = value.shape[len(self.batch_shape) :] if torch.is_tensor(value) else ()
            setattr(new, name, value.expand(new._batch_shape + event))
        return new
