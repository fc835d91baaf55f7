"""Probabilistic PCA with its exact posterior as guide: every estimate is log p(x), to rounding."""

import dataclasses
import functools

import pytest
import torch
from oracles import EXACT, PPCA, ExactPPCA, best_log_prob

import pyro_vae as pv
from pyro_vae.errors import ProgramError

SIZES = [(2, 1), (20, 4), (100, 16)]
PARTICLES = [1, 7, 64, 1000]
DTYPES = [torch.float64, torch.float32]
exact_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
sizes = pytest.mark.parametrize(("data_dim", "latent_dim"), SIZES)
particles = pytest.mark.parametrize("num_particles", PARTICLES)


@functools.cache
def build(data_dim, latent_dim, dtype, **options):
    """Return an oracle and its program, which is read once for all tests of a batch's shape."""
    oracle = PPCA.random(data_dim, latent_dim)
    return oracle, ExactPPCA(oracle, dtype, **options)


def shifted(oracle, program):
    """Return the oracle given the global offset."""
    return dataclasses.replace(oracle, mean=oracle.mean + program.offset.double())


def assert_exact(actual, expected, dtype):
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=EXACT[dtype], atol=EXACT[dtype])


@exact_dtypes
@particles
@sizes
@pytest.mark.parametrize("num", [1, 67])  # passes of 64: a ragged last one
def test_log_likelihood(num, data_dim, latent_dim, num_particles, dtype):
    oracle, program = build(data_dim, latent_dim, dtype)
    x = oracle.sample(num).to(dtype)
    estimate = pv.log_likelihood(program, x, num_particles=num_particles)
    assert_exact(estimate.log_prob, oracle.log_prob(x), dtype)
    assert (estimate.ess > 0.99 * num_particles).all()
    if num_particles >= 64:
        assert (estimate.psis_k == 0).all()  # rounding is no tail


@exact_dtypes
@particles
@sizes
@pytest.mark.parametrize("batch_size", [5, 1024])
def test_elbo(batch_size, data_dim, latent_dim, num_particles, dtype):
    oracle, program = build(data_dim, latent_dim, dtype)
    x = oracle.sample(13).to(dtype)
    value = pv.elbo(program, x, num_particles=num_particles, batch_size=batch_size)
    assert_exact(value, oracle.log_prob(x), dtype)


@exact_dtypes
@pytest.mark.parametrize("objective", [pv.ELBO, pv.IWAE])
@pytest.mark.parametrize("has_global", [False, True])
@pytest.mark.parametrize(("num_global_samples", "num_particles"), [(1, 1), (3, 7), (1, 64)])
@pytest.mark.parametrize("num", [1, 5, 20])
def test_loss_of_a_minibatch(num, num_global_samples, num_particles, has_global, objective, dtype):
    """N = 20: a batch of B rows bears its own log p(x) on average, and 1/N of the global KL."""
    oracle, program = build(6, 2, dtype, has_global=has_global)
    x = oracle.sample(20).to(dtype)
    wrapped = pv.Program.of(program)
    with wrapped.running():
        loss = objective(num_particles, num_global_samples).per_datum(
            wrapped.joint(x[:num], size=20)
        )
    exact = oracle.log_prob(x)
    if has_global:
        exact = shifted(oracle, program).log_prob(x)
    expected = exact[:num].mean()
    if has_global:
        expected = expected + program.log_prob_offset() / 20
    assert_exact(-loss.detach(), expected, dtype)


@exact_dtypes
@particles
def test_global_site(num_particles, dtype):
    oracle, program = build(6, 2, dtype, has_global=True)
    x = oracle.sample(13).to(dtype)
    exact = shifted(oracle, program).log_prob(x)
    shared = program.log_prob_offset() / 13
    for batch_size in (4, 13):
        value = pv.elbo(
            program, x, num_particles=num_particles, num_global_samples=2, batch_size=batch_size
        )
        assert_exact(value, exact + shared, dtype)
    estimate = pv.log_likelihood(program, x, num_particles=num_particles, num_global_samples=3)
    assert_exact(estimate.log_prob, exact, dtype)  # log E_q(w) p(x | w): no KL of w


@exact_dtypes
@pytest.mark.parametrize("subsample", [torch.tensor([3, 0, 7]), 4], ids=["given", "drawn"])
@pytest.mark.parametrize("has_global", [False, True])
@pytest.mark.parametrize("objective", [pv.ELBO, pv.IWAE])
def test_program_that_subsamples_its_own_plate(objective, has_global, subsample, dtype):
    oracle, program = build(6, 2, dtype, has_global=has_global, subsample=subsample)
    x = oracle.sample(10).to(dtype)
    wrapped = pv.Program.of(program)
    assert wrapped.read(x).size == 10
    exact, shared = oracle.log_prob(x), 0.0
    if has_global:
        exact, shared = shifted(oracle, program).log_prob(x), program.log_prob_offset() / 10
    with pytest.raises(ProgramError, match="of the 10 rows"):
        pv.elbo(program, x)  # no verb can answer for the rows that were not drawn
    with wrapped.running():
        terms = wrapped.joint(x, size=10).terms(1, 5)
    if isinstance(subsample, int):
        values = terms.log_weight[0, 0].detach()
        assert len(values) == subsample
        distance = (values.double()[:, None] - exact).abs().min(1).values
        assert (distance < 10 * EXACT[dtype]).all()
        return
    with wrapped.running():
        loss = objective(5).per_datum(wrapped.joint(x, size=10))
    assert_exact(-loss.detach() - torch.as_tensor(shared).to(dtype), exact[subsample].mean(), dtype)


@pytest.mark.parametrize("seed", range(5))
def test_stock_losses_agree(seed):
    """Stock Pyro sees the same zero-variance sum, through ``pv.ELBO`` as an ordinary ELBO."""
    oracle, program = build(6, 2, torch.float64)
    x = oracle.sample(9)
    torch.manual_seed(seed)
    for stock in (pv.ELBO(), pv.ELBO(8), pv.IWAE(8)):
        loss = stock.loss(program.model, program.guide, x)
        assert -loss == pytest.approx(oracle.log_prob(x).sum().item(), rel=1e-10)


@pytest.mark.slow
def test_trained_linear_vae_reaches_the_ppca_optimum():
    oracle = PPCA.random(6, 2, seed=3)
    x = oracle.sample(500)
    program = pv.models.LinearVAE(6, 2, full_covariance=True).double()
    run = pv.fit(
        program, x, epochs=300, batch_size=100, lr=0.02, lr_schedule=pv.schedules.cosine(1.0, 0.0)
    )
    best = best_log_prob(x, 2)
    exact = program.marginal().log_prob(x).mean().item()
    assert exact <= best + 1e-9  # nothing beats the maximum of the likelihood
    assert exact == pytest.approx(best, abs=5e-3)
    # At the optimum the guide is the posterior, and the last ELBO has next to no noise.
    assert run.history["elbo"][-1] == pytest.approx(best, abs=1e-2)
