"""Priors: mixtures against a loop, the VampPrior against the posteriors that it is made of."""

import json
import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.conditionals import (
    BatchNormGaussian,
    Categorical,
    FlowPrior,
    FullGaussian,
    GaussianMixture,
    InverseAutoregressiveFlow,
    LowRankGaussian,
    Mixture,
    PlanarFlow,
    SplineFlow,
    StandardNormal,
    VampPrior,
)
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.models import VAE

EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def loop(mixture, z):
    """Return log Σ_k π_k p_k(z), component by component."""
    total, normal = 0.0, mixture.components.base_dist
    for k, weight in enumerate(mixture.logits.softmax(-1)):
        one = dist.Normal(normal.loc[k], normal.scale[k]).to_event(1)
        total = total + weight * one.log_prob(z).exp()
    return total.log()


def gaussians(num=5, size=3, dtype=torch.float64):
    loc, scale = torch.randn(num, size, dtype=dtype), torch.rand(num, size, dtype=dtype) + 0.1
    return Mixture(torch.randn(num, dtype=dtype), dist.Normal(loc, scale).to_event(1))


def test_a_mixture_is_the_loop_over_its_components():
    mixture, z = gaussians(), torch.randn(4, 7, 3).double()
    torch.testing.assert_close(mixture.log_prob(z), loop(mixture, z), **EXACT)
    expanded = mixture.expand((4, 7))
    assert expanded.sample((2,)).shape == (2, 4, 7, 3)
    torch.testing.assert_close(expanded.log_prob(z), loop(mixture, z), **EXACT)
    assert expanded.log_prob(z[0, 0]).shape == expanded.mean.shape[:-1] == (4, 7)


def test_correlated_components_too():
    lower = torch.randn(5, 3, 3).double().tril() + 2 * torch.eye(3).double()
    parts = dist.MultivariateNormal(torch.randn(5, 3).double(), scale_tril=lower)
    mixture, z = Mixture(torch.randn(5).double(), parts), torch.randn(7, 3).double()
    stock = dist.MixtureSameFamily(dist.Categorical(logits=mixture.logits), parts)
    torch.testing.assert_close(mixture.log_prob(z), stock.log_prob(z), **EXACT)
    torch.testing.assert_close(mixture.mean, stock.mean, **EXACT)
    torch.testing.assert_close(mixture.variance, stock.variance, **EXACT)
    assert mixture.sample((4,)).shape == (4, 3)


def test_narrow_components_are_exact_in_float32():
    """Scales of 1e-3 around centres of 3: the squares cancel to seven digits, float32's all."""
    loc = 3 * torch.randn(4, 40)
    mixture = Mixture(torch.zeros(4), dist.Normal(loc, torch.full((4, 40), 1e-3)).to_event(1))
    z = loc[1] + 1e-3 * torch.randn(6, 40)
    double = dist.Normal(loc[1].double(), torch.tensor(1e-3).double()).to_event(1)
    expected = double.log_prob(z.double()) - math.log(4)
    torch.testing.assert_close(mixture.log_prob(z).double(), expected, rtol=1e-5, atol=1e-3)
    assert mixture.log_prob(z).dtype == torch.float32


def test_draws_of_a_mixture_have_its_moments():
    """40,000 draws; |z| < 5 on six moments, false alarms 4 in 10^6."""
    mixture = gaussians()
    drawn = mixture.sample((40_000,))
    z = (drawn.mean(0) - mixture.mean) / mixture.variance.sqrt() * 200
    squares = (drawn - mixture.mean).square()
    z2 = (squares.mean(0) - mixture.variance) / squares.std(0) * 200
    assert torch.cat([z, z2]).abs().max() < 5
    assert torch.autograd.gradcheck(mixture.log_prob, drawn[:3].clone().requires_grad_())


@pytest.mark.parametrize("posterior", [None, FullGaussian])
def test_one_pseudo_input_is_that_posterior(posterior):
    parts = {} if posterior is None else {"posterior": posterior}
    vae = VAE(6, 2, (8,), prior=partial(VampPrior, num_components=1), **parts).double()
    z = torch.randn(9, 2).double()
    q = vae.encoder(vae.latent_prior.pseudo_inputs())
    torch.testing.assert_close(vae.prior().log_prob(z), q.log_prob(z), **EXACT)
    x = vae.latent_prior.inputs.detach().round()
    with torch.no_grad():
        vae.latent_prior.start_at(x, noise=0.0)
        torch.manual_seed(1)
        reconstruction = pv.diagnose(vae, x).reconstruction
        torch.manual_seed(1)
        # The KL of a datum to its own posterior is 0, draw by draw.
        assert abs(pv.elbo(vae, x).item() - reconstruction) < 1e-10


