"""Latents under a mask (sequences of unequal length): they have no density, and are not fitted.

z_t ~ N(0, s²), x_t | z_t ~ N(z_t, v) for the steps that a datum has: log p(x) is a sum of normals.
"""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal, AutoStructured
from pyro.infer.autoguide.initialization import init_to_value

import pyro_vae as pv
from pyro_vae.distributions import Padded
from pyro_vae.errors import DataError
from pyro_vae.inference.graphs.density_graphs import DensityGraphs
from pyro_vae.program.densities.log_joint import LogJoint
from pyro_vae.program.passes import scoring
from pyro_vae.program.told import Told, silent

# Guides here lack masks on purpose: what weights make of them is asked.
pytestmark = pytest.mark.filterwarnings("ignore:.*the model masks it for some data")
ZERO = torch.zeros(3)
S2, V = 1.7, 0.4
LENGTHS = torch.tensor([4, 1, 0, 3])
M = torch.arange(4) < LENGTHS[:, None]
torch.manual_seed(3)
X = torch.randn(4, 4, dtype=torch.float64) * (S2 + V) ** 0.5
BATCH = {"x": X, "m": M}
EXACT = (dist.Normal(0.0, (S2 + V) ** 0.5).log_prob(X) * M).sum(-1)
MEAN, SD = X * S2 / (S2 + V), (S2 * V / (S2 + V)) ** 0.5


def inside(x, m):
    """The mask belongs to the distribution."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0 * x, S2**0.5).mask(m).to_event(1))
        pyro.sample("x", dist.Normal(z, V**0.5).mask(m).to_event(1), obs=x)


def positive(x, m):
    """The same latent as the logarithm of a positive one."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.LogNormal(0 * x, S2**0.5).mask(m).to_event(1))
        pyro.sample("x", dist.Normal(y.log(), V**0.5).mask(m).to_event(1), obs=x)


def plated(x, m):
    """The mask is a handler's, over a second plate of steps."""
    with pyro.plate("data", len(x), dim=-2), pyro.plate("steps", 4, dim=-1), poutine.mask(mask=m):
        z = pyro.sample("z", dist.Normal(0 * x, S2**0.5))
        pyro.sample("x", dist.Normal(z, V**0.5), obs=x)


def guide_of(model):
    """A guide that is off the posterior by 0.3 deviations and 1.2 times as wide."""

    def guide(x, m):
        loc, scale = mean_of(x) + 0.3 * SD, torch.full_like(x, 1.2 * SD)
        if model is plated:
            data, steps = pyro.plate("data", len(x), dim=-2), pyro.plate("steps", 4, dim=-1)
            with data, steps, poutine.mask(mask=m):
                pyro.sample("z", dist.Normal(loc, scale))
            return
        name, kind = ("y", dist.LogNormal) if model is positive else ("z", dist.Normal)
        with pyro.plate("data", len(x)):
            pyro.sample(name, kind(loc, scale).mask(m).to_event(1))

    return guide


def mean_of(x):
    return x * S2 / (S2 + V)


SHORT = {
    "warmup": 60,
    "num_draws": 60,
    "num_leapfrog": 2,
}  # of the chains that a proposal is fitted to
models = pytest.mark.parametrize("model", [inside, positive, plated])


def program_of(model):
    return pv.Program(model, guide_of(model))


@models
def test_fitted_likelihood(model):
    """|z| < 5 in each datum, by the noise that the effective sample sizes state."""
    torch.manual_seed(0)
    found = pv.fitted_log_likelihood(program_of(model), BATCH, num_particles=4000, **SHORT)
    noise = (1 / found.ess - 1 / 4000).clamp(min=1e-12).sqrt()
    assert ((found.log_prob - EXACT).abs() < 5 * noise + 1e-6).all()
    assert found.log_prob[2].item() == pytest.approx(0.0, abs=1e-9)  # a datum without a step


