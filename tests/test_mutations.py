"""Proof that the suite's oracles can fail: known bugs, planted one at a time, are all caught.

Each mutant is a function of the package compiled from a changed copy of its source. Its check is a
small version of the oracle that guards it, and passes on the code as it is. Statistical checks ask
|z| < 5 with fixed seeds (5.7e-7 per coordinate), and the mutants exceed that.
"""

import dataclasses
import inspect
import math
import textwrap
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimators import Toy, expected, gradient, largest_z, leaves, mean_bound, normal, row_gradients
from oracles import PPCA, ExactPPCA
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ProgramError
from pyro_vae.evaluation import generation, simulation
from pyro_vae.inference.objectives import elbo as objectives
from pyro_vae.inference.objectives import importance_weighted as importance
from pyro_vae.inference.objectives import pathwise
from pyro_vae.inference.objectives import score_function as discrete
from pyro_vae.inference.sampling import ais, hmc
from pyro_vae.program.densities import site_densities
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.handlers import ScaleLatents
from pyro_vae.program.program import Program

X = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)


def close(actual: Any, expected: Any, tolerance: float = 1e-10) -> bool:
    actual, expected = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    return bool(((actual - expected).abs() <= tolerance * (1 + expected.abs())).all())


# -- checks: True on correct code ----------------------------------------------------------------


def zero_variance(objective: Callable[[], Any], subsample: bool = False) -> Callable[[], bool]:
    """5 of 12 rows of pPCA with its posterior and a global point: the loss is known."""

    def check() -> bool:
        oracle, rows = PPCA.random(6, 2), torch.arange(5)
        program = ExactPPCA(oracle, has_global=True, subsample=rows if subsample else None)
        x = oracle.sample(12)
        wrapped = Program.of(program)
        with wrapped.running():
            joint = wrapped.joint(x) if subsample else wrapped.joint(x[:5], size=12)
            loss = objective().per_datum(joint)
        shifted = dataclasses.replace(oracle, mean=oracle.mean + program.offset)
        exact = shifted.log_prob(x[:5]).mean() + program.log_prob_offset() / 12
        return close(-loss.detach(), exact)

    return check


class Noisy(nn.Module):
    """x_n ~ N(z_n, 1) with a guide that is not the posterior, and its draws on record."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(())).to_event(1))
            pyro.sample("x", dist.Normal(z, x.new_ones(())).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            self.z = pyro.sample("z", dist.Normal(0.1 * x, x.new_full((), 0.8)).to_event(1))


def replayed(objective: Callable[[], Any], aggregate: Any, beta: float = 1.0) -> Callable[[], bool]:
    """The loss is its formula, written out on the draws."""

    def check() -> bool:
        program = Noisy()
        x = torch.linspace(-2, 3, 8, dtype=torch.float64).reshape(4, 2)
        wrapped = Program.of(program)
        wrapped.read(x)
        joint = wrapped.joint(x, beta=beta)
        with wrapped.running():
            loss = objective().per_datum(joint)
        z = program.z.reshape(-1, 4, 2)
        scale = x.new_full((), math.log(0.8))
        kl = normal(z, 0.1 * x, scale) - normal(z, torch.zeros_like(z))
        return close(-loss, aggregate(normal(x, z) - beta * kl).mean())

    return check


def log_mean(log_weight):
    return log_weight.logsumexp(0) - math.log(len(log_weight))


def guide_gradient_vanishes() -> bool:
    """Sticking the landing at the exact posterior of x ~ N(z, 1): nothing to learn."""
    loc = torch.full((6, 1), 0.5, dtype=torch.float64).requires_grad_()
    log_scale = torch.full((6, 1), -0.5 * math.log(2), dtype=torch.float64).requires_grad_()
    x = torch.ones(6, 1, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    for objective in (pv.STL(3), pv.DReG(3)):
        loss = objective.differentiable_loss(model, guide, x)
        grads = torch.autograd.grad(loss, [loc, log_scale])
        if max(grad.abs().max().item() for grad in grads) > 1e-10:
            return False
    return True


def unbiased(objective: Callable[[], Any], toy: Toy) -> Callable[[], bool]:
    """The mean gradient of 4000 replicates is that of the enumerated or integrated bound."""

    def check() -> bool:
        params = leaves(toy.params(0))
        mean, _ = expected(*toy.log_weight(params, X), 1, mean_bound)
        torch.manual_seed(0)
        _, samples = row_gradients(objective(), toy.program, params, X, 4000)
        return largest_z(samples, gradient(mean, params)) < 5

    return check


def baseline_learns_by_least_squares() -> bool:
    """The gradient of NVIL's network is that of the squared error, and of nothing else."""
    toy = Toy(True, (4,))
    params = leaves(toy.params(4))
    torch.manual_seed(9)
    network = nn.Linear(3, 1).double()
    objective = pv.NVIL(network).double()
    x = X.expand(20, 3)
    model, guide = toy.program(params)
    torch.manual_seed(1)
    z = {"z1": pyro.poutine.trace(guide).get_trace(x).nodes["z1"]["value"]}
    signal = (toy.log_p(params, z, x) - toy.log_q(params, z, x)).detach()
    exact = torch.autograd.grad((signal - network(x)[:, 0]).square().mean(), network.parameters())
    torch.manual_seed(1)
    loss = objective.differentiable_loss(model, guide, x) / 20
    got = torch.autograd.grad(loss, network.parameters())
    return all(close(a, b) for a, b in zip(got, exact, strict=True))


