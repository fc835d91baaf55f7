"""Discrete latents that the guide leaves out: densities are sums written by hand."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from summed_out import (
    EXACT,
    PIXELS,
    A,
    B,
    Clustered,
    Dependent,
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
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.program.densities.joint import Joint


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


def test_the_probabilities_of_what_is_summed_out_are_bayes():
    case = Clustered()
    z = real(5, 7)
    found = probabilities(pv.Program.of(case).joint(X), {"z": z}, 5)["c"]
    log_p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    log_p = log_p + dist.Normal(case.centres, 1.0).log_prob(z[..., None])
    log_p = log_p + dist.Normal(z[..., None] + case.shift, 0.8).log_prob(X[:, None])
    torch.testing.assert_close(found, log_p.softmax(-1).detach(), **EXACT)


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
