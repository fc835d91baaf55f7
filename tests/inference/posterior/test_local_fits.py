"""Local variational inference against posteriors known exactly, and tables trained by ``pv.fit``.

On a linear-Gaussian model the best Gaussian of each datum, its bound and log p(x) are closed forms.
"""

import copy
from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import BayesianDecoder, Labelled, binary
from torch import nn
from torch.distributions import constraints, kl_divergence
from torch.distributions.transforms import AffineTransform

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError, ProgramError
from pyro_vae.inference.posterior import local_fits as local
from pyro_vae.inference.posterior.gaussians import Gaussians, guide_moments
from pyro_vae.inference.posterior.infer import infer
from pyro_vae.inference.posterior.local_fits import Local, fit_local
from pyro_vae.inference.posterior.local_guide import LocalGuide, RowAdam
from pyro_vae.models import LinearVAE
from pyro_vae.program.bounds import scoring
from pyro_vae.program.densities.log_joint import LogJoint
from pyro_vae.program.program import Program


def test_a_full_gaussian_has_the_density_and_the_score_of_its_factor():
    torch.manual_seed(0)
    loc, log_diagonal, below = torch.randn(2, 3), 0.3 * torch.randn(2, 3), torch.randn(2, 3, 3)
    q = Gaussians(*(part.double() for part in (loc, log_diagonal, below.tril(-1))))
    exact = dist.MultivariateNormal(q.loc, scale_tril=q.lower)
    noise = q.standard_noise(5)
    points = q.place(noise).requires_grad_()
    torch.testing.assert_close(q.log_prob(noise), exact.log_prob(points))
    torch.testing.assert_close(q.noise(points), noise)
    (score,) = torch.autograd.grad(exact.log_prob(points).sum(), points)
    torch.testing.assert_close(q.minus_score(noise), -score)


def turned(n=20, d=6, z=3, seed=0):
    """Return data and a linear VAE whose posterior is correlated, with the best diagonal guide."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(n, z) @ normal(z, d) + 0.5 * normal(n, d)
    linear = LinearVAE.from_data(x, z)
    with torch.no_grad():
        linear.weight.copy_(linear.weight @ torch.linalg.qr(normal(z, z)).Q)
    return x, linear.match_posterior()


def family_gap(linear):
    r"""Return ½ (Σ log M_ii - log det M): what the best diagonal Gaussian loses."""
    precision = linear._precision().detach()
    return 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()


def divergence(gaussians, linear, x):
    q = dist.MultivariateNormal(gaussians.loc, scale_tril=gaussians.lower)
    return kl_divergence(q, linear.posterior(x)).detach()


def fitted(program, x, **settings):
    wrapped = Program.of(program)
    wrapped.check(x)
    return fit_local(wrapped, x, Local(**settings))


# --- the climb ------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_reaches_the_best_diagonal_gaussian(start):
    x, linear = turned()
    if start == "guide":
        with torch.no_grad():  # a guide that is far off: the climb must leave it
            linear.recognition.mul_(-0.5)
            linear.log_diagonal.add_(1.0)
    found = fitted(linear, x, start=start)
    excess = divergence(found.gaussians, linear, x) - family_gap(linear)
    assert family_gap(linear) > 0.01
    assert excess.min() > -1e-9 and excess.max() < 2e-3 and excess.mean() < 5e-4


def test_a_full_covariance_reaches_the_posterior_itself():
    x, linear = turned()
    found = fitted(linear, x, start="prior", full_covariance=True)
    assert divergence(found.gaussians, linear, x).max() < 1e-5


def test_the_entropy_in_closed_form_leads_to_the_same_place():
    x, linear = turned(n=10)
    found = fitted(linear, x, stick=False)
    excess = divergence(found.gaussians, linear, x) - family_gap(linear)
    assert excess.max() < 1e-2


def test_few_steps_from_the_guide_close_most_of_the_distance():
    x, linear = turned()
    with torch.no_grad():
        linear.log_diagonal.add_(0.5)
    before = divergence(fitted(linear, x, num_steps=1, lr=1e-9, patience=None).gaussians, linear, x)
    after = divergence(fitted(linear, x, num_steps=20, patience=None).gaussians, linear, x)
    best = family_gap(linear)
    assert (after.mean() - best) < 0.2 * (before.mean() - best)


def test_a_full_guide_is_taken_over_with_its_covariance():
    x, linear = turned()
    full = LinearVAE(6, 3, full_covariance=True).double()
    full.load_state_dict(linear.state_dict(), strict=False)
    full.match_posterior()
    found = fitted(full, x, num_steps=1, lr=1e-9, patience=None, full_covariance=True)
    assert divergence(found.gaussians, full, x).max() < 1e-12


def test_each_datum_stops_by_itself_and_data_are_worked_on_piece_by_piece(monkeypatch):
    x, linear = turned(n=14)
    monkeypatch.setattr(local, "_ROWS_PER_PASS", 7 * 8)
    found = fitted(linear, x, num_particles=8)
    assert found.gaussians.loc.shape == (14, 3)
    assert len(found.steps.unique()) > 1 and int(found.steps.max()) < 3000
    excess = divergence(found.gaussians, linear, x) - family_gap(linear)
    assert excess.max() < 5e-3


def test_a_short_run_comes_to_rest_as_a_long_one_does():
    """Forty steps at one rate would average the way up; their rate falls to zero instead."""
    x, linear = turned(n=5)
    start = divergence(fitted(linear, x, num_steps=1, lr=1e-9, start="prior").gaussians, linear, x)
    found = divergence(fitted(linear, x, num_steps=140, start="prior").gaussians, linear, x)
    excess = found - family_gap(linear)
    assert excess.mean() < 0.01 * start.mean()


def test_no_datum_runs_past_the_last_step():
    x, linear = turned(n=5)
    assert fitted(linear, x, num_steps=70).steps.tolist() == [70] * 5


class Fragile(nn.Module):
    """A density that is NaN for a negative datum; the others have a Gaussian posterior."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.factor("bad", 0.0 * z * x.sqrt())
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))


