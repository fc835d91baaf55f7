"""VAE, Autoencoder and LinearVAE against closed forms, and under stock Pyro."""

import functools
import json

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_vae.conditionals import (
    Categorical,
    DiscretisedLogistic,
    Gaussian,
    IsotropicGaussian,
    SquaredError,
)
from pyro_vae.errors import ConfigError, DataError, ProgramError
from pyro_vae.models import VAE, Autoencoder, LinearVAE
from pyro_vae.nn import MLP

EXACT = {"rtol": 1e-10, "atol": 1e-10}

PROGRAMS = {
    "vae": lambda: VAE(6, 2, (8,)),
    "vae_image": lambda: VAE((1, 4, 4), 2, (8, 7), activation="tanh"),
    "vae_conv": lambda: VAE((1, 8, 8), 2, (4, 3), network="conv"),
    "vae_gaussian": lambda: VAE(6, 2, (8,), observation=Gaussian),
    "vae_scale": lambda: VAE(
        6, 2, (8,), observation=functools.partial(IsotropicGaussian, learn_scale=True)
    ),
    "vae_categorical": lambda: VAE(
        (2, 4, 4), 2, (8,), observation=functools.partial(Categorical, num_classes=3)
    ),
    "vae_logistic": lambda: VAE(
        6, 2, (8,), observation=functools.partial(DiscretisedLogistic, levels=17)
    ),
    "linear": lambda: LinearVAE(6, 2),
    "linear_full": lambda: LinearVAE(6, 2, full_covariance=True),
    "autoencoder": lambda: Autoencoder(6, 2, (8,)),
    "autoencoder_conv": lambda: Autoencoder((1, 8, 8), 2, (4,), network="conv"),
}


@pytest.fixture(autouse=True)
def _clean():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture
def data():
    """Correlated Gaussian data, (200, 6)."""
    mix = torch.randn(6, 6, dtype=torch.float64)
    return torch.randn(200, 6, dtype=torch.float64) @ mix + torch.arange(6.0).double()


def elbo(program, x):
    """Return the stock ELBO in nats per datum."""
    return -Trace_ELBO().loss(program.model, program.guide, x) / len(x)


def batch(program, n=64):
    return (torch.rand(n, *program.example(1).shape[1:]) > 0.9).to(program.example(1).dtype)


@pytest.mark.parametrize("name", PROGRAMS)
def test_stock_svi_trains_it(name):
    program = PROGRAMS[name]()
    x = batch(program)
    before = {key: value.detach().clone() for key, value in program.named_parameters()}
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    for key, value in program.named_parameters():
        assert not torch.equal(before[key], value), f"{key} did not move"


@pytest.mark.parametrize("name", PROGRAMS)
def test_meta_device(name):
    program = PROGRAMS[name]().to("meta")
    x = program.example(3)
    assert x.device.type == "meta"
    with pyro.validation_enabled(False):
        guide = poutine.trace(program.guide).get_trace(x)
        model = poutine.trace(poutine.replay(program.model, guide)).get_trace(x)
        assert (model.log_prob_sum() - guide.log_prob_sum()).device.type == "meta"


@pytest.mark.parametrize("name", PROGRAMS)
def test_leading_sample_dims_equal_a_loop(name):
    program = PROGRAMS[name]().double()
    x, z = batch(program, 3), torch.randn(4, 3, 2, dtype=torch.float64)
    condition = functools.partial(poutine.condition, program.model)

    def terms(value):
        trace = poutine.trace(condition(data={"z": value})).get_trace(x)
        trace.compute_log_prob()
        return trace.nodes["z"]["log_prob"], trace.nodes["x"]["log_prob"]

    log_z, log_x = terms(z)
    assert log_x.shape == (4, 3)
    loop = [terms(one) for one in z]
    torch.testing.assert_close(log_z, torch.stack([one[0] for one in loop]), **EXACT)
    torch.testing.assert_close(log_x, torch.stack([one[1] for one in loop]), **EXACT)


@pytest.mark.parametrize("name", PROGRAMS)
def test_config_rebuilds_it(name):
    program = PROGRAMS[name]()
    twin = type(program)(**json.loads(json.dumps(program.config)))
    twin.load_state_dict(program.state_dict())
    x = batch(program, 3)
    assert twin.config == program.config
    assert twin.name != program.name
    pyro.set_rng_seed(1)
    first = elbo(program, x)
    pyro.set_rng_seed(1)
    assert elbo(twin, x) == first
    assert "latent_dim=2" in repr(program)


