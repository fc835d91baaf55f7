"""``pv.refine`` against exact posteriors; what it reports, and what it does to rows that fail."""

import contextlib
import dataclasses
import functools
import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import PPCA, ExactPPCA
from programs import CASES, made
from torch import Tensor, nn

from pyro_vae.errors import ConfigError, DataError, ProgramError
from pyro_vae.inference.graphs.density_graphs import DensityGraphs
from pyro_vae.inference.posterior.refine import HMC, Refined, refine
from pyro_vae.inference.sampling import adaptation as tuning
from pyro_vae.inference.sampling.diagnostics import ess, split_rhat
from pyro_vae.inference.sampling.hmc import hmc_init, hmc_step
from pyro_vae.models import VAE, Autoencoder
from pyro_vae.program.bounds import scoring
from pyro_vae.program.densities.log_joint import LogJoint
from pyro_vae.program.program import Program

SHORT = HMC(num_draws=12, warmup=6, chains=3, num_leapfrog=2)
FIELDS = ("rhat", "ess", "acceptance", "divergences", "step_size")


def quietly(*args, **options) -> Refined:
    """Refine with chains too short to mix, and no warning of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="refine:")
        return refine(*args, **options)


class Wrong(nn.Module):
    """A pPCA model whose guide is the prior, wide or narrow by a factor, with no look at x."""

    def __init__(self, oracle: PPCA, scale: float = 1.0) -> None:
        super().__init__()
        self.exact = ExactPPCA(oracle)
        self.scale = scale

    def model(self, x: Tensor) -> None:
        self.exact.model(x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            zero = x.new_zeros(len(x), len(self.exact.prior_loc))
            pyro.sample("z", dist.Normal(zero, self.scale).to_event(1))


# --- exactness ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "settings"),
    [(1.0, {}), (0.05, {}), (0.3, {"num_leapfrog": 1}), (0.05, {"shared_step": True})],
)
def test_the_exact_posterior_is_reached_from_a_wrong_guide(scale, settings):
    """pPCA means and variances by |z| < 5 with the reported sample sizes, 10 data x 3 dims.

    False alarms: 30 means and 30 variances at 5.7e-7 each, 3.5e-5 per case.
    """
    oracle = PPCA.random(6, 3)
    x = oracle.sample(10)
    torch.manual_seed(0)
    chosen = HMC(num_draws=200, warmup=120, **settings)
    refined = quietly(Wrong(oracle, scale), x, chosen)
    mean, covariance = oracle.posterior(x)
    assert not refined.divergences.any() and (refined.rhat < 1.15).all()
    scale_of = covariance.diagonal().sqrt()
    z = (refined.mean - mean) / scale_of * refined.ess[:, None].sqrt()
    assert z.abs().max() < 5
    # A variance from M independent draws has a relative spread of sqrt(2 / M); the squares of an
    # MCMC run mix apart from the coordinates, so their own sample size is used.
    squares = ((refined.samples["z"] - mean) / scale_of).square()
    z = (squares.mean((0, 1)) - 1) / (2 / ess(squares)).sqrt()
    assert z.abs().max() < 5
    assert (refined.scale / scale_of - 1).abs().max() < 0.3


class Layered(nn.Module):
    """z2 -> z1 -> x with a positive top, z2 ~ LogNormal, and a label that moves the bottom."""

    def model(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.LogNormal(x.new_zeros(()), 0.5))
            loc = torch.stack([top, -top], -1)
            z = pyro.sample("z", dist.Normal(loc + y[:, None], 0.7).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            one = torch.ones_like(x)
            pyro.sample("top", dist.LogNormal(0.2 * one, 0.5))
            loc = (x[:, None] / 2).expand(len(x), 2)
            pyro.sample("z", dist.Normal(loc, 0.6).to_event(1))


def test_several_sites_constrained_supports_and_inputs():
    """E[z1 + z2 | x, y] in closed form: s ~ N(2 y, 0.98), x ~ N(s, 0.25); and top's by quadrature.

    |z| < 5 on 2 x 6 means. False alarms: 7e-6.
    """
    x, y = torch.linspace(-2, 2, 6).double(), torch.arange(6).double() % 2
    torch.manual_seed(0)
    refined = refine(Layered(), (x, y), HMC(num_draws=400, warmup=200))
    assert set(refined.samples) == {"top", "z"}
    assert refined.samples["z"].shape == (4, 400, 6, 2)
    assert refined.samples["top"].shape == (4, 400, 6) and (refined.samples["top"] > 0).all()
    assert refined.mean["z"].shape == (6, 2) and refined.scale["top"].shape == (6,)
    gain, total = 0.98 / (0.98 + 0.25), 0.98 * 0.25 / (0.98 + 0.25)
    exact = 2 * y + gain * (x - 2 * y)
    error = refined.samples["z"].sum(-1).mean((0, 1)) - exact
    assert (error / math.sqrt(total) * refined.ess.sqrt()).abs().max() < 5
    # top's likelihood: it cancels in the sum, so its posterior is the prior, mean exp(1/8).
    spread = math.exp(0.125) * math.sqrt(math.exp(0.25) - 1)
    error = refined.mean["top"] - math.exp(0.125)
    assert (error / spread * refined.ess.sqrt()).abs().max() < 5


LOOPS = {"vrnn", "sentences_gru"}
DISCRETE = {"sbn", "sbn_autoregressive", "def_poisson", "vq", "vq_conv"}


# Of the parts of a VAE (posteriors, priors, observations) no other density is made: some of these.
ALIKE = {n for n in CASES if n.startswith("vae_")} - {"vae_conv", "vae_iaf", "vae_mixture"}
OTHERS = {"autoencoder", "sentences_lm"}  # without a prior, or a latent


@pytest.mark.parametrize("name", sorted(set(CASES) - DISCRETE - ALIKE - OTHERS))
def test_every_program_runs_and_traced_equals_eager(name, device):
    """In float32, at equal seeds, bit for bit; a loop within a density is so but for rounding."""
    same = functools.partial(torch.allclose, atol=1e-3) if name in LOOPS else torch.equal
    torch.manual_seed(0)
    program, data = made(name, device, torch.float32, rows=5)
    short = dataclasses.replace(SHORT, num_draws=8)
    # On the CPU one_hot looks at the labels' values, which a tracer does not have.
    traced = name != "labelled" or device.type == "cuda"
    expected = (
        contextlib.nullcontext() if traced else pytest.warns(UserWarning, match="runs eagerly")
    )
    torch.manual_seed(1)
    with expected:
        runs = [quietly(program, data, short)]
    torch.manual_seed(1)
    runs.append(quietly(program, data, short, compile=False))
    for site, value in runs[0].samples.items():
        assert same(value, runs[1].samples[site])
        assert value.shape[:3] == (3, 8, 5) and value.isfinite().all()
    for field in FIELDS:
        # About the mean of the middle two draws both lie equally far: rounding orders their ranks.
        ranks = functools.partial(torch.allclose, atol=0.1) if field == "rhat" else same
        alike = ranks if name in LOOPS else same
        assert alike(getattr(runs[0], field), getattr(runs[1], field))
        assert getattr(runs[0], field).shape == (5,)
    assert runs[0].acceptance.min() > 0 and runs[0].acceptance.max() <= 1
    assert not runs[0].divergences.any()


@pytest.mark.parametrize("name", sorted(DISCRETE))
def test_discrete_programs_are_refused(name):
    case = CASES[name]
    with pytest.raises(ProgramError, match="is discrete"):
        quietly(case.build(), case.data(5), SHORT)


def test_global_latents_are_held_at_one_draw_for_all_batches():
    """x ~ N(z + w, s): were w drawn anew per batch, the residuals would jump between batches."""

    class Global(nn.Module):
        def model(self, x: Tensor) -> None:
            w = pyro.sample("w", dist.Normal(x.new_zeros(()), 100.0))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 100.0))
                pyro.sample("x", dist.Normal(z + w, 0.01), obs=x)

        def guide(self, x: Tensor) -> None:
            pyro.sample("w", dist.Normal(x.new_zeros(()), 100.0))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x, 0.01))

    x = torch.arange(8.0).double()
    torch.manual_seed(0)
    settings = HMC(num_draws=20, warmup=100, chains=2, num_leapfrog=3)
    refined = quietly(Global(), x, settings, batch_size=4)
    shift = refined.mean - x
    assert shift.abs().min() > 1 and (shift + refined.held["w"]).abs().max() < 0.05
    assert "20 draws kept given one draw of 'w', " in repr(refined)


# --- what is reported -----------------------------------------------------------------------------


def test_batches_bound_the_rows_and_keep_thins_the_draws_alone():
    rows = []

    class Watched(Wrong):
        def model(self, x: Tensor) -> None:
            rows.append(len(x))
            super().model(x)

    oracle = PPCA.random(4, 2)
    x = oracle.sample(10)
    full = quietly(Watched(oracle), x, SHORT, batch_size=12, compile=False)
    assert max(rows[-100:]) <= 4 and full.samples["z"].shape == (3, 12, 10, 2)
    torch.manual_seed(0)
    full = quietly(Watched(oracle), x, SHORT)
    torch.manual_seed(0)
    thin = quietly(Watched(oracle), x, SHORT, keep=3)
    assert torch.equal(thin.samples["z"], full.samples["z"][:, [3, 7, 11]])
    torch.testing.assert_close(thin.mean, full.samples["z"].mean((0, 1)))
    assert torch.equal(thin.rhat, full.rhat) and torch.equal(thin.mean, full.mean)


def test_draws_keep_the_sites_of_a_datum_together():
    x, y = torch.linspace(-2, 2, 6), torch.zeros(6)
    refined = quietly(Layered(), (x, y), SHORT)
    draws = refined.sample(50)
    assert draws["z"].shape == (50, 6, 2) and draws["top"].shape == (50, 6)
    for row in range(6):
        pairs = {
            (t.item(), *z.tolist())
            for t, z in zip(
                refined.samples["top"][..., row].flatten(),
                refined.samples["z"][..., row, :].reshape(-1, 2),
                strict=True,
            )
        }
        for t, z in zip(draws["top"][:, row], draws["z"][:, row], strict=True):
            assert (t.item(), *z.tolist()) in pairs
    assert len(draws["top"][:, 0].unique()) > 10


class Rows(nn.Module):
    """A density that is 0 everywhere for rows marked in x, or NaN where z0 > 0.

    Reading refuses a parameter that is NaN at the guide's draws.
    """

    def __init__(self, only_half: bool = False) -> None:
        super().__init__()
        self.only_half = only_half

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            bad = (x > 50) & (z[..., 0] > 0) if self.only_half else x > 50
            loc = z.sum(-1) * torch.ones_like(x).masked_fill(
                bad, math.nan if self.only_half else 1e200
            )
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = torch.zeros(len(x), 2).to(x)
            pyro.sample("z", dist.Normal(loc - 1.0, 1e-3).to_event(1))


@pytest.mark.parametrize(("only_half", "length"), [(False, None), (True, 3)])
def test_a_datum_of_nan_density_is_named_and_leaves_the_others_bit_identical(only_half, length):
    clean = torch.linspace(-1, 1, 12).double()
    poisoned = clean.clone()
    poisoned[9] = 100.0
    settings = HMC(num_draws=60, warmup=40, num_leapfrog=length)
    torch.manual_seed(0)
    sound = quietly(Rows(only_half), clean, settings)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"divergent .* in 1 of 12 data: rows 9;"):
        refined = refine(Rows(only_half), poisoned, settings)
    others = torch.arange(12) != 9
    assert torch.equal(refined.samples["z"][:, :, others], sound.samples["z"][:, :, others])
    for field in FIELDS:
        assert torch.equal(getattr(refined, field)[others], getattr(sound, field)[others])
    assert refined.divergences[9] > 0 and refined.divergences[others].sum() == 0
    assert refined.samples["z"].isfinite().all()
    if not only_half:
        assert not refined.mixed[9] and refined.acceptance[9] == 0


def test_one_warning_names_what_did_not_mix():
    """Two modes 20 apart: chains from a guide that covers both stay where they start."""

    class TwoModes(nn.Module):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 10.0))
                pyro.sample("x", dist.Normal(z.square(), 5.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros_like(x), x.sqrt().clamp(min=1)))

    x = torch.tensor([0.0, 100.0, 100.0], dtype=torch.float64)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"R-hat above 1.05") as caught:
        refined = refine(TwoModes(), x, HMC(num_draws=100, warmup=100, chains=8))
    assert len(caught) == 1 and "in 2 of 3 data: rows 1, 2;" in str(caught[0].message)
    assert refined.mixed.tolist() == [True, False, False]
    assert "2 data not mixed" in repr(refined)


# --- warm-up --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spread", "expected"), [(1.0, {2}), (100.0, {6, 8, 12, 16})])
def test_the_length_is_tuned_to_the_target(spread, expected):
    """Two leapfrog steps for a round Gaussian; as long as the longest axis asks for otherwise.

    Best by a grid of whole runs: 2, and about 10 (4 to 5 times the draws per gradient of 2).
    """
    torch.manual_seed(0)
    precision = torch.logspace(0, math.log10(spread), 10).double()
    rotation = torch.linalg.qr(torch.randn(10, 10).double())[0]
    matrix = rotation @ torch.diag(precision) @ rotation.T
    mass = (1 / matrix.diagonal()).expand(100, 10)
    start = torch.randn(4, 100, 10).double() * mass.sqrt()

    def log_density(z: Tensor) -> Tensor:
        return -0.5 * ((z @ matrix) * z).sum(-1)

    step = torch.full((100,), 0.1).double()
    state = hmc_init(log_density, start)
    tuned = tuning.warm_up(state, log_density, step, None, 300, 0.8, mass, 0.3)
    assert tuned.num_leapfrog in expected
    rates = []
    for _ in range(40):
        state, info = hmc_step(
            tuned.state, log_density, tuned.step_size, tuned.num_leapfrog, mass, jitter=0.3
        )
        rates.append(info.accept_prob.mean())
    assert abs(torch.stack(rates).mean().item() - 0.8) < 0.08


def mixing_rate(draws):
    seen = tuning.Mixing()
    seen.add(draws)
    return seen.rates()


@pytest.mark.parametrize("covariance", ["narrow", "correlated"])
def test_the_length_suits_the_chains_of_one_datum(covariance):
    """Four chains and a mass that says nothing: the noise of few draws chose a length of 1."""
    tables = {"narrow": [[0.0036, 0.0], [0.0, 0.09]], "correlated": [[1.0, 0.95], [0.95, 1.0]]}
    precision = torch.tensor(tables[covariance], dtype=torch.float64).inverse()

    def log_density(z):
        return -((z @ precision) * z).sum(-1) / 2

    torch.manual_seed(1)
    state = hmc_init(log_density, torch.randn(4, 1, 2).double())
    step, mass = torch.full((1,), 0.1).double(), torch.ones(1, 2).double()
    tuned = tuning.warm_up(state, log_density, step, None, 200, 0.8, mass, 0.2)
    state, draws = tuned.state, []
    for _ in range(300):
        state, _ = hmc_step(
            state, log_density, tuned.step_size, tuned.num_leapfrog, mass, jitter=0.2
        )
        draws.append(state.position)
    assert split_rhat(torch.stack(draws, 1)).max() < 1.05


def test_the_mixing_rate_of_autoregressive_chains():
    """(1 - phi) / (1 + phi) of the slowest coordinate, from many rows; stuck rows have no say."""
    torch.manual_seed(0)
    phi = torch.tensor([0.2, 0.8], dtype=torch.float64)
    steps = [torch.randn(4, 5000, 2).double()]
    for _ in range(99):
        steps.append(phi * steps[-1] + (1 - phi**2).sqrt() * torch.randn(4, 5000, 2).double())
    draws = torch.stack(steps, 1)
    assert mixing_rate(draws).item() == pytest.approx(0.2 / 1.8, rel=0.15)
    stuck = draws.clone()
    stuck[0, :, :100] = 0.0
    assert mixing_rate(stuck).item() == pytest.approx(
        mixing_rate(draws[:, :, 100:]).item(), rel=1e-12
    )


def test_draws_that_change_sign_on_one_shell_do_not_mix():
    """The coordinates are antithetic, and their squares never move."""
    torch.manual_seed(0)
    radius = torch.randn(4, 1, 50, 2).double()
    signs = (-1.0) ** torch.arange(40).reshape(1, 40, 1, 1)
    assert mixing_rate(radius * signs).item() < 0.05


def test_the_mass_is_the_inverse_of_the_guides_variance():
    scale = torch.tensor([0.01, 1.0, 100.0]).double()
    torch.manual_seed(0)
    found = tuning.start_variance(lambda c: scale * torch.randn(c, 50, 3).double(), 4)
    assert ((found / scale.square()).mean(0) - 1).abs().max() < 0.15  # 50 x 64 draws: 2.5 %
    point = tuning.start_variance(lambda c: torch.ones(c, 2, 3), 4)
    assert (point == 1).all()


# --- graphs ---------------------------------------------------------------------------------------


def test_one_graph_serves_all_full_batches_and_its_weights_are_the_programs():
    torch.manual_seed(0)
    program = Program.of(VAE(6, 2, (8,)).double())
    x = torch.bernoulli(torch.full((10, 6), 0.5)).double()
    program.check(x)
    graphs = DensityGraphs("trace")
    for rows in (x[:4], x[4:8], x[8:]):
        with scoring(program):
            joint = LogJoint(program, rows)
            position = joint.draw_guide(3)
            traced = graphs.density(joint, rows, position)
            exact = joint.log_joint(position)
        assert torch.equal(traced(position), exact) and not traced(position).requires_grad
    assert len(graphs._graphs) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_inductor_gives_the_same_density():
    torch.manual_seed(0)
    program = Program.of(VAE(6, 2, (8,)).double())
    x = torch.bernoulli(torch.full((4, 6), 0.5)).double()
    program.check(x)
    with scoring(program):
        joint = LogJoint(program, x)
        position = joint.draw_guide(3)
        states = [
            hmc_init(DensityGraphs(m).density(joint, x, position), position) for m in (False, True)
        ]
    for eager, compiled in zip(*states, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-10, atol=1e-10)


def test_rows_that_set_a_support_are_held_in_the_graph():
    """z ~ U(0, c), c the datum's: each batch has bounds of its own."""

    class Bounded(nn.Module):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Uniform(0 * x, x))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Uniform(0 * x, x))

    x = torch.logspace(-1, 2, 6).double()
    runs = []
    for mode in ("trace", False):
        torch.manual_seed(0)
        runs.append(quietly(Bounded(), x, SHORT, batch_size=9, compile=mode).samples["z"])
    assert torch.equal(*runs) and (runs[0] < x).all() and (runs[0][..., 5] > 1).all()


