"""Deep exponential families against conjugacy and hand-written densities; BayesianVAE."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.models.bayesian import BayesianVAE
from pyro_vae.models.deep_exponential import DEF
from pyro_vae.program.batches.batch import map_batch

EXACT = {"rtol": 1e-9, "atol": 1e-9}
COUNTS = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 4.0], [0.0, 0.0, 0.0], [9.0, 5.0, 7.0]]).double()


@torch.no_grad()
def conjugate(x, weight, shape=0.7):
    """Return a one-unit gamma-Poisson DEF with known weights and its exact posterior as guide.

    z ~ Gamma(a, a), x_d ~ Poisson(w_d z): z | x ~ Gamma(a + sum x, a + sum w).
    """
    model = DEF(x.shape[1], (1,), weights="point", shape=shape, num_data=len(x)).double()
    model.weight_loc[0].copy_(weight.log()[None])
    posterior, rate = shape + x.sum(1), shape + weight.sum()
    model.table.copy_(torch.stack([(posterior / rate).log(), -0.5 * (posterior - 0.05).log()], -1))
    return model


def test_the_conjugate_posterior_gives_the_negative_binomial_marginal():
    """With the exact posterior every draw weighs log p(x): zero variance."""
    x = COUNTS[:, :1]
    model = conjugate(x, torch.tensor([1.6], dtype=torch.float64))
    q = model.guide_of(x, torch.arange(4))["z1"]
    torch.testing.assert_close(q.mean, (0.7 + x) / (0.7 + 1.6), **EXACT)
    torch.testing.assert_close(q.variance, (0.7 + x) / (0.7 + 1.6) ** 2, **EXACT)
    terms = pv.Program.of(model).terms(model.rows(x), num_particles=50)
    marginal = dist.NegativeBinomial(
        torch.tensor(0.7, dtype=torch.float64),
        probs=torch.tensor(1.6 / (0.7 + 1.6), dtype=torch.float64),
    ).log_prob(x[:, 0])
    torch.testing.assert_close(terms.log_weight[0], marginal.expand(50, 4), **EXACT)


def test_the_marginal_of_several_counts():
    """The same with three counts that share their rate: the negative multinomial."""
    weight, a = torch.tensor([0.4, 1.6, 2.5]).double(), 0.7
    model = conjugate(COUNTS, weight, a)
    total = COUNTS.sum(1)
    marginal = (
        torch.lgamma(a + total)
        - math.lgamma(a)
        + a * math.log(a)
        - (a + total) * torch.log(a + weight.sum())
        + (COUNTS * weight.log() - torch.lgamma(COUNTS + 1)).sum(1)
    )
    torch.testing.assert_close(pv.elbo(model, model.rows(COUNTS)), marginal, **EXACT)
    worse = conjugate(COUNTS, weight, a)
    with torch.no_grad():
        worse.table += 0.3
    assert pv.elbo(worse, worse.rows(COUNTS), num_particles=2000).mean() < marginal.mean() - 0.01


def test_training_finds_the_conjugate_posterior():
    """Local parameters, full batch: the bound meets the exact marginal."""
    model = conjugate(COUNTS, torch.tensor([0.4, 1.6, 2.5]).double())
    exact = pv.elbo(model, model.rows(COUNTS)).mean().item()
    with torch.no_grad():
        model.table.zero_()
    model.weight_loc.requires_grad_(False)
    pv.fit(
        model,
        model.rows(COUNTS),
        objective=pv.ELBO(num_particles=20),
        epochs=250,
        lr=0.1,
        lr_schedule=pv.schedules.cosine(1.0, 0.02),
        compile="trace",
    )
    bound = pv.elbo(model, model.rows(COUNTS), num_particles=5000).mean().item()
    assert bound == pytest.approx(exact, abs=0.02)


def by_hand(model, values, x):
    """Return the log density of everything, from the formulas."""
    family, total = model.family, 0.0
    for level in range(2):
        w = values[f"w{level}"]
        if family == "gaussian":
            total = total - 0.5 * (w.square() + math.log(2 * math.pi)).sum()
        else:
            log_p = 0.1 * math.log(0.3) - math.lgamma(0.1) - 0.9 * w.log() - 0.3 * w
            total = total + log_p.sum()
    top = torch.full_like(values["z2"], 0.0 if family == "gaussian" else 1.0)
    for z, mean in ((values["z2"], top), (values["z1"], values["z2"] @ values["w1"])):
        if family == "gaussian":
            log_p = -0.5 * ((z - mean).square() + math.log(2 * math.pi))
        elif family == "poisson":
            log_p = z * mean.log() - mean - torch.lgamma(z + 1)
        else:
            a = model.shape
            log_p = a * (a / mean).log() - math.lgamma(a) + (a - 1) * z.log() - a * z / mean
        total = total + log_p.sum()
    mean = values["z1"] @ values["w0"]
    mean = torch.log1p(mean.exp()) if family == "gaussian" else mean
    if model.config["observation"] == "poisson":
        return total + (x * mean.log() - mean - torch.lgamma(x + 1)).sum()
    on = 1 - (-mean).exp()
    return total + (x * on.log() + (1 - x) * (1 - on).log()).sum()


@pytest.mark.parametrize("observation", ["poisson", "bernoulli"])
@pytest.mark.parametrize("family", ["gamma", "poisson", "gaussian"])
def test_the_joint_density_is_the_papers(family, observation):
    x = COUNTS.clamp(max=1) if observation == "bernoulli" else COUNTS
    model = DEF(3, (4, 2), family=family, observation=observation, hidden=(5,)).double()
    shapes = {"w0": (4, 3), "w1": (2, 4), "z2": (4, 2), "z1": (4, 4)}
    values = {name: torch.rand(shape).double() + 0.2 for name, shape in shapes.items()}
    if family == "poisson":
        values |= {name: values[name].mul(3).ceil() for name in ("z1", "z2")}
    with pv.Program.of(model).running():
        trace = poutine.trace(poutine.condition(model.model, data=values)).get_trace(x)
    torch.testing.assert_close(trace.log_prob_sum(), by_hand(model, values, x), **EXACT)


@pytest.mark.parametrize("build", [lambda: DEF(3, (4, 2), hidden=(5,)), lambda: BayesianVAE(3, 2)])
def test_minibatches_are_unbiased_parts_of_the_whole(build):
    """At the same draws the two halves, weighed by N/B, average to the full-data bound."""
    program = pv.Program.of(build().double())
    x = COUNTS.clamp(max=1)
    drawn = program.terms(x)
    local = {name: latents[0].value for name, latents in drawn.latents.items()}
    with program.running():
        held = program.joint(x).global_values()

        def bound(rows):
            joint = program.joint(x[rows], size=4)
            fixed = {name: value[rows] for name, value in local.items()}
            return -pv.ELBO().per_datum(joint.fixing(held | fixed))

        whole = bound(slice(0, 4))
        halves = (bound(slice(0, 2)) + bound(slice(2, 4))) / 2
    torch.testing.assert_close(halves, whole, **EXACT)
    assert program.sites.outside and len(program.sites.global_) >= 2


def test_the_layers_have_the_means_and_shapes_that_they_claim():
    mean = torch.tensor([0.5, 3.0]).double()
    for family, variance in (("gamma", mean**2 / 0.1), ("poisson", mean), ("gaussian", mean**0)):
        layer = DEF(3, (2,), family=family).double().layer(mean)
        torch.testing.assert_close(layer.mean, mean, **EXACT)
        torch.testing.assert_close(layer.variance, variance, **EXACT)


def test_weights_start_at_the_mean_of_the_data_and_narrow():
    """Units of mean 1 add up to the data's mean, but for e^{0.3 noise}: 1.05 on average."""
    torch.manual_seed(0)
    mean = torch.linspace(0.5, 9.0, 50)
    q = DEF(50, (20,), data_mean=mean).weight_posterior(0)
    assert (q.mean.sum(0) / mean).mean().item() == pytest.approx(math.exp(0.045), abs=0.1)
    assert ((q.mean.sum(0) / mean).log().abs() < 0.5).all()  # 5 errors of 20 weights
    assert ((q.variance.sqrt() / q.mean - (math.exp(2) + 0.05) ** -0.5).abs() < 1e-4).all()


