"""``pv.ais`` and ``pv.bdmc`` on whole programs: exact values, quadrature, refusals, bookkeeping.

Statistical checks hold ``|z| < 5`` on a fixed seed: a correct estimate fails one with probability
5.7e-7 (two-sided) or 2.9e-7 (one-sided).
"""

import io
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import PPCA, ExactPPCA
from programs import Labelled, binary, common_mean, common_mean_guide, real
from torch import Tensor, nn
from torch import distributions as td

import pyro_vae as pv
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.evaluation import annealed_likelihood as annealing
from pyro_vae.models import Autoencoder, LinearVAE
from pyro_vae.program.densities.log_joint import LogJoint

QUICK = pv.AIS(num_temperatures=2, chains=3, num_leapfrog=1, pilot=20)


def oracle():
    return PPCA.random(5, 2)


def linear(*, exact=False):
    """Return a linear VAE in float64; unless ``exact``, its guide is too wide and shrunk."""
    program = LinearVAE.from_data(oracle().sample(200), 2)
    if not exact:
        with torch.no_grad():
            program.recognition.mul_(0.7)
            program.log_diagonal.add_(0.3)
    return program


def simulated(program, n):
    with torch.no_grad():
        x = program.marginal().sample((n,))
        return x, program.marginal().log_prob(x)


def z_score(values, mean=0.0):
    return ((values.mean() - mean) / (values.std() / math.sqrt(len(values)))).item()


# --- pv.ais: exact oracles ------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_estimates_of_p_are_unbiased(start):
    """E[p̂(x) / p(x)] = 1 over 400 data; false alarms: 5.7e-7."""
    program = linear()
    x, exact = simulated(program, 400)
    settings = pv.AIS(num_temperatures=30, chains=4, num_leapfrog=2, start=start, pilot=60)
    estimate = pv.ais(program, x, settings)
    error = estimate.log_prob - exact
    assert abs(z_score(error.exp(), 1.0)) < 5
    assert error.mean() < 0 and error.std() > 1e-3  # it is noisy: the test above can fail
    assert estimate.samples == 4 and "nats, chains=4," in repr(estimate)
    assert estimate.acceptance.shape == (400,)
    assert 0.2 < estimate.acceptance.mean() < 0.999


def test_annealing_closes_most_of_the_gap_of_the_elbo():
    program = linear()
    x, exact = simulated(program, 80)
    estimate = pv.ais(program, x, pv.AIS(num_temperatures=100, chains=4, num_leapfrog=3, pilot=60))
    loose = (exact - pv.elbo(program, x, num_particles=50)).mean()
    assert (exact - estimate.log_prob).mean() < 0.1 * loose


@pytest.mark.parametrize("settings", [QUICK, pv.AIS(num_temperatures=20, chains=2, pilot=60)])
def test_the_exact_posterior_as_guide_gives_log_p_without_noise(settings):
    program = linear(exact=True)
    x, exact = simulated(program, 30)
    estimate = pv.ais(program, x, settings)
    torch.testing.assert_close(estimate.log_prob, exact, rtol=0, atol=1e-8)
    chains = torch.full_like(exact, settings.chains)
    torch.testing.assert_close(estimate.ess, chains, rtol=1e-8, atol=0)


def test_a_global_is_held_at_one_draw_of_the_guide():
    """q(w) = Delta(w0) and the exact q(z | x, w): the estimate is log p(x | w0), exactly."""
    model = oracle()
    program = ExactPPCA(model, has_global=True)
    x = model.sample(20)
    given = PPCA(model.weight, model.mean + program.offset, model.scale)
    estimate = pv.ais(program, x, QUICK)
    torch.testing.assert_close(estimate.log_prob, given.log_prob(x), rtol=0, atol=1e-8)


def observes_a_double(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=2 * x)


