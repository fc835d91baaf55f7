"""``pv.infer``: four ways to one posterior, on programs whose posterior is known.

Statistical checks hold ``|z| < 5`` on a fixed seed: a correct estimate fails one with probability
5.7e-7.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import (
    BayesianDecoder,
    Labelled,
    Regularised,
    Sequences,
    binary,
    common_mean,
    steps,
    steps_guide,
)
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError, ProgramError
from pyro_vae.inference.posterior import datum_posterior as posteriors
from pyro_vae.inference.posterior.infer import infer
from pyro_vae.inference.posterior.local_fits import Local
from pyro_vae.inference.posterior.refine import HMC
from pyro_vae.models import LinearVAE

QUICK = {
    "amortised": None,
    "semi": Local(num_steps=10, num_particles=4, patience=None),
    "local": Local(num_steps=30, num_particles=4, start="prior"),
    "hmc": HMC(num_draws=10, warmup=10, chains=2, num_leapfrog=2),
}


def linear(n=20):
    """Return data and a linear VAE with the exact guide."""
    torch.manual_seed(1)
    x = torch.randn(n, 2, dtype=torch.float64) @ torch.randn(2, 5, dtype=torch.float64)
    x = x + 0.5 * torch.randn(n, 5, dtype=torch.float64)
    return x, LinearVAE.from_data(x, 2)


def moments(values, n):
    return values.mean(0), values.std(0) / math.sqrt(n)


@pytest.mark.parametrize("how", ["amortised", "semi", "local"])
def test_mean_draws_and_density_are_those_of_the_exact_posterior(how):
    x, program = linear()
    exact = program.posterior(x)
    found = infer(program, x, how=how)
    mean = exact.mean.detach()
    torch.testing.assert_close(found.mean, mean, rtol=0, atol=1e-9 if how == "amortised" else 1e-3)
    drawn = found.sample(4000)
    assert drawn.shape == (4000, 20, 2)
    assert "(z of 20 data: .mean, .sample(n), .log_prob(values), .log_weight(n))" in repr(found)
    average, error = moments(drawn, 4000)
    assert ((average - found.mean) / error).abs().max() < 5
    spread = exact.covariance_matrix.diagonal(dim1=-2, dim2=-1).detach()
    # The variance of 4000 Gaussian draws has a relative standard error of sqrt(2 / 4000).
    assert (drawn.var(0) / spread - 1).abs().max() < 5 * math.sqrt(2 / 4000)
    density = exact.log_prob(drawn[:50]).detach()
    torch.testing.assert_close(found.log_prob(drawn[:50]), density, rtol=0, atol=2e-2)
    log_prob = program.marginal().log_prob(x).detach()
    torch.testing.assert_close(found.log_weight(3), log_prob.expand(3, 20), rtol=0, atol=2e-2)


def test_hmc_draws_from_the_exact_posterior():
    x, program = linear(n=8)
    found = infer(program, x, how="hmc", settings=HMC(num_draws=400, warmup=100))
    error = found.scale / found.ess[:, None].sqrt()
    z = (found.mean - program.posterior(x).mean.detach()) / error
    assert z.abs().max() < 5
    assert found.sample(7).shape == (7, 8, 2)


@pytest.mark.parametrize("how", ["local", "hmc"])
def test_rows_that_a_guide_has_no_factor_for_are_asked_of_the_model(how):
    x, program = linear(n=20)
    other = pv.Program(program.model, AutoNormal(program.model))
    pv.fit(other, x[:15], epochs=1, device="cpu", compile=False)
    settings = Local() if how == "local" else HMC(num_draws=200, warmup=100)
    torch.manual_seed(0)
    found = pv.infer(other, x[15:], how=how, settings=settings)
    exact = program.posterior(x[15:])
    assert ((found.mean - exact.mean) / exact.stddev).detach().abs().max() < 0.5
    with pytest.raises(DataError, match=r"ask pv\.infer\(program, rows, how='local'\)"):
        pv.log_likelihood(other, x[15:])


def factors(kind, model):
    """Return a guide with one factor per datum, for 15 data."""

    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(15, 2, dtype=x.dtype))
        with pyro.plate("data", len(x)) as rows:
            loc = loc[rows] if kind == "looked up" else loc
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    automatic = {"AutoNormal": AutoNormal, "AutoDiagonalNormal": AutoDiagonalNormal}
    return automatic[kind](model) if kind in automatic else guide


@pytest.mark.parametrize("kind", ["AutoNormal", "AutoDiagonalNormal", "looked up", "whole"])
def test_rows_without_a_factor_are_told_from_the_programs_own_right_after_loading(kind, tmp_path):
    """What a guide knows of 15 data says nothing of 5 others, whose numbers are the first 5."""
    x, program = linear(n=20)

    def build():
        return pv.Program(program.model, factors(kind, program.model))

    saved = build()
    pv.fit(saved, x[:15], epochs=1, device="cpu", compile=False)
    pv.save(saved, tmp_path)
    loaded, again = pv.load(tmp_path, into=build()), pv.load(tmp_path, into=build())
    for verb in (pv.encode, pv.elbo, pv.encode):  # refused at each call
        with pytest.raises(DataError, match=r"got 5 rows, .* 15 .*ask pv\.infer\(program, rows"):
            verb(again, x[15:])
    torch.manual_seed(0)
    found = pv.infer(loaded, x[15:], how="local", settings=Local(num_steps=300))
    exact = program.posterior(x[15:])
    assert ((found.mean - exact.mean) / exact.stddev).detach().abs().max() < 0.5
    assert torch.equal(pv.encode(loaded, x[:15]), pv.encode(saved, x[:15]))


def shifted(x):
    """The posterior of z given w and x is N((w + x) / 2, 1/2), that of w given 60 data narrow."""
    w = pyro.sample("w", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal])
def test_rows_without_a_factor_are_asked_at_the_guides_globals(kind, loaded, tmp_path):
    """All rows at one draw of w, which lies where the guide has it: |z| < 5."""
    torch.manual_seed(0)
    x, new = 2 + 2**0.5 * torch.randn(60), torch.tensor([-3.0, 0.0, 4.0, 9.0])
    program = pv.Program(shifted, kind(shifted))
    pv.fit(program, x, epochs=150, lr=0.05, device="cpu", compile=False)
    if loaded:
        pv.save(program, tmp_path)
        program = pv.load(tmp_path, into=pv.Program(shifted, kind(shifted)))
    found = pv.infer(program, new, how="local", settings=Local(num_steps=300))
    w = 2 * found.mean - new
    torch.testing.assert_close(w, w.mean().expand(4), rtol=0, atol=0.3)
    assert abs(w.mean() - x.mean()) < 5 * (2 / 60) ** 0.5
    log_x = found.log_weight(2000).logsumexp(0) - math.log(2000)
    torch.testing.assert_close(log_x, dist.Normal(w.mean(), 2**0.5).log_prob(new), rtol=0, atol=0.3)


def test_globals_that_a_guide_reads_off_its_rows_are_not_asked_of_others():
    def guide(x):
        pyro.sample("w", dist.Normal(x.mean(), 0.1))
        loc = pyro.param("loc", lambda: torch.zeros(60))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    program = pv.Program(shifted, guide)
    pv.elbo(program, torch.randn(60))
    with pytest.raises(ProgramError, match=r"got 4 rows, expected the 60 .*among the data"):
        pv.infer(program, torch.randn(4), how="local")


PROGRAMS = {
    "labelled": (Labelled, (binary(7), torch.arange(7) % 3)),
    "sequences": (Sequences, {"x": torch.randn(7, 5), "lengths": torch.arange(7) % 5 + 1}),
    "tiled": (Regularised, binary(7)),
}


@pytest.mark.filterwarnings("ignore:refine:UserWarning")  # ten draws mix nothing
@pytest.mark.filterwarnings("ignore:compile:UserWarning")  # one_hot looks at its labels
@pytest.mark.parametrize("how", list(QUICK))
@pytest.mark.parametrize("name", list(PROGRAMS))
def test_any_batch_and_any_program(name, how, monkeypatch):
    monkeypatch.setattr(posteriors, "_ROWS_PER_PASS", 6)  # several passes over data and draws
    build, data = PROGRAMS[name]
    found = infer(build(), data, how=how, settings=QUICK[how])
    assert found.mean.shape == (7, 2)
    for n in (1, 4):
        assert found.sample(n).shape == (n, 7, 2)
    if how != "hmc":
        assert len(found) == 7
        drawn = found.sample(4)
        assert found.log_prob(drawn).shape == (4, 7)
        assert found.log_weight(4).isfinite().all()


def test_passes_change_no_density(monkeypatch):
    x, program = linear()
    found = infer(program, x, how="semi")
    drawn = found.sample(9)
    whole = found.log_prob(drawn)
    monkeypatch.setattr(posteriors, "_ROWS_PER_PASS", 6)
    torch.testing.assert_close(found.log_prob(drawn), whole, rtol=1e-12, atol=1e-12)


class Layers(nn.Module):
    """Two layers, drawn top down in the guide: the lower mean is an average over the upper."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(x.new_zeros(()), 1.0))
            low = pyro.sample("low", dist.Normal(top, 1.0))
            pyro.sample("x", dist.Normal(low, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(x / 3, (2 / 3) ** 0.5))
            pyro.sample("low", dist.Normal((top + x) / 2, 0.5**0.5))


def test_several_latents_are_answered_by_name():
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    found = infer(Layers(), x)
    assert set(found.mean) == {"top", "low"}
    torch.testing.assert_close(found.mean["top"], x / 3)
    # 64 draws of the layer above, whose half has a standard deviation of 0.41.
    assert ((found.mean["low"] - 2 * x / 3) / (0.41 / 8)).abs().max() < 5
    drawn = found.sample(3)
    exact = dist.Normal(0.0, 3**0.5).log_prob(x)
    torch.testing.assert_close(found.log_weight(3), exact.expand(3, 5))
    expected = dist.Normal(x / 3, (2 / 3) ** 0.5).log_prob(drawn["top"]) + dist.Normal(
        (drawn["top"] + x) / 2, 0.5**0.5
    ).log_prob(drawn["low"])
    torch.testing.assert_close(found.log_prob(drawn), expected)


class Switch(nn.Module):
    """A discrete latent."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=x.new_zeros(3)))
            pyro.sample("x", dist.Normal(k.to(x.dtype), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=x[:, None] * x.new_tensor([0.0, 1.0, 2.0])))


def test_discrete_latents_have_draws_but_no_mean_and_no_gaussian():
    x = torch.randn(6)
    found = infer(Switch(), x)
    assert found.sample(4).shape == (4, 6) and found.log_prob(found.sample(4)).shape == (4, 6)
    with pytest.raises(ProgramError, match="'k': Categorical has no known mean"):
        _ = found.mean
    for how in ("semi", "local", "hmc"):
        with pytest.raises(ProgramError, match="'k' is discrete"):
            infer(Switch(), x, how=how)


def test_global_latents_have_no_joint_density():
    found = infer(BayesianDecoder(), torch.randn(5, 6))
    drawn = found.sample(2)
    assert drawn.shape == (2, 5, 2)
    with pytest.raises(ProgramError, match="'weight' is global"):
        found.log_prob(drawn)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"how": "magic"}, "how: got 'magic', expected one of amortised"),
        ({"how": "amortised", "settings": Local()}, "expected none"),
        ({"how": "local", "settings": HMC()}, r"got HMC, expected pv.Local\(...\)"),
        ({"how": "hmc", "settings": Local()}, r"got Local, expected pv.HMC\(...\)"),
    ],
)
def test_wrong_ways_are_refused(arguments, message):
    x, program = linear(n=4)
    with pytest.raises(ConfigError, match=message):
        infer(program, x, **arguments)


def test_latents_of_another_shape_are_refused():
    x, program = linear(n=4)
    found = infer(program, x)
    with pytest.raises(DataError, match=r"expected \(n, 4\)"):
        found.log_prob(torch.zeros(3, 5, 2, dtype=torch.float64))
    with pytest.raises(DataError, match=r"got values of \['y'\], expected \['z'\]"):
        found.log_prob({"y": torch.zeros(3, 4, 2)})
    with pytest.raises(ConfigError, match="n: got 0"):
        found.sample(0)


def test_weights_stay_as_they_are_and_in_their_mode():
    program = pv.models.VAE(6, 2, hidden=(8,))
    before = {k: v.clone() for k, v in program.state_dict().items()}
    infer(program, binary(5), how="local", settings=QUICK["local"]).sample(2)
    assert program.training
    assert all(torch.equal(v, before[k]) for k, v in program.state_dict().items())
    assert all(p.grad is None for p in program.parameters())


class Mixed(nn.Module):
    """A guide whose mean is a draw itself, of an auxiliary or of a global latent: E[z] = 0."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def model(self, x):
        if self.kind == "global":
            pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        above = dist.Normal(x.new_zeros(()), 1.0)
        if self.kind == "global":
            a = pyro.sample("a", above)
        with pyro.plate("data", len(x)):
            if self.kind == "auxiliary":
                a = pyro.sample("a", above, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(a + 0 * x, 0.1))


@pytest.mark.parametrize("kind", ["auxiliary", "global"])
def test_a_mean_below_unseen_latents_is_an_average_and_their_density_unknown(kind):
    """|z| < 5 with the standard error 1 / sqrt(64): a single draw has z = 8 |N(0, 1)|."""
    torch.manual_seed(0)
    found = infer(Mixed(kind), torch.zeros(10, dtype=torch.float64))
    means = torch.stack([found.mean for _ in range(10)])
    assert (8 * means).abs().max() < 5
    with pytest.raises(ProgramError, match=f"'a' is {kind}"):
        found.log_prob(torch.zeros(1, 10, dtype=torch.float64))


@pytest.mark.parametrize("how", ["amortised", "local"])
def test_latents_of_another_event_shape_are_refused(how):
    x, program = linear()
    found = infer(program, x, how=how, settings=QUICK[how])
    for shape in ((5, 20), (5, 20, 1), (5, 20, 2, 1)):
        with pytest.raises(DataError, match=r"'z'.*expected \(n, 20, 2\)"):
            found.log_prob(torch.zeros(shape, dtype=torch.float64))


class Steps(nn.Module):
    """Three independent latents of a datum, in a plate of their own: z ~ N(0, 1), x ~ N(z, 1)."""

    def model(self, x):
        with pyro.plate("steps", 3, dim=-2), pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.mT)

    def guide(self, x):
        with pyro.plate("steps", 3, dim=-2), pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mT / 2, 0.5**0.5))


