"""LDA by collapsed Gibbs sampling, the rival of ETM: ``python benchmarks/reproduce.py``.

Its sampler is tomotopy's, of the extra ``peers``. Shapes: N documents, V words, K topics.
"""

import argparse
import time
from typing import Any

import torch
from recipes_topics import NUM_TOPICS, completion_costs
from results import Result
from torch import Tensor

import pyro_vae as pv

ITERATIONS, CHAINS, INFERENCE = 1000, 10, 100


def lda_20news_etm(name: str, args: argparse.Namespace) -> Result:
    """LDA on the documents of ETM: the same halves, the same estimator, document by document."""
    corpus = pv.data.load("20news_etm")
    if corpus.halves is None:
        raise SystemExit("the file has no halves of test documents")
    seen, held_out = (half[: args.rows] for half in corpus.halves)
    start = time.perf_counter()
    model, beta = _trained(corpus.train, args)
    shares = torch.stack([_shares(model, seen) for _ in range(CHAINS)]).mean(0)
    seconds = time.perf_counter() - start
    ours = pv.load(args.out / "etm_20news_etm", device=args.device)
    with torch.no_grad():
        etm = completion_costs(ours.eval().decoder(pv.encode(ours, seen)), held_out)
    lda = completion_costs((shares @ beta).log(), held_out)
    gain = lda - etm  # nats per word that ETM saves
    count = len(held_out)
    perplexity = float(lda.mean().exp())
    return Result(
        name=name,
        value=perplexity,
        stderr=perplexity * float(lda.std()) / count**0.5,
        unit="perplexity per document of one half given the other",
        estimator=f"tomotopy's collapsed Gibbs sampler with its own Dirichlet of the shares; "
        f"topics of the last of {args.epochs or ITERATIONS} sweeps; shares given the first half: "
        f"the mean of {CHAINS} chains of {INFERENCE} sweeps; {count} test documents",
        published="no figure for 20 Newsgroups",
        target="above etm_20news_etm",
        data="20news_etm",
        binarization="none: counts of words, no multinomial coefficient",
        seed=args.seed,
        seconds=seconds,
        details={
            "etm": float(etm.mean().exp()),
            "nats_per_word_that_etm_saves": float(gain.mean()),
            "nats_per_word_that_etm_saves_stderr": float(gain.std()) / count**0.5,
            **_topics(beta, corpus),
            "cpu_seconds_of_this_process": time.process_time(),
        },
    )


def _trained(counts: Tensor, args: argparse.Namespace) -> tuple[Any, Tensor]:
    """Return a trained sampler, and the mean of its topics given its last state, (K, V)."""
    import tomotopy

    model = tomotopy.LDAModel(k=NUM_TOPICS, seed=args.seed)
    for row in counts:
        model.add_doc(_words(row))
    model.train(args.epochs or ITERATIONS, workers=1)
    assigned = torch.zeros(NUM_TOPICS, counts.shape[1], dtype=torch.float64)
    names = torch.tensor([int(word) for word in model.used_vocabs])
    for document in model.docs:
        topics, words = (
            torch.tensor(part, dtype=torch.long) for part in (document.topics, document.words)
        )
        place = topics, names[words]
        assigned.index_put_(place, torch.ones(1, dtype=torch.float64), accumulate=True)
    assigned += model.eta
    return model, assigned / assigned.sum(-1, keepdim=True)


def _shares(model: Any, counts: Tensor) -> Tensor:
    """Return the shares of new documents after one run of the sampler, (N, K)."""
    documents = [model.make_doc(_words(row)) for row in counts]
    shares, _ = model.infer(documents, iterations=INFERENCE, workers=1)
    return torch.tensor([list(each) for each in shares], dtype=torch.float64)


def _words(counts: Tensor) -> list[str]:
    """Return a document as words, which are the numbers of their columns."""
    present = counts.nonzero()[:, 0]
    return [str(word) for word in present.repeat_interleave(counts[present].long()).tolist()]


class _Fixed:
    """Topics as `pv.topics` asks for them."""

    def __init__(self, beta: Tensor) -> None:
        self.beta = beta

    def topics(self) -> Tensor:
        return self.beta


def _topics(beta: Tensor, corpus: pv.data.Corpus) -> dict[str, Any]:
    found = pv.topics(_Fixed(beta), corpus.train, vocabulary=corpus.vocabulary)
    return {
        "npmi": found.coherence,
        "npmi_stderr": found.stderr,
        "diversity": found.diversity,
        "top_words": [" ".join(words) for words in found.words],
    }


EXPERIMENTS = {"lda_20news_etm": lda_20news_etm}
