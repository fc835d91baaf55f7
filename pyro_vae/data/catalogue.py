"""The data sets by name, and their binarizations."""

import os
from typing import Any, Literal, overload

import torch
from torch import Tensor

from pyro_vae.arguments import integer, typed
from pyro_vae.data.corpora import CORPORA, Corpus, read_corpus
from pyro_vae.data.reuters import REUTERS, read_reuters
from pyro_vae.data.sequence_sets import SequenceSets, read_captions, read_rolls
from pyro_vae.data.sources import locate
from pyro_vae.data.splits import Splits, digits, mnist_static, train_and_test
from pyro_vae.errors import DataError

DOCUMENTS = (*CORPORA, REUTERS)
NAMES = ("digits", "mnist", "mnist_static", "fashion_mnist", *DOCUMENTS, "jsb", "coco_captions")
BINARISATIONS = ("static", "dynamic", "threshold")


@overload
def load(  # type: ignore[overload-overlap]
    name: Literal["20news", "20news_etm", "reuters"], *, root: str | os.PathLike[str] | None = None
) -> Corpus: ...


@overload
def load(  # type: ignore[overload-overlap]
    name: Literal["jsb", "coco_captions"], *, root: str | os.PathLike[str] | None = None
) -> SequenceSets: ...


@overload
def load(
    name: str,
    *,
    binarization: str | None = None,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
) -> Splits: ...


@typed
def load(
    name: str,
    *,
    binarization: str | None = None,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
) -> Any:
    """Return a data set by name; the global random state is neither used nor changed.

    ========================  ===================  ========================================
    name                      train, valid, test   splits
    ========================  ===================  ========================================
    ``digits``                1297, 250, 250       scikit-learn's 8 x 8 digits, shuffled
    ``mnist``                 55000, 5000, 10000   validation is the end of the training set
    ``fashion_mnist``         55000, 5000, 10000   the same
    ``mnist_static``          50000, 10000, 10000  the published binary file, test shuffled
    ``20news``                10705, 563, 7505     2,000 words; every 20th document validates
    ``20news_etm``            11214, 100, 7531     3,072 words, test documents also in halves
    ``reuters``               356, 19, 20          4,258 words; ``pip install 'pyro-vae[reuters]'``
    ``jsb``                   229, 76, 77          piano rolls of chorales, 88 keys a step
    ``coco_captions``         9000, 1000, 10000    words of captions; the end of training validates
    ========================  ===================  ========================================

    The last two are sequences with lengths (``SequenceSets``), the three before documents
    (``Corpus``), the others images (``Splits``).

    The shuffles are fixed: ``seed`` moves no datum from one split to another.
    Binarizations: ``"static"`` is one Bernoulli draw with the grey levels as probabilities, fixed
    by ``seed`` (for ``mnist_static`` it is the published draw, which is another one, and the only
    one there); ``"dynamic"`` keeps the training split grey with ``transform`` drawing each batch
    afresh, and fixes validation and test as ``"static"`` does; ``"threshold"`` is grey >= 0.5.

    Arguments:
        name: as above.
        binarization: as above, or ``None`` for grey levels in [0, 1].
        seed: of the fixed draws.
        root: folder of ``<name>.npz``, in place of ``$PYRO_VAE_DATA`` and of the cache.

    Raises:
        DataError: unknown name or binarization, file unusable, or data not to be had.

    References:
        | On the quantitative analysis of deep belief networks (Salakhutdinov and Murray, 2008)
        | The neural autoregressive distribution estimator (Larochelle and Murray, 2011)
        | Importance weighted autoencoders (Burda et al., 2015), arXiv:1509.00519
        | Neural variational inference for text processing (Miao et al., 2016), arXiv:1511.06038
        | Topic modeling in embedding spaces (Dieng et al., 2020), arXiv:1907.04907
        | Modeling temporal dependencies in high-dimensional sequences (Boulanger-Lewandowski et
          al., 2012), arXiv:1206.6392

    Example:
        >>> load("digits", binarization="threshold")
        Splits('digits', train=1297, valid=250, test=250, (1, 8, 8), binarization='threshold')
    """
    integer("seed", seed, 0)
    if name not in NAMES:
        raise DataError(f"unknown data set {name!r}; choose one of {', '.join(NAMES)}")
    if binarization is not None and binarization not in BINARISATIONS:
        raise DataError(
            f"unknown binarization {binarization!r}; choose None or {', '.join(BINARISATIONS)}"
        )
    if name in DOCUMENTS:
        if binarization is not None:
            raise DataError(f"{name} has counts of words, got binarization={binarization!r}")
        if name == REUTERS:
            return read_reuters(root)
        return read_corpus(name, locate(CORPORA[name][0], root))
    if name in ("jsb", "coco_captions"):
        if binarization is not None:
            raise DataError(f"{name} has sequences, got binarization={binarization!r}")
        if name == "jsb":
            return read_rolls(name, locate("jsb_chorales", root))
        return read_captions(
            name, *(locate(f"{name}.{s}", root, ".txt.gz") for s in ("train", "test"))
        )
    if name == "mnist_static":
        if binarization in ("dynamic", "threshold"):
            raise DataError(
                f"mnist_static is binary as published, got binarization={binarization!r}; "
                "leave it out, or load 'mnist'"
            )
        x, labels, shape = mnist_static(locate(name, root))
        binarization = "static"
    else:
        grey, labels, shape = digits() if name == "digits" else train_and_test(locate(name, root))
        x = _binarise(grey, binarization, seed)
    return Splits(
        name,
        x["train"],
        x["valid"],
        x["test"],
        shape,
        labels=labels,
        binarization=binarization,
        transform=torch.bernoulli if binarization == "dynamic" else None,
        seed=seed,
    )


def _binarise(grey: dict[str, Tensor], binarization: str | None, seed: int) -> dict[str, Tensor]:
    if binarization is None:
        return grey
    if binarization == "threshold":
        return {split: (x >= 0.5).float() for split, x in grey.items()}
    generator = torch.Generator().manual_seed(seed)
    # In this order, so that static and dynamic share validation and test draws.
    drawn = {s: torch.bernoulli(grey[s], generator=generator) for s in ("test", "valid")}
    if binarization == "dynamic":
        return {"train": grey["train"], **drawn}
    return {"train": torch.bernoulli(grey["train"], generator=generator), **drawn}
