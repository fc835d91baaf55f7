"""Factors of the guide and of the model: counted in every objective, and in no likelihood.

z ~ N(0, 1), x | z ~ N(z, 1); the guide is the exact posterior unless a test says otherwise, so that
log p(x) = N(x; 0, 2) is the ELBO less the factors, at every draw.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from objective_table import TABLE
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ProgramError

torch.manual_seed(11)
X = torch.randn(9, dtype=torch.float64) * 2**0.5
LABEL = (X > 0.3).double()
EXACT = dist.Normal(0.0, 2**0.5).log_prob(X)
LOSS = torch.linspace(-1.0, 3.0, 9, dtype=torch.float64)


class Labelled(nn.Module):
    """A guide that classifies its latent, as SCANVI does; ``outside`` puts a term on no datum."""

    def __init__(self, has_rsample=False, outside=False, discrete=False):
        super().__init__()
        self.has_rsample, self.outside, self.discrete = has_rsample, outside, discrete
        self.slope = nn.Parameter(torch.tensor(0.4))
        self.shift = nn.Parameter(torch.tensor(0.2))
        self.double()

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self._latent(x * 0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x, y):
        if self.outside:
            pyro.factor("ridge", self.slope.square() * 7, has_rsample=self.has_rsample)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self._latent(x / 2 + self.shift))
            logit = z * self.slope + 0.1
            loss = -dist.Bernoulli(logits=logit).log_prob(y)
            pyro.factor("classification", 2 * loss, has_rsample=self.has_rsample)

    def _latent(self, loc):
        return dist.Bernoulli(logits=loc) if self.discrete else dist.Normal(loc, 0.7)


def constant(loss, has_rsample=False):
    """The exact posterior, and a factor of known size at each datum."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x * 0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            pyro.factor("loss", loss[: len(x)], has_rsample=has_rsample)

    return pv.Program(model, guide)


def gradients(program, loss):
    parameters = list(program.parameters())
    return torch.autograd.grad(loss, parameters, allow_unused=True)


@pytest.mark.parametrize("has_rsample", [True, False])
@pytest.mark.parametrize("outside", [True, False])
def test_value_and_gradient_are_those_of_trace_elbo(has_rsample, outside):
    case = Labelled(has_rsample, outside)
    torch.manual_seed(3)
    stock = Trace_ELBO().differentiable_loss(case.model, case.guide, X, LABEL)
    torch.manual_seed(3)
    ours = pv.ELBO().differentiable_loss(case.model, case.guide, X, LABEL)
    torch.testing.assert_close(ours, stock, rtol=1e-12, atol=1e-12)
    for got, expected in zip(gradients(case, ours), gradients(case, stock), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_a_reparametrised_factor_counts_in_renyi_as_in_stock():
    case = Labelled(has_rsample=True)
    torch.manual_seed(4)
    renyi = RenyiELBO(0.0, num_particles=6, vectorize_particles=True, max_plate_nesting=1)
    stock = renyi.loss(case.model, case.guide, X, LABEL)
    torch.manual_seed(4)  # both draw (6, 9) normals
    ours = pv.IWAE(6).loss(case.model, case.guide, X, LABEL)
    assert ours == pytest.approx(stock, rel=1e-10)


# A floor or a dream of the guide counts the factor otherwise: these are without.
PLAIN = {
    "free bits": pv.FreeBits(0.0, per="site"),
    "target KL": pv.TargetKL(100.0, weight=1e-30),
    "wake-sleep": pv.ReweightedWakeSleep(4),
}
OBJECTIVES = {
    name: PLAIN.get(name) or row.build(4, 1)
    for name, row in TABLE.items()
    # Of these two the guide, or the decoder, has an update of its own, and here no parameter.
    if row.latents in ("paths", "any") and name not in ("lagging", "VAE/GAN")
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_every_objective_bears_the_loss_and_its_gradient(objective):
    """The same objective with and without a loss that no latent meets differs by that loss."""
    size = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x * 0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, factor=True):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 3, 0.8))
            if factor:
                pyro.factor("loss", size * LOSS, has_rsample=False)

    def plain(x):
        guide(x, factor=False)

    found = []
    for each in (guide, plain):
        program = pv.Program(model, each)
        program.read(X)
        with program.running():
            update = objective.updates(program)[-1]
            torch.manual_seed(5)
            found.append(update.loss(program.joint(X)))
    torch.testing.assert_close(found[0] - found[1], 1.5 * LOSS.mean(), rtol=1e-9, atol=1e-9)
    if not isinstance(objective, pv.ELBO):  # Pyro's own gives another gradient, tested above
        (grad,) = torch.autograd.grad(found[0], [size])
        torch.testing.assert_close(grad, LOSS.mean(), rtol=1e-9, atol=1e-9)


