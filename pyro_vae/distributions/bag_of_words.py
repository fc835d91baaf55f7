"""Words of a document whose order does not matter, scored without the multinomial coefficient."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_vae.arguments import typed
from pyro_vae.distributions.expandable import Expandable
from pyro_vae.errors import ConfigError


@typed
class BagOfWords(Expandable):
    r"""The words of a document, drawn independently, as counts over a vocabulary of V words.

    .. math:: \log p(x) = \sum_v x_v \log p_v, \qquad p = \mathrm{softmax}(l)

    This is the log-probability of the words in the order in which they stand: every published
    perplexity means it, :math:`\exp(-\log p(x) / \sum_v x_v)`. ``dist.Multinomial`` scores the
    counts instead, and adds :math:`\log n! - \sum_v \log x_v!`, which no parameter moves: 2.48 nats
    for the counts (2, 1, 1).

    Arguments:
        logits: l, up to a constant, shape (batch | V).
        total_count: number of words of each document, shape (batch); only `sample`, `mean` and
            `variance` ask for it.

    Raises:
        ConfigError: logits without words, or counts of words of another shape.

    Example:
        >>> p = BagOfWords(torch.zeros(4))
        >>> p.log_prob(torch.tensor([2.0, 1.0, 1.0, 0.0])).exp() * 4**4
        tensor(1.)
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012
    support = constraints.independent(constraints.nonnegative_integer, 1)
    batched = ("logits", "total_count")
    scores_words_as_they_stand = True  # what `perplexity` asks for

    def __init__(
        self,
        logits: Tensor,
        total_count: Tensor | float | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if not logits.dim():
            raise ConfigError(f"logits: got the number {logits.item()}, expected (*, V)")
        batch = logits.shape[:-1]
        if total_count is not None:
            count = torch.as_tensor(total_count, dtype=logits.dtype, device=logits.device)
            try:
                batch = torch.broadcast_shapes(batch, count.shape)
            except RuntimeError as error:
                raise ConfigError(f"total_count and logits: {error}") from None
            total_count = count.expand(batch)
        self.total_count = total_count
        self.logits = logits.expand(*batch, logits.shape[-1])
        super().__init__(batch, logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: Any = None) -> Any:
        """Return the same distribution for another batch, without a copy of its parameters."""
        if self.total_count is None:
            new = type(self)(self.logits.expand(*batch_shape, *self.event_shape))
            new._validate_args = self._validate_args
            return new
        return super().expand(batch_shape, _instance)

    @property
    def probs(self) -> Tensor:
        """Probabilities of the words, shape (batch | V)."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        """Expected counts, shape (batch | V)."""
        return self._counts().unsqueeze(-1) * self.probs

    @property
    def variance(self) -> Tensor:
        """Variances of the counts, shape (batch | V)."""
        return self.mean * (1 - self.probs)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the words in the order in which they stand, (batch)."""
        if self._validate_args:
            self._validate_sample(value)
        logits = self.logits.log_softmax(-1)  # of a word that cannot be, -inf
        return torch.where(value == 0, logits.new_zeros(()), value * logits).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return counts that add up to `total_count`, shape (sample, batch | V)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        rows = self.logits.expand(shape).reshape(-1, shape[-1])
        lengths = self._counts().expand(shape[:-1]).reshape(-1, 1)
        most = int(lengths.max()) if lengths.numel() else 0
        counts = torch.zeros_like(rows)
        if most:
            words = rows.softmax(-1).multinomial(most, replacement=True)  # (rows, words)
            inside = torch.arange(most, device=rows.device) < lengths
            counts.scatter_add_(1, words, inside.to(rows.dtype))
        return counts.reshape(shape)

    def _counts(self) -> Tensor:
        if self.total_count is None:
            raise ConfigError(
                "BagOfWords: total_count is None; give it the number of words of each document, "
                "as BagOfWords(logits, total_count=x.sum(-1)), to draw documents or their moments"
            )
        return self.total_count