@pytest.mark.parametrize("how", ["amortised", "semi", "local"])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_the_datum_comes_first_under_a_second_plate(how, rows):
    torch.manual_seed(0)
    x = torch.randn(rows, 3, dtype=torch.float64)
    climb = Local(num_steps=800, patience=None) if how == "local" else None
    found = infer(Steps(), x, how=how, settings=climb)
    assert found.sample(4).shape == (4, rows, 3) and found.mean.shape == (rows, 3)
    torch.testing.assert_close(found.mean, x / 2, rtol=0, atol=0.02 if how == "local" else 1e-6)
    drawn = found.sample(5)
    if how == "local":
        return
    exact = dist.Normal(x / 2, 0.5**0.5).log_prob(drawn).sum(-1)
    torch.testing.assert_close(found.log_prob(drawn), exact, rtol=1e-6, atol=1e-6)
    evidence = dist.Normal(0.0, 2**0.5).log_prob(x).sum(-1)
    torch.testing.assert_close(found.log_weight(2), evidence.expand(2, -1), rtol=1e-6, atol=1e-6)


def test_each_draw_has_globals_of_its_own_that_all_data_share():
    """z is w: a column of the draws per datum is one column, and its n numbers differ."""

    def guide(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(w.expand(len(x)), 1e-12))

    program = pv.Program(common_mean, guide)
    drawn = infer(program, torch.zeros(3000, dtype=torch.float64)).sample(5)
    torch.testing.assert_close(drawn, drawn[:, :1].expand(5, 3000), rtol=0, atol=1e-9)
    assert len(drawn[:, 0].unique()) == 5


