"""The VQ-VAE: gradient at the code, running means, priors by enumeration, usage."""

import itertools
import math

import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.conditionals.code_priors import AutoregressiveCodes, FactorisedCodes, UniformCodes
from pyro_vae.conditionals.quantised import Codebook
from pyro_vae.distributions import Quantised, StraightThrough, nearest
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.evaluation.codebook_usage import CodeUsage, code_usage
from pyro_vae.inference.objectives.elbo import ELBO
from pyro_vae.inference.objectives.vector_quantised import VQ
from pyro_vae.models.grids import GridDecoder, grid_of
from pyro_vae.models.vqvae import VQVAE

# B 5 data, P 3 codes each, D 2 numbers per code, K 4 codes.
VECTORS = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [9.0, 9.0]], dtype=torch.float64)


def encodings(rows=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(rows, 3, 2, generator=generator, dtype=torch.float64)


def made(**options):
    """Return a small program and its data, float64."""
    torch.manual_seed(0)
    settings = {"network": "mlp", "positions": 3, "prior_width": 8, **options}
    vq = VQVAE(6, 4, 2, (8,), **settings).double()
    x = torch.bernoulli(torch.full((16, 6), 0.5, dtype=torch.float64))
    return vq, x


def by_hand(h, vectors):
    """Return the numbers of the nearest codes, by the definition."""
    return (h.unsqueeze(-2) - vectors).norm(dim=-1).argmin(-1)


def test_the_value_is_the_nearest_code_and_its_gradient_goes_straight_through():
    h = encodings().requires_grad_()
    z = StraightThrough(h, VECTORS).rsample()
    code = VECTORS[by_hand(h, VECTORS)].requires_grad_()
    assert torch.equal(z, code)
    weight = torch.randn(5, 3, 2, dtype=torch.float64)
    at_encoding = torch.autograd.grad((weight * z.tanh()).sum(), h)[0]
    at_code = torch.autograd.grad((weight * code.tanh()).sum(), code)[0]
    assert torch.equal(at_encoding, at_code) and at_code.abs().min() > 0


def test_all_mass_is_on_the_code():
    q = StraightThrough(encodings(), VECTORS).expand((7, 5))
    value = q.rsample()
    assert value.shape == (7, 5, 3, 2) and torch.equal(
        q.log_prob(value), torch.zeros(7, 5).double()
    )
    other = value.clone()
    other[2, 1, 0] = VECTORS[3]
    assert q.log_prob(other)[2, 1] == -math.inf and q.log_prob(other).isinf().sum() == 1


def test_penalties_stop_the_gradient_on_the_other_side():
    h, vectors = encodings().requires_grad_(), VECTORS.clone().requires_grad_()
    commitment, codebook = StraightThrough(h, vectors, learned=True).penalties()
    code = VECTORS[by_hand(h, VECTORS)]
    distance = (h - code).square().sum((1, 2)).detach()
    assert torch.equal(commitment, distance) and torch.equal(codebook, distance)
    moved = torch.autograd.grad(commitment.sum(), (h, vectors), allow_unused=True)
    torch.testing.assert_close(moved[0], 2 * (h - code).detach(), rtol=1e-12, atol=1e-12)
    assert moved[1] is None
    moved = torch.autograd.grad(codebook.sum(), (h, vectors), allow_unused=True)
    assert moved[0] is None
    expected = torch.zeros_like(VECTORS).index_add(
        0, by_hand(h, VECTORS).flatten(), 2 * (code - h).detach().flatten(0, 1)
    )
    torch.testing.assert_close(moved[1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_the_loss_is_the_elbo_and_the_penalties(decay):
    vq, x = made(decay=decay)
    program = pv.Program.of(vq)
    vq.eval()
    with program.running():
        loss = VQ(0.3, 0.7).per_datum(program.joint(x))
        elbo = -ELBO().per_datum(program.joint(x))
    h = vq.encoder(x)
    distance = (h - vq.codebook.vectors[vq.codes(x)]).square().sum((1, 2)).mean()
    weight = 0.3 + (0.7 if decay is None else 0.0)
    torch.testing.assert_close(loss, -elbo + weight * distance, rtol=1e-12, atol=1e-12)
    if decay is None:  # by the penalty alone: reconstruction does not move the codebook
        moved = torch.autograd.grad(loss, vq.codebook.vectors, retain_graph=True)[0]
        alone = torch.autograd.grad(0.7 * distance, vq.codebook.vectors)[0]
        torch.testing.assert_close(moved, alone, rtol=1e-10, atol=1e-12)
        assert torch.autograd.grad(elbo, vq.codebook.vectors, allow_unused=True)[0] is None


def test_the_prior_hands_no_gradient_to_the_encoder():
    vq, x = made()
    terms = pv.Program.of(vq.eval()).terms(x)
    grads = torch.autograd.grad(
        terms.log_p["z"].sum(), list(vq.encoder.parameters()), allow_unused=True
    )
    assert all(grad is None for grad in grads)
    assert terms.log_p["z"].requires_grad  # the prior itself learns


def following(codebook, batches):
    """Return the codebook's vectors after steps on encodings, as the next step sees them."""
    for h in batches:
        codebook(h)
    codebook(batches[-1])
    return codebook.vectors


def test_the_codes_of_a_step_stay_when_the_next_step_moves_the_codebook():
    torch.manual_seed(0)
    codebook = Codebook(4, 2, positions=3, decay=0.1)
    first = codebook(torch.randn(20, 3, 2))
    for shift in (5.0, 10.0):
        codebook(shift * torch.randn(20, 3, 2))
    assert torch.equal(first.numbers(first.mean), first.chosen)


def test_codes_follow_running_means():
    codebook = Codebook(4, 2, 3, decay=0.9, revive=0.0).double()
    codebook.vectors.copy_(VECTORS)
    codebook.total.copy_(codebook.count[:, None] * VECTORS)
    count, total, vectors = codebook.count.clone(), codebook.total.clone(), VECTORS
    batches = [encodings(seed=seed) for seed in range(4)]
    for h in batches:
        numbers = by_hand(h, vectors).flatten()
        for k in range(4):
            mine = h.flatten(0, 1)[numbers == k]
            count[k] = 0.9 * count[k] + 0.1 * len(mine) / len(h)
            total[k] = 0.9 * total[k] + 0.1 * mine.sum(0) / len(h)
        vectors = total / count[:, None]
    moved = following(codebook, batches)
    torch.testing.assert_close(moved, vectors, rtol=1e-10, atol=1e-10)
    assert not torch.equal(moved[:3], VECTORS[:3])
    torch.testing.assert_close(moved[3], VECTORS[3])  # a code that nothing uses stays
    before = {key: value.clone() for key, value in codebook.state_dict().items()}
    codebook.eval()
    codebook(encodings(seed=9))
    assert all(torch.equal(value, codebook.state_dict()[key]) for key, value in before.items())


def test_on_fixed_data_codes_become_the_means_of_their_clusters():
    """The fixed point of k-means: each code is the mean of the encodings nearest to it."""
    torch.manual_seed(2)
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]], dtype=torch.float64)
    h = (centres.repeat(6, 1) + 0.3 * torch.randn(24, 2)).reshape(8, 3, 2)
    codebook = Codebook(4, 2, 3, decay=0.8, revive=0.1).double()
    vectors = following(codebook, [h] * 250)
    numbers = by_hand(h, vectors).flatten()
    for k in range(4):
        mean = h.flatten(0, 1)[numbers == k].mean(0)
        torch.testing.assert_close(vectors[k], mean, rtol=1e-9, atol=1e-9)
    assert len(numbers.unique()) == 4  # revival has found all four clusters


