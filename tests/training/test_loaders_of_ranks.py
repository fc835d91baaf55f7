"""Several processes see each row once an epoch, whatever deals the rows out; or they are told."""

import random

import numpy as np
import pytest
import torch
from forked import connected, forks
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)
from torch.utils.data.distributed import DistributedSampler
from two_processes import Known, data, error

import pyro_vae as pv
from pyro_vae.storage.random_state import seed_outside_torch
from pyro_vae.training.feed import make_feed
from pyro_vae.training.loader_feed import LoaderFeed
from pyro_vae.training.parallel import Group

N = 48
X = data(N)
ROWS = TensorDataset(*X)
PROGRAM = pv.Program.of(Known())


def places(rank, size):
    return list(range(rank, N, size))


class Some(IterableDataset):
    """Some rows, each once: workers share them."""

    def __init__(self, places):
        self.places = places

    def __iter__(self):
        worker = get_worker_info()
        mine = self.places[worker.id :: worker.num_workers] if worker else self.places
        return ((X[0][i], X[1][i]) for i in mine)


class Shuffled(Sampler):
    """Rows, or batches of them, in an order that a global generator of another library draws."""

    def __init__(self, shuffle, items):
        self.shuffle, self.items = shuffle, items

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        order = list(range(len(self.items)))
        self.shuffle(order)
        return iter([self.items[place] for place in order])


class Read:
    """What a function yields, anew each time."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __iter__(self):
        return self.function(*self.arguments)


def batches(rank=0, size=1):
    for start in range(8 * rank, N, 8 * size):
        yield X[0][start : start + 8], X[1][start : start + 8]


def shuffled_batches(shuffle):
    order = list(range(N))
    shuffle(order)
    for start in range(0, N, 8):
        yield tuple(leaf[order[start : start + 8]] for leaf in X)


def named():
    for x, eps in batches():
        yield {"x": x, "eps": eps}


PARTS = [list(range(start, start + 8)) for start in range(0, N, 8)]
NUMPY = np.random.shuffle
LOADERS = {  # of the rank and the number of processes: the data, and N where it has to be told
    "tensors": lambda rank, size: X,
    "shuffled": lambda rank, size: DataLoader(ROWS, 9, shuffle=True),
    "shuffled, a last one of one row": lambda rank, size: DataLoader(ROWS, 47, shuffle=True),
    "shuffled by workers": lambda rank, size: DataLoader(ROWS, 16, shuffle=True, num_workers=2),
    "DistributedSampler": lambda rank, size: DataLoader(
        ROWS, 6, sampler=DistributedSampler(ROWS, size, rank)
    ),
    "batches of a DistributedSampler": lambda rank, size: DataLoader(
        ROWS, batch_sampler=BatchSampler(DistributedSampler(ROWS, size, rank), 6, drop_last=False)
    ),
    "own rows by a sampler": lambda rank, size: DataLoader(
        ROWS, 6, sampler=SubsetRandomSampler(places(rank, size))
    ),
    "batch_sampler": lambda rank, size: DataLoader(ROWS, batch_sampler=PARTS),
    "batch_sampler of own rows": lambda rank, size: DataLoader(
        ROWS, batch_sampler=BatchSampler(places(rank, size), 5, drop_last=False)
    ),
    "batch_sampler of a part": lambda rank, size: DataLoader(ROWS, batch_sampler=PARTS[:4]),
    "rows shuffled by NumPy": lambda rank, size: DataLoader(
        ROWS, 8, sampler=Shuffled(NUMPY, range(N))
    ),
    "batches shuffled by Python": lambda rank, size: DataLoader(
        ROWS, batch_sampler=Shuffled(random.shuffle, PARTS)
    ),
    "stream": lambda rank, size: DataLoader(Some(range(N)), 8),
    "stream of own rows": lambda rank, size: DataLoader(Some(places(rank, size)), 5),
    "stream of own rows by workers": lambda rank, size: DataLoader(
        Some(places(rank, size)), 4, num_workers=2
    ),
    "stream shuffled by NumPy": lambda rank, size: Read(shuffled_batches, NUMPY),
    "batches": lambda rank, size: Read(batches),
    "own batches": lambda rank, size: Read(batches, rank, size),
    "named batches": lambda rank, size: Read(named),
}


def filled(rank, size, left_out=0):
    """Return a loader of N - 1 rows whose sampler begins anew: all parts are of one length."""
    rows, own = Subset(ROWS, range(N - 1)), places(rank, size)
    return DataLoader(
        rows, 5, sampler=SubsetRandomSampler([max(p % (N - 1), left_out) for p in own])
    )


TOLD = {  # rows that are left out or come twice, and what is said of them
    "a DistributedSampler for others": (
        lambda rank, size: DataLoader(ROWS, 6, sampler=DistributedSampler(ROWS, 2 * size, rank)),
        "DistributedSampler for process",
    ),
    "shuffled apart": (
        lambda rank, size: DataLoader(
            ROWS, 8, shuffle=True, generator=torch.Generator().manual_seed(rank)
        ),
        "rows in other orders",
    ),
    "draws of one's own": (
        lambda rank, size: DataLoader(
            ROWS,
            8,
            sampler=WeightedRandomSampler(
                [1.0] * N, N, generator=torch.Generator().manual_seed(rank)
            ),
        ),
        "rows in other orders",
    ),
    "part of one's own": (
        lambda rank, size: DataLoader(Subset(ROWS, places(rank, size)), 8),
        "give all of them the whole data set",
    ),
    "parts that overlap": (
        lambda rank, size: DataLoader(
            ROWS, 4, sampler=SubsetRandomSampler(range(rank * N // 8, rank * N // 8 + N // size))
        ),
        f"processes deal row {N // 8} (and ",
    ),
    "parts filled up, and a row left out": (
        lambda rank, size: filled(rank, size, left_out=1),
        "processes deal row 1 (and 0 others",
    ),
    "batches that overlap": (
        lambda rank, size: DataLoader(ROWS, batch_sampler=[[rank, 20], [9 + rank]]),
        "processes deal row 20 (and 0 others",
    ),
    "stream that loses rows": (
        lambda rank, size: DataLoader(Some(places(rank, size)[:-2]), 8),
        "rows over",
    ),
    "stream of all rows in an order of one's own": (
        lambda rank, size: DataLoader(Some(list(range(N))[:: -1 if rank else 1]), 8),
        "rows over",
    ),
    "stream that begins alike": (
        lambda rank, size: DataLoader(Some([*range(8), *range(8 + rank, N, size)]), 8),
        "batch 1 is another",
    ),
    "stream that begins alike and is longer": (
        lambda rank, size: DataLoader(Some(range(8 if rank else 16)), 8),
        "batch 1 is another",
    ),
}


def of_its_own(rank, size):
    """Return a loader over a data set that this process alone has, as Hugging Face splits them."""
    return DataLoader(Subset(ROWS, places(rank, size)), 5, shuffle=True)


def of_some(rank, size):
    """Return a loader over all rows in one process, of which it deals a few, and of others' own."""
    own = places(rank, size)
    if rank:
        return DataLoader(ROWS, 5, sampler=SubsetRandomSampler(own))
    return DataLoader(Subset(ROWS, own), 5, shuffle=True)


