"""Collapse where it is known exactly: the linear VAE, codes that are or are not told apart."""

import dataclasses
import json
import math
import re
from collections import Counter

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import PPCA
from programs import CASES
from torch import nn

import pyro_vae as pv
from pyro_vae import plots
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.inference.posterior.information import information
from pyro_vae.program.bounds import scoring

EIGENVALUES = torch.tensor([9.0, 4.0, 2.0, 0.8, 0.3, 0.1], dtype=torch.float64)


def data_with(eigenvalues, rows=1000):
    """Return centred data whose covariance (over N) has exactly these eigenvalues."""
    generator = torch.Generator().manual_seed(3)
    raw = torch.randn(rows, len(eigenvalues), generator=generator, dtype=torch.float64)
    raw = raw - raw.mean(0)
    white = torch.linalg.qr(raw)[0] * math.sqrt(rows)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    return (white * eigenvalues.sqrt()) @ rotation.T


def optimum(x, scale, latent_dim):
    """Return the linear VAE at its optimum for a fixed σ (Lucas et al., 2019)."""
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    values, vectors = values.flip(0)[:latent_dim], vectors.flip(1)[:, :latent_dim]
    linear = pv.models.LinearVAE(x.shape[1], latent_dim).double()
    with torch.no_grad():
        linear.weight.copy_(vectors * (values - scale**2).clamp(min=0).sqrt())
        linear.log_scale.fill_(math.log(scale))
    return linear.match_posterior()


@pytest.mark.parametrize(("scale", "active"), [(0.5, 5), (0.7, 4), (1.0, 3), (1.7, 2), (2.5, 1)])
def test_active_units_of_a_linear_vae_are_the_eigenvalues_above_the_noise(scale, active):
    x = data_with(EIGENVALUES)
    assert active == int((scale**2 < EIGENVALUES).sum())
    torch.manual_seed(0)
    found = pv.diagnose(optimum(x, scale, 6), x, num_particles=20)
    assert found.active_units == {"z": active}
    assert found.active_by_kl == {"z": active}
    exact = 0.5 * (EIGENVALUES[:active] / scale**2).log().sum().item()
    # 20 draws per datum: |z| < 5 is a false alarm in 1.7e6; the spread over x is left out, as the
    # mean of the exact KL over these data is the closed form itself.
    spread = _sampling_spread(optimum(x, scale, 6), x) / math.sqrt(20)
    assert abs(found.kl["z"] - exact) < 5 * spread
    variances = found.posterior_variance["z"].sort().values
    expected = (scale**2 / EIGENVALUES).clamp(max=1)
    torch.testing.assert_close(variances, expected.sort().values, rtol=1e-9, atol=0)


def _sampling_spread(linear, x):
    """Standard deviation of the mean over x of log q - log p at one draw per datum."""
    with torch.no_grad():
        q = linear.encoder(x).base_dist
        per_unit = (q.scale**2 - 1).square() / 2 + (q.loc * q.scale).square()
    return math.sqrt(per_unit.sum().item()) / len(x)


def test_training_at_a_fixed_scale_finds_the_same_units():
    x = data_with(EIGENVALUES, 500)
    torch.manual_seed(1)
    linear = pv.models.LinearVAE(6, 4).double()
    with torch.no_grad():
        linear.log_scale.fill_(0.0)
    linear.log_scale.requires_grad_(False)
    objective = pv.AnalyticELBO()
    pv.fit(linear, x, objective=objective, epochs=150, batch_size=250, lr=0.02, progress=False)
    found = pv.diagnose(linear, x)
    assert found.active_units == {"z": 3} and found.active_by_kl == {"z": 3}


def test_information_of_data_drawn_from_the_model_is_the_closed_form():
    """Rows are N(0, WWᵀ + σ²); I(x; z) = ½ Σ log(λ_i / σ²) lies between the two estimates."""
    oracle = PPCA.random(6, 3, orthogonal=True)
    x = oracle.sample(4000, seed=5)
    linear = pv.models.LinearVAE(6, 3).double()
    with torch.no_grad():
        linear.weight.copy_(oracle.weight)
        linear.mean.copy_(oracle.mean)
        linear.log_scale.fill_(math.log(oracle.scale))
    linear.match_posterior()
    exact = 0.5 * (oracle.weight.square().sum(0) / oracle.scale**2 + 1).log().sum().item()
    torch.manual_seed(2)
    told = pv.diagnose(linear, x).information
    assert told.lower - 5 * told.stderr < exact < told.upper + 5 * told.upper_stderr
    assert told.upper - told.lower < 0.2  # the sandwich is thin at this N
    assert abs(told.marginal_kl) < 0.05 + 5 * told.marginal_kl_stderr  # q(z) is the prior
    assert not told.saturated


