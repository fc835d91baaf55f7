"""Discrete latents that the guide leaves out: sums written by hand, in every verb."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.inference.objectives.stock import as_objective
from pyro_vae.program.densities.joint import Joint, trace_of

torch.manual_seed(31)
X = torch.randn(7, dtype=torch.float64) * 1.5
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def real(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def probabilities(joint, values=None, num_particles=1):
    """Return p(y | x, z) of what is summed out, at given latents ``(K, B)`` or at a draw."""
    if values is None:
        return joint.posteriors_at(joint.guide_trace(num_particles), num_particles)
    latents = trace_of({name: joint.placed(value) for name, value in values.items()})
    return joint.posteriors_at(latents, num_particles)


class Mixture(nn.Module):
    """A mixture of Gaussians: nothing is left to the guide."""

    def __init__(self, marked=False):
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([-1.0, 0.4, 2.0], dtype=torch.float64))
        self.logits = nn.Parameter(torch.tensor([0.1, -0.5, 0.3], dtype=torch.float64))
        self.infer = {"enumerate": "parallel"} if marked else {}

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.logits), infer=self.infer)
            pyro.sample("x", dist.Normal(self.centres[c], 0.7), obs=x)

    def guide(self, x):
        pass

    def log_joint(self, x):
        log_p = self.logits.log_softmax(-1)[:, None]
        return log_p + dist.Normal(self.centres[:, None], 0.7).log_prob(x)


class Clustered(nn.Module):
    """A latent whose prior is a mixture, and data that know both: the guide draws the latent."""

    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64))
        self.shift = nn.Parameter(torch.tensor([0.3, 0.0, -0.4], dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(x.new_tensor([0.2, 0.3, 0.5])))
            z = pyro.sample("z", dist.Normal(self.centres[c], 1.0))
            pyro.sample("x", dist.Normal(z + self.shift[c], 0.8), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + self.bias, 0.9))

    def exact(self, x):
        scale = (1 + 0.8**2) ** 0.5
        log_p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()[:, None]
        return log_p + dist.Normal((self.centres + self.shift)[:, None], scale).log_prob(x)


class Tones(nn.Module):
    """A hidden Markov model over T steps of tones: the data's plate at -2, the tones' at -1."""

    def __init__(self, states=3, tones=4, own=False):
        super().__init__()
        self.start = nn.Parameter(real(states))
        self.move = nn.Parameter(real(states, states))
        self.emit = nn.Parameter(real(states, tones))
        self.own = own  # whether each sequence has a latent of its own

    def model(self, x, lengths):
        rows, steps, tones = x.shape
        with pyro.plate("data", rows, dim=-2):
            shift = 0.0
            if self.own:
                shift = pyro.sample("shift", dist.Normal(x.new_zeros(rows, 1), 0.5))
            logits, states = self.start.expand(rows, 1, -1), pyro.plate("tones", tones, dim=-1)
            for t in pyro.markov(range(steps)):
                with pyro.poutine.mask(mask=(t < lengths)[:, None]):
                    h = pyro.sample(f"h_{t}", dist.Categorical(logits=logits))
                    with states as tone:
                        on = self.emit[h, tone] + shift
                        pyro.sample(f"x_{t}", dist.Bernoulli(logits=on), obs=x[:, t])
                logits = self.move[h]

    def guide(self, x, lengths):
        if self.own:
            with pyro.plate("data", len(x), dim=-2):
                pyro.sample("shift", dist.Normal(0.1 * x.mean((1, 2))[:, None], 0.4))

    def exact(self, x, lengths, shift):
        """The forward algorithm, shift ``(K, B)``, by the sum over paths of one datum at a time."""
        out = []
        for n, length in enumerate(lengths.tolist()):
            alpha = self.start.log_softmax(-1).expand(len(shift), -1)
            for t in range(length):
                if t:
                    move = self.move.log_softmax(-1)
                    alpha = (alpha[:, :, None] + move).logsumexp(1)
                on = self.emit + shift[:, n, None, None]  # (K, states, tones)
                alpha = alpha + dist.Bernoulli(logits=on).log_prob(x[n, t]).sum(-1)
            out.append(alpha.logsumexp(-1))
        return torch.stack(out, -1)


def music(rows=4, steps=5, tones=4):
    return (torch.rand(rows, steps, tones) < 0.4).double(), torch.tensor([5, 2, 4, 1])[:rows]


@pytest.mark.parametrize("marked", [True, False])
def test_a_mixture_is_summed_whoever_marked_it(marked):
    mixture = Mixture(marked)
    exact = mixture.log_joint(X).logsumexp(0).detach()
    torch.testing.assert_close(pv.elbo(mixture, X, num_particles=3), exact, **EXACT)
    torch.testing.assert_close(
        pv.log_likelihood(mixture, X, num_particles=4).log_prob, exact, **EXACT
    )
    terms = pv.Program.of(mixture).terms(X)
    assert list(terms.log_p) == ["x (c summed out)"] == list(terms.observed)
    torch.testing.assert_close(terms.log_likelihood()[0, 0].detach(), exact, **EXACT)
    found = probabilities(pv.Program.of(mixture).joint(X))["c"]
    torch.testing.assert_close(found[0], mixture.log_joint(X).softmax(0).T.detach(), **EXACT)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_value_and_gradient_are_those_of_trace_enum_elbo(num_particles):
    case = Clustered()
    stock = TraceEnum_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=True)
    torch.manual_seed(2)
    expected = stock.differentiable_loss(config_enumerate(case.model), case.guide, X)
    torch.manual_seed(2)
    ours = pv.ELBO(num_particles).differentiable_loss(case.model, case.guide, X)
    torch.testing.assert_close(ours, expected, **EXACT)
    parameters = list(case.parameters())
    for got, wanted in zip(
        torch.autograd.grad(ours, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, **EXACT)


def test_a_latent_under_a_sum_keeps_its_own_density():
    case = Clustered()
    terms = pv.Program.of(case).terms(X, 2, 3)
    assert list(terms.log_p) == ["z", "x (c summed out)"]
    z = torch.stack([draw.value for draw in terms.latents["z"]])
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()[:, None, None, None]
    centres, shift = (p[:, None, None, None] for p in (case.centres, case.shift))
    prior = weights + dist.Normal(centres, 1.0).log_prob(z)
    whole = prior + dist.Normal(z + shift, 0.8).log_prob(X)
    torch.testing.assert_close(terms.log_p["z"], prior.logsumexp(0), **EXACT)
    torch.testing.assert_close(sum(terms.log_p.values()), whole.logsumexp(0), **EXACT)
    exact = terms.log_q["z"] - prior.logsumexp(0)
    torch.testing.assert_close(terms.kl("z"), exact, **EXACT)
    with pytest.raises(ProgramError, match=r"'z'.*no density per unit"):
        terms.unit_kl("z")


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


def test_the_probabilities_of_what_is_summed_out_are_bayes():
    case = Clustered()
    z = real(5, 7)
    found = probabilities(pv.Program.of(case).joint(X), {"z": z}, 5)["c"]
    log_p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    log_p = log_p + dist.Normal(case.centres, 1.0).log_prob(z[..., None])
    log_p = log_p + dist.Normal(z[..., None] + case.shift, 0.8).log_prob(X[:, None])
    torch.testing.assert_close(found, log_p.softmax(-1).detach(), **EXACT)


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


@pytest.mark.parametrize("num_particles", [1, 3])
def test_a_hidden_markov_model_is_the_forward_algorithm(num_particles):
    """The data's plate is not the last one, and sequences end early by a mask."""
    case, batch = Tones(own=True), music()
    terms = pv.Program.of(case).terms(batch, 1, num_particles)
    shift = terms.latents["shift"][0].value.reshape(num_particles, 4)
    exact = case.exact(*batch, shift)
    torch.testing.assert_close(terms.log_likelihood()[0], exact, **EXACT)
    got = torch.autograd.grad(terms.log_likelihood().sum(), list(case.parameters()))
    for one, other in zip(
        got, torch.autograd.grad(exact.sum(), list(case.parameters())), strict=True
    ):
        torch.testing.assert_close(one, other, **EXACT)
    prior = dist.Normal(torch.zeros_like(shift), 0.5).log_prob(shift)
    torch.testing.assert_close(terms.log_p["shift"][0], prior, **EXACT)


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