def reads_a_half(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 0.7))


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_traced_paths_have_the_numbers_of_the_program_to_the_bit(start, monkeypatch):
    """Of several batches; `observed` of data that the model computes are held, not read anew."""
    monkeypatch.setattr(annealing, "_ROWS_PER_PASS", 30)
    settings = pv.AIS(num_temperatures=5, chains=3, num_leapfrog=2, start=start, pilot=10)
    calls, mixed = [], annealing.mixture_of
    monkeypatch.setattr(
        annealing, "mixture_of", lambda *args: lambda *at: (calls.append(0), mixed(*args)(*at))[1]
    )
    program, x = linear(), oracle().sample(24)
    computed = pv.Program(observes_a_double, reads_a_half)

    def figures(worth):
        monkeypatch.setattr(annealing, "_WORTH_A_TRACE", worth)
        calls.clear()
        torch.manual_seed(0)
        found = pv.ais(program, x, settings)
        both = pv.bdmc(computed, 12, settings, given=torch.randn(12))
        return [found.log_prob, found.acceptance, both.lower, both.upper], len(calls)

    (eager, many), (traced, few) = figures(math.inf), figures(0)
    assert all(torch.equal(*pair) for pair in zip(eager, traced, strict=True))
    assert few < 20 < many


def test_each_transition_moves_the_bar(monkeypatch):
    """2 passes of 5 in the pilot, 10 // 8 before them, 5 after; on a terminal."""
    out = io.StringIO()
    out.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", out)
    monkeypatch.setattr("pyro_vae.progress.DELAY", 0.0)
    settings = pv.AIS(num_temperatures=5, chains=2, num_leapfrog=1, pilot=10)
    pv.ais(linear(), oracle().sample(3), settings, progress=True)
    assert "/16 [" in out.getvalue() and "transition" in out.getvalue()


