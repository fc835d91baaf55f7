"""Programs without a plate of the data: one datum, in full, with the numbers of stock Pyro."""

import math

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoDelta
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import DataError, ProgramError

X = torch.tensor([[1.0, 0.5], [-0.3, 2.0], [0.7, -1.1], [0.2, 0.4], [-1.5, 0.1]])
Y = torch.tensor([0.9, -0.2, 1.3, 0.1, -1.2])
COINS = torch.tensor([1.0, 1.0, 0.0, 1.0])
NOISE = 0.5
PARALLEL = {"enumerate": "parallel"}


def regression(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    noise = pyro.param("noise", torch.tensor(NOISE), constraint=dist.constraints.positive)
    pyro.sample("y", dist.Normal(x @ w, noise).to_event(1), obs=y)


def guess(x, y):
    loc = pyro.param("loc", torch.tensor([0.3, -0.2]))
    pyro.sample("w", dist.Normal(loc, 0.4).to_event(1))


def posterior():
    precision = torch.eye(2) + X.t() @ X / NOISE**2
    return dist.MultivariateNormal(
        torch.linalg.solve(precision, X.t() @ Y) / NOISE**2, precision_matrix=precision
    )


def evidence():
    return dist.MultivariateNormal(torch.zeros(5), X @ X.t() + NOISE**2 * torch.eye(5)).log_prob(Y)


def coins(x):
    fairness = pyro.sample("fairness", dist.Beta(2.0, 2.0))
    for i in pyro.plate("flips", len(x)):
        pyro.sample(f"flip_{i}", dist.Bernoulli(fairness), obs=x[i])


def coins_guide(x):
    a = pyro.param("a", torch.tensor(3.0), constraint=dist.constraints.positive)
    pyro.sample("fairness", dist.Beta(a, 2.0))


def gplvm():
    torch.manual_seed(0)
    kernel = gp.kernels.RBF(2, lengthscale=torch.ones(2))
    base = gp.models.SparseGPRegression(0.1 * X, torch.stack([Y, Y**2]), kernel, X[:3].clone())
    return gp.models.GPLVM(base)


def variational_gp():
    torch.manual_seed(0)
    likelihood = gp.likelihoods.Gaussian()
    return gp.models.VariationalSparseGP(
        X, Y, gp.kernels.RBF(2), X[:3].clone(), likelihood=likelihood
    )


def of_object(build):
    def pair():
        program = build()
        return program.model, program.guide

    return pair


PAIRS = {
    "regression": (lambda: (regression, guess), (X, Y)),
    "loop": (lambda: (coins, coins_guide), (COINS,)),
    "gplvm": (of_object(gplvm), ()),
    "variational_gp": (of_object(variational_gp), ()),
}


def entries(parameters):
    """Return the entries of all gradients in the order of their size: names differ."""
    grads = [each.grad.flatten() for each in parameters if each.grad is not None]
    return torch.cat(grads).sort().values


def data_of(args):
    return args[0] if len(args) == 1 else args


@pytest.mark.parametrize("name", PAIRS)
def test_loss_and_gradients_are_those_of_trace_elbo(name, store):
    build, args = PAIRS[name]
    model, guide = build()
    Trace_ELBO().loss(model, guide, *args)  # makes the parameters
    torch.manual_seed(5)
    stock = Trace_ELBO().differentiable_loss(model, guide, *args)
    stock.backward()
    tensors = {id(each): each for each in dict(store.named_parameters()).values()}
    tensors = tensors or {id(each): each for each in model.__self__.parameters()}
    expected = entries(tensors.values())
    store.clear()
    program = pv.Program(*build())
    batch = program.adapt(data_of(args))
    program.read(batch)
    with program.running():
        torch.manual_seed(5)
        (update,) = pv.ELBO().updates(program)
        loss = update.loss(program.joint(batch, size=1))
    torch.testing.assert_close(loss, stock)
    loss.backward()
    torch.testing.assert_close(entries(program.parameters()), expected, rtol=1e-4, atol=1e-5)
    torch.manual_seed(5)
    assert pv.elbo(program, data_of(args)).item() == pytest.approx(-stock.item(), rel=1e-5)


def test_the_bound_at_the_exact_posterior_is_the_evidence():
    program = pv.Program(regression, lambda x, y: pyro.sample("w", posterior()))
    assert pv.elbo(program, (X, Y)).item() == pytest.approx(evidence().item(), abs=1e-4)
    kernel = pv.HMC(num_draws=60, warmup=30, chains=2, num_leapfrog=3)
    drawn = pv.refine(program, (X, Y), kernel, compile=False)
    error = posterior().stddev / drawn.ess["w"].sqrt()
    assert ((drawn.means["w"] - posterior().mean) / error).abs().max() < 5.0  # 1e-6 a figure


def test_a_fit_takes_all_data_at_each_step():
    runs = [
        pv.fit(
            pv.Program(regression, guess), (X, Y), epochs=3, batch_size=size, progress=False
        ).history["loss"]
        for size in (2, 128)
    ]
    assert (runs[0] == runs[1]).all() and len(set(runs[0])) == 3
    judged = pv.fit(
        pv.Program(regression, guess),
        (X, Y),
        valid=(X[:3], Y[:3]),
        epochs=2,
        transform=lambda batch: (batch[0] * 2, batch[1]),
        progress=False,
        compile=False,
    )
    assert len(judged.history["valid_elbo"]) == 2


def test_a_loop_over_sequences_sums_its_states_out(store):
    sequences, lengths = (torch.linspace(0, 9, 24).sin() > 0).float().view(3, 4, 2), [4, 2, 3]

    def hmm(sequences, lengths):
        moves = pyro.sample("moves", dist.Dirichlet(torch.eye(2) + 0.5).to_event(1))
        tones = pyro.plate("tones", 2, dim=-1)
        odds = torch.tensor([[0.2, 0.7], [0.9, 0.4]])
        for i in pyro.plate("sequences", len(sequences)):
            x = 0
            for t in pyro.markov(range(lengths[i])):
                x = pyro.sample(f"x_{i}_{t}", dist.Categorical(moves[x]), infer=PARALLEL)
                with tones:
                    fn = dist.Bernoulli(odds[x.squeeze(-1)])
                    pyro.sample(f"y_{i}_{t}", fn, obs=sequences[i, t])

    guide = AutoDelta(poutine.block(hmm, expose=["moves"]))
    stock = TraceEnum_ELBO(max_plate_nesting=1).loss(hmm, guide, sequences, lengths)
    guide = AutoDelta(poutine.block(hmm, expose=["moves"]))
    program = pv.Program(hmm, guide)
    assert pv.elbo(program, (sequences, tuple(lengths))).item() == pytest.approx(-stock, abs=1e-3)
    assert pv.encode(program, (sequences, tuple(lengths)))["x_0_3"].shape == (1, 2)
    square = torch.ones(2, 4, 2)  # as many tones as sequences
    with pytest.raises(ProgramError, match=r"plates \['sequences', 'tones'\].*plate='sequences'"):
        pv.elbo(pv.Program(hmm, guide), (square, (4, 2)))
    named = pv.Program(hmm, guide, plate="sequences")
    assert pv.elbo(named, (square, (4, 2))).shape == (1,)


def test_generated_data_are_whole_and_may_be_written_back():
    program = pv.Program(regression, guess)
    pv.elbo(program, (X, Y))
    drawn = pv.generate(program, 3)
    assert drawn.shape == (3, 5) and len(drawn.unique()) == 15
    batch = program.adapt((X, Y))
    written = program.replace(batch, {"y": torch.ones(1, 5)})
    assert torch.equal(written.batch[1], torch.ones(5)) and torch.equal(written.batch[0], X)


def test_parts_of_the_data_are_refused():
    loader = DataLoader(TensorDataset(X, Y), batch_size=2)
    with pytest.raises(ProgramError, match=r"one joint density.*expected all data at once"):
        pv.fit(pv.Program(regression, guess), loader, progress=False)
    with pytest.raises(ProgramError, match=r"one joint density.*expected all data at once"):
        pv.elbo(pv.Program(regression, guess), loader)


def test_values_in_no_plate_are_refused_as_by_stock_svi():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="invalid log_prob shape"):
        Trace_ELBO().loss(model, guide, Y)
    with pytest.raises(ProgramError, match=r"site 'x': 5 values stand in no plate .*to_event"):
        pv.elbo(pv.Program(model, guide), Y)