def test_a_loss_of_the_latent_reaches_the_encoder():
    """AnalyticELBO: minus the mean of the factor, through the draw and through the classifier."""
    case = Labelled()
    torch.manual_seed(6)
    ours = pv.AnalyticELBO().differentiable_loss(case.model, case.guide, X, LABEL)
    case.has_rsample = True
    torch.manual_seed(6)
    stock = TraceMeanField_ELBO().differentiable_loss(
        case.model, lambda x, y: without_factor(case, x), X, LABEL
    )
    torch.manual_seed(6)
    z = X / 2 + case.shift + 0.7 * torch.randn(9, dtype=torch.float64)
    loss = -2 * dist.Bernoulli(logits=z * case.slope + 0.1).log_prob(LABEL)
    expected = stock + loss.sum()
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    for got, wanted in zip(gradients(case, ours), gradients(case, expected), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def without_factor(case, x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", case._latent(x / 2 + case.shift))


def test_a_discrete_latent_learns_from_the_factor():
    """RLOO's mean gradient is that of the exact ELBO less the factor (|z| < 5: 6e-7 a figure)."""
    case = Labelled(discrete=True)
    one = torch.ones(9, dtype=torch.float64)
    q = torch.sigmoid(X / 2 + case.shift)
    exact = 0.0
    for z, weight in ((0 * one, 1 - q), (one, q)):
        p = dist.Bernoulli(logits=0 * one).log_prob(z) + dist.Normal(z, 1.0).log_prob(X)
        factor = -2 * dist.Bernoulli(logits=z * case.slope + 0.1).log_prob(LABEL)
        exact = exact - (weight * (p - weight.log() - factor)).sum()
    expected = torch.stack(gradients(case, exact))
    torch.manual_seed(7)
    found = []
    for _ in range(400):
        loss = pv.RLOO(8).differentiable_loss(case.model, case.guide, X, LABEL)
        found.append(torch.stack(gradients(case, loss)))
    draws = torch.stack(found)
    z = (draws.mean(0) - expected) / (draws.std(0) / 20)
    assert z.abs().max() < 5.0


def test_elbo_counts_factors_and_likelihoods_do_not():
    program = constant(LOSS)
    torch.testing.assert_close(pv.elbo(program, X, num_particles=3), EXACT - LOSS)
    torch.testing.assert_close(pv.log_likelihood(program, X, num_particles=50).log_prob, EXACT)
    torch.testing.assert_close(pv.ais(program, X, pv.AIS(5, 2, pilot=10)).log_prob, EXACT)
    posterior = pv.infer(program, X)
    torch.testing.assert_close(posterior.log_weight(4), EXACT.expand(4, 9))
    at = torch.zeros(2, 9, dtype=torch.float64)
    q = dist.Normal(X / 2, 0.5**0.5).log_prob(at)
    torch.testing.assert_close(posterior.log_prob(at), q)


def test_a_factor_that_may_be_a_density_is_not_guessed_at():
    program = constant(LOSS, has_rsample=True)
    torch.testing.assert_close(pv.elbo(program, X), EXACT - LOSS)
    for verb in (pv.log_likelihood, pv.ais, lambda p, x: pv.infer(p, x).log_weight(2)):
        with pytest.raises(ProgramError, match=r"site 'loss'.*has_rsample"):
            verb(program, X)
    drawn = pv.refine(program, X[:3], pv.HMC(num_draws=300, warmup=100))  # no density of q in it
    assert (drawn.scale - 0.5**0.5).abs().max() < 0.1


def test_auxiliary_sites_of_the_guide_do_not_stop_hmc():
    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x * 0, 0.5), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / 2 + a, 0.5))

    program = pv.Program(constant(LOSS).functions[0], guide)
    torch.manual_seed(8)
    drawn = pv.refine(program, X, pv.HMC(num_draws=400, warmup=200, chains=8))
    assert drawn.mixed.all()
    error = drawn.scale / (2 * drawn.ess).sqrt()
    assert ((drawn.scale - 0.5**0.5) / error).abs().max() < 5.0
    short = {"warmup": 60, "num_draws": 60, "num_leapfrog": 2}
    fitted = pv.fitted_log_likelihood(program, X, num_particles=4000, **short)
    assert (fitted.log_prob - EXACT).abs().max() < 5 / fitted.ess.min().sqrt()
    local = pv.infer(program, X, how="local")
    torch.testing.assert_close(local.mean, X / 2, rtol=0, atol=1e-2)
    with pytest.raises(ProgramError, match="'a'"):
        pv.ais(program, X, pv.AIS(5, 2, start="guide", pilot=10))
    annealed = pv.ais(program, X, pv.AIS(30, 64, num_leapfrog=2, pilot=60))  # from the prior
    noise = (1 / annealed.ess - 1 / 64).clamp(min=1e-4).sqrt()
    assert ((annealed.log_prob - EXACT) / noise).abs().max() < 5.0


