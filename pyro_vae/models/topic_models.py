"""Topic models: documents as counts of words. Shapes: B documents, V words, K topics.

One program, four ways from a code to words and one guide. Site `z` is the code, shape (B | K),
and `x` the counts, shape (B | V).
"""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.arguments import integer, number, positive, typed
from pyro_vae.distributions import BagOfWords
from pyro_vae.errors import DataError
from pyro_vae.models.topic_networks import (
    DocumentEncoder,
    EmbeddedTopics,
    FreeTopics,
    LogLinear,
    ProductOfExperts,
    TopicMixture,
    log_mixture,
)
from pyro_vae.models.zoo_program import OneLatent, ZooProgram, register
from pyro_vae.nn import MLP, sizes
from pyro_vae.torch_private import validates_values


@typed
class Documents(ZooProgram):
    """A program over counts of words."""

    @typed
    def example(self, n: int = 2) -> Tensor:
        """Return n documents that have each word once, shape (n | V)."""
        return super().example(n) + 1

    def _checked(self, x: Tensor) -> Tensor:
        """Return counts in the program's precision.

        Raises:
            DataError: A count below 0, of which the encoder has no logarithm.
        """
        x = x.to(self.origin.dtype)
        validating = validates_values() and not x.is_meta
        if validating and bool((x < 0).any()):  # waits for the device: the first time is enough
            row = int((x < 0).any(-1).nonzero()[0])
            raise DataError(
                f"x: got {x[row].min().item():g} in row {row}, expected counts of words, whole "
                "numbers from 0 up"
            )
        return x


class TopicModel(Documents, OneLatent):
    r"""What topic models share: a Gaussian code, a bag of words, an encoder of counts.

    .. math:: z \sim N(\mu, \mathrm{diag}\,\sigma^2), \quad
        x \mid z \sim \mathrm{BagOfWords}(l(z), \textstyle\sum_v x_v)

    The number of words of a document is given, not modelled; `generate` takes it from the documents
    that it is given, or from those that the program has seen; before any, it is V.

    Arguments:
        words: vocabulary size V.
        num_topics: K.
        encoder: counts (*, V) -> distribution of z, event (K,).
        decoder: codes (*, K) -> logits (*, V), with `topics` and `proportions`.
        prior_scale: standard deviation of the prior of each unit.
    """

    prior_loc: Tensor
    prior_scale: Tensor

    def __init__(
        self,
        words: int,
        num_topics: int,
        encoder: nn.Module,
        decoder: nn.Module,
        prior_scale: float = 1.0,
    ) -> None:
        super().__init__(words)
        self.latent_dim = num_topics
        self.encoder, self.decoder = encoder, decoder
        self.register_buffer("prior_loc", torch.zeros(num_topics), persistent=False)
        scale = torch.full((num_topics,), prior_scale)
        self.register_buffer("prior_scale", scale, persistent=False)

    def prior(self) -> TorchDistributionMixin:
        """Return p(z), event (K,)."""
        return dist.Normal(self.prior_loc, self.prior_scale).to_event(1)

    def model(self, x: Tensor) -> Tensor:
        """Draw a code and observe the counts of words x, shape (B | V)."""
        register(self)
        x = self._checked(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())  # (B | K)
            document = BagOfWords(self.decoder(z), total_count=x.sum(-1))
            return pyro.sample("x", document, obs=x)  # (B | V)

    def guide(self, x: Tensor) -> None:
        """Draw a code from the encoder's Gaussian."""
        register(self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(self._checked(x)))

    def topics(self) -> Tensor:
        """Return the distribution of words of each topic, shape (K, V): of a document of it alone.

        Of `NVDM`, whose code is no share, it is the softmax of each column of W.
        """
        return self.decoder.topics()

    def proportions(self, z: Tensor) -> Tensor:
        """Return the share of each topic, (*, K), of documents with codes z, (*, K)."""
        return self.decoder.proportions(z)


@typed
class NVDM(TopicModel):
    r"""The neural variational document model: a log-linear decoder, its code not on a simplex.

    .. math:: p(w \mid z) = \mathrm{softmax}(W z + b)

    Arguments:
        words: vocabulary size V.
        num_topics: K, size of the code.
        hidden: widths of the encoder.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Neural variational inference for text processing (Miao et al., 2016), arXiv:1511.06038.

    Example:
        >>> NVDM(2000, 50).topics().shape
        torch.Size([50, 2000])
    """

    kind = "nvdm"

    def __init__(
        self,
        words: int,
        num_topics: int = 50,
        hidden: Sequence[int] = (500, 500),
        *,
        activation: str = "relu",
    ) -> None:
        words, num_topics = positive("words", words), positive("num_topics", num_topics)
        encoder = DocumentEncoder(words, num_topics, hidden, activation=activation)
        super().__init__(words, num_topics, encoder, LogLinear(num_topics, words))
        self.config = _config(words, num_topics, hidden, activation)