class Topics(nn.Module):
    """Two topics over words: each word's topic is summed out, in a plate inside the documents'."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim  # of the documents; the words' is the other
        self.words = nn.Parameter(real(2, 6))

    def model(self, words):
        documents = pyro.plate("data", len(words), dim=self.dim)
        with documents:
            logit = words.new_zeros((len(words), 1) if self.dim == -2 else (len(words),))
            share = pyro.sample("share", dist.Normal(logit.double(), 1.0)).sigmoid()
            with pyro.plate("words", words.shape[1], dim=-3 - self.dim):
                topic = pyro.sample("topic", dist.Categorical(torch.stack([share, 1 - share], -1)))
                value = words if self.dim == -2 else words.T
                pyro.sample("word", dist.Categorical(logits=self.words[topic]), obs=value)

    def guide(self, words):
        loc = (words < 3).double().mean(1, keepdim=self.dim == -2)
        with pyro.plate("data", len(words), dim=self.dim):
            pyro.sample("share", dist.Normal(loc, 0.6))


@pytest.mark.parametrize("dim", [-2, -1])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_topics_are_an_explicit_sum_over_each_word(dim, num_particles):
    case, words = Topics(dim), torch.randint(6, (5, 8))
    terms = pv.Program.of(case).terms(words, 1, num_particles)
    share = terms.latents["share"][0].value.reshape(num_particles, 5).sigmoid()
    word = case.words.softmax(-1)[:, words]  # (topics, documents, words)
    exact = (share[..., None] * word[0] + (1 - share[..., None]) * word[1]).log().sum(-1)
    torch.testing.assert_close(terms.log_likelihood()[0], exact, **EXACT)
    q = probabilities(pv.Program.of(case).joint(words), None, num_particles)["topic"]
    assert q.shape == (num_particles, 5, 8, 2)
    torch.testing.assert_close(q.sum(-1), torch.ones_like(q[..., 0]), **EXACT)


@pytest.mark.parametrize("dim", [-2, -1])
def test_hmc_runs_over_the_shares_of_topics(dim):
    case, words = Topics(dim), torch.randint(6, (5, 8))
    torch.manual_seed(8)
    drawn = pv.refine(case, words, pv.HMC(num_draws=200, warmup=100, num_leapfrog=3))
    assert drawn.mean.shape == (5,) and drawn.mixed.all()


class Semi(nn.Module):
    """Labels that are observed, or summed out where they are not (model M2)."""

    def __init__(self, guided=False):
        super().__init__()
        self.guided = guided
        self.decoder = nn.Linear(2 + 3, 4, dtype=torch.float64)
        self.encoder = nn.Linear(4, 2, dtype=torch.float64)
        self.classifier = nn.Linear(4, 3, dtype=torch.float64)

    def model(self, x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            prior = dist.OneHotCategorical(x.new_tensor([0.5, 0.3, 0.2]).expand(len(x), 3))
            y = pyro.sample("y", prior, obs=y)
            shape = torch.broadcast_shapes(z.shape[:-1], y.shape[:-1])
            both = torch.cat([z.expand(*shape, 2), y.expand(*shape, 3)], -1)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(both)).to_event(1), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("data", len(x)):
            if self.guided and y is None:
                q = dist.OneHotCategorical(logits=self.classifier(x))
                pyro.sample("y", q, infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(self.encoder(x), 0.8).to_event(1))

    def log_joint(self, x, z):
        """``(labels, K, B)``."""
        found = []
        for label, weight in enumerate((0.5, 0.3, 0.2)):
            y = torch.eye(3, dtype=torch.float64)[label].expand(*z.shape[:-1], 3)
            logits = self.decoder(torch.cat([z, y], -1))
            found.append(math.log(weight) + dist.Bernoulli(logits=logits).log_prob(x).sum(-1))
        return torch.stack(found)


PIXELS = (torch.rand(6, 4) < 0.5).double()


@pytest.mark.parametrize("num_particles", [1, 4])
def test_unlabelled_data_sum_over_labels(num_particles):
    case = Semi()
    program = pv.Program.of(case)
    terms = program.terms({"x": PIXELS}, 1, num_particles)
    z = terms.latents["z"][0].value.reshape(num_particles, 6, 2)
    exact = case.log_joint(PIXELS, z)
    torch.testing.assert_close(terms.log_likelihood()[0], exact.logsumexp(0), **EXACT)
    labels = torch.eye(3, dtype=torch.float64)[torch.tensor([0, 1, 2, 0, 1, 2])]
    known = program.terms({"x": PIXELS, "y": labels})
    assert set(known.observed) == {"x", "y"} and set(known.log_p) == {"x", "y", "z"}
    z = known.latents["z"][0].value[None]
    of_label = case.log_joint(PIXELS, z)[labels.argmax(-1), 0, torch.arange(6)]
    torch.testing.assert_close(known.log_likelihood()[0, 0], of_label, **EXACT)


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


class Dependent(nn.Module):
    """Two latents of which one is the other's parent, and a third that knows neither."""

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(x.new_tensor(0.3)))
            b = pyro.sample("b", dist.Categorical(A[a.long()]))
            pyro.sample("x", dist.Normal(a + B[b], 1.0), obs=x)
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.6)))
            pyro.sample("y", dist.Normal(2 * c, 1.0), obs=y)

    def guide(self, x, y):
        pass


