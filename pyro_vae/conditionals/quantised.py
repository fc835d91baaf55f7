"""Latents that take the vectors of a codebook. Shapes: B batch, P codes, D code dim, K codebook."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.errors import ConfigError
from pyro_vae.nn import positive_int

_UNUSED = 1e-8  # a count below this decays no further: its quotient stays a number


class _Codes(constraints.Constraint):
    """Rows of a codebook: a discrete set, of vectors."""

    is_discrete = True
    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        return torch.isfinite(value).all(-1).all(-1)


def nearest(value: Tensor, vectors: Tensor) -> Tensor:
    """Return the numbers of the nearest codes, (*, D) and (K, D) to (*)."""
    with torch.no_grad():
        # Seen from the middle of the codes: far from the origin the square would drown the rest.
        middle = vectors.mean(0)
        vectors = vectors - middle
        return (vectors.square().sum(-1) - 2 * (value - middle) @ vectors.t()).argmin(-1)


class Quantised(TorchDistribution):
    r"""Vectors of a codebook, their numbers under a distribution: a prior over codes.

    .. math:: k \sim p(k_1, \dots, k_P), \quad z_i = e_{k_i}

    A discrete variable whose values are vectors: its log probability is that of the numbers of the
    nearest codes, and hands no gradient to ``value``.

    Arguments:
        codes: distribution of whole numbers 0..K-1, event (P,).
        vectors: codebook e, (K, D).

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
    support = _Codes()

    def __init__(self, codes: Any, vectors: Tensor, *, validate_args: bool | None = None) -> None:
        self.codes, self.vectors = codes, vectors
        shape = codes.event_shape + vectors.shape[-1:]
        super().__init__(codes.batch_shape, shape, validate_args=validate_args)

    @property
    def num_codes(self) -> int:
        """K."""
        return len(self.vectors)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: Any = None) -> "Quantised":
        return _expanded(self, batch_shape, codes=self.codes.expand(batch_shape))

    def numbers(self, value: Tensor) -> Tensor:
        """Return the numbers of the codes, (*, P, D) to (*, P)."""
        return nearest(value, self.vectors)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability, shape (batch), nats."""
        return self.codes.log_prob(self.numbers(value))

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return vectors of the codebook, shape (sample, batch, P, D)."""
        with torch.no_grad():
            return self.vectors[self.codes.sample(torch.Size(sample_shape))]


class StraightThrough(TorchDistribution):
    r"""All mass on the code nearest to an encoding, whose gradient passes to the encoding.

    .. math:: z_i = e_{k_i}, \quad k_i = \arg\min_k \|h_i - e_k\|, \quad
        \frac{\partial z_i}{\partial h_i} := I

    The gradient is a deliberate bias: that of the map is zero almost everywhere. It is the gradient
    with respect to the code, handed on.

    Arguments:
        encoded: h, (*, P, D).
        vectors: codebook e, (K, D).
        learned: whether the codebook is moved by the gradient of ``penalties``, not by means.

    References:
        Neural discrete representation learning (van den Oord et al., 2017), arXiv:1711.00937.

    Example:
        >>> z = StraightThrough(torch.tensor([[0.9, 0.2]]), torch.eye(2))
        >>> z.rsample(), z.numbers(z.mean)
        (tensor([[1., 0.]]), tensor([0]))
    """

    arg_constraints = {"encoded": constraints.independent(constraints.real, 2)}  # noqa: RUF012
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

    def expand(
        self, batch_shape: torch.Size | Sequence[int], _instance: Any = None
    ) -> "StraightThrough":
        shape = torch.Size(batch_shape) + self.event_shape
        return _expanded(
            self, batch_shape, encoded=self.encoded.expand(shape), code=self.code.expand(shape)
        )

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


def _expanded(self: Any, batch_shape: torch.Size | Sequence[int], **changed: Any) -> Any:
    new = self._get_checked_instance(type(self), None)
    new.__dict__.update(self.__dict__)
    new.__dict__.update(changed)
    TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
    new._validate_args = self._validate_args
    return new


def _share(name: str, value: float) -> float:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not 0 <= value < 1:
        raise ConfigError(f"{name}={value!r}; expected a number in [0, 1)")
    return value


