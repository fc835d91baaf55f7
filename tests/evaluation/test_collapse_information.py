"""Information and the aggregate posterior against closed forms, and in pieces."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import CASES
from torch import nn

import pyro_vae as pv
from pyro_vae.conditionals import AR1Prior
from pyro_vae.evaluation import verdicts
from pyro_vae.inference.posterior.information import Information, information
from pyro_vae.program.bounds import scoring


class Gain(nn.Module):
    """q(z | x) = N(a x + b, s²) in each of D units, x ~ N(0, v): q(z) is N(b, a² v + s²)."""

    def __init__(self, gain, scale, shift=0.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(float(gain), dtype=torch.float64))
        self.scale, self.shift = scale, shift

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x[0]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc = self.gain * x + self.shift
            pyro.sample("z", dist.Normal(loc, torch.full_like(loc, self.scale)).to_event(1))

    def exact(self, dims):
        """Return the information and KL(q(z) || p(z)) for x ~ N(0, 1), nats."""
        gain = self.gain.item()
        marginal = gain**2 + self.scale**2
        told = dims / 2 * math.log(marginal / self.scale**2)
        return told, dims / 2 * (marginal + self.shift**2 - 1 - math.log(marginal))


def normal_rows(rows, dims, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, dims, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("gain", "scale", "shift", "dims"),
    [(0.8, 0.6, 0.0, 3), (0.5, 0.5, 0.0, 3), (1.5, 1.0, 1.0, 2), (0.0, 1.0, 0.0, 2)],
)
def test_information_and_the_distance_to_the_prior_enclose_the_closed_forms(
    gain, scale, shift, dims
):
    program, x = Gain(gain, scale, shift), normal_rows(6000, dims)
    information_, distance = program.exact(dims)
    torch.manual_seed(1)
    found = pv.diagnose(program, x)
    told = found.information
    assert not told.saturated
    assert told.lower - 5 * told.stderr < information_ + 1e-9
    assert information_ - 1e-9 < told.upper + 5 * told.upper_stderr
    assert told.marginal_kl_lower - 5 * told.marginal_kl_lower_stderr < distance + 0.02
    assert distance - 0.02 < told.marginal_kl + 5 * told.marginal_kl_stderr
    assert told.marginal_kl_lower >= 0
    # Both ends are near: at these N the bracket is a statement.
    assert told.upper - told.lower < 0.3
    assert told.marginal_kl - told.marginal_kl_lower < 0.3 + 5 * told.marginal_kl_stderr
    spread = math.hypot(found.kl_stderr["z"], dims / math.sqrt(3000))
    assert abs(found.kl["z"] - information_ - distance) < 5 * spread


def test_codes_that_fill_the_prior_are_not_said_to_miss_it():
    """True information 6.93 nats, distance 0: one estimate alone says 0.36 ± 0.04."""
    scale = 2**-0.5
    program, x = Gain(scale, scale), normal_rows(10_000, 20)
    torch.manual_seed(0)
    found = pv.diagnose(program, x)
    told = found.information
    assert program.exact(20)[1] == pytest.approx(0, abs=1e-12)
    assert told.marginal_kl > 5 * told.marginal_kl_stderr  # the upper end alone would mislead
    assert told.marginal_kl_lower == 0.0
    assert "at most" in found.verdict and not any("prior=" in cure for cure in found.cures)
    assert found.verdict.count("±") >= 3


def test_a_saturated_estimate_is_no_number():
    program, x = Gain(0.98, 0.2), normal_rows(1000, 20)
    torch.manual_seed(0)
    found = pv.diagnose(program, x)
    assert found.information.saturated
    assert "KL(q(z)" not in found.verdict and "more data" in found.verdict


def test_a_saturated_estimate_of_some_data_names_how_to_ask_more():
    """A guide that is no factorised Gaussian is run on pairs: of 500 data, unless told."""

    class Joint(Gain):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                scale = torch.full_like(x, 0.2).diag_embed()
                pyro.sample("z", dist.MultivariateNormal(0.98 * x, scale_tril=scale))

    program, x = Joint(0.98, 0.2), normal_rows(700, 20)
    found, more = (pv.diagnose(program, x, rows=rows) for rows in (None, 600))
    assert "500 of the 700 data tell log N = 6.21 nats at most" in found.verdict
    assert "takes more of them: rows=700." in found.verdict
    assert more.information.rows == 600 and "log N = 6.40" in more.verdict


def test_a_monitor_keeps_the_batches_of_an_iterator():
    x = normal_rows(60, 20)
    program = Gain(0.7, 0.5)
    curves = []
    for data in (x, iter(x.split(16)), iter([x.numpy()])):
        monitor = pv.CollapseMonitor(data)
        for epoch in (1, 2):
            monitor(SimpleNamespace(program=program, history={"epoch": [epoch]}))
        curves.append(monitor.history["kl"])
    assert len(curves[0]) == 2
    np.testing.assert_allclose(curves[1:], [curves[0]] * 2)


def test_the_monitors_curve_leaves_out_what_is_saturated():
    class Run:
        program, history = Gain(0.98, 0.2), {"epoch": [1]}

    monitor = pv.CollapseMonitor(normal_rows(500, 20))
    monitor(Run)
    Run.program, Run.history = Gain(0.3, 0.9), {"epoch": [2]}
    monitor(Run)
    curve = monitor.history["marginal_kl"]
    assert math.isnan(curve[0]) and curve[1] == monitor.diagnoses[1].information.marginal_kl
    pv.plots.collapse_curves(monitor.history).canvas.draw()


def test_an_auxiliary_site_leaves_no_distance_to_the_prior():
    class Auxiliary(Gain):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                a = pyro.sample(
                    "a",
                    dist.Normal(torch.zeros_like(x), 0.05).to_event(1),
                    infer={"is_auxiliary": True},
                )
                pyro.sample("z", dist.Normal(0 * a + self.gain * x, 1.0).to_event(1))

    torch.manual_seed(0)
    found = pv.diagnose(Auxiliary(0.5, 1.0), normal_rows(300, 2))
    told = found.information
    assert math.isnan(told.marginal_kl) and math.isnan(told.marginal_kl_lower)
    assert "KL(q(z)" not in found.verdict and math.isfinite(told.lower)
    assert found.as_dict()["information"]["marginal_kl"] is None


# -- in pieces --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vae_conv", "vae_iaf", "hierarchical", "ladder", "regularised"])
def test_the_batch_size_bounds_every_pass_of_every_network(name):
    program, data = CASES[name].build(), CASES[name].data(50)
    # Whether it takes particles side by side is asked once, with two copies of the rows.
    pv.elbo(program, data[:16])
    seen = []
    for module in program.modules():
        if type(module) in (nn.Linear, nn.Conv2d):  # not a flow's: its mean takes 64 points a row
            rows = 3 if isinstance(module, nn.Conv2d) else 1
            module.register_forward_hook(
                lambda _, given, __, kept=rows: seen.append(given[0].shape[:-kept].numel())
            )
    pv.diagnose(program, data, batch_size=16, probes=20)
    assert 8 < max(seen) <= 16


@pytest.mark.parametrize("name", ["vae", "hierarchical", "vae_iaf"])
def test_information_does_not_depend_on_the_pieces(name):
    """With the probes' draws given, pieces change rounding alone."""
    program = CASES[name].build().double()
    x = CASES[name].data(60).double()
    wrapped = pv.Program.of(program)
    wrapped.read(x)

    def told(batch_size):
        with scoring(wrapped):
            torch.manual_seed(4)
            return information(wrapped, x, probes=20, rows=60, batch_size=batch_size)

    whole = told(1024)
    for size in (20, 64):  # the 20 probes stand in one piece: the same random numbers
        again = told(size)
        for field in ("lower", "upper", "marginal_kl", "stderr", "marginal_kl_lower"):
            assert getattr(again, field) == pytest.approx(getattr(whole, field), rel=1e-9)
    small = told(7)  # in pieces of 7 the probes are other draws of the same law
    assert abs(small.lower - whole.lower) < 5 * math.hypot(small.stderr, whole.stderr) + 1e-9


