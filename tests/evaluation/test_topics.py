"""Coherence, diversity and perplexities against direct counts."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.distributions import BagOfWords
from pyro_vae.errors import ConfigError, DataError, ProgramError
from pyro_vae.models import GSM, NVDM, LinearVAE

torch.manual_seed(0)
X = torch.poisson(torch.tensor([3.0, 0.3, 1.0, 0.2, 0.5]).expand(40, 5))
X[:, 4] = 1.0  # a word of all documents
X[:, 3] = (torch.arange(40) < 2).float()
X[:, 1] = (torch.arange(40) > 30).float()  # never beside word 3
VOCABULARY = ["a", "b", "c", "d", "e"]


def with_topics(rows):
    program = GSM(5, len(rows), (4,))
    with torch.no_grad():
        program.decoder.words_of_topics.logits.copy_(torch.tensor(rows).log())
    return program.eval()


PROGRAM = with_topics([[0.4, 0.3, 0.2, 0.06, 0.04], [0.1, 0.26, 0.04, 0.25, 0.35]])


def npmi_of(words):
    """Count documents one by one."""
    values = []
    for i, j in itertools.combinations(words, 2):
        one = sum(bool(row[i] > 0) for row in X) / len(X)
        other = sum(bool(row[j] > 0) for row in X) / len(X)
        both = sum(bool(row[i] > 0 and row[j] > 0) for row in X) / len(X)
        values.append(math.log(both / one / other) / -math.log(both) if both else -1.0)
    return sum(values) / len(values)


def test_coherence_and_top_words_are_those_of_a_direct_count():
    found = pv.topics(PROGRAM, X, vocabulary=VOCABULARY, num_words=3)
    assert found.words == [["a", "b", "c"], ["e", "b", "d"]]
    expected = [npmi_of([0, 1, 2]), npmi_of([4, 1, 3])]
    assert found.npmi.tolist() == pytest.approx(expected)
    assert found.coherence == pytest.approx(sum(expected) / 2)
    assert found.stderr == pytest.approx(abs(expected[0] - expected[1]) / 2)
    assert "npmi=" in repr(found) and "e b d" in repr(found)


def test_words_of_all_documents_are_coherent_and_strangers_are_not():
    both = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 2.0], [0.0, 0.0, 3.0]])
    always = torch.ones(3, 3)
    program = GSM(3, 1, (4,))
    assert pv.topics(program, always, num_words=2).npmi.item() == 1.0
    assert pv.topics(program, torch.eye(3), num_words=2).npmi.item() == -1.0
    with torch.no_grad():
        program.decoder.words_of_topics.logits.copy_(torch.tensor([[2.0, 1.0, 0.0]]))
    # The two words are in the same two documents of three: log 1.5 / log 1.5.
    assert pv.topics(program, both, num_words=2).npmi.item() == pytest.approx(1.0)


def test_diversity_is_the_share_of_different_words():
    rows = torch.full((2, 60), 1e-6)
    rows[0, :25], rows[1, 20:45] = 1.0, 1.0
    program = GSM(60, 2, (4,))
    with torch.no_grad():
        program.decoder.words_of_topics.logits.copy_(rows.log())
    assert pv.topics(program, torch.ones(2, 60)).diversity == 45 / 50


def test_perplexities_are_those_of_the_bound():
    x = X[:30]
    torch.manual_seed(1)
    found = pv.perplexity(PROGRAM, x)
    torch.manual_seed(1)
    cost, length = -pv.elbo(PROGRAM, x).double(), x.sum(-1).double()
    assert found.per_document == pytest.approx((cost / length).mean().exp().item())
    assert found.corpus == pytest.approx((cost.sum() / length.sum()).exp().item())
    error = (cost / length).std() / 30**0.5 * found.per_document
    assert found.per_document_stderr == pytest.approx(error.item())
    torch.manual_seed(1)
    tight = pv.perplexity(PROGRAM, x, num_particles=50)
    torch.manual_seed(1)
    cost = -pv.log_likelihood(PROGRAM, x, num_particles=50).log_prob.double()
    assert tight.corpus == pytest.approx((cost.sum() / length.sum()).exp().item())
    assert "per_document=" in repr(tight)


@pytest.mark.parametrize("samples", [None, 3])
@pytest.mark.parametrize("times", [1, 4])
def test_a_perplexity_does_not_depend_on_how_many_documents_are_asked(samples, times):
    """The topic is a global latent, all but certain in the guide: its KL is 14 nats."""
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5, 0.2])

    def model(x):
        topic = pyro.sample("topic", dist.Normal(torch.zeros(5), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", BagOfWords(topic, total_count=x.sum(-1)), obs=x)

    def guide(x):
        pyro.sample("topic", dist.Normal(logits, 1e-6).to_event(1))

    found = pv.perplexity(pv.Program(model, guide), X[:3].repeat(times, 1), num_particles=samples)
    cost = -(X[:3] * logits.log_softmax(-1)).sum(-1) / X[:3].sum(-1)
    assert found.per_document == pytest.approx(cost.mean().exp().item(), rel=1e-4)


def test_errors_of_the_corpus_perplexity_cover_the_spread_over_corpora():
    """200 corpora of 30 documents: the stated error is theirs within 25 % (5 s. e. of a spread)."""
    torch.manual_seed(2)
    words = torch.randint(1, 40, (200, 30)).double()
    cost = words * 5 + words.sqrt() * torch.randn(200, 30).double() * 3
    from pyro_vae.evaluation.topics import _perplexity

    each = [_perplexity(c, n) for c, n in zip(cost, words, strict=True)]
    for value, error in (
        ("corpus", "corpus_stderr"),
        ("per_document", "per_document_stderr"),
    ):
        spread = torch.tensor([getattr(one, value) for one in each]).std()
        stated = torch.tensor([getattr(one, error) for one in each]).square().mean().sqrt()
        assert 0.75 < stated / spread < 1.25


def test_completion_predicts_from_the_mean_code():
    seen, held = X[:20], X[20:40]
    found = pv.completion(PROGRAM, seen, held)
    code = PROGRAM.encoder(seen).mean
    shares = PROGRAM.proportions(code)
    log_p = (shares @ PROGRAM.topics()).log()
    expected = (-(held * log_p).sum(-1) / held.sum(-1)).mean().exp().item()
    assert found.per_document == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.5])
def test_what_are_no_counts_is_refused_and_named(value):
    wrong = X.clone()
    wrong[3, 2] = value
    sparse = scipy.sparse.csr_matrix(wrong.numpy())
    for rows in (wrong, sparse):
        verbs = [lambda: pv.completion(PROGRAM, X, rows), lambda: pv.perplexity(PROGRAM, rows)]  # noqa: B023
        if value != 0.5:  # whether a document has a word is known of a weight too
            verbs += [lambda: pv.topics(PROGRAM, rows), lambda: pv.encode(PROGRAM, rows)]  # noqa: B023
        for verb in verbs:
            with pytest.raises(DataError, match=rf"{value:g} in row 3.*expected"):
                verb()


def test_a_perplexity_is_of_words_as_they_stand():
    """A multinomial coefficient would pass for a better model."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Multinomial(5, logits=PROGRAM.decoder(z)), obs=x)

    with pytest.raises(ProgramError, match=r"site 'x' is Multinomial, expected .*BagOfWords"):
        pv.perplexity(pv.Program(model, PROGRAM.guide), torch.ones(4, 5))


