"""Sentences: a language model, and one that knows what the whole sentence is about.

Shapes: B sentences, T words of the longest, V vocabulary, Z one code. Words are whole numbers: 0 is
<pad>, 1 <unk>, 2 <bos>, 3 <eos>, with which each sentence ends.
"""

from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.arguments import integer, positive, shown, typed
from pyro_vae.distributions import Sentence
from pyro_vae.errors import DataError
from pyro_vae.models.unequal_steps import padded_to_one, require_batches
from pyro_vae.models.word_networks import WordDecoder, WordEncoder
from pyro_vae.models.zoo_program import ZooProgram, register
from pyro_vae.torch_private import validates_values
from pyro_vae.words import PAD, SPECIAL


class SentenceProgram(ZooProgram):
    """A program over sentences (B, T), which are of unequal length and padded."""

    example: Any = None  # how many words there are is a matter of the data
    decoder: WordDecoder

    def __init__(self, words: int) -> None:
        super().__init__(integer("words", words, len(SPECIAL) + 1))
        self.words = int(words)

    def reads(self, data: Any) -> Any:
        """Return data as they are; a list of batches of unequal T as one.

        Raises:
            DataError: Text, or a list of single sentences.
        """
        require_batches(data, 2)
        return padded_to_one(data, 2, told=False)

    @typed
    def sentences(
        self, steps: int, z: Tensor | None = None, *, temperature: float = 1.0
    ) -> Sentence:
        """Return p(x | z) of sentences of up to T words: to draw, to decode greedily, to score.

        Arguments:
            steps: T.
            z: codes (* | Z); None where the program has none.
            temperature: below 1 likely words get likelier.

        Raises:
            DataError: Codes of another size, or codes where the program has none.
        """
        size = getattr(self, "latent_dim", None)
        if z is not None and z.shape[-1:] != (size,):
            expected = "None: the program has no codes" if size is None else f"codes (*, {size})"
            raise DataError(f"z: got {shown(z)}, expected {expected}")
        return Sentence(self.decoder, steps, z, temperature=temperature)

    def _require(self, x: Tensor, lengths: Tensor | None) -> None:
        """Refuse what are no sentences, and lengths of others.

        Raises:
            DataError: Something else than whole numbers (B, T), or a length that `x` contradicts.
        """
        if x.dim() != 2 or x.is_floating_point() or x.dtype == torch.bool:
            raise DataError(
                f"x: got {shown(x)}, expected sentences as numbers of words, whole numbers (B, T); "
                "pv.data.Vocabulary makes them of text"
            )
        if not validates_values() or x.is_meta:
            return  # what follows waits for the device: the first time is enough
        support = self.sentences(x.shape[1]).support
        wrong = ~support.check(x)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise DataError(f"x: got {x[row].tolist()} in row {row}, expected {support}")
        if lengths is None:
            return
        count = (x != PAD).sum(-1)
        if lengths.shape != count.shape or bool((lengths != count).any()):
            raise DataError(
                f"lengths: got {shown(lengths)}, expected the number of words of each sentence in "
                f"x, up to <eos>: {count[:5].tolist()}{', ...' if len(count) > 5 else ''}"
            )

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in (self.config or {}).items())


@typed
class SentenceVAE(SentenceProgram):
    r"""A VAE of sentences: the decoder is a language model that sees a code at every step.

    .. math:: z \sim N(0, I), \quad p(x \mid z) = \prod_t p(x_t \mid x_{<t}, z)

    Site `z` is the code, event (Z,), and `x` the whole sentence, event (T,). A GRU reads the
    sentence. A decoder as strong as this one learns to do without its code. Against that, on
    captions: a floor under the KL of the whole code, `pv.FreeBits(5.0, per="site")`, or a KL weight
    that grows (`beta=`); word dropout alone did not help.

    Arguments:
        words: V, the special words among them.
        latent_dim: Z.
        decoder: "gru", whose first state depends on the code too, or "transformer".
        embedding: size of a word's vector.
        hidden: width of the networks; of a transformer, a multiple of 4.
        dropout: of what the decoder sees and of its hidden units, while training, in [0, 1).
        word_dropout: probability that a word that the decoder sees is <unk>, while training.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Generating sentences from a continuous space (Bowman et al., 2016), arXiv:1511.06349.

    Example:
        >>> vae = SentenceVAE(2000, 16)
        >>> vae.sentences(25, torch.zeros(3, 16)).greedy().shape
        torch.Size([3, 25])
    """

    kind = "sentence_vae"

    def __init__(
        self,
        words: int,
        latent_dim: int = 16,
        *,
        decoder: Literal["gru", "transformer"] = "gru",
        embedding: int = 128,
        hidden: int = 128,
        dropout: float = 0.0,
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__(words)
        self.latent_dim = positive("latent_dim", latent_dim)
        sizes: Any = {"embedding": embedding, "hidden": hidden}
        drops: Any = {"dropout": dropout, "word_dropout": word_dropout}
        code = {"words": self.words, "latent_dim": self.latent_dim}
        self.config = {**code, "decoder": decoder, **sizes, **drops}
        self.decoder = WordDecoder(**code, network=decoder, **sizes, **drops)
        self.encoder = WordEncoder(**code, **sizes)

    def prior(self) -> TorchDistributionMixin:
        """Return p(z), event (Z,)."""
        one = torch.ones_like(self.origin)  # a number would travel to a GPU at each pass
        return dist.Normal(self.origin, one).expand([self.latent_dim]).to_event(1)

    def model(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Draw a code and observe the sentences x, (B | T); their lengths are only compared."""
        register(self)
        self._require(x, None)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())  # (B | Z)
            return pyro.sample("x", self.sentences(x.shape[1], z), obs=x)

    def guide(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Draw a code from the encoder's Gaussian."""
        register(self)
        self._require(x, lengths)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(x))


@typed
class SentenceLM(SentenceProgram):
    r"""A language model: the decoder of `SentenceVAE` without a code, whose log p is exact.

    .. math:: p(x) = \prod_t p(x_t \mid x_{<t})

    Arguments:
        words: V, the special words among them.
        decoder: "gru" or "transformer".
        embedding: size of a word's vector.
        hidden: width of the network; of a transformer, a multiple of 4.
        dropout: of embedded words and of hidden units, while training, in [0, 1).
        word_dropout: probability that a word seen is <unk>, while training.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Recurrent neural network based language model (Mikolov et al., 2010).

    Example:
        >>> SentenceLM(2000).sentences(25).sample((3,)).shape
        torch.Size([3, 25])
    """

    kind = "sentence_lm"

    def __init__(
        self,
        words: int,
        *,
        decoder: Literal["gru", "transformer"] = "gru",
        embedding: int = 128,
        hidden: int = 128,
        dropout: float = 0.0,
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__(words)
        sizes: Any = {"embedding": embedding, "hidden": hidden, "dropout": dropout}
        sizes["word_dropout"] = word_dropout
        self.config = {"words": self.words, "decoder": decoder, **sizes}
        self.decoder = WordDecoder(self.words, network=decoder, **sizes)

    def model(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Observe the sentences x, (B | T); their lengths are only compared."""
        register(self)
        self._require(x, None)
        with pyro.plate("data", len(x)):
            return pyro.sample("x", self.sentences(x.shape[1]), obs=x)

    def guide(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Draw nothing."""
        self._require(x, lengths)