@typed
class GSM(TopicModel):
    r"""A mixture of topics whose shares are a softmax of a Gaussian code.

    .. math:: p(w \mid z) = \sum_k \theta_k \beta_{kw}, \quad
        \theta = \mathrm{softmax}(A z + a), \quad \beta_k = \mathrm{softmax}(t_k)

    Arguments:
        words: vocabulary size V.
        num_topics: K.
        hidden: widths of the encoder.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Discovering discrete latent topics with neural variational inference (Miao et al., 2017),
        arXiv:1706.00359.

    Example:
        >>> GSM(2000, 50).topics().sum(-1).shape
        torch.Size([50])
    """

    kind = "gsm"

    def __init__(
        self,
        words: int,
        num_topics: int = 50,
        hidden: Sequence[int] = (500, 500),
        *,
        activation: str = "relu",
    ) -> None:
        words, num_topics = positive("words", words), positive("num_topics", num_topics)
        encoder = DocumentEncoder(words, num_topics, hidden, activation=activation)
        topics = FreeTopics(num_topics, words)
        shares = nn.Linear(num_topics, num_topics)
        super().__init__(words, num_topics, encoder, TopicMixture(topics, shares))
        self.config = _config(words, num_topics, hidden, activation)


@typed
class ProdLDA(TopicModel):
    r"""A product of experts: the topics' unnormalised words are mixed before the softmax.

    .. math:: p(w \mid z) = \mathrm{softmax}\big(\mathrm{BN}(\theta^\top W)\big), \quad
        \theta = \mathrm{softmax}(z)

    The prior is the Laplace approximation of a symmetric Dirichlet on the shares in the softmax
    basis: mean 0, variance :math:`(1 - 1/K) / \alpha`. Batch normalisation of the heads and of the
    logits, and dropout of the shares, keep the topics apart; train with Adam at lr 2e-3 and a first
    beta of 0.99. `topics()` normalises: words of a document of one topic, by which `pv.topics`
    ranks them. The paper's code ranks them by the raw weights W, so that its coherence is of other
    words and another figure (on 20 Newsgroups .225 by weights, .200 by `pv.topics`).

    Arguments:
        words: vocabulary size V.
        num_topics: K, at least 2.
        hidden: widths of the encoder.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        dropout: probability of dropping a hidden unit or a share while training, in [0, 1).
        concentration: α of the Dirichlet.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Autoencoding variational inference for topic models (Srivastava and Sutton, 2017),
        arXiv:1703.01488.

    Example:
        >>> ProdLDA(2000, 50).topics().shape
        torch.Size([50, 2000])
    """

    kind = "prodlda"

    def __init__(
        self,
        words: int,
        num_topics: int = 50,
        hidden: Sequence[int] = (100, 100),
        *,
        activation: str = "softplus",
        dropout: float = 0.6,
        concentration: float = 1.0,
    ) -> None:
        words, num_topics = positive("words", words), integer("num_topics", num_topics, 2)
        dropout = number("dropout", dropout, "[0, 1)")
        concentration = number("concentration", concentration, "(0, inf)")
        encoder = DocumentEncoder(
            words, num_topics, hidden, activation=activation, dropout=dropout, batch_norm=True
        )
        scale = ((1 - 1 / num_topics) / concentration) ** 0.5
        decoder = ProductOfExperts(num_topics, words, dropout)
        super().__init__(words, num_topics, encoder, decoder, scale)
        self.config = {
            **_config(words, num_topics, hidden, activation),
            "dropout": dropout,
            "concentration": concentration,
        }