@models
@pytest.mark.parametrize(("how", "full"), [("local", False), ("semi", True)])
def test_local_fits(model, how, full):
    torch.manual_seed(1)
    steps = 600 if how == "local" else 100
    settings = pv.Local(steps, full_covariance=full, start="prior" if how == "local" else "guide")
    fitted = pv.infer(program_of(model), BATCH, how=how, settings=settings)
    q = fitted.gaussians
    rows = M.reshape(4, 4)
    torch.testing.assert_close(q.loc[rows], MEAN[rows], rtol=0.02, atol=0.02)
    assert (q.scale[rows] / SD - 1).abs().max() < 0.05
    assert (q.loc[~rows] == 0).all() and (q.scale[~rows] == 1).all()
    bound = fitted.log_weight(200).mean(0)
    torch.testing.assert_close(bound, EXACT, rtol=0, atol=0.02)
    values = fitted.sample(3)
    density = dist.Normal(q.loc, q.scale).log_prob(
        values if model is not positive else values.log()
    )
    if not full:
        jacobian = values.log() * M if model is positive else 0 * values
        expected = (density * M - jacobian).sum(-1)
        torch.testing.assert_close(fitted.log_prob(values), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model", [positive])  # its estimators are tried on all three
def test_gaps(model):
    torch.manual_seed(2)
    annealed = pv.AIS(num_temperatures=20, chains=16, num_leapfrog=2, pilot=80)
    local = pv.Local(250)
    found = pv.gaps(program_of(model), BATCH, annealed=annealed, num_particles=2000, local=local)
    for estimate in found.estimators.values():
        torch.testing.assert_close(estimate, EXACT, rtol=0, atol=0.15)
    torch.testing.assert_close(found.local_elbo, EXACT, rtol=0, atol=0.01)


@models
def test_refined_draws(model):
    """Moments of 8,000 draws or so, and R-hat of the steps that there are."""
    torch.manual_seed(4)
    found = pv.refine(program_of(model), BATCH, pv.HMC(num_draws=500, warmup=150, num_leapfrog=4))
    assert bool(found.mixed.all()), found.rhat
    draws = next(iter(found.samples.values()))
    draws = draws.log() if model is positive else draws
    mean, scale = draws.mean((0, 1)), draws.flatten(0, 1).std(0)
    assert ((mean - MEAN).abs()[M] < 0.1).all()
    assert (scale / SD - 1).abs()[M].max() < 0.1
    assert (scale - 1).abs()[~M].max() < 0.15  # there they are draws of N(0, 1)


@pytest.mark.filterwarnings("ignore:refine")  # two draws mix nothing
def test_draws_of_a_posterior_are_0_behind_the_end():
    """As those of the prior are: refined, and fitted."""

    def padded(x, m):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", Padded(dist.LogNormal(0 * x, S2**0.5), m.sum(-1)))
            pyro.sample(
                "x", dist.Normal(y.clamp(min=1e-9).log(), V**0.5).mask(m).to_event(1), obs=x
            )

    program = pv.Program(padded, guide_of(positive))
    chains = pv.HMC(num_draws=2, warmup=2, chains=1, num_leapfrog=1)
    refined = pv.refine(program, BATCH, chains, compile=False).samples["y"]
    fitted = pv.infer(program, BATCH, how="local", settings=pv.Local(2)).sample(2)
    for draws in (refined, fitted):
        assert torch.equal(draws != 0, M.expand_as(draws))


@pytest.mark.parametrize(
    ("model", "start"), [(inside, "prior"), (plated, "prior"), (positive, "guide")]
)
def test_annealing_from_either_end(model, start):
    torch.manual_seed(5)
    settings = pv.AIS(num_temperatures=30, chains=64, num_leapfrog=1, start=start, pilot=60)
    forward = pv.ais(program_of(model), BATCH, settings)
    noise = (1 / forward.ess - 1 / 64).clamp(min=1e-12).sqrt()  # below 0.25 nats: to first order
    assert noise.max() < 0.25
    assert ((forward.log_prob - EXACT).abs() < 5 * noise + 1e-6).all()
    assert forward.log_prob[2].item() == pytest.approx(0.0, abs=1e-9)


def test_the_traced_density_reads_the_mask_of_its_rows():
    """The graph of the first two rows serves the next two, whose masks differ."""
    program, graphs = program_of(plated), DensityGraphs("trace")
    program.read(BATCH)
    u = torch.linspace(-1, 2, 3 * 2 * 4, dtype=torch.float64).reshape(3, 2, 4)
    with scoring(program):
        for rows in (slice(0, 2), slice(2, 4)):
            piece = {name: value[rows] for name, value in BATCH.items()}
            density = LogJoint(program, piece)
            assert density.constant_supports
            traced = graphs.density(density, piece, u)
            torch.testing.assert_close(traced(u), density.log_joint(u))
    assert graphs.mode == "trace" and len(graphs._graphs) == 1


@pytest.mark.parametrize("model", [inside, plated])
def test_a_guide_that_scores_masked_values_is_refused_where_its_density_counts(model):
    """Values without a density would be weighed by that of the guide: AIS starts from the prior."""

    def guide(x, m):
        return guide_of(model)(x, torch.ones_like(m))

    program = pv.Program(model, guide)
    settings = {"num_temperatures": 4, "chains": 16, "pilot": 40, "num_leapfrog": 2}
    with pytest.raises(pv.errors.ProgramError, match="'z': masked in the model and not in the"):
        pv.ais(program, BATCH, pv.AIS(start="guide", **settings))
    torch.manual_seed(0)
    found = pv.ais(program, BATCH, pv.AIS(**settings))
    assert ((found.log_prob - EXACT).abs() < 5 * found.noise + 1e-9).all()


@models
def test_weights_leave_out_what_the_guide_scores_and_the_model_masks(model):
    """A guide at the exact posterior has equal weights, whatever it draws beyond the end."""

    def guide(x, m):
        name, kind = ("y", dist.LogNormal) if model is positive else ("z", dist.Normal)
        loc = torch.where(m, mean_of(x), 5.0)
        scale = torch.where(m, SD, torch.full_like(x, 0.1))
        if model is plated:
            with pyro.plate("data", len(x), dim=-2), pyro.plate("steps", 4, dim=-1):
                pyro.sample(name, kind(loc, scale))
            return
        with pyro.plate("data", len(x)):
            pyro.sample(name, kind(loc, scale).to_event(1))

    found = pv.log_likelihood(pv.Program(model, guide), BATCH, num_particles=3)
    torch.testing.assert_close(found.log_prob, EXACT, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.ess, torch.full_like(EXACT, 3.0))


def test_weights_leave_out_a_density_that_a_point_mass_tells_of():
    """As of a draw of a flow; of one draw for all steps the density of some is not known."""

    def guide(x, m):
        own = dist.Normal(torch.where(m, mean_of(x), 5.0), SD)
        z = own.sample()
        with pyro.plate("data", len(x), dim=-2), pyro.plate("steps", 4, dim=-1):
            pyro.sample("z", dist.Delta(z, log_density=own.log_prob(z)))

    def of_all_steps(x, m):
        own = dist.Normal(mean_of(x), SD).to_event(1)
        z = own.sample()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(z, log_density=own.log_prob(z), event_dim=1))

    found = pv.log_likelihood(pv.Program(plated, guide), BATCH, num_particles=3)
    torch.testing.assert_close(found.log_prob, EXACT, rtol=0, atol=1e-6)
    with pytest.raises(pv.errors.ProgramError, match=r"a part of what Delta in the guide"):
        pv.log_likelihood(pv.Program(inside, of_all_steps), BATCH, num_particles=3)


