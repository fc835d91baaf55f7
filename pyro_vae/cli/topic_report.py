"""``pyro-vae topics``."""

from pathlib import Path
from typing import Any

import torch

import pyro_vae as pv
from pyro_vae.arguments import positive
from pyro_vae.cli.answer_files import WEIGHTS, write_figures, write_picture
from pyro_vae.cli.datasets import kind_of, load_data
from pyro_vae.cli.report import say
from pyro_vae.cli.report_file import write_report
from pyro_vae.cli.runs import NAME_IT, check_words, open_run
from pyro_vae.cli.training_file import tell_of_changed_rows
from pyro_vae.data.count_files import halves
from pyro_vae.errors import ConfigError

_FEWEST, _SHOWN = 5, 2000  # documents in the plane


def topics(
    run: str,
    data: str | None = None,
    vocab: str | None = None,
    rows: int | None = None,
    words: int = 10,
    num_particles: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Show the topics of a run, and judge them: coherence, diversity and perplexities.

    Written besides to topics.json and topics.png, and documents.png where the documents have
    labels: some of them in the plane. Coherence is NPMI by the training documents;
    completion predicts a half of each test document from the other. A file of other documents is
    judged by all of them, coherence too, and has its name in those of the files written.

    Arguments:
        run: run folder of a topic model.
        data: other documents to judge by; null are those that it was trained on.
        vocab: text file of their words, which must be those of the training; null takes these.
        rows: only so many test documents from the start; null is all.
        words: top words of each topic, at least 2.
        num_particles: importance samples per document; null takes the bound.
        seed: of the estimates, and of the halves where the data have none.
        device: auto, cpu, cuda or cuda:N.
    """
    program, settings = open_run(run, device, data=data, vocab=vocab)
    other = settings["other"]
    if kind_of(settings["model"]) != "documents":
        raise ConfigError(f"{run}: got a {settings['model']}, expected a topic model")
    loaded = load_data(settings, whole=other)
    check_words(Path(run), loaded.words)
    tell_of_changed_rows(settings, NAME_IT)
    test = loaded.rows("test", None if rows is None else positive("rows", rows))
    vocabulary = loaded.source.vocabulary
    found = pv.topics(program, loaded.rows("train"), vocabulary=vocabulary, num_words=words)
    torch.manual_seed(seed)
    judged = pv.perplexity(program, test, num_particles=num_particles)
    seen, held_out = loaded.source.halves or halves(test, seed)
    completed = pv.completion(program, seen[:rows], held_out[:rows])
    figures: dict[str, Any] = {
        "data": settings["data"],
        "documents": test.shape[0],
        "npmi": found.coherence,
        "npmi_stderr": found.stderr,
        "diversity": found.diversity,
        "estimator": "the bound"
        if num_particles is None
        else f"{num_particles} importance samples",
        "perplexity_per_document": judged.per_document,
        "perplexity_per_document_stderr": judged.per_document_stderr,
        "perplexity_corpus": judged.corpus,
        "perplexity_corpus_stderr": judged.corpus_stderr,
        "completion_per_document": completed.per_document,
        "completion_per_document_stderr": completed.per_document_stderr,
        "completed_documents": seen[:rows].shape[0],
        "seed": seed,
        "npmi_of_topics": found.npmi.tolist(),
        "words": found.words,
    }
    end = f"_{loaded.source.name}" if other else ""
    path = Path(run) / f"topics{end}.json"
    known = {k: None if v != v else v for k, v in figures.items()}  # the error of one alone is NaN
    write_figures(path, known, weights := settings[WEIGHTS])
    with torch.no_grad():
        figure = pv.plots.topic_words(program.eval().topics(), vocabulary)
    write_picture(path.with_suffix(".png"), figure, weights)
    written = [path.with_suffix(".png").name]
    labels = loaded.source.labels.get("test")
    if labels is not None and test.shape[0] >= _FEWEST:
        with torch.no_grad():
            every = -(-test.shape[0] // _SHOWN)  # files are sorted by label
            shares = program.proportions(pv.encode(program, test[::every]))
        figure = pv.plots.documents(shares, labels[: test.shape[0] : every], seed=seed)
        write_picture(path.with_name(f"documents{end}.png"), figure, weights)
        written.append(f"documents{end}.png")
    write_report(Path(run))
    say(f"{found!r}\n\n{_table(figures)}\nwritten to {path}, {', '.join(written)}")


def _table(figures: dict[str, Any]) -> str:
    """Return the perplexities as a table a person reads."""
    heading = "{data}, {documents} test documents, perplexities by {estimator}".format(**figures)
    notes = {
        "perplexity_per_document": "each document counts alike",
        "perplexity_corpus": "each word counts alike",
        "completion_per_document": "half of {completed_documents} documents given the other",
    }
    lines = []
    for name, note in notes.items():
        number = f"{figures[name]:9.1f} ± {figures[f'{name}_stderr']:.1f}"
        lines.append(f"  {name.replace('_', ' '):<24}{number:<20}{note.format(**figures)}")
    rule = "─" * 78
    return "\n".join([heading, rule, *lines, rule])