def test_information_by_matrix_products_equals_that_by_running_the_guide(monkeypatch):
    case = CASES["vae"]
    program = case.build().double()
    x = case.data(60).double()
    wrapped = pv.Program.of(program)
    wrapped.read(x)
    found = []
    for normal in (True, False):
        if not normal:
            monkeypatch.setattr(
                "pyro_vae.inference.posterior.information._normal_of", lambda site: None
            )
        with scoring(wrapped):
            torch.manual_seed(4)
            found.append(information(wrapped, x, probes=50, rows=60))
    assert found[0].probes == found[1].probes == 50
    for name in ("lower", "upper", "marginal_kl", "stderr"):
        assert getattr(found[0], name) == pytest.approx(getattr(found[1], name), rel=1e-9)


class Told(nn.Module):
    """One unit whose mean is gain times x, at a tiny scale: x in {0, 1} is told apart, or not."""

    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(float(gain), dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.gain * x, 0.01).to_event(1))


@pytest.mark.parametrize("copies", [1, 50])
def test_information_of_two_kinds_of_data_is_one_bit_or_nothing(copies):
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(copies, 1)
    told = pv.diagnose(Told(5.0), x).information
    assert told.lower == pytest.approx(math.log(2), rel=1e-9)
    assert told.saturated == (copies == 1)
    torch.manual_seed(0)
    silent = pv.diagnose(Told(0.0), x).information
    assert silent.lower == pytest.approx(0.0, abs=1e-9)
    assert silent.upper == pytest.approx(0.0, abs=1e-9)


def test_a_verdict_names_what_collapsed_and_what_helps():
    x = data_with(EIGENVALUES)
    dead = pv.diagnose(optimum(x, 4.0, 6), x)
    assert dead.collapsed == ("z",) and dead.verdict.startswith("Collapsed")
    assert "0 of 6 units active" in dead.verdict and "decoder ignores it" in dead.verdict
    text = dead.report()
    for cure in ("FreeBits", "TargetKL", "Lagging", "BatchNormGaussian", "skip", "schedules"):
        assert cure in text
    assert max(map(len, text.splitlines())) <= 100
    deaf = optimum(x, 0.1, 4)
    with torch.no_grad():
        deaf.weight.zero_()
    assert pv.diagnose(deaf, x).verdict.startswith("Unheard: the code costs nats")
    alive = pv.diagnose(optimum(x, 0.1, 4), x)
    assert alive.collapsed == () and alive.verdict.startswith("Alive.")
    idle = pv.diagnose(optimum(x, 1.0, 6), x)
    assert (
        idle.verdict.startswith("Alive, with idle units") and "3 of 6 units active" in idle.verdict
    )
    assert "smaller latent_dim" in idle.cures[0]
    assert alive.prior_reconstruction < alive.reconstruction - 10


class Encoded(nn.Module):
    """x ~ N(z, 1), and a code N(gain x + shift, 0.5): with a gain of 0 the same for all data."""

    def __init__(self, gain, shift):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.tensor(float(gain))), shift

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.gain * x + self.shift, 0.5).to_event(1))


@pytest.mark.parametrize(("gain", "shift"), [(0.0, 3.0), (0.5, 1.0)])
def test_the_right_code_is_told_from_that_of_another_datum_and_not_of_the_prior(gain, shift):
    x = 3 + torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)  # other noise than that of x
    found = pv.diagnose(Encoded(gain, shift), x)
    # x_i - gain x_j - shift - noise, with j another row at random.
    apart = x.var(0) * (1 + gain**2) * 399 / 400 + 2 * gain * x.var(0) / 400
    square = ((1 - gain) * x.mean(0) - shift) ** 2 + apart + 0.25
    exact = -(square / 2 + math.log(2 * math.pi) / 2).sum().item()
    error = (square.square().sum() / 2 / 400).sqrt().item()  # |z| < 5
    assert abs(found.other_reconstruction - exact) < 5 * error
    shared = found.verdict.startswith("Collapsed onto a q that is not the prior")
    assert shared == (gain == 0) == ("q(z | x) ignores x: train longer" in found.report())
    assert "nats over that of another datum" in found.verdict and "ignores it" not in found.verdict
    no_pairs = dataclasses.replace(found, information=None)
    assert no_pairs.verdict.split(".")[0] == found.verdict.split(".")[0]


@pytest.mark.parametrize("code", ["other", "prior"])
def test_the_error_of_what_the_right_code_gains_is_its_spread_over_data_sets(code):
    program, gains, errors = Encoded(0.5, 1.0), [], []
    torch.manual_seed(3)
    for x in 3 + torch.randn(120, 30, 2):
        found = pv.diagnose(program, x, probes=1, progress=False)
        gains.append(found.reconstruction - getattr(found, f"{code}_reconstruction"))
        errors.append(found.gain_stderr[code])
    # The root of a variance of 120 numbers has an error of 1 in sqrt(240), 6 %.
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(gains, ddof=1), rel=0.3)


