"""The data's plate at the last dimension, and left of another: one program, written twice."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from objective_table import AnySize
from pyro.infer.autoguide import AutoNormal, init_to_feasible
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import DataError

torch.manual_seed(41)
X = torch.randn(6, 3, dtype=torch.float64)
WEIGHT = torch.randn(2, 3, dtype=torch.float64)
EXACT = {"rtol": 1e-10, "atol": 1e-10}


class Twice(nn.Module):
    """Two units per datum, three columns: an event, or a plate at -1 inside the data's at -2."""

    def __init__(self, inner, discrete=False):
        super().__init__()
        self.inner, self.discrete = inner, discrete
        self.weight = nn.Parameter(WEIGHT.clone())
        self.encoder = nn.Parameter(WEIGHT.T.clone() / 3)

    def _latent(self, loc):
        kind = dist.Bernoulli(logits=loc) if self.discrete else dist.Normal(loc, 0.7)
        return (kind.expand([len(loc), 2]) if not self.inner else kind).to_event(1)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-2 if self.inner else -1):
            loc = x.new_zeros((len(x), 1, 2) if self.inner else (len(x), 2))
            z = pyro.sample("z", self._latent(loc))
            mean = dist.Normal(z @ self.weight, 1.0)  # (..., B, 1, 3) or (..., B, 3)
            if not self.inner:
                pyro.sample("x", mean.to_event(1), obs=x)
                return
            with pyro.plate("columns", 3, dim=-1):
                pyro.sample("x", dist.Normal(mean.loc.squeeze(-2), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-2 if self.inner else -1):
            loc = x @ self.encoder
            pyro.sample("z", self._latent(loc[:, None] if self.inner else loc))


def pair(discrete=False):
    return [Twice(inner, discrete) for inner in (False, True)]


def both(function, discrete=False, seed=5):
    found = []
    for program in pair(discrete):
        torch.manual_seed(seed)
        found.append(function(program))
    return found


def test_densities_units_and_kl_are_the_same():
    one, two = both(lambda p: pv.Program.of(p).terms(X, 2, 3))
    for name in ("x", "z"):
        torch.testing.assert_close(one.log_p[name], two.log_p[name], **EXACT)
    torch.testing.assert_close(one.log_q["z"], two.log_q["z"], **EXACT)
    torch.testing.assert_close(one.unit_kl("z"), two.unit_kl("z"), **EXACT)


VERBS = {
    "elbo": lambda p: pv.elbo(p, X, num_particles=3),
    "log_likelihood": lambda p: pv.log_likelihood(p, X, num_particles=20).log_prob,
    "ais": lambda p: pv.ais(p, X, pv.AIS(5, 3, pilot=10)).log_prob,
    "fitted": lambda p: (
        pv.fitted_log_likelihood(p, X, num_particles=50, warmup=10, num_draws=10).log_prob
    ),
    "refine": lambda p: pv.refine(p, X, pv.HMC(20, 10, 2, num_leapfrog=2)).mean,
    "local": lambda p: pv.infer(p, X, how="local", settings=pv.Local(num_steps=20)).mean,
    "encode": lambda p: pv.encode(p, X),
    "reconstruct": lambda p: pv.reconstruct(p, X),
    "variances": lambda p: pv.diagnose(p, X).variance["z"],
}


@pytest.mark.filterwarnings("ignore:refine")
@pytest.mark.filterwarnings("ignore:infer")
@pytest.mark.parametrize("verb", VERBS)
def test_verbs_answer_alike(verb):
    one, two = both(VERBS[verb])
    torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)


def test_information_is_the_same_up_to_rounding():
    one, two = both(lambda p: pv.diagnose(p, X).information)
    assert one.lower == pytest.approx(two.lower, rel=1e-6)
    assert one.marginal_kl == pytest.approx(two.marginal_kl, rel=1e-6)


OBJECTIVES = {
    "ELBO": (lambda: pv.ELBO(2), False),
    "AnalyticELBO": (lambda: pv.AnalyticELBO(), False),
    "IWAE": (lambda: pv.IWAE(3), False),
    "DReG": (lambda: pv.DReG(3), False),
    "FreeBits": (lambda: pv.FreeBits(0.2), False),
    "HMCRefined": (lambda: pv.HMCRefined(2), False),
    "score": (lambda: pv.ELBO(3), True),
    "RLOO": (lambda: pv.RLOO(3), True),
    "VIMCO": (lambda: pv.VIMCO(3), True),
    "NVIL": (lambda: pv.NVIL(), True),
    "DisARM": (lambda: pv.DisARM(), True),
    "ReweightedWakeSleep": (lambda: pv.ReweightedWakeSleep(3), True),
    "AVB": (lambda: pv.AVB(AnySize(), moments=3), False),
    "AAE": (lambda: pv.AAE(AnySize()), False),
    "WAE": (lambda: pv.WAE(), False),
    "VAEGAN": (lambda: pv.VAEGAN(AnySize()), False),
    "LatentAutoencoder": (lambda: pv.LatentAutoencoder(AnySize()), False),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_have_the_same_loss_and_gradient(name):
    make, discrete = OBJECTIVES[name]

    def gradients(module):
        program = pv.Program.of(module)
        program.read(X)
        found = []
        with program.running():
            for update in make().updates(program):
                loss = update.loss(program.joint(X))
                found += [loss, *torch.autograd.grad(loss, update.parameters)]
        return found

    for one, two in zip(*both(gradients, discrete), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)


def test_units_of_a_datum_that_stand_in_no_plate_are_its_own():
    """As stock SVI takes them right of the plate: each verb has the numbers of three units."""
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))

    def model(x):
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.5))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x), dim=-2):
            pyro.sample("z", dist.Normal(0.8 * x, 0.6))

    program, variance = pv.Program(model, guide), 1.5**2 + 0.7**2
    exact = dist.Normal(0.0, variance**0.5).log_prob(x).sum(-1)
    torch.manual_seed(0)
    found = pv.log_likelihood(program, x, num_particles=500).log_prob
    assert (found - exact).abs().max() < 0.05  # weights are all but equal: the guide is close
    settings = pv.HMC(num_draws=60, warmup=40, chains=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few draws
        refined = pv.refine(program, x, settings, compile=False)
    assert refined.samples["z"].shape == (2, 60, 7, 3)
    error = (refined.samples["z"].mean((0, 1)) - 1.5**2 / variance * x).abs()
    assert error.max() < 5 * 0.634 / 24**0.5  # 120 draws count as 24 at least: 21 means, 1e-5
    assert pv.encode(program, x).shape == pv.reconstruct(program, x).shape == (7, 3)
    assert torch.allclose(pv.encode(program, x), 0.8 * x)


def words_first(words, documents):
    """As Pyro's example of LDA: a column of the data is a document; no plate is named "data"."""

    def model(x):
        share = pyro.sample("share", dist.Beta(1.0, 1.0))
        with pyro.plate("documents", documents):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("words", words):
                pyro.sample("x", dist.Normal(z * share, 1.0), obs=x)

    def guide(x):
        pyro.sample("share", dist.Beta(2.0, 2.0))
        with pyro.plate("documents", documents):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x.mean(0), 1.0))

    return model, guide


