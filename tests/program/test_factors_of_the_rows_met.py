"""A guide that makes a factor for each row it is given, and finds them by the plate's numbers.

It is the program that has the number of all rows written in.
"""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex
from torch import nn
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.program.row_factors import RowFactors

N = 8
X = torch.linspace(-2.0, 5.0, N)
# Of so many rows, the start of the parameter and the lookup of each row's factor.
FORMS = {
    "plain": (lambda n, x: torch.zeros(n), lambda locs, i: locs[i]),
    "lazy": (lambda n, x: lambda: torch.zeros(n), lambda locs, i: locs[i]),
    "of the data": (lambda n, x: x / 3, lambda locs, i: locs[i]),
    "events": (lambda n, x: torch.zeros(n, 2), lambda locs, i: locs[i][:, 1]),
    "in a row": (lambda n, x: torch.zeros(2, n), lambda locs, i: locs[1, i]),
    "behind": (lambda n, x: torch.zeros(2, n), lambda locs, i: locs.index_select(1, i)[0]),
    "vindex": (lambda n, x: torch.zeros(n, 1), lambda locs, i: Vindex(locs)[i, 0]),
    "gathered": (lambda n, x: torch.zeros(n), lambda locs, i: locs.gather(0, i + 0)),
    "a column": (lambda n, x: torch.zeros(n, 1), lambda locs, i: locs[i[:, None], 0][:, 0]),
    "a table": (
        lambda n, x: torch.zeros(n, 1),
        lambda locs, i: nn.functional.embedding(i, locs)[:, 0],
    ),
}


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def program_of(form, rows=None, start=None, plate="data"):
    make, look_up = FORMS[form]

    def guide(x):
        n = rows or len(x)
        locs = pyro.param("locs", make(n, x if start is None else start))
        scales = pyro.param("scales", torch.ones(n), constraint=constraints.positive)
        with pyro.plate(plate, len(x)) as i:
            pyro.sample("z", dist.Normal(look_up(locs, i), scales[i]))

    return pv.Program(model, guide)


def parameters(program):
    return {name: value.detach() for name, value in program.named_parameters()}


def answers(program, x):
    torch.manual_seed(3)
    likelihood = pv.log_likelihood(program, x, num_particles=3).log_prob
    return torch.stack([pv.elbo(program, x), likelihood, pv.encode(program, x)])


def train(program, x=X, **settings):
    options = {"epochs": 2, "batch_size": 3, "lr": 0.1, "progress": False, **settings}
    return pv.fit(program, x, **options)


@pytest.mark.parametrize("form", FORMS)
def test_it_trains_and_answers_as_the_program_of_all_rows(form, recwarn):
    made, written = program_of(form), program_of(form, N, X)
    for program in (made, written):
        train(program, compile=False)
    found, expected = parameters(made), parameters(written)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name])
    assert N in found["values.locs"].shape
    assert len(found["values.scales"].unique()) == N  # each row is trained
    assert torch.equal(answers(made, X), answers(written, X))
    assert not recwarn.list


ALONE = {
    "a list": lambda locs, i: locs[i.tolist()],
    "a list of a row": lambda locs, i: locs[None][0, i.tolist()],
    "one by one": lambda locs, i: torch.stack([locs[j] for j in i]),
    "unbound": lambda locs, i: torch.stack([locs[j] for j in i.unbind()]),
}


@pytest.mark.parametrize("rows", [None, N])
@pytest.mark.parametrize("form", ALONE)
def test_numbers_in_a_list_or_one_by_one_find_the_factors_too(form, rows, recwarn):
    """None were seen, and those of the first places alone were trained."""

    def guide(x):
        locs = pyro.param("locs", torch.zeros(rows or len(x)))
        with pyro.plate("data", len(x)) as i:
            pyro.sample("z", dist.Normal(ALONE[form](locs, i), 0.7))

    program = pv.Program(model, guide)
    train(program, epochs=1, compile=False)
    assert (parameters(program)["values.locs"] != 0).all()
    assert not recwarn.list
    with pytest.raises(ProgramError, match=r"^data: got a loader, .* one factor per datum"):
        train(pv.Program(model, guide), DataLoader(TensorDataset(X), batch_size=3))


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize("written", [True, False])
def test_few_data_are_trained_by_their_numbers_too(rows, written):
    program = program_of("plain", rows if written else None)
    train(program, X[:rows], batch_size=1, epochs=1, compile=False)
    locs = parameters(program)["values.locs"]
    assert locs.shape == (rows,)
    assert (locs != 0).all()