A, B = real(2, 3).softmax(-1), real(3)


def test_latents_that_depend_on_each_other_are_one_sum_and_others_another():
    case, y = Dependent(), real(7)
    terms = pv.Program.of(case).terms((X, y))
    assert list(terms.log_p) == ["x (a, b summed out)", "y (c summed out)"]
    parts = [
        math.log((0.7, 0.3)[a]) + A[a, b].log() + dist.Normal(a + B[b], 1.0).log_prob(X)
        for a in range(2)
        for b in range(3)
    ]
    torch.testing.assert_close(
        terms.log_p["x (a, b summed out)"][0, 0], torch.stack(parts).logsumexp(0), **EXACT
    )
    other = [math.log((0.4, 0.6)[c]) + dist.Normal(2.0 * c, 1.0).log_prob(y) for c in range(2)]
    torch.testing.assert_close(
        terms.log_p["y (c summed out)"][0, 0], torch.stack(other).logsumexp(0), **EXACT
    )
    found = probabilities(pv.Program.of(case).joint((X, y)))
    b = torch.stack(parts).unflatten(0, (2, 3)).logsumexp(0).softmax(0).T
    torch.testing.assert_close(found["b"][0], b, **EXACT)


def coupled(x):
    kind = pyro.sample("kind", dist.Categorical(x.new_tensor([0.4, 0.6])))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x * 0, 1.0))
        pyro.sample("x", dist.Normal(z + kind, 1.0), obs=x)


