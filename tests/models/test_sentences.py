"""Sentences against enumeration: of words, of paths, one by one."""

import itertools

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.utils.data import DataLoader

import pyro_vae as pv
from pyro_vae.distributions import Sentence
from pyro_vae.errors import ConfigError, DataError, ProgramError
from pyro_vae.models import SentenceLM, SentenceVAE
from pyro_vae.models.word_networks import WordDecoder
from pyro_vae.words import END, PAD, START, UNKNOWN

V, T = 6, 4
X = torch.tensor([[4, 5, 1, 3], [5, 3, 0, 0], [3, 0, 0, 0], [4, 4, 4, 5], [5, 1, 3, 0]])
DATA = {"x": X, "lengths": torch.tensor([4, 2, 1, 4, 3])}
networks = pytest.mark.parametrize("network", ["gru", "transformer"])


def every_sentence(steps):
    """Return all sentences of up to T words: ended, or cut."""
    rows = []
    for length in range(1, steps + 1):
        for words in itertools.product([UNKNOWN, 4, 5], repeat=length - 1):
            rows.append([*words, END] + [PAD] * (steps - length))
    rows += [list(words) for words in itertools.product([UNKNOWN, 4, 5], repeat=steps)]
    return torch.tensor(rows)


def vae(network="gru", **options):
    torch.manual_seed(0)
    return SentenceVAE(V, 2, decoder=network, embedding=3, hidden=8, **options).double()


def lm(network="gru", **options):
    torch.manual_seed(0)
    return SentenceLM(V, decoder=network, embedding=3, hidden=8, **options).double()


@networks
def test_the_probabilities_of_all_sentences_add_up_to_one(network):
    program = vae(network)
    z = torch.randn(2, 1, 2, dtype=torch.double)
    rows = every_sentence(T)
    log_p = program.sentences(T, z).log_prob(rows)
    assert log_p.shape == (2, len(rows)) and len(rows) == 1 + 3 + 9 + 27 + 81
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(2).double(), rtol=0, atol=1e-12)
    assert (log_p[0] - log_p[1]).abs().max() > 1e-3  # the code matters
    flat = program.sentences(T, z, temperature=0.5).log_prob(rows)
    torch.testing.assert_close(flat.exp().sum(-1), torch.ones(2).double(), rtol=0, atol=1e-12)


@networks
def test_a_padded_batch_is_its_sentences_one_by_one(network):
    program, exact = vae(network), lm(network)
    data = {**DATA, "x": torch.nn.functional.pad(X, (0, 3))[[1, 2, 4]]}
    data["lengths"] = DATA["lengths"][[1, 2, 4]]
    z = program.encoder(data["x"])
    for i, length in enumerate(data["lengths"].tolist()):
        alone = data["x"][i : i + 1, :length]
        torch.testing.assert_close(program.encoder(alone).mean[0], z.mean[i], rtol=0, atol=1e-12)
        for sentences, code in ((program.sentences, (z.mean[i],)), (exact.sentences, ())):
            rows = alone, data["x"][i : i + 1]
            both = [sentences(x.shape[1], *code).log_prob(x) for x in rows]
            torch.testing.assert_close(*both, rtol=0, atol=1e-12)
    grads = []
    for some in (data["x"], *data["x"].split(1)):
        exact.zero_grad()
        x = some[:, : int((some != PAD).sum(-1).max())]
        exact.sentences(x.shape[1]).log_prob(x).sum().backward()
        grads.append([p.grad.clone() for p in exact.parameters()])
    for together, *apart in zip(*grads, strict=True):
        torch.testing.assert_close(together, sum(apart), rtol=0, atol=1e-10)


@networks
def test_no_word_sees_itself_or_a_later_one(network):
    decoder = vae(network).decoder
    z = torch.zeros(1, 2).double()
    for t in range(T):
        other = X[:1].clone()
        other[0, t] = 9 - other[0, t] if other[0, t] > 3 else 4
        moved = (decoder(X[:1], z) - decoder(other, z)).nan_to_num().abs().amax(-1)[0] > 1e-12
        assert moved.tolist() == [step > t for step in range(T)]