class Positive(nn.Module):
    """z ~ Gamma(2, 1.5), x ~ N(z, 0.4), with a log-normal guide that is far from the posterior."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", dist.Normal(z, 0.4), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(torch.zeros_like(x), 0.7))

    @staticmethod
    def prior(x):
        return dist.Gamma(x.new_tensor(2.0), x.new_tensor(1.5))


class Share(Positive):
    """The same with z ~ Beta(2, 3), and a uniform guide."""

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Beta(torch.ones_like(x), torch.ones_like(x)))

    @staticmethod
    def prior(x):
        return dist.Beta(x.new_tensor(2.0), x.new_tensor(3.0))


@pytest.mark.parametrize("start", ["guide", "prior"])
@pytest.mark.parametrize(("build", "upper"), [(Positive, 30.0), (Share, 1.0)])
def test_constrained_supports_against_quadrature(build, upper, start):
    """E[p̂(x) / p(x)] = 1 over 300 data; p(x) by a sum over 200,000 midpoints. 5.7e-7."""
    program = build()
    x = torch.linspace(-0.3, 1.5, 3, dtype=torch.float64)
    width = upper / 200_000
    z = (torch.arange(200_000, dtype=torch.float64) + 0.5) * width
    log_p = program.prior(x).log_prob(z) + td.Normal(z, 0.4).log_prob(x[:, None])
    exact = (log_p.logsumexp(1) + math.log(width)).repeat(100)
    settings = pv.AIS(num_temperatures=30, chains=4, num_leapfrog=2, start=start, pilot=60)
    error = pv.ais(program, x.repeat(100), settings).log_prob - exact
    assert abs(z_score(error.exp(), 1.0)) < 5
    assert 1e-3 < error.std() < 0.5  # noisy enough to be a test, exact enough to be one


def test_a_missing_jacobian_would_be_seen(monkeypatch):
    """The check above fails for densities without |dz/du| in the joint."""
    program = Positive()
    whole = LogJoint.log_joint

    def without(self, u):
        return whole(self, u) - self._values(u)[1]

    x = torch.full((100,), 0.6, dtype=torch.float64)
    settings = pv.AIS(num_temperatures=20, chains=4, num_leapfrog=2, pilot=60)
    right = pv.ais(program, x, settings).log_prob.mean()
    monkeypatch.setattr(LogJoint, "log_joint", without)
    assert (pv.ais(program, x, settings).log_prob.mean() - right).abs() > 0.1


# --- pv.ais: bookkeeping --------------------------------------------------------------------------


def test_chunks_give_what_one_pass_gives(monkeypatch):
    """Without noise to 1e-8; with noise E[p̂ / p] = 1 over chunks of 50 (5.7e-7)."""
    program, exact_guide = linear(), linear(exact=True)
    x, exact = simulated(program, 200)
    monkeypatch.setattr(annealing, "_ROWS_PER_PASS", 200)
    settings = pv.AIS(num_temperatures=5, chains=4, num_leapfrog=1, pilot=20)
    noisy = pv.ais(program, x, settings)
    assert noisy.log_prob.shape == noisy.ess.shape == noisy.acceptance.shape == (200,)
    assert abs(z_score((noisy.log_prob - exact).exp(), 1.0)) < 5
    ordered = pv.ais(exact_guide, x, QUICK)
    torch.testing.assert_close(ordered.log_prob, exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("chains", "n"), [(4, 100), (7, 40), (64, 3)])
def test_memory_is_bounded_by_the_rows_of_a_pass(chains, n, monkeypatch):
    """No site is ever larger than 60 rows, or the chains of one datum where they are more."""
    largest = 0

    class Watched(Positive):
        def model(self, x: Tensor) -> None:
            nonlocal largest
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior(x))
                largest = max(largest, z.numel())
                pyro.sample("x", dist.Normal(z, 0.4), obs=x)

    program, x = Watched(), torch.linspace(0, 1, n, dtype=torch.float64)
    monkeypatch.setattr(annealing, "_ROWS_PER_PASS", 60)
    pv.Program.of(program).read(x[:2])
    settings = pv.AIS(num_temperatures=2, chains=chains, num_leapfrog=1, pilot=20)
    with monkeypatch.context() as patch:  # looking at the data once is not sampling
        patch.setattr(pv.Program, "check", lambda self, data, **options: None)
        pv.ais(program, x, settings)
    assert max(chains, 60 - chains) <= largest <= max(chains, 60)


@pytest.mark.parametrize("verb", ["ais", "bdmc"])
def test_a_seed_repeats_a_run(verb):
    program = linear()
    x, _ = simulated(program, 5)

    def run(seed):
        torch.manual_seed(seed)
        if verb == "ais":
            return pv.ais(program, x, QUICK).log_prob
        bounds = pv.bdmc(program, 5, QUICK)
        return torch.cat([bounds.lower, bounds.upper])

    first, again, other = run(3), run(3), run(4)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_gradients_modes_and_the_store_stay_as_found(store):
    pyro.param("theirs", torch.tensor(1.5))
    program = linear()
    x, _ = simulated(program, 4)
    program.weight.grad = torch.full_like(program.weight, 7.0)
    program.train()
    before = [parameter.detach().clone() for parameter in program.parameters()]
    for result in (pv.ais(program, x, QUICK), pv.bdmc(program, 4, QUICK)):
        assert not any(v.requires_grad for v in vars(result).values() if isinstance(v, Tensor))
    assert torch.equal(program.weight.grad, torch.full_like(program.weight, 7.0))
    assert all(p.grad is None for p in program.parameters() if p is not program.weight)
    assert all(map(torch.equal, before, program.parameters()))
    assert program.training and torch.is_grad_enabled()
    assert dict(store.items()).keys() == {"theirs"} and store["theirs"].item() == 1.5


def test_few_chains_say_nothing_of_the_tail():
    program = linear()
    x, _ = simulated(program, 6)
    few = pv.ais(program, x, pv.AIS(num_temperatures=2, chains=8, num_leapfrog=1, pilot=20))
    assert few.psis_k.isnan().all() and math.isnan(few.untrusted) and "k >" not in repr(few)
    assert few.psis_k.shape == few.ess.shape == (6,)
    many = pv.ais(program, x, pv.AIS(num_temperatures=2, chains=60, num_leapfrog=1, pilot=20))
    assert many.psis_k.isfinite().all() and "k > 0.7" in repr(many)
    assert many.untrusted == (many.psis_k > 0.7).double().mean().item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_temperatures": 0}, "num_temperatures: got 0"),
        ({"chains": 0}, "chains: got 0"),
        ({"num_leapfrog": 1.5}, "num_leapfrog: got 1.5"),
        ({"start": "posterior"}, "start: got 'posterior'"),
        ({"step_size": 0.0}, "step_size: got 0.0"),
        ({"step_size": math.nan}, "step_size: got nan"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        pv.AIS(**options)


# --- what is refused ------------------------------------------------------------------------------


class Nested(nn.Module):
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("units", 2, dim=-2):
                z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            loc = z.sum(-2, keepdim=z.dim() > 2)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("units", 2, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))


class Dependent(nn.Module):
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.LogNormal(torch.zeros_like(x), 1.0))
            z = pyro.sample("z", dist.Uniform(0 * u, u))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.LogNormal(torch.zeros_like(x), 1.0))
            pyro.sample("z", dist.Uniform(0 * u, u))


REFUSED = {
    "dependent": (Dependent, (3,), "'z': the support of Uniform depends on another latent"),
    "autoencoder": (lambda: Autoencoder(5, 2, (4,)).double(), (3, 5), "'z' has no prior"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_programs_that_cannot_be_annealed_are_refused(name):
    build, shape, message = REFUSED[name]
    program, x = build(), torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ProgramError, match=message):
        pv.ais(program, x, QUICK)
    pv.Program.of(program).read(x)
    with pytest.raises(ProgramError, match=message):
        pv.bdmc(program, 3, QUICK)


def test_units_of_a_second_plate_are_annealed_together():
    """log p(x) = log N(x; 0, 3): the mean of 50 data within five errors (false alarm 6e-7)."""
    torch.manual_seed(0)
    program, x = Nested(), real(50)[:, 0].double()
    settings = pv.AIS(num_temperatures=30, chains=16, num_leapfrog=2, pilot=60)
    estimate = pv.ais(program, x, settings)
    off = estimate.log_prob - torch.distributions.Normal(0.0, 3**0.5).log_prob(x)
    assert off.mean().abs() < 5 * off.std() / 50**0.5 and off.std() < 0.2
    sandwich = pv.bdmc(program, 50, settings)
    exact = torch.distributions.Normal(0.0, 3**0.5).log_prob(sandwich.data)
    assert (sandwich.upper - exact).mean().abs() < 0.05
    assert (sandwich.lower - exact).mean().abs() < 0.05


class Seen(nn.Module):
    """x ~ N(z, 1) and z ~ N(y, 1), y ~ N(0, 3) a latent unless it is given."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def model(self, x, y=None):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Normal(torch.zeros_like(x), 3.0), obs=y)
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.Normal(x * 9 / 11 + self.shift, (18 / 11) ** 0.5))
            pyro.sample("z", dist.Normal((x + y) / 2, 0.5**0.5))


