"""Batches: every row once an epoch, in an order of the seed alone, for each form of data."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import CASES, Coded
from pyro.infer.autoguide import AutoDelta, init_to_value
from torch import nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

import pyro_vae as pv
from pyro_vae.errors import DataError
from pyro_vae.program.batches.batch import check_finite, named_leaves, num_rows
from pyro_vae.training.batch_sizes import with_last_joined
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


BATCHES = [ROWS[i : i + 5] for i in range(0, N, 5)]
SOME = [1, 4, 9, 16, 22]
COUNTED = {
    "a part": (5, DataLoader(ROWS, batch_size=2, sampler=SubsetRandomSampler(SOME))),
    "draws": (7, DataLoader(ROWS, batch_size=2, sampler=WeightedRandomSampler([1.0] * N, 7))),
    "batches": (N, DataLoader(BATCHES, batch_size=None)),
    "one batch each": (N, DataLoader(BATCHES, batch_size=1, collate_fn=lambda items: items[0])),
    "crops": (2 * N, DataLoader(ROWS, 5, collate_fn=lambda items: torch.stack(items * 2))),
    "batches of a part": (9, DataLoader(ROWS, batch_sampler=[[0, 1, 2], [3, 4], [5, 6, 7, 8]])),
    "own batches": (N, DataLoader(ROWS, batch_sampler=BatchSampler(range(N), 4, drop_last=False))),
}


@pytest.mark.parametrize("form", COUNTED)
def test_the_size_is_the_rows_of_an_epoch(form):
    size, loader = COUNTED[form]
    feed = make_feed(program(), loader, 3)
    assert feed.size == size == sum(len(batch) for batch in feed.epoch(0))


EQUAL = {
    "a part": (SOME[:4], DataLoader(ROWS, batch_size=2, sampler=SubsetRandomSampler(SOME[:4]))),
    "batches": (range(20), DataLoader(BATCHES[:4], batch_size=None, shuffle=True)),
}


@pytest.mark.parametrize("form", EQUAL)
def test_globals_weigh_as_beside_the_rows_of_an_epoch(form):
    """The exact mean of w under a tight prior, at N rows: another N moves it far."""

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 0.5))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0] / 50)

    guide = AutoDelta(model, init_loc_fn=init_to_value(values={"w": torch.zeros(())}))
    rows, loader = EQUAL[form]
    seen = ROWS[list(rows)]
    exact = (seen[:, 0] / 50).sum().item() / (len(seen) + 4)
    program = pv.Program(model, guide)
    pv.fit(program, loader, epochs=100, lr=0.05, lr_schedule=lambda t: (1 - t) ** 2)
    assert program.parts["AutoDelta"].w.item() == pytest.approx(exact, rel=0.02)


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


class Ordered:
    """Deals rows in an order of its epoch's own, as samplers for several processes do."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 12

    def __iter__(self):
        order = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(12, generator=order).tolist())


class OrderedBatches(Ordered):
    def __len__(self):
        return 3

    def __iter__(self):
        order = list(super().__iter__())
        return iter([order[start : start + 4] for start in range(0, 12, 4)])


class OrderedStream(Ordered, IterableDataset):
    def __iter__(self):
        return ((torch.full((6,), float(row)),) for row in super().__iter__())


class OrderedLoader(DataLoader):
    """Tells the epoch on to its sampler, as loaders of other libraries do."""

    def set_epoch(self, epoch):
        self.sampler.order.set_epoch(epoch)


class Hidden:
    """A sampler that has no set_epoch itself."""

    def __init__(self):
        self.order = Ordered()

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        return iter(self.order)


class OrderedIterable(Ordered):
    def __iter__(self):
        rows = torch.tensor(list(super().__iter__()), dtype=torch.float32)
        return iter(rows[:, None].expand(12, 6).split(4))


ROWS_OF_12 = TensorDataset(torch.arange(12.0)[:, None].expand(12, 6))
WITH_EPOCHS = {
    "a sampler": lambda: DataLoader(ROWS_OF_12, 4, sampler=Ordered()),
    "a sampler of batches": lambda: DataLoader(ROWS_OF_12, batch_sampler=OrderedBatches()),
    "a stream": lambda: DataLoader(OrderedStream(), 4),
    "a loader": lambda: OrderedLoader(ROWS_OF_12, 4, sampler=Hidden()),
    "an iterable": OrderedIterable,
}


@pytest.mark.parametrize("name", WITH_EPOCHS)
def test_what_has_an_order_of_each_epoch_is_told_the_epoch(name):
    feed = make_feed(pv.Program.of(CASES["vae"].build()), WITH_EPOCHS[name](), 4, size=12)
    orders = [torch.cat(list(feed.epoch(0, epoch)))[:, 0].tolist() for epoch in (1, 2, 1)]
    assert orders[0] == orders[2] != orders[1]
    assert all(sorted(order) == list(range(12)) for order in orders)