def test_information_asks_a_guide_with_a_factor_per_datum_for_the_factors_of_the_rows():
    """A table of the same q, looked up by row number, has the same numbers as a function of x."""
    x = 3.0 * normal_rows(30, 1)

    def read_off(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    def looked_up(x):
        loc = pyro.param("loc", lambda: normal_rows(30, 1) * 1.5)
        with pyro.plate("data", 30) as rows:
            pyro.sample("z", dist.Normal(loc[rows], 0.5**0.5).to_event(1))

    def told(guide):
        torch.manual_seed(2)
        return pv.diagnose(pv.Program(Gain(1.0, 1.0).model, guide), x, batch_size=11).information

    expected, found = told(read_off), told(looked_up)
    assert expected.lower > 0.5
    for field in ("lower", "upper", "marginal_kl", "marginal_kl_lower"):
        assert getattr(found, field) == pytest.approx(getattr(expected, field), rel=1e-9)


# -- a floor by construction ------------------------------------------------------------------


@pytest.mark.parametrize("excess", [1.0, 0.7])
def test_the_best_factorised_code_of_a_sequence_stands_on_its_floor(excess):
    """A sequence with correlated steps: q = N(0, diag of the precision)⁻¹ has the least KL."""
    steps, alpha = 4, 0.9
    vae = pv.models.VAE(6, 8, (8,), prior=partial(AR1Prior, steps=steps, correlation=alpha))
    vae = vae.double()
    precision = torch.full((steps,), (1 + alpha**2) / (1 - alpha**2), dtype=torch.float64)
    precision[[0, -1]] = 1 / (1 - alpha**2)
    scale = excess * precision.rsqrt().repeat_interleave(2)  # (T, units of a step), row by row
    last = [m for m in vae.encoder.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias[:8] = 0.0
        last.bias[8:] = scale.log()
        q = vae.encoder(torch.zeros(1, 6, dtype=torch.float64))
    torch.testing.assert_close(q.base_dist.scale[0], scale)
    torch.manual_seed(0)
    found = pv.diagnose(vae, torch.bernoulli(torch.rand(200, 6)), num_particles=100)
    # Scales off by a factor cost (c² - 1) / 2 - log c nats each beyond the floor.
    beyond = 8 * ((excess**2 - 1) / 2 - math.log(excess))
    expected = 2 * vae.latent_prior.floor + beyond
    assert abs(found.kl["z"] - expected) < 5 * found.kl_stderr["z"]
    assert found.kl_stderr["z"] < 0.02 < max(beyond, 1)  # the factor 0.7 is 25 errors away


def test_sorted_data_tell_what_shuffled_data_tell():
    """Twelve clusters far apart, one after the other: log 12 nats, of which each alone has none."""
    centres = 40.0 * torch.arange(12, dtype=torch.float64)
    x = centres.repeat_interleave(100)[:, None]
    program = pv.Program.of(Gain(1.0, 1.0))
    program.read(x)
    torch.manual_seed(3)
    with scoring(program):
        found = information(program, x, probes=100, rows=300)
    # 300 of 1200 rows at random: a cluster has 25 of them, give or take 4.2; in the first 300
    # there are three clusters. The cluster sizes cost (12 - 1) / (2 · 300) = 0.02 nats.
    assert found.lower == pytest.approx(math.log(12), abs=0.25)


def test_a_lagging_encoder_is_judged_on_rows_from_everywhere():
    """Of 6,000 sorted held-out data 2,000 are drawn, from all three clusters."""
    x = (40.0 * torch.arange(3, dtype=torch.float64)).repeat_interleave(2000)[:, None]
    program, objective = pv.Program.of(Gain(1.0, 1.0)), pv.Lagging(x)
    program.read(x)
    objective.updates(program)
    objective.after_epoch(SimpleNamespace(program=program))
    highest = objective.state[0].item()
    assert highest == pytest.approx(math.log(3), abs=0.1)


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ((0.0, -0.012), "KL(q(z) || p(z)) about 0.00 ± 0.02."),
        ((0.0, -0.004), "KL(q(z) || p(z)) at least 0.00 ± 0.01 and at most 0.00 ± 0.02."),
        ((0.2, 0.1), "KL(q(z) || p(z)) about 0.15 ± 0.02."),
        ((0.1, 0.2), "KL(q(z) || p(z)) at least 0.10 ± 0.01 and at most 0.20 ± 0.02."),
    ],
)
def test_a_lower_bound_is_not_told_above_an_upper_one(bounds, said):
    low, high = bounds
    told = Information(1.0, 0.9, high, 0.01, 0.02, 0.02, 64, 1000, low, 0.01)
    (text,) = verdicts._informed(SimpleNamespace(information=told))
    assert text == f"Mutual information about 0.95 ± 0.02 nats, {said}"


def test_many_sites_are_told_by_their_sum_and_their_ends():
    """Twenty steps, as `z_1` to `z_20`; the table of the report names each."""
    times = range(1, 21)

    def model(x):
        with pyro.plate("data", len(x)):
            for t in times:
                pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            for t in times:
                pyro.sample(f"z_{t}", dist.Normal(0.1 * t * torch.ones(len(x)), 1.0))

    found = pv.diagnose(pv.Program(model, guide), torch.zeros(10))
    least, most = (pick(found.kl, key=found.kl.get) for pick in (min, max))
    total = sum(found.kl.values())
    ends = f"from {found.kl[least] + 0.0:.2f} ({least}) to {found.kl[most]:.2f} ({most})"
    assert f"0 of 20 units active in 20 sites, KL {total:.2f} nats in all, {ends}." in found.verdict
    assert f"of 1 unit active, {total:.3f} nats in 20 sites; reconstr" in repr(found)
    assert sum(line.startswith("z_") for line in found.report().splitlines()) == 20