def test_as_many_rows_as_features_do_not_hide_a_forgotten_to_event():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    square = torch.zeros(5, 5)
    with pytest.raises(ValueError, match="invalid log_prob shape"):
        Trace_ELBO().loss(model, guide, square)
    with pytest.raises(ProgramError, match=r"site 'x': 5 values stand in no plate .*to_event"):
        pv.elbo(pv.Program(model, guide), square)


def test_a_value_outside_its_support_is_named():
    with pytest.raises(DataError, match=r"flip_2.*value 7"):
        pv.elbo(pv.Program(coins, coins_guide), torch.tensor([1.0, 0.0, 7.0]))


def test_a_number_observed_outside_hides_no_factors_of_the_rows():
    def model(x):
        w = pyro.param("w", torch.tensor(0.5))
        pyro.sample("pseudo", dist.Normal(w, 1.0), obs=torch.zeros(()))
        with pyro.plate("rows", len(x)):
            pyro.factor("likelihood", -((x - w) ** 2))

    x = torch.linspace(-1.0, 2.0, 12)
    program = pv.Program(model, lambda x: None)
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-12), "progress": False}
    run = pv.fit(program, x, epochs=1, batch_size=4, **still)
    once = -dist.Normal(0.5, 1.0).log_prob(torch.zeros(())).item() / 12
    assert run.history["loss"][0] == pytest.approx(((x - 0.5) ** 2).mean().item() + once, rel=1e-5)
    assert pv.elbo(program, x).shape == (12,)