def test_units_that_underflow_stay_finite():
    """In float32 a sum of sparse gammas can be 0: densities and gradients stay finite."""
    torch.manual_seed(0)
    model = DEF(5, (3, 3), hidden=(4,))
    with torch.no_grad():
        for weight in model.weight_loc:
            weight.fill_(-80.0)
    x = torch.arange(20.0).reshape(4, 5)
    with pv.Program.of(model).running():
        loss = pv.ELBO().per_datum(pv.Program.of(model).joint(x))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_each_layer_has_columns_of_its_own_in_the_table():
    """Four units of z1, two of z2: a column is the place, or later the spread, of one unit."""
    model = DEF(3, (4, 2), num_data=4, family="gaussian").double()
    row, units = torch.arange(4), [("z1", k) for k in range(4)] + [("z2", k) for k in range(2)]
    before = model.guide_of(COUNTS, row)
    for column in range(12):
        with torch.no_grad():
            model.table[:, column] += 1.0
        for name, q in model.guide_of(COUNTS, row).items():
            at = [k for unit, k in (units[column % 6],) if unit == name]
            for value, old in ((q.mean, before[name].mean), (q.stddev, before[name].stddev)):
                moved = (value != old).all(0).nonzero().flatten().tolist()
                assert moved == (at if (value is q.mean) == (column < 6) else [])
        before = model.guide_of(COUNTS, row)


