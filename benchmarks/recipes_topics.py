"""Topic models on 20 Newsgroups: ``python benchmarks/reproduce.py prodlda_20news``."""

import argparse
import time
from typing import Any

import torch
from arms import adam, train
from results import Result
from torch import Tensor

import pyro_vae as pv

NUM_TOPICS = 50
MIAO = "Miao et al. (2016), arXiv:1511.06038"
SRIVASTAVA = "Srivastava and Sutton (2017), arXiv:1703.01488"


def nvdm_20news(name: str, args: argparse.Namespace) -> Result:
    """NVDM: the per-document perplexity of the bound, as in print, and the tighter one beside."""
    corpus = pv.data.load("20news")
    torch.manual_seed(args.seed)
    program = pv.models.NVDM(len(corpus.vocabulary), NUM_TOPICS)
    options = {"valid": corpus.valid, "patience": 20, "batch_size": 64, "lr": 5e-4}
    run = _trained(name, args, program, corpus, epochs=120, **options)
    test = corpus.test[: args.rows]
    torch.manual_seed(args.seed)
    bound = pv.perplexity(program, test)
    few = test[:1000]
    tight = pv.perplexity(program, few, num_particles=1000)
    details = {
        **_topics(program, corpus),
        "corpus_perplexity": bound.corpus,
        "first_1000_of_the_bound": pv.perplexity(program, few).per_document,
        "first_1000_by_importance_sampling": tight.per_document,
        "first_1000_by_importance_sampling_stderr": tight.per_document_stderr,
    }
    return _result(
        name,
        args,
        run,
        (bound.per_document, bound.per_document_stderr),
        details,
        unit="perplexity per document, of the bound",
        estimator=f"exp of the mean of -ELBO / words at one draw, {len(test)} test documents",
        published=f"836 ({MIAO})",
        target="<= 880",
    )


def prodlda_20news(name: str, args: argparse.Namespace) -> Result:
    """ProdLDA: mean NPMI of 50 topics, with their diversity beside it."""
    corpus = pv.data.load("20news")
    torch.manual_seed(args.seed)
    program = pv.models.ProdLDA(len(corpus.vocabulary), NUM_TOPICS)
    # Its topics go on getting better where the bound on held-out documents no longer does.
    options = {"optimizer": adam(2e-3, betas=(0.99, 0.999)), "batch_size": 200}
    run = _trained(name, args, program, corpus, epochs=200, schedule=False, **options)
    topics = _topics(program, corpus)
    weights = pv.topics(_Weights(program.decoder.experts.weight.T), corpus.train)
    bound = pv.perplexity(program, corpus.test[: args.rows])
    return _result(
        name,
        args,
        run,
        (weights.coherence, weights.stderr),
        {
            "diversity_by_weights": weights.diversity,
            **{f"{key}_normalised": value for key, value in topics.items()},
            "perplexity_per_document": bound.per_document,
        },
        unit="NPMI of ten top words by raw weights, mean of 50 topics (by `pv.topics`, of "
        "documents of one topic: {npmi:.3f}, diversity {diversity:.2f})".format(**topics),
        estimator="top words by the decoder's weights, as in the paper's code; pv.topics takes "
        "those of a document of one topic, normalised (details); co-occurrence in the training "
        "documents; the standard error is over topics",
        published=f".24 with another reference corpus ({SRIVASTAVA})",
        target=">= .22",
    )


def etm_20news_etm(name: str, args: argparse.Namespace) -> Result:
    """ETM: document completion, half of each test document from the other."""
    corpus = pv.data.load("20news_etm")
    if corpus.halves is None:
        raise SystemExit("the file has no halves of test documents")
    torch.manual_seed(args.seed)
    program = pv.models.ETM(len(corpus.vocabulary), NUM_TOPICS)
    options = {"optimizer": adam(5e-3, weight_decay=1.2e-6), "batch_size": 1000}
    run = _trained(name, args, program, corpus, epochs=150, schedule=False, **options)
    seen, held_out = (half[: args.rows] for half in corpus.halves)
    found = pv.completion(program, seen, held_out)
    unigram = _unigram(corpus.train, held_out)
    return _result(
        name,
        args,
        run,
        (found.per_document, found.per_document_stderr),
        {**_topics(program, corpus), "corpus_completion": found.corpus, "unigram": unigram},
        unit="perplexity per document of one half given the other",
        estimator=f"at the posterior mean given the first half, {len(held_out)} test documents",
        published="no figure for 20 Newsgroups (Dieng et al. (2020), arXiv:1907.04907)",
        target="below the unigram model's",
    )


class _Weights:
    """Topics by the weights of a product of experts, before batch normalisation."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights.detach()

    def topics(self) -> Tensor:
        return self.weights.softmax(-1)


def _trained(
    name: str,
    args: argparse.Namespace,
    program: Any,
    corpus: pv.data.Corpus,
    *,
    schedule: bool = True,
    **options: Any,
) -> Any:
    shape = {"lr_schedule": pv.schedules.cosine(1.0, 0.02)} if schedule else {}
    return train(
        name,
        args,
        program,
        corpus.train,
        objective=pv.AnalyticELBO(),
        checkpoint_every=5,
        **shape,
        **options,
    )


def _topics(program: Any, corpus: pv.data.Corpus) -> dict[str, Any]:
    """Return coherence by the training and by the test documents, and diversity."""
    found = pv.topics(program, corpus.train, vocabulary=corpus.vocabulary)
    return {
        "npmi": found.coherence,
        "npmi_stderr": found.stderr,
        "npmi_of_test_documents": pv.topics(program, corpus.test).coherence,
        "diversity": found.diversity,
        "top_words": [" ".join(words) for words in found.words],
    }


def completion_costs(logits: Tensor, held_out: Tensor) -> Tensor:
    """Return what the words of the held-out parts cost, nats per word, (N,): as `pv.completion`."""
    log_p = logits.double().log_softmax(-1)
    return -(held_out * log_p).sum(-1) / held_out.sum(-1)


def _unigram(train: Tensor, held_out: Tensor) -> float:
    """Return the per-document perplexity of the training words' frequencies."""
    log_p = (train.sum(0) / train.sum()).clamp(min=1e-12).log()
    cost = -(held_out * log_p).sum(-1) / held_out.sum(-1)
    return float(cost.mean().exp())


def _result(
    name: str,
    args: argparse.Namespace,
    run: Any,
    value: tuple[float, float],
    details: dict[str, Any],
    **texts: str,
) -> Result:
    return Result(
        name=name,
        value=value[0],
        stderr=value[1],
        data=name.split("_", 1)[1],
        binarization="none: counts of words, no multinomial coefficient",
        seed=args.seed,
        seconds=float(run.history["seconds"].sum()),
        details={
            "epochs": len(run.history["epoch"]),
            "cpu_seconds_of_this_process": time.process_time(),
            **details,
        },
        **texts,
    )


EXPERIMENTS = {
    "nvdm_20news": nvdm_20news,
    "prodlda_20news": prodlda_20news,
    "etm_20news_etm": etm_20news_etm,
}
