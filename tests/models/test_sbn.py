"""Sigmoid belief networks against enumeration: densities, likelihoods and every gradient."""

import math

import pyro.distributions as dist
import pytest
import torch
from estimators import bernoulli, binary_states, expected, iwae_bound, mean_bound
from torch import nn

import pyro_vae as pv
from pyro_vae.distributions import AutoregressiveBits
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.models.sbn import SBN

X = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
PROGRAMS = {
    "linear": {"latent_dims": (2, 2)},
    "nonlinear": {"latent_dims": (2, 1, 1), "hidden": (3,)},
    "autoregressive": {"latent_dims": (2, 2), "guide": "autoregressive", "prior": "autoregressive"},
}


def made(name):
    """Return a program with weights of order one."""
    torch.manual_seed(1)
    sbn = SBN(3, data_mean=torch.tensor([0.7, 0.2, 0.5]), **PROGRAMS[name]).double()
    with torch.no_grad():
        for weight in sbn.parameters():
            weight.copy_(0.8 * torch.randn_like(weight))
    return sbn


def states(sbn):
    """Return all states of the latents by site, (M, 1, Z_l)."""
    values = binary_states(sum(sbn.latent_dims))[:, None].split(list(sbn.latent_dims), -1)
    return {f"z{level}": value for level, value in enumerate(values, 1)}


def autoregression(z, logits, weight):
    """Return log p(z) unit by unit, as the formula reads."""
    total = torch.zeros(z.shape[:-1], dtype=z.dtype)
    for i in range(z.shape[-1]):
        logit = logits[..., i] + sum(weight[i, j] * z[..., j] for j in range(i))
        total = total + bernoulli(z[..., i : i + 1], logit.unsqueeze(-1))
    return total


def net(mlp, h):
    """Return the output of a perceptron, layer by layer."""
    for layer in [*mlp.hidden, mlp.output]:
        linear = isinstance(layer, nn.Linear)
        h = h @ layer.weight.T + layer.bias if linear else nn.functional.leaky_relu(h)
    return h


def units(conditional, h, z):
    logits = net(conditional.net, h)
    weight = getattr(conditional, "weight", None)
    return bernoulli(z, logits) if weight is None else autoregression(z, logits, weight)


def by_hand(sbn, z, x):
    """Return log p(x, z) and log q(z | x), without Pyro."""
    names = sorted(z)
    top = z[names[-1]]
    weight = getattr(sbn, "prior_weight", torch.zeros(2, 2))
    log_p = autoregression(top, sbn.prior_logits, weight)
    for below, above, layer in zip(names, names[1:], sbn.layers, strict=False):
        log_p = log_p + bernoulli(z[below], net(layer.net, 2 * z[above] - 1))
    log_p = log_p + bernoulli(x, net(sbn.decoder.net, 2 * z["z1"] - 1))
    log_q, h = 0.0, x - sbn.centre
    for name, encoder in zip(names, sbn.encoders, strict=True):
        log_q = log_q + units(encoder, h, z[name])
        h = 2 * z[name] - 1
    return log_p, log_q


