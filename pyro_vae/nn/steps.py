"""Networks over steps: recurrent and causal ones. Shapes: * any leading dims, T steps."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.arguments import positive, shown, typed
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.nn.shapes import leading_dims
from pyro_vae.scan import scan


@typed
class GRU(nn.Module):
    r"""A gated recurrent unit over the steps of sequences, each of its own length.

    .. math:: r, u = \sigma(W x_t + V h_{t-1} + b), \quad
        n = \tanh(W' x_t + b' + r \odot (V' h_{t-1} + c)), \quad h_t = (1 - u) n + u h_{t-1}

    Beyond its length a sequence changes nothing: read backwards it starts at its own last step. The
    weights are those of `torch.nn.GRUCell`; the first state is learned.

    Arguments:
        in_features: size X of one step.
        hidden: H.
        reverse: read from the last step to the first, so that h_t knows x_t, x_{t+1}, ...

    Raises:
        ConfigError: an argument out of its range.

    References:
        Learning phrase representations using RNN encoder-decoder for statistical machine
        translation (Cho et al., 2014), arXiv:1406.1078.

    Example:
        >>> GRU(3, 8)(torch.zeros(5, 7, 3), torch.tensor([7, 1, 0, 3, 7])).shape
        torch.Size([5, 7, 8])
    """

    def __init__(self, in_features: int, hidden: int, *, reverse: bool = False) -> None:
        super().__init__()
        size = positive("hidden", hidden)
        self.cell = nn.GRUCell(positive("in_features", in_features), size)
        self.start = nn.Parameter(torch.zeros(size))
        self.reverse = reverse

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, *, start: Tensor | None = None
    ) -> Tensor:
        """Map steps (*, T, X), with lengths (*) and a first state (*, H), to states (*, T, H)."""
        lead = leading_dims(x, (self.cell.input_size,))
        if not lead:
            raise DataError(f"network input: got {shown(x)}, expected sequences (*, T, X)")
        first = (*lead[:-1], len(self.start))
        for name, each, shape in (("lengths", lengths, lead[:-1]), ("start", start, first)):
            given = getattr(each, "shape", ())
            if each is not None and (not isinstance(each, Tensor) or given != shape):
                raise DataError(f"{name}: got {shown(each)}, expected shape {tuple(shape)}")
        steps = x.movedim(-2, 0).to(self.start.dtype)
        kept = []
        if lengths is not None:
            number = torch.arange(len(steps), device=x.device)
            places = number.reshape(-1, *(1,) * lengths.dim())
            kept = [(places < lengths.long()).unsqueeze(-1)]  # of bfloat16, 257 would be 256
            # What stands in the padding may be anything, NaN too.
            steps = torch.where(kept[0], steps, torch.zeros_like(steps))
        if start is None:
            start = self.start.expand(*steps.shape[1:-1], -1)
        states = scan(self._advance, start, [self._seen(steps), *kept], reverse=self.reverse)
        return states.movedim(0, -2)

    def step(self, h: Tensor, x: Tensor) -> Tensor:
        """Return the state, (*, H), that follows a state (*, H) at one step (*, X)."""
        before, now = leading_dims(h, (len(self.start),)), leading_dims(x, (self.cell.input_size,))
        if before != now:
            raise DataError(f"got states {tuple(before)} and steps {tuple(now)}, expected as many")
        return self._advance(h, self._seen(x))

    def _seen(self, x: Tensor) -> Tensor:
        """Return the part of the gates that an input gives, (*, 3 H), of inputs (*, X)."""
        return nn.functional.linear(x, self.cell.weight_ih, self.cell.bias_ih)

    def _advance(self, h: Tensor, seen: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the next state, (*, H); where `kept` (*, 1) is false, the same."""
        size = self.cell.hidden_size
        ours = nn.functional.linear(h, self.cell.weight_hh, self.cell.bias_hh)
        (ours, proposed), (theirs, given) = (each.split(2 * size, -1) for each in (ours, seen))
        reset, keep = (ours + theirs).sigmoid().chunk(2, -1)
        new = torch.addcmul(given, reset, proposed).tanh()
        new = torch.addcmul(new, keep, h - new)
        return new if kept is None else torch.where(kept, new, h)


@typed
class Transformer(nn.Module):
    r"""Masked self-attention over the steps of sequences: none sees a later one.

    .. math:: h = W x_t + p_t, \quad h \leftarrow h + \mathrm{attention}(h_{\le t}), \quad
        h \leftarrow h + \mathrm{MLP}(h)

    Places p are sines of geometric wavelengths, so that sequences may be of any length.

    Arguments:
        in_features: size X of one step.
        hidden: H, even, a multiple of the heads.
        depth: how often attention and a perceptron of width 2 H follow each other.
        heads: attention heads.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Attention is all you need (Vaswani et al., 2017), arXiv:1706.03762.

    Example:
        >>> Transformer(3, 8)(torch.zeros(5, 7, 3)).shape
        torch.Size([5, 7, 8])
    """

    def __init__(self, in_features: int, hidden: int, *, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        size = positive("hidden", hidden)
        if size % positive("heads", heads) or size % 2:
            raise ConfigError(f"hidden: got {size}, expected an even multiple of heads = {heads}")
        self.into = nn.Linear(positive("in_features", in_features), size)
        blocks = range(positive("depth", depth))
        self.blocks = nn.ModuleList(CausalBlock(size, heads) for _ in blocks)
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        """Map steps (*, T, X) to (*, T, H)."""
        lead = leading_dims(x, (self.into.in_features,))
        if not lead:
            raise DataError(f"network input: got {shown(x)}, expected sequences (*, T, X)")
        h = self.into(x.reshape(-1, *x.shape[-2:]))
        h = h + _places(h)
        for block in self.blocks:
            h = block(h)
        return self.norm(h).reshape(*lead, -1)


@typed
class CausalBlock(nn.Module):
    """Causal self-attention and a perceptron, each added to what it reads.

    Arguments:
        width: of a step.
        heads: attention heads; the width is a multiple of it.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> CausalBlock(8, 4)(torch.zeros(2, 3, 8)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if positive("width", width) % positive("heads", heads):
            raise ConfigError(f"width: got {width}, expected a multiple of heads = {heads}")
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.join = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, h: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape."""
        if len(leading_dims(h, (self.join.in_features,))) != 2:
            raise DataError(f"network input: got {shown(h)}, expected sequences (N, T, width)")
        n, length, width = h.shape
        parts = self.qkv(self.norms[0](h)).reshape(n, length, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # (N, heads, T, width / heads) each
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.join(mixed.transpose(1, 2).reshape(n, length, width))
        return h + self.mlp(self.norms[1](h))


def _places(h: Tensor) -> Tensor:
    """Return sines and cosines of the number of a step, (T, H), of steps (*, T, H)."""
    steps, size = h.shape[-2:]
    # Short floats do not tell step 300 from 301.
    like: Any = {"device": h.device, "dtype": torch.promote_types(h.dtype, torch.float32)}
    rates = torch.arange(0, size, 2, **like) * (-math.log(1e4) / size)
    angles = torch.arange(steps, **like).unsqueeze(-1) * rates.exp()
    return torch.cat([angles.sin(), angles.cos()], -1).to(h.dtype)