@pytest.mark.parametrize("first", ["both", "x alone"])
def test_bdmc_reads_the_sites_of_its_own_inputs(first):
    """Exact guide: both bounds are log p of what is simulated, whatever the program saw before."""
    x = torch.zeros(200, dtype=torch.float64)
    program = Seen()
    for batch in ((x, x), x) if first == "both" else (x, (x, x)):
        pv.elbo(program, batch)
    both = pv.bdmc(program, 200, QUICK, given=(x, x))
    assert isinstance(both.data, tuple) and both.data[1].std() > 2  # y is simulated too
    exact = dist.Normal(0.0, 3.0).log_prob(both.data[1])
    exact = exact + dist.Normal(both.data[1], 2**0.5).log_prob(both.data[0])
    torch.testing.assert_close(both.lower, exact)
    torch.testing.assert_close(both.upper, exact)
    alone = pv.bdmc(program, 200, QUICK, given=x)
    torch.testing.assert_close(alone.lower, dist.Normal(0.0, 11**0.5).log_prob(alone.data))


def test_equal_data_are_annealed_at_one_draw_of_the_globals():
    x = torch.full((3000,), 0.3, dtype=torch.float64)
    # The guide is exact: no noise at all.
    found = pv.ais(pv.Program(common_mean, common_mean_guide), x, QUICK)
    torch.testing.assert_close(found.log_prob, found.log_prob[:1].expand(3000))
    assert "nats given one draw of 'w', chains=" in repr(found) and [*found.held] == ["w"]


