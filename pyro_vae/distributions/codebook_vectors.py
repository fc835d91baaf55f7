"""Vectors of a codebook. Shapes: B batch, P codes, D code dim, K codebook."""

import math
from collections.abc import Sequence

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import typed
from pyro_vae.distributions.expandable import Expandable
from pyro_vae.errors import DataError


class _Codes(constraints.Constraint):
    """Rows of a codebook: a discrete set, of vectors."""

    is_discrete = True
    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        return torch.isfinite(value).all(-1).all(-1)


@typed
def nearest(value: Tensor, vectors: Tensor) -> Tensor:
    """Return the number of the nearest code of each vector, shape (*).

    Arguments:
        value: vectors, shape (*, D).
        vectors: the codes, shape (K, D).

    Raises:
        DataError: Shapes that do not fit, or no codes.
    """
    if vectors.dim() != 2 or value.shape[-1:] != vectors.shape[1:] or not len(vectors):
        raise DataError(
            f"got codes of shape {tuple(value.shape)} and a codebook of shape "
            f"{tuple(vectors.shape)}, expected (*, D) and (K, D)"
        )
    with torch.no_grad():
        # Seen from the middle of the codes: far from the origin the square would drown the rest.
        middle = vectors.mean(0)
        vectors = vectors - middle
        return (vectors.square().sum(-1) - 2 * (value - middle) @ vectors.t()).argmin(-1)


@typed
class Quantised(Expandable):
    r"""Vectors of a codebook, their numbers under a distribution: a prior over codes.

    .. math:: k \sim p(k_1, \dots, k_P), \quad z_i = e_{k_i}

    A discrete variable whose values are vectors: its log probability is that of the numbers of the
    nearest codes, and hands no gradient to ``value``.

    Arguments:
        codes: distribution of whole numbers 0..K-1, event (P,).
        vectors: codebook e, (K, D).

    Raises:
        DataError: values of another size than the codes.

    References:
        Neural discrete representation learning (van den Oord et al., 2017), arXiv:1711.00937.

    Example:
        >>> import pyro.distributions as dist
        >>> codes = dist.Categorical(logits=torch.zeros(3, 4)).to_event(1)
        >>> z = Quantised(codes, torch.eye(4))
        >>> z.event_shape, z.log_prob(z.sample()) / math.log(4)
        (torch.Size([3, 4]), tensor(-3.))
    """

    arg_constraints = {"vectors": constraints.independent(constraints.real, 2)}  # noqa: RUF012
    batched = ("codes",)
    support = _Codes()

    def __init__(
        self,
        codes: TorchDistributionMixin,
        vectors: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.codes, self.vectors = codes, vectors
        shape = codes.event_shape + vectors.shape[-1:]
        super().__init__(codes.batch_shape, shape, validate_args=validate_args)

    @property
    def num_codes(self) -> int:
        """K."""
        return len(self.vectors)

    @typed
    def numbers(self, value: Tensor) -> Tensor:
        """Return the numbers of the codes, (*, P, D) to (*, P)."""
        return nearest(value, self.vectors)

    @typed
    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability, shape (batch), nats."""
        return self.codes.log_prob(self.numbers(value))

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return vectors of the codebook, shape (sample, batch, P, D)."""
        with torch.no_grad():
            return self.vectors[self.codes.sample(torch.Size(sample_shape))]


@typed
class StraightThrough(Expandable):
    r"""All mass on the code nearest to an encoding, whose gradient passes to the encoding.

    .. math:: z_i = e_{k_i}, \quad k_i = \arg\min_k \|h_i - e_k\|, \quad
        \frac{\partial z_i}{\partial h_i} := I

    The gradient is a deliberate bias: that of the map is zero almost everywhere. It is the gradient
    with respect to the code, handed on.

    Arguments:
        encoded: h, (*, P, D).
        vectors: codebook e, (K, D).
        learned: whether the codebook is moved by the gradient of ``penalties``, not by means.

    Raises:
        DataError: encodings of another size than the codes, or no codes.

    References:
        Neural discrete representation learning (van den Oord et al., 2017), arXiv:1711.00937.

    Example:
        >>> z = StraightThrough(torch.tensor([[0.9, 0.2]]), torch.eye(2))
        >>> z.rsample(), z.numbers(z.mean)
        (tensor([[1., 0.]]), tensor([0]))
    """

    arg_constraints = {"encoded": constraints.independent(constraints.real, 2)}  # noqa: RUF012
    batched = ("encoded", "code")
    support = _Codes()
    has_rsample = True
    point_mass = True

    def __init__(
        self,
        encoded: Tensor,
        vectors: Tensor,
        *,
        learned: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        self.encoded, self.vectors, self.learned = encoded, vectors, learned
        self.chosen = nearest(encoded, vectors)
        # Looked up by number, so that the gradient of a codebook that is learnt reaches it.
        self.code = nn.functional.embedding(self.chosen, vectors)
        super().__init__(encoded.shape[:-2], encoded.shape[-2:], validate_args=validate_args)

    @property
    def num_codes(self) -> int:
        """K."""
        return len(self.vectors)

    @property
    def mean(self) -> Tensor:
        """The codes, (*, P, D)."""
        return self.code.detach()

    @typed
    def numbers(self, value: Tensor) -> Tensor:
        """Return the numbers of the codes, (*, P, D) to (*, P)."""
        return nearest(value, self.vectors)

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return the codes with the gradient of the encodings, shape (sample, batch, P, D)."""
        # In this order the value is the code to the last bit: h - h is zero.
        value = self.code.detach() + (self.encoded - self.encoded.detach())
        return value.expand(self._extended_shape(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return 0 at the codes and minus infinity elsewhere, shape (batch)."""
        if self._validate_args:
            self._validate_sample(value)
        hit = (value.detach() == self.code.detach()).all(-1).all(-1)
        zero = self.encoded.new_zeros(())
        return torch.where(hit, zero, -math.inf)

    def penalties(self) -> tuple[Tensor, Tensor]:
        r"""Return what ties encodings and codes to each other, (batch) each.

        The commitment :math:`\|h - \mathrm{sg}(e)\|^2` moves the encoder, the codebook's term
        :math:`\|\mathrm{sg}(h) - e\|^2` the codes, zero where running means move them.
        """
        commitment = (self.encoded - self.code.detach()).square().sum((-2, -1))
        if not self.learned:
            return commitment, torch.zeros_like(commitment)
        return commitment, (self.encoded.detach() - self.code).square().sum((-2, -1))
