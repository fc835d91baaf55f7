"""Objectives against closed forms: zero-variance programs, and formulas on replayed draws.

Nothing here is statistical: float64 agrees to 1e-10 relative, float32 to 1e-5.
"""

import dataclasses
import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimators import normal
from objective_table import TABLE, of_log_weights
from oracles import EXACT, PPCA, ExactPPCA
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.objectives.importance_weighted import power_mean
from pyro_vae.inference.objectives.stock import StockObjective, as_objective
from pyro_vae.program.densities.joint import Joint

# Those that estimate log p(x) without variance where the guide is the posterior.
ROWS = of_log_weights()
DTYPES = [torch.float64, torch.float32]
N = 12
# A batch of 1, 5 and all N rows, of three sizes of datum and latent: no code knows both.
# In both precisions, and at one draw, at the middle size only: no formula asks for either.
SHAPES = [
    (1, 2, 1, 33, torch.float64),
    *((5, 20, 4, draws, torch.float64) for draws in (1, 33)),
    (5, 20, 4, 33, torch.float32),
    (N, 100, 16, 33, torch.float32),
]

objectives = pytest.mark.parametrize("name", ROWS)
with_and_without_global = pytest.mark.parametrize(
    ("name", "has_global"),
    [(n, g) for n, row in ROWS.items() for g in (False, True) if row.has_globals or not g],
)
exact_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def loss_of(objective, program, batch, size=None, beta=None):
    wrapped = pv.Program.of(program)
    with wrapped.running():
        return objective.per_datum(wrapped.joint(batch, size=size, beta=beta))


def assert_exact(actual, expected, dtype):
    assert actual.dtype == dtype
    torch.testing.assert_close(
        actual.detach().double(), expected, rtol=EXACT[dtype], atol=EXACT[dtype]
    )


def exact_loss(oracle, program, x, rows, size):
    """Return minus the bound per datum: log p(x | w0) on average, and 1/N of log p(w0)."""
    if not program.has_global:
        return -oracle.log_prob(x)[rows].mean()
    shifted = dataclasses.replace(oracle, mean=oracle.mean + program.offset.double())
    return -(shifted.log_prob(x)[rows].mean() + program.log_prob_offset() / size)


@functools.cache
def exact(data_dim, latent_dim, size, dtype, has_global, rows=None):
    """Return an oracle, its program, which is read once for all objectives, and its data."""
    oracle = PPCA.random(data_dim, latent_dim)
    subsample = None if rows is None else torch.tensor(rows)
    program = ExactPPCA(oracle, dtype, has_global=has_global, subsample=subsample)
    return oracle, program, oracle.sample(size).to(dtype)


@pytest.mark.parametrize(("rows", "data_dim", "latent_dim", "num_particles", "dtype"), SHAPES)
@with_and_without_global
def test_zero_variance(name, rows, has_global, num_particles, data_dim, latent_dim, dtype):
    """B of N = 12 rows, through ``per_datum`` and through Pyro's ``differentiable_loss``."""
    oracle, program, x = exact(data_dim, latent_dim, N, dtype, has_global)
    objective = ROWS[name].build(num_particles, 2 if has_global else 1)
    expected = exact_loss(oracle, program, x, slice(rows), N)
    assert_exact(loss_of(objective, program, x[:rows], size=N), expected, dtype)
    alone = exact_loss(oracle, program, x, slice(rows), rows)
    summed = objective.differentiable_loss(program.model, program.guide, x[:rows])
    assert_exact(summed / rows, alone, dtype)


@exact_dtypes
@pytest.mark.parametrize("num_particles", [1, 5])
@with_and_without_global
def test_zero_variance_of_a_program_that_subsamples(name, num_particles, has_global, dtype):
    """The program picks B = 3 of N = 10 rows itself: the bound is per datum, log p(w) bears 1/N."""
    rows = (3, 0, 7)
    oracle, program, x = exact(6, 2, 10, dtype, has_global, rows)
    objective = ROWS[name].build(num_particles, 1)
    if not ROWS[name].has_globals:
        objective = pv.ReweightedWakeSleep(num_particles)  # a dream of 3 rows is no batch of 10
    expected = exact_loss(oracle, program, x, list(rows), 10)
    assert_exact(loss_of(objective, program, x), expected, dtype)
    summed = objective.differentiable_loss(program.model, program.guide, x)
    assert_exact(summed / 10, expected, dtype)  # N times the loss per datum


