"""Networks over words. Shapes: N sentences, T words, V vocabulary, E one word, Z a code, H hidden.

A body of a decoder maps what is seen at each step, (N, T, E + Z), to (N, T, H) from the left, and
goes on by one step from a state.
"""

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import number, positive
from pyro_vae.conditionals import Gaussian
from pyro_vae.errors import ConfigError
from pyro_vae.nn import GRU, Transformer
from pyro_vae.words import PAD, START, UNKNOWN

_HEADS, _DEPTH = 4, 2


class _Recurrent(nn.Module):
    """A GRU whose first state depends on the code."""

    def __init__(self, in_features: int, hidden: int, latent_dim: int) -> None:
        super().__init__()
        self.gru = GRU(in_features, hidden)
        self.first = nn.Linear(latent_dim, hidden, bias=False) if latent_dim else None

    def forward(self, seen: Tensor, z: Tensor | None) -> Tensor:
        return self.gru(seen, start=self.begin(z, len(seen)))

    def begin(self, z: Tensor | None, rows: int) -> Tensor:
        start = self.gru.start.expand(rows, -1)
        return start if z is None or self.first is None else start + self.first(z)

    def advance(self, state: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        state = self.gru.step(state, seen)
        return state, state


class _Attentive(nn.Module):
    """A causal transformer; its state is all that it has seen."""

    def __init__(self, in_features: int, hidden: int, latent_dim: int) -> None:
        super().__init__()
        self.net = Transformer(in_features, hidden, depth=_DEPTH, heads=_HEADS)

    def forward(self, seen: Tensor, z: Tensor | None) -> Tensor:
        return self.net(seen)

    def begin(self, z: Tensor | None, rows: int) -> Tensor:
        weight = self.net.into.weight
        return weight.new_empty(rows, 0, weight.shape[1])

    def advance(self, state: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.cat([state, seen.unsqueeze(1)], 1)
        return state, self.net(state)[:, -1]


BODIES: dict[str, Any] = {"gru": _Recurrent, "transformer": _Attentive}


class WordDecoder(nn.Module):
    """Logits of each word of a sentence from those before it, and from a code at every step.

    Arguments:
        words: V.
        latent_dim: Z; 0: there is no code.
        network: "gru" or "transformer".
        embedding: E.
        hidden: H.
        dropout: of what is seen and of hidden units, while training, in [0, 1).
        word_dropout: probability that a word seen is <unk> while training, in [0, 1].

    Example:
        >>> WordDecoder(9, 2)(torch.ones(5, 4).long(), torch.zeros(5, 2)).shape
        torch.Size([5, 4, 9])
    """

    def __init__(
        self,
        words: int,
        latent_dim: int = 0,
        *,
        network: str = "gru",
        embedding: int = 128,
        hidden: int = 128,
        dropout: float = 0.0,
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if network not in BODIES:
            raise ConfigError(f'decoder={network!r}; expected "gru" or "transformer"')
        self.words, size = words, positive("embedding", embedding)
        self.embed = nn.Embedding(words, size)
        self.body = BODIES[network](size + latent_dim, positive("hidden", hidden), latent_dim)
        self.output = nn.Linear(hidden, words)
        self.dropout = nn.Dropout(number("dropout", dropout, "[0, 1)"))
        self.word_dropout = number("word_dropout", word_dropout, "[0, 1]")

    def forward(self, words: Tensor, z: Tensor | None = None) -> Tensor:
        """Map sentences (N, T), and codes (N, Z), to logits (N, T, V)."""
        before = words[:, :-1]
        if self.training and self.word_dropout:
            dropped = torch.rand(before.shape, device=before.device) < self.word_dropout
            before = before.masked_fill(dropped, UNKNOWN)
        inputs = nn.functional.pad(before, (1, 0), value=START)
        return self._logits(self.body(self._seen(inputs, z), z))

    def begin(self, z: Tensor | None, rows: int) -> Tensor:
        """Return the state before the first word of N sentences."""
        return self.body.begin(z, rows)

    def advance(self, state: Tensor, word: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the state behind a word (N), and the logits (N, V) of the next."""
        state, h = self.body.advance(state, self._seen(word.unsqueeze(1), z).squeeze(1))
        return state, self._logits(h)

    def _seen(self, words: Tensor, z: Tensor | None) -> Tensor:
        seen = self.dropout(self.embed(words))
        if z is None:
            return seen
        return torch.cat([seen, z.unsqueeze(1).expand(-1, seen.shape[1], -1)], -1)

    def _logits(self, h: Tensor) -> Tensor:
        number = torch.arange(self.words, device=h.device)
        never = (number == PAD) | (number == START)
        bias = self.output.bias.masked_fill(never, -torch.inf)
        return nn.functional.linear(self.dropout(h), self.output.weight, bias)


class WordEncoder(nn.Module):
    """A diagonal Gaussian from the words of a sentence, read by a GRU.

    Arguments:
        words: V.
        latent_dim: Z.
        embedding: E.
        hidden: H.

    Example:
        >>> WordEncoder(9, 2)(torch.ones(5, 4).long()).event_shape
        torch.Size([2])
    """

    def __init__(
        self, words: int, latent_dim: int, *, embedding: int = 128, hidden: int = 128
    ) -> None:
        super().__init__()
        self.words = words
        self.embed = nn.Embedding(words, embedding)
        self.gru = GRU(embedding, hidden)
        self.posterior = Gaussian(nn.Linear(hidden, 2 * latent_dim))

    def forward(self, x: Tensor) -> TorchDistributionMixin:
        """Return q(z | x) of sentences (N, T)."""
        seen = self.embed(x.long().clamp(0, self.words - 1))
        states = self.gru(seen, (x != PAD).sum(-1))  # beyond its length a sentence stands still
        return self.posterior(states[:, -1])
