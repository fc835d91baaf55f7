"""Priors over the numbers of codes. Shapes: * any leading dims, P codes, K codebook, E width."""

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.arguments import positive
from pyro_vae.distributions import CodeSequence
from pyro_vae.errors import ConfigError
from pyro_vae.nn import CausalBlock


class CausalTransformer(nn.Module):
    """Logits of each number of a sequence from those before it, by masked self-attention.

    Arguments:
        num_codes: K.
        length: P, the longest sequence.
        width: E, of the residual stream.
        depth: blocks of attention and a perceptron of width 2 E.
        heads: attention heads; E is a multiple of it.

    References:
        Attention is all you need (Vaswani et al., 2017), arXiv:1706.03762.

    Example:
        >>> CausalTransformer(5, 4, width=8)(torch.zeros(2, 3, dtype=torch.long)).shape
        torch.Size([2, 4, 5])
    """

    def __init__(
        self, num_codes: int, length: int, width: int = 64, depth: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        if positive("width", width) % positive("heads", heads):
            raise ConfigError(f"width={width!r}; expected a multiple of {heads} (attention heads)")
        self.token = nn.Parameter(0.1 * torch.randn(positive("num_codes", num_codes), width))
        self.place = nn.Parameter(0.1 * torch.randn(positive("length", length), width))
        blocks = range(positive("depth", depth))
        self.blocks = nn.ModuleList(CausalBlock(width, heads) for _ in blocks)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, num_codes)

    def forward(self, seen: Tensor) -> Tensor:
        """Map (N, i) numbers to (N, i + 1, K) logits."""
        # Numbers move one to the right: nothing sees itself. The first sees only its place.
        known = F.pad(F.embedding(seen, self.token), (0, 0, 1, 0))
        h = known + self.place[: seen.shape[-1] + 1]
        for block in self.blocks:
            h = block(h)
        return self.output(self.norm(h))


class UniformCodes(nn.Module):
    """Each number equally likely: the prior that VQ-VAEs are trained under.

    Arguments:
        num_codes: K.
        positions: P.

    Example:
        >>> UniformCodes(8, 3)().log_prob(torch.tensor([1, 0, 7])).exp() * 8**3
        tensor(1.)
    """

    logits: Tensor

    def __init__(self, num_codes: int, positions: int) -> None:
        super().__init__()
        self.register_buffer("logits", torch.zeros(positions, num_codes), persistent=False)

    def forward(self) -> TorchDistributionMixin:
        return dist.Categorical(logits=self.logits).to_event(1)


class FactorisedCodes(nn.Module):
    """A learnt frequency of each number at each place; the places are independent.

    Arguments:
        num_codes: K.
        positions: P.

    Example:
        >>> FactorisedCodes(8, 3)().event_shape
        torch.Size([3])
    """

    def __init__(self, num_codes: int, positions: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(positions, num_codes))

    def forward(self) -> TorchDistributionMixin:
        return dist.Categorical(logits=self.logits).to_event(1)


class AutoregressiveCodes(nn.Module):
    """Each number given those before it, by a small causal transformer.

    Arguments:
        num_codes: K.
        positions: P.
        width, depth: of the transformer.

    Example:
        >>> AutoregressiveCodes(8, 3)().sample((5,)).shape
        torch.Size([5, 3])
    """

    def __init__(self, num_codes: int, positions: int, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.positions = positions
        self.net = CausalTransformer(num_codes, positions, width, depth)

    def forward(self) -> TorchDistributionMixin:
        return CodeSequence(self.net, self.positions)
