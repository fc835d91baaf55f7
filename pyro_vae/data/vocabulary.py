"""Sentences as numbers of words, and back. Shapes: N sentences, T words of the longest."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.arguments import positive, shown, typed
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.words import END, PAD, SPECIAL, UNKNOWN


class Vocabulary(tuple[str, ...]):
    """The words of sentences by number, behind the four that stand for no word.

    Lines are read in lower case; each run of letters and digits is a word, and so is each sign.

    Arguments:
        words: all words; the first are <pad>, <unk>, <bos> and <eos>.

    Raises:
        ConfigError: Other first words, or one that comes twice.

    Example:
        >>> words = Vocabulary.of(["A cat.", "a dog."], least=1)
        >>> words[4:]
        ('.', 'a', 'cat', 'dog')
        >>> words.text(words.numbers(["A bird sees a cat."])["x"])
        ['a <unk> <unk> a cat .']
    """

    __slots__ = ()

    @typed
    def __new__(cls, words: Sequence[str] = ()) -> "Vocabulary":
        new = super().__new__(cls, words)
        if new and new[: len(SPECIAL)] != SPECIAL:
            raise ConfigError(
                f"words: got {new[: len(SPECIAL)]} first, expected {SPECIAL}; Vocabulary.of(lines) "
                "makes one of text"
            )
        if len(set(new)) < len(new):
            (twice, _), *_ = Counter(new).most_common(1)
            raise ConfigError(f"words: got {twice!r} twice, expected each word once")
        return new

    @classmethod
    @typed
    def of(cls, lines: Sequence[str], *, least: int = 3) -> "Vocabulary":
        """Return the words that come at least so many times in some lines, in alphabetical order.

        Arguments:
            lines: sentences.
            least: how often a word must come to be known.

        Raises:
            DataError: No lines, or none with a word that comes so often.
        """
        counts = Counter(word for row in _words(lines) for word in row)
        least = positive("least", least)
        words = sorted(word for word, count in counts.items() if count >= least)
        if not words:
            raise DataError(
                f"lines: got {len(lines)} without a word that comes {least} times, expected some; "
                "lower least"
            )
        return cls((*SPECIAL, *words))

    @typed
    def numbers(self, lines: Sequence[str], *, longest: int = 25) -> dict[str, Tensor]:
        """Return sentences as ``{"x": ..., "lengths": ...}``, int64 (N, T) and (N).

        Each ends with <eos>; words that are not known are <unk>. A line without a word is a
        sentence of <eos> alone.

        Arguments:
            lines: sentences.
            longest: words beyond so many are cut off.

        Raises:
            DataError: No lines.
        """
        longest = positive("longest", longest)
        number = {word: index for index, word in enumerate(self)}
        rows = [
            [*(number.get(word, UNKNOWN) for word in row[:longest]), END] for row in _words(lines)
        ]
        steps = max(map(len, rows))
        return {
            "x": torch.tensor([row + [PAD] * (steps - len(row)) for row in rows]),
            "lengths": torch.tensor([len(row) for row in rows]),
        }

    @typed
    def text(self, x: Tensor) -> Any:
        """Return sentences (*, T) as text up to <eos>: a string, or lists of them, one per row.

        Raises:
            DataError: Something else than whole numbers, or one beyond the vocabulary.
        """
        if x.is_floating_point() or x.dtype == torch.bool or not x.dim():
            raise DataError(f"x: got {shown(x)}, expected numbers of words, whole numbers (*, T)")
        if x.numel() and not bool(((x >= 0) & (x < len(self))).all()):
            raise DataError(
                f"x: got numbers from {int(x.min())} to {int(x.max())}, expected those of "
                f"{len(self)} words"
            )
        if x.dim() > 1:
            return [self.text(row) for row in x]
        numbers = x.tolist()
        end = next((i for i, n in enumerate(numbers) if n in (PAD, END)), len(numbers))
        return " ".join(self[n] for n in numbers[:end])


def _words(lines: Sequence[str]) -> list[list[str]]:
    """Return the words of each line.

    Raises:
        DataError: No lines, or something else than text.
    """
    if isinstance(lines, str) or not isinstance(lines, Sequence):
        raise DataError(f"lines: got {shown(lines)}, expected a list of strings")
    if not lines:
        raise DataError("lines: got none, expected at least one sentence")
    for line in lines:
        if not isinstance(line, str):
            raise DataError(f"lines: got {shown(line)} among them, expected strings")
    return [re.findall(r"\w+|[^\w\s]", line.lower()) for line in lines]