@pytest.mark.parametrize("kind", ["joint", "own mask", "AutoNormal"])
def test_weights_that_cannot_leave_it_out_are_refused(kind):
    """A density of all steps at once, a mask of the guide alone, one that another site has."""

    def guide(x, m):
        with pyro.plate("data", len(x)):
            if kind == "joint":
                eye = torch.eye(4, dtype=x.dtype)
                pyro.sample("z", dist.MultivariateNormal(mean_of(x), eye))
            else:
                pyro.sample("z", dist.Normal(mean_of(x), SD).mask(m & (x > 0)).to_event(1))

    guide = AutoNormal(inside) if kind == "AutoNormal" else guide
    message = {"joint": "a part of what MultivariateNormal", "own mask": "masked in the guide and"}
    with pytest.raises(pv.errors.ProgramError, match="'z': .*" + message.get(kind, "'z_unconst")):
        pv.log_likelihood(pv.Program(inside, guide), BATCH, num_particles=3)


@pytest.mark.parametrize("how", ["handler", "distribution", "lengths"])
def test_data_lie_in_the_support_wherever_no_mask_takes_them_out(how):
    """Behind a mask a value may be anything, in front of it a count of 2 is no Bernoulli draw."""

    def model(x, kept):
        rate = pyro.param("rate", torch.tensor(0.3, dtype=torch.float64))
        steps = dist.Bernoulli(rate).expand(x.shape)
        with pyro.plate("data", len(x)):
            if how == "handler":
                with pyro.plate("time", x.shape[1], dim=-2), poutine.mask(mask=kept.T):
                    pyro.sample("x", dist.Bernoulli(rate), obs=x.T)
                return
            fn = steps.mask(kept).to_event(1) if how == "distribution" else None
            pyro.sample("x", fn or Padded(steps, kept.sum(-1)), obs=x)

    program = pv.Program(model, lambda x, kept: None)
    kept = torch.arange(4) < torch.tensor([3, 1, 4, 2, 4, 4])[:, None]
    x = torch.where(kept, 1.0, 7.0).double()
    exact = kept.sum(-1) * torch.tensor(0.3).double().log()
    torch.testing.assert_close(pv.elbo(program, (x, kept)), exact)
    run = {"epochs": 1, "batch_size": 2, "compile": False, "progress": False}
    pv.fit(program, (x, kept), **run)
    x[4, 1] = 2.0
    for verb in (pv.elbo, lambda *args: pv.fit(*args, **run)):
        with pytest.raises(DataError, match=r"value 2 in row 4 is outside the support \(Bool"):
            verb(pv.Program(model, lambda x, kept: None), (x, kept))