def data_stay_apart() -> bool:
    """One row's guide gradient does not depend on the data of the other rows."""
    toy = Toy(True, (3,))
    grads = []
    for other in (0.0, 1.0):
        logits = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)

        def guide(x, logits=logits):
            with pyro.plate("data", len(x)):
                pyro.sample("z1", dist.Bernoulli(logits=logits).to_event(1))

        model, _ = toy.program(toy.params(0))
        x = torch.stack([X, torch.full((3,), other, dtype=torch.float64)])
        torch.manual_seed(3)
        loss = pv.DisARM().differentiable_loss(model, guide, x)
        grads.append(torch.autograd.grad(loss, logits)[0][0])
    return close(*grads)


def curved(z):
    """A normal density, mean 1 and scale 0.7, in two dimensions."""
    return -0.5 * ((z - 1.0) / 0.7).square().sum(-1)


def hmc_keeps_the_target() -> bool:
    """After 10 transitions from exact draws: mean and variance within 5 SE (false alarm 2.4e-6)."""
    torch.manual_seed(0)
    rows = 20_000
    z = 1.0 + 0.7 * torch.randn(rows, 2, dtype=torch.float64)
    state = hmc.hmc_init(curved, z)
    for _ in range(10):
        state, _ = hmc.hmc_step(state, curved, 0.9, 2)
    moved = (state.position - 1.0) / 0.7
    mean = moved.mean(0) * math.sqrt(rows)
    variance = (moved.var(0) - 1) * math.sqrt(rows / 2)
    return bool(mean.abs().max() < 5 and variance.abs().max() < 5)


def momentum_is_fresh() -> bool:
    """From one point, two transitions go two ways."""
    torch.manual_seed(0)
    state = hmc.hmc_init(curved, torch.zeros(200, 2, dtype=torch.float64))
    first, _ = hmc.hmc_step(state, curved, 0.2, 2)
    second, _ = hmc.hmc_step(state, curved, 0.2, 2)
    same = (first.position == second.position).all(-1) & (first.position != 0).all(-1)
    return not bool(same.any())


def leapfrog_reverses() -> bool:
    torch.manual_seed(0)
    z, r = torch.randn(2, 5, 2, dtype=torch.float64)
    grad = hmc.hmc_init(curved, z).grad
    there, momentum = hmc.leapfrog(z, r, grad, 0.2, 7, curved)
    back, _ = hmc.leapfrog(there.position, -momentum, there.grad, 0.2, 7, curved)
    return close(back.position, z)


def rows_accept_alone() -> bool:
    """The number of accepted rows is what their own energy errors say, within 5 SE."""
    torch.manual_seed(0)
    state = hmc.hmc_init(curved, 1.0 + 0.7 * torch.randn(10_000, 2, dtype=torch.float64))
    _, info = hmc.hmc_step(state, curved, 1.0, 2)
    p = (-info.energy_error).clamp(max=0.0).exp()
    return bool((info.accepted.sum() - p.sum()).abs() < 5 * (p * (1 - p)).sum().sqrt())


