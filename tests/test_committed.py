"""Cures by construction: KL floors hold exactly, the autoregressive likelihood is normalised."""

import json
import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from oracles import normal_kl
from torch import nn

import pyro_vae as pv
from pyro_vae.conditionals import (
    AR1,
    MADE,
    AR1Prior,
    BatchNormGaussian,
    DeltaGaussian,
    FixedScaleGaussian,
)
from pyro_vae.errors import ConfigError
from pyro_vae.models.skip import SkipMLP

POSTERIORS = [
    partial(FixedScaleGaussian, scale=0.6),
    partial(DeltaGaussian, delta=0.3),
    partial(BatchNormGaussian, gain=0.7),
]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def unit_kl(q):
    return normal_kl(q.base_dist.loc, q.base_dist.scale)


@pytest.mark.parametrize("scale", [0.1, 0.5, 0.9, 1.5])
def test_a_fixed_scale_has_the_floor_of_the_closed_form(scale):
    q = FixedScaleGaussian(nn.Identity(), 3, scale=scale)
    exact = 0.5 * (scale**2 - 1 - math.log(scale**2))
    assert q.floor == pytest.approx(exact, rel=1e-12)
    at_zero = unit_kl(q(torch.zeros(1, 3)))
    torch.testing.assert_close(at_zero, torch.full_like(at_zero, exact), rtol=1e-12, atol=0)
    assert (unit_kl(q(torch.randn(50, 3))) >= exact).all()


@pytest.mark.parametrize("delta", [1e-4, 0.1, 1.0, 5.0])
def test_a_committed_rate_is_reached_and_never_undercut(delta):
    q = DeltaGaussian(nn.Identity(), 2, delta=delta)
    extremes = torch.tensor([-1e3, -5.0, 0.0, 5.0, 1e3])
    rows = torch.cartesian_prod(torch.tensor([0.0, 2.0]), extremes)
    kl = unit_kl(q(rows.repeat_interleave(2, dim=1)))
    assert (kl >= delta * (1 - 1e-9)).all() and torch.isfinite(kl).all()
    widest = unit_kl(q(torch.tensor([[0.0, 0.0, 1e3, 1e3]])))
    torch.testing.assert_close(widest, torch.full_like(widest, delta), rtol=1e-9, atol=0)


@pytest.mark.parametrize("gain", [0.3, 1.0])
def test_a_batch_normalised_mean_has_its_floor_over_the_batch(gain):
    q = BatchNormGaussian(nn.Identity(), 3, gain=gain)
    with torch.no_grad():
        q.bias.copy_(torch.tensor([0.0, 0.5, -1.0]))
    outputs = torch.cat([3 + 2 * torch.randn(40, 3), torch.zeros(40, 3)], 1)
    drawn = q(outputs).base_dist
    # Scale 1 is the least: then the mean KL is the floor itself, up to batch norm's 1e-5.
    floor = q.floor + q.bias.detach().square() / 2
    kl = normal_kl(drawn.loc, drawn.scale).mean(0)
    torch.testing.assert_close(kl, floor, rtol=1e-5, atol=0)
    spread = drawn.loc.detach().std(0, correction=0)
    torch.testing.assert_close(spread, torch.full((3,), gain), rtol=1e-5, atol=0)
    particles = q(outputs.expand(4, 40, 6))
    torch.testing.assert_close(particles.mean[2], drawn.loc, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("alpha", "steps"), [(0.8, 7), (0.5, 2), (-0.9, 4), (0.0, 3)])
def test_the_autoregressive_prior_is_the_dense_gaussian_with_its_floor(alpha, steps):
    prior = AR1(torch.tensor(alpha), steps, 1)
    gaps = (torch.arange(steps)[:, None] - torch.arange(steps)).abs()
    covariance = torch.tensor(alpha) ** gaps
    dense = dist.MultivariateNormal(torch.zeros(steps), covariance)
    z = torch.randn(9, steps)
    expected = dense.log_prob(z)
    torch.testing.assert_close(prior.log_prob(z[..., None]), expected, rtol=1e-10, atol=1e-12)
    # The best factorised posterior has the diagonal of the precision.
    precision = torch.linalg.inv(covariance)
    least = 0.5 * (precision.diagonal().log().sum() + torch.logdet(covariance))
    assert AR1.floor(alpha, steps) == pytest.approx(least.item(), abs=1e-12)
    if (alpha, steps) == (0.8, 7):
        assert AR1.floor(0.8, 7) == pytest.approx(1.74757, abs=5e-6)
    drawn = prior.rsample((4000,))[..., 0]
    error = (torch.cov(drawn.T, correction=0) - covariance) * math.sqrt(4000 / 2)
    assert error.abs().max() < 5  # each entry's standard error is at most sqrt(2 / N)


