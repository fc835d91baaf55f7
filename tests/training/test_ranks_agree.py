"""What one process alone would do otherwise is agreed on before: none waits for the others."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from forked import connected, forks
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)
from torch.utils.data.distributed import DistributedSampler
from two_processes import Known, data, error, fit, frozen

import pyro_vae as pv
from pyro_vae.training import parallel

X, V = data(16), data(13)
ROWS, JUDGED = TensorDataset(*X), TensorDataset(*V)


class Stream(IterableDataset):
    """Rows of some places."""

    def __init__(self, rows: TensorDataset, places: Any) -> None:
        self.rows, self.places = rows, places

    def __iter__(self) -> Any:
        return (self.rows[place] for place in self.places)


def without_first(rows: Any) -> Any:
    """Leave row 0 out, as one that cannot be read."""
    kept = [row for row in rows if row[0][0] != X[0][0, 0]]
    return tuple(torch.stack(leaves) for leaves in zip(*kept, strict=True))


def lone(rows: Any) -> Any:
    """Leave row 0 out of the first batch of the first process, of which it is one of four."""
    return DataLoader(ROWS, 4, sampler=rows, collate_fn=without_first)


def judged(rank: int, size: int) -> dict[str, Any]:
    """Return validation rows of each process, in each form, of one: all."""
    own, uneven = range(rank, len(JUDGED), size), range(3, 13) if rank else range(3)
    return {
        "a loader over its own set": DataLoader(Subset(JUDGED, own), 4),
        "sets of other lengths": Subset(JUDGED, uneven if size > 1 else range(13)),
        "its own sampler": DataLoader(JUDGED, 4, sampler=own),
        "a stream of its own": DataLoader(Stream(JUDGED, own), 4),
    }


def trained(rank: int, size: int) -> dict[str, Any]:
    """Return the histories where no process waits for another, for each kind of rows."""
    own = range(rank, len(ROWS), size)
    once = {"optimizer": frozen, "epochs": 1, "compile": False}
    found = {"a row left out": fit(Known(), lone(own), **once)}
    for name, valid in judged(rank, size).items():
        found[name] = fit(Known(), X, valid=valid, **once)
    return {name: each["history"] for name, each in found.items()}


class Unread(Dataset):
    """Rows of which one process cannot read one, nor one of the first batch."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __len__(self) -> int:
        return len(JUDGED)

    def __getitem__(self, place: int) -> Any:
        if self.rank and place == 7:
            raise OSError("no such file")
        return JUDGED[place]


class Uneven:
    """Batches that are all rows in the first epoch, and other numbers of them later."""

    def __init__(self, *numbers: int) -> None:
        self.numbers, self.epoch = numbers, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        batches = zip(*(leaf.split(4) for leaf in X), strict=True)
        return itertools.islice(batches, self.numbers[min(self.epoch, len(self.numbers) - 1)])


class Turns:
    """Updates that are other ones in each process, or are due in one alone."""

    def __init__(self, rank: int, kind: str) -> None:
        self._rank, self.kind = rank, kind

    def updates(self, program: pv.Program) -> list[pv.Update]:
        loss, parameters, steps = pv.ELBO().per_datum, tuple(program.parameters()), iter(range(99))
        due = [lambda: not self._rank, lambda: bool(self._rank)]
        if self.kind == "due":
            names = zip(("first", "second"), due, strict=True)
            return [pv.Update(loss, parameters, name=name, due=each) for name, each in names]
        if self.kind == "due late":
            late = pv.Update(
                loss, parameters, name="second", due=lambda: next(steps) > 4 and bool(self._rank)
            )
            return [pv.Update(loss, parameters), late]
        return [pv.Update(loss, parameters, name=f"{n}") for n in range(1 + self._rank)]


def loader(rank: int) -> DataLoader:
    return DataLoader(ROWS, 4)


def shuffled(rank: int) -> DataLoader:
    return DataLoader(JUDGED, 4, shuffle=True, generator=torch.Generator().manual_seed(rank))


