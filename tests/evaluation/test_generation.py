"""Generation, reconstruction, codes and interpolation against a linear model's closed forms."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import PPCA
from programs import CASES, common_mean, common_mean_guide, standard_guide, steps, steps_guide
from pyro.contrib.mue.missingdatahmm import MissingDataDiscreteHMM
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError, ProgramError
from pyro_vae.evaluation import generation

ORACLE = PPCA.random(6, 2, orthogonal=True)
X = ORACLE.sample(400)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return pv.models.LinearVAE.from_data(X, 2)


def assert_equal_in_law(sample, mean, covariance):
    """|z| < 5 for each mean and each covariance (27 checks, false alarm below 2e-5)."""
    n = len(sample)
    assert ((sample.mean(0) - mean) / (covariance.diag() / n).sqrt()).abs().max() < 5
    estimate = torch.cov(sample.T)
    spread = (covariance.square() + covariance.diag().outer(covariance.diag())) / n
    assert ((estimate - covariance) / spread.sqrt()).abs().max() < 5


def test_generated_data_have_the_models_law(linear):
    marginal = linear.marginal()
    sample = pv.generate(linear, 20_000)
    assert_equal_in_law(sample, marginal.mean, marginal.covariance_matrix.detach())


def test_generated_means_have_the_law_of_the_means(linear):
    weight = linear.weight.detach()
    sample = pv.generate(linear, 20_000, mean=True)
    centred = sample - linear.mean
    assert torch.linalg.matrix_rank(centred.double(), rtol=1e-8) == 2  # no noise of x in it
    jitter = 1e-9 * torch.eye(6, dtype=torch.float64)
    assert_equal_in_law(sample, linear.mean.detach(), weight @ weight.T + jitter)


def test_codes_are_the_posterior_means(linear):
    expected = linear.posterior(X).mean
    torch.testing.assert_close(pv.encode(linear, X), expected, rtol=1e-8, atol=1e-8)
    draws = torch.stack([pv.encode(linear, X[:3], sample=True) for _ in range(400)])
    q = linear.encoder(X[:3]).base_dist
    assert ((draws.mean(0) - q.loc) / (q.scale / 20)).abs().max() < 5


def test_reconstructions_are_decoded_codes(linear):
    """At the mean code and its mean without noise; of draws with the noise of both."""
    codes = linear.encoder(X).mean
    state = torch.get_rng_state()
    torch.testing.assert_close(pv.reconstruct(linear, X), linear.decoder(codes).mean)
    torch.testing.assert_close(pv.encode(linear, X), codes)
    assert torch.equal(torch.get_rng_state(), state)
    noisy = pv.reconstruct(linear, X, mean=False) - pv.reconstruct(linear, X)
    scale = linear.log_scale.exp()
    gap = linear.encoder(X).base_dist.scale[0]
    expected = scale**2 + ((linear.weight * gap) ** 2).sum(1).mean()
    assert noisy.var().item() == pytest.approx(expected.item(), rel=0.15)


@pytest.mark.parametrize("steps", [2, 5])
def test_interpolation_is_linear_between_the_codes(linear, steps):
    a, b = X[:7], X[7:14]
    lines = pv.interpolate(linear, a, b, steps=steps)
    assert lines.shape == (7, steps, 6)
    ends = [linear.decoder(pv.encode(linear, x)).mean for x in (a, b)]
    torch.testing.assert_close(lines[:, 0], ends[0])
    torch.testing.assert_close(lines[:, -1], ends[1])
    for i, t in enumerate(torch.linspace(0, 1, steps).tolist()):
        torch.testing.assert_close(lines[:, i], ends[0] + t * (ends[1] - ends[0]))


class Conditional(nn.Module):
    """A label moves the mean of x by ten, a real input by itself."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def model(self, x, label, dose):
        with pyro.plate("data", len(label)):
            z = pyro.sample("z", dist.Normal(self.bias + torch.zeros(len(label)), 1.0))
            pyro.sample("x", dist.Normal(z + 10.0 * label + dose, 0.1), obs=x)

    def guide(self, x, label, dose):
        with pyro.plate("data", len(label)):
            pyro.sample("z", dist.Normal(x - 10.0 * label - dose + self.bias, 0.1))


LABELS = torch.arange(600) // 200  # sorted: the first rows have one label
DOSES = torch.linspace(0, 1, 600)
MEASURED = torch.randn(600, generator=torch.Generator().manual_seed(0)) + 10.0 * LABELS + DOSES


