"""Discrete latents that the guide leaves out, in every verb and under every kind of objective."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from summed_out import (
    EXACT,
    PIXELS,
    Clustered,
    Mixture,
    Semi,
    Tones,
    Topics,
    X,
    music,
    probabilities,
    real,
)

import pyro_vae as pv
from pyro_vae.errors import ProgramError
from pyro_vae.inference.objectives.stock import as_objective


def test_verbs_answer_for_a_latent_under_a_sum():
    """Likelihoods within five standard errors; the posterior is a mixture with known moments."""
    case = Clustered()
    joint = case.exact(X).detach()
    exact = joint.logsumexp(0)
    torch.manual_seed(3)
    found = pv.log_likelihood(case, X, num_particles=5000)
    assert ((found.log_prob - exact).abs() * found.ess.sqrt()).max() < 5.0
    for start in ("guide", "prior"):
        chains = pv.ais(case, X, pv.AIS(15, 16, num_leapfrog=2, start=start, pilot=40))
        error = (1 / chains.ess - 1 / 16).clamp(min=1e-6).sqrt()
        assert ((chains.log_prob - exact) / (error + 0.05)).abs().max() < 5.0
    fitted = pv.fitted_log_likelihood(
        case, X, num_particles=2000, warmup=40, num_draws=40, num_leapfrog=2
    )
    assert ((fitted.log_prob - exact).abs() * fitted.ess.sqrt()).max() < 5.0
    sandwich = pv.bdmc(case, 6, pv.AIS(15, 16, num_leapfrog=2, pilot=40), given=X[:6])
    simulated = case.exact(sandwich.data).logsumexp(0)
    assert (sandwich.lower < simulated + 0.5).all() and (sandwich.upper > simulated - 0.5).all()
    weights = joint.softmax(0)
    gain = 1 / (1 + 0.8**2)
    parts = case.centres[:, None] + gain * (X - (case.centres + case.shift)[:, None])
    mean = (weights * parts).sum(0).detach()
    drawn = pv.refine(case, X, pv.HMC(num_draws=150, warmup=100, chains=8, num_leapfrog=3))
    assert ((drawn.mean - mean) / (drawn.scale / drawn.ess.sqrt())).abs().max() < 5.0
    local = pv.infer(case, X, how="local", settings=pv.Local(num_steps=150))
    assert (local.log_weight(2000).mean(0) < exact + 0.05).all()
    report = pv.diagnose(case, X)
    assert report.kl["z"] > 0 and math.isfinite(report.prior_reconstruction)


@pytest.mark.parametrize("objective", [None, pv.IWAE(5), pv.AnalyticELBO(), pv.DReG(4)])
def test_fit_trains_a_mixture_and_its_graph_agrees(objective):
    torch.manual_seed(4)
    x = torch.cat([real(60) * 0.7 - 3, real(40) * 0.7 + 3])
    runs = []
    for compile in ("trace", False):
        case = Clustered()
        torch.manual_seed(5)
        settings = {"epochs": 3, "batch_size": 20, "lr": 0.05, "progress": False}
        run = pv.fit(case, x, valid=x, objective=objective, compile=compile, **settings)
        assert compile is False or run.compiled == "graph", run.compiled
        runs.append((run.history["loss"], [p.detach() for p in case.parameters()]))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-8)
    torch.testing.assert_close(runs[0][1], runs[1][1], **EXACT)


def test_a_trained_mixture_is_saved_and_found_again(tmp_path):
    torch.manual_seed(6)
    x, mixture = torch.cat([real(60) * 0.7 - 3, real(40) * 0.7 + 3]), Mixture()
    before = pv.elbo(mixture, x).mean()
    pv.fit(mixture, x, epochs=60, lr=0.05, progress=False)
    after = pv.elbo(mixture, x)
    assert after.mean() > before + 0.5
    pv.save(mixture, tmp_path / "mixture")
    again = pv.load(tmp_path / "mixture", into=Mixture())
    torch.testing.assert_close(pv.elbo(again, x), after, **EXACT)


def test_verbs_answer_for_a_hidden_markov_model():
    case, batch = Tones(), music()
    exact = case.exact(*batch, torch.zeros(1, 4, dtype=torch.float64))[0].detach()
    torch.testing.assert_close(pv.elbo(case, batch), exact, **EXACT)
    torch.testing.assert_close(pv.elbo(case, batch, batch_size=3), exact, **EXACT)
    torch.testing.assert_close(
        pv.log_likelihood(case, batch, num_particles=3).log_prob, exact, **EXACT
    )
    found = probabilities(pv.Program.of(case).joint(batch))
    assert found["h_1"].shape == (1, 4, 3)
    total = case.exact(*batch, torch.zeros(1, 4, dtype=torch.float64)).sum()
    # Fisher's identity: the gradient in the start's logits is the posterior less the prior.
    (slope,) = torch.autograd.grad(total, [case.start])
    less = 4 * case.start.softmax(-1).detach()
    torch.testing.assert_close(found["h_0"][0].sum(0) - less, slope, **EXACT)


def test_hmc_runs_over_the_continuous_latents_of_a_hidden_markov_model():
    """Against a grid of the one latent: mean and log p(x) (|z| < 5)."""
    case, batch = Tones(own=True), music()
    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)[:, None].expand(-1, 4)
    log_p = (case.exact(*batch, grid) + dist.Normal(0.0, 0.5).log_prob(grid)).detach()
    exact = log_p.logsumexp(0) + math.log(8 / 4000)
    mean = (log_p.softmax(0) * grid).sum(0)
    torch.manual_seed(7)
    drawn = pv.refine(case, batch, pv.HMC(num_draws=150, warmup=100, chains=4, num_leapfrog=3))
    error = drawn.scale / drawn.ess.sqrt()
    assert ((drawn.mean - mean) / error).abs().max() < 5.0
    found = pv.log_likelihood(case, batch, num_particles=4000)
    assert ((found.log_prob - exact).abs() * found.ess.sqrt()).max() < 5.0


@pytest.mark.parametrize("dim", [-2, -1])
def test_hmc_runs_over_the_shares_of_topics(dim):
    case, words = Topics(dim), torch.randint(6, (5, 8))
    torch.manual_seed(8)
    drawn = pv.refine(case, words, pv.HMC(num_draws=200, warmup=100, num_leapfrog=3))
    assert drawn.mean.shape == (5,) and drawn.mixed.all()


def test_a_label_that_the_guide_draws_is_sampled_without_bias():
    """log p(x) by both guides, of equal weights' means (|z| < 5)."""
    torch.manual_seed(9)
    sampled, summed = Semi(guided=True), Semi()
    summed.load_state_dict(sampled.state_dict())
    one = pv.log_likelihood(sampled, {"x": PIXELS}, num_particles=5000)
    two = pv.log_likelihood(summed, {"x": PIXELS}, num_particles=5000)
    error = (1 / one.ess + 1 / two.ess).sqrt()
    assert ((one.log_prob - two.log_prob) / error).abs().max() < 5.0
    estimate = pv.elbo(sampled, {"x": PIXELS}, num_particles=5000)
    losses = [
        TraceEnum_ELBO(max_plate_nesting=1).loss(sampled.model, sampled.guide, PIXELS)
        for _ in range(100)
    ]
    stock = -torch.tensor(losses, dtype=torch.float64)
    error = (stock.var() / 100 + 6 * 4.0 / 20_000).sqrt()
    assert (estimate.sum() - stock.mean()).abs() < 5 * error


