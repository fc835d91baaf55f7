"""Diagnosis of layers, plates, masks, discrete codes and global weights, against closed forms."""

import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_vae as pv
from pyro_vae import plots
from pyro_vae.errors import ProgramError
from pyro_vae.evaluation import marginals

N = 2000
A, S1, S = torch.tensor([0.8, 0.0]), torch.tensor([0.6, 1.0]), torch.tensor([0.5, 0.5])
V1, VX = A**2 + S1**2, A**2 + S1**2 + S**2  # marginal variances of z1 and x: 1 and 1.25


class Linear(nn.Module):
    """z2 ~ N(0, 1), z1 ~ N(a z2, s1²), x ~ N(z1, s²), with its exact posterior in either order."""

    def __init__(self, way):
        super().__init__()
        self.way, self.zero = way, nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(A * z2 + self.zero, S1).to_event(1))
            pyro.sample("x", dist.Normal(z1, S).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            if self.way == "down":
                z2 = pyro.sample("z2", normal(A / VX * x, (1 - A**2 / VX).sqrt()))
                precision = S1**-2 + S**-2
                loc = (A * z2 / S1**2 + x / S**2) / precision
                pyro.sample("z1", normal(loc, precision.rsqrt()))
            elif self.way == "up":
                z1 = pyro.sample("z1", normal(V1 / VX * x, (V1 / VX).sqrt() * S))
                pyro.sample("z2", normal(A / V1 * z1, (1 - A**2 / V1).sqrt()))
            else:  # the prior itself: nothing is told
                z2 = pyro.sample("z2", normal(torch.zeros_like(x), torch.ones(2)))
                pyro.sample("z1", normal(A * z2, S1))


def normal(loc, scale):
    return dist.Normal(loc, scale.expand_as(loc)).to_event(1)


def rows(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return VX.sqrt() * torch.randn(N, 2, generator=generator)


# -- layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("way", ["down", "up"])
def test_moments_below_another_latent_are_those_of_its_marginal(way, num_particles):
    x = rows()
    torch.manual_seed(1)
    found = pv.diagnose(Linear(way), x, num_particles=num_particles, batch_size=700)
    spread = x.var(0)
    for name, slope, left, prior in (
        ("z2", A / VX, 1 - A**2 / VX, torch.ones(2)),
        ("z1", V1 / VX, V1 * S**2 / VX, V1),
    ):
        exact = slope.square() * spread
        # Noise v = 1 at most of a mean, 32 draws: of its square, and of its product with the signal
        error = math.sqrt(2 / (32 * 31) / N) + 2 * (exact / (32 * N)).sqrt()
        assert (found.variance[name].float() - exact).abs().le(5 * error).all()
        # The prior's variance is estimated from 2048 draws.
        ratio = found.posterior_variance[name].float()
        assert (ratio - left / prior).abs().max() < 5 * math.sqrt(2 / 2048) + 5 * math.sqrt(2 / N)
    assert found.active_units == {"z2": 1, "z1": 2}


def test_moments_of_sorted_data_are_those_of_shuffled_data(monkeypatch):
    """A tenth of the rows stands for all; the first tenth of sorted rows has a tenth of the spread.

    The variance of 200 rows is off by a share sqrt(2 / 200) = 0.1 of itself.
    """
    monkeypatch.setattr(marginals, "_ROWS", 200)
    x = rows().sort(0).values
    found = pv.diagnose(Linear("down"), x).variance["z1"].float()
    assert (found / ((V1 / VX).square() * x.var(0)) - 1).abs().max() < 0.5


def test_a_guide_equal_to_the_prior_has_no_active_units():
    torch.manual_seed(2)
    for x in (rows(), rows()[:100]):
        found = pv.diagnose(Linear("prior"), x)
        assert found.active_units == {"z2": 0, "z1": 0} and len(found.collapsed) == 2
        for ratio in found.posterior_variance.values():
            assert (ratio - 1).abs().max() < 0.2
        shares = found.histogram["z1"] / found.histogram["z1"].sum()
        assert shares[15:].sum() > 0.9  # around 1, not at the 0.36 of one draw of z2
    assert "0 of 2 units active" in found.verdict


def test_a_single_layer_is_read_without_noise():
    """The exact path: no draw enters, whatever the seed and the batches."""
    vae = pv.models.VAE(6, 2, (8,))
    x = torch.bernoulli(torch.rand(50, 6))
    one, two = (pv.diagnose(vae, x, batch_size=size) for size in (50, 7))
    torch.testing.assert_close(one.variance, two.variance, rtol=1e-5, atol=1e-8)
    with torch.no_grad():
        q = vae.eval().encoder(x)
    torch.testing.assert_close(one.variance["z"].float(), q.mean.var(0), rtol=1e-4, atol=1e-7)
    expected = q.variance.mean(0)
    torch.testing.assert_close(one.posterior_variance["z"].float(), expected, rtol=1e-5, atol=0)


def test_discrete_layers_have_the_moments_of_their_marginal():
    """z1 ~ q(z1 | x), z2 | z1 a fair coin or a copy: E[z2 | x] by the law of total expectation."""

    class Bits(nn.Module):
        def __init__(self):
            super().__init__()
            self.zero = nn.Parameter(torch.zeros(()))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z2 = pyro.sample("z2", dist.Bernoulli(x.new_full((2,), 0.5)).to_event(1))
                z1 = pyro.sample("z1", dist.Bernoulli(0.5 + 0 * z2[..., :1]).to_event(1))
                pyro.sample("x", dist.Normal(z1 + self.zero, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                z1 = pyro.sample("z1", dist.Bernoulli(0.3 + 0.4 * x).to_event(1))
                both = torch.cat([0.1 + 0.8 * z1, 0.5 + 0 * z1], -1)
                pyro.sample("z2", dist.Bernoulli(both).to_event(1))

    x = (torch.arange(N)[:, None] % 2).float()
    torch.manual_seed(3)
    found = pv.diagnose(Bits(), x)
    # Over the prior's 1/4, of 2048 draws of z1: p (1 - p) is flat there
    assert found.variance["z1"].item() == pytest.approx(0.2**2 * N / (N - 1) / 0.25, rel=5e-3)
    # E[z2 | x] is 0.1 + 0.8 (0.3 + 0.4 x): 0.16 on either side of the middle
    assert found.variance["z2"][0].item() == pytest.approx(0.16**2 / 0.25, abs=0.02)
    assert found.active_units == {"z1": 1, "z2": 1}
    assert found.reparametrised == {"z1": False, "z2": False}


# -- globals ----------------------------------------------------------------------------------


class Deaf(nn.Module):
    """A Bayesian decoder that ignores z: the global weight is all there is."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.full((3,), 5.0))

    def model(self, x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(3), 10.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(w + 0 * z[..., :1], 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("w", dist.Normal(self.loc, 0.5).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(x.new_zeros(len(x), 2), torch.ones(2)))


def test_codes_of_the_prior_are_decoded_by_the_guides_weights():
    torch.manual_seed(0)
    found = pv.diagnose(Deaf(), 5 + torch.randn(200, 3), batch_size=64)
    assert found.prior_reconstruction == pytest.approx(found.reconstruction, rel=1e-6)
    assert "decoder ignores it" in found.verdict


# -- plates -----------------------------------------------------------------------------------

STEPS = 4


class Steps(nn.Module):
    """A latent at each of 4 steps, in a second plate; the last alone tells of x."""

    def __init__(self, gains=(0.0, 0.0, 0.0, 0.9)):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))
        self.gains = torch.tensor(gains)[:, None]

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("time", STEPS, dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0] + self.zero, 1.0), obs=x.T)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("time", STEPS, dim=-2):
            pyro.sample("z", dist.Normal((self.gains * x.T)[..., None], 0.6).to_event(1))


@pytest.mark.parametrize("num_particles", [1, 3])
def test_a_second_plate_is_part_of_the_units(num_particles):
    x = 2 * torch.randn(500, STEPS)
    found = pv.diagnose(Steps(), x, num_particles=num_particles)
    expected = torch.tensor([0.0, 0.0, 0.0, 0.81]) * x.var(0)
    torch.testing.assert_close(found.variance["z"][:, 0].float(), expected, rtol=1e-4, atol=1e-6)
    assert found.active_units == {"z": 1} and "1 of 4 units active" in found.verdict
    assert found.unit_kl["z"].shape == (STEPS, 1)
    assert found.unit_kl["z"].sum().item() == pytest.approx(found.kl["z"], rel=1e-4)
    torch.testing.assert_close(found.posterior_variance["z"].float(), torch.full((4, 1), 0.36))
    json.dumps(found.as_dict(), allow_nan=False)
    plots.diagnosis(found)


def test_a_plate_of_one_site_leaves_the_others_alone():
    """Two local latents, one of them in the plate of steps; the other has no dimension there."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.zero = nn.Parameter(torch.zeros(()))

        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                c = pyro.sample("c", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                with pyro.plate("time", STEPS, dim=-2):
                    z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
                    pyro.sample("x", dist.Normal(z[..., 0] + c[..., 0], 1.0), obs=x.T)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                loc = self.zero + x[:, :2]
                c = pyro.sample("c", dist.Normal(loc, 0.5).to_event(1))
                with pyro.plate("time", STEPS, dim=-2):
                    pyro.sample("z", dist.Normal((c[..., 0] + 0 * x.T)[..., None], 0.5).to_event(1))

    x = torch.randn(N, STEPS)
    torch.manual_seed(0)
    found = pv.diagnose(Mixed(), x, num_particles=2)
    torch.testing.assert_close(found.variance["c"].float(), x[:, :2].var(0), rtol=1e-4, atol=0)
    assert found.variance["z"].shape == (STEPS, 1)
    assert (found.variance["z"] - x[:, 0].var()).abs().max() < 0.05  # the mean of z is that of c
    # Var q[z | x] = 0.25 + Var q[c | x] = 0.5, of a prior of 1
    assert (found.posterior_variance["z"] - 0.5).abs().max() < 0.05
    for name in ("c", "z"):
        assert found.unit_kl[name].sum().item() == pytest.approx(found.kl[name], rel=1e-4)
    assert found.information is not None


# -- masks ------------------------------------------------------------------------------------


class Masked(nn.Module):
    """q(z | x) = N(0.9 x, 0.25), z masked: by row, or by unit inside the distribution."""

    def __init__(self, how):
        super().__init__()
        self.how, self.zero = how, nn.Parameter(torch.zeros(()))

    def sites(self, loc, scale, on):
        if self.how == "units":
            return dist.Normal(loc, scale).expand(on.shape).mask(on).to_event(1)
        return dist.Normal(loc, scale).to_event(1)

    def plate(self, x, on):
        outer = poutine.mask(mask=on[:, 0] if self.how == "rows" else torch.tensor(True))
        return pyro.plate("data", len(x)), outer

    def model(self, x, on):
        plate, mask = self.plate(x, on)
        with plate, mask:
            z = pyro.sample("z", self.sites(x.new_zeros(STEPS), 1.0, on))
            pyro.sample("x", dist.Normal(z + self.zero, 1.0).to_event(1), obs=x)

    def guide(self, x, on):
        plate, mask = self.plate(x, on)
        with plate, mask:
            pyro.sample("z", self.sites(0.9 * x + self.zero, 0.5, on))


@pytest.mark.parametrize("num_particles", [1, 2])
@pytest.mark.parametrize("how", ["rows", "units"])
def test_masked_latents_are_left_out(how, num_particles):
    x = 2 * torch.randn(600, STEPS)
    if how == "rows":
        on = (torch.arange(600) % 3 != 0)[:, None].expand(600, STEPS)
    else:
        on = torch.arange(STEPS) <= (torch.arange(600) % STEPS)[:, None]
    x = torch.where(on, x, 100 + x)  # what is masked may hold anything
    found = pv.diagnose(Masked(how), {"x": x, "on": on}, num_particles=num_particles)
    assert found.unit_kl["z"].sum().item() == pytest.approx(found.kl["z"], rel=1e-4)
    expected = torch.stack([0.81 * x[on[:, j], j].var() for j in range(STEPS)])
    torch.testing.assert_close(found.variance["z"].float(), expected, rtol=1e-3, atol=0)
    spreads = found.posterior_variance["z"].float()
    torch.testing.assert_close(spreads, torch.full((STEPS,), 0.25), rtol=1e-5, atol=0)
    assert found.histogram["z"].sum() == on.sum()
    assert found.information is None  # of a density that counts on some rows only
    assert found.weighted == ("z",)
    assert found.share["z"] == pytest.approx(on.any(1).double().mean().item())
    torch.testing.assert_close(found.unit_share["z"], on.double().mean(0))
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_step_that_few_sequences_have_is_judged_by_those():
    """The exact posterior, of 0.35 nats where z is, at an eighth of the data; |z| < 5."""

    def sites(x, lengths, law):
        with pyro.plate("data", len(x)):
            for t in range(2):
                with poutine.mask(mask=t < lengths):
                    law(t, x[:, t])

    def model(x, lengths):
        def law(t, seen):
            z = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=seen)

        sites(x, lengths, law)

    def guide(x, lengths):
        sites(x, lengths, lambda t, v: pyro.sample(f"z_{t}", dist.Normal(v / 2, 0.5**0.5)))

    torch.manual_seed(0)
    x, lengths = 2**0.5 * torch.randn(1600, 2), 1 + (torch.arange(1600) % 8 == 0).long()
    found = pv.diagnose(pv.Program(model, guide), (x, lengths))
    assert found.share == {"z_0": 1.0, "z_1": 0.125}
    assert abs(found.kl["z_1"] / 0.125 - math.log(2) / 2) < 5 * found.kl_stderr["z_1"] / 0.125
    assert found.kl["z_1"] < 0.1 and not found.collapsed
    assert found.verdict.startswith("Alive. ") and "in the 12% of the data" in found.verdict
    shares = [line.split()[-1] for line in found.report().splitlines() if line.startswith("z_")]
    assert shares == ["100%", "12%"]  # beside a KL that is the mean over all data


def test_units_under_a_weight_add_up_to_the_weighted_site():
    def model(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=0.5):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=0.5):
            pyro.sample("z", dist.Normal(0.9 * x, 0.5).to_event(1))

    terms = pv.Program(model, guide).terms(torch.randn(7, 2), 2, 3)
    torch.testing.assert_close(terms.unit_kl("z").sum(-1), terms.kl("z"))


# -- discrete codes, numbers that are none -----------------------------------------------------


class Letters(nn.Module):
    """One letter of four per datum, told almost surely."""

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=x.new_zeros(4)))
            pyro.sample(
                "x", dist.Normal(z.to(x.dtype)[..., None] + self.zero, 1.0).to_event(1), obs=x
            )

    def guide(self, x):
        with pyro.plate("data", len(x)):
            hot = nn.functional.one_hot(x[:, 0].long() % 4, 4).to(x.dtype)
            pyro.sample("z", dist.Categorical(logits=8 * hot + self.zero))


def test_a_categorical_has_codes_but_no_moments():
    found = pv.diagnose(Letters(), torch.arange(400)[:, None].float() % 4)
    assert found.variance == {} and found.posterior_variance == {} and found.histogram == {}
    assert found.verdict.startswith("Alive.") and found.codes["z"].used == 4
    json.loads(json.dumps(found.as_dict(), allow_nan=False))
    plots.diagnosis(found).canvas.draw()


def test_numbers_that_are_none_are_none_in_json():
    found = pv.diagnose(Letters(), torch.arange(40)[:, None].float() % 4)
    wide = {"z": torch.tensor([1.0, math.inf, math.nan])}
    told = pv.Diagnosis(
        kl={"z": math.inf}, unit_kl=wide, variance={}, reconstruction=math.nan, codes=found.codes
    ).as_dict()
    assert told["unit_kl"]["z"] == [1.0, None, None]
    assert told["kl"]["z"] is None and told["reconstruction"] is None
    json.dumps(told, allow_nan=False)


def test_units_need_a_density_per_unit():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MultivariateNormal(x.new_zeros(2), torch.eye(2)))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.5).to_event(1))

    with pytest.raises(ProgramError, match="no density per unit"):
        pv.Program(model, guide).terms(torch.zeros(3, 2)).unit_kl("z")
    assert np.isfinite(pv.diagnose(pv.Program(model, guide), torch.randn(9, 2)).kl["z"])