def local_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


def test_a_global_latent_that_is_summed_out_couples_the_data():
    program = pv.Program(coupled, local_guide)
    torch.manual_seed(10)
    stock = TraceEnum_ELBO(max_plate_nesting=1).loss(config_enumerate(coupled), local_guide, X)
    torch.manual_seed(10)
    assert pv.ELBO().loss(coupled, local_guide, X) == pytest.approx(stock, rel=1e-10)
    torch.manual_seed(10)
    assert pv.elbo(program, X).sum().item() == pytest.approx(-stock, rel=1e-10)
    for verb in (pv.log_likelihood, pv.ais, pv.refine, pv.diagnose):
        with pytest.raises(ProgramError, match="'kind'"):
            verb(program, X)
    with pytest.raises(ProgramError, match="'kind'"):
        pv.elbo(program, X, batch_size=2)
    with pytest.raises(ProgramError, match="'kind'"):
        pv.IWAE(3).loss(coupled, local_guide, X)


def test_a_latent_of_infinitely_many_values_is_not_left_out():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Poisson(x * 0 + 2.0))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    with pytest.raises(ProgramError, match=r"site 'k'.*Poisson has no finite support"):
        pv.elbo(pv.Program(model, lambda x: None), X)


class Weighed(Clustered):
    """The same under one weight for all terms, or under two that no sum can bear."""

    def __init__(self, weight=1.0, observed=1.0):
        super().__init__()
        self.weight, self.observed = weight, observed

    def model(self, x):
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=self.weight):
            c = pyro.sample("c", dist.Categorical(x.new_tensor([0.2, 0.3, 0.5])))
            z = pyro.sample("z", dist.Normal(self.centres[c], 1.0))
            with pyro.poutine.scale(scale=self.observed):
                pyro.sample("x", dist.Normal(z + self.shift[c], 0.8), obs=x)


@pytest.mark.parametrize("weight", [0.3, torch.linspace(0.1, 2.0, 7, dtype=torch.float64)])
def test_weights_of_a_whole_datum_stay_outside_its_sum(weight):
    torch.manual_seed(11)
    weighed = pv.Program.of(Weighed(weight)).terms(X, 1, 3)
    torch.manual_seed(11)
    plain = pv.Program.of(Weighed()).terms(X, 1, 3)
    for name, value in plain.log_p.items():
        torch.testing.assert_close(weighed.log_p[name], weight * value, **EXACT)
    torch.manual_seed(12)
    found = pv.log_likelihood(Weighed(weight), X, num_particles=4000)
    exact = Weighed().exact(X).logsumexp(0).detach()
    assert ((found.log_prob - exact).abs() * found.ess.sqrt()).max() < 5.0
    with pytest.raises(ProgramError, match="different poutine"):
        pv.elbo(Weighed(observed=0.5), X)


