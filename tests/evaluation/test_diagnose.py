"""``pv.diagnose`` on probabilistic PCA, where KL, units and reconstruction are known exactly."""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import PPCA, normal_kl
from programs import CASES
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, init_to_value

import pyro_vae as pv
from pyro_vae.errors import ProgramError

ORACLE = PPCA.random(6, 3, orthogonal=True)
X = ORACLE.sample(1500, seed=77)  # two passes, the last one ragged


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(0)
    return pv.models.LinearVAE.from_data(X, 3)


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("rows", [1, 40, 1500])
def test_diagnosis_equals_the_closed_forms(linear, rows, num_particles):
    """Monte-Carlo figures within 5 standard errors; posterior variances exactly."""
    torch.manual_seed(1)
    x = X[:rows]
    found = pv.diagnose(linear, x, num_particles=num_particles)
    with torch.no_grad():
        q = linear.encoder(x).base_dist
        unit_kl = normal_kl(q.loc, q.scale).mean(0)
        # Var over z ~ q of log q - log p per unit: that of (z² - e²)/2, at most this
        spread = ((q.scale**2 - 1).square() / 2 + (q.loc * q.scale).square()).mean(0)
        error = (spread / (rows * num_particles)).sqrt()
    assert found.unit_kl["z"].shape == (3,)
    assert ((found.unit_kl["z"] - unit_kl) / error).abs().max() < 5
    assert found.kl["z"] == pytest.approx(found.unit_kl["z"].sum().item(), rel=1e-9)
    bound = found.reconstruction - found.kl["z"]
    # The guide is the exact posterior: their difference is log p(x), without any noise.
    assert bound == pytest.approx(linear.marginal().log_prob(x).mean().item(), rel=1e-9)
    expected = q.loc.var(0) if rows > 1 else torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(found.variance["z"], expected, rtol=1e-8, atol=1e-8)
    assert found.active_units == {"z": 3 if rows > 1 else 0}


def test_errors_and_the_reconstruction_from_the_prior_are_the_closed_forms(linear):
    """Within 5 standard errors; that of an error is a few percent of it, at 1500 data."""
    torch.manual_seed(1)
    found = pv.diagnose(linear, X)
    with torch.no_grad():
        q, decoder = linear.encoder(X).base_dist, linear.weight
        kl = normal_kl(q.loc, q.scale)
        noise = ((q.scale**2 - 1).square() / 2 + (q.loc * q.scale).square()).sum(1).mean()
        # (r - W z)², z ~ N(0, I): mean r'r + tr WW', variance 2 tr (WW')² + 4 r'WW'r
        rest, gram = X - linear.mean, decoder @ decoder.mT
        square = rest.square().sum(1) + gram.trace()
        spread = 2 * (gram @ gram).trace() + 4 * (rest @ gram * rest).sum(1).mean()
        precision = (-2 * linear.log_scale).exp()
        exact = -3 * (2 * math.pi / precision).log() - precision * square.mean() / 2
        error = precision / 2 * (spread / len(X)).sqrt()
    assert abs(found.prior_reconstruction - exact) < 5 * error
    assert found.prior_reconstruction < found.reconstruction - 20 * error
    expected = ((kl.sum(1).var() + noise) / len(X)).sqrt()
    assert found.kl_stderr["z"] == pytest.approx(expected.item(), rel=0.2)


@pytest.mark.parametrize("dead", [0, 1, 3])
def test_collapsed_units_are_counted_exactly(linear, dead):
    program = pv.models.LinearVAE(6, 3).double()
    program.load_state_dict(linear.state_dict())
    with torch.no_grad():
        program.recognition[:dead] = 0.0
        program.log_diagonal[:dead] = 0.0
    found = pv.diagnose(program, X[:200])
    assert (found.unit_kl["z"][:dead] == 0).all() and (found.unit_kl["z"][dead:] > 0).all()
    assert found.active_units == {"z": 3 - dead}
    assert f"{3 - dead} of 3 units active" in repr(found)


