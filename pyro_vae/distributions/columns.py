"""A row of a table whose columns have distributions of their own. Shapes: batch | D columns."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from pyro_vae.arguments import counted, positive, typed
from pyro_vae.errors import ConfigError, DataError


@typed
class Columns(TorchDistribution):
    r"""Independent columns of several kinds, as one datum.

    .. math:: \log p(x) = \sum_d \log p_d(x_d)

    Arguments:
        parts: pairs of the places of some columns, (n), and their distribution, batch (*, n).
        size: D, the number of columns of all parts together.

    Raises:
        ConfigError: the parts do not hold each column once.

    Example:
        >>> import pyro.distributions as dist
        >>> rate = dist.Poisson(torch.ones(5, 1))
        >>> row = Columns([(torch.tensor([1]), rate), (torch.tensor([0]), rate)], 2)
        >>> row.sample().shape
        torch.Size([5, 2])
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self,
        parts: Sequence[Any],
        size: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        pairs = all(isinstance(p, tuple | list) and len(p) == 2 for p in parts)
        if not parts or not pairs:
            raise ConfigError("parts: expected pairs of places of columns, and their distribution")
        count, size = sum(len(places) for places, _ in parts), positive("size", size)
        if count != size:
            raise ConfigError(f"parts: got {counted(count, 'column')}, expected size={size}")
        self.parts, self.size = list(parts), size
        batch = torch.broadcast_shapes(*(d.batch_shape[:-1] for _, d in self.parts))
        super().__init__(batch, torch.Size([size]), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    @property
    def mean(self) -> Tensor:
        """The mean of each column, and the mode of one whose values are names, (batch | D)."""
        return self.of_statistics(self.statistics())

    def statistics(self) -> Tensor:
        """Return what may be averaged over codes: means, and probabilities of classes (*, S)."""
        found = []
        for _, each in self.parts:
            found.append(each.probs.flatten(-2) if _named(each) else each.mean)
        return torch.cat(found, -1)

    def of_statistics(self, statistics: Tensor) -> Tensor:
        """Return the row that averaged statistics (*, S) stand for, (*, D)."""
        return self._of_statistics(statistics, lambda classes: classes.argmax(-1))

    def errors_of_statistics(self, statistics: Tensor) -> Tensor:
        """Return their errors (*, S) by column, (*, D); NaN where its values are names."""
        return self._of_statistics(statistics, lambda classes: classes[..., 0] * torch.nan)

    def _of_statistics(self, statistics: Tensor, of_classes: Callable[[Tensor], Tensor]) -> Tensor:
        widths = [
            len(places) * (each.probs.shape[-1] if _named(each) else 1)
            for places, each in self.parts
        ]
        pieces = zip(self.parts, statistics.split(widths, -1), strict=True)
        return self._together(
            [
                of_classes(s.unflatten(-1, (len(p), -1))).to(s.dtype) if _named(each) else s
                for (p, each), s in pieces
            ]
        )

    def observed_log_prob(self, value: Tensor, observed: Tensor) -> Tensor:
        """Return the log density of the observed cells (*, D) of rows, shape (*), nats."""
        cells = torch.cat(self._log_probs(self.filled(value, observed)), -1)
        there = observed.index_select(-1, self._places())
        return torch.where(there, cells, torch.zeros_like(cells)).sum(-1)

    @typed
    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of rows (*, D), shape (*), nats."""
        require_event(value, self.event_shape)
        return torch.cat(self._log_probs(value), -1).sum(-1)

    def filled(self, value: Tensor, kept: Tensor) -> Tensor:
        """Return a row with something possible in the place of what is missing."""
        one = torch.ones_like(value)
        named = [places for places, each in self.parts if _named(each)]
        if named:
            one = one.index_fill(-1, torch.cat(named), 0.0)
        return torch.where(kept, value, one)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return rows, shape (sample, batch | D)."""
        shape, wanted = torch.Size(sample_shape), self._extended_shape(torch.Size(sample_shape))
        drawn = [each.sample(shape) for _, each in self.parts]
        dtype = torch.get_default_dtype()
        dtype = next((d.dtype for d in drawn if d.is_floating_point()), dtype)
        drawn = [d.to(dtype).expand(*wanted[:-1], d.shape[-1]) for d in drawn]
        return self._together(drawn)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: Any = None) -> Any:
        """Return the same distribution for another batch."""
        batch = torch.Size(batch_shape)
        parts = [(p, each.expand(batch + each.batch_shape[-1:])) for p, each in self.parts]
        return Columns(parts, self.size, validate_args=False)

    def _together(self, pieces: list[Tensor]) -> Tensor:
        """Return what the parts say of their columns in the order of the table."""
        return torch.cat(pieces, -1).index_select(-1, self._places().argsort())

    def _log_probs(self, value: Tensor) -> list[Tensor]:
        """Return the log density of the cells of each part."""
        cells = value.index_select(-1, self._places()).split([len(p) for p, _ in self.parts], -1)
        return [each.log_prob(own) for (_, each), own in zip(self.parts, cells, strict=True)]

    def _places(self) -> Tensor:
        """Return the places of the columns in the order of the parts, (D,)."""
        return torch.cat([places for places, _ in self.parts])


def require_event(value: Tensor, event: torch.Size) -> None:
    """Refuse a value of another event shape.

    Raises:
        DataError: Says both.
    """
    if value.shape[max(0, value.dim() - len(event)) :] != event:
        raise DataError(f"value: got shape {tuple(value.shape)}, expected (*, {tuple(event)})")


def _named(each: Any) -> bool:
    """Return whether values are names (or ranks), which have no mean."""
    while hasattr(each, "base_dist"):
        each = each.base_dist
    return isinstance(each, torch.distributions.Categorical)