class Codebook(nn.Module):
    r"""K code vectors and the encodings they stand for; in train mode each call is one step of

    .. math:: N_k \leftarrow \gamma N_k + (1 - \gamma)\, n_k, \quad
        m_k \leftarrow \gamma m_k + (1 - \gamma) \textstyle\sum_{i: k_i = k} h_i, \quad
        e_k = m_k / N_k

    with n and the sums per datum of the batch: on-line k-means. A step's codes are those of the
    steps before it, so that model and guide see one codebook. A code that is used too little is
    dead, and moved to a random encoding of the batch (on several devices to the mean of one each);
    at the first step all are.

    Arguments:
        num_codes: K.
        code_dim: D.
        positions: P, codes per datum.
        decay: γ in (0, 1); None: a parameter, moved by the codebook term of ``pv.VQ``.
        revive: a code is dead below this share of the mean usage P / K; 0 revives none. Needs a
            decay.

    Raises:
        ConfigError: for an argument out of range.

    References:
        Neural discrete representation learning (van den Oord et al., 2017), App. A.1,
        arXiv:1711.00937; Jukebox (Dhariwal et al., 2020), arXiv:2005.00341, for the revival.

    Example:
        >>> Codebook(4, 2, positions=3)(torch.zeros(5, 3, 2)).mean.shape
        torch.Size([5, 3, 2])
    """

    vectors: Tensor
    count: Tensor
    total: Tensor

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        positions: int,
        *,
        decay: float | None = 0.99,
        revive: float = 0.02,
    ) -> None:
        super().__init__()
        size = (positive_int("num_codes", num_codes), positive_int("code_dim", code_dim))
        _share("revive", revive)
        if decay is not None and not _share("decay", decay) > 0:  # an unused code would be 0 / 0
            raise ConfigError(f"decay={decay!r}; expected a number in (0, 1), or None")
        self.mean_count = positive_int("positions", positions) / num_codes
        self.decay, self.revive = decay, revive
        vectors = torch.randn(size) / math.sqrt(code_dim)
        if decay is None:
            self.vectors = nn.Parameter(vectors)
            return
        # Without a count a code is dead: the first batch revives it, if revival is on.
        count = torch.full(size[:1], 0.0 if revive else self.mean_count)
        self.register_buffer("vectors", vectors)
        self.register_buffer("count", count)
        self.register_buffer("total", count[:, None] * vectors)

    def forward(self, encoded: Tensor) -> StraightThrough:
        """Return the codes of encodings (*, P, D); in train mode the codebook follows them."""
        if self.decay is None:
            return StraightThrough(encoded, self.vectors, learned=True)
        if self.training:
            self._refresh(encoded.detach())
        # A copy: the buffer moves at the next step, this step's distributions must not.
        result = StraightThrough(encoded, self.vectors.clone())
        if self.training:
            self._follow(encoded.detach(), result)
        return result

    @torch.no_grad()
    def _refresh(self, encoded: Tensor) -> None:
        """Take the means so far as codes, and random encodings in place of dead ones."""
        if self.revive > 0:
            flat = encoded.reshape(-1, encoded.shape[-1])
            rows = torch.randint(len(flat), self.count.shape, device=flat.device)
            least = self.revive * self.mean_count
            dead = self.count < least
            # Twice the least: a code that nothing uses soon has another try, and one that many
            # use is theirs at once.
            self.total.copy_(torch.where(dead[:, None], 2 * least * flat[rows], self.total))
            self.count.copy_(torch.where(dead, 2 * least, self.count))
        self.vectors.copy_(self.total / self.count[:, None])

    @torch.no_grad()
    def _follow(self, encoded: Tensor, result: StraightThrough) -> None:
        """Move counts and sums towards those of the batch, per datum."""
        assert self.decay is not None
        numbers = result.chosen.reshape(-1)
        flat = encoded.reshape(-1, encoded.shape[-1])
        data = flat.new_zeros(()) + flat.shape[0] / encoded.shape[-2]
        used = torch.zeros_like(self.count).index_add(0, numbers, torch.ones_like(flat[:, 0]))
        sums = torch.zeros_like(self.total).index_add(0, numbers, flat)
        decays = (used > 0) | (self.count > _UNUSED)
        keep = torch.where(decays, self.decay, torch.ones_like(self.count))
        step = (1 - self.decay) / data
        self.count.copy_(keep * self.count + step * used)
        self.total.copy_(keep[:, None] * self.total + step * sums)

    def extra_repr(self) -> str:
        return f"num_codes={len(self.vectors)}, decay={self.decay}, revive={self.revive}"