def test_the_epoch_that_is_told_is_its_number():
    """Some count on it: for a curriculum, say, or as a seed that NumPy takes 32 bits of."""
    told, data = [], WITH_EPOCHS["a sampler"]()
    data.sampler.set_epoch = told.append
    program = pv.models.VAE(6, 2, (4,), observation=pv.conditionals.Gaussian)
    pv.fit(program, data, epochs=3, seed=5, compile=False, progress=False)
    assert told[-3:] == [0, 1, 2]


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
    joined = rows > size > 1 and rows % size == 1  # a last batch of one row
    assert run.steps == 2 * (-(-rows // size) - joined) and np.isfinite(run.history["loss"]).all()


class Normalised(Coded, nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
        self.decode = nn.Linear(2, 6)


class Few(IterableDataset):
    """A stream that knows its length."""

    def __len__(self):
        return N - 1

    def __iter__(self):
        yield from ROWS[1:]


def dealt(size):
    data = TensorDataset(ROWS.repeat_interleave(2, 0)[: 2 * N - 1])  # even places: each row once
    sampler = DistributedSampler(data, num_replicas=2, rank=0, shuffle=False)
    return DataLoader(data, batch_size=size, sampler=sampler)


@pytest.mark.parametrize(
    ("form", "size", "sizes"),
    [
        ("tensor", 11, [11, 12]),
        ("dataset", 2, [2] * 10 + [3]),
        ("loader", 22, [23]),
        ("tensor", 22, [23]),
        ("named", 11, [11, 12]),
        ("stream", 7, [7, 7, 8]),
        ("dealt", 11, [11, 12]),
        ("dropping", 11, [11, 11]),
    ],
)
def test_a_last_batch_of_one_row_is_joined_to_the_one_before(form, size, sizes):
    named = [{"x": row} for row in ROWS]
    data = {
        **FORMS,
        "named": lambda size: DataLoader(named, batch_size=size),
        "stream": lambda size: DataLoader(Few(), batch_size=size),
        "dealt": dealt,
        "dropping": lambda size: DataLoader(TensorDataset(ROWS), batch_size=size, drop_last=True),
    }[form](size)
    seen = []
    run = pv.fit(
        Normalised(), data, epochs=1, batch_size=size, transform=lambda b: seen.append(b) or b
    )
    assert run.steps == len(sizes) and np.isfinite(run.history["loss"]).all()
    batches = [leaf for b in seen for _, leaf in named_leaves(b)][-len(sizes) :]
    assert [len(b) for b in batches] == sizes
    assert len({row[0].item() for row in torch.cat(batches)}) == sum(sizes)


def test_batches_of_one_row_are_refused_where_they_have_no_variance():
    for data, size in ((ROWS, 1), (ROWS[:1], 64), (DataLoader(TensorDataset(ROWS)), 64)):
        with pytest.raises(DataError, match=r"batch of one row.*batch_size to 2 or more"):
            pv.fit(Normalised(), data, epochs=1, batch_size=size)


def test_a_last_row_that_does_not_fit_the_batch_before_stays_alone():
    uneven = [torch.zeros(3, 6), torch.zeros(1, 5)]
    assert list(map(len, with_last_joined(uneven))) == [3, 1]
    packed = [pack_sequence([ROWS[0], ROWS[1, :4]]), pack_sequence([ROWS[2, :5]])]
    (joined,) = with_last_joined(packed)
    assert [len(row) for row in unpack_sequence(joined)] == [6, 4, 5]
    assert torch.equal(unpack_sequence(joined)[2], ROWS[2, :5])


IMAGES = (ROWS % 2).round()
LABELLED = {
    "tensor data set": lambda: TensorDataset(IMAGES, torch.arange(N)),
    "tensors": lambda: (IMAGES, torch.arange(N)),
    "loader of pairs": lambda: DataLoader([(x, 3) for x in IMAGES], batch_size=5),
    "bytes": lambda: TensorDataset((IMAGES * 255).to(torch.uint8), torch.arange(N)),
    "subset": lambda: Subset(TensorDataset(IMAGES, torch.arange(N)), range(N)),
}


@pytest.mark.parametrize("form", LABELLED)
def test_labels_are_dropped_by_a_transform(form):
    """A program of data alone trains on (data, label), as on the data."""

    def alone(batch):
        return batch[0] if form != "bytes" else (batch[0] > 127).to(torch.uint8)

    def trained(data, transform=None):
        torch.manual_seed(0)
        program = pv.models.VAE(6, 2, (8,))
        return pv.fit(program, data, epochs=2, batch_size=N, beta=0.5, transform=transform)

    for name in ("loss", "elbo") if form not in ("loader of pairs", "subset") else ():
        found = trained(LABELLED[form](), alone).history[name]
        np.testing.assert_array_equal(found, trained(IMAGES).history[name])
    seen = []
    run = trained(LABELLED[form](), lambda batch: seen.append(batch[1]) or alone(batch))
    assert np.isfinite(run.history["elbo"]).all() and seen


@pytest.mark.parametrize("form", LABELLED)
def test_labels_that_a_program_does_not_take_are_told_with_the_remedy(form):
    for program in (pv.models.VAE(6, 2, (8,)), CASES["pyroparam"].build()):
        for call in (pv.elbo, pv.fit):
            with pytest.raises(DataError, match=r"transform=lambda batch: batch\[0\]"):
                call(program, LABELLED[form]())
    program = pv.models.VAE(6, 2, (8,))
    with pytest.raises(DataError, match=r"valid: .*torch\.cat\(\[x for x, y in loader\]\)") as told:
        pv.fit(program, IMAGES, valid=LABELLED[form]())
    assert "transform" not in str(told.value)
    alone = (batch[0] for batch in DataLoader(TensorDataset(IMAGES, IMAGES), batch_size=5))
    assert pv.elbo(program, alone).shape == (N,)
    with pytest.raises(DataError, match=r"expected \(B, 6\)"):
        pv.fit(program, (IMAGES, IMAGES), transform=lambda batch: batch[0][:, :5])


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_lists_of_numbers_are_rows(rows):
    """Two of them might be two arguments, and are where the model needs both."""
    torch.manual_seed(0)
    vae, x = pv.models.VAE(6, 2, (4,)), IMAGES[:rows]
    for cells in (x.tolist(), [list(row) for row in x], [[*map(np.asarray, r)] for r in x.numpy()]):
        assert torch.equal(pv.encode(vae, cells), pv.encode(vae, x))

    def model(a, b):
        with pyro.plate("data", len(a)):
            pyro.sample("b", dist.Normal(a, 1.0), obs=b)

    program, both = pv.Program(model, lambda a, b: None), ([1] * rows, [2] * rows)
    assert torch.equal(
        pv.elbo(program, list(both)), pv.elbo(program, tuple(map(torch.tensor, both)))
    )


@pytest.mark.parametrize("columns", [1, 2])
def test_lists_of_equal_batches_are_no_table(columns):
    """``list(DataLoader(...))`` holds lists of tensors, of which numpy makes an array too."""

    def model(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(6), 1.0).to_event(1), obs=x)

    program = pv.Program(model, lambda x, y=None: None)
    batches = list(DataLoader(TensorDataset(*[ROWS[:12]] * columns), batch_size=6))
    assert make_feed(program, batches, 4).size == 12
    rows = program.as_tensors(batches)
    assert all(torch.equal(column, ROWS[:12]) for column in rows) and len(rows) == columns


class ByTurns:
    """Batches with an input and without, anew in each epoch."""

    def __len__(self):
        return 16

    def __iter__(self):
        for rows in IMAGES.split(3):
            yield rows, rows
            yield (rows,)


def test_rows_of_batches_that_end_are_counted():
    """The length of such an object is of its batches, as that of a loader."""

    def model(x, y=None):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(6), 1.0).to_event(1), obs=x)

    feed = make_feed(pv.Program(model, lambda x, y=None: None), ByTurns(), 4)
    assert feed.size == 2 * len(IMAGES)