def test_interpolation_decodes_each_half_with_the_inputs_of_its_end():
    first = (MEASURED[:3], LABELS[:3], DOSES[:3])
    second = (MEASURED[-3:], LABELS[-3:], DOSES[-3:])
    lines = pv.interpolate(Conditional(), first, second, steps=5)
    codes = [x - 10.0 * label - dose for x, label, dose in (first, second)]
    for i, t in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        _, label, dose = first if t <= 0.5 else second
        expected = torch.lerp(*codes, t) + 10.0 * label + dose
        torch.testing.assert_close(lines[:, i], expected, rtol=1e-5, atol=1e-5)


def test_inputs_are_drawn_from_the_training_rows():
    """Three sorted labels of 200 rows each: 900 draws have 300 of each, |z| < 5 (1e-6)."""
    program = Conditional()
    pv.elbo(program, (MEASURED, LABELS, DOSES))
    label = (pv.generate(program, 900, mean=True) / 10).round()
    counts = torch.stack([(label == k).sum() for k in range(3)])
    # z has a deviation of 1: none in 900 comes near the 5 that would take it for another label.
    assert ((counts - 300) / (900 * 2 / 9) ** 0.5).abs().max() < 5


def test_a_loaded_program_is_shown_rows_before_it_generates(tmp_path):
    pv.save(pv.Program(common_mean, common_mean_guide), tmp_path)
    again = pv.load(tmp_path, into=pv.Program(common_mean, common_mean_guide))
    with pytest.raises(
        ProgramError, match=r"made or loaded .*of\(program\)\.read\(rows\), or give"
    ):
        pv.generate(again, 3)
    again.read(torch.zeros(2))
    assert pv.generate(again, 3).shape == (3,)


def test_given_inputs_may_leave_out_what_is_observed():
    program = Conditional()
    pv.elbo(program, (MEASURED, LABELS, DOSES))
    given = {"label": torch.full((50,), 7), "dose": torch.zeros(50)}
    assert (pv.generate(program, 50, given=given) - 70).abs().max() < 6
    with pytest.raises(DataError, match="got 50 rows, expected n = 20"):
        pv.generate(program, 20, given=given)