@pytest.mark.parametrize("name", PROGRAMS)
def test_densities_and_mass(name):
    sbn = made(name)
    z = states(sbn)
    log_p, log_q = by_hand(sbn, z, X)
    program, count = pv.Program.of(sbn), len(z["z1"])
    with program.running():
        joint = program.joint(X)
        torch.testing.assert_close(sum(joint.model_log_p(z, count).values()), log_p)
        torch.testing.assert_close(sum(joint.guide_log_q(z, count).values()), log_q)
    assert log_q.logsumexp(0).item() == pytest.approx(0, abs=1e-12)
    mass = [by_hand(sbn, z, x)[0].logsumexp(0) for x in binary_states(3)]
    assert torch.stack(mass).logsumexp(0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", PROGRAMS)
def test_likelihood(name):
    """The mean weight is p(x), |z| < 5: a false alarm in 2e6."""
    sbn = made(name)
    exact = by_hand(sbn, states(sbn), X)[0].logsumexp(0)
    terms = pv.Program.of(sbn).terms(X, num_particles=20_000)
    ratio = (terms.log_weight - exact).exp().flatten()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(len(ratio))
    assert ratio.std() > 0.05  # the guide is not the posterior: the test can fail


def wake_loss(log_weight, log_p, log_q, count):
    """Return what reweighted wake-sleep ascends in expectation, as a surrogate."""
    index = torch.cartesian_prod(*[torch.arange(len(log_weight))] * count).T  # (K, M^K)
    mass = log_q[index].sum(0).exp().detach()
    weight = log_weight[index].softmax(0).detach()
    return (mass * (weight * (log_p + log_q)[index]).sum(0)).sum()


OBJECTIVES = {
    "elbo": (pv.ELBO, "elbo"),
    "nvil": (lambda: pv.NVIL(nn.Linear(3, 1)).double().eval(), "elbo"),
    "rloo": (lambda: pv.RLOO(3), "elbo"),
    "disarm": (pv.DisARM, "elbo"),
    "vimco": (lambda: pv.VIMCO(2), "iwae"),
    "wake_sleep": (lambda: pv.ReweightedWakeSleep(2), "wake"),
}
CALLS, ROWS = 40, 1500


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["linear", "autoregressive"])
def test_gradients(name, objective):
    """Means of 40 batches of 1500 rows, |t| < 6 in each coordinate: a false alarm in 1e4 tests."""
    make, kind = OBJECTIVES[objective]
    sbn = made(name)
    program, loss = pv.Program.of(sbn), make()
    parameters = list(sbn.parameters())
    log_p, log_q = (value[:, 0] for value in by_hand(sbn, states(sbn), X))
    if kind == "wake":
        target = wake_loss(log_p - log_q, log_p, log_q, 2)
    else:
        count, bound = (1, mean_bound) if kind == "elbo" else (2, iwae_bound)
        target = expected(log_p - log_q, log_q, count, bound)[0]
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(target, parameters)])
    if objective == "disarm" and name == "autoregressive":
        with pytest.raises(ProgramError, match="AutoregressiveBits"), program.running():
            loss.per_datum(program.joint(X))
        return
    samples = []
    for _ in range(CALLS):
        with program.running():
            value = -loss.per_datum(program.joint(X.expand(ROWS, 3)))
        grads = torch.autograd.grad(value, parameters)
        samples.append(torch.cat([g.flatten() for g in grads]))
    sample = torch.stack(samples)
    error = sample.std(0) / math.sqrt(CALLS)
    assert ((sample.mean(0) - exact).abs() <= 6 * error + 1e-12).all()
    assert (exact.abs() > 6 * error).double().mean() > 0.5  # most coordinates are told from zero


def test_autoregressive_bits():
    """Draws have the enumerated frequencies, |z| < 5 in eight states: a false alarm in 2e5."""
    torch.manual_seed(2)
    logits = torch.randn(2, 3, dtype=torch.float64)
    weight = torch.randn(3, 3, dtype=torch.float64)  # what is above the diagonal is not used
    law = AutoregressiveBits(logits, weight).expand((4, 2))
    every = binary_states(3)[:, None, None]
    log_p = law.log_prob(every)
    torch.testing.assert_close(
        log_p, autoregression(every, logits, weight).expand(8, 4, 2), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(log_p.logsumexp(0), torch.zeros(4, 2).double())
    draws = AutoregressiveBits(logits, weight).sample((20_000,))
    assert draws.shape == (20_000, 2, 3)
    code = (draws @ torch.tensor([4.0, 2.0, 1.0]).double()).long()
    for column in range(2):
        p = log_p[:, 0, column].exp()
        share = torch.bincount(code[:, column], minlength=8) / 20_000
        assert ((share - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt()).all()


def test_a_zero_weight_is_the_factorised_law():
    logits = torch.randn(5, 4)
    bits = dist.Bernoulli(logits=logits).to_event(1)
    z = bits.sample()
    torch.testing.assert_close(
        AutoregressiveBits(logits, torch.zeros(4, 4)).log_prob(z), bits.log_prob(z)
    )


def test_learns_what_the_prior_of_one_bit_cannot():
    """Two equal patterns: the exact optimum is log 1/2; independent bits get 6 log 1/2."""
    x = torch.cat([torch.ones(40, 6), torch.zeros(40, 6)])
    torch.manual_seed(0)
    sbn = SBN(6, (1,))
    pv.fit(sbn, x, objective=pv.VIMCO(4), epochs=120, batch_size=80, lr=0.1, compile="trace")
    assert pv.log_likelihood(sbn, x, num_particles=20).mean > math.log(0.5) - 0.2


def test_the_mean_centres_the_guide_and_starts_the_output(tmp_path):
    mean = torch.tensor([0.25, 0.5, 0.0])
    sbn = SBN(3, (2,), data_mean=mean)
    with torch.no_grad():
        sbn.decoder.net.output.weight.zero_()
    torch.testing.assert_close(
        sbn.decoder(torch.ones(2)).mean, torch.tensor([0.25, 0.5, 0.001]), rtol=1e-5, atol=1e-6
    )
    pv.save(sbn, tmp_path)
    assert torch.equal(pv.load(tmp_path).centre, mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dims": ()}, "is empty"),
        ({"guide": "mean_field"}, "expected one of factorised"),
        ({"prior": "vamp"}, "expected one of factorised"),
        ({"activation": "gelu"}, "activation"),
        ({"data_mean": torch.zeros(4)}, r"expected that of one datum, \(3,\)"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        SBN(3, **{"latent_dims": (2,), "hidden": (2,), **options})
