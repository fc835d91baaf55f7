"""``pv.elbo`` and ``pv.log_likelihood``: chunks, memory, and what they say of their own quality."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import PPCA, ExactPPCA
from programs import CASES, densities_at, made
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    init_to_mean,
)
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ProgramError
from pyro_vae.evaluation import likelihood
from pyro_vae.evaluation.likelihood import LogLikelihood, RunningWeights
from pyro_vae.inference.sampling.importance_weights import (
    effective_sample_size,
    log_mean_exp,
    psis_k,
)


class Scaled(nn.Module):
    """A conjugate Gaussian in one dimension whose guide is the posterior, its scale times c."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))
        self.largest = 0

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            self.largest = max(self.largest, z.numel())
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0] / 2, self.factor * 0.5**0.5))

    @staticmethod
    def exact(x):
        return dist.Normal(0.0, 2**0.5).log_prob(x[:, 0])


X = torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("sizes", [[200], [50] * 4, [1] * 200, [7, 150, 43], [199, 1]])
def test_folding_in_chunks_equals_one_pass(sizes):
    log_weight = 3 * torch.randn(200, 6, dtype=torch.float64) - 1000
    running = RunningWeights()
    for chunk in log_weight.split(sizes):
        running.add(chunk, total=200)
    exact = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(running.log_mean(), log_mean_exp(log_weight), **exact)
    torch.testing.assert_close(running.ess(), effective_sample_size(log_weight), rtol=1e-9, atol=0)
    torch.testing.assert_close(running.psis_k(), psis_k(log_weight), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rows", [64, 500])
def test_small_passes_equal_large_ones(rows, monkeypatch):
    """Zero variance: whatever is drawn in whatever pieces, the number is the same."""
    oracle = PPCA.random(6, 2)
    x = oracle.sample(30)
    monkeypatch.setattr(likelihood, "_ROWS_PER_PASS", rows)
    monkeypatch.setattr(likelihood, "_DATA_PER_PASS", 7)
    estimate = pv.log_likelihood(ExactPPCA(oracle), x, num_particles=33)
    torch.testing.assert_close(estimate.log_prob, oracle.log_prob(x), rtol=1e-10, atol=1e-10)
    assert estimate.samples == 33


def test_memory_does_not_grow_with_the_samples():
    largest = []
    for samples in (500, 5_000, 50_000):
        program = Scaled(1.2)
        pv.log_likelihood(program, X[:3], num_particles=samples)
        largest.append(program.largest)
    assert largest[1] == largest[2] <= likelihood._ROWS_PER_PASS + 3
    program = Scaled(1.2)
    pv.log_likelihood(program, X.repeat(50, 1), num_particles=200)
    assert program.largest <= likelihood._ROWS_PER_PASS


@pytest.mark.parametrize("factor", [1.2, 2.0])
def test_estimate_and_ess_of_a_wide_guide(factor, device):
    """|z| < 5 (false alarm 6e-7 per datum): weights have finite variance, known in closed form."""
    samples = 20_000
    x = X.to(device)
    estimate = pv.log_likelihood(Scaled(factor).to(device), x, num_particles=samples)
    second_moment = factor / math.sqrt(2 - 1 / factor**2)  # E_q w² over (E_q w)²
    deviation = math.sqrt((second_moment - 1) / samples)
    z = (estimate.log_prob - Scaled.exact(x)) / deviation
    assert z.abs().max() < 5
    torch.testing.assert_close(
        estimate.ess, torch.full_like(estimate.ess, samples / second_moment), rtol=0.05, atol=0
    )
    assert estimate.psis_k.max() < 0.2 and estimate.untrusted == 0


@pytest.mark.parametrize("factor", [0.8, 0.6, 0.4])
def test_pareto_shape_of_a_narrow_guide(factor):
    """The weights' tail index is 1 - c²; the mean over 40 data of its estimate is near it."""
    estimate = pv.log_likelihood(Scaled(factor), X, num_particles=20_000)
    assert estimate.psis_k.mean().item() == pytest.approx(1 - factor**2, abs=0.12)
    assert (estimate.untrusted > 0.5) == (1 - factor**2 > 0.75)
    assert (estimate.ess < 20_000 * (1 - (1 - factor**2) / 4)).all()


def test_more_samples_tighten_the_bound():
    program = Scaled(0.5)
    means = [pv.elbo(program, X).mean().item()]
    means += [pv.log_likelihood(program, X, num_particles=k).mean for k in (10, 100, 5000)]
    assert means == sorted(means) and means[-1] < Scaled.exact(X).mean().item() + 0.05


def test_one_sample_has_no_spread():
    estimate = pv.log_likelihood(Scaled(1.5), X, num_particles=1)
    assert (estimate.ess - 1).abs().max() < 1e-9 and torch.isinf(estimate.psis_k).all()


def test_summary():
    estimate = LogLikelihood(
        torch.tensor([-1.0, -3.0]), torch.tensor([5.0, 7.0]), torch.tensor([0.1, 0.9]), 10
    )
    assert estimate.mean == -2.0 and estimate.stderr == pytest.approx(1.0)
    assert estimate.untrusted == 0.5 and "-2.0000" in repr(estimate)
    assert math.isnan(LogLikelihood(*[torch.zeros(1)] * 3, 1).stderr)


class Offset(nn.Module):
    """A global offset w with q(w) = N(m, s²), local z with its exact posterior given w."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.scale = 0.5

    def model(self, x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal((z + w)[..., None], 1.0).to_event(1), obs=x)

    def guide(self, x):
        w = pyro.sample("w", dist.Normal(self.loc, self.scale))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x[:, 0] - w) / 2, 0.5**0.5))


def test_globals_are_averaged_inside_the_logarithm():
    """log E_q(w) p(x | w) = log N(x; m, 2 + s²); each datum within 5 standard errors."""
    program, draws = Offset(), 1000
    estimate = pv.log_likelihood(program, X[:5], num_particles=1, num_global_samples=draws)
    exact = dist.Normal(0.3, (2 + 0.25) ** 0.5).log_prob(X[:5, 0])
    w = 0.3 + 0.5 * torch.randn(100_000, dtype=torch.float64)
    spread = dist.Normal(w, 2**0.5).log_prob(X[:5]).exp()
    error = spread.std(1) / spread.mean(1) / math.sqrt(draws)
    assert ((estimate.log_prob - exact) / error).abs().max() < 5
    assert estimate.samples == draws
    # One draw at K = 3 is exact given w, and tells nothing of the spread between draws.
    again = pv.log_likelihood(program, X[:5], num_particles=3, num_global_samples=1)
    assert again.ess.isnan().all() and math.isnan(again.stderr)
    # Three particles that weigh the same count as one: the spread is that of the globals alone.
    exact_ess = 1 / ((spread.var(1) / spread.mean(1) ** 2) / draws)
    torch.testing.assert_close(estimate.ess, 1 / (1 / exact_ess + 1 / draws), rtol=0.2, atol=0)


def test_the_stated_errors_cover_the_draws_of_the_globals():
    """100 replications: 88 to 99 % of estimates within two stated errors, of a datum and the mean.

    A binomial share of 95 % over 100 leaves this interval with probability below 1 %.
    """
    program, x = Offset(), X[10:30]
    exact = dist.Normal(0.3, (2 + 0.25) ** 0.5).log_prob(x[:, 0])
    inside = torch.zeros(2)
    for seed in range(100):
        torch.manual_seed(seed)
        found = pv.log_likelihood(program, x, num_particles=20, num_global_samples=25)
        assert (found.ess < 500).all()
        over_data = found.log_prob.var() / len(x)
        shared = (found.stderr**2 - over_data.item()) ** 0.5
        inside[0] += abs(found.log_prob[3] - exact[3]) < 2 * found.noise[3]
        inside[1] += abs(found.mean - exact.mean()) < 2 * shared
    assert ((inside / 100 >= 0.88) & (inside / 100 <= 0.99)).all(), inside / 100


def test_the_tail_of_all_weights_is_kept():
    """The Pareto shape is the larger of that of all S K weights and that of the S means."""
    program = Offset()
    few = pv.log_likelihood(program, X[:3], num_particles=50, num_global_samples=4)
    assert few.psis_k.isinf().all() and math.isnan(few.untrusted)  # of four draws nothing is known
    assert ", num_particles=50, num_global_samples=4, median ess=" in repr(few)
    assert repr(few).endswith(", k unknown (num_global_samples=21 tells it))")
    many = pv.log_likelihood(program, X[:3], num_particles=1, num_global_samples=400)
    assert many.psis_k.isfinite().all()
    assert (many.psis_k >= psis_k(many.by_global, 0) - 1e-9).all()


class Regression(nn.Module):
    """A Bayesian slope: no latent of a datum."""

    def __init__(self, point=False):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.point = point

    def slope(self):
        return self.loc if self.point else pyro.sample("slope", dist.Normal(self.loc * 0, 1.0))

    def model(self, x, y):
        slope = self.slope()
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 0.5), obs=y)

    def guide(self, x, y):
        if not self.point:
            pyro.sample("slope", dist.Normal(self.loc, 0.1))


def test_an_unknown_error_is_not_shown_as_a_number():
    """Of one draw of what all data share, and of one datum."""
    one = repr(pv.log_likelihood(Regression(), (X[:, 0], X[:, 0]), num_global_samples=1))
    assert "nan" not in one and one.endswith("error and k unknown (one draw of the globals))")
    assert "nan" not in repr(pv.log_likelihood(Scaled(1.0), X[:1], num_particles=30))
    point = pv.Program(Regression().model, AutoDelta(Regression().model))
    told = repr(pv.log_likelihood(point, (X[:, 0], X[:, 0]), num_global_samples=10))
    assert "±" in told and told.endswith(
        ", k unknown (the globals are one point, which each draw is))"
    )


def test_a_model_with_noise_of_its_own_is_run_for_each_draw_of_the_globals():
    """p(y) = ∫ N(y; w x + e, s²) N(e; 0, 1) de = N(y; w x, s² + 1) at a guide of one w.

    The variance of one draw is N(y; w x, s²/2 + 1) / (2 s √π) - p(y)²; |z| < 5: 1.2e-5.
    """
    draws, x = 2000, torch.linspace(-2, 2, 20)
    y = 2 * x + torch.linspace(-1.5, 1.5, 20)

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        e = torch.randn(len(x))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x + e, 0.5), obs=y)

    def guide(x, y):
        pyro.sample("w", dist.Delta(pyro.param("at", torch.tensor(2.0))))

    torch.manual_seed(0)
    found = pv.log_likelihood(pv.Program(model, guide), (x, y), num_global_samples=draws)
    exact = dist.Normal(2 * x, 1.25**0.5).log_prob(y).exp()
    squares = dist.Normal(2 * x, 1.125**0.5).log_prob(y).exp() / math.pi**0.5
    z = (found.log_prob.exp() - exact) / ((squares - exact**2) / draws).sqrt()
    assert z.abs().max() < 5


def test_likelihood_without_local_latents():
    """log E_q(w) p(y | w) = log N(y; 0.5 x, 0.25 + 0.01 x²), within five stated errors."""
    x = torch.linspace(-2, 2, 200, dtype=torch.float64)
    y = x + 0.1
    found = pv.log_likelihood(Regression(), (x, y), num_global_samples=400)
    exact = dist.Normal(0.5 * x, (0.25 + 0.01 * x**2).sqrt()).log_prob(y)
    assert ((found.log_prob - exact) / found.noise).abs().max() < 5
    assert found.samples == 400 and len(found.by_global) == 400
    point = pv.log_likelihood(Regression(point=True), (x, y))
    torch.testing.assert_close(point.log_prob, dist.Normal(0.5 * x, 0.5).log_prob(y))
    assert point.samples == 1 and (point.noise == 0).all()


def test_a_point_of_a_density_is_told_of_as_no_bound():
    """log p(x, z) at the mode is log p(x) + log p(z | x), of which the second may have any sign."""

    class Mode(Scaled):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(x[:, 0] / 2))

    mode = Mode(1.0)
    with pytest.warns(UserWarning, match="site 'z': the guide is a point mass .*neither log p"):
        found = pv.log_likelihood(mode, X, num_particles=3)
    height = dist.Normal(0.0, 0.5**0.5).log_prob(torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(found.log_prob, Scaled.exact(X) + height)
    with pytest.warns(UserWarning, match="elbo: site 'z': the guide is a point mass"):
        torch.testing.assert_close(pv.elbo(mode, X), found.log_prob)
    with pytest.warns(UserWarning, match="diagnose: site 'z': the guide is a point mass"):
        pv.diagnose(mode, X)
    asked = pv.fitted_log_likelihood(
        mode, X, num_particles=500, warmup=100, num_draws=100
    )  # the way that the warning names
    assert ((asked.log_prob - Scaled.exact(X)).abs() < 5 * asked.noise + 1e-3).all()


@pytest.mark.filterwarnings("error:.*is a point mass")
def test_a_draw_with_a_density_of_its_own_is_no_point():
    """As a guide writes a draw of a flow: K draws of it are K, and tell how far to trust them."""

    class Drawn(Scaled):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                posterior = dist.Normal(x[:, 0] / 2, 0.5**0.5)
                z = posterior.rsample()
                pyro.sample("z", dist.Delta(z, log_density=posterior.log_prob(z)))

    found = pv.log_likelihood(Drawn(1.0), X, num_particles=7)
    torch.testing.assert_close(found.log_prob, Scaled.exact(X))
    torch.testing.assert_close(found.ess, torch.full_like(found.ess, 7.0))
    torch.testing.assert_close(pv.elbo(Drawn(1.0), X), Scaled.exact(X))


@pytest.mark.filterwarnings("error:.*is a point mass")
def test_a_uniform_draw_has_a_log_density_of_0_and_is_no_point():
    """p(x) of x = u + N(0, 1), u uniform, by its distribution function; |z| < 5 of 4 data."""

    class Uniform(Scaled):
        def model(self, x):
            with pyro.plate("data", len(x)):
                u = pyro.sample("u", dist.Uniform(x.new_zeros(len(x)), 1.0))
                pyro.sample("x", dist.Normal(u, 1.0), obs=x[:, 0])

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("u", dist.Delta(x.new_zeros(len(x)).uniform_(), log_density=0.0))

    torch.manual_seed(0)
    program, below = Uniform(1.0), dist.Normal(0.0, 1.0).cdf
    found = pv.log_likelihood(program, X, num_particles=300)
    exact = (below(X[:, 0]) - below(X[:, 0] - 1)).log()
    assert ((found.log_prob - exact).abs() < 5 * found.noise).all()
    assert (found.ess > 200).all()
    pv.elbo(program, X)
    for objective in (pv.STL(), pv.DReG(), pv.ReweightedWakeSleep()):
        with pytest.raises(ProgramError, match=r"'u': the guide draws it itself .*use pv"):
            pv.fit(program, X, objective=objective, max_steps=1)


class Whole:
    """The same model under an automatic guide."""

    def __init__(self, kind, **more):
        self.guide = kind(self.model, **more)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


@pytest.mark.parametrize("kind", [AutoDelta, AutoLaplaceApproximation])
def test_a_guide_that_is_one_point_of_all_latents_is_told_of(kind):
    with pytest.warns(UserWarning, match="elbo: site 'z': the guide is a point mass .*nor a bound"):
        pv.elbo(Whole(kind), X)
    whole = pv.Program(Whole(kind).model, Whole(kind).guide, whole=True)
    with pytest.warns(UserWarning, match="elbo: site 'z': the guide is a point mass .*nor a bound"):
        pv.elbo(whole, X)
    with pytest.warns(UserWarning, match="nor does pv.elbo bound that: .* point mass at 'z'"):
        pv.log_likelihood(whole, X)


def test_a_joint_guide_draws_as_often_as_it_is_asked():
    """Its draws are of all data: 400 of them had been one; |z| < 5 (false alarm 6e-7)."""
    torch.manual_seed(0)
    program, x = Whole(AutoMultivariateNormal, init_loc_fn=init_to_mean), X[:, 0]
    found = pv.elbo(program, X, num_particles=400).sum()
    # Of z ~ N(0, 0.1²): E log p(x, z) and the entropy; the spread is that of x z - z² + e²/2.
    entropy = 0.5 + math.log(0.1 * (2 * math.pi) ** 0.5)
    exact = -x.square() / 2 - 0.01 - math.log(2 * math.pi) + entropy
    spread = (0.01 * x.square() + 2 * (0.5 - 0.01) ** 2).sum().sqrt()
    assert (found - exact.sum()).abs() < 5 * spread / 20


@pytest.mark.parametrize("rows", [None, torch.arange(len(X))])
def test_each_particle_has_a_draw_in_a_plate_of_a_given_size(rows):
    """A size of the plate says how many data there are, whether it draws its rows or is told."""

    def plate():
        return pyro.plate("data", 1000, subsample_size=len(X), subsample=rows)

    class Sized(Scaled):
        def model(self, x):
            with plate():
                z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with plate():
                posterior = dist.Normal(x / 2, 1.0)
                z = posterior.rsample()
                pyro.sample("z", dist.Delta(z, log_density=posterior.log_prob(z)))

    torch.manual_seed(0)
    x = X[:, 0]
    found = pv.log_likelihood(Sized(1.0), x, num_particles=500)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    assert ((found.log_prob - exact).abs() < 5 * found.noise).all()


def test_each_particle_has_a_draw_that_no_site_makes():
    """Left to a dimension of particles the guide drew once for all of them: a bound, called log p.

    Also in training: the loss of K such draws is that of K draws of a site.
    """

    class Wide(Scaled):
        def __init__(self, by_site):
            super().__init__(1.0)
            self.by_site = by_site

        def guide(self, x):
            with pyro.plate("data", len(x)):
                posterior = dist.Normal(x[:, 0] / 2, self.factor)
                if self.by_site:
                    pyro.sample("z", posterior)
                else:
                    z = posterior.rsample()
                    pyro.sample("z", dist.Delta(z, log_density=posterior.log_prob(z)))

    torch.manual_seed(0)
    found = pv.log_likelihood(Wide(False), X, num_particles=500)
    assert ((found.log_prob - Scaled.exact(X)).abs() < 5 * found.noise).all()
    x, run = X.repeat(50, 1), {"epochs": 1, "batch_size": 2000, "compile": False}
    losses = [
        pv.fit(Wide(by_site), x, objective=pv.IWAE(20), **run).history["loss"][0]
        for by_site in (True, False)
    ]
    # Of 2000 rows each; log weights of 20 draws have a deviation below 0.2: |z| < 5.
    assert abs(losses[0] - losses[1]) < 5 * 0.2 * (2 / 2000) ** 0.5


@pytest.mark.parametrize("points", [True, False])
def test_a_point_beside_a_guide_of_all_data_is_told_of_as_no_bound(points):
    """What a joint site draws has a spread, and is a point for no reason of its density."""

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros_like(x), 1.0))
            b = pyro.sample("b", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    guide = AutoMultivariateNormal(model)
    if points:
        guide = AutoGuideList(model)
        guide.append(AutoDelta(poutine.block(model, hide=["b"])))
        guide.append(AutoMultivariateNormal(poutine.block(model, expose=["b"])))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pv.elbo(pv.Program(model, guide), X[:4, 0])
    found = [str(each.message) for each in told if "is a point mass" in str(each.message)]
    assert [message[:16] for message in found] == ["elbo: site 'a': "] * points


@pytest.mark.parametrize("name", ["labelled", "sequences", "regularised"])
def test_data_do_not_see_each_other(name, device):
    """A datum's estimate does not depend on who shares its batch: log p of one row, exactly."""
    program, data = made(name, device, rows=6)
    program = pv.Program.of(program)
    program.eval()
    data = program.adapt(data)
    first = tuple(v[:2] for v in data) if isinstance(data, tuple) else None
    first = {k: v[:2] for k, v in data.items()} if isinstance(data, dict) else first
    first = data[:2] if first is None else first
    with torch.no_grad(), program.running():
        whole = program.joint(data).terms()
        values = {s: d[0].value for s, d in whole.latents.items()}
        model, guide = densities_at(
            program.joint(first), {s: v[..., :2, :] for s, v in values.items()}
        )
    for site, value in whole.log_p.items():
        torch.testing.assert_close(model.nodes[site]["log_prob"], value[0, 0, :2])
    torch.testing.assert_close(guide.nodes["z"]["log_prob"], whole.log_q["z"][0, 0, :2])


def test_a_wholly_masked_row_has_likelihood_one():
    program = pv.Program.of(CASES["sequences"].build().double())
    data = program.adapt(CASES["sequences"].data(12))
    terms = program.terms(data, 1, 4)
    empty = data["lengths"] == 0
    assert empty.any() and (terms.log_p["x"][..., empty] == 0).all()
    assert (terms.log_p["x"][..., ~empty] < 0).all()


def test_weights_run_in_eval_mode_and_go_back():
    program = CASES["regularised"].build()
    program.train()
    x = CASES["regularised"].data(8)
    buffers = {k: v.clone() for k, v in program.named_buffers()}
    pv.log_likelihood(program, x, num_particles=4)
    pv.elbo(program, x)
    assert all(torch.equal(v, buffers[k]) for k, v in program.named_buffers())
    assert all(part.training for part in program.modules())