@pytest.mark.parametrize(
    ("gain", "error", "said", "heard"),
    [
        (0.3, 0.4, "Undecided", "gains 0.30 ± 0.40 nats over that of another datum."),
        (-0.2, 0.4, "Undecided", "gains -0.20 ± 0.40 nats over that of another datum."),
        (1.0, 0.6, "Undecided", "gains 1.00 ± 0.60 nats over that of another datum."),
        (0.2, 0.12, "Unheard", "so the decoder ignores it."),
        (0.0, 0.0, "Unheard", "gains 0.00 nats over that of another datum, so the decoder ignores"),
        (0.3, 0.02, "Unheard", "so the decoder hardly uses it."),
        (0.3, math.nan, "Unheard", "so the decoder ignores it."),
        (1.0, 0.4, "Alive", "gains 1.00 ± 0.40 nats over that of another datum."),
        (math.nan, math.nan, "Alive", "nats over one of the prior."),
    ],
)
def test_a_verdict_says_what_the_error_of_the_gain_leaves_open(gain, error, said, heard):
    kl, moved = {"z": 1.0}, {"z": torch.ones(2)}
    found = pv.diagnose(Encoded(0.5, 1.0), torch.zeros(3, 2), probes=1)
    found = dataclasses.replace(found, kl=kl, unit_kl={}, variance=moved, information=None)
    told = {"reconstruction": -3.0, "other_reconstruction": -3.0 - gain}
    far = {"prior_reconstruction": -9.0, "gain_stderr": {"other": error, "prior": 0.1}}
    found = dataclasses.replace(found, **told, **far)
    assert found.verdict.startswith(said) and heard in found.verdict
    assert found.as_dict()["gain_stderr"]["prior"] == 0.1


def test_a_few_rows_do_not_make_a_decoder_deaf():
    """The right code gains 1.3 nats, which rows by the six seldom tell and 600 do."""
    x = 0.8 * torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    program, heads = Encoded(1.0, 0.0), Counter()
    for few in x[:180].split(6):
        found = pv.diagnose(program, few, probes=1)
        heads[re.match(r"\w+", found.verdict)[0]] += 1
        heads["small"] += found.reconstruction - found.other_reconstruction < 0.5
    assert heads["small"] >= 5 and heads["Undecided"] >= 5 and heads["Unheard"] <= 2
    assert pv.diagnose(program, x).verdict.startswith("Alive")


def test_idle_units_that_cost_nats_are_not_said_to_be_free():
    x = data_with(EIGENVALUES)
    found = pv.diagnose(optimum(x, 1.0, 6), x)
    costly = dataclasses.replace(found, unit_kl={"z": found.unit_kl["z"] + 0.5})
    assert "idle units cost nothing" in found.cures[0]
    assert "idle units cost 1.50 nats, and tell nothing" in costly.cures[0]


def test_layers_and_discrete_codes():
    case = CASES["hierarchical"]
    found = pv.diagnose(case.build(), case.data(30))
    assert set(found.kl) == {"z1", "z2"} and found.information is not None
    upper_silent = dataclasses.replace(found, kl={"z2": 0.02, "z1": 9.0})
    assert upper_silent.verdict.startswith("Partly collapsed: z2 carry 0.02 nats together. Layers:")
    assert "TopDownVAE" in " ".join(upper_silent.cures)

    class Discrete(nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(logits=x.new_zeros(4)))
                pyro.sample("x", dist.Normal(z.double()[..., None], 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                code = torch.nn.functional.one_hot(x[:, 0].long(), 4).double()
                pyro.sample("z", dist.Categorical(probs=code))

    x = torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64)
    usage = pv.diagnose(Discrete(), x).codes["z"]
    assert usage.used == 2 and usage.perplexity == pytest.approx(2.0)
    assert usage.counts.tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize("name", ["vae", "hierarchical", "vq", "labelled", "bayesian", "sbn"])
def test_a_diagnosis_is_json_and_a_figure(name):
    found = pv.diagnose(CASES[name].build(), CASES[name].data(20))
    again = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert again["kl"] == found.kl and again["verdict"] == found.verdict
    drawn = plots.diagnosis(found)
    known = (found.kl, found.variance, found.histogram, found.global_kl)
    assert len(drawn.axes) == sum(map(bool, known)) and all(axes.has_data() for axes in drawn.axes)
    drawn.canvas.draw()


def test_the_monitor_draws_curves_and_leaves_the_run_alone():
    case = CASES["vae"]
    x = case.data(60)

    def run(callbacks):
        torch.manual_seed(0)
        program = case.build()
        pv.fit(program, x, epochs=4, batch_size=20, callbacks=callbacks, progress=False, seed=1)
        return program.state_dict()

    monitor = pv.CollapseMonitor(x, every=2)
    watched, alone = run([monitor]), run([])
    assert all(torch.equal(watched[key], alone[key]) for key in alone)
    np.testing.assert_array_equal(monitor.history["epoch"], [2, 4])
    assert set(monitor.history) >= {"kl", "information", "marginal_kl", "active_units"}
    assert monitor.history["kl"][-1] == monitor.diagnoses[-1].total_kl
    assert len(plots.collapse_curves(monitor.history).axes) == 2
    with pytest.raises(DataError, match="empty history"):
        plots.collapse_curves({})


def test_arguments_are_checked():
    with pytest.raises(DataError, match="no arms"):
        plots.cures({})
    case = CASES["vae"]
    for name in ("probes", "rows", "batch_size"):
        with pytest.raises(ConfigError, match=name):
            pv.diagnose(case.build(), case.data(4), **{name: 0})