@pytest.mark.parametrize("case", [Mixture(), Clustered()], ids=["alone", "under a latent"])
def test_encode_has_the_probabilities_of_what_is_summed_out(case):
    codes = pv.encode(case, X)
    if isinstance(case, Mixture):
        torch.testing.assert_close(codes, case.log_joint(X).softmax(0).T.detach(), **EXACT)
        with pytest.raises(ProgramError, match=r"'c' is summed out.*pv.encode"):
            pv.infer(case, X)
        return
    torch.testing.assert_close(codes["z"], (X / 2 + case.bias).detach(), **EXACT)
    found = probabilities(pv.Program.of(case).joint(X), {"z": codes["z"][None]})["c"]
    torch.testing.assert_close(codes["c"], found[0], **EXACT)
    assert pv.encode(case, X, sample=True)["c"].shape == (7,)


def test_draws_of_what_is_summed_out_are_from_its_posterior():
    """Frequencies of 4000 rows against the probabilities (|z| < 5), of a whole chain at once."""
    x = X[:1].expand(4000)
    case = Clustered()
    torch.manual_seed(15)
    joint = pv.Program.of(case).joint(x)
    codes = joint.guide_trace(1)
    codes.nodes["z"]["value"] = torch.full_like(x, 0.3)
    with torch.no_grad():
        drawn = joint.with_discrete(codes).nodes["c"]["value"]
    exact = probabilities(joint, {"z": torch.full_like(x[None], 0.3)})["c"][0, 0]
    share = torch.stack([(drawn == k).double().mean() for k in range(3)])
    assert ((share - exact) / (exact * (1 - exact) / 4000).sqrt()).abs().max() < 5.0

    tones, (sound, lengths) = Tones(), music()
    rows = torch.zeros(4000, dtype=torch.long)
    batch = (sound[rows], lengths[rows])
    drawn = pv.encode(tones, batch, sample=True)
    exact = probabilities(pv.Program.of(tones).joint((sound, lengths)))
    for name, value in drawn.items():
        share = torch.stack([(value == k).double().mean() for k in range(3)])
        wanted = exact[name][0, 0]
        assert ((share - wanted) / (wanted * (1 - wanted) / 4000).sqrt()).abs().max() < 5.0
    assert set(drawn) == {f"h_{t}" for t in range(5)}
    pair = ((drawn["h_0"] == 1) & (drawn["h_1"] == 2)).double().mean()
    start = tones.start.log_softmax(-1)[:, None] + tones.move.log_softmax(-1)
    for t, dim in ((0, 0), (1, 1)):
        log_p = dist.Bernoulli(logits=tones.emit).log_prob(sound[0, t]).sum(-1)
        start = start + (log_p[:, None] if dim == 0 else log_p[None])
    rest = torch.zeros(3, dtype=torch.float64)
    for t in (4, 3, 2):
        log_p = dist.Bernoulli(logits=tones.emit).log_prob(sound[0, t]).sum(-1)
        rest = (tones.move.log_softmax(-1) + log_p + rest).logsumexp(-1)
    p = (start + rest[None]).flatten().softmax(0)[1 * 3 + 2].item()
    assert abs(pair - p) / (p * (1 - p) / 4000) ** 0.5 < 5.0