def test_both_bounds_are_of_the_globals_that_made_the_data():
    """x ~ N(w, 2) at one w: from bounds without noise follows (x - w)², the same w for all."""
    x = torch.zeros(400, dtype=torch.float64)
    torch.manual_seed(8)
    found = pv.bdmc(pv.Program(common_mean, common_mean_guide), 400, QUICK, given=x)
    torch.testing.assert_close(found.lower, found.upper)  # the guide is exact
    assert "nats given one draw of 'w', 400 simulated" in repr(found)
    square = -4 * found.lower - 2 * math.log(4 * math.pi)
    # (x - w)² = x² - 2 x w + w² for all data: a line in x.
    line = (square - found.data**2).unsqueeze(1)
    design = torch.stack([found.data, torch.ones_like(found.data)], 1)
    (slope, constant), *_ = torch.linalg.lstsq(design, line)
    torch.testing.assert_close(constant, (slope / 2) ** 2)
    assert abs(found.data.mean() + slope / 2) < 5 * (2 / 400) ** 0.5


def test_data_without_continuous_latents_are_scored_exactly():
    """A regression at a point mass, and a mixture: nothing is left to anneal."""
    torch.manual_seed(9)
    x, y = torch.randn(2, 5, dtype=torch.float64)
    slope = torch.tensor(0.7, dtype=torch.float64)

    def line(x, y):
        w = pyro.sample("w", dist.Normal(slope.new_zeros(()), 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 0.5), obs=y)

    def fitted(x, y):
        pyro.sample("w", dist.Delta(slope))

    def mixture(x, y):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.3)))
            pyro.sample("y", dist.Normal(c + x, 0.5), obs=y)

    def guess(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(x.new_tensor(0.9)))

    def of_mixture(x, y):
        parts = [math.log(p) + td.Normal(x + c, 0.5).log_prob(y) for c, p in ((0, 0.7), (1, 0.3))]
        return torch.logaddexp(*parts)

    for model, guide, exact in (
        (line, fitted, lambda x, y: td.Normal(slope * x, 0.5).log_prob(y)),
        (mixture, guess, of_mixture),
        (mixture, lambda x, y: None, of_mixture),
    ):
        program = pv.Program(model, guide)
        answer = pv.ais(program, (x, y), QUICK)
        torch.testing.assert_close(answer.log_prob, exact(x, y))
        torch.testing.assert_close(answer.ess, torch.full_like(x, 3.0))
        assert bool((answer.acceptance == 1).all())
        both = pv.bdmc(program, 5, QUICK, given=(x, y))
        torch.testing.assert_close(both.lower, exact(*both.data))
        torch.testing.assert_close(both.upper, both.lower)
        assert torch.equal(both.data[0], x) and not torch.equal(both.data[1], y)


# --- pv.bdmc --------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_bounds_hold_the_exact_value_between_them(start, monkeypatch):
    """E[lower] <= log p <= E[upper] (2.9e-7 each); E[p̂ / p] = E[p / p̌] = 1 (5.7e-7 each).

    In three chunks: the latents of a datum must follow it.
    """
    program = linear()
    monkeypatch.setattr(annealing, "_ROWS_PER_PASS", 400)
    settings = pv.AIS(num_temperatures=30, chains=4, num_leapfrog=2, start=start, pilot=60)
    bounds = pv.bdmc(program, 250, settings)
    assert bounds.data.shape == (250, 5) and bounds.lower.shape == bounds.upper.shape == (250,)
    with torch.no_grad():
        exact = program.marginal().log_prob(bounds.data)
    below, above = bounds.lower - exact, bounds.upper - exact
    assert z_score(below) < 5 and z_score(above) > -5
    assert abs(z_score(below.exp(), 1.0)) < 5 and abs(z_score((-above).exp(), 1.0)) < 5
    assert bounds.gap == pytest.approx((bounds.upper - bounds.lower).mean().item()) and (
        f"gap={bounds.gap:.3f}" in repr(bounds)
    )