def test_what_is_observed_may_be_optional():
    """model(x, y=None), as regressions are written in Pyro: y is generated at the given x."""

    def model(x, y=None):
        slope = pyro.param("slope", torch.tensor(3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("height", dist.Normal(slope * x, 0.01), obs=y)

    program, x = pv.Program(model, lambda x, y=None: None), torch.randn(40)
    new = torch.linspace(5, 6, 7)
    for given in ((new,), {"x": new}):
        with pytest.raises(ProgramError, match="observes none; give 'y' too, which is None"):
            pv.generate(program, 7, given=given)
    pv.elbo(program, (x, 3 * x))
    for given in ({"x": new}, (new,), new):
        assert (pv.generate(program, 7, given=given) - 3 * new).abs().max() < 0.1
    with pytest.raises(ProgramError, match="observes none; give 'y' too, which is None"):
        pv.elbo(program, x)


FORMS = {
    "time first": (lambda x, c: (x.T, c.T), lambda c: {"c": c.T}, 1),
    "dicts of dicts": (lambda x, c: ({"x": x}, {"in": c}), lambda c: {"c": {"in": c}}, 0),
    "named": (lambda x, c: {"c": {"in": c}, "x": x}, lambda c: {"c": {"in": c}}, 0),
}


@pytest.mark.parametrize("form", FORMS)
def test_given_inputs_are_completed_in_the_form_of_the_data(form):
    """n = 5 rows given to a program that has seen 3 of 4 steps: x follows c."""
    build, give, dim = FORMS[form]

    def model(x, c):
        x, c = x["x"] if isinstance(x, dict) else x, c["in"] if isinstance(c, dict) else c
        x, c = (x.T, c.T) if dim else (x, c)
        with pyro.plate("rows", len(c)):
            pyro.sample("x", dist.Normal(c, 0.01).to_event(1), obs=x)

    program = pv.Program(model, lambda x, c: None, dim=dim)
    pv.elbo(program, build(torch.randn(3, 4), torch.randn(3, 4)))
    c = torch.arange(20.0).reshape(5, 4)
    assert (pv.generate(program, 5, given=give(c)) - c).abs().max() < 0.1


def test_given_words_are_completed():
    words = ["a", "bbb", "cc"]

    def model(x, w):
        lengths = torch.tensor([float(len(each)) for each in w])
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(lengths, 0.01), obs=x)

    program = pv.Program(model, lambda x, w: None)
    pv.elbo(program, (torch.ones(3), words))
    drawn = pv.generate(program, 4, given={"w": ["dddd", "a", "bbb", "ffffff"]})
    assert drawn.round().tolist() == [4, 1, 3, 6]


class Measurements(nn.Module):
    """Five exchangeable measurements of each datum in a plate of their own, left of the data."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("times", 5):
                e = pyro.sample("e", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z + e[..., 0], 0.1), obs=x.t())

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1) + self.shift, 0.1))
            with pyro.plate("times", 5):
                loc = torch.stack([x.t(), 2 * x.t(), 3 * x.t()], -1)
                pyro.sample("e", dist.Normal(loc, 0.1).to_event(1))


@pytest.mark.parametrize("n", [1, 5, 1500])
def test_the_datum_comes_first_under_a_second_plate(n):
    program, x = Measurements(), torch.randn(1500, 5)[:n]
    codes = pv.encode(program, x)
    torch.testing.assert_close(codes["z"], x.mean(-1))
    torch.testing.assert_close(codes["e"], x[..., None] * torch.tensor([1.0, 2.0, 3.0]))
    decoded = pv.reconstruct(program, x)
    torch.testing.assert_close(decoded, x.mean(-1, keepdim=True) + x)
    assert pv.generate(program, n).shape == (n, 5)
    lines = pv.interpolate(program, x, 2 * x, steps=3)
    torch.testing.assert_close(lines, torch.stack([decoded, 1.5 * decoded, 2 * decoded], 1))


def test_globals_are_held_for_all_rows_of_a_call():
    program = pv.Program(common_mean, common_mean_guide)
    x = torch.full((2500,), 0.7)
    for answer in (pv.encode(program, x), pv.reconstruct(program, x)):
        assert len(answer.unique()) == 1
    lines = pv.interpolate(program, x, x, steps=3)
    torch.testing.assert_close(lines, lines[:1, :1].expand(2500, 3))


def test_generated_data_share_one_draw_of_the_globals(monkeypatch):
    monkeypatch.setattr(generation, "_ROWS_PER_PASS", 3)

    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))

    program = pv.Program(model, guide)
    pv.elbo(program, torch.zeros(9))
    assert len(pv.generate(program, 8, mean=True).unique()) == 1


def test_a_step_that_some_passes_lack_is_not_a_number():
    x, lengths = torch.randn(1200, 2), torch.ones(1200, dtype=torch.long)
    lengths[-1] = 2
    codes = pv.encode(pv.Program(steps, steps_guide), (x, lengths))
    torch.testing.assert_close(codes["z_0"], x[:, 0] / 2)
    assert codes["z_1"][:1024].isnan().all()
    torch.testing.assert_close(codes["z_1"][1024:], x[1024:, 1] / 2)


@pytest.mark.parametrize("n", [1, 3, 1023, 1025])
def test_any_number_is_generated(n):
    assert pv.generate(pv.models.VAE(6, 2, (8,)), n).shape == (n, 6)


def test_inputs_decide_what_is_generated():
    """Labels and lengths are given; observed values among them are ignored."""
    program = CASES["labelled"].build()
    x, y = CASES["labelled"].data(9)
    pv.Program.of(program).read((x, y))
    drawn = []
    for observed in (x, 1 - x):
        torch.manual_seed(0)
        drawn.append(pv.generate(program, 9, given=(observed, y)))
    assert torch.equal(*drawn)
    torch.manual_seed(0)
    assert not torch.equal(drawn[0], pv.generate(program, 9, given=(x, (y + 1) % 3), mean=True))


def test_generated_rows_follow_the_seed():
    program = pv.models.VAE(6, 2, (8,))
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(pv.generate(program, 20))
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])


@pytest.mark.parametrize("form", [dict, tuple])
def test_what_is_drawn_is_not_given_in_place_of_inputs(form):
    def model(x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(10 * z + x, 1.0), obs=y)

    def guide(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    program, x = pv.Program(model, guide), torch.arange(20.0)
    pv.elbo(program, {"x": x, "y": x + 1} if form is dict else (x, x + 1))
    with pytest.raises(DataError, match=r"got \['y'\] alone, which the model observes"):
        pv.generate(program, 3, given={"y": torch.ones(3)})
    assert pv.generate(program, 3, given={"x": torch.ones(3)}).shape == (3,)


def of_labels(x, y, c=None, by_code=False):
    """Labels about which x lies, drawn beside a code or from it."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        logits = torch.stack([z, 0 * z, -z], -1) if by_code else torch.zeros(3)
        y = pyro.sample("y", dist.Categorical(logits=logits), obs=y)
        c = 0 if c is None else c
        pyro.sample("x", dist.Normal(100.0 * y + z + 1000 * c, 1.0), obs=x)


@pytest.mark.parametrize("more", [{}, {"c": torch.ones(5)}])
@pytest.mark.parametrize("mean", [False, True])
def test_what_is_observed_conditions_the_rest(more, mean):
    """A label is kept, and x is drawn given it: within 12 standard deviations of its mean."""
    program = pv.Program(of_labels, lambda x, y, c=None: standard_guide(x[:, None]))
    y = torch.arange(60) % 3
    program.read({"x": torch.randn(60), "y": y} | ({"c": torch.zeros(60)} if more else {}))
    given = {"y": torch.tensor([2, 2, 0, 1, 2])}
    drawn = pv.generate(program, 5, given=given | more, mean=mean)
    assert torch.equal(drawn["y"], given["y"])
    assert (drawn["x"] - 100 * given["y"] - (1000 if more else 0)).abs().max() < 17
    assert pv.elbo(program, drawn | more).shape == (5,)
    with pytest.raises(DataError, match=r"got \['y'\] alone|got \['c', 'y'\] alone"):
        pv.bdmc(program, 5, pv.AIS(2, 2), given=given | more)


@pytest.mark.parametrize("kind", [AutoNormal, AutoDiagonalNormal])
def test_what_is_observed_conditions_under_a_guide_of_factors(kind):
    """Fewer rows than the guide has factors for, as many, and more; x within 12 deviations."""
    program = pv.Program(of_labels, kind(of_labels))
    pv.fit(program, (torch.randn(40), torch.arange(40) % 3), epochs=1, compile=False)
    for n in (1, 40, 70):
        drawn = pv.generate(program, n, given={"y": torch.full((n,), 2)})
        assert len(drawn["x"]) == n and (drawn["x"] - 200).abs().max() < 17


def test_what_is_observed_of_arguments_without_names_in_the_model_is_kept():
    """x was drawn anew, since no argument that the model names was left out."""

    def model(**data):
        with pyro.plate("data", len(data["x"])):
            x = pyro.sample("x", dist.Normal(0.0, 1.0), obs=data["x"])
            if "y" in data:
                pyro.sample("y", dist.Normal(x, 1.0), obs=data["y"])

    program = pv.Program(model, lambda **data: None)
    program.read({"x": torch.zeros(4), "y": torch.ones(4)})
    drawn = pv.generate(program, 3, given={"x": torch.full((3,), 50.0)})
    assert drawn["x"].tolist() == [50.0] * 3 and (drawn["y"] - 50).abs().max() < 9


def test_binary_data_that_may_be_left_out_are_drawn_beside_given_labels():
    """Without x, which the model could sum out, the labels were all that it observes: drawn anew.

    An x unlike its label has probability 1e-6.
    """

    def model(x=None, y=None):
        with pyro.plate("data", 2 if y is None else len(y)):
            y = pyro.sample("y", dist.Categorical(torch.ones(2)), obs=y)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=28.0 * y - 14 + 0 * z), obs=x)

    def guide(x=None, y=None):
        with pyro.plate("data", 2 if y is None else len(y)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    program, y = pv.Program(model, guide), torch.arange(6) % 2
    program.read({"x": y.float(), "y": y})
    drawn = pv.generate(program, 3, given={"y": torch.tensor([1, 1, 0])})
    assert drawn["y"].tolist() == drawn["x"].tolist() == [1, 1, 0]


def test_what_is_observed_and_follows_from_a_draw_is_refused():
    def by_code(x, y):
        of_labels(x, y, by_code=True)

    program = pv.Program(by_code, lambda x, y: standard_guide(x[:, None]))
    program.read((torch.randn(9), torch.arange(9) % 3))
    with pytest.raises(ProgramError, match=r"given has values of site 'y', .*need a posterior"):
        pv.generate(program, 1, given={"y": torch.tensor([2])})


def test_what_is_observed_and_follows_from_a_rare_draw_is_refused():
    """A fault in a thousand, which no few draws show."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            fault = pyro.sample("fault", dist.Bernoulli(1e-3))
            pyro.sample("y", dist.Bernoulli(0.1 + 0.8 * fault), obs=y)
            pyro.sample("x", dist.Normal(100 * fault, 1.0), obs=x)

    program = pv.Program(model, lambda x, y: None)
    program.read((torch.randn(9), torch.ones(9)))
    with pytest.raises(ProgramError, match=r"given has values of site 'y', .*need a posterior"):
        pv.generate(program, 5, given={"y": torch.ones(5)})


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda p: pv.generate(p, 0), ConfigError, "n: got 0"),
        (lambda p: pv.generate(p, 2.5), ConfigError, "n: got 2.5"),
        (lambda p: pv.generate(p, 3, given=torch.zeros(2, 6)), DataError, "got 2 rows.*n = 3"),
        (lambda p: pv.interpolate(p, X[:2], X[:3]), DataError, "got 2 and 3 rows"),
        (lambda p: pv.interpolate(p, X[:2], X[:2], steps=1), ConfigError, "steps: got 1"),
        (lambda p: pv.encode(p, X[:0]), DataError, "no data"),
        (lambda p: pv.reconstruct(p, X[0]), DataError, r"x\[None\]"),
    ],
)
def test_bad_arguments(linear, call, error, match):
    with pytest.raises(error, match=match):
        call(linear)


def test_a_chain_without_a_length_is_drawn_as_long_as_the_data():
    """States never change, and emit one letter each: a row repeats its own letter."""
    never = (1e9 * (torch.eye(3) - 1)).nan_to_num()
    chain = MissingDataDiscreteHMM(torch.zeros(3), never, never)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", chain, obs=x)

    data = torch.eye(3)[torch.arange(40) % 3].unsqueeze(1).expand(-1, 5, -1)
    program = pv.Program(model, lambda x: None)
    for drawn in (pv.generate(program, 40, given=data), pv.reconstruct(program, data)):
        assert drawn.shape == data.shape
        assert torch.equal(drawn, drawn[:, :1].expand_as(drawn))
        assert (drawn[:, 0].sum(0) > 0).all()  # not all rows from one chain (misses below 1e-6)


def test_a_value_that_the_model_computes_is_observed_in_its_place():
    """It is not written back: x / 10, some steps by number, and data that the program holds."""
    rows, held = torch.arange(20), torch.zeros(20, dtype=torch.float64)

    def observing(value):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, x.new_tensor(1.0)))
                pyro.sample("x", dist.Normal(z, 0.5), obs=value(x))

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0 * x[:, 0], 0.9))

        return pv.Program(model, guide)

    x = torch.zeros(20, 2, dtype=torch.float64)
    truth = torch.distributions.Normal(0.0, 1.25**0.5)
    for value in (lambda x: x[:, 0] / 10, lambda x: x[rows[: len(x)], 1], lambda x: held[: len(x)]):
        torch.manual_seed(3)
        found = pv.bdmc(observing(value), 20, pv.AIS(12, 16, num_leapfrog=2, pilot=40), given=x)
        assert found.data.shape == (20,) and found.data.std() > 0.5
        exact = truth.log_prob(found.data)
        assert (found.lower - exact).mean().abs() < 0.2 and (found.upper - exact).mean().abs() < 0.2
    assert pv.generate(
        observing(lambda x: x[:, 0] / 10), 2000, given=x[:1].expand(2000, 2)
    ).std() == (pytest.approx(1.25**0.5, rel=0.1))


def test_draws_that_can_be_written_back_are_read_beside_those_that_cannot():
    """x is an argument that the next site reads, s observes 2 y: (x, s) is normal."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, x.new_tensor(1.0)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("s", dist.Normal(z + 0.5 * x, 1.0), obs=2 * y)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x, 1.0))

    torch.manual_seed(6)
    far = torch.full((100,), 30.0, dtype=torch.float64)
    settings = pv.AIS(10, 16, num_leapfrog=2, pilot=40)
    found = pv.bdmc(pv.Program(model, guide), 100, settings, given=(far, 0 * far))
    both = torch.stack([found.data["x"], found.data["s"]], 1)
    covariance = torch.tensor([[2.0, 2.0], [2.0, 3.5]], dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance)
    for bound in (found.lower, found.upper):
        off = bound - exact.log_prob(both)
        assert abs(off.mean()) < 5 * off.std() / 10 + 0.02


class _DensityAlone(dist.TorchDistribution):
    """A density that somebody wrote without a way to draw from it."""

    support = torch.distributions.constraints.real
    arg_constraints = {}  # noqa: RUF012

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.loc.expand(batch_shape))

    def log_prob(self, value):
        return -(value - self.loc).square()