def test_what_cannot_be_asked_is_told():
    with pytest.raises(ProgramError, match=r"LinearVAE has no topics\(\)"):
        pv.topics(LinearVAE(5, 2), X)
    with pytest.raises(ConfigError, match="num_words: got 1"):
        pv.topics(PROGRAM, X, num_words=1)
    with pytest.raises(DataError, match=r"reference: value 0.5 in row 1, .* x > 0 says which"):
        pv.topics(PROGRAM, torch.tensor([[1.0, 0, 2, 0, 1], [0, 0.5, 0, 1, 1]]))
    with pytest.raises(DataError, match=r"reference: got shape \(40, 4\).*\(N, 5\)"):
        pv.topics(PROGRAM, X[:, :4])
    with pytest.raises(DataError, match="vocabulary: got 2 words, expected 5"):
        pv.topics(PROGRAM, X, vocabulary=["a", "b"])
    with pytest.raises(DataError, match=r"documents \[1\] have no words"):
        pv.perplexity(PROGRAM, X[:3] * torch.tensor([[1.0], [0.0], [1.0]]))
    with pytest.raises(DataError, match="two parts of the same documents"):
        pv.completion(PROGRAM, X[:3], X[:4])
    with pytest.raises(DataError, match="two parts of the same documents"):
        pv.completion(NVDM(5, 2), X[:3], 0 * X[:3])


@pytest.mark.parametrize("data", [None, "words", {"x": X}, [X, X[:2]], list(X)], ids=type)
def test_what_is_no_array_of_documents_is_told(data):
    for name, verb in (
        ("reference", lambda: pv.topics(PROGRAM, data)),
        ("data", lambda: pv.perplexity(PROGRAM, data)),
        ("seen", lambda: pv.completion(PROGRAM, data, X)),
    ):
        with pytest.raises(DataError, match=rf"^{name}: got .*expected one array.*corpus\.test"):
            verb()


def test_batches_of_counts_and_labels_are_told_apart():
    loader = DataLoader(TensorDataset(X, torch.zeros(len(X))), batch_size=16)
    for batches in (loader, iter([{"x": X, "label": X[:, 0]}])):
        with pytest.raises(DataError, match=r"^data: a batch holds 2 arguments.*for x, \*_ in"):
            pv.perplexity(PROGRAM, batches)


def test_one_rule_says_which_data_are_documents():
    """A list of rows looks like several arguments; batches to come are joined."""
    for verb in (pv.perplexity, pv.elbo):
        with pytest.raises(DataError, match=r"(np|torch)\.stack"):
            verb(PROGRAM, list(X))
    answers = []
    for data in (X, DataLoader(X, batch_size=16, shuffle=True), iter([X[:9], X[9:]])):
        torch.manual_seed(0)
        answers.append(pv.perplexity(PROGRAM, data))
    assert answers[0] == answers[1] == answers[2]
    assert len(pv.elbo(PROGRAM, iter([X[:9], X[9:]]))) == len(X)


def test_topics_that_are_not_finite_are_none():
    program = with_topics([[0.4, 0.3, 0.2, 0.06, 0.04], [0.1, math.nan, 0.04, 0.25, 0.35]])
    with pytest.raises(ProgramError, match=r"1 of 2 topics \(first: 1\).*not finite.*diverged"):
        pv.topics(program, X)


def test_a_program_without_topics_is_told():
    program = with_topics([[0.4, 0.3, 0.2, 0.06, 0.04]])
    program.decoder.topics = lambda: torch.ones(0, 5)
    with pytest.raises(ProgramError, match=r"\(0, 5\).*expected a tensor \(K, V\) of some topics"):
        pv.topics(program, X)
