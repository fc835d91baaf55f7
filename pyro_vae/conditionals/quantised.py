"""Latents that take the vectors of a codebook. Shapes: B batch, P codes, D code dim, K codebook."""

import math

import torch
from torch import Tensor, nn

from pyro_vae.arguments import number, positive
from pyro_vae.distributions import StraightThrough

_UNUSED = 1e-8  # a count below this decays no further: its quotient stays a number


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
        size = (positive("num_codes", num_codes), positive("code_dim", code_dim))
        number("revive", revive, "[0, 1)")
        if decay is not None:
            number("decay", decay, "(0, 1)")  # at 0 an unused code would be 0 / 0
        self.mean_count = positive("positions", positions) / num_codes
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
