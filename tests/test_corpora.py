"""Corpora from files of sparse counts."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

import pyro_vae as pv
from pyro_vae.data.corpora import CORPORA
from pyro_vae.data.count_files import halves
from pyro_vae.errors import DataError

REAL = Path(os.environ.get("PYRO_VAE_DATA", "nowhere"))


def sparse(rows):
    """Return rows of {column: count} as the arrays of a file."""
    sizes = [len(row) for row in rows]
    return {
        "indptr": np.cumsum([0, *sizes]).astype(np.int32),
        "indices": np.array([i for row in rows for i in row], np.uint16),
        "counts": np.array([n for row in rows for n in row.values()], np.uint16),
    }


def written(folder, **changes):
    """Write a file of 42 and 3 documents over 4 words; the last test document is empty."""
    train = [{i % 4: i + 1} for i in range(41)] + [{0: 2, 3: 500}]
    parts = {"train": sparse(train), "test": sparse([{1: 1}, {2: 2, 0: 1}, {}])}
    arrays = {
        f"{split}_{key}": value for split, part in parts.items() for key, value in part.items()
    }
    arrays |= {"vocab": np.array(["a", "b", "c", "d"])}
    arrays |= {"train_label": np.arange(42, dtype=np.uint8), "test_label": np.array([7, 8, 9])}
    np.savez(folder / "20news_2000.npz", **{**arrays, **changes})
    return folder


def test_documents_labels_and_words_stay_together(tmp_path):
    corpus = pv.data.load("20news", root=written(tmp_path))
    assert corpus.vocabulary == ("a", "b", "c", "d")
    assert corpus.train.shape == (40, 4) and corpus.train.dtype == torch.float32
    assert corpus.valid.tolist() == [[0, 0, 0, 20], [0, 0, 0, 40]]
    assert corpus.train[-1].tolist() == [2, 0, 0, 500]
    assert corpus.test.tolist() == [[0, 1, 0, 0], [1, 0, 2, 0]]
    assert corpus.labels["valid"].tolist() == [19, 39] and corpus.labels["test"].tolist() == [7, 8]
    assert corpus.labels["train"][-1] == 41 and corpus.dropped == {"train": 0, "test": 1}
    assert repr(corpus) == "Corpus('20news', train=40, valid=2, test=2, words=4, dropped=1)"


@pytest.mark.parametrize(
    "changes",
    [
        {"train_indices": np.full(43, 4, np.uint16)},
        {"train_indptr": np.arange(44, dtype=np.int32)[::-1].copy()},
        {"test_counts": np.array([1, 2, 0], np.uint16)},
        {"test_counts": np.array([1, 2], np.uint16)},
        {"test_label": np.array([1, 2])},
        {"vocab": np.arange(4)},
    ],
)
def test_a_file_that_is_no_corpus_is_named(tmp_path, changes):
    with pytest.raises(DataError, match=r"20news_2000\.npz"):
        pv.data.load("20news", root=written(tmp_path, **changes))


def test_a_corpus_has_no_binarization_and_no_download(tmp_path):
    with pytest.raises(DataError, match=r"counts of words.*'static'"):
        pv.data.load("20news", binarization="static", root=written(tmp_path))
    with pytest.raises(DataError, match=r"20news_etm\.npz.*PYRO_VAE_DATA"):
        pv.data.load("20news_etm", root=tmp_path)


@pytest.fixture
def reuters(tmp_path, monkeypatch):
    """A package of the name and the files of the real one, whose code must not run."""
    files = tmp_path / "lda" / "tests"
    files.mkdir(parents=True)
    (tmp_path / "lda" / "__init__.py").write_text("raise AssertionError")
    lines = [f"2 {i % 3}:{i + 1} 3:1" for i in range(40)] + ["0"]
    (files / "reuters.ldac").write_text("\n".join(lines))
    (files / "reuters.tokens").write_text("a\nb\nc\nd\n")
    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)
    monkeypatch.delitem(sys.modules, "lda", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return files


def test_a_corpus_comes_with_an_extra(reuters, tmp_path):
    corpus = pv.data.load("reuters")
    assert corpus.vocabulary == ("a", "b", "c", "d") and corpus.dropped["train"] == 1
    assert corpus.test.tolist() == [[10, 0, 0, 1], [0, 0, 30, 1]]
    assert corpus.valid.tolist() == [[0, 20, 0, 1], [40, 0, 0, 1]] and len(corpus.train) == 36
    (tmp_path / "own").mkdir()
    for file in reuters.iterdir():
        file.rename(tmp_path / "own" / file.name)
    assert torch.equal(pv.data.load("reuters", root=tmp_path / "own").train, corpus.train)
    with pytest.raises(DataError, match=r"no installed package lda.*pyro-vae\[reuters\]"):
        pv.data.load("reuters")


@pytest.mark.parametrize("line", ["1 4:1", "2 0:1", "1 0:0", "1 0:x", "1 -1:2", "2 0:1 0:2", ""])
def test_a_line_that_is_no_document_is_named(reuters, line):
    (reuters / "reuters.ldac").write_text(f"1 0:1\n{line}\n1 0:1")
    with pytest.raises(DataError, match=r"reuters\.ldac: got .* in line 2, expected the number"):
        pv.data.load("reuters")


def test_halves_of_documents_share_their_words():
    """Each word is in one of them, about as often in the first; sparse rows are as dense ones."""
    torch.manual_seed(0)
    rows = torch.poisson(torch.full((300, 6), 3.0))
    rows[:10] = torch.eye(10)[:, :6]  # a single word, or none: no halves
    first, second = halves(rows, 1)
    assert torch.equal(first + second, rows[10:]) and first.sum(-1).min() > 0 < second.sum(-1).min()
    total = rows[10:].sum()
    assert abs(first.sum() - total / 2) < 5 * (total / 4) ** 0.5  # false alarm 6e-7
    parts = [torch.from_numpy(part.toarray()) for part in halves(csr_matrix(rows.numpy()), 1)]
    assert torch.equal(sum(parts), rows[10:]) and min(p.sum(-1).min() for p in parts) > 0


@pytest.mark.data
@pytest.mark.skipif(
    not all((REAL / f"{stem}.npz").is_file() for stem, *_ in CORPORA.values()),
    reason="$PYRO_VAE_DATA has no 20news_2000.npz or 20news_etm.npz",
)
def test_the_real_corpora():
    news = pv.data.load("20news")
    assert len(news.train) + len(news.valid) == 11_268 and len(news.test) == 7505
    halves = pv.data.load("20news_etm")
    assert halves.halves is not None and torch.equal(halves.halves[0] > 0, halves.halves[0] >= 1)
    assert (halves.train.sum(-1) > 0).all() and halves.test.shape[1] == len(halves.vocabulary)
