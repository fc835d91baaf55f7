"""Peak memory of training a topic model on sparse counts that would not fit as dense ones.

``OMP_NUM_THREADS=1 python benchmarks/sparse_documents.py`` writes its result. One epoch takes some
minutes; with ``--out FOLDER`` further epochs go on from its checkpoint.
"""

import argparse
import os
import resource
import time
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from results import Result

import pyro_vae as pv

WORDS_OF_A_DOCUMENT = 100


def documents(count: int, words: int, seed: int) -> scipy.sparse.csr_matrix:
    """Return counts of words with 100 different words in each document."""
    drawn = np.random.default_rng(seed)
    stride = words // WORDS_OF_A_DOCUMENT
    shape = (count, WORDS_OF_A_DOCUMENT)
    first = np.arange(WORDS_OF_A_DOCUMENT, dtype=np.int32) * stride
    columns = first + drawn.integers(stride, size=shape, dtype=np.int32)
    values = drawn.integers(1, 4, size=shape, dtype=np.int8).astype(np.float32)
    ends = np.arange(count + 1) * WORDS_OF_A_DOCUMENT
    return scipy.sparse.csr_matrix((values.ravel(), columns.ravel(), ends), (count, words))


def resident() -> float:
    """Return the resident size of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Train on all documents and write by how much the peak exceeds what holds them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=50_000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=None, help="run folder, to go on from")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    data = documents(args.documents, args.words, args.seed)
    program = pv.models.ProdLDA(args.words, 20, (50,))
    before, start = resident(), time.perf_counter()
    run = pv.fit(
        program,
        data,
        epochs=args.epochs,
        batch_size=200,
        lr=2e-3,
        seed=args.seed,
        device="cpu",
        compile="trace",
        out=args.out,
        resume=args.out is not None,
        checkpoint_every=1 if args.out else None,
        progress=False,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = Result(
        name="sparse_documents",
        value=peak - before,
        stderr=None,
        unit="MiB of peak memory of a fit beyond the data, the program and the libraries",
        estimator=(
            f"peak resident size of fit less the size before it; {args.documents} documents x "
            f"{args.words} words, {WORDS_OF_A_DOCUMENT} entries each, ProdLDA, batches of 200"
        ),
        published="",
        target="<= 2048",
        data="simulated counts",
        binarization="none",
        seed=args.seed,
        seconds=time.perf_counter() - start,
        details={
            "csr_mib": sum(a.nbytes for a in (data.data, data.indices, data.indptr)) / 2**20,
            "dense_mib": args.documents * args.words * 4 / 2**20,
            "peak_mib": peak,
            "epochs": args.epochs,
            "last_loss": float(run.history["loss"][-1]),
        },
    )
    print(result.write(), f"{result.value:.0f} MiB beyond the {before:.0f} before")


if __name__ == "__main__":
    main()
