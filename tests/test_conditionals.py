"""Conditionals: densities against hand-written ones, leading dims, extremes, restricted lookup."""

import functools
import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import conditionals
from pyro_vae.conditionals import (
    OBSERVATIONS,
    Bernoulli,
    Categorical,
    DiscretisedLogistic,
    Gaussian,
    IsotropicGaussian,
    Point,
    SquaredError,
    bounded,
    observation,
    observation_config,
    widen,
)
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.nn import MLP, ConvDecoder

EXACT = {"rtol": 1e-10, "atol": 1e-12}

SPECS = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "isotropic": functools.partial(IsotropicGaussian, scale=0.3),
    "isotropic_learned": functools.partial(IsotropicGaussian, scale=0.3, learn_scale=True),
    "categorical": functools.partial(Categorical, num_classes=3),
    "logistic": functools.partial(DiscretisedLogistic, levels=17),
    "squared_error": SquaredError,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(spec, shape, conv=False):
    chosen, options = observation(spec)
    out = widen(shape, chosen.width(**options))
    net = ConvDecoder(2, out, (4,)) if conv else MLP(2, out, (6,))
    return chosen(net, event_dim=len(shape), **options).double()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("shape", "conv"), [((5,), False), ((2, 4, 3), False), ((2, 4, 3), True)])
def test_leading_dims_equal_a_loop(name, shape, conv):
    decoder = build(SPECS[name], shape, conv)
    z = torch.randn(3, 2, 2, dtype=torch.float64)
    p = decoder(z)
    assert (p.batch_shape, p.event_shape) == ((3, 2), shape)
    x = p.sample()
    assert x.shape == (3, 2, *shape)
    pairs = zip(z.flatten(0, 1), x.flatten(0, 1), strict=True)
    loop = torch.stack([decoder(one).log_prob(value) for one, value in pairs]).reshape(3, 2)
    torch.testing.assert_close(p.log_prob(x), loop, **EXACT)


@pytest.mark.parametrize("name", SPECS)
def test_every_parameter_gets_a_gradient_and_meta_runs(name):
    decoder = build(SPECS[name], (5,))
    p = decoder(torch.randn(3, 2, dtype=torch.float64))
    p.log_prob(torch.zeros(3, 5, dtype=torch.float64) + (name != "squared_error")).sum().backward()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in decoder.parameters())
    decoder.to("meta")
    z = torch.empty(3, 2, dtype=torch.float64, device="meta")
    with pyro.validation_enabled(False):
        p = decoder(z)
        assert p.log_prob(p.sample()).shape == (3,)


def test_densities_are_those_written_by_hand():
    out = torch.randn(4, 6, dtype=torch.float64)
    net, x = nn.Identity(), torch.rand(4, 3, dtype=torch.float64).round()
    a, b = out[:, :3], out[:, 3:]
    normal = dist.Normal(a, b.exp()).log_prob(x).sum(-1)
    torch.testing.assert_close(Gaussian(net)(out).log_prob(x), normal, **EXACT)
    isotropic = IsotropicGaussian(net, scale=0.5).double()(a).log_prob(x)
    torch.testing.assert_close(
        isotropic, dist.Normal(a, 0.5).log_prob(x).sum(-1), rtol=1e-6, atol=1e-6
    )
    bernoulli = (x * a.sigmoid().log() + (1 - x) * (-a).sigmoid().log()).sum(-1)
    torch.testing.assert_close(Bernoulli(net)(a).log_prob(x), bernoulli, **EXACT)
    classes = torch.stack([a, b], -1).log_softmax(-1)  # class 0 first, then class 1
    picked = classes.gather(-1, x.long().unsqueeze(-1)).squeeze(-1).sum(-1)
    torch.testing.assert_close(Categorical(net, num_classes=2)(out).log_prob(x), picked, **EXACT)
    # two levels: P(1) = sigmoid((loc - 1/2) / s)
    logistic = DiscretisedLogistic(net, levels=2)(out).log_prob(x)
    binary = dist.Bernoulli(logits=a / b.exp()).log_prob(x).sum(-1)
    torch.testing.assert_close(logistic, binary, **EXACT)
    torch.testing.assert_close(SquaredError(net)(a).log_prob(x), -(x - a).square().sum(-1), **EXACT)
    assert torch.equal(Point(net)(a).sample(), a)
    assert torch.equal(Point(net)(a).log_prob(a), torch.zeros(4, dtype=torch.float64))


