"""The aggregated posterior against the prior, where their ratio is known: N(1, 1/4) and N(0, 1)."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

import pyro_vae as pv
from pyro_vae.errors import DataError, ProgramError

X = torch.zeros(3000, 1, dtype=torch.float64)


def program(mean=1.0, scale=0.5):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + mean, scale).to_event(1))

    return pv.Program(model, guide)


class Exact(nn.Module):
    """The log ratio."""

    def forward(self, z):
        ratio = dist.Normal(1.0, 0.5).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
        return ratio.squeeze(-1)


def test_the_best_critic_has_the_loss_that_is_known():
    """.938327 and a KL of .818147 (|z| < 5); moments of both sides."""
    torch.manual_seed(0)
    found = pv.aggregated_posterior(program(), X, Exact())
    assert abs(found.loss - 0.938327) < 5 * found.stderr
    assert found.stderr < 0.03
    spread = Exact()(found.codes).std().item() / 3000**0.5
    assert abs(found.kl - 0.818147) < 5 * spread
    assert found.mean_gap.item() == pytest.approx(1.0, abs=5 * (1.25 / 3000) ** 0.5)
    assert found.covariance_gap.item() == pytest.approx(-0.75, abs=5 * (2.2 / 3000) ** 0.5)


def test_a_fresh_critic_finds_the_ratio_and_none_where_there_is_none():
    """Where both are one no loss on new codes lies below log 4 (|z| < 5)."""
    torch.manual_seed(1)
    critic = pv.nn.Critic(1, hidden=(16, 16))
    before = [p.clone() for p in critic.parameters()]
    found = pv.aggregated_posterior(program(), X, critic, num_steps=200)
    assert abs(found.loss - 0.938327) < 5 * found.stderr
    assert all(torch.equal(p, q) for p, q in zip(critic.parameters(), before, strict=True))
    same = pv.aggregated_posterior(program(0.0, 1.0), X, num_steps=40)
    assert same.loss > math.log(4) - 5 * same.stderr - 1e-9
    assert same.loss == pytest.approx(same.equal, abs=0.02)
    assert "of 1.3863" in repr(same) and not same.too_few


class Known(dist.TorchDistribution):
    """Draws and density of another distribution, as a latent that has a path."""

    has_rsample = True
    arg_constraints = {}  # noqa: RUF012

    def __init__(self, base, rows):
        self.base = base
        super().__init__(torch.Size((rows,)), base.event_shape, validate_args=False)

    def rsample(self, sample_shape=()):
        return self.base.sample(torch.Size(sample_shape) + self.batch_shape)

    def log_prob(self, value):
        return self.base.log_prob(value)


def between(q, p):
    """Return a program whose codes are draws of q, whatever the data, and whose prior is p."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Known(p, len(x)))
            pyro.sample("x", dist.Normal(torch.zeros_like(x), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Known(q, len(x)))

    return pv.Program(model, guide)


def mismatch(kind, size):
    """Return q and p = N(0, I), turned by one rotation: what differs is along no axis."""
    torch.manual_seed(0)
    mean, cov = torch.zeros(2, size).double(), torch.eye(size).double().repeat(2, 1, 1)
    if kind == "shift":
        mean[:, 0] = 0.8
    elif kind == "scale":
        cov *= (1 + 0.5 / size**0.5) ** 2
    elif kind == "correlation":
        cov[:, 0, 1] = cov[:, 1, 0] = 0.7
    elif kind == "mixture":
        mean[0, 0], mean[1, 0], cov = -1.5, 1.5, 0.6 * cov
    turn = torch.linalg.qr(torch.randn(size, size).double())[0]
    parts = dist.MultivariateNormal(mean @ turn.T, turn @ cov @ turn.T)
    q = torch.distributions.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), parts)
    return q, dist.MultivariateNormal(torch.zeros(size).double(), torch.eye(size).double())


def optimum(q, p):
    """Return the loss of the exact ratio, by 100,000 draws of each (an error of .003 at most)."""

    def ratio(z):
        return q.log_prob(z) - p.log_prob(z)

    sizes = torch.Size((100_000,))
    return (
        softplus(-ratio(q.sample(sizes))).mean() + softplus(ratio(p.sample(sizes))).mean()
    ).item()


# What differs, dimensions, those of them that the exact value is computed in, codes, steps.
CASES = [
    ("mixture", 2, 2, 5000, 150),
    ("scale", 8, 8, 8000, 80),
    ("correlation", 32, 2, 30_000, 40),
]


@pytest.mark.parametrize(("kind", "size", "small", "rows", "steps"), CASES)
def test_the_critic_reaches_the_exact_optimum(kind, size, small, rows, steps):
    """Within .02 where there are codes enough, but for noise (|z| < 5), and above the floor."""
    exact = optimum(*mismatch(kind, small))
    assert exact < math.log(4) - 0.05, "there is something to see"
    program = between(*mismatch(kind, size))
    found = pv.aggregated_posterior(program, torch.zeros(rows, 1), num_steps=steps)
    assert abs(found.loss - exact) < 0.02 + 5 * found.stderr
    assert found.floor < exact + 5 * found.stderr
    assert found.stderr < 0.01


def test_too_few_codes_are_said_to_be():
    """In 32 dimensions 800 codes hide most of a KL of .32 nats: the answer leaves room for it."""
    exact = optimum(*mismatch("shift", 1))
    program = between(*mismatch("shift", 32))
    found = pv.aggregated_posterior(program, torch.zeros(800, 1), num_steps=200)
    assert found.floor < exact < found.loss + 5 * found.stderr
    assert found.too_few and "so few codes leave open" in repr(found)


def test_codes_that_are_all_one_are_told_apart_without_a_doubt():
    """Their density is infinite: neither loss is to become NaN by it."""
    found = pv.aggregated_posterior(program(0.0, 1e-200), X[:64], num_steps=50)
    assert found.loss < 1e-3 and found.floor < 1e-3 and found.kl > 100


def test_what_has_no_codes_to_tell_apart_is_refused():
    with pytest.raises(DataError, match="data: got 3 rows, expected at least 8"):
        pv.aggregated_posterior(program(), X[:3])
    with pytest.raises(ProgramError, match="'z1' has no reparametrised sampler"):
        pv.aggregated_posterior(pv.models.SBN(4, (2,)), torch.zeros(8, 4))


def test_features_are_seen_in_eval_mode():
    """Whatever mode their network stands in, which it keeps part by part."""
    net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    net[1].eval()
    x = torch.rand(6, 3).round()
    found = pv.feature_distances(pv.models.VAE(3, 1, (4,)), x, net)
    assert [part.training for part in net] == [True, False, True] and net.training
    torch.testing.assert_close(found.data, net.eval()(x).double())