def autoencoder(steps=None, size=None):
    """Return a program whose rows are all in one event: apart, or a walk over ``steps``."""
    decoder, encoder = torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)

    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(size or len(x), 2), 1.0).to_event(2))
        mean = decoder(z if steps is None else z.cumsum(0))
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(2), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(2))

    return pv.Program(model, guide)


def square_regression():
    """Return a program of as many weights as rows."""

    def model(xy):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(xy[:, :3] @ w, 1.0).to_event(1), obs=xy[:, 3])

    return pv.Program(
        model, lambda xy: pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    )


@pytest.mark.parametrize("size", [None, 6])
def test_rows_that_an_event_holds_by_mistake_are_told_once(size):
    program, x = autoencoder(size=size), torch.randn(6, 3)
    match = r"site 'x': its event holds all 6 rows, and so does that of latent 'z'.*pyro.plate"
    with pytest.warns(UserWarning, match=match):
        pv.elbo(program, x)
    pv.elbo(program, x)


@pytest.mark.parametrize("name", ["weights", "walk", "few rows", "gplvm"])
def test_a_datum_of_several_rows_is_no_mistake(name):
    """Each warning is an error in tests."""
    program, data = {
        "weights": (square_regression(), torch.randn(3, 4)),
        "walk": (autoencoder("all"), torch.randn(6, 3)),
        "few rows": (autoencoder(), torch.randn(2, 3)),
        "gplvm": (gplvm(), ()),
    }[name]
    assert pv.elbo(program, data).shape == (1,)


@pytest.mark.parametrize("data", [(), (True,), (1.0,), (None,), {"flag": False}], ids=str)
@pytest.mark.parametrize("size", [None, 4])
def test_held_data_in_a_plate_with_or_without_a_size_are_one_datum(size, data):
    """A flag is an argument, no row; the bound is that of stock Pyro, and every verb answers."""

    def model(flag=None):
        fairness = pyro.sample("fairness", dist.Beta(2.0, 2.0))
        with pyro.plate("flips", size) if size else pyro.plate("flips"):
            pyro.sample("x", dist.Bernoulli(fairness), obs=COINS)

    def guide(flag=None):
        a = pyro.param("held_a", torch.tensor(5.0))
        pyro.sample("fairness", dist.Beta(a, 3.0))  # the exact posterior

    program = pv.Program(model, guide)
    ratio = torch.lgamma(torch.tensor([5.0, 3.0, 4.0, 2.0, 2.0, 8.0]))
    exact = ratio[0] + ratio[1] + ratio[2] - ratio[3] - ratio[4] - ratio[5]
    assert torch.allclose(pv.elbo(program, data), exact[None], atol=1e-5)
    run = pv.fit(program, data, objective=TraceGraph_ELBO(), epochs=1, progress=False)
    assert math.isclose(run.history["loss"][0], -float(exact), abs_tol=1e-5)
    assert pv.reconstruct(program, data).shape == (1, 4)
    assert pv.generate(program, 3, given=data).shape == (3, 4)


def test_a_dict_of_one_thing_is_the_argument_of_that_name():
    """A function that takes dicts gets what stands under its argument's name, as by keywords."""

    def model(data):
        for name, value in data.items():
            pyro.sample(name, dist.Normal(0.0, 1.0), obs=value)

    program = pv.Program(model, lambda data: None)
    data = {"data": {"one": torch.tensor(1.0), "two": torch.tensor(2.0)}}
    assert pv.elbo(program, data).shape == (1,)
    assert set(pv.generate(program, 2, given=data)) == {"one", "two"}


class Passed(dist.Delta):
    """Hands a value from the guide to the model: its density is zero at whatever it is given."""

    def log_prob(self, value):
        return torch.zeros_like(value)


def test_what_stands_in_no_plate_is_asked_of_the_density_as_by_stock_svi():
    """A distribution of one's own may have a batch shape that its density has not."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            note = pyro.sample("note", Passed(torch.zeros(len(x), 1)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("kept", dist.Normal(note, 2.0), obs=torch.ones(len(x)))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(0.5 * x))
            pyro.sample("note", Passed(0.25 * x))

    exact = -TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False).loss(
        model, guide, Y
    )
    with pytest.warns(UserWarning, match="the guide is a point mass"):
        ours = pv.elbo(pv.Program(model, guide), Y).sum()
    assert torch.allclose(ours, torch.tensor(exact))