def test_a_program_says_how_it_was_read():
    x = torch.randn(4, 9)
    program = pv.Program(*words_first(4, 9), dim=1)
    assert "read from" not in repr(program)
    pv.elbo(program, x)
    told = [line.strip() for line in repr(program).splitlines()]
    assert told[1:5] == [
        "read from 9 rows along dimension 1, plate 'documents' (dim=-1)",
        "local: z",
        "global: share",
        "observed: x",
    ]
    whole = pv.Program(*words_first(4, 9), whole=True)
    pv.elbo(whole, x)
    assert "read as one datum: no plate holds the data\n  global: share, z" in repr(whole)


def test_rows_beside_which_others_count_as_many_are_told_of_by_nothing():
    """Cells by genes, with a latent of each gene; each cell has a size beside its counts."""

    def model(x, size):
        with pyro.plate("genes", x.shape[1], dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            with pyro.plate("cells", len(x), dim=-2):
                pyro.sample("x", dist.Poisson(rate * size[:, None]), obs=x)

    def guide(x, size):
        with pyro.plate("genes", x.shape[1], dim=-1):
            pyro.sample("rate", dist.Gamma(torch.full((9,), 3.0), 1.0))

    pv.elbo(pv.Program(model, guide), (torch.ones(4, 9), torch.ones(4)))  # a warning is an error


@pytest.mark.parametrize("told", [{}, {"dim": 1}, {"plate": "words"}])
def test_rows_that_stand_inside_another_plate_are_told_of(told):
    """Words taken for documents: 4 numbers of them, and a latent of each document for a global."""
    program = pv.Program(*words_first(4, 9), **told)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pv.fit(program, torch.randn(4, 9), epochs=1, compile=False)
        pv.elbo(program, torch.randn(4, 9))
    said = [str(each.message) for each in caught if "stands inside plate" in str(each.message)]
    assert len(said) == (0 if told else 1)
    assert told or ("4 of plate 'words'" in said[0] and "dim=1" in said[0])


def test_a_number_beside_the_data_tells_nothing_of_their_rows():
    def model(x, scale):
        with pyro.plate("documents", x.shape[1], dim=-1):
            share = pyro.sample("share", dist.Normal(0.0, 1.0))
            with pyro.plate("words", len(x), dim=-2):
                pyro.sample("x", dist.Normal(share, scale), obs=x)

    def guide(x, scale):
        with pyro.plate("documents", x.shape[1], dim=-1):
            pyro.sample("share", dist.Normal(torch.zeros(x.shape[1]), 1.0))

    with pytest.warns(UserWarning, match=r"4 of plate 'words'.*dim=1"):
        assert len(pv.elbo(pv.Program(model, guide), (torch.randn(4, 9), torch.tensor(2.0)))) == 4


def batches_of(inner, *, units=False):
    """A mean of each row, and samples in a plate inside; with a weight of each sample or not."""

    def model(y):
        batches = pyro.plate("batches", len(y), dim=-2)
        weights = pyro.plate(inner, y.shape[1], dim=-1)
        with batches:
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        if units:
            with weights:
                mean = mean + pyro.sample("weight", dist.Normal(0.0, 1.0))
        with batches, weights:
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    return pv.Program(model, AutoNormal(model, init_loc_fn=init_to_feasible))


def test_units_of_a_row_may_stand_in_a_plate_called_data():
    """The plate of the rows is told by its size, where no latent stands in the other alone."""
    y, answers = torch.randn(6, 5), []
    for inner in ("data", "samples"):
        program = batches_of(inner)
        torch.manual_seed(2)
        pv.fit(program, y, epochs=1, batch_size=3, compile=False, progress=False)
        torch.manual_seed(2)
        answers.append((pv.elbo(program, y), pv.encode(program, y), pv.generate(program, 6)))
    assert answers[0][0].shape == (6,)
    for found, expected in zip(*answers, strict=True):
        assert torch.equal(found, expected)
    with pytest.raises(DataError, match=r"plate 'data' has 5 rows, the batch 6; .*plate='batches'"):
        pv.elbo(batches_of("data", units=True), y)