def drawn(rank, size):
    """Return a loader of draws with replacement, which are no parts of the data."""
    generator = torch.Generator().manual_seed(rank)
    draws = WeightedRandomSampler([1.0] * N, N // size, generator=generator)
    return DataLoader(ROWS, 6, sampler=draws)


def weights(given, rank, told=None):
    """Return how much each row counts in this process, epoch by epoch: shares of 1, or 0."""
    known = isinstance(given, tuple) or not isinstance(_rows_of(given), IterableDataset)
    told = told if known else N
    world, index = Group(torch.device("cpu")), {x: i for i, x in enumerate(X[0][:, 0].tolist())}
    found = np.zeros((2, N))
    with world.guarded():
        feed = make_feed(PROGRAM, given, 9, world=world, size=told)
        for epoch in (0, 1):
            seed_outside_torch(rank)  # noise is each process's own
            total = 0.0
            for batch in feed.epoch(epoch):
                x = batch["x"] if isinstance(batch, dict) else batch[0]
                rows = [index[value] for value in x[:, 0].tolist()]
                found[epoch, rows] += world.rows(batch) / len(rows)
                total += world.rows(batch)
            if isinstance(feed, LoaderFeed):
                feed.require_all_rows(total)
    return {"N": feed.size, "weights": found}


def _rows_of(given):
    return given.dataset if isinstance(given, DataLoader) else Some([])


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory):
    """Return the weights of the rows in each process for each loader, and what they are told."""
    size = request.param
    PROGRAM.read(X)

    def train(rank):
        seed_outside_torch(0)  # as a script does
        rows = {
            name: weights(make(rank, size), rank)
            for name, make in LOADERS.items()
            if size == 2 or "workers" not in name  # which take a second each
        }
        told = {
            name: error(lambda make=make: weights(make(rank, size), rank))
            for name, (make, _) in TOLD.items()
        }
        more = weights(filled(rank, size), rank), weights(drawn(rank, size), rank)["N"]
        own = {
            make.__name__: weights(make(rank, size), rank, told=N) for make in (of_its_own, of_some)
        }
        return {**rows, **told, "filled": more[0], "drawn": more[1], **own}

    return connected(size, train, tmp_path_factory.mktemp("ranks"))


@forks
@pytest.mark.parametrize("name", LOADERS)
def test_every_row_counts_once_an_epoch(name, found):
    parts = [each[name]["weights"] for each in found if name in each]
    if not parts:
        pytest.skip("in two processes alone")
    whole = sum(parts)
    if name == "batch_sampler of a part":
        assert not whole[:, 32:].any()
        whole = whole[:, :32]
    assert np.allclose(whole, 1.0)
    assert [each[name]["N"] for each in found] == [whole.shape[1]] * len(found)


@forks
@pytest.mark.parametrize("name", TOLD)
def test_rows_that_are_left_out_or_doubled_stop_all(name, found):
    for each in found:
        assert TOLD[name][1] in each[name]


@forks
def test_parts_may_be_filled_up_to_one_length(found):
    """As those of a DistributedSampler are, by other samplers that the field uses."""
    whole = sum(each["filled"]["weights"] for each in found)
    assert np.allclose(whole, [[2.0, *[1.0] * (N - 2), 0.0]] * 2)
    assert [each["filled"]["N"] for each in found] == [N - 1] * len(found)


@forks
@pytest.mark.parametrize("name", ["of_its_own", "of_some"])
def test_each_process_may_have_a_data_set_of_its_own_where_that_is_told(name, found):
    assert np.allclose(sum(each[name]["weights"] for each in found), 1.0)
    assert [each[name]["N"] for each in found] == [N] * len(found)
    for each in found:
        assert f"say so by size={N}" in each["part of one's own"]


@forks
def test_draws_with_replacement_may_be_of_one_row(found):
    assert [each["drawn"] for each in found] == [N] * len(found)