GUIDES = {
    "written": lambda: program_of("plain", N),
    "made": lambda: program_of("plain"),
    "automatic": lambda: pv.Program(model, AutoNormal(model)),
}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
@pytest.mark.parametrize("guide", GUIDES)
def test_batches_that_do_not_say_their_rows_are_refused(batch_size, guide):
    loader = DataLoader(TensorDataset(X), batch_size=batch_size)
    with pytest.raises(ProgramError, match=r"^data: got a loader, .* one factor per datum"):
        train(GUIDES[guide](), loader)
    with pytest.raises(ProgramError, match=r"(transform|batch_size): got .* one factor per datum"):
        train(GUIDES[guide](), batch_size=batch_size, transform=abs)


def test_a_program_of_one_row_at_a_time_has_no_factors():
    """It runs on no other number, and has weights of one number each."""

    def guide(x):
        (x,) = x
        with pyro.plate("data", 1):
            pyro.sample("z", dist.Normal(x * pyro.param("slope", torch.zeros(1)), 0.7))

    program = pv.Program(model, guide)
    run = train(program, DataLoader(TensorDataset(X)), epochs=1, compile=False)
    assert run.steps == N


def of_ones(count):
    """Weights of so many cells, of all data, and ones that a guide makes of the plate's numbers."""
    weights = torch.nn.Linear(count, count)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(count), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(weights(z), 1.0).to_event(1), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.ones(count), constraint=constraints.positive)
        with pyro.plate("data", len(x)) as i:
            ones = torch.ones_like(i, dtype=torch.float)[:, None]
            pyro.sample("z", dist.Normal(weights(x), ones * scale).to_event(1))

    return pv.Program(model, guide, modules={"weights": weights})


@pytest.mark.parametrize("count", [5, N])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_ones_of_the_shape_of_the_numbers_find_no_factors(count, batch_size):
    data = torch.randn(N, count, generator=torch.Generator().manual_seed(0))
    for loaded in (data, DataLoader(TensorDataset(data), batch_size=batch_size)):
        train(of_ones(count), loaded, epochs=1, batch_size=batch_size, compile=False)


@pytest.mark.parametrize("rows", [None, N])
def test_a_guide_that_indexes_the_rows_of_a_batch_by_the_numbers_too_is_refused(rows):
    """No factors were seen where the rows came first, and those of the first places trained."""

    def model(x):
        with pyro.plate("data", len(x)) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        locs = pyro.param("locs", torch.zeros(rows or len(x)))
        with pyro.plate("data", len(x)) as i:
            own = x[i] / 2
            pyro.sample("z", dist.Normal(own + locs[i], 0.7))

    with pytest.raises(ProgramError, match=r"^batch_size: got 3, .* one factor per datum"):
        train(pv.Program(model, guide))
    with pytest.raises(ProgramError, match=r"^data: got a loader, .* one factor per datum"):
        train(pv.Program(model, guide), DataLoader(TensorDataset(X), batch_size=3))
    whole = pv.Program(model, guide)
    train(whole, batch_size=N, epochs=1, compile=False)
    assert (parameters(whole)["values.locs"] != 0).all()


@pytest.mark.parametrize("count", [1, 3, N])
@pytest.mark.parametrize("rows", [None, N])
def test_a_lookup_is_seen_beside_statistics_of_the_batch(rows, count, monkeypatch):
    """By the numbers alone: a look at places, which comes behind it, sees the same program."""
    monkeypatch.setattr(RowFactors, "go_by_place", lambda *_: False)

    def model(x):
        with pyro.plate("data", len(x)):
            mean = pyro.sample("z", dist.Normal(0.0, 1.0))[:, None].expand(-1, count)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(x):
        locs = pyro.param("locs", torch.zeros(rows or len(x)))
        with pyro.plate("data", len(x)) as i:
            own = x[i].mean(1) - x[i].mean()
            pyro.sample("z", dist.Normal(own + locs[i], 0.7))

    data = X[:, None].repeat(1, count)
    with pytest.raises(ProgramError, match=r"^data: got a loader, .* one factor per datum"):
        train(pv.Program(model, guide), DataLoader(TensorDataset(data), batch_size=3))


