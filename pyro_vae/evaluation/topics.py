"""How good topics are: their words, and how well documents are predicted.

Shapes: N documents, V words, K topics, T top words.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_vae.arguments import counted, positive, shown, typed
from pyro_vae.errors import ConfigError, DataError, ProgramError
from pyro_vae.evaluation.codes import encode
from pyro_vae.evaluation.likelihood import log_likelihood
from pyro_vae.evaluation.observed_distributions import observed_distributions
from pyro_vae.evaluation.standard_errors import mean_and_error, ratio_and_error
from pyro_vae.program.batches.batch import as_rows, chunks, dense
from pyro_vae.program.batches.sparse_rows import SparseRows
from pyro_vae.program.batches.streams import batches, is_stream, join_batches, single, tensors_of
from pyro_vae.program.bounds import elbo_given_globals
from pyro_vae.program.parameters.modules import evaluating
from pyro_vae.program.program import Program
from pyro_vae.threads import require_turn

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

_ROWS_PER_PASS = 512


@dataclass(frozen=True, repr=False)
class Topics:
    r"""The topics of a model, with what says how far to trust them.

    Arguments:
        words: The T most probable words of each topic, most probable first.
        indices: Their columns, ``(K, T)``.
        npmi: Coherence of each topic, ``(K,)``, in [-1, 1]; see ``topics``.
        diversity: Share of different words among the 25 most probable of all topics, in (0, 1].
    """

    words: list[list[str]]
    indices: Tensor
    npmi: Tensor
    diversity: float

    @property
    def coherence(self) -> float:
        """Mean NPMI over the topics."""
        return self.npmi.mean().item()

    @property
    def stderr(self) -> float:
        """Standard error of the mean over the topics; NaN for a single one."""
        return mean_and_error(self.npmi)[1].item()

    @typed
    def plot(self) -> "Figure":
        """Draw the coherence of each topic, best first; of many the fifteen best and worst."""
        from pyro_vae.plots import answers

        return answers.coherence(self)

    def __repr__(self) -> str:
        head = (
            f"Topics(num_topics={len(self.words)}, npmi={self.coherence:.3f} ± {self.stderr:.3f}, "
            f"diversity={self.diversity:.2f})"
        )
        order = self.npmi.argsort(descending=True).tolist()
        rows = [f"  {k:3d}  {self.npmi[k]:6.3f}  {' '.join(self.words[k])}" for k in order]
        return "\n".join([head, *rows])


@dataclass(frozen=True, repr=False)
class Perplexity:
    r"""Perplexities of documents, with standard errors over the documents (NaN of a single one).

    Arguments:
        per_document: :math:`\exp \frac1N \sum_d b_d / n_d`, b_d minus the bound in nats and n_d
            the words of document d: what the literature of neural topic models prints.
        per_document_stderr: Of it.
        corpus: :math:`\exp (\sum_d b_d / \sum_d n_d)`: long documents count for more.
        corpus_stderr: Of it, as of a ratio of means.
    """

    per_document: float
    per_document_stderr: float
    corpus: float
    corpus_stderr: float

    @typed
    def plot(self) -> "Figure":
        """Draw both perplexities with their errors."""
        from pyro_vae.plots import answers

        return answers.perplexity(self)

    def __repr__(self) -> str:
        return (
            f"Perplexity(per_document={self.per_document:.1f} ± {self.per_document_stderr:.1f}, "
            f"corpus={self.corpus:.1f} ± {self.corpus_stderr:.1f})"
        )


@typed
def topics(
    program: Any,
    reference: Any,
    *,
    vocabulary: Iterable[str] | None = None,
    num_words: int = 10,
) -> Topics:
    r"""Return the top words of each topic, their coherence and their diversity.

    .. math:: \mathrm{NPMI} = \frac{2}{T (T - 1)} \sum_{i < j}
        \frac{\log \frac{p_{ij}}{p_i p_j}}{-\log p_{ij}}

    p_i is the share of documents of ``reference`` that have word i, p_ij that of both; a pair that
    never meets counts -1, and one that all documents have 1. Figures of other references, windows
    or numbers of words cannot be compared.

    Arguments:
        program: Anything with ``topics()``: the distribution of words of each topic, ``(K, V)``.
        reference: Counts of words of the documents that are asked, ``(N, V)``, dense or sparse:
            name them with the figure (training documents, or others).
        vocabulary: The V words; None numbers them.
        num_words: T, at least 2.

    Raises:
        ConfigError: Fewer than two words.
        DataError: A reference or a vocabulary of another number of words, or what are no counts.
        ProgramError: The program has no topics, or some that are not finite.

    References:
        | Automatic evaluation of topic coherence (Newman et al., 2010)
        | Machine reading tea leaves (Lau et al., 2014)
        | Topic modeling in embedding spaces (Dieng et al., 2020), arXiv:1907.04907: diversity
    """
    require_turn("topics")
    if positive("num_words", num_words) < 2:
        raise ConfigError("num_words: got 1, expected at least 2: coherence is of pairs")
    source = _source(program)
    resting = evaluating(source) if isinstance(source, nn.Module) else nullcontext()
    with resting, torch.no_grad():
        beta = source.topics()
    _require_topics(beta)
    words, reference = beta.shape[1], _rows("reference", reference)
    if len(reference.shape) != 2 or reference.shape[1] != words or not len(reference):
        raise DataError(
            f"reference: got shape {tuple(reference.shape)}, expected counts (N, {words}) of the "
            "model's words"
        )
    if words < 2:
        raise ProgramError("topics: the model knows a single word; coherence is of pairs")
    names = [str(v) for v in (range(words) if vocabulary is None else vocabulary)]
    if len(names) != words:
        raise DataError(f"vocabulary: got {counted(len(names), 'word')}, expected {words}")
    top = beta.topk(min(num_words, words), dim=1).indices
    asked, places = top.unique(return_inverse=True)
    present = torch.cat(
        [piece[:, asked.to(piece.device)] > 0 for piece in _pieces("reference", reference)]
    ).to(beta.device)
    return Topics(
        words=[[names[i] for i in row] for row in top.tolist()],
        indices=top,
        npmi=torch.stack([_npmi(present[:, row].double()) for row in places]),
        diversity=_diversity(beta),
    )


@typed
def perplexity(program: Any, data: Any, *, num_particles: int | None = None) -> Perplexity:
    """Return the perplexities of documents, from the bound or from importance sampling.

    Global latents (the topics of `LDA`) are held at ten draws from the guide, what was learnt of
    them: their KL is in no document's figure, which does not depend on how many are asked.

    Arguments:
        program: A topic model: its observation is scored without a multinomial coefficient
            (``BagOfWords``).
        data: Counts of words, ``(N, V)``, dense or sparse, no row empty; or batches of them.
        num_particles: None takes the ELBO at one draw of the code, as the literature does: an
            upper bound of the perplexity. A number takes ``log_likelihood`` with as many: tighter.

    Raises:
        DataError: A document without words, or what are no whole counts (N, V).
        ProgramError: The program scores something else than the words as they stand.
    """
    require_turn("perplexity")
    counts = _rows("data", data)
    if len(counts.shape) != 2 or not len(counts):
        raise DataError(f"perplexity: got counts of shape {tuple(counts.shape)}, expected (N, V)")
    lengths = _lengths("perplexity", counts)
    empty = (lengths == 0).nonzero()[:, 0]
    if len(empty):
        raise DataError(f"perplexity: documents {empty[:5].tolist()} have no words; leave them out")
    _require_bags(program, counts)
    if num_particles is None:
        bound = elbo_given_globals(program, counts)
    else:
        bound = log_likelihood(
            program, counts, num_particles=positive("num_particles", num_particles)
        ).log_prob
    return _perplexity(-bound.double().cpu(), lengths.cpu())


@typed
def completion(program: Any, seen: Any, held_out: Any) -> Perplexity:
    r"""Return the perplexity of one part of each document, given the other.

    .. math:: \exp \frac1N \sum_d \frac{-\sum_v x'_{dv} \log p_v(\mu(x_d))}{n'_d}

    The code is at the mean of q(z | seen), and there is no KL: this is a prediction, and a bound on
    nothing.

    Arguments:
        program: A topic model with ``decoder(z)``: logits of words, ``(N, V)``.
        seen: Counts of the first parts, ``(N, V)``, dense or sparse.
        held_out: Counts of the second parts, ``(N, V)``, no row empty.

    Raises:
        DataError: Parts of different shapes, one without words, or what are no whole counts.
        ProgramError: The program has no decoder of codes.
    """
    require_turn("completion")
    seen, held_out = _rows("seen", seen), _rows("held_out", held_out)
    fit = seen.shape == held_out.shape and len(seen.shape) == 2 and len(seen)
    lengths = _lengths("held_out", held_out) if fit else torch.zeros(1)
    if not bool((lengths > 0).all()):
        raise DataError(
            f"got {tuple(seen.shape)} seen and {tuple(held_out.shape)} held out, expected two "
            "parts of the same documents, each with words"
        )
    decoder = getattr(_source(program), "decoder", None)
    if not callable(decoder):
        raise ProgramError("completion: the program has no decoder(z) that gives logits of words")
    codes = encode(program, seen)
    if not isinstance(codes, Tensor):
        raise ProgramError(f"completion: got the latents {sorted(codes)}, expected one code")
    scores = []
    with evaluating(Program.of(program)), torch.no_grad():
        parts = chunks(held_out, _ROWS_PER_PASS)
        for z, x in zip(codes.split(_ROWS_PER_PASS), parts, strict=True):
            logits = decoder(z)
            words = x.to(logits)
            terms = words * logits.log_softmax(-1)  # NaN of a word that cannot be and is not there
            scores.append(terms.masked_fill(words == 0, 0.0).sum(-1))
    return _perplexity(-torch.cat(scores).double().cpu(), lengths.cpu())


def _source(program: Any) -> Any:
    source = program.source if isinstance(program, Program) else program
    if not callable(getattr(source, "topics", None)):
        raise ProgramError(
            f"{type(source).__name__} has no topics(): expected a method that returns the "
            "distribution of words of each topic, (K, V)"
        )
    return source


def _require_topics(beta: Any) -> None:
    """Refuse what are no topics: top words can be taken of NaN, too."""
    if not isinstance(beta, Tensor) or beta.dim() != 2 or not len(beta):
        raise ProgramError(f"topics(): got {shown(beta)}, expected a tensor (K, V) of some topics")
    wrong = (~beta.isfinite()).any(1).nonzero().flatten().tolist()
    if wrong:
        raise ProgramError(
            f"topics: {len(wrong)} of {len(beta)} topics (first: {wrong[0]}) have words of a "
            "probability that is not finite; the training has diverged: train anew with a lower "
            "lr, or with clip_norm="
        )


def _rows(name: str, data: Any) -> Tensor | SparseRows:
    """Return documents as rows, those of a stream joined.

    Raises:
        DataError: No array, or a list, which verbs take for several arguments.
    """
    data = tensors_of(data)
    if is_stream(data):
        data = join_batches(
            [dense(as_rows(_alone(name, each))) for each in batches(data, _ROWS_PER_PASS)]
        )
    if hasattr(data, "dtype"):
        return as_rows(data)  # which knows what is wrong with an array
    raise DataError(
        f"{name}: got a {type(data).__name__}, expected one array of counts of words (N, V), dense "
        "or sparse: of rows np.stack(x), of batches torch.cat or an iterator, of a corpus one of "
        "its parts (corpus.test)"
    )


def _alone(name: str, batch: Any) -> Any:
    """Return the counts of a batch, which must hold nothing else.

    Raises:
        DataError: It is a tuple, a list or a dict of several.
    """
    counts = single(batch)
    if isinstance(counts, Mapping | tuple | list):
        raise DataError(
            f"{name}: a batch holds {counted(len(counts), 'argument')}, expected counts of words "
            "(N, V) alone; of (counts, labels) give (x for x, *_ in loader), of dicts (x['x'] "
            "for x in it)"
        )
    return counts


def _require_bags(program: Any, counts: Tensor | SparseRows) -> None:
    """Refuse a program whose observation is no bag of words, by a look at one document."""
    for name, fn in observed_distributions(program, counts[:1], "perplexity").items():
        if not getattr(fn, "scores_words_as_they_stand", False):
            raise ProgramError(
                f"perplexity: site {name!r} is {type(fn).__name__}, expected "
                "pv.distributions.BagOfWords, the probability of the words in the order in which "
                "they stand (dist.Multinomial adds a coefficient, by which perplexities differ)"
            )


def _lengths(what: str, counts: Tensor | SparseRows) -> Tensor:
    """Return the number of words of each document, (N,)."""
    pieces = _pieces(what, counts)
    return torch.cat([piece.sum(-1).double() for piece in pieces])


def _pieces(what: str, counts: Tensor | SparseRows) -> Iterator[Tensor]:
    """Yield documents a few at a time, and refuse what are no counts.

    Raises:
        DataError: A value that is not finite, below 0, or not whole.
    """
    for index, piece in enumerate(chunks(counts, _ROWS_PER_PASS)):
        sound = piece.isfinite() & (piece >= 0)
        if piece.is_floating_point():
            sound &= piece == piece.floor()
        if not bool(sound.all()):
            row = int((~sound.all(-1)).nonzero()[0])
            value = piece[row][~sound[row]][0].item()
            raise DataError(
                f"{what}: value {value:g} in row {index * _ROWS_PER_PASS + row}, expected counts "
                "of words, whole numbers from 0 up; of weights (tf-idf), x > 0 says which words a "
                "document has"
            )
        yield piece


def _npmi(present: Tensor) -> Tensor:
    """Return the mean NPMI of the pairs of some words, of which documents have them, (N, T)."""
    both = present.T @ present / len(present)
    i, j = torch.triu_indices(present.shape[1], present.shape[1], offset=1)
    alone = both.diagonal()
    met = both[i, j]
    value = (met.log() - alone[i].log() - alone[j].log()) / -met.log()
    value = torch.where(met > 0, value, -1.0)
    return torch.where(met == 1, 1.0, value).mean()


def _diversity(beta: Tensor) -> float:
    top = beta.topk(min(25, beta.shape[1]), dim=1).indices
    return len(top.unique()) / top.numel()


def _perplexity(cost: Tensor, lengths: Tensor) -> Perplexity:
    """Return both perplexities of documents that cost so many nats."""
    mean, mean_error = mean_and_error(cost / lengths)
    ratio, ratio_error = ratio_and_error(cost, lengths)
    return Perplexity(
        per_document=mean.exp().item(),
        per_document_stderr=(mean.exp() * mean_error).item(),
        corpus=ratio.exp().item(),
        corpus_stderr=(ratio.exp() * ratio_error).item(),
    )