@pytest.mark.parametrize("units", [False, True])
def test_latents_that_are_summed_out_are_told_of(units):
    """By Bayes' rule of each datum, or of each of its units; a masked one is left out."""
    prior, means = torch.tensor([0.75, 0.25]), torch.tensor([-1.0, 1.0])

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0))
            pyro.sample("w", dist.Normal(z, 1.0), obs=x.sum(1, keepdim=True))
            with pyro.plate("units", x.shape[1], dim=-1):
                y = pyro.sample("y", dist.Categorical(prior))
                pyro.sample("x", dist.Normal(means[y], 1.0), obs=x)
                with poutine.mask(mask=x > 0):
                    pyro.sample("c", dist.Bernoulli(0.5))

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.mean(1, keepdim=True), 1.0))

    x = torch.linspace(-2, 2, 12).reshape(-1, 3 if units else 1)
    found = pv.diagnose(pv.Program(model, guide), x, num_particles=2, batch_size=4)
    share = (prior.log() + dist.Normal(means, 1.0).log_prob(x.reshape(-1, 1))).softmax(-1).double()
    told = torch.special.entr(share.mean(0)).sum() - torch.special.entr(share).sum(-1).mean()
    assert set(found.summed) == {"y"}
    torch.testing.assert_close(found.summed["y"].shares, share.mean(0), rtol=0, atol=1e-5)
    assert found.summed["y"].information == pytest.approx(told.item(), abs=1e-5)
    assert "y (summed out): perplexity 1." in " ".join(found.report().split())
    assert json.loads(json.dumps(found.as_dict()))["summed"]["y"]["information"] > 0