@networks
def test_draws_and_greedy_paths_go_step_by_step(network):
    """A draw's frequencies are the probabilities (|z| < 5 over 121 cells: false alarm 7e-5)."""
    program = vae(network).eval()
    sentences = program.sentences(T, torch.tensor([0.5, -1.0]).double())
    rows = every_sentence(T)
    torch.manual_seed(1)
    drawn = sentences.sample((20_000,))
    found = (drawn.unsqueeze(1) == rows).all(-1).double()
    assert (found.sum(-1) == 1).all()
    p = sentences.log_prob(rows).exp()
    assert ((found.mean(0) - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt() + 1e-9).all()

    z = 3 * torch.randn(6, 2).double()
    greedy = program.sentences(T, z).greedy()
    for i, path in enumerate(greedy):
        x = torch.full((1, T), UNKNOWN)
        for t in range(T):
            word = program.decoder(x, z[i : i + 1])[0, t].argmax()
            x[0, t:] = word if t == 0 or x[0, t - 1] not in (END, PAD) else PAD
        assert path.tolist() == x[0].tolist()
    cold = program.sentences(T, z, temperature=1e-3).sample()
    assert torch.equal(cold, greedy) and not cold.requires_grad
    assert torch.equal(program.sentences(T, z, temperature=1e-30).sample(), greedy)


def test_words_are_dropped_in_training_and_from_what_the_decoder_sees_alone():
    program = lm(word_dropout=1.0)
    seen = program.decoder.embed.weight
    x = X[:1]

    def touched(parameter):
        program.zero_grad()
        program.sentences(T).log_prob(x).sum().backward()
        return parameter.grad.abs().sum(-1).nonzero().flatten().tolist()

    assert touched(seen) == [UNKNOWN, START]
    program.eval()
    assert touched(seen) == [UNKNOWN, START, 4, 5]
    program.train()
    program.decoder.word_dropout = 0.0
    assert touched(seen) == [UNKNOWN, START, 4, 5]
    program.decoder.word_dropout = 1.0
    assert touched(program.decoder.output.weight) == [1, 3, 4, 5]  # what is predicted, is not
    half = vae(word_dropout=0.5)
    assert (
        len({half.sentences(T, torch.zeros(2).double()).log_prob(x).item() for _ in range(9)}) > 1
    )
    whole = vae(word_dropout=1.0)
    torch.testing.assert_close(whole.encoder(X).mean, whole.eval().encoder(X).mean)


@networks
def test_a_language_model_knows_its_likelihood(network):
    program = lm(network)
    exact = program.sentences(T).log_prob(X)
    found = pv.log_likelihood(program, DATA, num_particles=3)
    torch.testing.assert_close(found.log_prob, exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pv.elbo(program, DATA), exact, rtol=1e-12, atol=1e-12)
    run = pv.fit(program, DATA, epochs=12, batch_size=5, lr=0.05, progress=False)
    assert run.history["loss"][-1] < 0.7 * run.history["loss"][0]
    assert pv.generate(program, 3).shape == (3, T)
    per_word = pv.per_step(program, DATA)
    assert per_word.bound == pytest.approx(-pv.elbo(program, DATA).sum().item() / 14)


@pytest.mark.parametrize(("build", "network"), [(vae, "gru"), (vae, "transformer"), (lm, "gru")])
def test_one_step_is_that_of_stock_svi(build, network, store):
    """Words dropped and units dropped by equal random numbers: one loss, one gradient."""
    grads, losses = [], []
    for objective in (pv.ELBO(), Trace_ELBO()):
        program = build(network, dropout=0.2, word_dropout=0.5)
        torch.manual_seed(3)
        loss = objective.differentiable_loss(program.model, program.guide, **DATA)
        loss.backward()
        losses.append(loss.item())
        grads.append([p.grad.clone() for p in program.parameters()])
        store.clear()
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for ours, stock in zip(*grads, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-9, atol=1e-10)


@networks
def test_a_graph_has_the_loss_and_the_gradients_of_eager_steps(network):
    weights = []
    for mode in (False, "trace"):
        program = vae(network, dropout=0.2, word_dropout=0.5)
        torch.manual_seed(4)
        run = pv.fit(
            program, DATA, epochs=2, batch_size=5, seed=1, compile=mode, progress=False, lr=0.1
        )
        assert mode is False or run.compiled == "graph"
        weights.append([p.detach() for p in program.parameters()])
    for eager, graph in zip(*weights, strict=True):
        torch.testing.assert_close(eager, graph, rtol=1e-8, atol=1e-9)


def test_a_list_of_batches_of_unequal_words_is_its_sentences_one_by_one():
    torch.manual_seed(0)
    program = SentenceLM(V, embedding=3, hidden=8)
    exact = torch.cat([pv.elbo(program, x[None]) for x in (X[1], X[2], X[0], X[4])])
    for parts in (
        [X[1:3, :2], X[[0, 4]]],
        [(X[1:3, :2], DATA["lengths"][1:3]), (X[[0, 4]], DATA["lengths"][[0, 4]])],
    ):
        torch.testing.assert_close(pv.elbo(program, parts), exact)
    with pytest.raises(DataError, match=r"got \[5, 4, 0, 0\] in row 0"):  # is cut, and goes on
        pv.elbo(program, [torch.tensor([[5, 4]]), X])


@pytest.mark.filterwarnings("ignore:refine")  # short chains
def test_verbs_take_sentences():
    program = vae().float()
    codes = pv.encode(program, DATA)
    assert codes.shape == (5, 2)
    decoded = pv.reconstruct(program, DATA)
    torch.testing.assert_close(decoded, program.eval().sentences(T, codes).greedy())
    between = pv.interpolate(program, DATA, {k: v.flip(0) for k, v in DATA.items()}, steps=3)
    assert between.shape == (5, 3, T) and torch.equal(between[:, 0], decoded)
    middle = program.sentences(T, codes.lerp(codes.flip(0), 0.5)).greedy()
    assert torch.equal(between[:, 1], middle)
    assert program.sentences(T).support.check(pv.generate(program, 50)).all()
    longer = torch.nn.functional.pad(X[[1]], (0, 1))
    with pytest.raises(ProgramError, match=r"shape \(1, 4\) at the first data and \(1, 5\) at"):
        pv.interpolate(program, X[[2]], longer, steps=2)
    for short in (torch.uint8, torch.int32):
        assert torch.equal(pv.encode(program, X.to(short)), codes)
    found = pv.diagnose(program, DATA)
    assert found.total_kl >= 0
    refined = pv.refine(program, DATA, pv.HMC(num_draws=8, warmup=8, chains=2, num_leapfrog=2))
    assert refined.mean.shape == (5, 2)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16])
