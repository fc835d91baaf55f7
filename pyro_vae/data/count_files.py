"""Documents of a user's own file. Shapes: N documents, V words."""

import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from pyro_vae.arguments import counted
from pyro_vae.data.corpora import Corpus
from pyro_vae.data.splits import EVERY, by_turns
from pyro_vae.errors import DataError, PyroVaeError
from pyro_vae.extras import extra

_UNREADABLE = (
    *(OSError, ValueError, TypeError, EOFError, RuntimeError, BadZipFile, zlib.error),
    *(KeyError, AttributeError, OverflowError),  # a part lacks, or is another thing
)
_MOST_WORDS = 10**7  # that are numbered; each costs 60 bytes


def read_counts(path: Path, vocabulary: Path | None = None) -> Corpus:
    """Return the documents of an ``.npz`` file: every 20th validates, and the tenth after it tests.

    Documents without words are left out, and counted by split.

    Arguments:
        path: ``scipy.sparse.save_npz`` wrote it, in any format (the rows then stay sparse), or it
            has one dense array ``x``; counts ``(N, V)``.
        vocabulary: a text file of the V words, one a line; None numbers them.

    Raises:
        DataError: A file is missing or no such thing, counts that are not whole or below 0, another
            number of words, one that comes twice, or too few documents.
    """
    rows = _rows(path)
    return divided(path, rows, _words(vocabulary, rows.shape[1], path))


def read_whole(path: Path, vocabulary: Path | None = None) -> Corpus:
    """Return the documents of a file undivided, to judge a model by: each split has all of them.

    Arguments:
        path: As for ``read_counts``.
        vocabulary: As for ``read_counts``.

    Raises:
        DataError: As for ``read_counts``; no document has words.
    """
    rows = _rows(path)
    words = _words(vocabulary, rows.shape[1], path)
    full = _with_words(rows)
    if not full.any():
        raise DataError(f"{path}: got no document with words, expected some to judge by")
    kept = rows[full]
    gone = {"test": int((~full).sum())}
    return Corpus(path.stem, kept, kept, kept, vocabulary=words, dropped=gone)


def _with_words(rows: Any) -> np.ndarray:
    """Return which documents have words, ``(N,)``."""
    return torch.as_tensor(rows.sum(1)).flatten().numpy() > 0


def divided(path: Path, rows: Any, words: tuple[str, ...]) -> Corpus:
    """Return documents in splits: every 20th validates, and the tenth after it tests.

    Arguments:
        path: file of the documents.
        rows: counts ``(N, V)``, a tensor or sparse rows of scipy.
        words: the V words.

    Raises:
        DataError: Too few documents have words.
    """
    splits = by_turns(rows.shape[0])
    full = _with_words(rows)
    parts: dict[str, Any] = {split: rows[chosen & full] for split, chosen in splits.items()}
    if not all(part.shape[0] for part in parts.values()):
        raise DataError(
            f"{path}: got {counted(int(full.sum()), 'document')} with words, expected some to "
            f"train on, to validate and to test with: at least {EVERY}"
        )
    gone = {split: int((chosen & ~full).sum()) for split, chosen in splits.items()}
    return Corpus(path.stem, **parts, vocabulary=words, dropped=gone)


def _rows(path: Path) -> Any:
    """Return the counts of a file, a tensor or compressed rows of scipy."""
    with sound_file(path):
        with open(path, "rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, Mapping):
                raise DataError(f"{path}: got one array alone, expected an .npz file")
            if "x" in file or "format" not in file:
                names = ["x"] if "x" in file else list(file)  # one alone has any name
                return _dense(path, {name: file[name] for name in names})
        found = load_sparse(path)
        found.data = _counts(path, found.data)
        rows = found.tocsr()
        rows.sum_duplicates()
        return rows


def load_sparse(path: Path) -> Any:
    """Return what ``scipy.sparse.save_npz`` wrote, each of its places within the matrix.

    Raises:
        ConfigError: scipy is not installed.
        ValueError: A place is not; scipy would write beside the memory.
    """
    with extra("data", f"{path}: such a file"):
        from scipy import sparse  # scikit-learn brings it, and only such files need it

    found = sparse.load_npz(path)
    if hasattr(found, "check_format"):
        found.check_format(full_check=True)
    return found


@contextmanager
def sound_file(path: Path) -> Iterator[None]:
    """Say of a file which reading fails inside that it is not sound.

    Raises:
        DataError: Names the file.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except PyroVaeError:
        raise
    except MemoryError:
        raise DataError(f"{path}: it claims more numbers than the memory holds") from None
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if not _starts_well(path):
            reason = "another kind of file has this name; write it by np.savez or np.save"
        raise DataError(f"{path}: not a sound {path.suffix} file ({reason})") from None


def _starts_well(path: Path) -> bool:
    """Return whether a file of NumPy's begins as such."""
    start = {".npz": b"PK", ".npy": b"\x93NUMPY"}.get(path.suffix)
    if start is None or not path.is_file():
        return True
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _dense(path: Path, arrays: dict[str, np.ndarray]) -> torch.Tensor:
    shapes = {name: value.shape for name, value in arrays.items()}
    if len(shapes) != 1 or not all(value.ndim == 2 and value.size for value in arrays.values()):
        raise DataError(
            f"{path}: got arrays of shape {shapes}, expected x or one array, counts (N, V), or "
            "what scipy.sparse.save_npz writes"
        )
    return torch.from_numpy(_counts(path, next(iter(arrays.values()))))


def _counts(path: Path, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "iufb":
        raise DataError(f"{path}: got values of type {values.dtype}, expected counts")
    wrong = ~(np.isfinite(values) & (values >= 0) & (values == np.floor(values)))
    if wrong.any():
        raise DataError(f"{path}: got {values[wrong].flat[0]}, expected whole counts from 0 up")
    return values.astype(np.float32)


def _words(path: Path | None, count: int, data: Path) -> tuple[str, ...]:
    if path is None and count > _MOST_WORDS:
        raise DataError(f"{data}: got {counted(count, 'word')}, expected a vocabulary of so many")
    if path is None:
        return tuple(map(str, range(count)))
    words = read_vocabulary(path)
    if len(words) != count:
        raise DataError(
            f"{path}: got {counted(len(words), 'word')}, expected {count}, one a line, as the "
            "counts have"
        )
    return words


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Return the words of a text file, one a line, in the order of the columns of counts.

    Raises:
        DataError: The file is missing or no text, or a word comes twice.
    """
    try:
        # Not splitlines, which also breaks at what may stand in a word.
        lines = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None
    words = tuple(line.strip(" \t") for line in lines)
    if len(set(words)) < len(words):
        twice, _ = Counter(words).most_common(1)[0]
        raise DataError(f"{path}: got {twice!r} twice, expected each word once, one a line")
    return words


def halves(rows: Any, seed: int) -> tuple[Any, Any]:
    """Return two parts of each document, a coin for each word; documents in which one is empty go.

    Arguments:
        rows: counts ``(N, V)``, a tensor or sparse rows of scipy.
        seed: of the coins.
    """
    coins = np.random.default_rng(seed)
    if isinstance(rows, torch.Tensor):
        first: Any = torch.from_numpy(coins.binomial(rows.long().numpy(), 0.5)).to(rows)
    else:
        first = rows.copy()
        first.data = coins.binomial(rows.data.astype(np.int64), 0.5).astype(rows.dtype)
    second = rows - first
    sums = [torch.as_tensor(part.sum(1)).flatten().numpy() for part in (first, second)]
    both = (sums[0] > 0) & (sums[1] > 0)
    return first[both], second[both]