@objectives
def test_under_no_gradient(name):
    """A validation loss has the value of the training loss."""
    oracle = PPCA.random(6, 2)
    program = ExactPPCA(oracle)
    x = oracle.sample(5)
    with torch.no_grad():
        loss = loss_of(ROWS[name].build(4, 1), program, x)
    assert_exact(loss, -oracle.log_prob(x).mean(), torch.float64)


def test_wake_sleep_refuses_globals():
    program = ExactPPCA(PPCA.random(6, 2), has_global=True)
    with pytest.raises(ProgramError, match="'w' is global"):
        loss_of(pv.ReweightedWakeSleep(2), program, torch.zeros(3, 6).double())


@pytest.mark.parametrize("objective", [pv.RLOO, pv.VIMCO])
def test_leave_one_out_needs_two(objective):
    with pytest.raises(ConfigError, match="got 1, expected at least 2"):
        objective(1)


@pytest.mark.parametrize("alpha", [math.inf, -math.inf, math.nan, True, "1"])
def test_renyi_refuses_an_alpha_that_is_no_finite_number(alpha):
    with pytest.raises(ConfigError, match="expected a finite number"):
        pv.Renyi(alpha)


def order_mean_by_hand(log_weight, alpha):
    """Return the bound of order alpha over dim 0, in double precision."""
    power = 1.0 - alpha
    if abs(power) < 1e-4:  # two cumulants: the next is of the order of power²
        return log_weight.mean(0) + power / 2 * log_weight.var(0, correction=0)
    return ((power * log_weight).logsumexp(0) - math.log(len(log_weight))) / power


@pytest.mark.parametrize(
    "alpha", [-3.0, 0.0, 0.9, 0.999, 1.001, 2.5, *(1 - 2.0**-p for p in (12, 24, 40))]
)
@pytest.mark.parametrize("height", [-800.0, 0.0, 90.0])
def test_renyi_keeps_its_digits(alpha, height):
    """Values to 3e-6 of the largest weight's logarithm, gradients to 1e-5, in single precision."""
    generator = torch.Generator().manual_seed(7)
    exact = 4 * torch.randn(6, 50, generator=generator, dtype=torch.float64) + height
    exact = exact.float().double().requires_grad_()
    single = exact.detach().float().requires_grad_()
    found, expected = power_mean(single, 1.0 - alpha, 0), order_mean_by_hand(exact, alpha)
    scale = 1 + exact.detach().abs().max().item()
    assert (found - expected).abs().max().item() < 3e-6 * scale
    found.sum().backward(), expected.sum().backward()
    torch.testing.assert_close(single.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1 - 1e-7, 1.0])
def test_renyi_of_impossible_draws(alpha):
    """One draw of no density leaves the others below order 1; no draw at all leaves nothing."""
    inf = math.inf
    log_weight = torch.tensor([[-inf, -inf, 3.0], [-2.0, -inf, 3.0]], dtype=torch.float64)
    log_weight.requires_grad_()
    found = power_mean(log_weight, 1.0 - alpha, 0)
    first = -2.0 - math.log(2) / (1 - alpha) if alpha < 1 else -inf
    assert found[0].item() == pytest.approx(first)
    assert found[1].item() == -inf and found[2].item() == pytest.approx(3.0)
    if alpha < 1:
        (grad,) = torch.autograd.grad(found[[0, 2]].sum(), log_weight)
        torch.testing.assert_close(grad[:, 0], torch.tensor([0.0, 1.0], dtype=torch.float64))


# -- replayed draws ------------------------------------------------------------------------------