def test_a_dependent_density_has_no_units():
    program = pv.models.LinearVAE.from_data(X, 3, full_covariance=True)
    found = pv.diagnose(program, X[:100])
    assert found.unit_kl == {} and found.kl["z"] > 0 and found.active_units == {"z": 3}


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("name", ["labelled", "sequences", "regularised", "bayesian"])
def test_diagnosis_of_other_programs(name, num_particles):
    """Tiled, masked, with globals: the units' KL add up to the site's."""
    found = pv.diagnose(CASES[name].build(), CASES[name].data(20), num_particles=num_particles)
    assert found.unit_kl["z"].shape == found.variance["z"].shape == (2,)
    assert found.kl["z"] == pytest.approx(found.unit_kl["z"].sum().item(), rel=1e-4)
    assert math.isfinite(found.reconstruction)


SCALE, SPREAD, LOC = 2.0, 0.5, 0.7  # of the prior, and of the guide


def with_globals(guide_of_globals, below=False):
    """Return a program of z ~ N(w, 1), w in R³, maybe of a scale s above; and its guide."""

    def shared():
        s = pyro.sample("s", dist.Gamma(3.0, 2.0)) if below else SCALE
        return pyro.sample("w", dist.Normal(torch.zeros(3), s).to_event(1))

    def model(x):
        w = shared()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    found = guide_of_globals(shared)

    def guide(x):
        found()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))

    return pv.Program(model, guide)


def by_hand(shared):
    return lambda: pyro.sample("w", dist.Normal(torch.full((3,), LOC), SPREAD).to_event(1))


def automatic(shared):
    return AutoNormal(
        shared, init_loc_fn=init_to_value(values={"w": torch.full((3,), LOC)}), init_scale=SPREAD
    )


@pytest.mark.parametrize("kind", [by_hand, automatic])
@pytest.mark.parametrize("rows", [10, 40])
def test_the_kl_of_a_gaussian_global_is_its_closed_form_once_for_all_data(kind, rows):
    """Any number of data pays the same nats; each datum's share is told beside them."""
    exact = normal_kl(torch.tensor(LOC / SCALE), torch.tensor(SPREAD / SCALE)).item() * 3
    torch.manual_seed(0)
    found = pv.diagnose(with_globals(kind), torch.randn(rows, 3))
    assert found.global_kl == {"w": pytest.approx(exact, rel=1e-6)}
    assert found.global_kl_stderr == {"w": pytest.approx(0.0, abs=1e-6)}
    assert "w" not in found.kl and found.as_dict()["global_kl"]["w"] == found.global_kl["w"]
    row = next(line for line in found.report().splitlines() if line.startswith("w "))
    assert row.split() == ["w", f"{exact:.3f}", "0.000", f"{exact / rows:.6f}"]
    assert f"global w: {exact:.3f} nats, once for all {rows} data" in repr(found)
    panel = found.plot().axes[-1]
    assert panel.get_xlabel() == "KL, once for all data (nats)"
    assert [text.get_text() for text in panel.get_yticklabels()] == ["w"]
    assert panel.patches[0].get_width() == pytest.approx(exact, rel=1e-6)
    long = "a_rather_long_name_of_a_weight_of_the_second_layer"
    named = replace(found, global_kl={long: 3.0}, global_kl_stderr={long: 0.5}).report()
    head, row = (x for x in named.splitlines() if x.startswith(("global", "a_rather")))
    assert "second_layer" in row and len(row) == len(head)
    assert row.index("3.000") + len("3.000") == head.index("once") + len("once")


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
def test_the_kl_of_globals_that_depend_on_each_other_is_a_mean_over_draws(kind):
    """Together they are the KL of the guide, by 400 draws of its own; |z| < 5."""
    torch.manual_seed(1)
    made = []
    program = with_globals(lambda shared: made.append((shared, kind(shared))) or made[0][1], True)
    found = pv.diagnose(program, torch.randn(12, 3))
    assert set(found.global_kl) == ({"s", "w"} if kind is AutoNormal else {"s, w"})
    (shared, guide), draws = made[0], []
    with program.running():
        for _ in range(400):
            drawn = poutine.trace(guide).get_trace()
            model = poutine.trace(poutine.replay(shared, trace=drawn)).get_trace()
            draws.append((drawn.log_prob_sum() - model.log_prob_sum()).item())
    exact = torch.tensor(draws)
    error = math.hypot(exact.std() / 20, *found.global_kl_stderr.values())
    assert abs(sum(found.global_kl.values()) - exact.mean()) < 5 * error


def test_a_program_without_prior_is_refused():
    with pytest.raises(ProgramError, match="diagnose: site 'z' has no prior"):
        pv.diagnose(pv.models.Autoencoder(6, 2, (8,)), X[:4])