def test_bounded_is_exact_inside_monotone_and_limited_outside():
    s = torch.linspace(-7, 7, 1001)
    assert torch.equal(bounded(s), s)
    s = torch.linspace(-300, 300, 4001, dtype=torch.float64, requires_grad=True)
    y = bounded(s)
    (slope,) = torch.autograd.grad(y.sum(), s)
    assert (y.diff() > 0).all()
    assert y.abs().max() < 14
    assert ((slope > 0) & (slope <= 1)).all()
    assert torch.autograd.gradcheck(
        bounded, torch.tensor([-9.0, -1.0, 8.0]).double().requires_grad_()
    )


@pytest.mark.parametrize("log_var", [-300.0, -120.0, -20.0, 0.0, 20.0, 90.0, 300.0])
def test_gaussian_is_finite_in_float32_for_any_log_variance(log_var):
    out = torch.tensor([0.3, log_var / 2], dtype=torch.float32).requires_grad_()
    zero = torch.zeros(1, dtype=torch.float32)
    q, p = Gaussian(nn.Identity())(out), dist.Normal(zero, zero + 1).to_event(1)
    draw = q.rsample()
    terms = torch.stack([q.log_prob(draw), q.log_prob(zero), p.log_prob(draw)])
    kl = torch.distributions.kl_divergence(q.base_dist, p.base_dist)
    assert terms.isfinite().all()
    assert kl.isfinite().all()
    (terms.sum() + kl.sum()).backward()
    assert out.grad.isfinite().all()


@pytest.mark.parametrize("name", ["gaussian", "logistic"])
def test_observations_are_finite_in_float32_for_any_output(name):
    chosen, options = observation(SPECS[name])
    for loc in (-300.0, 300.0):
        for log_scale in (-150.0, 150.0):
            out = torch.tensor([loc, log_scale], dtype=torch.float32).requires_grad_()
            log_prob = chosen(nn.Identity(), **options)(out).log_prob(out.new_full((1,), 0.5))
            log_prob.backward()
            assert log_prob.isfinite()
            assert out.grad.isfinite().all()


@pytest.mark.parametrize("spec", [Bernoulli, Gaussian, IsotropicGaussian, SquaredError])
def test_output_bias_starts_the_mean_at_the_data_mean(spec):
    mean = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    p = spec(nn.Identity())(spec.output_bias(mean))
    found = p.base_dist.loc if spec is SquaredError else p.mean
    torch.testing.assert_close(found, mean, **EXACT)


def test_grey_levels_start_at_the_largest_variance_that_their_mean_allows():
    mean = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    p = DiscretisedLogistic(nn.Identity())(DiscretisedLogistic.output_bias(mean)).base_dist
    torch.testing.assert_close(p.loc, mean, **EXACT)
    variance = (math.pi * p.scale).square() / 3
    torch.testing.assert_close(variance, mean * (1 - mean), **EXACT)
    black = DiscretisedLogistic.output_bias(torch.zeros(1))
    assert black.isfinite().all()


def test_bernoulli_bias_is_clipped():
    bias = Bernoulli.output_bias(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(bias.sigmoid(), torch.tensor([0.001, 0.999]))


@pytest.mark.parametrize("name", SPECS)
def test_config_survives_json(name):
    stored = json.loads(json.dumps(observation_config(SPECS[name])))
    assert observation(stored) == observation(SPECS[name])


def test_lookup_knows_every_observation_and_nothing_else():
    assert all(getattr(conditionals, name) is c for name, c in OBSERVATIONS.items())
    other = type("Bernoulli", (nn.Module,), {})
    for spec in ("Bernoulli", {"name": "os.system"}, {"name": "Point"}, other, nn.Linear, None):
        with pytest.raises(ConfigError, match=r"expected a (class of pyro_vae|function or a dict)"):
            observation(spec)
    with pytest.raises(ConfigError, match="plain number"):
        observation(functools.partial(IsotropicGaussian, scale=torch.ones(())))
    with pytest.raises(ConfigError, match="num_classes"):
        observation(Categorical)
    with pytest.raises(ConfigError, match="colour"):
        observation(functools.partial(Bernoulli, colour=3))


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_bad_scale(scale):
    with pytest.raises(ConfigError, match="scale"):
        IsotropicGaussian(nn.Identity(), scale=scale)


def test_bad_options():
    with pytest.raises(ConfigError, match="num_classes"):
        Categorical(nn.Identity(), num_classes=0)
    with pytest.raises(ConfigError, match="levels"):
        DiscretisedLogistic(nn.Identity(), levels=1)
    with pytest.raises(ConfigError, match="data_mean"):
        Categorical.output_bias(torch.zeros(2), num_classes=3)
    with pytest.raises(DataError, match=r"width\(\) and widen\(\)"):
        Gaussian(nn.Identity())(torch.zeros(3, 5))