def test_a_kl_weight_reaches_the_latent_and_not_the_sum():
    program = pv.Program.of(Clustered())
    torch.manual_seed(13)
    plain = program.terms(X)
    with program.running():
        torch.manual_seed(13)
        annealed = program.joint(X, beta=0.25).terms()
    torch.testing.assert_close(annealed.kl("z"), 0.25 * plain.kl("z"), **EXACT)
    torch.testing.assert_close(annealed.log_likelihood(), plain.log_likelihood(), **EXACT)


class Narrow(Clustered):
    """A model that takes no extra dimension: particles are tiled into the rows."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(x.new_tensor([0.2, 0.3, 0.5])))
            z = pyro.sample("z", dist.Normal(self.centres[c], 1.0))
            if z.shape != x.shape:
                raise ValueError("one value per row")
            pyro.sample("x", dist.Normal(z + self.shift[c], 0.8), obs=x)


def test_tiled_particles_are_summed_alike():
    torch.manual_seed(14)
    tiled = pv.Program.of(Narrow())
    terms = tiled.terms(X, 1, 3)
    assert tiled.tiled(X)
    z = terms.latents["z"][0].value.reshape(3, 7)
    joint = Joint(Clustered().model, Clustered().guide, (X,))
    log_p = joint.model_log_p({"z": z}, 3)
    for name, value in log_p.items():
        torch.testing.assert_close(terms.log_p[name][0], value, **EXACT)
    found = probabilities(tiled.joint(X), {"z": z}, 3)["c"]
    torch.testing.assert_close(found, probabilities(joint, {"z": z}, 3)["c"], **EXACT)


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


def test_a_model_that_mixes_the_values_of_a_latent_is_found_out():
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(x.new_tensor([0.2, 0.3, 0.5])))
            c = c - c.double().mean()  # over all values, where it was to be over the data
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    with pytest.raises(ProgramError, match=r"site 'c'.*mixes dimensions"):
        pv.elbo(pv.Program(model, lambda x: None), X)


@pytest.mark.parametrize("seed", range(4))
def test_values_that_a_draw_hardly_shows_do_not_hide_a_sum_over_a_plate(seed):
    """50 rows of two words, of which one in a thousand is on: a draw of zeros agrees with all."""

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            with pyro.plate("words", 2, dim=-1):
                y = pyro.sample("y", dist.Bernoulli(x.new_tensor(0.001)))
            pyro.sample("x", dist.Normal(y.sum(-1, keepdim=True), 1.0), obs=x)

    torch.manual_seed(seed)
    with pytest.raises(ProgramError, match=r"site 'y'.*mixes dimensions"):
        pv.elbo(pv.Program(model, lambda x: None), real(50, 1))


def test_plates_that_cross_have_no_known_sum():
    def model(x):
        one, two = pyro.plate("one", 2, dim=-3), pyro.plate("two", 3, dim=-2)
        with pyro.plate("data", len(x), dim=-1):
            with one:
                u = pyro.sample("u", dist.Bernoulli(torch.tensor(0.4)))
            with two:
                v = pyro.sample("v", dist.Bernoulli(torch.tensor(0.4)))
            with one, two:
                pyro.sample("x", dist.Normal(u + v, 1.0), obs=x.movedim(0, -1))

    with pytest.raises(ProgramError, match=r"'u', 'v'.*cross"):
        pv.elbo(pv.Program(model, lambda x: None), real(4, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_that_disagree_by_more_than_a_float_spans_are_summed(dtype):
    """The prior of z prefers one value by 2000 nats, the data another by 2500; gradients too."""
    far = torch.tensor([0.0, 1.0, 2.0], dtype=dtype, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(x.new_tensor([0.2, 0.3, 0.5])))
            z = pyro.sample("z", dist.Normal(2000 * far[c], 1.0, validate_args=False).mask(False))
            pyro.factor("of z", -2000 * far[c] + 0 * z)
            pyro.factor("of x", 2500 * (far[c] - 2) + 0 * x)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    x = torch.zeros(3, dtype=dtype)
    terms = Joint(model, guide, (x,)).terms()
    (name,) = (each for each in terms.log_p if "summed out" in each)
    exact = math.log(0.5) - 4000.0 + 0 * x
    torch.testing.assert_close(terms.log_p[name][0, 0].detach(), exact, rtol=1e-6, atol=0)
    (slope,) = torch.autograd.grad(terms.log_p[name].sum(), [far])
    torch.testing.assert_close(slope, 3 * 500 * torch.tensor([0.0, 0.0, 1.0], dtype=dtype))


def test_values_that_are_impossible_have_finite_gradients():
    """A left-to-right chain: its last state cannot be reached in two steps."""
    logits = torch.tensor([[0.0, 0.0, -math.inf], [-math.inf, 0.0, 0.0], [-math.inf, -math.inf, 0]])
    level = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            h = torch.tensor(0)
            for t in pyro.markov(range(2)):
                rows = dist.Categorical(logits=logits.double()[h], validate_args=False)
                h = pyro.sample(f"h{t}", rows)
                pyro.sample(f"x{t}", dist.Normal(level[h], 1.0), obs=x[:, t])

    x = real(4, 2)
    terms = Joint(model, lambda x: None, (x,)).terms()
    paths = {(0, 0): 0.25, (0, 1): 0.25, (1, 1): 0.25, (1, 2): 0.25}
    parts = [
        math.log(p) + dist.Normal(level[list(states)], 1.0).log_prob(x).sum(-1)
        for states, p in paths.items()
    ]
    exact = torch.stack(parts).logsumexp(0)
    torch.testing.assert_close(terms.log_likelihood()[0, 0], exact, **EXACT)
    (got,) = torch.autograd.grad(terms.log_likelihood().sum(), [level])
    (wanted,) = torch.autograd.grad(exact.sum(), [level])
    torch.testing.assert_close(got, wanted, **EXACT)


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


@pytest.mark.parametrize("stepwise_guide", [False, True])
def test_steps_of_the_model_count_and_not_those_of_the_guide(stepwise_guide):
    """Site "r_0" is drawn in a step of the model, and wherever it likes in the guide."""
    x = torch.tensor([[0.3, -1.2, 0.8], [1.5, 0.1, -0.4]], dtype=torch.float64)
    start, moves = x.new_tensor([0.3, 0.7]), x.new_tensor([[0.8, 0.2], [0.4, 0.6]])
    shifts = x.new_tensor([0.5, -0.2, 0.1])

    def model(x):
        state, rows = None, pyro.plate("data", len(x), dim=-1)
        for t in pyro.markov(range(3)):
            r = pyro.sample(f"r_{t}", dist.Normal(x.new_zeros(()), 1.0))
            with rows:
                probs = start if state is None else moves[state]
                state = pyro.sample(f"s_{t}", dist.Categorical(probs))
                pyro.sample(f"x_{t}", dist.Normal(state.double() * 2 + r, 1.0), obs=x[:, t])

    def guide(x):
        steps = pyro.markov(range(3)) if stepwise_guide else range(3)
        for t in steps:
            pyro.sample(f"r_{t}", dist.Delta(shifts[t]))

    total = x.new_zeros(2)
    for path in itertools.product(range(2), repeat=3):
        p = start[path[0]] * moves[path[0], path[1]] * moves[path[1], path[2]]
        means = 2.0 * x.new_tensor(path) + shifts
        total = total + p * dist.Normal(means, 1.0).log_prob(x).sum(-1).exp()
    got = pv.log_likelihood(pv.Program(model, guide), x, num_particles=1).log_prob
    torch.testing.assert_close(got, total.log(), **EXACT)


def test_a_program_that_runs_enumerated_alone_says_so():
    """Written for values in a dimension of their own, as trackers of objects are."""

    def model(x):
        k = pyro.sample("k", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        loc = torch.arange(3.0).gather(0, k.reshape(3))  # three values, never one
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc[:, None], 1.0), obs=x)

    def guide(x):
        pass

    with pytest.raises(DataError, match=r"invalid for input.*run with their discrete latents enu"):
        pv.elbo(pv.Program(model, guide), torch.randn(5))


def test_an_assertion_without_words_is_placed():
    def model(x):
        if len(x) < 9:
            raise AssertionError  # as Python raises it, without pytest's words

    with pytest.raises(DataError, match=r"AssertionError at test_enumeration\.py:\d+"):
        pv.elbo(pv.Program(model, lambda x: None), torch.randn(5))


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