def test_a_datum_without_a_density_stands_still_and_moves_no_other():
    good = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    bad = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    program, tables = Program.of(Fragile()), []
    program.check(good)
    for x, context in ((good, nullcontext()), (bad, pytest.warns(UserWarning, match="rows 1"))):
        torch.manual_seed(3)
        with context:
            tables.append(fit_local(program, x, Local(num_steps=200, patience=None)).gaussians)
    assert torch.equal(tables[0].loc[[0, 2]], tables[1].loc[[0, 2]])
    assert tables[1].loc[1].item() == 0 and tables[1].log_diagonal[1].item() == 0
    torch.testing.assert_close(tables[0].loc[:, 0], good / 2, rtol=0, atol=0.1)


class Chain(nn.Module):
    r"""z1 → z2 → x, linear and Gaussian, a positive first latent: log z1 is the Gaussian one."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.LogNormal(x.new_zeros(()), 0.7))
            b = pyro.sample("b", dist.Normal(a.log(), 0.5))
            pyro.sample("x", dist.Normal(b, 0.8), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.LogNormal(0.4 * x, 0.5))
            pyro.sample("b", dist.Normal(0.5 * (a.log() + x), 0.6))


def test_constrained_and_dependent_latents_reach_log_p_with_no_variance():
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    exact = dist.Normal(0.0, (0.7**2 + 0.5**2 + 0.8**2) ** 0.5).log_prob(x)
    posterior = infer(Chain(), x, how="local", settings=Local(full_covariance=True))
    torch.testing.assert_close(posterior.log_weight(5), exact.expand(5, 9), rtol=0, atol=1e-5)
    # The density in the latents' own coordinates: log p(a, b, x) - log p(x).
    drawn = posterior.sample(5)
    joint = (
        dist.LogNormal(drawn["a"].new_zeros(()), 0.7).log_prob(drawn["a"])
        + dist.Normal(drawn["a"].log(), 0.5).log_prob(drawn["b"])
        + dist.Normal(drawn["b"], 0.8).log_prob(x)
    )
    torch.testing.assert_close(posterior.log_prob(drawn), joint - exact, rtol=0, atol=1e-5)


def test_global_latents_are_held_at_one_draw():
    x = torch.randn(12, 6)
    torch.manual_seed(0)
    posterior = infer(
        BayesianDecoder(), x, how="local", settings=Local(num_steps=100, start="prior")
    )
    assert posterior.log_weight(3).isfinite().all()
    assert posterior._globals["weight"].shape == (2, 6)


@pytest.mark.parametrize(
    "wrong",
    [{"num_steps": 0}, {"num_particles": 0}, {"patience": 0}, {"lr": 0.0}, {"start": "middle"}],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Local(**wrong)


# --- a table in place of a network ----------------------------------------------------------------


def test_a_model_trained_with_a_table_reaches_the_likelihood_of_pca():
    x, best = turned(n=60, d=5, z=2)
    exact = best.marginal().log_prob(x).mean().item()
    torch.manual_seed(0)
    table = LocalGuide(LinearVAE(5, 2).double(), x, scale=0.3)
    data = table.rows(x)
    pv.fit(
        table,
        data,
        epochs=250,
        batch_size=30,
        objective=pv.STL(),
        optimizer=table.optimizer(lr=0.05),
        lr_schedule=pv.schedules.cosine(1.0, 0.01),
        compile="trace",
    )
    bound = pv.elbo(table, data, num_particles=500).mean().item()
    # Of one datum, the bound's noise is below 0.2 nats: 0.2 / sqrt(60 * 500) and trained to 0.02.
    assert exact - 0.02 < bound < exact + 5 * 0.2 / 30_000**0.5


def test_new_data_have_no_row_and_are_inferred_all_the_same():
    x, linear = turned()
    table = LocalGuide(linear, x)
    new = x[:4] + 0.1
    found = infer(table, new, how="local")
    torch.testing.assert_close(found.mean, linear.posterior(new).mean.detach(), rtol=0, atol=1e-2)
    assert infer(table, table.rows(x)).mean.shape == (20, 3)
    assert torch.equal(infer(table, table.rows(x)).mean, table.loc.detach())


def test_the_values_of_param_statements_are_trained_and_used_for_new_data():
    def model(x):
        width = pyro.param("width", x.new_ones(()), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, width), obs=x)

    x = 3.0 * torch.randn(50, generator=torch.Generator().manual_seed(0))
    table = LocalGuide(model, x)
    optimizer = table.optimizer(lr=0.05)
    pv.fit(table, table.rows(x), epochs=100, batch_size=50, optimizer=optimizer)
    width = Program.of(table).values["width"].exp().item()
    assert width > 2
    new = torch.tensor([1.0, -2.0])
    found = infer(table, new, how="local")
    torch.testing.assert_close(found.mean, new / (1 + width**2), rtol=0, atol=1e-2)


def test_other_inputs_and_the_other_verbs_work():
    torch.manual_seed(0)
    x, y = binary(12), torch.arange(12) % 3
    table = LocalGuide(Labelled(), (x, y))
    data = table.rows((x, y))
    assert list(data) == ["x", "y", "row"]
    optimizer = table.optimizer(lr=0.02)
    run = pv.fit(table, data, epochs=20, batch_size=4, optimizer=optimizer)
    assert run.history["loss"][-1] < run.history["loss"][0]
    assert pv.generate(table, 5, given={k: v[:5] for k, v in data.items()}).shape == (5, 6)
    assert pv.log_likelihood(table, data, num_particles=10).log_prob.shape == (12,)


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_constants_go_beside_rows_of_any_kind(kind):
    """A flag, a number and a vector of another length: the posterior of each datum."""

    def model(flag, x, scale, shift=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z + shift.sum(), scale if flag else 9.0), obs=x)

    x, shift = np.linspace(-3.0, 3.0, 8), torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    given = (True, kind(x), 0.5, shift)
    table = LocalGuide(model, given)
    data, optimizer = table.rows(given), table.optimizer(local_lr=0.3)
    settings = {"epochs": 60, "batch_size": 4, "optimizer": optimizer, "seed": 0}
    settings["objective"] = pv.ELBO(num_particles=16)
    pv.fit(table, data, lr_schedule=pv.schedules.cosine(), **settings)
    exact = (x - 1) / 1.25  # of variance 1 / (1 + 4)
    assert np.abs(pv.encode(table, data).numpy() - exact).max() < 0.2
    assert pv.log_likelihood(table, data, num_particles=5).log_prob.shape == (8,)


def test_a_masked_latent_has_a_support_like_any():
    def model(x, there):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(torch.ones(2), 1.0).mask(there).to_event(1))
            pyro.sample("x", dist.Normal(rate, 1.0).mask(there).to_event(1), obs=x)

    data = (torch.rand(4, 2), torch.tensor([[True, False]] * 4))
    assert len(LocalGuide(model, data).loc) == 4


@pytest.mark.parametrize("of_data", [True, False])
def test_a_support_that_moves_is_refused_at_once(of_data):
    def model(x):
        high = x + 2 if of_data else pyro.param("high", torch.tensor(3.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(torch.zeros(()), high))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ProgramError, match="'z': its support depends on the data or on parameters"):
        LocalGuide(model, torch.rand(8))


def test_a_copy_has_a_table_of_its_own():
    x, linear = turned()
    table = LocalGuide(linear, x)
    twin = copy.deepcopy(table)
    pv.fit(twin, twin.rows(x), epochs=1, optimizer=twin.optimizer())
    assert table.loc.eq(0).all() and twin.loc.ne(0).all()


def test_a_table_is_saved_and_loaded_into_another(tmp_path):
    x, linear = turned()
    table = LocalGuide(linear, x)
    pv.fit(table, table.rows(x), epochs=1, optimizer=table.optimizer())
    pv.save(table, tmp_path / "run")
    twin = LocalGuide(LinearVAE(6, 3).double(), x)
    pv.load(tmp_path / "run", into=twin)
    assert torch.equal(twin.loc, table.loc) and torch.equal(twin.log_scale, table.log_scale)


def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(tmp_path):
    x, linear = turned()
    whole, halves = (LocalGuide(copy.deepcopy(linear), x) for _ in range(2))
    for table, plan in ((whole, [4]), (halves, [2, 4])):
        for epochs in plan:
            out = tmp_path / str(len(plan))
            optimizer = table.optimizer()
            pv.fit(
                table,
                table.rows(x),
                epochs=epochs,
                batch_size=16,
                optimizer=optimizer,
                out=out,
                resume=True,
            )
    assert torch.equal(whole.loc, halves.loc)


def test_a_table_runs_on_the_meta_device():
    x, linear = turned()
    table = LocalGuide(linear, x).to("meta")
    with pyro.validation_enabled(False):
        terms = Program.of(table).terms(table.example(3), num_particles=2)
    assert terms.log_weight.shape == (1, 2, 3) and terms.log_weight.is_meta


def test_a_model_without_rows_has_no_table():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean, 1.0).expand([len(x)]).to_event(1), obs=x)

    with pytest.raises(ProgramError, match="no plate of it has a row for each datum"):
        pv.LocalGuide(model, torch.randn(5))


def test_misuse_of_a_table_is_refused():
    x, linear = turned()
    table = LocalGuide(linear, x)
    with pytest.raises(DataError, match="rows 0 to 39"):
        table.rows(torch.cat([x, x]))
    with pytest.raises(ProgramError, match="'weight' is global"):
        LocalGuide(BayesianDecoder(), torch.randn(4, 6))
    with pytest.raises(ProgramError, match="expected a Pyro function"):
        LocalGuide(3, x)


def test_rows_with_a_gradient_move_as_under_adam_and_the_others_rest():
    start = torch.randn(5, 3, dtype=torch.float64)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    row_adam, adam = RowAdam([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1)
    for _ in range(4):
        grad = torch.randn(5, 3, dtype=torch.float64)
        for parameter, optimizer in ((ours, row_adam), (theirs, adam)):
            parameter.grad = grad.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    rested = ours.detach().clone()
    ours.grad = torch.zeros_like(ours)
    ours.grad[1] = 1.0
    row_adam.step()
    assert torch.equal(ours[[0, 2, 3, 4]], rested[[0, 2, 3, 4]])
    assert not torch.equal(ours[1], rested[1])


class Started(nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1), and the guide that it is given."""

    def __init__(self, build):
        super().__init__()
        self.build = build

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            loc = torch.where(x > 50, z * torch.inf, z)  # no density where x is an outlier
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.build(x))