APART = {  # of the rank: data and options, and what all processes are told
    "tensors": (lambda r: {"batch": loader(r) if r else X}, "data is ['tensors'"),
    "stream": (
        lambda r: {"batch": DataLoader(Stream(ROWS, range(16)), 4) if r else loader(r), "size": 16},
        "'batches of a stream'] by rank",
    ),
    "dealt": (
        lambda r: (
            {"batch": DataLoader(ROWS, 4, sampler=DistributedSampler(ROWS, 2, r))}
            if r
            else {"batch": loader(r)}
        ),
        "dealt by a DistributedSampler'] by rank",
    ),
    "count": (
        lambda r: {"batch": DataLoader(Stream(ROWS, range(16)), 4), "size": "count" if r else 16},
        "size is [16, 'count'] by rank",
    ),
    "types": (
        lambda r: {"batch": tuple(leaf.round().int() if r else leaf for leaf in X)},
        "torch.int32'] by rank",
    ),
    "types of a loader": (
        lambda r: {
            "batch": DataLoader(TensorDataset(*(x.round().int() if r else x for x in X)), 4)
        },
        "torch.int32'] by rank",
    ),
    "valid": (
        lambda r: {"batch": loader(r), "valid": DataLoader(JUDGED, 4) if r else None},
        "valid is ['none', 'some'] by rank",
    ),
    "kinds of valid": (
        lambda r: {"batch": loader(r), "valid": DataLoader(JUDGED, 4) if r else V},
        "valid is ['tensors', 'batches of a data set'] by rank",
    ),
    "valid begins alike": (
        lambda r: {"batch": X, "valid": DataLoader(Stream(JUDGED, [0, 1, 2, 3, 4 + r, 6 + r]), 4)},
        "valid: batches are others in each of 2 processes",
    ),
    "valid in other orders": (
        lambda r: {"batch": X, "valid": shuffled(r)},
        "deal row 0 (and 12 others so)",
    ),
    "valid dealt": (
        lambda r: {
            "batch": X,
            "valid": DataLoader(
                JUDGED, batch_sampler=BatchSampler(DistributedSampler(JUDGED, 2, r), 4, False)
            ),
        },
        "valid: got a loader with a DistributedSampler",
    ),
    "valid unread": (  # it was told as validation rows that differ
        lambda r: {"batch": X, "valid": DataLoader(Unread(r), 4)},
        "DataError: valid: the data set raised OSError: no such file, in process 1 and not in all",
    ),
    "ends early": (
        lambda r: {"batch": Uneven(4, 3 if r else 4), "size": 16, "compile": False},
        "DataError: data: an epoch of process 1 ended after 3 batches, and others go on",
    ),
    "ends late": (
        lambda r: {"batch": Uneven(4, 2, 3 if r else 2), "size": 16, "epochs": 3},
        "DataError: data: batch 2 is another in each of 2 processes",
    ),
    "updates": (
        lambda r: {"batch": X, "objective": Turns(r, "number")},
        "updates is [['0, 1 times'], ['0, 1 times', '1, 1 times']] by rank",
    ),
    "due": (
        lambda r: {"batch": X, "objective": Turns(r, "due")},
        "due of update 'first' is [True, False] by rank",
    ),
    "due late": (  # it trained on gradients of two steps, or waited for half an hour
        lambda r: {"batch": X, "objective": Turns(r, "due late"), "batch_size": 4},
        "due of update 'second' is [False, True] by rank",
    ),
    "minutes": (
        lambda r: {"batch": loader(r), "max_minutes": np.float32(5) if r else None},
        "minutes is [None, 5.0] by rank",
    ),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what two processes find in all cases, and one in those that train."""
    alone = trained(0, 1)  # first: what is loaded on first use is loaded once

    def all_cases(rank):
        parallel._MEETING, parallel._AGAIN = 0.3, 0.5
        told = {
            name: error(lambda make=make: fit(Known(), **make(rank)))
            for name, (make, _) in APART.items()
        }
        both = trained(rank, 2), told
        error(lambda: fit(Known(), X, epochs=1 + rank))
        told["one alone"] = "none" if rank else error(lambda: fit(Known(), X))
        return both

    return alone, connected(2, all_cases, tmp_path_factory.mktemp("ranks"), limit=60)


@forks
@pytest.mark.parametrize("name", APART)
def test_processes_that_would_go_apart_are_told(name, found):
    for _, told in found[1]:
        assert APART[name][1] in told[name]


@forks
def test_a_run_after_one_that_failed_waits_for_no_process_that_ended(found):
    """It waited for half an hour, and was told of an address."""
    told = found[1][0][1]["one alone"]
    assert told.startswith("ProcessError: not all 2 processes have begun another run within 0 s")
    assert "epochs is [1, 2] by rank" in told


@forks
def test_rows_that_one_process_alone_leaves_out_are_counted_by_all(found):
    _of_one(found, ["a row left out"], "loss")


@forks
def test_validation_rows_of_each_process_are_judged_as_in_one(found):
    _of_one(found, list(judged(0, 1)), "valid_elbo")


def _of_one(found, names, column):
    alone, both = found
    for name in names:
        for each, _ in both:
            assert each[name][column] == pytest.approx(alone[name][column], rel=1e-12), name
