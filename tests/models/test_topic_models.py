"""Topic models against quadrature, and the bag of words against enumeration."""

import itertools
import math

import pytest
import torch
from estimators import gauss_hermite
from torch import nn

import pyro_vae as pv
from pyro_vae.distributions import BagOfWords
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.models import ETM, GSM, LDA, NVDM, ProdLDA

# The words 0, 0, 2, 1 of three.
COUNTS = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64)
BETA = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]], dtype=torch.float64)
EXPERTS = torch.tensor([[1.0, 0.0, -1.0], [-1.0, 0.5, 1.0]], dtype=torch.float64)


def mixture(z):
    return (z.softmax(-1) @ BETA).log()


def product(z):
    return (z.softmax(-1) @ EXPERTS).log_softmax(-1)


def log_linear(z):
    return (z @ EXPERTS + torch.tensor([0.1, 0.0, -0.1], dtype=torch.float64)).log_softmax(-1)


def by_quadrature(log_words, scale=1.0):
    """Return log p of the words, the code integrated out."""
    points, weights = gauss_hermite(2, 60)
    return (log_words(scale * points) @ COUNTS[0] + weights).logsumexp(0)


@torch.no_grad()
def set_to(program):
    """Give a program the numbers above."""
    decoder = program.decoder
    if isinstance(program, NVDM):
        decoder.weight.copy_(EXPERTS.T)
        decoder.bias.copy_(torch.tensor([0.1, 0.0, -0.1]))
    elif isinstance(program, ProdLDA):
        decoder.experts.weight.copy_(EXPERTS.T)
        decoder.norm = nn.Identity()
    elif isinstance(program, GSM):
        decoder.words_of_topics.logits.copy_(BETA.log())
        decoder.shares.weight.copy_(torch.eye(2))
        decoder.shares.bias.zero_()
    else:
        topics = decoder.words_of_topics
        topics.words.copy_(torch.eye(3))
        topics.vectors.copy_(BETA.log())
    return program


# In each the exact value, recomputed by quadrature, and that of the literature's own arithmetic.
MODELS = {
    "nvdm": (lambda: NVDM(3, 2, (4,)), log_linear, 1.0, -5.1490242368),
    "gsm": (lambda: GSM(3, 2, (4,)), mixture, 1.0, -4.5382202011),
    "etm": (lambda: ETM(3, 2, (4,), embedding_dim=3), mixture, 1.0, -4.5382202011),
    "prodlda": (lambda: ProdLDA(3, 2, (4,), dropout=0.0, concentration=0.5), product, 1.0, None),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_likelihood_of_a_document_is_exact(name):
    """Within five standard errors of quadrature, from a guide that is off (false alarm 6e-7)."""
    build, log_words, scale, printed = MODELS[name]
    torch.manual_seed(0)
    program = set_to(build().double()).eval()
    exact = by_quadrature(log_words, scale)
    if printed is not None:
        assert exact.item() == pytest.approx(printed, abs=1e-9)
    found = pv.log_likelihood(program, COUNTS, num_particles=20_000)
    assert abs(found.log_prob - exact) < 5 / found.ess.sqrt()
    assert found.ess > 1000


def test_a_product_of_experts_has_the_printed_value():
    assert by_quadrature(product).item() == pytest.approx(-4.6730996242, abs=1e-9)
    program = ProdLDA(3, 2, (4,), dropout=0.0).double()
    assert program.prior().variance.tolist() == pytest.approx([0.5, 0.5])  # (1 - 1 / K) / α


def test_the_likelihood_under_dirichlet_shares_is_exact():
    """The topics all but fixed at BETA: -4.6785812856, by the arcsine law of the shares."""
    torch.manual_seed(0)
    program = LDA(3, 2, (4,), concentration=0.5).double()
    with torch.no_grad():
        program.log_topics.copy_((1e5 * BETA).log())
    # Dir(1/2, 1/2) is the law of cos² of a uniform angle: the midpoint rule is exact to rounding.
    angle = (torch.arange(400, dtype=torch.float64) + 0.5) * math.pi / 400
    shares = torch.stack([angle.cos() ** 2, angle.sin() ** 2], -1)
    exact = (((shares @ BETA).log() @ COUNTS[0]).exp().mean()).log()
    assert exact.item() == pytest.approx(-4.6785812856, abs=1e-9)
    torch.testing.assert_close(program.topics(), BETA, rtol=0, atol=1e-9)
    found = pv.log_likelihood(program, COUNTS, num_particles=20_000, num_global_samples=20)
    assert abs(found.log_prob - exact) < 5 * found.noise.clamp(min=1e-3)


def test_the_words_in_all_orders_have_mass_one():
    p = BagOfWords(torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64))
    words = torch.tensor(list(itertools.product(range(3), repeat=4)))
    documents = nn.functional.one_hot(words, 3).sum(1).double()
    assert p.log_prob(documents).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_there_is_no_multinomial_coefficient():
    logits = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)
    counts = torch.distributions.Multinomial(4, logits=logits).log_prob(COUNTS[0])
    ours = BagOfWords(logits).log_prob(COUNTS[0])
    assert (counts - ours).item() == pytest.approx(math.log(12), abs=1e-12)  # 4! / 2!