@typed
class ETM(TopicModel):
    r"""The embedded topic model: words and topics are vectors of one space.

    .. math:: p(w \mid z) = \sum_k \theta_k \beta_{kw}, \quad \theta = \mathrm{softmax}(z), \quad
        \beta_k = \mathrm{softmax}(\rho\, a_k)

    The encoder sees shares of words, :math:`x / \sum_v x_v`.

    Arguments:
        words: vocabulary size V.
        num_topics: K.
        hidden: widths of the encoder.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        embedding_dim: E, size of the vectors.
        embeddings: ρ of the words, shape (V, E), held fixed; None learns them.

    Raises:
        DataError: embeddings of another shape, or not finite.

    References:
        Topic modeling in embedding spaces (Dieng et al., 2020), arXiv:1907.04907.

    Example:
        >>> ETM(3000, 50, embeddings=torch.randn(3000, 25)).topics().shape
        torch.Size([50, 3000])
    """

    kind = "etm"

    def __init__(
        self,
        words: int,
        num_topics: int = 50,
        hidden: Sequence[int] = (800, 800),
        *,
        activation: str = "relu",
        embedding_dim: int = 300,
        embeddings: Tensor | None = None,
    ) -> None:
        words, num_topics = positive("words", words), positive("num_topics", num_topics)
        encoder = DocumentEncoder(words, num_topics, hidden, activation=activation, shares=True)
        topics = EmbeddedTopics(num_topics, words, embedding_dim, embeddings)
        super().__init__(words, num_topics, encoder, TopicMixture(topics, nn.Identity()))
        config = {**_config(words, num_topics, hidden, activation), "embedding_dim": embedding_dim}
        self.config = config if embeddings is None else None


@typed
class LDA(Documents):
    r"""Latent Dirichlet allocation: Dirichlet topics, Dirichlet shares, the words summed out.

    .. math:: \beta_k \sim \mathrm{Dir}(\eta), \quad z \sim \mathrm{Dir}(\alpha), \quad
        p(w \mid z, \beta) = \sum_k z_k \beta_{kw}

    The topics are global latents (site `topics`, event (K, V)) with Dirichlets of their own in the
    guide; the shares z of a document, event (K,), get a Dirichlet from an encoder of its counts.

    Arguments:
        words: vocabulary size V.
        num_topics: K, at least 2.
        hidden: widths of the encoder.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.
        concentration: α of the shares.
        topic_concentration: η of the topics.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Latent Dirichlet allocation (Blei et al., 2003); Autoencoding variational inference for
        topic models (Srivastava and Sutton, 2017), arXiv:1703.01488.

    Example:
        >>> LDA(2000, 50).topics().shape
        torch.Size([50, 2000])
    """

    kind = "lda"
    config: dict[str, Any]

    def __init__(
        self,
        words: int,
        num_topics: int = 50,
        hidden: Sequence[int] = (100, 100),
        *,
        activation: str = "softplus",
        concentration: float = 0.1,
        topic_concentration: float = 0.1,
    ) -> None:
        super().__init__(positive("words", words))
        self.latent_dim = integer("num_topics", num_topics, 2)
        self.config = {
            **_config(words, num_topics, hidden, activation),
            "concentration": number("concentration", concentration, "(0, inf)"),
            "topic_concentration": number("topic_concentration", topic_concentration, "(0, inf)"),
        }
        self.net = MLP(words, num_topics, sizes("hidden", hidden), activation=activation)
        # Apart from the start, so that no two topics learn alike.
        self.log_topics = nn.Parameter(0.5 * torch.randn(num_topics, words))

    def encoder(self, x: Tensor) -> TorchDistributionMixin:
        """Return q(z | x) of counts x, (*, V), event (K,)."""
        return dist.Dirichlet(nn.functional.softplus(self.net(x.log1p())) + 1e-3)

    def topics(self) -> Tensor:
        """Return the mean distribution of words of each topic under the guide, shape (K, V)."""
        return self.log_topics.softmax(-1)

    def proportions(self, z: Tensor) -> Tensor:
        """Return the share of each topic: the code itself, (*, K)."""
        return z

    def decoder(self, z: Tensor) -> Tensor:
        """Return logits of words at the mean topics, (*, V)."""
        return log_mixture(z, self.topics())

    def model(self, x: Tensor) -> Tensor:
        """Draw topics and shares, and observe the counts of words x, shape (B | V)."""
        register(self)
        x = self._checked(x)
        like_topics, like_shares = torch.ones_like(self.log_topics), x.new_ones(self.latent_dim)
        eta, alpha = self.config["topic_concentration"], self.config["concentration"]
        beta = pyro.sample("topics", dist.Dirichlet(eta * like_topics).to_event(1))  # (K, V)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(alpha * like_shares))  # (B | K)
            document = BagOfWords(log_mixture(z, beta), total_count=x.sum(-1))
            return pyro.sample("x", document, obs=x)  # (B | V)

    def guide(self, x: Tensor) -> None:
        """Draw the topics, and shares from the encoder's Dirichlet."""
        register(self)
        pyro.sample("topics", dist.Dirichlet(self.log_topics.exp()).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(self._checked(x)))


def _config(words: int, num_topics: int, hidden: Sequence[int], activation: str) -> dict[str, Any]:
    return {
        "words": int(words),
        "num_topics": int(num_topics),
        "hidden": list(sizes("hidden", hidden)),
        "activation": activation,
    }