def test_a_code_that_is_a_sequence_cannot_collapse():
    prior = partial(AR1Prior, steps=4, correlation=0.9)
    vae = pv.models.VAE(6, 8, (8,), prior=prior)
    x = torch.bernoulli(torch.rand(40, 6))
    found = pv.diagnose(vae, x, num_particles=400)
    floor = 2 * vae.latent_prior.floor
    assert found.kl["z"] > floor - 5 * found.kl_stderr["z"]
    assert vae.prior().sample((3,)).shape == (3, 8)
    with pytest.raises(ConfigError, match="no multiple"):
        AR1Prior((6,), 7, steps=4)


@pytest.mark.parametrize("posterior", POSTERIORS, ids=lambda p: p.func.__name__)
def test_each_is_one_argument_of_the_same_program(posterior, tmp_path):
    vae = pv.models.VAE(6, 2, (8,), posterior=posterior, network="skip")
    x = torch.bernoulli(torch.rand(60, 6))
    pv.fit(vae, x, epochs=3, batch_size=20, compile="trace", progress=False)
    found = pv.diagnose(vae, x)
    assert found.kl["z"] > 0
    pv.save(vae, tmp_path)
    again = pv.load(tmp_path)
    assert json.dumps(again.config) == json.dumps(vae.config)
    torch.testing.assert_close(again.encoder(x).mean, vae.eval().encoder(x).mean)


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)])
def test_the_autoregressive_likelihood_sums_to_one_and_draws_what_it_scores(shape):
    from pyro_vae.nn import MLP

    made = MADE(MLP(2, shape, (5,)), hidden=7, event_dim=len(shape))
    z = torch.randn(3, 2)
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4).reshape(16, 1, *shape)
    mass = made(z).log_prob(every).exp()  # (16, 3)
    torch.testing.assert_close(mass.sum(0), torch.ones(3), rtol=1e-12, atol=0)
    draws = made(z[:1].expand(20_000, 2)).sample().reshape(20_000, 4)
    share = torch.bincount((draws @ 2 ** torch.arange(3, -1, -1.0)).long(), minlength=16) / 20_000
    exact = mass[:, 0].detach()
    # 16 shares, |z| < 5: a false alarm in 1e5
    assert ((share - exact) / (exact * (1 - exact) / 20_000).sqrt()).abs().max() < 5


def test_no_output_sees_its_own_input_or_a_later_one():
    network = MADE(SkipMLP(2, 6), hidden=40).autoregression
    x = torch.rand(6, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(network, x)
    assert (jacobian.triu() == 0).all()
    assert (jacobian.tril(-1)[1:].abs().sum(1) > 0).all()  # and each sees what comes before
    assert (jacobian.tril(-1) != 0).double().sum() == 15


def test_input_dropout_hides_pixels_in_training_only():
    made = MADE(SkipMLP(2, 6), hidden=20, input_dropout=0.5)
    x, z = torch.bernoulli(torch.rand(5, 6)), torch.randn(5, 2)
    assert not torch.equal(made(z).log_prob(x), made(z).log_prob(x))
    made.eval()
    assert torch.equal(made(z).log_prob(x), made(z).log_prob(x))


def test_a_skip_decoder_meets_the_code_at_each_layer():
    net = SkipMLP(2, (1, 3), (5, 4), activation="tanh")
    z = torch.randn(7, 2)
    h = torch.tanh(net.layers[0](z))
    h = torch.tanh(net.layers[1](h) + z @ net.skips[0].weight.T)
    expected = (net.layers[2](h) + z @ net.skips[1].weight.T).reshape(7, 1, 3)
    torch.testing.assert_close(net(z), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():  # cut the path through the layers: the code still arrives
        for layer in net.layers:
            layer.weight.zero_()
    assert (net(z) - net(torch.zeros(7, 2))).abs().max() > 0.01


@pytest.mark.parametrize(
    "build",
    [
        lambda: FixedScaleGaussian(nn.Identity(), 2, scale=0.0),
        lambda: DeltaGaussian(nn.Identity(), 2, delta=-1.0),
        lambda: BatchNormGaussian(nn.Identity(), 2, gain=math.inf),
        lambda: MADE(SkipMLP(2, 6), input_dropout=1.0),
        lambda: MADE(nn.Linear(2, 6)),
        lambda: AR1Prior((6,), 4, steps=2, correlation=1.0),
    ],
)
def test_arguments_out_of_range(build):
    with pytest.raises(ConfigError):
        build()