def start_of(build, x, full=False):
    program = Program.of(Started(build))
    program.check(x[:2])
    with scoring(program):
        return guide_moments(LogJoint(program, x), full)


def shifted(x):
    """N(5, 0.01²) as a flow: torch knows no moments of it."""
    base = dist.Normal(torch.zeros_like(x), 1.0).to_event(1)
    return dist.TransformedDistribution(base, [AffineTransform(5.0, 0.01, event_dim=1)])


def test_a_flow_starts_at_its_draws_moments():
    """64 draws: the scale's relative error is 1 / sqrt(128), 0.44 is five of them."""
    torch.manual_seed(0)
    found = start_of(shifted, torch.zeros(4, 2, dtype=torch.float64))
    assert (found.loc - 5).abs().max() < 5 * 0.01 / 8
    assert (found.scale / 0.01 - 1).abs().max() < 0.44


@pytest.mark.parametrize("full", [False, True])
def test_a_datum_without_moments_moves_no_other_start(full):
    x = torch.tensor([[1.0], [2.0], [99.0]]).double().expand(3, 2)

    def overflow(x):
        scale = torch.full_like(x, 0.3).masked_fill(x > 50, torch.inf)
        if full:
            return dist.MultivariateNormal(x, scale_tril=torch.diag_embed(scale))
        return dist.Normal(x, scale).to_event(1)

    found = start_of(overflow, x, full)
    torch.testing.assert_close(found.loc[:2], x[:2], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.scale[:2], torch.full_like(x[:2], 0.3), rtol=0, atol=1e-12)
    assert found.loc.isfinite().all() and torch.equal(found.scale[2], torch.ones_like(x[2]))


def test_data_without_a_finite_bound_are_named_in_one_warning():
    x = torch.tensor([[1.0], [99.0], [2.0]]).double()
    program = Program.of(Started(lambda x: dist.Normal(x / 2, 0.5**0.5).to_event(1)))
    program.check(x[::2])
    with pytest.warns(UserWarning, match=r"1 of 3 data .* rows 1;") as caught:
        found = fit_local(program, x, Local(num_steps=60))
    assert len(caught) == 1
    torch.testing.assert_close(found.gaussians.loc[::2], x[::2] / 2, rtol=0, atol=1e-2)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_table_needs_a_positive_scale(scale):
    with pytest.raises(ConfigError, match=f"scale: got {scale}, expected a positive number"):
        LocalGuide(LinearVAE(5, 2), torch.zeros(4, 5), scale=scale)