@pytest.mark.parametrize(
    "verb",
    [
        lambda program, x: pv.generate(program, len(x), given=x),
        pv.reconstruct,
        lambda program, x: pv.interpolate(program, x, x, steps=3),
        lambda program, x: pv.bdmc(program, len(x), given=x),
    ],
    ids=["generate", "reconstruct", "interpolate", "bdmc"],
)
def test_a_density_that_cannot_be_drawn_from_is_named(verb):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("seen", _DensityAlone(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5))

    program = pv.Program(model, guide)
    assert pv.elbo(program, torch.zeros(3)).shape == (3,)
    with pytest.raises(ProgramError, match="site 'seen': _DensityAlone has no sampler"):
        verb(program, torch.zeros(3))


class Marked:
    """A model that is a method under a handler, as packages write it."""

    @config_enumerate
    def model(self, x, scale=None):
        with pyro.plate("data", len(x)):
            kind = pyro.sample("kind", dist.Bernoulli(x.new_full((len(x),), 0.5)))
            pyro.sample("x", dist.Normal(kind, 1.0 if scale is None else scale), obs=x)

    def guide(self, x, scale=None):
        pass


@pytest.mark.parametrize("bound", [False, True])
def test_a_method_under_a_handler_has_the_arguments_of_its_object(bound):
    """Its own object is none of them, and what a partial adds is given."""
    model, guide, x = Marked().model, Marked().guide, torch.linspace(-1, 2, 5)
    if bound:
        model, guide = (functools.partial(each, scale=torch.tensor(0.1)) for each in (model, guide))
    program = pv.Program(model, guide)
    assert pv.generate(program, 5, given={"x": x}).shape == (5,)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("verb", ["generate", "reconstruct"])
