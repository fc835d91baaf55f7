"""Chains over time against Kalman's filter, the forward algorithm, and one site per step."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.distributions import Chain, Padded
from pyro_vae.distributions.padded import kept_steps
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.nn import GRU

T, C, Q, R, DRIFT = 25, 0.5, 10.0, 20.0, 0.05  # z_t ~ N(z_{t-1} + b, Q), x_t ~ N(c z_t, R)
F64 = torch.float64


def walk(z):
    return dist.Normal(z + DRIFT, Q**0.5).to_event(1)


def linear_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", Chain(walk, x.new_full((1,), -DRIFT), T))
        pyro.sample("x", dist.Normal(C * z, R**0.5).to_event(2), obs=x)


def drawn(n):
    torch.manual_seed(0)
    z = Chain(walk, torch.full((1,), -DRIFT, dtype=F64), T).sample((n,))
    return C * z + R**0.5 * torch.randn_like(z)


def kalman(x):
    """Return log p(x) of (N, T, 1) by the filter."""
    mean, var, total = x.new_zeros(len(x)), x.new_zeros(()), 0.0
    for t in range(T):
        mean, var = (mean + DRIFT, var + Q) if t else (mean, var + Q)
        spread = C**2 * var + R
        total = total + dist.Normal(C * mean, spread**0.5).log_prob(x[:, t, 0])
        gain = var * C / spread
        mean, var = mean + gain * (x[:, t, 0] - C * mean), (1 - gain * C) * var
    return total


def future(x):
    """Return what x_t, ..., x_T say of z_t: precisions (T) and precision times mean (N, T)."""
    precision, weighted = [x.new_zeros(())], [x.new_zeros(len(x))]
    for t in reversed(range(T)):
        lam, eta = precision[-1], weighted[-1]  # of z_{t+1}; seen from z_t it is blurred by Q
        shrunk = 1 / (1 + lam * Q)
        lam, eta = lam * shrunk, (eta - lam * DRIFT) * shrunk
        precision.append(lam + C**2 / R)
        weighted.append(eta + C * x[:, t, 0] / R)
    return torch.stack(precision[:0:-1]), torch.stack(weighted[:0:-1], -1)


def smoothing_guide(x):
    lam, eta = future(x)
    inputs = torch.stack([lam.expand_as(eta), eta], -1)

    def given(z, u):
        precision = 1 / Q + u[..., :1]
        return dist.Normal(((z + DRIFT) / Q + u[..., 1:]) / precision, precision**-0.5).to_event(1)

    with pyro.plate("data", len(x)):
        pyro.sample("z", Chain(given, x.new_full((1,), -DRIFT), T, inputs=inputs))


def filtering_guide(x):
    def given(z, u):
        precision = 1 / Q + C**2 / R
        return dist.Normal(((z + DRIFT) / Q + C * u / R) / precision, precision**-0.5).to_event(1)

    with pyro.plate("data", len(x)):
        pyro.sample("z", Chain(given, x.new_full((1,), -DRIFT), T, inputs=x))


def posterior_precision():
    band = torch.diag(torch.full((T,), 2 / Q + C**2 / R, dtype=F64))
    band[-1, -1] -= 1 / Q
    side = torch.full((T - 1,), -1 / Q, dtype=F64)
    return band + torch.diag(side, 1) + torch.diag(side, -1)


def mean_field_guide(x):
    precision = posterior_precision()
    pull = C * x[..., 0] / R
    pull[:, -1] += DRIFT / Q  # drifts cancel but at the ends
    pull[:, 0] -= DRIFT / Q
    mean = torch.linalg.solve(precision, pull.T).T
    with pyro.plate("data", len(x)):
        scale = precision.diagonal().rsqrt()
        q = dist.Normal(mean.unsqueeze(-1), scale.unsqueeze(-1))
        pyro.sample("z", Padded(q, torch.full((len(x),), T), 1))


def exact_nll():
    """Return the expected -log p(x) per step: the entropy of a Gaussian."""
    order = torch.arange(1, T + 1, dtype=F64)
    cov = C**2 * Q * torch.minimum(order[:, None], order) + R * torch.eye(T, dtype=F64)
    return 0.5 * (math.log(2 * math.pi * math.e) + torch.logdet(cov).item() / T)


def test_a_smoothing_guide_reaches_the_filter_of_kalman_in_every_draw():
    x = drawn(50)
    program = pv.Program(linear_model, smoothing_guide)
    torch.testing.assert_close(pv.elbo(program, x), kalman(x), rtol=1e-12, atol=1e-10)
    found = pv.log_likelihood(program, x, num_particles=5).log_prob
    torch.testing.assert_close(found, kalman(x), rtol=1e-12, atol=1e-10)
    assert exact_nll() == pytest.approx(3.0820201, abs=1e-7)


def test_a_mean_field_guide_reaches_its_own_bound():
    """The gap is half the log of the determinant of a correlation matrix, whatever x is."""
    precision = posterior_precision()
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()
    assert exact_nll() + gap / T == pytest.approx(3.2809708, abs=1e-7)
    x = drawn(200)
    program = pv.Program(linear_model, mean_field_guide)
    torch.manual_seed(1)
    apart = torch.stack([pv.elbo(program, x) for _ in range(20)]) - kalman(x)
    error = apart.std() / apart.numel() ** 0.5
    assert (apart.mean() + gap).abs() < 5 * error < 0.5  # false alarm 6e-7


def test_a_filtering_guide_reaches_its_own_bound():
    r"""The guide that sees x_t alone is off by a variance P_t, x_t by c^2 P_{t-1} + c^2 Q + R."""
    spread, gain, apart, bound = C**2 * Q + R, Q * C / (C**2 * Q + R), 0.0, 0.0
    for _ in range(T):
        bound += 0.5 * (math.log(2 * math.pi * spread) + (C**2 * apart + spread) / spread) / T
        kept = (1 - gain * C) ** 2
        apart = kept * apart + kept * Q + gain**2 * R + Q * R / spread
    assert bound > 3.0820201
    x = drawn(4000)
    torch.manual_seed(1)
    found = -pv.elbo(pv.Program(linear_model, filtering_guide), x) / T
    assert (found.mean() - bound).abs() < 5 * found.std() / 4000**0.5 < 0.05  # false alarm 6e-7


def test_a_chain_of_states_is_the_forward_algorithm():
    first = torch.tensor([0.6, 0.4], dtype=F64)
    move = torch.tensor([[0.7, 0.3], [0.2, 0.8]], dtype=F64)
    emit = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=F64)
    x = torch.tensor([0, 1, 1, 0, 1])
    alpha = first * emit[:, 0]
    for t in range(1, 5):
        alpha = (alpha @ move) * emit[:, x[t]]
    assert alpha.sum().log().item() == pytest.approx(-3.8056392555, abs=1e-9)
    chain = Chain(lambda s: dist.Categorical(move[s]), dist.Categorical(first), 5)
    paths = torch.tensor(list(itertools.product([0, 1], repeat=5)))
    total = (chain.log_prob(paths) + emit[paths, x].log().sum(-1)).logsumexp(0)
    torch.testing.assert_close(total, alpha.sum().log(), rtol=0, atol=1e-12)
    torch.manual_seed(0)
    pairs = chain.expand((5000,)).sample()[:, 3:].double()  # the law of the fourth step
    share = (first @ move @ move @ move)[1]
    assert (pairs[:, 0].mean() - share).abs() < 5 * (share * (1 - share) / 5000) ** 0.5


class Gated(nn.Module):
    """A model and a guide of sequences, once with a chain and once with a site for each step."""

    def __init__(self):
        super().__init__()
        self.move, self.emit = nn.Linear(2, 4), nn.Linear(2, 3)
        self.see = nn.Linear(5, 4)
        self.start, self.guess = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2))
        self.double()

    def prior(self, z):
        loc, scale = self.move(z).chunk(2, -1)
        return dist.Normal(loc, scale.exp()).to_event(1)

    def posterior(self, z, x):
        loc, scale = self.see(torch.cat([z, x.expand(*z.shape[:-1], 3)], -1)).chunk(2, -1)
        return dist.Normal(loc, scale.exp()).to_event(1)

    def model(self, x, lengths):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Chain(self.prior, self.start, x.shape[1], lengths=lengths))
            pyro.sample("x", Padded(dist.Normal(self.emit(z), 1.0), lengths, 1), obs=x)

    def guide(self, x, lengths):
        chain = Chain(self.posterior, self.guess, x.shape[1], inputs=x, lengths=lengths)
        with pyro.plate("data", len(x)):
            pyro.sample("z", chain)


class PerStep(Gated):
    def model(self, x, lengths):
        z = self.start.expand(len(x), 2)
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                z = pyro.sample(f"z_{t}", self.prior(z).mask(t < lengths))
                seen = dist.Normal(self.emit(z), 1.0).to_event(1).mask(t < lengths)
                pyro.sample(f"x_{t}", seen, obs=x[:, t])

    def guide(self, x, lengths):
        z = self.guess.expand(len(x), 2)
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                z = pyro.sample(f"z_{t}", self.posterior(z, x[:, t]).mask(t < lengths))


@pytest.fixture
def pair():
    torch.manual_seed(2)
    one, other = Gated(), PerStep()
    other.load_state_dict(one.state_dict())
    lengths = torch.tensor([6, 3, 0, 1, 6])
    x = torch.randn(5, 6, 3, dtype=F64)
    return (
        one,
        other,
        {"x": torch.where(Padded(dist.Normal(x, 1), lengths, 1).kept, x, 0), "lengths": lengths},
    )


def loss_and_grads(program, batch, objective):
    wrapped = pv.Program.of(program)
    wrapped.read(batch)
    with wrapped.running():
        torch.manual_seed(5)
        loss = objective(wrapped, batch)
        return [loss, *torch.autograd.grad(loss, list(program.parameters()))]


@pytest.mark.parametrize("objective", [pv.ELBO(), pv.IWAE(3)], ids=["elbo", "iwae"])
def test_a_chain_is_a_site_for_each_step(pair, objective):
    """Loss and every gradient at equal noise."""
    one, other, batch = pair
    per_batch = lambda program, rows: objective.differentiable_loss(  # noqa: E731
        program.joint(rows).model, program.joint(rows).guide, **rows
    )
    chain, steps = (loss_and_grads(each, batch, per_batch) for each in (one, other))
    for mine, exact in zip(chain, steps, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-10)


def test_a_padded_batch_is_its_sequences_one_by_one(pair):
    program, _, batch = pair
    lengths = batch["lengths"]
    guide = Chain(program.posterior, program.guess, 6, inputs=batch["x"], lengths=lengths)
    z = guide.sample()
    prior = Chain(program.prior, program.start, 6, lengths=lengths)
    seen = Padded(dist.Normal(program.emit(z), 1.0), lengths, 1)
    for i, n in enumerate(lengths.tolist()):
        assert (z[i, n:] == 0).all()
        if n == 0:
            assert prior.log_prob(z)[i] == guide.log_prob(z)[i] == seen.log_prob(batch["x"])[i] == 0
            continue
        alone = Chain(program.posterior, program.guess, n, inputs=batch["x"][i, :n])
        torch.testing.assert_close(
            alone.log_prob(z[i, :n]), guide.log_prob(z)[i], rtol=1e-10, atol=0
        )
        alone = Chain(program.prior, program.start, n)
        torch.testing.assert_close(
            alone.log_prob(z[i, :n]), prior.log_prob(z)[i], rtol=1e-10, atol=0
        )


def test_what_stands_in_the_padding_moves_nothing(pair):
    program, _, batch = pair
    kept = torch.arange(6) < batch["lengths"][:, None]
    other = {**batch, "x": torch.where(kept[..., None], batch["x"], 7.0)}
    elbo = lambda wrapped, rows: -wrapped.joint(rows).terms().log_weight.sum()  # noqa: E731
    for mine, exact in zip(
        *(loss_and_grads(program, b, elbo) for b in (batch, other)), strict=True
    ):
        torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-10)


def test_a_first_state_of_its_own():
    """Of a distribution, with inputs: what is dropped and what is kept of each."""
    torch.manual_seed(1)
    u = torch.randn(4, 3, 1, dtype=F64)
    first = dist.Normal(torch.full((2,), 3.0, dtype=F64), 2.0).to_event(1)
    chain = Chain(lambda z, v: dist.Normal(z + v, 1.0).to_event(1), first, 3, inputs=u)
    z = chain.rsample((5,))
    assert z.shape == (5, 4, 3, 2) and chain.batch_shape == (4,)
    expected = dist.Normal(3.0, 2.0).log_prob(z[..., 0, :]).sum(-1)
    expected = expected + dist.Normal(z[..., :-1, :] + u[:, 1:], 1.0).log_prob(z[..., 1:, :]).sum(
        (-1, -2)
    )
    torch.testing.assert_close(chain.log_prob(z), expected)
    one = Chain(lambda z: dist.Normal(z, 1.0).to_event(1), first, 1)
    torch.testing.assert_close(one.log_prob(z[..., :1, :]), first.log_prob(z[..., 0, :]))


@pytest.mark.parametrize("wrong", [7, -1, 2.5])
def test_lengths_that_are_none_are_refused_or_poison_the_density(wrong):
    lengths = torch.tensor([2.0, wrong])
    rows = dist.Normal(torch.zeros(2, 6, 1), 1.0)
    for build in (
        lambda: Chain(walk, torch.zeros(1), 6, lengths=lengths, validate_args=True),
        lambda: Padded(rows, lengths, 1, validate_args=True),
    ):
        with pytest.raises(ConfigError, match=rf"lengths: got {wrong}.*from 0 to the 6 steps"):
            build()
    for density in (
        Chain(walk, torch.zeros(1), 6, lengths=lengths, validate_args=False),
        Padded(rows, lengths, 1, validate_args=False).expand((2,)),
    ):
        assert density.log_prob(torch.zeros(2, 6, 1)).isfinite().tolist() == [True, False]


def test_lengths_of_few_bits_lose_no_step():
    """Of bfloat16, 258 is a number and 257 is none."""
    lengths = torch.tensor([258.0], dtype=torch.bfloat16)
    assert kept_steps(lengths, 300).sum() == 258
    reader, x = GRU(1, 2), torch.randn(1, 300, 1)
    assert torch.equal(reader(x, lengths), reader(x, lengths.long()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16, torch.float16])
def test_lengths_of_any_type_of_numbers_count_as_whole_ones_do(dtype):
    """As bytes, 300 steps are 44."""
    rows = dist.Normal(torch.zeros(2, 300, 1), 1.0)
    lengths = torch.tensor([100, 3])
    expected = Padded(rows, lengths, 1).log_prob(torch.ones(2, 300, 1))
    for validate in (True, False):
        found = Padded(rows, lengths.to(dtype), 1, validate_args=validate)
        torch.testing.assert_close(found.log_prob(torch.ones(2, 300, 1)), expected)


@pytest.mark.parametrize(
    "lengths", [np.array([5, 3], dtype=kind) for kind in ("uint16", ">i8", "int8")], ids=str
)
def test_a_model_takes_lengths_of_numpy(lengths):
    model = pv.models.DMM(2, 2)
    x = torch.zeros(2, 6, 2)
    found = []
    for given in (torch.tensor([5, 3]), lengths):
        torch.manual_seed(0)
        found.append(pv.elbo(model, {"x": x, "lengths": given}))
    torch.testing.assert_close(*found)


W = torch.randn(2, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
STEPS = {
    "classes": (lambda w: dist.Categorical(logits=w), -1),
    "counts": (lambda w: dist.Poisson(w[..., 0].exp()), -1),
    "one-hot": (lambda w: dist.OneHotCategorical(logits=w), 0),
    "positive": (lambda w: dist.LogNormal(w[..., 0], 1.0), 0),
    "shares": (lambda w: dist.Dirichlet(w.exp()), 0),
    "bounded": (lambda w: dist.Uniform(1 + w[..., 0].exp(), 9.0), 0),
    "shifted": (
        lambda w: dist.TransformedDistribution(
            dist.Exponential(w[..., 0].exp()), [torch.distributions.AffineTransform(3.0, 2.0)]
        ),
        0,
    ),
    "mixed": (
        lambda w: dist.MixtureSameFamily(dist.Categorical(logits=w), dist.Gamma(w.exp() + 1, 1.0)),
        0,
    ),
}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("kind", STEPS)
def test_what_stands_behind_a_length_needs_no_probability(kind, validate):
    """Not its own zeros, which a draw has there; nor do they reach the gradient."""
    (build, filler), lengths = STEPS[kind], torch.tensor([2, 0])
    w = W.clone().requires_grad_()
    x = Padded(build(w), lengths, validate_args=validate)
    drawn = x.sample()
    inside = x.kept.expand_as(drawn)
    assert (drawn[~inside] == 0).all() and not inside[1].any()
    found = x.log_prob(drawn.where(inside, filler))
    expected = build(w[0, :2]).log_prob(drawn[0, :2]).sum()
    torch.testing.assert_close(found, torch.stack([expected, 0 * expected]))
    grads = [torch.autograd.grad(each, w)[0] for each in (found.sum(), expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("validate", [True, False])
def test_a_chain_of_positive_states_scores_its_own_draws(validate):
    scale, lengths = torch.tensor(0.7, dtype=F64, requires_grad=True), torch.tensor([2, 4])
    step = lambda z: dist.LogNormal(scale * z.log(), scale).to_event(1)  # noqa: E731
    start = torch.ones(1, dtype=F64)
    chain = Chain(step, start, 4, lengths=lengths, validate_args=validate)
    z = chain.sample()
    assert (z[0, 2:] == 0).all()
    alone = [Chain(step, start, n).log_prob(z[i, :n]) for i, n in enumerate(lengths.tolist())]
    found, expected = chain.log_prob(z), torch.stack(alone)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(each.sum(), scale)[0] for each in (found, expected)]
    torch.testing.assert_close(*grads)


def test_what_is_no_number_in_the_padding_reaches_no_gradient():
    """NaN times 0 is NaN: it is replaced before a density sees it, and validated or not."""
    lengths, scale = torch.tensor([2, 3]), torch.tensor(0.7, dtype=F64, requires_grad=True)
    z = torch.randn(2, 3, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    holed = z.clone()
    holed[0, 2] = torch.nan
    start = torch.zeros(1, dtype=F64)
    for valid in (False, True):
        chain = Chain(
            lambda state: dist.Normal(scale * state, scale).to_event(1),
            start,
            3,
            lengths=lengths,
            validate_args=valid,
        )
        rows = Padded(dist.Normal(0 * z, scale), lengths, 1, validate_args=valid)
        for each in (chain, rows):
            found, exact = each.log_prob(holed), each.log_prob(z)
            assert torch.equal(found, exact)
            grads = [torch.autograd.grad(sum_.sum(), scale)[0] for sum_ in (found, exact)]
            assert torch.equal(*grads)


def test_data_may_hold_anything_behind_their_lengths():
    """NaN as padding, in training and in every verb; before its end it is refused."""
    lengths = torch.tensor([2, 5, 3, 1])
    x = torch.randn(4, 5, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    behind = (torch.arange(5) >= lengths[:, None])[..., None]

    def model(x, lengths):
        rate = pyro.param("rate", torch.tensor(0.5, dtype=F64))
        with pyro.plate("data", len(x)):
            start = torch.zeros(1, dtype=F64)
            walk = lambda z: dist.Normal(rate * z, 1.0).to_event(1)  # noqa: E731
            pyro.sample("x", Chain(walk, start, 5, lengths=lengths), obs=x)

    found = []
    for fill in (0.0, torch.nan):
        program = pv.Program(model, lambda x, lengths: None)
        data = (x.masked_fill(behind, fill), lengths)
        bounds = pv.elbo(program, data)
        settings = {"epochs": 1, "batch_size": 2, "seed": 0, "progress": False, "compile": False}
        run = pv.fit(program, data, **settings)
        found.append((bounds, torch.as_tensor(run.history["loss"])))
    for mine, exact in zip(*found, strict=True):
        assert torch.equal(mine, exact)
    x[2, 1] = torch.nan
    with pytest.raises(DataError, match="nan in row 2"):
        pv.elbo(pv.Program(model, lambda x, lengths: None), (x, lengths))


@pytest.mark.parametrize("of_numbers", [True, False])
def test_a_path_that_would_run_on_to_infinity_behind_its_end_has_the_gradient_of_what_is_kept(
    of_numbers,
):
    """Two steps of nine: the third would be exp(exp(..)), and 0 times its derivative is NaN."""
    scale = torch.tensor(0.5, dtype=F64, requires_grad=True)
    first = torch.zeros(2, 1, dtype=F64)
    first = first if of_numbers else dist.Normal(first, 1.0).to_event(1)
    found = []
    for steps, lengths in ((9, torch.tensor([2, 2])), (2, None)):

        def transition(z):
            return dist.Normal((z + 3).exp() * scale, 1.0).to_event(1)

        torch.manual_seed(0)
        z = Chain(transition, first, steps, lengths=lengths).rsample()
        found.append((z[:, :2], *torch.autograd.grad(z.sum(), scale)))
    for mine, exact in zip(*found, strict=True):
        assert torch.equal(mine, exact)


def test_a_chain_that_starts_from_numbers_has_the_support_of_its_transition():
    """Counts are drawn without a gradient, and positive states are walked on their own scale."""
    counts = Chain(lambda c: dist.Poisson(1 + c).to_event(1), torch.zeros(2), 4)
    assert not counts.has_rsample and counts.support.is_discrete
    assert pyro.sample("c", counts).shape == (4, 2)
    sizes = Chain(lambda s: dist.LogNormal(s.log(), 0.5).to_event(1), torch.ones(1), 4)
    assert sizes.has_rsample
    path = torch.tensor([[0.5], [-1.0], [2.0], [1.0]])
    assert not bool(sizes.support.check(path)) and bool(sizes.support.check(path.abs()))
    u = torch.linspace(-1, 1, 4).reshape(4, 1)
    torch.testing.assert_close(torch.distributions.biject_to(sizes.support)(u), u.exp())


def test_flows_bend_the_posterior_of_each_step():
    """The density of a path, by inverses, is that of its draws; at first they change nothing."""
    torch.manual_seed(3)
    x = torch.bernoulli(torch.full((4, 5, 3), 0.5, dtype=F64))
    plain, bent = (
        pv.models.DMM(3, 2, (4,), transition=4, recurrent=4, num_flows=count).double()
        for count in (0, 2)
    )
    bent.load_state_dict(plain.state_dict(), strict=False)
    found = []
    for program in (plain, bent):
        torch.manual_seed(5)
        found.append(pv.elbo(program, x))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        for parameter in bent.posterior.flows.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    torch.manual_seed(6)
    chain = bent.encoder(x)
    path = chain.rsample()
    torch.manual_seed(6)
    z, total, straight = bent.guess.expand(4, -1), 0.0, 0.0
    for t in range(5):
        step = bent.posterior(z, chain.inputs[:, t])
        z = step.rsample()
        total = total + step.log_prob(z)  # of its own draw: no inverse
        straight = straight + step.base_dist.log_prob(z)
        torch.testing.assert_close(path[:, t], z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(chain.log_prob(path), total, rtol=1e-10, atol=1e-10)
    assert (straight - total).abs().min() > 1e-2  # the flows do bend
    with pytest.raises(ConfigError, match="num_flows: a mean-field guide has none"):
        pv.models.DMM(3, 2, guide="mean_field", num_flows=1)


def test_a_guide_with_flows_trains_as_a_graph():
    """It is compared with eager, loss and gradients, before it is trusted."""
    x = torch.bernoulli(torch.full((8, 3, 3), 0.5))
    program = pv.models.DMM(3, 2, (4,), transition=4, recurrent=4, num_flows=1)
    run = pv.fit(program, x, epochs=2, batch_size=4, compile="trace", progress=False)
    assert run.compiled == "graph" and run.history["loss"][-1] < 10
    with torch.device("meta"):  # as a program is built that takes its weights from a file
        assert pv.models.DMM(3, 2, (4,), num_flows=1).start.is_meta


def test_other_shapes_are_refused():
    with pytest.raises(ConfigError, match=r"inputs: got shape \(2, 5, 1\), expected \(\*, 6, U\)"):
        Chain(walk, torch.zeros(1), 6, inputs=torch.zeros(2, 5, 1))
    with pytest.raises(DataError, match=r"got shape \(2, 1, 1\), expected \(\*, 6, 1\)"):
        Chain(walk, torch.zeros(1), 6).step_log_prob(torch.zeros(2, 1, 1))
    with pytest.raises(ConfigError, match=r"steps: got a distribution of batch shape \(\)"):
        Padded(dist.Normal(0.0, 1.0), torch.tensor(3))


@pytest.mark.parametrize("lengths", [None, torch.tensor([2, 4])])
@pytest.mark.parametrize("first", [False, True])
def test_a_chain_of_bounded_states_scores_its_own_draws(first, lengths):
    """The bounds of a step are those of each step, and hold no time themselves."""

    def step(z):
        return dist.Uniform(0 * z + torch.tensor([1.0, 4.0, 6.0]), 0 * z + 8.0).to_event(1)

    start = torch.zeros(2, 3)
    chain = Chain(step, step(start) if first else start, 4, lengths=lengths, validate_args=True)
    steps = torch.full((2,), 4) if lengths is None else lengths
    found = chain.log_prob(chain.sample())
    torch.testing.assert_close(found, -steps * math.log(7 * 4 * 2))
    transform = torch.distributions.biject_to(chain.support)
    torch.testing.assert_close(
        transform(torch.zeros(2, 4, 3)), torch.tensor([4.5, 6.0, 7.0]).expand(2, 4, 3)
    )
    outside = chain.sample()
    outside[0, 1, 2] = 5.5
    with pytest.raises(ValueError, match="support"):
        chain.log_prob(outside)
    free = Chain(lambda z: dist.Normal(z, 1.0).to_event(1), start, 4).support
    assert free.base_constraint.base_constraint is torch.distributions.constraints.real