def of_columns(count, find, drawn=None):
    """A network of the rows of so many columns that a plate's numbers find."""
    weights = torch.nn.Linear(count, 1)

    def model(x):
        with pyro.plate("data", len(x), subsample_size=drawn) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = z[:, None].expand(-1, count)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x[i] if drawn else x)

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=drawn) as i:
            pyro.sample("z", dist.Normal(find(weights, x, i)[:, 0], 0.7))

    return pv.Program(model, guide, modules={"weights": weights})


COLUMNS = {
    "one by one": lambda weights, x, i: torch.stack([weights(x[j]) for j in i]),
    "together": lambda weights, x, i: weights(x[i]),
}


@pytest.mark.parametrize("count", [3, 4, 5, N])
@pytest.mark.parametrize("find", COLUMNS)
def test_as_many_columns_as_rows_are_no_factors(find, count):
    """One by one, a row was found among few by its number among all, and taken for a factor."""
    data = torch.randn(N, count, generator=torch.Generator().manual_seed(0))
    settings = {"epochs": 1, "lr": 1e-3, "compile": False}
    for batch_size in {1, count}:
        loader = DataLoader(TensorDataset(data), batch_size=batch_size)
        train(of_columns(count, COLUMNS[find]), loader, **settings)
    train(of_columns(count, COLUMNS[find]), data, batch_size=1, **settings)
    with pytest.warns(UserWarning, match="draws some of its rows at each step"):
        train(of_columns(count, COLUMNS[find], drawn=2), data, batch_size=4, **settings)


def of_drawn_rows(side):
    """Weights of each row at numbers that a plate would draw: x ~ N(loc, 1), or z at a point."""

    def plate(x):
        return pyro.plate("data", N, subsample_size=len(x))

    def model(x):
        with plate(x) as i:
            z = locs()[i] if side == "model" else pyro.sample("z", dist.Normal(0.0, 1e4))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        if side == "guide":
            with plate(x) as i:
                pyro.sample("z", dist.Delta(locs()[i]))

    def locs():
        return pyro.param("locs", torch.zeros(N))

    return pv.Program(model, guide)


@pytest.mark.parametrize("side", ["model", "guide"])
def test_a_plate_that_would_draw_rows_has_those_of_the_batch(side):
    """A step of SGD at the rate B is one of Newton for each row of a mean over B."""
    program = of_drawn_rows(side)
    train(program, batch_size=4, epochs=1, lr=4.0, optimizer=torch.optim.SGD, compile=False)
    torch.testing.assert_close(parameters(program)["values.locs"], X, rtol=1e-5, atol=1e-5)
    if side == "model":
        best = dist.Normal(0.0, 1.0).log_prob(torch.zeros(N))
        torch.testing.assert_close(pv.elbo(program, X, batch_size=3), best)
    with pytest.raises(ProgramError, match=r"^data: got a loader, .* one factor per datum"):
        train(of_drawn_rows(side), DataLoader(TensorDataset(X), batch_size=4))


def of_own_draws(drawn, own=None):
    """Factors at the rows that the program draws of those it is given; or a network of these."""

    def model(x):
        with pyro.plate("data", len(x), subsample_size=drawn) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    def factors(x, i):
        return pyro.param("locs", torch.zeros(len(x)))[i]

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=drawn) as i:
            pyro.sample("z", dist.Delta((own or factors)(x, i)))

    return pv.Program(model, guide)


@pytest.mark.parametrize("drawn", [1, 3, 4])
def test_factors_of_rows_that_the_program_draws_train_on_all_rows_alone(drawn):
    """Those of the first places were trained, by the rows of all batches."""
    with pytest.raises(ProgramError, match=r"^batch_size: got 4, expected all 8 rows .*=8$"):
        train(of_own_draws(drawn), batch_size=4)
    with pytest.raises(
        ProgramError, match=r"^data: got a loader with batches of 5, expected all 8 rows "
    ):
        train(of_own_draws(drawn), DataLoader(TensorDataset(X), batch_size=5))
    program = of_own_draws(drawn)
    with pytest.warns(UserWarning, match="draws some of its rows at each step"):
        train(program, batch_size=N, epochs=40, lr=drawn / 2, optimizer=torch.optim.SGD)
    locs = parameters(program)["values.locs"]
    torch.testing.assert_close(locs, X / 2)  # the best point of each row