def test_vae_elbo_is_the_formula():
    vae, noise = VAE(6, 2, (8,)).double(), torch.randn(5, 2, dtype=torch.float64)
    x = batch(vae, 5)
    out = vae.encoder.net(x)
    mean, log_scale = out[:, :2], out[:, 2:]
    z = mean + log_scale.exp() * noise
    logits = vae.decoder.net(z)
    log_x = (x * logits - nn.functional.softplus(logits)).sum(-1)
    log_ratio = (-z.square() / 2 + noise.square() / 2 + log_scale).sum(-1)
    guide = poutine.trace(poutine.condition(vae.guide, data={"z": z})).get_trace(x)
    model = poutine.trace(poutine.condition(vae.model, data={"z": z})).get_trace(x)
    found = model.log_prob_sum() - guide.log_prob_sum()
    torch.testing.assert_close(found, (log_x + log_ratio).sum(), **EXACT)


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_data_mean_starts_the_decoder_there(network):
    mean = torch.full((1, 4, 4), 0.3)
    vae = VAE((1, 4, 4), 2, (5,), network=network, data_mean=mean)
    for weight in vae.decoder.parameters():
        if weight.dim() > 1:
            nn.init.zeros_(weight)
    torch.testing.assert_close(vae.decoder(torch.randn(3, 2)).mean, mean.expand(3, 1, 4, 4))


def test_own_encoder_and_decoder():
    encoder, decoder = Gaussian(MLP(6, 4)), SquaredError(MLP(2, 6))
    vae = VAE(6, 2, encoder=encoder, decoder=decoder)
    assert vae.encoder is encoder
    assert vae.decoder is decoder
    assert vae.config is None
    with pytest.raises(ConfigError, match="data_mean"):
        VAE(6, 2, decoder=decoder, data_mean=torch.zeros(6))