def test_documents_have_the_lengths_asked_for_and_the_right_moments():
    """|z| < 5 for each of 6 means; false alarms 4e-6."""
    torch.manual_seed(1)
    logits = torch.randn(2, 3, dtype=torch.float64)
    p = BagOfWords(logits, total_count=torch.tensor([7, 0]))
    drawn = p.sample((20_000,))
    assert drawn.shape == (20_000, 2, 3) and (drawn.sum(-1) == torch.tensor([7.0, 0.0])).all()
    error = (p.variance / 20_000).sqrt().clamp(min=1e-12)
    assert ((drawn.mean(0) - p.mean) / error).abs().max() < 5
    wide = p.expand((4, 2))
    assert wide.sample().shape == (4, 2, 3)
    torch.testing.assert_close(wide.log_prob(drawn[:4]), p.log_prob(drawn[:4]))
    alone = BagOfWords(logits).expand((4, 2))
    torch.testing.assert_close(alone.log_prob(drawn[:4]), p.log_prob(drawn[:4]))


def test_a_bag_without_a_length_says_what_to_do():
    for ask in (lambda p: p.sample(), lambda p: p.mean, lambda p: p.variance):
        with pytest.raises(ConfigError, match=r"total_count is None.*x\.sum\(-1\)"):
            ask(BagOfWords(torch.zeros(3)))
    with pytest.raises(ValueError, match="support"):
        BagOfWords(torch.zeros(3), validate_args=True).log_prob(torch.tensor([0.5, 1.0, 0.0]))


def test_documents_are_generated_with_the_lengths_of_others():
    torch.manual_seed(2)
    x = torch.randint(0, 4, (30, 3)).double()
    program = NVDM(3, 2, (4,)).double()
    drawn = pv.generate(program, 30, given=x)
    assert torch.equal(drawn.sum(-1), x.sum(-1)) and not torch.equal(drawn, x)
    assert (pv.generate(NVDM(3, 2, (4,)), 5).sum(-1) == 3).all()
    pv.elbo(program, x)
    assert set(pv.generate(program, 50).sum(-1).tolist()) <= set(x.sum(-1).tolist())


@pytest.mark.parametrize("build", [NVDM, GSM, ProdLDA, ETM])
def test_integer_counts_are_counts(build):
    torch.manual_seed(3)
    x = torch.randint(0, 4, (8, 5))
    x[0] = 0  # an empty document: its likelihood is one
    program = build(5, 2, (4,)).eval()
    with torch.no_grad():
        torch.manual_seed(4)
        ours = pv.elbo(program, x)
        torch.manual_seed(4)
        torch.testing.assert_close(ours, pv.elbo(program, x.float()))
    assert pv.log_likelihood(program, x[:1], num_particles=4000).log_prob.abs() < 0.2


def test_topics_and_shares_are_distributions():
    for build in (NVDM, GSM, ProdLDA, ETM):
        program = build(6, 3, (4,)).double()
        assert program.topics().shape == (3, 6)
        for each in (program.topics(), program.proportions(torch.randn(4, 3).double())):
            torch.testing.assert_close(each.sum(-1), torch.ones(len(each)).double())


@pytest.mark.parametrize("build", [GSM, ProdLDA, ETM])
def test_a_topic_is_a_document_of_it_alone(build):
    torch.manual_seed(5)
    program = build(6, 3, (4,)).double()
    x = torch.randint(0, 4, (60, 6)).double()
    pv.fit(program, x, epochs=3, batch_size=20, lr=0.02, progress=False)
    shares = iter([torch.eye(3).double()])
    program.decoder.proportions = lambda z: next(shares)
    alone = program.eval().decoder(torch.zeros(3, 3).double()).softmax(-1)
    torch.testing.assert_close(program.topics(), alone)
    torch.testing.assert_close(program.train().topics(), alone)


def test_text_is_no_batch():
    with pytest.raises(DataError, match=r"got \('a cat', 'a dog'\), expected numbers.*Vocabulary"):
        pv.elbo(NVDM(6, 2, (4,)), ["a cat", "a dog"])


def test_embeddings_that_are_given_stand_still():
    words = torch.randn(6, 4)
    program = ETM(6, 2, (4,), embeddings=words)
    x = torch.randint(0, 3, (12, 6)).float()
    pv.fit(program, x, epochs=2, batch_size=6, progress=False)
    assert torch.equal(program.decoder.words_of_topics.words, words)
    with torch.device("meta"):  # as a program is built that takes its weights from a file
        assert ETM(6, 2, (4,), embeddings=torch.zeros(6, 4)).topics().is_meta
    for wrong in (words[:5], words[0], words * math.nan):
        with pytest.raises(DataError, match="finite vectors of the 6 words"):
            ETM(6, 2, (4,), embeddings=wrong)


def test_words_that_cannot_be_and_are_not_there_score_nothing():
    logits = torch.tensor([0.3, -torch.inf, -0.2], dtype=torch.float64, requires_grad=True)
    words = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)
    found = BagOfWords(logits, validate_args=False).log_prob(words)
    assert found.item() == pytest.approx(
        (words[[0, 2]] * logits[[0, 2]].log_softmax(-1)).sum().item()
    )
    (grad,) = torch.autograd.grad(found, [logits])
    assert grad.isfinite().all() and grad[1] == 0
    there = BagOfWords(logits, validate_args=False).log_prob(torch.ones_like(words))
    assert there.item() == -torch.inf