def test_parts_of_a_batch_average_to_the_whole():
    """So that processes that average their buffers by rows take the step of one."""
    whole, *parts = (Codebook(4, 2, 3, decay=0.9, revive=0.0).double() for _ in range(3))
    h = encodings(8)
    whole.vectors.copy_(VECTORS)
    whole.total.copy_(whole.count[:, None] * VECTORS)
    start = {key: value.clone() for key, value in whole.state_dict().items()}
    for codebook, rows in ((parts[0], h[:2]), (parts[1], h[2:]), (whole, h)):
        codebook.load_state_dict(start)
        codebook(rows)
    for name in ("count", "total"):
        mixed = 0.25 * getattr(parts[0], name) + 0.75 * getattr(parts[1], name)
        torch.testing.assert_close(mixed, getattr(whole, name), rtol=1e-12, atol=1e-12)


def test_dead_codes_are_moved_to_encodings_of_the_batch():
    codebook = Codebook(4, 2, 3, decay=0.9, revive=0.1).double()
    h = encodings()
    codebook(h)  # all are dead at first
    rows = h.flatten(0, 1)
    assert torch.isclose(codebook.vectors[:, None], rows).all(-1).any(-1).all()
    codebook.count.copy_(torch.tensor([1.0, 1.0, 0.001, 1.0]))
    codebook.total.copy_(codebook.count[:, None] * VECTORS)
    codebook(h)
    alive = [0, 1, 3]
    torch.testing.assert_close(codebook.vectors[alive], VECTORS[alive])
    assert torch.isclose(codebook.vectors[2], rows).all(-1).any()


