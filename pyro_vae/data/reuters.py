"""Reuters news of 1996 and 1997, a small corpus that the wheel of the package ``lda`` holds.

Shapes: N documents, V words.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from pyro_vae.data.corpora import Corpus
from pyro_vae.data.count_files import divided
from pyro_vae.data.sources import folder_of
from pyro_vae.errors import DataError

REUTERS = "reuters"
_COUNTS, _WORDS = "reuters.ldac", "reuters.tokens"


def read_reuters(root: str | os.PathLike[str] | None) -> Corpus:
    """Return the documents; no code of the package is run.

    Arguments:
        root: folder of ``reuters.ldac`` and ``reuters.tokens``; None: ``$PYRO_VAE_DATA``. Where
            they do not lie there, they are those of the installed package.

    Raises:
        DataError: The files are not to be had, or are no such corpus.
    """
    path = _folder(root) / _COUNTS
    words = tuple(_text(path.with_name(_WORDS)).split())
    return divided(path, _counts(path, len(words)), words)


def _folder(root: str | os.PathLike[str] | None) -> Path:
    given = folder_of(root)
    if given is not None and os.path.lexists(given / _COUNTS):
        return given
    package = find_spec("lda")
    for place in package.submodule_search_locations or () if package else ():
        if (Path(place) / "tests" / _COUNTS).is_file():
            return Path(place) / "tests"
    raise DataError(
        f"{REUTERS}: got no {_COUNTS}, and no installed package lda that holds it; install the "
        "extra, pip install 'pyro-vae[reuters]'"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None


def _counts(path: Path, words: int) -> Tensor:
    """Return the rows of a file of lines ``M word:count ...``, M the pairs of the line, (N, V)."""
    lines = _text(path).splitlines()
    counts = torch.zeros(len(lines), words)
    for row, line in enumerate(lines):
        try:
            size, *pairs = line.split()
            found = {int(word): int(count) for word, count in (pair.split(":") for pair in pairs)}
        except ValueError:
            size, found = "-1", {}
        sound = size == str(len(found)) and all(
            0 <= word < words and count > 0 for word, count in found.items()
        )
        if not sound:
            raise DataError(
                f"{path}: got {line[:40]!r} in line {row + 1}, expected the number of pairs and "
                f"pairs word:count of {words} words"
            )
        counts[row, list(found)] = torch.tensor(list(found.values()), dtype=counts.dtype)
    return counts