def told_of_masks(ask):
    """Return the warnings of masks that two questions give."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ask()
        ask()
    return [str(each.message) for each in told if "the model masks it" in str(each.message)]


def half_seen(x, seen):
    """Pyro draws what is not seen, ``x_unobserved``, and masks that draw where it is."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(y, 1.0), obs=x, obs_mask=seen)


SEEN = (torch.tensor([0.3, -0.2, 1.0]), torch.tensor([True, True, False]))


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (AutoNormal, 1),
        (AutoMultivariateNormal, 1),
        (AutoStructured, 1),
        (AutoDelta, 0),  # a point has no density that could count
        (lambda m: poutine.mask(AutoNormal(m), mask=~SEEN[1]), 0),
        (lambda m: poutine.mask(AutoNormal(m), mask=SEEN[1]), 1),
    ],
)
@pytest.mark.filterwarnings("ignore:elbo. site")
@pytest.mark.parametrize("whole", [False, True])
def test_a_mask_that_an_automatic_guide_lacks_is_told_of(kind, count, whole):
    """Its sites are point masses: the density is that of others, whatever these are called."""
    program = pv.Program(half_seen, kind(half_seen), whole=whole)
    assert len(told_of_masks(lambda: pv.elbo(program, SEEN))) == count


def test_the_bound_that_is_told_of_lies_above_the_evidence():
    """As that of stock SVI does."""
    guide = AutoNormal(half_seen, init_scale=30.0, init_loc_fn=init_to_value(values={"y": ZERO}))
    program = pv.Program(half_seen, guide)
    assert len(told_of_masks(lambda: program.read(SEEN))) == 1
    free = torch.tensor(0.5**0.5).expm1().log()  # of softplus
    guide.scales.y_unconstrained.data.fill_(free)
    torch.manual_seed(0)
    found = pv.elbo(program, SEEN, num_particles=4000)
    x, seen = SEEN
    kl = 0.5 * (0.5 - 1 - torch.tensor(0.5).log())
    data = dist.Normal(0.0, 1.0).log_prob(x) - 0.25
    entropy = dist.Normal(0.0, 30.0).entropy()
    exact = torch.where(seen, data - kl + entropy, torch.zeros(3))
    evidence = dist.Normal(0.0, 2.0**0.5).log_prob(x)
    assert (found[:2] > evidence[:2]).all()
    torch.testing.assert_close(found[:2], exact[:2], rtol=0, atol=0.1)  # |z| < 5