def test_a_vampprior_is_the_average_of_its_posteriors_and_trains_them():
    vae = VAE(6, 2, (8,), prior=partial(VampPrior, num_components=4)).double()
    z, inputs = torch.randn(9, 2).double(), vae.latent_prior.pseudo_inputs()
    each = torch.stack([vae.encoder(u).log_prob(z).exp() for u in inputs])
    log_prob = vae.prior().log_prob(z)
    torch.testing.assert_close(log_prob, each.mean(0).log(), **EXACT)
    log_prob.sum().backward()
    assert vae.latent_prior.inputs.grad.abs().min() > 0
    assert all(p.grad is not None and p.grad.any() for p in vae.encoder.parameters())


def test_the_kl_to_the_aggregate_posterior_is_at_most_log_n():
    """Pseudo-inputs that are the data: E_x KL is the mutual information, at most log N."""
    x = torch.eye(6).double()
    vae = VAE(6, 2, (8,), prior=partial(VampPrior, num_components=6)).double()
    with torch.no_grad():
        vae.latent_prior.start_at(x, noise=0.0)
        kls = []
        for log_scale in (-7.0, 3.0):  # posteriors far apart, and all on one spot
            vae.encoder.net.output.bias[2:] = log_scale
            kls.append(pv.diagnose(vae, x, num_particles=50).kl["z"])
    assert abs(kls[0] - math.log(6)) < 1e-6
    assert abs(kls[1]) < 0.05


def test_pseudo_inputs_start_at_data_and_stay_pixels():
    vae = VAE(6, 2, (8,), prior=partial(VampPrior, num_components=5))
    rows = torch.bernoulli(torch.full((5, 6), 0.5))
    vae.latent_prior.start_at(rows)
    inputs = vae.latent_prior.pseudo_inputs()
    assert (inputs - rows).abs().max() < 0.06 and inputs.min() >= 0 and inputs.max() <= 1
    with pytest.raises(DataError, match=r"expected one datum per pseudo-input, \(5, 6\)"):
        vae.latent_prior.start_at(rows[:3])
    real = VampPrior((6,), 2, num_components=200, unit_interval=False)
    assert real.pseudo_inputs().min() < 0
    with pytest.raises(ConfigError, match="class numbers"):
        VAE(6, 2, (8,), prior=VampPrior, observation=partial(Categorical, num_classes=3))


def test_a_prior_of_ones_own():
    class Wide(nn.Module):
        def forward(self, encoder):
            return dist.Normal(encoder.net.output.bias.new_zeros(2), 3.0).to_event(1)

    vae = VAE(6, 2, (8,), prior=Wide())
    assert vae.config is None and vae.prior().base_dist.scale.unique() == 3
    assert pv.generate(vae, 3).shape == (3, 6)


SPECS = {
    "standard": {"prior": StandardNormal},
    "mixture": {"prior": partial(GaussianMixture, num_components=3)},
    "vamp": {"prior": partial(VampPrior, num_components=3, unit_interval=False)},
    "flow": {"prior": partial(FlowPrior, transform="spline", hidden=(8, 9))},
    "low_rank": {"posterior": partial(LowRankGaussian, rank=2)},
    "full": {"posterior": FullGaussian, "network": "residual"},
    "planar": {"posterior": partial(PlanarFlow, num_flows=2)},
    "iaf": {"posterior": partial(InverseAutoregressiveFlow, hidden=(8,)), "activation": "glu"},
    "spline": {"posterior": partial(SplineFlow, hidden=[8], bound=4.0)},
}


@pytest.mark.parametrize("name", SPECS)
def test_config_rebuilds_it(name):
    vae = VAE(6, 2, (8,), **SPECS[name]).double()
    config = json.loads(json.dumps(vae.config))
    twin = VAE(**config).double()
    twin.load_state_dict(vae.state_dict())
    assert twin.config == vae.config == config
    x = torch.ones(3, 6).double()
    bounds = []
    for each in (vae, twin):
        torch.manual_seed(1)
        bounds.append(pv.elbo(each, x))
    assert torch.equal(*bounds)


def test_a_config_from_before_the_choice_still_loads():
    config = {k: v for k, v in VAE(6, 2).config.items() if k not in ("prior", "posterior")}
    twin = VAE(**config)
    twin.load_state_dict(VAE(6, 2).state_dict())
    assert isinstance(twin.latent_prior, StandardNormal)


def test_batch_norm_would_mix_pseudo_inputs_with_data():
    with pytest.raises(ConfigError, match="batch norm"):
        VAE(6, 2, (8,), prior=VampPrior, posterior=BatchNormGaussian)