def test_angles_have_draws_and_no_gaussian():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.VonMises(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z.cos(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.VonMises(torch.zeros_like(x), 1.0))

    program, x = pv.Program(model, guide), torch.zeros(4)
    assert infer(program, x).sample(3).abs().max() <= 3.1416
    for how in ("semi", "local"):
        with pytest.raises(ProgramError, match=r"site 'z' is an angle.*refine"):
            infer(program, x, how=how)
    with pytest.raises(ProgramError, match="site 'z' is an angle"):
        pv.fitted_log_likelihood(program, x, num_particles=10, warmup=2, num_draws=2)


def test_nothing_is_inferred_without_local_latents():
    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))

    program, x = pv.Program(model, guide), torch.zeros(4)
    for verb in (infer, pv.encode, pv.diagnose, pv.gaps, pv.fitted_log_likelihood):
        with pytest.raises(ProgramError, match=f"{verb.__name__}: the program has no local latent"):
            verb(program, x)
    assert pv.reconstruct(program, x).shape == (4,) and pv.generate(program, 3).shape == (3,)


def test_a_step_that_some_data_lack_is_not_a_number():
    """Sorted sequences: the last alone has a second step, which the first passes do not know."""
    x, lengths = torch.randn(5000, 2), torch.ones(5000, dtype=torch.long)
    lengths[-1] = 2
    drawn = infer(pv.Program(steps, steps_guide), (x, lengths)).sample(2)
    assert drawn["z_0"].isfinite().all() and drawn["z_1"][:, :2048].isnan().all()
    assert drawn["z_1"][:, -1].isfinite().all()