class Endless(IterableDataset):
    def __iter__(self):
        yield ROWS[0]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (ROWS[:0], "no data"),
        (DataLoader(TensorDataset(ROWS[:0])), "no data"),
        (DataLoader(Endless()), "expected one that tells its length"),
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


@pytest.mark.parametrize("form", [lambda x: x, lambda x: DataLoader(x.split(5), batch_size=None)])
def test_a_transform_in_place_does_not_reach_the_callers_data(form):
    x = CASES["vae"].data(10)
    before, build = x.clone(), CASES["vae"].build
    pv.fit(build(), form(x), epochs=1, beta=0.5, transform=lambda batch: batch.mul_(0.0))
    assert torch.equal(x, before)


def test_finite_numbers_whose_sum_is_not_are_data():
    large = torch.full((4, 2), 3e38)
    check_finite(large)
    for bad in (float("nan"), float("inf"), -float("inf")):
        large[3, 1] = bad
        with pytest.raises(DataError, match=r"row 3 \(position \[1\]\), expected finite numbers"):
            check_finite(large)


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


class OneBuffer(IterableDataset):
    """Batches that are written into the same memory, one after the other."""

    def __len__(self):
        return 12

    def __iter__(self):
        buffer = torch.empty(4, 6)
        for number in range(3):
            yield buffer.fill_(number)


def test_a_loader_that_fills_one_buffer_is_read_in_time():
    feed = make_feed(
        pv.Program.of(pv.models.VAE(6, 2)), DataLoader(OneBuffer(), batch_size=None), 4
    )
    for _ in range(2):
        assert [batch[0, 0].item() for batch in feed.epoch(0)] == [0.0, 1.0, 2.0]