def test_what_cannot_be_traced_runs_eagerly_with_one_warning():
    class Branching(Wrong):
        def model(self, x: Tensor) -> None:
            if x.sum().item() > 1e9:
                raise RuntimeError("never")
            super().model(x)

    oracle = PPCA.random(4, 2)
    x = oracle.sample(6)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="runs eagerly: a tensor becomes a number") as caught:
        found = quietly(Branching(oracle), x, SHORT, batch_size=9)
    assert len(caught) == 1
    torch.manual_seed(0)
    eager = quietly(Wrong(oracle), x, SHORT, batch_size=9, compile=False)
    assert torch.equal(found.samples["z"], eager.samples["z"])


# --- refusals, devices ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_draws": 0},
        {"warmup": -1},
        {"warmup": 0},
        {"chains": 0},
        {"num_leapfrog": 0},
        {"step_size": 0.0},
        {"step_size": math.nan},
        {"target_accept": 1.0},
        {"jitter": 1.0},
        {"start": "zero"},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        HMC(**wrong)


def test_bad_requests_are_refused():
    oracle = PPCA.random(4, 2)
    x = oracle.sample(3)
    for options in ({"batch_size": 0}, {"keep": 0}, {"compile": "fast"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            refine(Wrong(oracle), x, SHORT, **options)
    with pytest.raises(DataError, match="nan"):
        refine(Wrong(oracle), x * math.nan, SHORT)
    with pytest.raises(ProgramError, match="has no prior"):
        refine(Autoencoder(4, 2, (4,)), x, SHORT)
    with pytest.raises(ConfigError, match="n: got 0"):
        quietly(Wrong(oracle), x, SHORT).sample(0)


def test_discrete_latents_are_refused():
    class Discrete(nn.Module):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                k = pyro.sample("k", dist.Bernoulli(torch.full_like(x, 0.5)))
                pyro.sample("x", dist.Normal(k, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("k", dist.Bernoulli(torch.full_like(x, 0.5)))

    with pytest.raises(ProgramError, match=r"'k' is discrete"):
        refine(Discrete(), torch.zeros(3), SHORT)


def test_it_runs_on_meta():
    program = VAE(6, 2, (8,)).to("meta")
    settings = HMC(num_draws=2, warmup=1, chains=2)
    refined = refine(program, torch.zeros(5, 6, device="meta"), settings, batch_size=4)
    assert refined.mean.shape == (5, 2) and refined.rhat.shape == (5,)
    assert refined.sample(3).is_meta


def test_the_program_is_left_as_it_was():
    vae = VAE(6, 2, (8,)).train()
    quietly(vae, torch.zeros(3, 6), SHORT)
    assert vae.training and all(p.grad is None for p in vae.parameters())
    assert all(p.requires_grad for p in vae.parameters())


class Frozen(Wrong):
    """A scale that goes through NumPy: a tracer holds the one of the rows that it saw."""

    def model(self, x: Tensor) -> None:
        scale = 3.0 if x.detach().numpy().max() > 50 else 1.0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)


def test_a_graph_that_is_wrong_on_other_rows_is_left_with_one_warning():
    x = torch.cat([torch.ones(4, 3), torch.full((8, 3), 60.0)]).double()
    program = Frozen(PPCA.random(6, 3))
    runs = []
    for mode in (False, "trace"):
        torch.manual_seed(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            runs.append(refine(program, x, SHORT, batch_size=12, compile=mode).samples["z"])
    assert torch.equal(*runs)
    assert len([w for w in caught if "other rows or latents" in str(w.message)]) == 1


class FrozenLatents(Wrong):
    """Latents that go through NumPy: a tracer holds those at which the chains start."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 3), 1.0).to_event(1))
            shift = torch.as_tensor(np.sin(z.detach().numpy()))
            pyro.sample("x", dist.Normal(z + shift, 1.0).to_event(1), obs=x)


def test_a_graph_that_is_wrong_at_other_latents_is_left_with_one_warning():
    x = torch.linspace(-1, 1, 12).reshape(4, 3).double()
    program = FrozenLatents(PPCA.random(6, 3))
    runs = []
    for mode in (False, "trace"):
        torch.manual_seed(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            runs.append(refine(program, x, SHORT, compile=mode).samples["z"])
    assert torch.equal(*runs)
    assert len([w for w in caught if "other rows or latents" in str(w.message)]) == 1


def test_an_angle_is_drawn_on_its_circle():
    """E[cos z | x] by quadrature, |z| < 5; x = -1.5 puts the mass around the ends of the line."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.VonMises(torch.zeros_like(x), 0.5))
            pyro.sample("x", dist.Normal(z.cos(), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.VonMises(torch.zeros_like(x), 0.5))

    torch.manual_seed(0)
    x = torch.tensor([-1.5, 0.2], dtype=torch.float64)
    found = refine(Program(model, guide), x, HMC(num_draws=1000))
    z = found.samples["z"]
    assert found.mixed.all() and z.abs().max() <= math.pi
    grid = torch.linspace(-math.pi, math.pi, 20_001, dtype=torch.float64)[:, None]
    log_p = dist.VonMises(0.0, 0.5).log_prob(grid) + dist.Normal(grid.cos(), 0.5).log_prob(x)
    weight = log_p.softmax(0)
    exact = (weight * grid.cos()).sum(0)
    spread = (weight * (grid.cos() - exact).square()).sum(0).sqrt()
    effective = torch.stack([ess(z[..., row].cos()) for row in range(2)])
    assert ((z.cos().mean((0, 1)) - exact) / spread * effective.sqrt()).abs().max() < 5


def test_latents_of_another_shape_in_a_later_pass_are_refused_before_its_chains():
    """A step for each column: a stream's second batch has fewer."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))

    stream = iter([torch.zeros(3, 4), torch.zeros(3, 2)])
    settings = HMC(num_draws=4, warmup=0, num_leapfrog=2)
    with pytest.raises(ProgramError, match=r"refine: site 'z'.*\(4,\) and \(2,\)"):
        refine(Program(model, guide), stream, settings, compile=False)
