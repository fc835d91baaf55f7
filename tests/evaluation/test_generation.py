"""Generation, reconstruction, codes and interpolation against a linear model's closed forms."""

import pytest
import torch
from oracles import PPCA
from programs import CASES

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError

ORACLE = PPCA.random(6, 2, orthogonal=True)
X = ORACLE.sample(400)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return pv.models.LinearVAE.from_data(X, 2)


def assert_equal_in_law(sample, mean, covariance):
    """|z| < 5 for each mean and each covariance (27 checks, false alarm below 2e-5)."""
    n = len(sample)
    assert ((sample.mean(0) - mean) / (covariance.diag() / n).sqrt()).abs().max() < 5
    estimate = torch.cov(sample.T)
    spread = (covariance.square() + covariance.diag().outer(covariance.diag())) / n
    assert ((estimate - covariance) / spread.sqrt()).abs().max() < 5


def test_generated_data_have_the_models_law(linear):
    marginal = linear.marginal()
    sample = pv.generate(linear, 20_000)
    assert_equal_in_law(sample, marginal.mean, marginal.covariance_matrix.detach())


def test_generated_means_have_the_law_of_the_means(linear):
    weight = linear.weight.detach()
    sample = pv.generate(linear, 20_000, mean=True)
    centred = sample - linear.mean
    assert torch.linalg.matrix_rank(centred.double(), rtol=1e-8) == 2  # no noise of x in it
    jitter = 1e-9 * torch.eye(6, dtype=torch.float64)
    assert_equal_in_law(sample, linear.mean.detach(), weight @ weight.T + jitter)


def test_codes_are_the_posterior_means(linear):
    expected = linear.posterior(X).mean
    torch.testing.assert_close(pv.encode(linear, X), expected, rtol=1e-8, atol=1e-8)
    draws = torch.stack([pv.encode(linear, X[:3], sample=True) for _ in range(400)])
    q = linear.encoder(X[:3]).base_dist
    assert ((draws.mean(0) - q.loc) / (q.scale / 20)).abs().max() < 5


def test_reconstructions_are_decoded_draws(linear):
    torch.manual_seed(3)
    z = linear.encoder(X).rsample()
    torch.manual_seed(3)
    torch.testing.assert_close(pv.reconstruct(linear, X), linear.decoder(z).mean)
    noisy = pv.reconstruct(linear, X, mean=False) - pv.reconstruct(linear, X)
    scale = linear.log_scale.exp()
    gap = linear.encoder(X).base_dist.scale[0]  # two independent codes lie behind the difference
    expected = scale**2 + 2 * ((linear.weight * gap) ** 2).sum(1).mean()
    assert noisy.var().item() == pytest.approx(expected.item(), rel=0.15)


@pytest.mark.parametrize("steps", [2, 5])
def test_interpolation_is_linear_between_the_codes(linear, steps):
    a, b = X[:7], X[7:14]
    lines = pv.interpolate(linear, a, b, steps=steps)
    assert lines.shape == (7, steps, 6)
    ends = [linear.decoder(pv.encode(linear, x)).mean for x in (a, b)]
    torch.testing.assert_close(lines[:, 0], ends[0])
    torch.testing.assert_close(lines[:, -1], ends[1])
    for i, t in enumerate(torch.linspace(0, 1, steps).tolist()):
        torch.testing.assert_close(lines[:, i], ends[0] + t * (ends[1] - ends[0]))


@pytest.mark.parametrize("n", [1, 3, 1023, 1025])
def test_any_number_is_generated(n):
    assert pv.generate(pv.models.VAE(6, 2, (8,)), n).shape == (n, 6)


def test_inputs_decide_what_is_generated():
    """Labels and lengths are given; observed values among them are ignored."""
    program = CASES["labelled"].build()
    x, y = CASES["labelled"].data(9)
    pv.Program.of(program).read((x, y))
    drawn = []
    for observed in (x, 1 - x):
        torch.manual_seed(0)
        drawn.append(pv.generate(program, 9, given=(observed, y)))
    assert torch.equal(*drawn)
    torch.manual_seed(0)
    assert not torch.equal(drawn[0], pv.generate(program, 9, given=(x, (y + 1) % 3), mean=True))


def test_generated_rows_follow_the_seed():
    program = pv.models.VAE(6, 2, (8,))
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(pv.generate(program, 20))
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda p: pv.generate(p, 0), ConfigError, "n: got 0"),
        (lambda p: pv.generate(p, 2.5), ConfigError, "n: got 2.5"),
        (lambda p: pv.generate(p, 3, given=torch.zeros(2, 6)), DataError, "got 2 rows.*n = 3"),
        (lambda p: pv.interpolate(p, X[:2], X[:3]), DataError, "got 2 and 3 rows"),
        (lambda p: pv.interpolate(p, X[:2], X[:2], steps=1), ConfigError, "steps: got 1"),
        (lambda p: pv.encode(p, X[:0]), DataError, "no data"),
        (lambda p: pv.reconstruct(p, X[0]), DataError, r"x\[None\]"),
    ],
)
def test_bad_arguments(linear, call, error, match):
    with pytest.raises(error, match=match):
        call(linear)