class Ridge(nn.Module):
    """A factor outside the plate holds the prior's mean; the guide is the exact posterior."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def model(self, x):
        pyro.factor("ridge", -200.0 * self.mean.square())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.mean, 1.0).expand([len(x)]))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + self.mean.detach()) / 2, 0.5**0.5))


@pytest.mark.parametrize(
    ("objective", "options", "batch_size"),
    [
        (pv.ELBO, (), 40),
        (pv.ELBO, (), 10),
        (pv.IWAE, (4,), 10),
        (pv.DReG, (4,), 10),
        (pv.ReweightedWakeSleep, (4,), 10),
        (pv.HMCRefined, (2,), 10),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_factor_outside_the_plate_is_in_every_objective(objective, options, batch_size):
    """The maximum is known: 40 (m - mean) / 2 = 400 mean. A rate that falls leaves no noise."""
    x = torch.full((40,), 0.9, dtype=torch.float64)
    ridge = Ridge()
    torch.manual_seed(9)
    settings = {"batch_size": batch_size, "lr": 0.02, "lr_schedule": pv.schedules.cosine(1.0, 0.05)}
    pv.fit(ridge, x, objective=objective(*options), epochs=4 * batch_size, **settings)
    assert ridge.mean.item() == pytest.approx(18 / 420, abs=0.01)


def test_a_factor_of_the_guide_outside_the_plate_counts_once_per_data_set():
    def guide(x):
        pyro.factor("loss", torch.tensor(18.0, dtype=torch.float64), has_rsample=False)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    program = pv.Program(constant(LOSS).functions[0], guide)
    torch.testing.assert_close(pv.elbo(program, X), EXACT - 2.0)
    torch.testing.assert_close(pv.elbo(program, X, batch_size=2), EXACT - 2.0)
    assert pv.log_likelihood(program, X, num_particles=5).mean == pytest.approx(EXACT.mean().item())
    stock = Trace_ELBO().loss(*program.functions, X)
    assert stock == pytest.approx(18.0 - EXACT.sum().item(), rel=1e-6)


def test_a_score_factor_of_the_guide_multiplies_what_all_data_share():
    """Trace_ELBO multiplies it with the log weight of its datum and that of the data set."""
    at, x = torch.nn.Parameter(torch.tensor(0.3)), torch.tensor([0.5, -1.0, 2.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.factor("all", torch.tensor(-3.0))

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x * at, 0.3))
            pyro.factor("loss", z * at, has_rsample=False)

    found = []
    for objective in (Trace_ELBO(), pv.ELBO()):
        at.grad = None
        pyro.set_rng_seed(3)
        objective.differentiable_loss(model, guide, x).backward()
        found.append(at.grad.item())
    assert found[1] == pytest.approx(found[0], rel=1e-5)
