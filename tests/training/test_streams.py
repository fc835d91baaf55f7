"""Data that come batch by batch: the steps of a loader over the same rows, and N as it is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from two_processes import Known, data, fit, numbers

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError

N, B = 22, 8


class Batches:
    """A reader of files, say: it begins anew each time it is asked."""

    def __iter__(self):
        return iter(zip(*(leaf.split(B) for leaf in data(N)), strict=True))


class Rows(IterableDataset):
    """The same, row by row."""

    def __iter__(self):
        return iter(zip(*data(N), strict=True))


class Counted(Rows):
    def __len__(self):
        return N


class Table:
    """A data set of rows that inherits nothing: torch's protocol of one that fetches many."""

    def __len__(self):
        return N

    def __getitem__(self, index):
        return tuple(leaf[index] for leaf in data(N))

    def __getitems__(self, index):
        return [self[each] for each in index]

    def __iter__(self):
        return (self[index] for index in range(N))


# What is given, and the arguments that it needs; all in the order of the rows.
STREAMS = {
    "batches": (Batches, {"size": N}),
    "counted batches": (Batches, {"size": "count"}),
    "rows": (Rows, {"size": N}),
    "a loader of rows": (lambda: DataLoader(Rows(), batch_size=B), {"size": "count"}),
    "rows that tell N": (Counted, {}),
    "rows that tell N, told again": (Counted, {"size": N}),
}


def of_loader(**options):
    return fit(Known(), DataLoader(TensorDataset(*data(N)), batch_size=B), **options)


@pytest.fixture(scope="module")
def expected():
    """Return what a loader over all rows leaves, with a global weight: a wrong N would show."""
    return of_loader(valid=DataLoader(TensorDataset(*data(13)), batch_size=4))


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_trains_as_a_loader_over_its_rows(kind, expected):
    make, options = STREAMS[kind]
    found = fit(
        Known(), make(), valid=DataLoader(TensorDataset(*data(13)), batch_size=4), **options
    )
    assert found == expected


def test_another_n_is_another_run(expected):
    assert fit(Known(), Rows(), size=N, epochs=1)["state"] != expected["state"]


@pytest.mark.filterwarnings("ignore:.*the guide is a point mass")
def test_a_table_of_rows_is_shuffled_as_a_data_set():
    program = Known()
    rows = Subset(TensorDataset(*data(N)), range(N))
    run = pv.fit(program, rows, epochs=2, batch_size=B, device="cpu")
    other = Known()
    again = pv.fit(other, Table(), epochs=2, batch_size=B, device="cpu")
    assert numbers(run, program) == numbers(again, other)
    assert torch.equal(pv.elbo(other, Table()), pv.elbo(other, TensorDataset(*data(N))))


@pytest.mark.parametrize("rows", [N - 4, N + 4])
def test_a_stream_of_other_rows_than_it_should_have_stops_after_one_epoch(rows):
    program = Known()
    with pytest.raises(DataError, match=f"{N} rows.*{rows}"):
        fit(program, Batches(), size=rows, epochs=3)


@pytest.mark.parametrize(
    ("given", "options", "kind", "said"),
    [
        (Batches, {}, DataError, "size=N"),
        (Rows, {}, DataError, 'size="count"'),
        (lambda: iter(Batches()), {"size": N}, DataError, "once"),
        (Counted, {"size": N + 1}, ConfigError, f"{N + 1}.*{N}"),
        (lambda: data(N), {"size": N + 1}, ConfigError, f"{N + 1}.*{N}"),
        (Batches, {"size": 0}, ConfigError, "at least 1"),
    ],
)
def test_what_a_stream_lacks_is_told(given, options, kind, said):
    with pytest.raises(kind, match=said):
        fit(Known(), given(), **options)


def test_validation_batches_are_judged_as_the_same_rows_in_memory(expected):
    whole = of_loader(valid=data(13))
    assert whole["history"] == expected["history"]


def test_a_resumed_run_over_a_stream_is_the_straight_one(tmp_path):
    straight = fit(Known(), Batches(), size=N, epochs=3, valid=Batches())
    fit(Known(), Batches(), size=N, epochs=2, out=tmp_path, valid=Batches())
    again = fit(Known(), Batches(), size=N, epochs=3, out=tmp_path, resume=True, valid=Batches())
    assert again == straight


class Large:
    """Rows made as they are asked for, which would fill 100 MB together; it watches the memory."""

    def __init__(self):
        self.seen = []

    def __iter__(self):
        for seed in range(24):
            self.seen.append(private_megabytes())
            yield torch.full((1024, 1024), seed / 24)


def private_megabytes():
    """Return the resident memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def largest_rise(seen):
    """Return by how much a series rises above what it was before: what falls is no part of it."""
    seen = np.array(seen)
    return (seen - np.minimum.accumulate(seen)).max()


def test_neither_training_nor_validation_holds_a_stream():
    program, train, valid = pv.models.LinearVAE(1024, 1), Large(), Large()
    run = pv.fit(program, train, size=24 * 1024, valid=valid, epochs=1, device="cpu")
    assert np.isfinite(run.history["valid_elbo"]).all() and run.steps == 24
    for seen in (train.seen[5:], valid.seen[5:]):
        assert len(seen) >= 19 and largest_rise(seen) < 50


# -- arrays that map files: converted a batch at a time, for training and for verbs -------------

ROWS, WIDTH = 24 * 1024, 1024  # 24 MB of bytes, 96 MB of floats


class Watched(pv.models.LinearVAE):
    """It notes the memory at each pass."""

    def model(self, x):
        self.seen = [*getattr(self, "seen", []), private_megabytes()]
        super().model(x)


@pytest.fixture
def mapped(tmp_path):
    path = tmp_path / "bytes.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (ROWS, WIDTH)).flush()  # zeros take no space
    return np.load(path, mmap_mode="r")


def test_bytes_of_a_file_are_never_floats_all_at_once(mapped):
    program = Watched(WIDTH, 1)
    options = {"device": "cpu", "compile": False, "batch_size": 64, "epochs": 1}
    pv.fit(program, np.array(mapped[:1024]), valid=mapped[:512], **options)  # what torch loads
    program.seen = [private_megabytes()]
    pv.fit(program, mapped, max_steps=10, valid=mapped[:512], **options)
    pv.elbo(program, mapped, batch_size=256)
    assert len(program.seen) > 100 and largest_rise(program.seen) < 50


def test_they_train_as_a_data_set_of_their_rows(tmp_path):
    x = torch.rand(22, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")

    def train(data):
        torch.manual_seed(0)
        program = pv.models.LinearVAE(4, 2)
        run = pv.fit(program, data, epochs=2, batch_size=8, device="cpu", valid=x.float())
        torch.manual_seed(1)
        return numbers(run, program), pv.elbo(program, x.float()), program

    expected, elbo, program = train(Subset(TensorDataset(x.float()), range(22)))
    found, again, _ = train(mapped)
    assert found == expected and torch.equal(elbo, again)
    torch.manual_seed(1)
    assert torch.equal(pv.elbo(program, mapped), elbo)