def ais_is_unbiased() -> bool:
    """E[w / Z] = 1 within 5 SE for x = 1.7 of N(z, 0.2), z ~ N(0, 1), and E[log w] < log Z."""
    torch.manual_seed(8)
    datum, variance = 1.7, 0.2

    def log_prior(z):
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    def log_joint(z):
        error = (datum - z[..., 0]).square() / variance
        return log_prior(z) - 0.5 * (error + math.log(2 * math.pi * variance))

    evidence = 1 + variance
    exact = -0.5 * (datum**2 / evidence + math.log(2 * math.pi * evidence))
    b = ais.linear_temperatures(6, dtype=torch.float64).square()
    start = torch.randn(100_000, 1, 1, dtype=torch.float64)
    result = ais.annealed_importance(log_prior, start, log_joint, b, step_size=0.4, num_leapfrog=3)
    ratio = (result.log_weight - exact).exp()
    z = (ratio.mean() - 1) / (ratio.std() / math.sqrt(len(ratio)))
    return bool(z.abs() < 5)


def draws_come_from_the_prior() -> bool:
    """Generated means match the model, though the data lie far away: |z| < 5, 6 coordinates."""
    oracle = PPCA.random(6, 2)
    program = ExactPPCA(oracle)
    far = oracle.sample(400) + 30.0
    Program.of(program).read(far)
    torch.manual_seed(0)
    drawn = generation.generate(program, 400, given=far)
    covariance = oracle.weight @ oracle.weight.T + oracle.scale**2 * torch.eye(6).double()
    error = (covariance.diagonal() / 400).sqrt()
    return bool(((drawn.mean(0) - oracle.mean) / error).abs().max() < 5)


# -- mutants: (check, owner, function, old, new), a list where a bug sits in two places -----------

POSTERIOR_FOR_PRIOR = (
    "draw(joint.model)",
    "draw(poutine.replay(joint.model, trace=poutine.trace(joint.guide)"
    ".get_trace(*joint.args, **joint.kwargs)))",
)
LATE_WEIGHT = (
    "position, accept = state.position, accept + info.accept_prob",
    "position, accept = state.position, accept + info.accept_prob\n"
    "        log_weight = log_weight + path.width(t) * (path.enter(position, t)[1] - log_ratio)",
)