@pytest.mark.filterwarnings("ignore:.*the guide is a point mass")
@pytest.mark.parametrize("ask", [pv.log_likelihood, pv.refine, pv.diagnose])
def test_a_mask_wider_than_its_latent_counts_as_by_stock_svi(ask):
    """As of ``obs_mask=`` around data wider than their distribution; elsewhere it is named."""

    def model(x, seen):
        with pyro.plate("data", len(x), dim=-2):
            y = pyro.sample("y", dist.Normal(torch.zeros(len(x), 1), 1.0))
            pyro.sample("x", dist.Normal(y, 0.5), obs=x, obs_mask=seen)

    def guide(x, seen):
        with pyro.plate("data", len(x), dim=-2):
            loc = pyro.param("loc", torch.tensor(0.5)) * x.mean(1, keepdim=True)
            y = pyro.sample("y", dist.Delta(loc))
            with poutine.mask(mask=~seen):
                pyro.sample("x_unobserved", dist.Delta(y))

    data = torch.randn(4, 3), torch.tensor([[True, True, False]]).expand(4, 3)
    stock = -Trace_ELBO(max_plate_nesting=2).loss(model, guide, *data)
    pyro.clear_param_store()
    program = pv.Program(model, guide)
    torch.testing.assert_close(pv.elbo(program, data).sum(), torch.tensor(stock))
    with pytest.raises(pv.errors.ProgramError, match=r"'x_unobserved': got a mask of \(3,\)"):
        ask(program, data)


@pytest.mark.parametrize("of_class", [False, True])
def test_a_mask_beside_what_is_summed_out_is_told_of_where_it_stands_still(of_class):
    """One that moves with the class cannot be written in a guide that leaves the class out."""

    def model(x, seen):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            with poutine.mask(mask=k.bool() if of_class else seen):
                y = pyro.sample("y", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(y + k, 1.0), obs=x)

    def guide(x, seen):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x / 2, 0.7))

    program = pv.Program(model, guide)
    assert len(told_of_masks(lambda: program.read(SEEN))) == (0 if of_class else 1)


def test_a_warning_that_a_silent_look_meets_is_given_afterwards():
    """A look at rows from all over the data may be the first that meets a masked one."""
    program = pv.Program(half_seen, AutoNormal(half_seen))

    def ask():
        with silent():
            program.read(SEEN)

    assert not told_of_masks(ask)
    assert len(told_of_masks(lambda: program.read(SEEN))) == 1


def test_masked_rows_behind_the_first_batch_are_told_of():
    """They are met by a look at rows from all over the data, before a fit cuts these."""

    def guide(x, seen):
        with pyro.plate("data", len(x)):
            for name in ("y", "x_unobserved"):
                pyro.sample(name, dist.Normal(pyro.param(f"loc_{name}", torch.tensor(0.0)), 1.0))

    data = torch.randn(8), torch.arange(8) > 3
    program, run = pv.Program(half_seen, guide), {"epochs": 1, "batch_size": 4, "compile": False}
    assert len(told_of_masks(lambda: pv.fit(program, data, **run))) == 1


def test_two_kinds_of_warnings_of_one_site_are_both_given():
    told = Told()
    with pytest.warns(UserWarning, match="one"):
        told.warn(("mask", "x"), "one")
    with pytest.warns(UserWarning, match="two"):
        told.warn(("support", "x"), "two")


@pytest.mark.parametrize("masked", [False, True])
def test_a_mask_that_the_guide_lacks_is_told_of(masked):
    """As of obs_mask= in the model: the bound of stock SVI lies above log p(x) then."""
    seen = torch.tensor([True, True, False])

    def model(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=~seen):
            y = pyro.sample("y", dist.Normal(0 * x, 1.0))
        with pyro.plate("again", len(x)):
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=~seen if masked else True):
            pyro.sample("y", dist.Normal(x / 2, 0.1))

    program = pv.Program(model, guide, plate="again")
    assert len(told_of_masks(lambda: pv.elbo(program, torch.randn(3)))) == (0 if masked else 1)


@pytest.mark.filterwarnings("error:.*the model masks it")
def test_a_flat_prior_and_values_that_nobody_knows_are_no_lack_of_a_mask():
    """``mask(False)`` is how Pyro writes a prior without a density; meta data tell no mask."""

    def flat(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0 * x, 1.0).mask(False))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    # Of a flat prior the evidence is 1: that bound is exact at the exact posterior.
    torch.manual_seed(0)
    bound = pv.elbo(pv.Program(flat, guide), torch.randn(3), num_particles=8)
    assert torch.allclose(bound, torch.zeros(3), atol=1e-5)
    meta = {name: value.to("meta") for name, value in BATCH.items()}
    pv.Program(inside, guide_of(inside)).read(meta)