def test_an_unused_code_never_becomes_a_quotient_of_zeros():
    codebook = Codebook(2, 2, 3, decay=0.5, revive=0.0)
    codebook.vectors.copy_(VECTORS[[0, 3]])
    codebook.total.copy_(codebook.count[:, None] * codebook.vectors)
    vectors = following(codebook, [encodings().float()] * 300)  # 0.5^300 is no float32
    torch.testing.assert_close(vectors[1], VECTORS[3].float())


def test_under_a_uniform_prior_the_kl_is_log_k_per_code():
    vq, x = made(prior="uniform")
    assert pv.diagnose(vq, x).kl["z"] == pytest.approx(3 * math.log(4), rel=1e-12)


PRIORS = {
    "uniform": lambda: UniformCodes(3, 3),
    "factorised": lambda: FactorisedCodes(3, 3),
    "autoregressive": lambda: AutoregressiveCodes(3, 3, width=8, depth=2),
}


def prior_of(name):
    """Return a prior over three codes out of three, with weights of order one."""
    torch.manual_seed(1)
    prior = PRIORS[name]().double()
    for weight in prior.parameters():
        nn.init.normal_(weight, std=0.7)
    return prior


STATES = torch.tensor(list(itertools.product(range(3), repeat=3)))  # all 27


@pytest.mark.parametrize("name", PRIORS)
def test_priors_have_mass_one_and_draw_what_they_score(name):
    """False-alarm rate below 27 * 6e-7 at |z| < 5."""
    prior = prior_of(name)
    with torch.no_grad():
        probs = prior().log_prob(STATES).exp()
        torch.testing.assert_close(probs.sum(), torch.ones((), dtype=torch.float64))
        torch.manual_seed(3)
        drawn = prior().expand((4000,)).sample((5,))
    assert drawn.shape == (5, 4000, 3)
    numbers = (drawn * torch.tensor([9, 3, 1])).sum(-1).flatten()
    share = torch.bincount(numbers, minlength=27) / len(numbers)
    z = (share - probs) / (probs * (1 - probs) / len(numbers)).sqrt()
    assert z.abs().max() < 5


def test_the_autoregressive_prior_sees_what_came_before_and_nothing_else():
    prior = prior_of("autoregressive")
    with torch.no_grad():
        steps = torch.zeros(27, dtype=torch.float64)
        for i in range(3):
            logits = prior.net(STATES[:, :i])[:, -1]
            steps += logits.log_softmax(-1).gather(1, STATES[:, i : i + 1])[:, 0]
        log_p = prior().log_prob(STATES)
    torch.testing.assert_close(log_p, steps, rtol=1e-10, atol=1e-10)
    first = log_p.exp().reshape(3, 9)  # not independent: rows are not proportional
    assert not torch.allclose(first / first.sum(1, keepdim=True), first.sum(0) / first.sum())


def test_the_autoregressive_prior_learns_a_joint_exactly():
    torch.manual_seed(4)
    prior = AutoregressiveCodes(3, 3, width=16, depth=1).double()
    target = (1.5 * torch.randn(27, dtype=torch.float64)).softmax(0)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.01)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 400)
        optimizer.zero_grad()
        loss = -(target * prior().log_prob(STATES)).sum()
        loss.backward()
        optimizer.step()
    assert 0 <= loss.item() - torch.special.entr(target).sum().item() < 1e-3  # the KL, in nats


def test_generation_draws_codes_from_the_prior_and_decodes_them():
    vq, _ = made(prior="factorised")
    with torch.no_grad():
        vq.code_prior.logits.fill_(-1e4)
        for place, number in enumerate((2, 0, 3)):
            vq.code_prior.logits[place, number] = 0.0
    vq.eval()
    with torch.no_grad():
        expected = vq.decoder(vq.codebook.vectors[torch.tensor([2, 0, 3])]).mean
    made_up = pv.generate(vq, 4, mean=True)
    torch.testing.assert_close(made_up, expected.expand(4, 6), rtol=1e-12, atol=1e-12)
    p = Quantised(vq.code_prior(), vq.codebook.vectors)
    assert torch.equal(p.numbers(p.sample((2,))), torch.tensor([[2, 0, 3]] * 2))


class Lookup(nn.Module):
    """An encoder whose code numbers are the data."""

    def forward(self, x):
        return VECTORS[x.long()]


