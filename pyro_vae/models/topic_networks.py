"""What topic models are built of: an encoder of counts, and ways from shares of topics to words.

Shapes: V words, K topics, E an embedding, * leading.
"""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import positive
from pyro_vae.conditionals.outputs import bounded
from pyro_vae.errors import DataError
from pyro_vae.nn import MLP, BatchNorm, sizes


class DocumentEncoder(nn.Module):
    """A network from counts of words to a diagonal Gaussian.

    It reads log(1 + count): under raw counts, as in the papers, one long document is so far from
    the others that its posterior, and with it the perplexity of a corpus, is out of all bounds.

    Arguments:
        words: vocabulary size V.
        latent_dim: size of the code.
        hidden: widths of the hidden layers.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        dropout: of the last hidden layer, while training.
        batch_norm: normalise both heads over the batch, with a shift and no scale.
        shares: read the counts divided by their sum instead.
    """

    def __init__(
        self,
        words: int,
        latent_dim: int,
        hidden: Sequence[int],
        *,
        activation: str,
        dropout: float = 0.0,
        batch_norm: bool = False,
        shares: bool = False,
    ) -> None:
        super().__init__()
        self.shares = shares
        self.net = MLP(words, 2 * latent_dim, sizes("hidden", hidden), activation=activation)
        if dropout:
            self.net.hidden.append(nn.Dropout(dropout))
        self.norm = Normalised(2 * latent_dim) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> TorchDistributionMixin:
        """Return q(z | x) of counts x, (*, V): mean, and half of the log-variance, from one net."""
        x = x / x.sum(-1, keepdim=True).clamp(min=1) if self.shares else x.log1p()
        loc, log_variance = self.norm(self.net(x)).chunk(2, -1)
        return dist.Normal(loc, bounded(0.5 * log_variance).exp()).to_event(1)


class FreeTopics(nn.Module):
    """Topics of which each word has a number of its own.

    Arguments:
        num_topics: K.
        words: V.
    """

    def __init__(self, num_topics: int, words: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(num_topics, words))  # apart from the start

    def forward(self) -> Tensor:
        """Return β, shape (K, V)."""
        return self.logits.softmax(-1)


class EmbeddedTopics(nn.Module):
    """Topics as vectors among those of the words.

    Arguments:
        num_topics: K.
        words: V.
        embedding_dim: E.
        embeddings: of the words, (V, E), held fixed; None learns them.
    """

    def __init__(
        self, num_topics: int, words: int, embedding_dim: int, embeddings: Tensor | None
    ) -> None:
        super().__init__()
        if embeddings is None:
            size = positive("embedding_dim", embedding_dim)
            self.words = nn.Parameter(torch.randn(words, size) / size**0.5)
        else:
            self.register_buffer("words", _checked(embeddings, words))
        size = self.words.shape[1]
        self.vectors = nn.Parameter(torch.randn(num_topics, size) / size**0.5)

    def forward(self) -> Tensor:
        """Return β, shape (K, V)."""
        return (self.vectors @ self.words.T).softmax(-1)


class LogLinear(nn.Linear):
    """softmax(W z + b), before the softmax."""

    def topics(self) -> Tensor:
        return self.weight.T.softmax(-1)

    def proportions(self, z: Tensor) -> Tensor:
        return z.softmax(-1)


class TopicMixture(nn.Module):
    """The logarithm of a mixture of topics; `shares` maps a code to the logits of theirs."""

    def __init__(self, words_of_topics: nn.Module, shares: nn.Module) -> None:
        super().__init__()
        self.words_of_topics, self.shares = words_of_topics, shares

    def topics(self) -> Tensor:
        return self.words_of_topics()

    def proportions(self, z: Tensor) -> Tensor:
        return self.shares(z).softmax(-1)

    def forward(self, z: Tensor) -> Tensor:
        return log_mixture(self.proportions(z), self.topics())


class ProductOfExperts(nn.Module):
    """Topics mixed before the softmax, with dropout of their shares and normalised logits."""

    def __init__(self, num_topics: int, words: int, dropout: float) -> None:
        super().__init__()
        self.experts = nn.Linear(num_topics, words, bias=False)
        nn.init.xavier_uniform_(self.experts.weight)
        self.dropout = nn.Dropout(dropout)
        self.norm = Normalised(words)

    def topics(self) -> Tensor:
        return self.norm.by_running_moments(self.experts.weight.T).softmax(-1)

    def proportions(self, z: Tensor) -> Tensor:
        return z.softmax(-1)

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(self.experts(self.dropout(self.proportions(z))))


def log_mixture(shares: Tensor, topics: Tensor) -> Tensor:
    """Return the log-probabilities of words, (*, V), of shares (*, K) of topics (*, K, V)."""
    mixed = (shares.unsqueeze(-2) @ topics).squeeze(-2) if topics.dim() > 2 else shares @ topics
    return mixed.clamp(min=torch.finfo(mixed.dtype).tiny).log()


class Normalised(nn.Module):
    """Batch normalisation of (*, C) over all leading dims, with a learned shift and no scale."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = BatchNorm(size, affine=False)
        self.shift = nn.Parameter(torch.zeros(size))

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(h.reshape(-1, h.shape[-1])).reshape(h.shape) + self.shift

    def by_running_moments(self, h: Tensor) -> Tensor:
        """Normalise as in eval mode, whatever the mode is."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        return nn.functional.batch_norm(h, mean, variance, eps=self.norm.eps) + self.shift


def _checked(embeddings: Tensor, words: int) -> Tensor:
    fits = embeddings.dim() == 2 and len(embeddings) == words
    if not fits or not (embeddings.is_meta or bool(embeddings.isfinite().all())):
        raise DataError(
            f"embeddings: got shape {tuple(embeddings.shape)}, expected finite vectors of the "
            f"{words} words, one row each"
        )
    return embeddings.detach().to(torch.get_default_dtype()).clone()