@pytest.mark.parametrize("drawn", [3, 4])
def test_a_network_of_rows_that_the_program_draws_trains_in_minibatches(drawn):
    """It was taken to run on the rows of its own minibatch alone where a batch has as many."""
    program = of_own_draws(drawn, lambda x, i: pyro.param("slope", torch.zeros(1)) * x[i])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fit: the plate 'data' draws some of its rows")
        train(program, batch_size=4, epochs=60, lr=0.02, optimizer=torch.optim.SGD, compile=False)
    torch.testing.assert_close(parameters(program)["values.slope"], torch.tensor([0.5]))


def test_rows_beside_those_of_the_factors_are_refused():
    with pytest.raises(DataError, match=r"valid: got 3 rows, expected the 8 .*factor per datum"):
        train(program_of("plain"), valid=X[:3], batch_size=N)
    program = program_of("plain")
    program.read(X[:5])  # makes the factors of these
    with pytest.raises(DataError, match=r"got 8 rows, expected the 5 .*one factor per datum"):
        train(program)
    written = program_of("plain", N)
    written.read(X[:5])
    train(written, epochs=1, compile=False)
    assert (parameters(written)["values.locs"] != 0).all()


def test_the_plate_may_have_another_name_in_the_guide():
    found = []
    for rows, plate in ((N, "data"), (N, "rows"), (None, "rows")):
        program = program_of("plain", rows, plate=plate)
        train(program, compile=False)
        found.append(answers(program, X))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_saved_and_continued_runs_are_those_of_one_run(tmp_path):
    whole = program_of("of the data")
    train(whole, epochs=3)
    train(program_of("of the data"), epochs=1, out=tmp_path)
    other = program_of("of the data")
    train(other, epochs=3, out=tmp_path, resume=True)
    for name, value in parameters(whole).items():
        torch.testing.assert_close(parameters(other)[name], value, rtol=0, atol=0)
    pv.save(other, tmp_path / "saved")
    loaded = pv.load(tmp_path / "saved", into=program_of("of the data"))
    assert torch.equal(answers(loaded, X), answers(whole, X))
    with pytest.raises(DataError, match="got 5 rows, expected the 8"):
        pv.elbo(loaded, X[:5])


def test_a_parameter_of_as_many_rows_that_no_number_finds_is_no_such_factor():
    """It has the rows of the first batch, and is a weight of all data."""

    def guide(x):
        shift = pyro.param("shift", torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + shift.mean(), 0.7))

    program = pv.Program(model, guide)
    train(program, epochs=1, compile=False)
    assert parameters(program)["values.shift"].shape == (3,)
    assert pv.elbo(program, X[:5]).shape == (5,)


def of_names(x, i):
    return torch.stack([pyro.param(f"loc_{int(j)}", torch.ones(())) for j in i])


def of_places(look_up):
    def find(x, i):
        return look_up(pyro.param("locs", torch.ones(N)), x, i)

    return find


PLACES = {
    "a name for each number": of_names,
    "integers": of_places(lambda locs, x, i: torch.stack([locs[int(j)] for j in i])),
    "between numbers": of_places(lambda locs, x, i: locs[i.min() : i.max() + 1]),
    "numbers of its own": of_places(lambda locs, x, i: locs[torch.arange(len(x))]),
    "a slice": of_places(lambda locs, x, i: locs[: len(x)]),
    "narrowed": of_places(lambda locs, x, i: locs.narrow(0, 0, len(x))),
}


def by_place(form):
    def guide(x):
        with pyro.plate("data", len(x)) as i:
            pyro.sample("z", dist.Delta(PLACES[form](x, i), log_density=torch.zeros(len(x))))

    return pv.Program(model, guide)


@pytest.mark.filterwarnings("ignore:elbo. site 'z'. the guide is a point mass")
@pytest.mark.parametrize("form", PLACES)
def test_factors_of_places_train_on_all_rows_alone(form):
    """The first of them were trained by the rows of all batches, from loaders without a word."""
    for batch_size in (1, 3, N):
        with pytest.raises(ProgramError, match=r"^data: got a loader, .* one factor per datum"):
            train(by_place(form), DataLoader(TensorDataset(X), batch_size=batch_size))
    with pytest.raises(ProgramError, match=r"^batch_size: got 3, .* by the rows of a part"):
        train(by_place(form))
    with pytest.raises(ProgramError, match=r"^accumulate: .* by its place in the batch"):
        train(by_place(form), batch_size=N, accumulate=2)
    program = by_place(form)
    assert pv.elbo(program, X[:3]).shape == (3,)  # untrained, it answers for any
    train(program, batch_size=N, epochs=1, lr=N / 2, optimizer=torch.optim.SGD, compile=False)
    found = torch.cat([value.reshape(-1) for value in parameters(program).values()])
    torch.testing.assert_close(found, X / 2)  # Newton's step to the best point of each row
    with pytest.raises(DataError, match=r"got 3 rows, expected the 8 .* by its place"):
        pv.elbo(program, X[-3:])


