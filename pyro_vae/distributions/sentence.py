"""Words one after another until the sentence ends. Shapes: * batch, T words, V vocabulary, N rows.

Z is the size of what a whole sentence is given.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.arguments import number, positive, shown, typed
from pyro_vae.distributions.expandable import Expandable
from pyro_vae.errors import DataError
from pyro_vae.words import END, PAD, START


class _Word(constraints.Constraint):
    """Each word of a sentence: below V, never <bos>, and <pad> behind the end and nowhere else."""

    is_discrete = True

    def __init__(self, words: int) -> None:
        self.words = words

    def check(self, value: Tensor) -> Tensor:
        """Return which words of sentences, (*, T), stand where they may."""
        value = value.long()  # of eight bits, V may be beyond the largest number
        last = (value == END).long()
        behind = last.cumsum(-1) > last
        known = (value >= 0) & (value < self.words) & (value != START)
        return known & ((value == PAD) == behind)

    def __repr__(self) -> str:
        return (
            f"words from 1 to {self.words - 1} that end with <eos> = {END} or fill all steps, "
            f"<pad> = {PAD} behind the end and nowhere else, <bos> = {START} nowhere"
        )


@typed
class Sentence(Expandable):
    r"""The words of a sentence, each of which sees those before it, up to <eos> or T words.

    .. math:: p(x \mid z) = \prod_{t \le L} \mathrm{softmax}\big(net(x_{<t}, z)_t / \tau\big)_{x_t}

    L is the place of <eos>, or T: behind it words are <pad>, and count nowhere. Of sentences of up
    to T words, those that T cuts among them, the probabilities add up to one. Scored in one pass; a
    draw takes one word after another, without gradient, until all sentences have ended.

    Arguments:
        net: maps sentences (N, T), and z (N, Z) where there is one, to the logits of each word
            given those before, (N, T, V), minus infinity for <pad> and <bos>; has `words` (V); and
            for draws `begin(z, N)`, the state before the first word, and `advance(state, word, z)`,
            the state behind a word (N) and the logits (N, V) of the next.
        steps: T.
        context: z, shape (* | Z), or None.
        temperature: τ; below 1 likely words get likelier.

    Raises:
        ConfigError: an argument out of its range.

    References:
        Generating sentences from a continuous space (Bowman et al., 2016), arXiv:1511.06349.

    Example:
        >>> from pyro_vae.models.word_networks import WordDecoder
        >>> Sentence(WordDecoder(9, hidden=4, embedding=4), 6).expand((5,)).sample().shape
        torch.Size([5, 6])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    pads_behind_its_end = True  # a step is no word there: whoever counts words asks

    def __init__(
        self,
        net: nn.Module,
        steps: int,
        context: Tensor | None = None,
        *,
        temperature: float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        self.net: Any = net
        self.context = context
        self.temperature = number("temperature", temperature, "(0, inf)")
        batch = torch.Size() if context is None else context.shape[:-1]
        event = torch.Size((positive("steps", steps),))
        super().__init__(batch, event, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: Any = None) -> Any:
        """Return the same distribution for another batch: the context is broadcast when used."""
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(vars(self))
        new._batch_shape = torch.Size(batch_shape)
        return new

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Words of the vocabulary up to <eos>, and <pad> behind it."""
        return constraints.independent(_Word(self.net.words), 1)

    @typed
    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log probability of sentences (*, T), shape (*), nats.

        Raises:
            DataError: Something else than whole numbers of T steps; where arguments are validated,
                a word that stands where it may not (elsewhere that sentence has probability 0).
        """
        if value.shape[-1:] != self.event_shape or value.is_floating_point():
            raise DataError(
                f"got {shown(value)}, expected whole numbers of shape (*, {self.event_shape[0]})"
            )
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        right = self.support.check(value)
        if self._validate_args and not bool(right.all()):
            raise DataError(f"value: got {value[~right][0].tolist()}, expected {self.support}")
        known = value.long().clamp(0, self.net.words - 1).expand(*batch, -1)
        words = known.reshape(-1, known.shape[-1])
        logits = self._tempered(self.net(words, self._rows(batch)))
        costs = F.cross_entropy(
            logits.flatten(0, 1), words.flatten(), ignore_index=PAD, reduction="none"
        )
        log_prob = -costs.reshape(known.shape).sum(-1)
        return log_prob.masked_fill(~right, -math.inf)

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008
        """Return sentences, shape (sample, * | T)."""
        return self._written(torch.Size(sample_shape), _drawn)

    def greedy(self) -> Tensor:
        """Return the sentences that take the likeliest word at each step, shape (* | T)."""
        return self._written(torch.Size(), lambda logits: logits.argmax(-1))

    @torch.no_grad()
    def _written(self, sample_shape: torch.Size, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """Write sentences word by word."""
        shape = self._extended_shape(sample_shape)
        rows = math.prod(shape[:-1])
        context = self._rows(shape[:-1])
        state = self.net.begin(context, rows)
        word = torch.full((rows,), START, device=state.device)
        words = [word]
        while len(words) <= shape[-1]:
            state, logits = self.net.advance(state, word, context)
            ended = (word == END) | (word == PAD)
            word = torch.where(ended, PAD, choose(self._tempered(logits)))
            words.append(word)
            if bool(((word == END) | ended).all()):
                break
        written = torch.stack(words[1:], -1)
        return F.pad(written, (0, shape[-1] - written.shape[-1]), value=PAD).reshape(shape)

    def _rows(self, batch: torch.Size) -> Tensor | None:
        """Return the context of each sentence, (N, Z)."""
        if self.context is None:
            return None
        given = self.context.expand(*batch, -1)
        return given.reshape(-1, given.shape[-1])

    def _tempered(self, logits: Tensor) -> Tensor:
        if self.temperature == 1:
            return logits
        # The largest is 0: no temperature makes it infinite.
        return (logits - logits.amax(-1, keepdim=True)) / self.temperature


def _drawn(logits: Tensor) -> Tensor:
    return torch.multinomial(logits.softmax(-1), 1).squeeze(-1)