@pytest.mark.parametrize("build", [VAE, Autoencoder, LinearVAE])
@pytest.mark.parametrize("latent_dim", [0, -1, 1.5, "ten", None, True])
def test_bad_latent_dim(build, latent_dim):
    with pytest.raises(ConfigError, match="latent_dim"):
        build(6, latent_dim)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_dim": 0}, "data_dim"),
        ({"data_dim": (1, -8, 8)}, r"data_dim\[1\]: got -8"),
        ({"data_dim": ()}, "data_dim"),
        ({"data_dim": "784"}, "data_dim"),
        ({"hidden": (0,)}, "hidden"),
        ({"hidden": 400}, "hidden"),
        ({"activation": "relux"}, "activation"),
        ({"network": "transformer"}, "network"),
        ({"network": "conv"}, r"\(C, H, W\)"),
        ({"observation": "bernoulli"}, "observation"),
        ({"data_mean": torch.zeros(5)}, "data_mean"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        VAE(**{"data_dim": 6, "latent_dim": 2, **arguments})


# -- the deterministic baseline


@pytest.mark.parametrize("name", ["autoencoder", "autoencoder_conv"])
def test_autoencoder_loss_is_the_squared_error(name):
    program = PROGRAMS[name]().double()
    x = torch.randn(5, *program.data_shape, dtype=torch.float64)
    expected = (x - program.decoder.net(program.encoder.net(x))).square().sum()
    found = Trace_ELBO().differentiable_loss(program.model, program.guide, x)
    torch.testing.assert_close(found, expected, **EXACT)
    weights = list(program.parameters())
    pairs = zip(
        torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_autoencoder_cannot_generate():
    program = Autoencoder(6, 2)
    with pytest.raises(ProgramError, match="no prior to sample from"):
        program.model(program.example())


# -- probabilistic PCA


def test_marginal_and_posterior_by_dense_algebra(data):
    linear = LinearVAE(6, 2).double()
    with torch.no_grad():
        linear.mean.normal_()
        linear.log_scale.fill_(-0.4)
    weight, variance = linear.weight.detach(), torch.exp(torch.tensor(-0.8, dtype=torch.float64))
    covariance = weight @ weight.T + variance * torch.eye(6, dtype=torch.float64)
    dense = torch.distributions.MultivariateNormal(linear.mean.detach(), covariance)
    torch.testing.assert_close(linear.marginal().log_prob(data), dense.log_prob(data), **EXACT)
    gain = torch.linalg.solve(covariance, weight).T  # conditioning the joint Gaussian of (z, x)
    posterior = linear.posterior(data)
    torch.testing.assert_close(posterior.mean, (data - linear.mean) @ gain.T, **EXACT)
    expected = torch.eye(2, dtype=torch.float64) - gain @ weight
    torch.testing.assert_close(posterior.covariance_matrix[7], expected, **EXACT)


def test_from_data_is_scikit_learns_pca(data):
    decomposition = pytest.importorskip("sklearn.decomposition")
    linear = LinearVAE.from_data(data, 2)
    pca = decomposition.PCA(2).fit(data.numpy())
    # scikit-learn divides the covariance by N - 1, maximum likelihood by N
    covariance = torch.as_tensor(pca.get_covariance()) * (len(data) - 1) / len(data)
    torch.testing.assert_close(linear.marginal().covariance_matrix, covariance, **EXACT)
    torch.testing.assert_close(linear.mean.detach(), data.mean(0), **EXACT)


def test_from_data_is_a_maximum_of_the_likelihood(data):
    linear = LinearVAE.from_data(data, 2)
    log_p = linear.marginal().log_prob(data).mean()
    values = torch.linalg.eigvalsh(torch.cov(data.T, correction=0)).flip(0)
    closed = values[:2].log().sum() + 4 * values[2:].mean().log()
    closed = -(closed + 6 * (1 + torch.log(torch.tensor(2 * torch.pi)).double())) / 2
    torch.testing.assert_close(log_p, closed, rtol=1e-7, atol=1e-7)
    gradients = torch.autograd.grad(log_p, [linear.weight, linear.mean, linear.log_scale])
    assert max(g.abs().max() for g in gradients) < 1e-10


@pytest.mark.parametrize("full_covariance", [False, True])
def test_elbo_at_the_exact_posterior_is_log_p(data, full_covariance):
    linear = LinearVAE.from_data(data, 2, full_covariance=full_covariance)
    log_p = linear.marginal().log_prob(data).mean().item()
    assert [elbo(linear, data) for _ in range(3)] == pytest.approx([log_p] * 3, rel=1e-10)
    q, p = linear.encoder(data), linear.posterior(data)
    torch.testing.assert_close(q.mean, p.mean, **EXACT)
    torch.testing.assert_close(q.variance, p.variance, **EXACT)


def test_full_guide_is_exact_for_correlated_columns_and_the_diagonal_has_its_gap(data):
    full = LinearVAE(6, 2, full_covariance=True).double().match_posterior()
    log_p = full.marginal().log_prob(data).mean().item()
    assert elbo(full, data) == pytest.approx(log_p, rel=1e-10)
    diagonal = LinearVAE(6, 2).double()
    diagonal.load_state_dict(full.state_dict(), strict=False)
    diagonal.match_posterior()
    kl = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(
            diagonal.encoder(data).mean,
            torch.diag_embed(diagonal.encoder(data).variance),
        ),
        torch.distributions.MultivariateNormal(
            full.posterior(data).mean, full.posterior(data).covariance_matrix
        ),
    )
    precision = full.weight.T @ full.weight + (2 * full.log_scale).exp() * torch.eye(2).double()
    gap = (precision.diagonal().log().sum() - precision.logdet()) / 2
    assert gap > 1e-3
    torch.testing.assert_close(kl, gap.expand_as(kl), rtol=1e-8, atol=1e-8)


def test_linear_vae_refuses_data_it_cannot_fit(data):
    with pytest.raises(DataError, match="smaller latent_dim"):
        LinearVAE.from_data(data, 6)
    with pytest.raises(DataError, match="smaller latent_dim"):
        LinearVAE.from_data(data[:3], 2)
    with pytest.raises(DataError, match="flatten"):
        LinearVAE.from_data(data.reshape(200, 2, 3), 2)
    with pytest.raises(DataError, match="finite"):
        LinearVAE.from_data(data.clone().index_fill_(0, torch.tensor([3]), float("nan")), 2)