def test_a_reconstruction_knows_the_component_of_its_datum():
    """Two components far apart: a draw from the prior would be the other one half of the time."""
    mixture = Mixture()
    with torch.no_grad():
        mixture.centres.copy_(torch.tensor([-50.0, 0.0, 50.0]))
    x = torch.tensor([-50.0, 50.0, 0.0] * 20, dtype=torch.float64)
    torch.testing.assert_close(pv.reconstruct(mixture, x), x, **EXACT)


@pytest.mark.parametrize(
    "objective",
    [pv.HMCRefined(2), pv.FreeBits(0.1, per="site"), pv.TargetKL(1.0), pv.VIMCO(3)],
    ids=lambda objective: type(objective).__name__,
)
@pytest.mark.parametrize("case", ["Clustered", "Tones"])
def test_other_objectives_train_beside_a_sum(case, objective):
    program, data = (Clustered(), X) if case == "Clustered" else (Tones(own=True), music())
    before = [p.detach().clone() for p in program.parameters()]
    run = pv.fit(program, data, objective=objective, epochs=2, progress=False)
    assert math.isfinite(run.history["loss"][-1])
    assert all(not torch.equal(a, b) for a, b in zip(before, program.parameters(), strict=True))


def test_wake_sleep_trains_a_model_whose_latents_are_all_summed_out():
    mixture = Mixture()
    exact = mixture.log_joint(X).logsumexp(0).mean().item()
    objective = pv.ReweightedWakeSleep(3, sleep=1.0)
    run = pv.fit(mixture, X, objective=objective, epochs=1, batch_size=7, progress=False)
    assert run.history["loss"][0] == pytest.approx(-exact, rel=1e-8)


def test_trace_enum_elbo_is_itself_as_an_objective():
    """Of a guide that marks its label: the loss per datum and its gradient, at equal noise."""
    case, elbo = Semi(guided=True), TraceEnum_ELBO(max_plate_nesting=1)
    program = pv.Program.of(case)
    program.read({"x": PIXELS})
    (update,) = as_objective(elbo).updates(program)
    found = []
    for loss in (
        lambda: update.loss(program.joint({"x": PIXELS})),
        lambda: elbo.differentiable_loss(case.model, case.guide, PIXELS) / 6,
    ):
        with program.running():
            torch.manual_seed(17)
            value = loss()
            found.append([value, *torch.autograd.grad(value, list(case.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_a_score_function_needs_a_signal_of_each_datum():
    def model(x):
        kind = pyro.sample("kind", dist.Categorical(x.new_tensor([0.4, 0.6])))
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(x.new_full((len(x),), 0.4)))
            pyro.sample("x", dist.Normal(b + kind, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=x))

    for objective in (pv.ELBO(), pv.NVIL(), pv.RLOO(3)):
        with pytest.raises(ProgramError, match="'kind'"):
            objective.loss_and_grads(model, guide, X)


def test_a_table_of_gaussians_serves_a_latent_under_a_sum():
    """Trained, it is near the best bound; data without a row are fitted alike."""
    case = Clustered()
    exact = case.exact(X).logsumexp(0).detach()
    table = pv.LocalGuide(case, X)
    for parameter in case.parameters():
        parameter.requires_grad_(False)
    torch.manual_seed(18)
    pv.fit(
        table,
        table.rows(X),
        optimizer=table.optimizer(lr=0.05),
        objective=pv.STL(8),
        epochs=150,
        progress=False,
    )
    bound = pv.elbo(table, table.rows(X), num_particles=2000)
    assert (bound < exact + 0.05).all() and (bound > exact - 0.4).all()
    local = pv.infer(table, X[:3], how="local", settings=pv.Local(num_steps=150))
    assert (local.log_weight(2000).mean(0) > exact[:3] - 0.4).all()


def test_a_guide_marked_for_enumeration_is_told_what_fit_does():
    """The default objective draws what the guide draws; stock Trace_ELBO says so as well."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(k.float(), 1.0), obs=x)

    @config_enumerate
    def guide(x):
        logits = pyro.param("logits", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=logits.expand(len(x), 2)))

    program, x = pv.Program(model, guide), torch.randn(6)
    with pytest.warns(
        UserWarning, match=r"'k': the guide marks it for enumeration, and ELBO draws"
    ):
        pv.fit(program, x, epochs=1, progress=False, compile=False)
    objective = TraceEnum_ELBO(max_plate_nesting=1)
    pv.fit(program, x, objective=objective, epochs=1, progress=False, compile=False)