class Recorded(nn.Module):
    """A Bayesian linear decoder, noisy guides, and a record of what the guide drew.

    w ~ N(0, 1) in Z x D; z_n ~ N(0, 1); x_n ~ N(z_n w, 0.5). The global w is optional.
    """

    def __init__(self, has_global: bool = True, subsample: Tensor | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64) / 2)

        self.has_global, self.subsample = has_global, subsample
        self.loc, self.log_scale, self.gain = draw(2, 4), draw(2, 4), draw(4, 2)
        self.bias, self.spread = draw(4), draw(2)
        self.drawn: list[dict[str, Tensor]] = []

    def plate(self, x: Tensor) -> pyro.plate:
        return pyro.plate("data", len(x), subsample=self.subsample)

    def model(self, x: Tensor) -> None:
        w = self.loc
        if self.has_global:
            prior = dist.Normal(x.new_zeros(2, 4), x.new_ones(()))
            w = pyro.sample("w", prior.to_event(2))
        with self.plate(x) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(())).to_event(1))
            likelihood = dist.Normal(z @ w + self.bias, x.new_full((), 0.5)).to_event(1)
            pyro.sample("x", likelihood, obs=x[rows])

    def guide(self, x: Tensor) -> None:
        drawn = {}
        if self.has_global:
            posterior = dist.Normal(self.loc, self.log_scale.exp())
            drawn["w"] = pyro.sample("w", posterior.to_event(2))
        with self.plate(x) as rows:
            loc = x[rows] @ self.gain
            drawn["z"] = pyro.sample("z", dist.Normal(loc, self.spread.exp()).to_event(1))
        self.drawn.append(drawn)

    def formula(self, x: Tensor, size: int, beta: float, inner, num_global_samples: int) -> Tensor:
        """Return the loss per datum at the recorded draws, written out without Pyro."""
        total = x.new_zeros(())
        # Objectives that cut the draws run the guide a second time, at the same values.
        unique = self.drawn[:: len(self.drawn) // num_global_samples]
        assert len(unique) == num_global_samples
        for drawn in unique:
            z, w = drawn["z"].reshape(-1, len(x), 2), drawn.get("w", self.loc)
            half = x.new_full((), math.log(0.5))
            log_weight = normal(x, z @ w + self.bias, half) + beta * (
                normal(z, torch.zeros_like(z)) - normal(z, x @ self.gain, self.spread)
            )
            total = total + inner(log_weight).mean()
            if self.has_global:
                shared = normal(w, torch.zeros_like(w)) - normal(w, self.loc, self.log_scale)
                total = total + shared.sum() / size
        return -total / num_global_samples


def data(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return 2 * torch.randn(rows, 4, generator=generator, dtype=torch.float64)


@functools.cache
def recorded(where: str) -> tuple[Recorded, Tensor, Tensor]:
    """Return a program, its batch and the rows that it observes, read once for all objectives."""
    x, rows = data(10), torch.tensor([4, 1, 9])
    program = Recorded(where != "local", rows if where == "own plate" else None)
    batch = x[:3] if where == "batch" else x
    pv.Program.of(program).read(batch)
    return program, batch, x[rows] if where == "own plate" else batch


WEIGHED = [
    (None, 1, 2),
    (None, 3, 5),
    (0.3, 3, 5),
    (0.0, 1, 2),
    ("tensor", 1, 2),
    ("by site", 3, 5),
]


@pytest.mark.parametrize(
    ("name", "where", "beta", "num_global_samples", "num_particles"),
    [
        (n, w, *weighed)
        for n, row in ROWS.items()
        for w in ("batch", "full", "own plate", "local")
        if w == "local" or row.has_globals
        for weighed in (WEIGHED[1:3] if w == "full" else WEIGHED)
    ],
)
def test_formula_on_replayed_draws(name, where, num_global_samples, num_particles, beta):
    """Value, and gradient where it is that of the formula: N/B, 1/N, S, K and beta to rounding.

    With beta, a scaled site keeps its weight in the local sum and global sites keep 1.
    """
    if not ROWS[name].has_globals:
        num_global_samples = 1
    program, batch, seen = recorded(where)
    wrapped = pv.Program.of(program)
    joint = wrapped.joint(
        batch,
        size=10,
        beta={"tensor": torch.tensor(0.3, dtype=torch.float64), "by site": {"z": 0.7}}.get(
            beta, beta
        ),
    )
    weight = {None: 1.0, "tensor": 0.3, "by site": 0.7}.get(beta, beta)
    objective = ROWS[name].build(num_particles, num_global_samples)
    if name == "wake-sleep":
        objective = pv.ReweightedWakeSleep(num_particles)
    joint.num_plates  # noqa: B018 - it looks once, before the record starts
    program.drawn.clear()
    with wrapped.running():
        loss = objective.per_datum(joint)
    expected = program.formula(seen, 10, weight, ROWS[name].inner, num_global_samples)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    if ROWS[name].is_gradient:
        parameters = [p for _, p in program.named_parameters()]
        got = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        want = torch.autograd.grad(expected, parameters, allow_unused=True)
        for a, b in zip(got, want, strict=True):
            if b is not None:
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("where", ["batch", "full", "own plate"])
def test_analytic_kl_on_replayed_draws(where):
    """log p(x | z) at the draws, the KL of z in closed form, w by its draws: N/B and 1/N."""
    program, batch, seen = recorded(where)
    wrapped = pv.Program.of(program)
    joint = wrapped.joint(batch, size=10)
    with wrapped.running():
        loss = pv.AnalyticELBO(2, 3).per_datum(joint)
    total = batch.new_zeros(())
    kl = 0.5 * ((seen @ program.gain).square() + (2 * program.spread).exp() - 1) - program.spread
    for drawn in program.drawn[-3:]:
        w, half = drawn["w"], batch.new_full((), math.log(0.5))
        total = total + normal(seen, drawn["z"] @ w + program.bias, half).mean()
        shared = normal(w, torch.zeros_like(w)) - normal(w, program.loc, program.log_scale)
        total = total + shared.sum() / 10 - kl.sum(-1).mean()
    torch.testing.assert_close(loss, -total / 3, rtol=1e-10, atol=1e-10)


# -- Pyro's convention ---------------------------------------------------------------------------

SINGLE_LOSS = {
    name: row
    for name, row in TABLE.items()
    if row.latents in ("paths", "any") and isinstance(row.build(2, 1), pv.TermsObjective)
}
single_losses = pytest.mark.parametrize("name", SINGLE_LOSS)


@single_losses
def test_stock_svi_takes_it(name, store):
    """``SVI.step`` returns N times the loss per datum, moves the parameters, and learns."""
    objective, program = SINGLE_LOSS[name].build(3, 2), Recorded(has_global=False)
    x = data(6)
    before = [p.detach().clone() for p in program.parameters()]

    def model(x):
        pyro.module("program", program)
        program.model(x)

    svi = pyro.infer.SVI(model, program.guide, pyro.optim.Adam({"lr": 0.05}), objective)
    torch.manual_seed(1)
    expected = objective.differentiable_loss(model, program.guide, x).item()
    program.drawn.clear()
    torch.manual_seed(1)
    first = svi.step(x)
    assert first == pytest.approx(expected, rel=1e-12)
    moved = [not torch.equal(a, b) for a, b in zip(before, program.parameters(), strict=True)]
    assert sum(moved) >= 4  # log_scale belongs to w alone
    for _ in range(60):
        last = svi.step(x)
    assert last < first - 5
    torch.manual_seed(1)
    assert svi.evaluate_loss(x) < first


@single_losses
def test_convention_of_the_two_losses(name):
    """The summed loss is N times the loss per datum on the same draws."""
    objective, program = SINGLE_LOSS[name].build(3, 2), Recorded(has_global=False)
    x = data(6)
    joint = Joint(program.model, program.guide, (x,), num_plates=1, size=6)
    torch.manual_seed(2)
    per_datum, size = objective.loss_of_joint(joint)
    torch.manual_seed(2)
    summed = objective.differentiable_loss(program.model, program.guide, x)
    assert size == 6
    torch.testing.assert_close(summed, 6 * per_datum, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "made", [pv.IWAE, pv.MIWAE, lambda: pv.Renyi(0.0), pv.DReG, pv.VIMCO, pv.ReweightedWakeSleep]
)
def test_a_bound_of_several_draws_has_several_unasked(made):
    """At K = 1 it is the ELBO, under another name."""
    assert made().num_particles == 5


def test_what_an_objective_may_be():
    assert isinstance(as_objective(None), pv.ELBO)
    assert isinstance(as_objective(pyro.infer.Trace_ELBO()), StockObjective)
    own = pv.IWAE(3)
    assert as_objective(own) is own
    with pytest.raises(ConfigError, match="expected an instance of"):
        as_objective(pyro.infer.Trace_ELBO)
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match="num_particles: got"):
            pv.ELBO(bad)


def test_objectives_print_as_they_are_written():
    assert repr(pv.IWAE()) == "IWAE(num_particles=5, num_global_samples=1)"
    assert repr(pv.FreeBits(0.5)) == "FreeBits(nats=0.5, per='unit', num_particles=1)"
