"""A datum of which some cells are not observed. Shapes: batch | event."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.arguments import typed
from pyro_vae.distributions.columns import require_event
from pyro_vae.distributions.expandable import Expandable
from pyro_vae.errors import ConfigError


@typed
class Incomplete(Expandable):
    r"""The observed cells of a datum whose cells are independent given the code.

    .. math:: \log p(x_o) = \sum_{d \in o} \log p_d(x_d)

    What is missing is not scored, whatever stands in its place (NaN, say). Draws, means and
    variances are of complete data.

    Arguments:
        datum: distribution of the whole datum, made by ``to_event``, or one with
            ``observed_log_prob(value, observed)`` of its own.
        observed: which cells are, shape (batch | event).

    Raises:
        ConfigError: the density does not factorise over cells.

    Example:
        >>> import pyro.distributions as dist
        >>> x = torch.tensor([0.3, torch.nan])
        >>> part = Incomplete(dist.Normal(torch.zeros(2), 1.0).to_event(1), ~x.isnan())
        >>> bool(part.log_prob(x) == dist.Normal(0.0, 1.0).log_prob(x[0]))
        True
    """

    arg_constraints = {}  # noqa: RUF012
    batched = ("datum", "kept")

    def __init__(
        self,
        datum: TorchDistributionMixin,
        observed: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        base: Any = getattr(datum, "base_dist", None)
        factorised = hasattr(datum, "reinterpreted_batch_ndims") and not base.event_shape
        if not hasattr(datum, "observed_log_prob") and not factorised:
            raise ConfigError(
                f"datum: got {type(datum).__name__}, whose cells depend on each other: the density "
                "of some of them is not known; use an observation of independent cells"
            )
        self.datum, self.observed = datum, observed
        shape = datum.batch_shape + datum.event_shape
        try:
            self.kept = observed.expand(shape)
        except RuntimeError:
            raise ConfigError(
                f"observed: got shape {tuple(observed.shape)}, expected {tuple(shape)}"
            ) from None
        super().__init__(datum.batch_shape, datum.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return bool(self.datum.has_rsample)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        return self.datum.support

    @property
    def mean(self) -> Tensor:
        return self.datum.mean

    @property
    def variance(self) -> Tensor:
        return self.datum.variance

    @property
    def mode(self) -> Tensor:
        return self.datum.mode

    def filled(self, value: Tensor) -> Tensor:
        """Return a value with something possible in the place of what is missing.

        Not expanded to the batch: many particles share their data.
        """
        if hasattr(self.datum, "filled"):
            return self.datum.filled(value, self.observed)
        return torch.where(self.observed, value, torch.ones_like(value))

    @typed
    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of the observed cells, shape (batch), nats."""
        require_event(value, self.event_shape)
        if hasattr(self.datum, "observed_log_prob"):
            return self.datum.observed_log_prob(value, self.observed)
        cells = self.datum.base_dist.log_prob(self.filled(value))
        kept = torch.where(self.kept, cells, torch.zeros_like(cells))
        return kept.flatten(-len(self.event_shape)).sum(-1)

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return complete data, shape (sample, batch | event)."""
        return self.datum.rsample(torch.Size(sample_shape))

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return complete data, shape (sample, batch | event)."""
        drawn: Any = self.datum.sample(torch.Size(sample_shape))
        return drawn
