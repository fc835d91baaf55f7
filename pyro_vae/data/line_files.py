"""Sentences of a user's own file of text. Shapes: N sentences, T words of the longest."""

from itertools import compress
from pathlib import Path

from pyro_vae.arguments import counted
from pyro_vae.data.sequence_sets import SequenceSets
from pyro_vae.data.splits import EVERY, by_turns
from pyro_vae.data.vocabulary import Vocabulary
from pyro_vae.errors import DataError
from pyro_vae.words import SPECIAL


def read_lines(path: Path, words: Path | None = None, *, whole: bool = False) -> SequenceSets:
    """Return the sentences of a file, one a line: every 20th validates, the tenth after it tests.

    Lines without text are left out; the others are cut at 25 words.

    Arguments:
        path: a text file.
        words: a text file of the words, one a line; None: those that training lines have three
            times.
        whole: give each split all lines, to judge a model by.

    Raises:
        DataError: A file is missing or no text, or there are too few lines or words.
    """
    lines = [line for line in _text(path).split("\n") if line.strip()]
    if len(lines) < EVERY:
        raise DataError(
            f"{path}: got {counted(len(lines), 'line')} with text, expected at least {EVERY}"
        )
    turns = by_turns(len(lines)).items()
    parts = {split: lines if whole else list(compress(lines, chosen)) for split, chosen in turns}
    vocabulary = Vocabulary.of(parts["train"]) if words is None else read_words(words)
    numbers = {split: vocabulary.numbers(part) for split, part in parts.items()}
    return SequenceSets(path.stem, **numbers, vocabulary=vocabulary)


def read_words(path: Path) -> Vocabulary:
    """Return the words of a text file, one a line, behind the special ones, which it may name too.

    Raises:
        ConfigError: A word comes twice.
        DataError: The file is missing or no text, or has no words.
    """
    words = tuple(_text(path).split())
    words = words if words[: len(SPECIAL)] == SPECIAL else (*SPECIAL, *words)
    if len(words) == len(SPECIAL):
        raise DataError(f"{path}: got no words, expected one a line")
    return Vocabulary(words)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None
