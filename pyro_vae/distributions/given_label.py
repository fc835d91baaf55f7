"""A label that is given for some rows. Shapes: * any leading dims."""

from collections.abc import Sequence

import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.arguments import integer, typed
from pyro_vae.distributions.expandable import Expandable

MISSING = -1


@typed
class GivenLabel(Expandable):
    r"""What is given of a label y: y itself, or -1 where it is not known.

    .. math:: \log p(l \mid y) = \begin{cases} 0 & l = y \text{ or } l = -1 \\ -\infty &
        \text{otherwise} \end{cases}

    That some labels lack is not modelled: a missing one says nothing of y. Minus infinity is
    :math:`-10^{30}`, so that it times a probability of 0 is 0 and not NaN.

    Arguments:
        label: y, whole numbers, shape (*).
        num_classes: K.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> GivenLabel(torch.tensor([2, 2]), 3).log_prob(torch.tensor([2, -1]))
        tensor([0., 0.])
    """

    arg_constraints = {}  # noqa: RUF012
    batched = ("label",)

    def __init__(
        self, label: Tensor, num_classes: int, *, validate_args: bool | None = None
    ) -> None:
        self.label, self.num_classes = label, integer("num_classes", num_classes, 1)
        super().__init__(label.shape, torch.Size(), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(MISSING, self.num_classes - 1)

    @typed
    def log_prob(self, value: Tensor) -> Tensor:
        """Return 0 where a label is y or lacks, and -1e30 elsewhere, shape (*)."""
        if self._validate_args:
            self._validate_sample(value)
        agrees = (value == self.label) | (value == MISSING)
        zero = torch.zeros(agrees.shape, device=value.device)
        return zero.masked_fill(~agrees, -1e30)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return y, shape sample_shape + batch."""
        return self.label.expand(self._extended_shape(torch.Size(sample_shape)))
