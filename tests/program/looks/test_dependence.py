"""What the plate of the data does not keep apart: terms outside it that look inside."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

import pyro_vae as pv
from pyro_vae.errors import ProgramError
from pyro_vae.program.passes import Verb
from pyro_vae.program.sites.split_guide import SplitGuide

ROWS = 5


class Tied:
    """z of each datum N(0, 1), x | z N(z, 1), and one term outside: -2 Σ z² in one of its forms."""

    def __init__(self, form):
        self.form = form

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        if self.form == "observed":  # N(0 | Σ z, 1)
            pyro.sample("sum", dist.Normal(z.sum(), 1.0), obs=torch.zeros(()))
        elif self.form == "detached":
            pyro.factor("pull", -2 * z.detach().square().sum())
        else:
            pyro.factor("pull", -2 * z.square().sum())

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 6, 0.4))


def outside(form, mean, variance):
    """E of the term under independent Gaussians."""
    if form == "observed":
        return -0.5 * (math.log(2 * math.pi) + mean.sum() ** 2 + len(mean) * variance)
    return -2 * (mean**2 + variance).sum()


@pytest.mark.parametrize("form", ["factor", "observed", "detached"])
def test_a_term_outside_that_looks_at_the_latents_counts_once_per_particle(form):
    torch.manual_seed(0)
    x, s = torch.randn(ROWS), 0.4
    m = x / 6
    inside = -0.5 * math.log(2 * math.pi) - 0.5 * (m**2 + s**2) - 0.5 * ((x - m) ** 2 + s**2)
    right = (inside + 0.5 + math.log(s)).sum() + outside(form, m, s**2)
    pair, particles = Tied(form), 200
    joint = pv.Program(pair.model, pair.guide)
    each = [pv.elbo(joint, x, num_particles=particles, batch_size=b).sum() for b in (2, 10**6)]
    joint.read(x)
    with joint.running(), torch.no_grad():
        objective = pv.ELBO(num_particles=particles)
        each.append(-ROWS * objective.per_datum(joint.joint(x)))
    each.append(-torch.tensor(objective.loss(pair.model, pair.guide, x)))  # under stock SVI
    for value in each:  # the standard error is below 0.13 nats; false alarms: |z| < 5
        assert value.item() == pytest.approx(right.item(), abs=0.65), each


def test_gradients_of_particles_are_those_of_stock_svi():
    x, at = torch.linspace(-1, 2, ROWS), torch.nn.Parameter(torch.tensor(0.3))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(at * x, 1e-4))

    model = Tied("factor").model
    program, found = pv.Program(model, guide), []
    program.read(x)
    with program.running():
        (pv.ELBO(num_particles=3).per_datum(program.joint(x)) * ROWS).backward()
    found.append(at.grad.item())
    at.grad = None
    Trace_ELBO().differentiable_loss(model, guide, x).backward()
    assert found[0] == pytest.approx(at.grad.item(), rel=1e-2)


VERBS = {
    "log_likelihood": lambda p, x: pv.log_likelihood(p, x, num_particles=4),
    "ais": lambda p, x: pv.ais(p, x, pv.AIS(num_temperatures=3, pilot=3)),
    "refine": lambda p, x: pv.refine(p, x, pv.HMC(num_draws=4, warmup=4)),
    "infer": lambda p, x: pv.infer(p, x, how="local"),
    "log_weight": lambda p, x: pv.infer(p, x).log_weight(3),
    "gaps": lambda p, x: pv.gaps(p, x),
    "fitted_log_likelihood": lambda p, x: pv.fitted_log_likelihood(p, x),
    "IWAE": lambda p, x: pv.IWAE(num_particles=3).loss(p.model, p.guide, x),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_speaks_of_each_datum_refuses_by_name(verb):
    pair, x = Tied("factor"), torch.randn(ROWS)
    with pytest.raises(ProgramError, match=rf"{verb}: site 'pull' stands outside the plate"):
        VERBS[verb](pair, x)


def test_a_term_outside_that_looks_at_rows_counts_once_in_any_passes():
    x = torch.linspace(-1, 2, ROWS)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        pyro.factor("rows", -x.mean().square())

    program = pv.Program(model, lambda x: None)
    right = dist.Normal(0.0, 1.0).log_prob(x).sum() - x.mean().square()
    found = pv.elbo(program, x, batch_size=2).sum()
    assert found.item() == pytest.approx(right.item(), rel=1e-5)
    with pytest.raises(ProgramError, match=r"'rows'.* depends on their rows"):
        pv.log_likelihood(program, x)


COUNTS = {
    "whole numbers": lambda x, y: (y == 1).sum(),
    "a comparison": lambda x, y: (x > 0.3).sum(),
    "rounded": lambda x, y: x.max().item().__floor__() + torch.tensor(0.0),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_a_term_outside_that_looks_at_rows_by_no_gradient_counts_once_in_any_passes(kind):
    x, y = torch.linspace(-1, 2, ROWS), torch.tensor([0, 1, 1, 1, 2])

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("count", dist.Poisson(2.0), obs=COUNTS[kind](x, y).float())

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    program = pv.Program(model, guide)
    count = dist.Poisson(2.0).log_prob(COUNTS[kind](x, y).float())
    right = dist.Normal(0.0, 2**0.5).log_prob(x).sum() + count
    for rows in (3, ROWS):
        found = pv.elbo(program, (x, y), batch_size=rows).sum()
        assert found.item() == pytest.approx(right.item()), rows
    with pytest.raises(ProgramError, match=r"log_likelihood: site 'count'.* depends on their rows"):
        pv.log_likelihood(program, (x, y), num_particles=3)


class Shift:
    """w ~ N(0, 1), z | w ~ N(w, 1), x | z ~ N(z, 1): the guide draws w near the mean of the data.

    Or near that of their latents: its density of w is then another one at each draw of these.
    """

    def __init__(self, near):
        self.near = near

    def model(self, x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        if self.near == "data":
            pyro.sample("w", dist.Normal(x.mean(), 0.3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 0.5))
        if self.near == "latents":
            pyro.sample("w", dist.Normal(z.mean(), 0.3))

    def bound(self, x):
        """E log p - E log q in closed form."""
        loc, var = x / 2, torch.full((len(x),), 0.25)
        w = (x if self.near == "data" else loc).mean()
        shared = var.sum() / len(x) ** 2 if self.near == "latents" else torch.tensor(0.0)
        w_var = 0.09 + shared  # cov(w, z) is 0.25 / N under the second guide, and 0 under the first
        gap = (loc - w) ** 2 + var + w_var - 2 * shared
        log_p = -0.5 * (w**2 + w_var + (gap + (x - loc) ** 2 + var).sum())
        log_p = log_p - 0.5 * (1 + 2 * len(x)) * math.log(2 * math.pi)
        entropy = [dist.Normal(0.0, s).entropy() for s in (0.3, *var.sqrt().tolist())]
        return log_p + torch.stack(entropy).sum()


@pytest.mark.parametrize("near", ["data", "latents"])
def test_the_guide_may_draw_a_global_that_depends_on_the_data_or_their_latents(near):
    x, pair = torch.linspace(-1, 4, ROWS), Shift(near)
    right = pair.bound(x).item()
    for particles, rows in ((1, 100), (1, 2), (3, 100), (1, 1)):
        torch.manual_seed(0)
        program = pv.Program(pair.model, pair.guide)
        found = pv.elbo(
            program, x, num_global_samples=300, num_particles=particles, batch_size=rows
        )
        # One draw of the sum has a standard deviation below 2.2 nats; false alarms: |z| < 5.
        assert found.sum().item() == pytest.approx(right, abs=5 * 2.2 / 300**0.5), (particles, rows)


def test_draws_of_a_global_that_depends_on_the_rows_are_those_of_all_rows():
    x, pair = torch.linspace(-1, 4, ROWS), Shift("data")
    for data in (x, iter(x.split(2))):
        with pv.Program(pair.model, pair.guide).passes(data, Verb("test"), rows=2) as pieces:
            draws = [float(piece.globals_["w"]) for piece in pieces]
        assert len(draws) == 3 and draws == [pytest.approx(1.5, abs=5 * 0.3)] * 3  # |z| < 5


def test_particles_of_a_global_that_follows_the_latents_have_no_weights_of_each_datum():
    pair, x = Shift("latents"), torch.randn(ROWS)
    with pytest.raises(ProgramError, match=r"IWAE: site 'w' .* no datum has weights of its own"):
        pv.IWAE(num_particles=3).loss(pair.model, pair.guide, x)


def test_a_term_outside_that_looks_at_parameters_alone_stops_nothing():
    weight = torch.nn.Parameter(torch.tensor(1.5))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x)
        pyro.factor("ridge", -weight.square())

    program = pv.Program(model, Tied("factor").guide)
    assert not program.read(torch.randn(ROWS)).dependence.found
    pv.log_likelihood(program, torch.randn(ROWS), num_particles=5)


def test_a_guide_that_mixes_particles_is_found_out():
    """Its softmax runs over dimension 1: the last of one particle, the rows of several."""
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(a.sum(-1), 1.0))
            pyro.sample("x", dist.Normal(a + b[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x, 1.0).to_event(1))
            pyro.sample("b", dist.Normal(3 * torch.softmax(3 * a, 1)[..., 0], 0.5))

    assert pv.Program(model, guide).tiled(x)


def conjugate(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def exact(kind, x):
    """An autoguide at the posterior N(x / 2, 1 / 2) of each datum."""
    guide = kind(conjugate)
    program = pv.Program(conjugate, guide)
    pv.elbo(program, x)
    with torch.no_grad():
        loc = guide.locs.z if kind is AutoNormal else guide.loc
        scale = guide.scales.z_unconstrained if kind is AutoNormal else guide.scale_unconstrained
        loc.copy_(x / 2)
        scale.fill_(math.log(math.expm1(0.5**0.5)))
    return program


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal])
def test_an_autoguide_with_a_density_of_each_datum_is_no_point_mass(kind):
    x = torch.linspace(-1, 2, ROWS)
    program = exact(kind, x)
    found = pv.log_likelihood(program, x, num_particles=50)
    assert found.ess.tolist() == pytest.approx([50.0] * ROWS, rel=1e-3)
    assert found.log_prob.tolist() == pytest.approx(
        dist.Normal(0.0, 2**0.5).log_prob(x).tolist(), rel=1e-4
    )
    kl = 0.5 * (0.5 + x.square() / 4 - 1 + math.log(2))
    # log q - log p has a standard deviation below 0.8: 0.8 / sqrt(5 * 500); false alarms: |z| < 5
    assert pv.diagnose(program, x, num_particles=500).kl["z"] == pytest.approx(
        kl.mean().item(), abs=0.08
    )
    assert pv.encode(program, x).tolist() == pytest.approx((x / 2).tolist(), abs=1e-6)
    gaps = pv.gaps(
        program, x, local=pv.Local(num_steps=5), annealed=pv.AIS(3, pilot=2), num_particles=9
    )
    assert gaps.elbo.tolist() == pytest.approx(found.log_prob.tolist(), rel=1e-4)


class Grouped(EasyGuide):
    """Draws two latents of a datum from one Gaussian, with correlation."""

    def guide(self, x):
        group = self.group(match="z.")
        with self.plate("data", len(x)):
            loc = torch.stack([x / 2, -x / 3], -1)
            tril = torch.tensor([[0.6, 0.0], [0.3, 0.8]])
            group.sample("zs", dist.MultivariateNormal(loc, scale_tril=tril))


def test_a_group_of_latents_that_the_guide_draws_at_once_has_one_kl():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z1", dist.Normal(0.0, 1.0)) + pyro.sample("z2", dist.Normal(0.0, 2.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.linspace(-1, 2, ROWS)
    found = pv.diagnose(pv.Program(model, Grouped(model)), x, num_particles=2000)
    loc = torch.stack([x / 2, -x / 3], -1)
    q = dist.MultivariateNormal(loc, scale_tril=torch.tensor([[0.6, 0.0], [0.3, 0.8]]))
    exact = torch.distributions.kl_divergence(
        q, dist.MultivariateNormal(torch.zeros(2), torch.diag(torch.tensor([1.0, 4.0])))
    )
    # log q - log p has a standard deviation below 1.2: 1.2 / sqrt(5 * 2000); false alarms: |z| < 5
    assert list(found.kl) == ["z1, z2"] and set(found.variance) == {"z1", "z2"}
    assert found.kl["z1, z2"] == pytest.approx(exact.mean().item(), abs=0.06)
    assert "z1, z2" in found.report()


def test_a_diagonal_normal_over_constrained_latents_of_two_plates_is_split_exactly():
    """Its density at a draw, all sites together, and the slice of each site and datum."""

    def model(x):
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(3).double(), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            share = pyro.sample("share", dist.Dirichlet(torch.ones(3).double()))
            with pyro.plate("units", 2):
                rate = pyro.sample("rate", dist.Gamma(2.0, torch.ones(()).double()))
            mean = (share * scale).sum(-1) + rate.sum(0)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    x, guide = torch.linspace(0, 3, ROWS, dtype=torch.float64), AutoDiagonalNormal(model)
    guide(x)
    torch.manual_seed(0)
    with torch.no_grad():
        guide.loc.normal_()
        guide.scale_unconstrained.normal_()
    whole = pyro.poutine.trace(guide).get_trace(x)
    latent = whole.nodes["_AutoDiagonalNormal_latent"]["value"]
    free = {f"{s['name']}_unconstrained": value for s, value in guide._unpack_latent(latent)}
    each = pyro.poutine.trace(pyro.poutine.condition(SplitGuide(guide), data=free)).get_trace(x)
    pyro.clear_param_store()
    assert each.log_prob_sum().item() == pytest.approx(whole.log_prob_sum().item())
    for name in ("scale", "share", "rate"):
        torch.testing.assert_close(each.nodes[name]["value"], whole.nodes[name]["value"])
        density = each.nodes[f"{name}_unconstrained"]["fn"].log_prob(free[f"{name}_unconstrained"])
        assert density.shape == {"scale": (), "share": (ROWS,), "rate": (2, ROWS)}[name]
    program = pv.Program(model, guide)
    found = pv.log_likelihood(program, x, num_particles=20, num_global_samples=2)
    assert found.log_prob.shape == (ROWS,) and found.ess.max() < 40
    codes = pv.encode(program, x)
    assert codes["share"].shape == (ROWS, 3) and codes["rate"].shape == (ROWS, 2)


def test_an_autoguide_with_one_site_of_all_data_has_no_density_of_each():
    x = torch.linspace(-1, 2, ROWS)
    program = exact(AutoMultivariateNormal, x)
    evidence = dist.Normal(0.0, 2**0.5).log_prob(x).mean().item()
    assert pv.elbo(program, x).mean().item() == pytest.approx(evidence, rel=1e-4)
    for verb, ask in {
        "log_likelihood": lambda: pv.log_likelihood(program, x, num_particles=3),
        "log_weight": lambda: pv.infer(program, x).log_weight(3),
        "diagnose": lambda: pv.diagnose(program, x),
        "gaps": lambda: pv.gaps(program, x),
        "encode": lambda: pv.encode(program, x),
    }.items():
        with pytest.raises(ProgramError, match=rf"{verb}: site '_AutoMulti.* of all of them"):
            ask()
    # Means of 1 draw differ by 0.7; the mean over 64 draws or more by 0.09: |z| < 5.
    assert pv.infer(program, x).mean.tolist() == pytest.approx((x / 2).tolist(), abs=0.5)


def test_noise_of_the_guide_that_the_model_does_not_score_gives_no_weights():
    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x, 2.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / 2 + 0.1 * u, 0.7))

    x = torch.linspace(-1, 2, ROWS)
    program = pv.Program(conjugate, guide)
    for verb, ask in {
        "log_likelihood": lambda: pv.log_likelihood(program, x, num_particles=3),
        "log_weight": lambda: pv.infer(program, x).log_weight(3),
        "gaps": lambda: pv.gaps(program, x),
    }.items():
        with pytest.raises(ProgramError, match=rf"{verb}: site 'u' is auxiliary"):
            ask()