def test_latents_of_another_datum_would_be_seen(monkeypatch):
    """Reverse chains from the latents of the wrong datum give no upper bound: z < -5 above.

    So few temperatures forget nothing: they show that each chunk has the latents of its own data.
    """
    monkeypatch.setattr(annealing, "_ROWS_PER_PASS", 400)
    right = annealing._Path.reverse

    def shuffled(self, latents):
        return right(self, {name: value.roll(1, 0) for name, value in latents.items()})

    program, few = linear(), pv.AIS(num_temperatures=4, chains=4, num_leapfrog=1, pilot=20)

    def above():
        bounds = pv.bdmc(program, 250, few)
        with torch.no_grad():
            return z_score(bounds.upper - program.marginal().log_prob(bounds.data))

    assert above() > -5
    monkeypatch.setattr(annealing._Path, "reverse", shuffled)
    assert above() < -5


def test_the_gap_shrinks_with_the_temperatures():
    """Ten times the temperatures leave less than half of the mean gap (z > 5), here an eighth."""
    few, many = (
        pv.bdmc(linear(), 600, pv.AIS(num_temperatures=num, chains=4, num_leapfrog=3, pilot=60))
        for num in (5, 50)
    )
    assert z_score((few.upper - few.lower) - 2 * (many.upper - many.lower)) > 5


def test_the_exact_posterior_closes_the_gap():
    bounds = pv.bdmc(linear(exact=True), 20, QUICK)
    torch.testing.assert_close(bounds.lower, bounds.upper, rtol=0, atol=1e-8)


def test_simulated_data_keep_the_other_inputs():
    program, y = Labelled(), torch.tensor([2, 0, 1, 1])
    pv.Program.of(program).read((binary(4), y))
    bounds = pv.bdmc(program, 4, QUICK, given=(binary(4), y))
    x, labels = bounds.data
    assert torch.equal(labels, y) and x.shape == (4, 6) and set(x.unique().tolist()) <= {0.0, 1.0}
    assert bounds.lower.isfinite().all() and bounds.upper.isfinite().all()


@pytest.mark.parametrize("kind", ["point", "discrete"])
def test_a_path_leaves_from_the_prior_where_the_guide_has_no_density(kind):
    """E[p(x) estimate] = p(x), by 300 chains per datum: |z| < 5 (false alarm 6e-7 each)."""
    torch.manual_seed(0)
    x, centres = real(4)[:, 0].double(), torch.tensor([-1.0, 1.5], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(x.new_tensor(0.3)))
            z = pyro.sample("z", dist.Normal(centres[k.long()], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            if kind == "discrete":
                pyro.sample("k", dist.Bernoulli(torch.sigmoid(x)))
                pyro.sample("z", dist.Normal(x, 1.0))
            else:
                pyro.sample("z", dist.Delta(x))

    mixture = td.MixtureSameFamily(
        td.Categorical(x.new_tensor([0.7, 0.3])), td.Normal(centres, x.new_tensor(2.0).sqrt())
    )
    settings = pv.AIS(num_temperatures=3, chains=300, num_leapfrog=1, pilot=40)
    answer = pv.ais(pv.Program(model, guide), x, settings)
    spread = (1 / answer.ess - 1 / 300).sqrt()  # of the mean of the weights, relative
    ratio = (answer.log_prob - mixture.log_prob(x)).exp()
    assert ((ratio - 1) / spread).abs().max() < 5
    with pytest.raises(ProgramError, match="start from the prior"):
        pv.ais(pv.Program(model, guide), x, pv.AIS(start="guide"))