def test_a_row_of_the_table_is_moved_by_its_datum_alone():
    model = DEF(3, (2,), num_data=4).double()
    program, batch = pv.Program.of(model), model.rows(COUNTS)
    with program.running():
        part = map_batch(lambda leaf: leaf[1:3], batch)
        pv.ELBO().per_datum(program.joint(part, size=4)).backward()
    moved = model.table.grad.abs().sum(1) > 0
    assert moved.tolist() == [False, True, True, False]
    with pytest.raises(ConfigError, match="parameters per datum"):
        model.guide_of(COUNTS)


def test_stronger_data_narrow_the_weights():
    """The posterior of the weights contracts with N: the N/B scale reaches it."""
    torch.manual_seed(0)
    spreads = []
    for repeats in (2, 200):
        torch.manual_seed(1)
        model = DEF(3, (1,), num_data=4 * repeats, posterior="lognormal")
        x = COUNTS.float().repeat(repeats, 1)
        pv.fit(model, model.rows(x), epochs=1200 // repeats, batch_size=8, lr=0.05, compile="trace")
        spreads.append(model.weight_spread[0].mean().item())
    assert spreads[1] < spreads[0] - 0.5


def test_the_means_and_scales_of_bayesian_weights_train():
    vae, x = BayesianVAE(6, 2, (5,)), torch.ones(4, 6)
    with pv.Program.of(vae).running():
        pv.ELBO().per_datum(pv.Program.of(vae).joint(x)).backward()
    assert all((p.grad != 0).any() for p in (*vae.decoder.parameters(), *vae.log_scales))


def test_bayesian_vae_is_a_vae_at_each_draw_of_its_decoder():
    torch.manual_seed(0)
    vae = pv.models.VAE(3, 2, (4,)).double()
    bayesian = BayesianVAE(3, 2, (4,), prior_scale=0.5, scale=0.1).double()
    program, x = pv.Program.of(bayesian), COUNTS.clamp(max=1)
    with program.running():
        values = {name: torch.randn_like(p) for name, p in vae.decoder.named_parameters()}
        held = {f"decoder.{name}": value for name, value in values.items()}
        terms = program.joint(x).fixing(held).terms()
    with torch.no_grad():
        for name, parameter in vae.decoder.named_parameters():
            parameter.copy_(values[name])
    z = terms.latents["z"][0].value
    torch.testing.assert_close(terms.log_p["x"][0, 0], vae.decoder(z).log_prob(x), **EXACT)
    half = torch.tensor(0.5, dtype=torch.float64)
    log_p = sum(dist.Normal(0 * half, half).log_prob(v).sum() for v in values.values())
    torch.testing.assert_close(sum(terms.global_log_p.values())[0], log_p, **EXACT)
    factors = zip(bayesian.decoder.named_parameters(), bayesian.log_scales, strict=True)
    log_q = sum(
        dist.Normal(loc, log_scale.exp()).log_prob(values[name]).sum()
        for (name, loc), log_scale in factors
    )
    assert bayesian.log_scales[0].exp().mean().item() == pytest.approx(0.1, rel=1e-6)
    torch.testing.assert_close(sum(terms.global_log_q.values())[0], log_q, **EXACT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "beta"}, "expected one of gamma"),
        ({"observation": "normal"}, "expected one of poisson"),
        ({"weights": "map"}, "expected one of bayesian"),
        ({"posterior": "weibull"}, "expected one of gamma"),
        ({"latent_dims": ()}, "is empty"),
        ({"shape": 0.0}, "shape: got 0.0, expected a positive number"),
        ({"num_data": 0}, "num_data"),
        ({"data_mean": torch.ones(4)}, r"expected that of one datum, \(3,\)"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        DEF(3, **{"latent_dims": (2,), **options})


def test_bad_scales():
    with pytest.raises(ConfigError, match="prior_scale"):
        BayesianVAE(3, 2, prior_scale=0.0)


def test_stock_svi_scales_nothing_by_itself(store):
    """A stock trace of the whole data set is the full bound: no plate of ours changes it."""
    model = DEF(3, (2,), hidden=(4,)).double()
    torch.manual_seed(3)
    stock = -pyro.infer.Trace_ELBO().loss(model.model, model.guide, COUNTS)
    torch.manual_seed(3)
    program = pv.Program.of(model)
    with program.running(), torch.no_grad():
        joint = program.joint(COUNTS)
        torch.manual_seed(3)  # looking at the data before took no numbers, and drew weights alone
        ours = -joint.size * pv.ELBO().per_datum(joint).item()
    assert ours == pytest.approx(stock, rel=1e-9)


@pytest.mark.parametrize("shape", [0.0, -1.0, math.inf, math.nan, True, "a"])
def test_shapes_and_scales_that_are_none(shape):
    with pytest.raises(ConfigError, match="shape: got"):
        pv.models.DEF(6, (2,), shape=shape)
    with pytest.raises(ConfigError, match="prior_scale: got"):
        pv.models.BayesianVAE(6, 2, (8,), prior_scale=shape)


@pytest.mark.parametrize(
    "build",
    [
        lambda m: pv.models.DEF(6, (2,), data_mean=m),
        lambda m: pv.models.SBN(6, (2,), data_mean=m),
        lambda m: pv.models.VAE(6, 2, (8,), data_mean=m),
    ],
)
def test_a_mean_that_is_not_finite(build):
    with pytest.raises(ConfigError, match="data_mean has entries that are not finite"):
        build(torch.full((6,), math.nan))


def test_negative_counts_are_blamed_on_the_data():
    x = torch.ones(5, 6)
    x[3, 2] = -1
    with pytest.raises(DataError, match=r"'x'.*-1"):
        pv.elbo(pv.models.DEF(6, (2,), hidden=(8,)), x)


@pytest.mark.parametrize("loc", [-1000.0, 1000.0])
def test_a_lognormal_unit_stays_a_number(loc):
    model = pv.models.DEF(6, (2,), posterior="lognormal", num_data=4)
    with torch.no_grad():
        model.table.fill_(loc)
        z = model.guide_of(torch.ones(4, 6), torch.arange(4))["z1"].base_dist.icdf(
            torch.tensor(0.5)
        )
    assert z.isfinite().all() and (z > 0).all()
