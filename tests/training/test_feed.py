"""Batches: every row once an epoch, in an order of the seed alone, for each form of data."""

import numpy as np
import pytest
import torch
from programs import CASES
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pyro_vae as pv
from pyro_vae.errors import DataError
from pyro_vae.program.batch import named_leaves, num_rows
from pyro_vae.training.feed import TensorFeed, make_feed

N = 23
ROWS = torch.arange(N * 6, dtype=torch.float32).reshape(N, 6)


def program():
    return pv.Program.of(CASES["pyroparam"].build())


class Rows(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, index):
        return ROWS[index]


FORMS = {
    "tensor": lambda size: ROWS,
    "numpy": lambda size: ROWS.numpy(),
    "float64": lambda size: ROWS.double(),
    "dataset": lambda size: Rows(),
    "tensor_dataset": lambda size: TensorDataset(ROWS),
    "loader": lambda size: DataLoader(TensorDataset(ROWS), batch_size=size, shuffle=True),
}


@pytest.mark.parametrize("size", [1, 5, N, 100])
@pytest.mark.parametrize("form", FORMS)
def test_every_row_once_an_epoch(form, size):
    feed = make_feed(program(), FORMS[form](size), size)
    assert feed.size == N and len(feed) == -(-N // size)
    batches = list(feed.epoch(7))
    assert [len(b) for b in batches[:-1]] == [min(size, N)] * (len(batches) - 1)
    assert len(batches[-1]) == (N % size if size < N and N % size else min(size, N))
    rows = torch.cat(batches)
    assert rows.dtype == torch.float32
    assert torch.equal(rows[rows[:, 0].argsort()], ROWS)


@pytest.mark.parametrize("form", FORMS)
def test_the_order_is_the_seeds(form):
    feed = make_feed(program(), FORMS[form](5), 5)
    first, again, other = (torch.cat(list(feed.epoch(seed))) for seed in (1, 1, 2))
    assert not torch.equal(first, other)
    assert torch.equal(first, again)
    before = torch.get_rng_state()
    feed.first()
    feed.sample(4)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["labelled", "sequences"])
@pytest.mark.parametrize("form", ["batch", "numpy", "tensor_dataset"])
def test_structures_keep_their_rows_together(name, form):
    data = CASES[name].data(N)
    names = [n for n, _ in named_leaves(data)]
    key = torch.arange(N)
    data = {**data, "lengths": key} if isinstance(data, dict) else (data[0], key)
    floats = data["x"] if isinstance(data, dict) else data[0]
    if form == "numpy":
        data = (
            {k: v.numpy() for k, v in data.items()}
            if isinstance(data, dict)
            else tuple(np.asarray(v) for v in data)
        )
    elif form == "tensor_dataset":
        if isinstance(data, dict):
            pytest.skip("a TensorDataset has no names")
        data = TensorDataset(*data)
    feed = make_feed(pv.Program.of(CASES[name].build()), data, 4)
    for batch in feed.epoch(0):
        leaves = dict(named_leaves(batch))
        assert list(leaves) == names
        x, index = leaves.values()
        assert torch.equal(x, floats[index]) and num_rows(batch) <= 4


@pytest.mark.parametrize("size", [1, 3, 500])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_few_rows_train(rows, size):
    run = pv.fit(CASES["vae"].build(), CASES["vae"].data(rows), epochs=2, batch_size=size)
    assert run.steps == 2 * -(-rows // size) and np.isfinite(run.history["loss"]).all()


class Endless(IterableDataset):
    def __iter__(self):
        yield ROWS[0]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (ROWS[:0], "no data"),
        (DataLoader(TensorDataset(ROWS[:0])), "no data"),
        (DataLoader(Endless()), "no length"),
        ((ROWS, ROWS[:3]), "equal numbers of rows"),
        ({}, "equal numbers of rows|no data"),
        ("digits", "numeric array"),
        ([[1.0], [2.0, 3.0]], "numeric array|no data|scalar|equal numbers"),
        (None, "numeric array"),
        (torch.tensor(1.0), "scalar"),
    ],
)
def test_what_is_no_data_is_named(data, match):
    with pytest.raises(DataError, match=match):
        make_feed(program(), data, 4)


def test_the_callers_data_are_not_changed():
    x = CASES["vae"].data(10).numpy()
    x.setflags(write=False)
    before = x.copy()
    pv.fit(CASES["vae"].build(), x, epochs=2, transform=lambda batch: batch.mul_(1.0))
    assert (x == before).all()


@pytest.mark.parametrize("form", ["loader", "dataset"])
def test_the_order_of_a_loader_does_not_depend_on_what_training_draws(form):
    """ELBO(1) and ELBO(7) use other amounts of noise and see the rows in one order."""
    seen = {}
    for particles in (1, 7):
        rows = seen[particles] = []

        def look(x, rows=rows):
            rows.append(x[:, 0].clone())
            return x

        data = FORMS[form](5)
        objective = pv.ELBO(num_particles=particles)
        program = CASES["pyroparam"].build()
        pv.fit(program, data, epochs=2, batch_size=5, objective=objective, transform=look, lr=1e-6)
    one, seven = seen[1], seen[7]
    assert len(one) == len(seven) and all(map(torch.equal, one, seven))


def test_a_transform_in_place_does_not_reach_the_callers_data():
    x = CASES["vae"].data(10)
    before = x.clone()
    pv.fit(CASES["vae"].build(), x, epochs=1, beta=0.5, transform=lambda batch: batch.mul_(0.0))
    assert torch.equal(x, before)


@pytest.mark.parametrize("form", ["tensor_dataset", "dataset", "loader", "numpy"])
def test_validation_data_take_each_form(form):
    x = CASES["vae"].data(N)

    class Own(Rows):
        def __getitem__(self, index):
            return x[index]

    valid = {
        "tensor_dataset": TensorDataset(x),
        "dataset": Own(),
        "loader": DataLoader(TensorDataset(x), batch_size=5),
        "numpy": x.numpy(),
    }[form]

    def judged(valid):
        torch.manual_seed(1)
        return pv.fit(CASES["vae"].build(), x, valid=valid, epochs=2).history["valid_elbo"]

    np.testing.assert_array_equal(judged(valid), judged(x))


@pytest.mark.parametrize(
    ("value", "match"), [(np.nan, "nan in row 2"), (0.4, "value 0.4 in row 2")]
)
def test_each_batch_of_a_loader_is_checked(value, match):
    x = CASES["vae"].data(N).round().clamp(0, 1)
    x[12, 3] = value
    loader = DataLoader(TensorDataset(x), batch_size=5)
    with pytest.raises(DataError, match=match):
        pv.fit(pv.models.VAE(6, 2, (8,)), loader, epochs=1)


def test_batches_keep_channels_last():
    images = torch.rand(8, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    feed = TensorFeed(images, 3, torch.device("cpu"))
    for batch in feed.epoch(0):
        assert batch.is_contiguous(memory_format=torch.channels_last)