def test_all_data_of_a_guide_of_factors_are_worked_on_at_once():
    """One row is no data of such a guide: its factors are those of all rows."""
    x = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor([0.1, -0.4, 1.1, 0.2], dtype=torch.float64))
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    program = pv.Program(model, guide)
    torch.testing.assert_close(pv.infer(program, x).mean, program.values["loc"].detach())
    fitted = pv.infer(program, x, how="local", settings=pv.Local(num_steps=80, num_particles=4))
    torch.testing.assert_close(fitted.mean, x / 2, rtol=0.0, atol=0.1)


@pytest.mark.parametrize("reads", ["", "beside", "times"])
def test_rows_that_a_plate_draws_are_in_the_way_where_something_reads_them(reads):
    """Also a factor of z, which z = 0 hides; |z| < 5 for each of 8 means (false alarm 5e-6)."""
    offsets = torch.arange(100.0) * (reads == "beside")
    gains = 1 + torch.arange(100.0) * (reads == "times")

    def model(x):
        with pyro.plate("data", 100, subsample_size=len(x)) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(gains[rows] * z + offsets[rows], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 100, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    x, program = torch.linspace(-2, 2, 8), pv.Program(model, guide)
    torch.manual_seed(0)
    if reads:
        with pytest.raises(ProgramError, match="draws other rows at each evaluation"):
            infer(program, x, how="hmc")
    else:
        found = infer(program, x, how="hmc", settings=HMC(num_draws=100, warmup=50))
        error = (found.mean - x / 2) / (0.5 / found.ess.flatten()).sqrt()
        assert error.abs().max() < 5


class Named(nn.Module):
    """A program whose attributes have the names of methods of the library's own programs."""

    def __init__(self):
        super().__init__()
        self.reads, self.shows, self.completes = torch.ones(3), True, "yes"

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x)), self.reads[0]))
            pyro.sample("x", dist.Normal(x.new_zeros(len(x)), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))


def test_attributes_of_a_user_may_have_any_name():
    program = Named()
    assert pv.elbo(program, torch.zeros(3)).shape == pv.generate(program, 3).shape