def test_usage_of_known_assignments():
    vq, _ = made(prior="uniform")
    vq.encoder, vq.positions = Lookup(), 6
    vq.codebook.vectors.copy_(VECTORS)
    vq.decoder = pv.conditionals.Bernoulli(nn.Sequential(nn.Flatten(-2), nn.Linear(12, 6).double()))
    vq.code_prior = UniformCodes(4, 6).double()
    x = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1]], dtype=torch.float64)
    usage = code_usage(vq, x)
    assert usage.counts.tolist() == [6, 6, 0, 0] and usage.used == 2 and usage.num_codes == 4
    assert usage.perplexity == pytest.approx(2.0) and "2 of 4" in repr(usage)
    assert CodeUsage(torch.tensor([3.0, 0.0])).perplexity == pytest.approx(1.0)
    assert CodeUsage(torch.tensor([5.0, 5.0, 5.0])).perplexity == pytest.approx(3.0)


def test_a_traced_run_moves_the_codebook_as_an_eager_one():
    finals = []
    for mode in (False, "trace"):
        vq, x = made(revive=0.3)
        pv.fit(vq, x, objective=VQ(), epochs=4, batch_size=8, compile=mode, progress=False)
        finals.append(vq.state_dict())
    assert all(torch.equal(value, finals[1][key]) for key, value in finals[0].items())
    assert not torch.equal(finals[0]["codebook.count"], torch.zeros(4).double())


def test_what_it_refuses():
    vq, x = made()
    with pytest.raises(ProgramError, match=r"none of the latents .* is quantised"):
        VQ().loss_of(pv.Program.of(pv.models.VAE(6, 2)).terms(x.float()))
    with pytest.raises(ProgramError, match="code_usage: none of"):
        code_usage(pv.models.VAE(6, 2), x)
    with pytest.raises(ProgramError, match="discrete"):
        pv.ais(vq, x)
    for wrong in ({"commitment": -1.0}, {"codebook": math.inf}):
        with pytest.raises(ConfigError, match="expected a number of at least 0"):
            VQ(**wrong)
    for wrong, text in (
        ({"network": "residual"}, "network="),
        ({"prior": "gaussian"}, "prior="),
        ({"positions": None}, "positions="),
        ({"decay": 1.0}, "decay: got"),
        ({"revive": -0.1}, "revive: got"),
        ({"prior_width": 6}, "width=6"),
    ):
        with pytest.raises(ConfigError, match=text):
            made(**wrong)


@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_the_decoder_meets_every_pixel_equally_often(size):
    """With equal weights an even grid gives an even image, away from its edges."""
    decoder = GridDecoder(1, (1, *size), (1,))
    with torch.no_grad():
        for parameter in decoder.net[-1].parameters():
            parameter.fill_(1.0)
    grid = grid_of((1, *size), 1)
    image = decoder.net[-1](torch.ones(1, 1, *grid))
    assert image.shape[-2:] == size
    inside = image[..., 1:-1, 1:-1]
    assert torch.equal(inside, torch.full_like(inside, 5.0))  # 2 x 2 taps and the bias


def test_a_likelihood_under_a_point_mass_says_that_it_is_a_bound():
    """One code of many is looked at, however often: exact by enumeration of all."""
    torch.manual_seed(0)
    vq = VQVAE(6, 4, 2, (8,), network="mlp", positions=2, prior="uniform").double().eval()
    x = torch.bernoulli(torch.rand(5, 6, dtype=torch.float64))
    codes = torch.tensor(list(itertools.product(range(4), repeat=2)))
    with torch.no_grad():
        z = vq.codebook.vectors[codes][:, None]
        exact = (vq.decoder(z).log_prob(x) - 2 * math.log(4)).logsumexp(0)
    found = pv.log_likelihood(vq, x, num_particles=200)
    torch.testing.assert_close(found.log_prob, pv.elbo(vq, x))
    assert (found.log_prob < exact - 0.1).all()
    assert (found.ess == 1).all() and math.isnan(found.untrusted)


@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0])
def test_the_nearest_code_is_found_far_from_the_origin(offset):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(64, 8, generator=generator) + offset
    value = torch.randn(200, 8, generator=generator) + offset
    exact = torch.cdist(value.double(), vectors.double()).argmin(-1)
    assert torch.equal(nearest(value, vectors), exact)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, math.nan, "0.9", True])
def test_a_decay_out_of_range(decay):
    with pytest.raises(ConfigError, match="decay: got"):
        Codebook(4, 2, 3, decay=decay)