@pytest.mark.parametrize("loaded", [False, True])
def test_several_numbers_of_each_place_are_its_factor(loaded):
    def guide(x):
        own = pyro.param("own", torch.ones(3 * N))[: 3 * len(x)].view(-1, 3).sum(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(own, 1.0))

    data = DataLoader(TensorDataset(X), batch_size=3) if loaded else X
    with pytest.raises(ProgramError, match="one factor per datum"):
        train(pv.Program(model, guide), data)


def test_factors_in_the_order_of_their_numbers_train_on_all_rows_alone():
    """Each was trained by whichever row stood at its place among those of a batch."""

    def guide(x):
        locs = pyro.param("locs", torch.zeros(N))
        with pyro.plate("data", len(x)) as i:
            own = (torch.arange(N)[:, None] == i).any(1)
            pyro.sample("z", dist.Delta(locs[own]))

    with pytest.raises(ProgramError, match=r"^batch_size: got 3, .* by the rows of a part"):
        train(pv.Program(model, guide))
    program = pv.Program(model, guide)
    train(program, batch_size=N, epochs=1, lr=N / 2, optimizer=torch.optim.SGD, compile=False)
    torch.testing.assert_close(parameters(program)["values.locs"], X / 2)


def below(bound, locs, x):
    """Noise of a table, of a program that does not run on other weights."""
    if (locs > bound).any():
        raise ValueError("a weight has grown")
    return x * locs[0] + TABLE[: len(x)]


OWN, NUMPYS, TABLE = torch.Generator(), np.random.default_rng(0), torch.linspace(-1, 1, N).sin()
RIGHT = {
    "a fixed slice": lambda x, numbers, locs: x[:, 0] * locs[:1] + locs[2:3],
    "time steps": lambda x, numbers, locs: x @ locs[: x.shape[1]],
    "numbers in the data": lambda x, numbers, locs: locs[numbers],
    "the longest of a batch": lambda x, numbers, locs: x[:, 0] * locs[: numbers.max() + 1].mean(),
    "the rows before": lambda x, numbers, locs: locs[0] * x.cumsum(0)[:, 0],
    "noise": lambda x, numbers, locs: x[:, 0] * locs[0] + torch.randn(len(x)),
    "noise of its own": lambda x, n, locs: x[:, 0] * locs[0] + torch.randn(len(x), generator=OWN),
    "of NumPy's": lambda x, n, locs: x[:, 0] * locs[0] + torch.tensor(NUMPYS.random(len(x))),
    "of all": lambda x, n, locs: x[:, 0] * locs[0] + torch.tensor(np.random.rand(len(x))),  # noqa: NPY002
    "in a table": lambda x, n, locs: torch.relu(x @ locs[:2] + TABLE[: len(x)]),
    "beside a weight that may not grow": lambda x, n, locs: below(1.3, locs, x[:, 0]),
    "beside a weight that may not move": lambda x, n, locs: below(1.0001, locs, x[:, 0]),
    "a trend": lambda x, n, locs: x[:, 0] + locs[0] * torch.arange(len(x)),
}


@pytest.mark.filterwarnings("ignore:site 'z'. its density in the guide depends on the rows beside")
@pytest.mark.parametrize("form", RIGHT)
def test_lookups_by_other_numbers_than_the_place_are_taken(form):
    data = (torch.stack([X, X.flip(0)], 1), torch.arange(N))

    def model(x, numbers):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).expand([len(x), 2]).to_event(1), obs=x)

    def guide(x, numbers):
        locs = pyro.param("locs", torch.ones(N))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(RIGHT[form](x, numbers, locs), 0.7))

    for loaded in (data, DataLoader(TensorDataset(*data), batch_size=3)):
        assert train(pv.Program(model, guide), loaded, epochs=1, compile=False).steps == 3