def test_words_may_come_in_few_bits(kind):
    """A vocabulary of 300 does not fit into them, and the words that are used do."""
    net = SentenceLM(300, embedding=4, hidden=8).decoder
    x = torch.tensor([[120, 200, 3, 0]])
    expected = Sentence(net, 4, validate_args=False).log_prob(x)
    for validate in (True, False):
        found = Sentence(net, 4, validate_args=validate).log_prob(x.to(kind))
        assert torch.equal(found, expected) and found.isfinite().all()


def test_what_is_no_sentence_is_refused():
    program = vae()
    for x, told in (
        ([[4, 6, 3, 0]], r"\[4, 6, 3, 0\] in row 0, expected .*words from 1 to 5"),
        ([[4, 5, 3, 0], [4, -1, 3, 0]], "in row 1"),
        ([[0, 0, 0, 0]], "in row 0"),
        ([[4, 3, 5, 0]], "behind the end"),
        ([[4, 0, 5, 3]], "behind the end"),
        ([[4, 2, 5, 3]], "<bos> = 2 nowhere"),
    ):
        with pytest.raises(DataError, match=told):
            pv.elbo(program, torch.tensor(x))
    for lengths in ([4, 2, 1, 4, 5], [4, 2, 0, 4, 3]):
        with pytest.raises(DataError, match=r"expected the number of words of each sentence"):
            pv.elbo(program, {"x": X, "lengths": torch.tensor(lengths)})
    with pytest.raises(DataError, match=r"whole numbers \(B, T\)"):
        pv.elbo(program, torch.zeros(3, 4))
    late = X.repeat(3, 1)
    late[12, 1] = 77
    with pytest.raises(DataError, match=r"in row .* expected|is outside the support"):
        pv.fit(program, DataLoader(late, 4), epochs=1, progress=False)  # not in the first batch
    with pytest.raises(ConfigError, match="words"):
        SentenceVAE(4)
    with pytest.raises(ConfigError, match="even multiple of heads"):
        SentenceVAE(9, decoder="transformer", hidden=6)
    with pytest.raises(ConfigError, match="temperature"):
        program.sentences(3, temperature=0.0)
    with pytest.raises(DataError, match=r"z: got .*\(2, 3\).*expected codes \(\*, 2\)"):
        pv.models.SentenceVAE(9, 2).sentences(5, torch.zeros(2, 3))
    with pytest.raises(DataError, match=r"sentences with <pad>.*lengths"):
        pv.per_step(pv.models.SentenceLM(9), torch.tensor([[4, 5, 3], [4, 3, 0]]))
    with pytest.raises(DataError, match=r"expected whole numbers of shape \(\*, 4\)"):
        Sentence(WordDecoder(V), 4).log_prob(torch.ones(2, 3).long())