def test_what_is_observed_outside_the_plate_of_the_data_is_told_of(verb, whole):
    """Items have texts, and answers are the data: as one datum both are drawn."""

    def model(text, answers, ages):
        with pyro.plate("items", 3):
            level = pyro.sample("level", dist.Normal(text.new_zeros(3), 1.0))
            pyro.sample("text", dist.Normal(level, 1.0), obs=text)
        with pyro.plate("data", len(answers)):
            able = pyro.sample("able", dist.Normal(ages, 1.0))
            hard = able.unsqueeze(-1) - level
            pyro.sample("answers", dist.Normal(hard, 1.0).to_event(1), obs=answers)

    def guide(text, answers, ages):
        with pyro.plate("items", 3):
            pyro.sample("level", dist.Normal(text / 2, 0.7))
        with pyro.plate("data", len(answers)):
            pyro.sample("able", dist.Normal(answers.mean(-1), 0.7))

    program, data = (
        pv.Program(model, guide, whole=whole),
        (torch.zeros(3), torch.ones(5, 3), torch.ones(5)),
    )
    pv.elbo(program, data)

    def asked():
        return (
            pv.generate(program, 1 if whole else 5)
            if verb == "generate"
            else pv.reconstruct(program, data)
        )

    if whole:
        assert program.read(data).global_ == program.sites.global_ == ("level", "able")
        program.check({"text": torch.zeros(3), "answers": torch.ones(5, 3), "ages": torch.ones(5)})
        assert {k: v.shape for k, v in asked().items()} == {"text": (1, 3), "answers": (1, 5, 3)}
    else:
        with pytest.warns(
            UserWarning, match="site 'text' is observed outside the plate.*whole=True"
        ):
            assert asked().shape == (5, 3)


@pytest.mark.filterwarnings("error:the data given are read")
def test_rows_whose_numbers_alone_a_plate_draws_are_decoded():
    """A plate of a given size and as many rows as the batch has: each is a row of the batch."""

    def model(x):
        with pyro.plate("data", 100, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(3 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 100, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    program, x = pv.Program(model, guide), torch.linspace(-2, 2, 8)
    torch.testing.assert_close(pv.reconstruct(program, x), 1.5 * x)
    torch.testing.assert_close(pv.interpolate(program, x, -x, steps=3)[:, 1], 0 * x)
    assert pv.generate(program, 8).shape == (8,)