MUTANTS: dict[str, tuple[Callable[[], bool], Any, str, str, str]] = {
    "missing -log K": (
        zero_variance(lambda: pv.IWAE(5)),
        importance,
        "log_mean_exp",
        " - math.log(log_weight.shape[dim])",
        "",
    ),
    "sum over the batch before log-mean-exp": (
        replayed(lambda: pv.IWAE(5), log_mean),
        importance.IWAE,
        "loss_of",
        "log_mean_exp(terms.log_weight, dim=1).mean()",
        "log_mean_exp(terms.log_weight.sum(2), dim=1).mean() / terms.batch_size",
    ),
    "KL weight on the model only": (
        replayed(pv.ELBO, lambda lw: lw.mean(0), beta=0.25),
        Program,
        "joint",
        "ScaleLatents(beta)(model), ScaleLatents(beta)(guide)",
        "ScaleLatents(beta)(model), guide",
    ),
    "N/B missing": (
        zero_variance(lambda: pv.IWAE(5)),
        importance,
        "with_globals",
        "weight.mean() / terms.size",
        "weight.mean() / terms.batch_size",
    ),
    "N/B squared": (
        zero_variance(lambda: pv.IWAE(5), subsample=True),
        site_densities,
        "handler_scale",
        "scale = scale / (frame.full_size / frame.size)",
        "pass",
    ),
    "variance for standard deviation in a density": (
        zero_variance(pv.ELBO),
        dist.Normal,
        "log_prob",
        "var = self.scale**2",
        "var = self.scale",
    ),
    "log-determinant of the wrong sign": (
        zero_variance(pv.ELBO),
        dist.MultivariateNormal,
        "log_prob",
        "- half_log_det",
        "+ half_log_det",
    ),
    "STL detach missing": (
        guide_gradient_vanishes,
        pathwise._PathObjective,
        "loss_of_joint",
        "kept = torch.full_like(v, 1.0 / v.shape[1]), torch.zeros_like(v)",
        "kept = v, v",
    ),
    "score-function term of the wrong sign": (
        unbiased(pv.ELBO, Toy(True, (2, 2))),
        objectives.ELBO,
        "loss_of",
        "+ _score_term(terms.score,",
        "- _score_term(terms.score,",
    ),
    "baseline leaks gradient": (
        baseline_learns_by_least_squares,
        discrete.NVIL,
        "loss_of_joint",
        "centred = residual.detach()",
        "centred = residual",
    ),
    "signals of other data": (
        data_stay_apart,
        discrete.DisARM,
        "_surrogate",
        "half = half.reshape(half.shape + (1,) * len(distribution.event_shape))",
        "half = half.sum()",
    ),
    "closed-form KL of a bottom-up guide": (
        unbiased(pv.AnalyticELBO, Toy(False, (1, 1), "bottom_up")),
        objectives,
        "analytic_sites",
        "parents <= drawn and ",
        "",
    ),
    "Metropolis step dropped": (
        hmc_keeps_the_target,
        hmc,
        "_decide",
        "_uniform(accept_prob, generator) < accept_prob",
        "accept_prob >= 0.0",
    ),
    "momentum not resampled": (
        momentum_is_fresh,
        hmc,
        "_draw_momentum",
        "position.shape, generator=generator,",
        "position.shape, generator=torch.Generator().manual_seed(0),",
    ),
    "joint accept over the batch": (
        rows_accept_alone,
        hmc,
        "_acceptance",
        "(-energy_error)",
        "(-energy_error.sum().expand_as(energy_error))",
    ),
    "half-step missing in leapfrog": (
        leapfrog_reverses,
        hmc,
        "leapfrog",
        "log_prob, grad = log_prob_and_grad(log_density, position, create_graph)\n"
        "        momentum = momentum + 0.5 * step * grad",
        "log_prob, grad = log_prob_and_grad(log_density, position, create_graph)",
    ),
    "AIS weight at the new state": (ais_is_unbiased, ais, "annealed_importance", *LATE_WEIGHT),
    "AIS temperatures off by one": (
        ais_is_unbiased,
        ais,
        "annealed_importance",
        "path.log_density(t), t)",
        "path.log_density(t - 1), t)",
    ),
    "posterior in place of the prior": (
        draws_come_from_the_prior,
        simulation,
        "_run",
        *POSTERIOR_FOR_PRIOR,
    ),
}


def plant(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, old: str, new: str) -> None:
    """Replace a function or method by one compiled from its source with one piece changed."""
    function = inspect.unwrap(getattr(owner, name))
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{old!r} is not once in {name}: rewrite this mutant"
    namespace: dict[str, Any] = {}
    exec(
        compile(source.replace(old, new), f"<mutant of {name}>", "exec"),
        function.__globals__,
        namespace,
    )
    mutant = namespace[name]
    monkeypatch.setattr(owner, name, mutant)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, monkeypatch):
    check, *change = MUTANTS[name]
    torch.manual_seed(0)
    assert check(), "the check fails on the code as it is"
    plant(monkeypatch, *change)
    torch.manual_seed(0)
    with suppress(ProgramError):  # the library itself has refused to answer
        assert not check(), f"{name}: planted, and not caught"


def test_there_are_enough_mutants():
    assert len(MUTANTS) >= 15


def test_kl_weight_reaches_both_sides():
    """The handler itself: beta on one side alone is not the weighted loss."""
    program, x = Noisy(), torch.ones(4, 2, dtype=torch.float64)
    both = Joint(ScaleLatents(0.25)(program.model), ScaleLatents(0.25)(program.guide), (x,))
    one = Joint(ScaleLatents(0.25)(program.model), program.guide, (x,))
    losses = []
    for joint in (both, one):
        torch.manual_seed(0)
        losses.append(pv.ELBO().per_datum(joint))
    assert abs(losses[0] - losses[1]) > 0.05