def test_a_prior_with_a_dimension_that_no_plate_explains_is_named():
    """A point mass of n x 1 in a plate of n draws n x n, where the guide passes n on."""

    class Passed(dist.Delta):  # accepts any value, as a wire from guide to model does
        def log_prob(self, value):
            return torch.zeros_like(value)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("wire", Passed(x.new_zeros(len(x), 1)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))
            pyro.sample("wire", Passed(x))

    program = pv.Program(model, guide)
    assert pv.elbo(program, torch.zeros(3)).shape == (3,)
    with pytest.raises(ProgramError, match=r"site 'wire': got batch shape \(3, 3\).*n x 1"):
        pv.diagnose(program, torch.zeros(3))


@pytest.mark.parametrize("scale", [0.05, 1.0, 50.0])
def test_units_are_active_whatever_the_scale_of_their_prior(scale):
    """z ~ N(0, s²), x ~ N(z, s²): Var_x E[z | x] is Var(x) / 4, here of a unit in two."""
    x = scale * math.sqrt(2) * torch.randn(300, 2, dtype=torch.float64)
    heard = torch.tensor([1.0, 0.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), scale).to_event(1))
            pyro.sample("x", dist.Normal(heard * z, scale).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = torch.tensor([0.5, 0.02]) * x  # the second unit tells 4e-4 of a variance
            width = scale * torch.tensor([0.5, 1.0]).sqrt()
            pyro.sample("z", dist.Normal(loc, width).to_event(1))

    found = pv.diagnose(pv.Program(model, guide), x, probes=50)
    expected = torch.tensor([0.5, 0.02]).square() * x.var(0) / scale**2
    torch.testing.assert_close(found.variance["z"], expected, rtol=1e-6, atol=0)
    assert found.active_units == {"z": 1}


def test_topics_of_a_dirichlet_are_active():
    """A share of 20 has variance 0.0023 in the prior: that of its mean can never exceed 0.01."""
    prior = dist.Dirichlet(torch.ones(20))
    x = dist.Multinomial(100, prior.sample((300,))).sample()

    def model(x):
        with pyro.plate("data", len(x)):
            shares = pyro.sample("shares", prior)
            pyro.sample("x", dist.Multinomial(100, shares), obs=x)

    def guide(x):  # the exact posterior: (1 + x) / 120 is its mean
        with pyro.plate("data", len(x)):
            pyro.sample("shares", dist.Dirichlet(1 + x))

    found = pv.diagnose(pv.Program(model, guide), x, probes=50)
    expected = ((1 + x) / 120).var(0) / prior.variance
    torch.testing.assert_close(found.variance["shares"].float(), expected, rtol=1e-4, atol=0)
    assert found.active_units == {"shares": 20} and found.verdict.startswith("Alive.")


class Narrow:
    """z ~ N(0, 10²), x ~ N(z, 0.1²): the data have 0.008 of the prior's variance, and 81 of q's."""

    def __init__(self, width=0.1):
        self.width = width

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 10.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, self.width).to_event(1))


NARROW = 0.9 * torch.randn(400, 1, generator=torch.Generator().manual_seed(0))


def test_a_unit_that_moves_more_than_its_own_width_is_active():
    found = pv.diagnose(Narrow(), NARROW)
    assert found.variance["z"].item() < 0.01 and found.active_units == {"z": 1}
    assert found.verdict.startswith("Alive. Code: 1 of 1 unit active") and found.idle_kl["z"] == 0
    assert not any("idle" in cure for cure in found.cures)
    # Points have no width to exceed; without that of any, nothing is called idle that tells nats.
    points = replace(found, posterior_variance={"z": torch.zeros(1)})
    assert points.active_units == {"z": 0} and points.verdict.startswith("Alive. Code: 0 of 1")
    assert not any("idle" in cure for cure in points.cures)


@pytest.mark.parametrize("width", [0.1, 10.0])  # that of the prior: a KL of 0
def test_one_datum_is_not_compared_with_others(width):
    found = pv.diagnose(Narrow(width), NARROW[:1] * (width < 1))
    assert found.verdict.startswith("One datum: it takes two")
    assert " active" not in f"{found.verdict}{found}"
    assert not (found.cures or found.collapsed) and "another datum" not in found.report()
    assert "nan" not in found.report() and "ignores" not in found.verdict
    assert (found.kl["z"] < 0.1) == (width > 1)
