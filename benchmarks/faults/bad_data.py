"""Bad data at every verb, in every form that data come in: told in one sentence, or a fault.

Nothing here may go through: each of `DATA` is wrong for a VAE of six bits, each of `PAIRS` for a
program of six numbers and a class.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pyro_vae as pv
from benchmarks.faults.bad_calls import outcome
from benchmarks.faults.good_calls import Room
from benchmarks.faults.trials import Kind, Trial


class Labelled(nn.Module):
    """Six numbers and one of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(7, 4), nn.Linear(2, 6)

    def model(self, x: Tensor, y: Tensor) -> None:
        """Draw a code, observe numbers and class."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Categorical(logits=x.new_zeros(3)), obs=y)
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Draw the code from what both say."""
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(torch.cat([x, y[:, None].to(x)], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class Rows(Dataset[Any]):
    """A data set of any items."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Stream(IterableDataset[Any]):
    """A data set without a length."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def bits(n: int = 8, width: int = 6) -> Tensor:
    return (torch.arange(n * width).reshape(n, width) % 3 == 0).float()


def spoiled(value: float, row: int = 7) -> Tensor:
    x = bits()
    x[row, 2] = value
    return x


def last(bad: Any) -> list[Any]:
    """Return batches of which only the last is bad."""
    return [bits(4), bits(4), bad]


def loader(batches: list[Any]) -> DataLoader[Any]:
    return DataLoader(Rows(batches), batch_size=None)


NAN, INF = float("nan"), float("inf")
DATA: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "text": lambda: "digits",
    "number": lambda: 3.0,
    "class": lambda: Tensor,
    "function": lambda: bits,
    "module": lambda: nn.Linear(6, 6),
    "no rows": lambda: bits(0),
    "no columns": lambda: torch.zeros(8, 0),
    "scalar": lambda: torch.tensor(1.0),
    "one datum": lambda: bits()[0],
    "nan": lambda: spoiled(NAN),
    "inf": lambda: spoiled(INF),
    "-inf": lambda: spoiled(-INF),
    "nan array": lambda: spoiled(NAN).numpy(),
    "half nan": lambda: spoiled(NAN).half(),
    "double inf": lambda: spoiled(INF).double(),
    "wide": lambda: bits(8, 7),
    "narrow": lambda: bits(8, 5),
    "image": lambda: bits()[:, None],
    "transposed": lambda: bits().T,
    "bytes": lambda: (bits() * 255).byte(),
    "grey": lambda: spoiled(0.5),
    "negative": lambda: spoiled(-1.0),
    "sevens": lambda: torch.full((8, 6), 7),
    "complex": lambda: bits().to(torch.complex64),
    "sparse and wide": lambda: bits(8, 7).to_sparse(),
    "masked": lambda: np.ma.masked_equal(bits().numpy(), 1.0),
    "ragged": lambda: [[1.0, 0.0], [1.0]],
    "texts": lambda: [["a"] * 6] * 8,
    "objects": lambda: np.array([object()] * 8),
    "object numbers": lambda: np.array([[None] * 6] * 8),
    "dates": lambda: np.full((8, 6), np.datetime64("2020-01-01")),
    "records": lambda: np.zeros(8, dtype=[("a", "f4"), ("b", "f4")]),
    "[]": list,
    "()": tuple,
    "{}": dict,
    "two tensors": lambda: (bits(), bits()),
    "two lengths": lambda: (bits(), bits(7)),
    "wrong name": lambda: {"pixels": bits()},
    "a name too many": lambda: {"x": bits(), "w": bits()},
    "None by name": lambda: {"x": None},
    "text by name": lambda: {"x": "digits"},
    "nested": lambda: {"x": {"x": bits()}},
    "empty loader": lambda: loader([]),
    "empty set": lambda: Rows([]),
    "empty stream": lambda: DataLoader(Stream([]), batch_size=4),
    "loader, nan at last": lambda: loader(last(spoiled(NAN, 2))),
    "loader, grey at last": lambda: loader(last(spoiled(0.5, 2))),
    "loader, wide at last": lambda: loader(last(bits(4, 7))),
    "loader, a pair at last": lambda: loader(last((bits(4), bits(4)))),
    "loader, None at last": lambda: loader(last(None)),
    "loader, text at last": lambda: loader(last("digits")),
    "loader, no rows at last": lambda: loader(last(bits(0))),
    "loader of pairs": lambda: DataLoader(TensorDataset(bits(), bits()), batch_size=4),
    "loader of texts": lambda: DataLoader(Rows(["a"] * 8), batch_size=4),
    "loader of objects": lambda: DataLoader(Rows([object()] * 8), batch_size=4),
    "loader of ragged rows": lambda: DataLoader(Rows([torch.ones(3), torch.ones(4)]), batch_size=2),
    "set of nans": lambda: TensorDataset(spoiled(NAN)),
    "set of wide rows": lambda: Rows(list(bits(8, 7))),
    "iterator, nan at last": lambda: iter(last(spoiled(NAN, 2))),
    "iterator, wide at last": lambda: iter(last(bits(4, 7))),
    "spent iterator": lambda: iter(()),
    "set of texts": lambda: {"a", "b"},
}

CLASSES = torch.arange(8) % 3
PAIRS: dict[str, Callable[[], Any]] = {
    "one of two": lambda: (bits(),),
    "a tensor": bits,
    "swapped": lambda: (CLASSES, bits()),
    "labels too few": lambda: (bits(), CLASSES[:7]),
    "one label": lambda: (bits(), CLASSES[:1]),
    "label out of range": lambda: (bits(), CLASSES + 1),
    "negative label": lambda: (bits(), CLASSES - 1),
    "label of no class": lambda: (bits(), CLASSES + 0.5),
    "nan label": lambda: (bits(), torch.full((8,), NAN)),
    "texts for labels": lambda: (bits(), ["a"] * 8),
    "None for labels": lambda: (bits(), None),
    "labels missing": lambda: {"x": bits()},
    "rows missing": lambda: {"y": CLASSES},
    "a third": lambda: (bits(), CLASSES, CLASSES),
    "a third by name": lambda: {"x": bits(), "y": CLASSES, "w": CLASSES},
    "nan row": lambda: (spoiled(NAN), CLASSES),
    "nan row by name": lambda: {"x": spoiled(NAN), "y": CLASSES},
    "wide": lambda: (bits(8, 7), CLASSES),
    "labels as columns": lambda: (bits(), CLASSES[:, None]),
    "loader, label out of range at last": lambda: loader(
        [(bits(4), CLASSES[:4]), (bits(4), CLASSES[4:] + 2)]
    ),
    "loader, a label less at last": lambda: loader(
        [(bits(4), CLASSES[:4]), (bits(4), CLASSES[4:7])]
    ),
    "loader, labels missing at last": lambda: loader([(bits(4), CLASSES[:4]), bits(4)]),
    "loader, other names at last": lambda: loader(
        [{"x": bits(4), "y": CLASSES[:4]}, {"x": bits(4), "label": CLASSES[:4]}]
    ),
}


def verbs(room: Any) -> dict[str, Callable[[Any, Any, Any], Any]]:
    """Return every verb as a function of a program, bad data, and good ones."""
    once = {"epochs": 1, "batch_size": 4, "compile": False, "progress": False}
    return {
        "fit": lambda p, x, good: pv.fit(p, x, **once),
        "fit, valid": lambda p, x, good: pv.fit(p, good, valid=x, **once),
        "fit, trace": lambda p, x, good: pv.fit(p, x, **{**once, "compile": "trace"}),
        "elbo": lambda p, x, good: pv.elbo(p, x),
        "log_likelihood": lambda p, x, good: pv.log_likelihood(p, x, num_particles=2),
        "fitted_log_likelihood": lambda p, x, good: pv.fitted_log_likelihood(
            p, x, num_particles=8, warmup=2, num_draws=4, num_leapfrog=1
        ),
        "ais": lambda p, x, good: pv.ais(p, x, room.short),
        "bdmc": lambda p, x, good: pv.bdmc(p, 4, room.short, given=x),
        "gaps": lambda p, x, good: pv.gaps(
            p, x, local=room.local, annealed=room.short, num_particles=2
        ),
        "diagnose": lambda p, x, good: pv.diagnose(p, x, probes=4),
        "encode": lambda p, x, good: pv.encode(p, x),
        "reconstruct": lambda p, x, good: pv.reconstruct(p, x),
        "interpolate": lambda p, x, good: pv.interpolate(p, good, x, steps=2),
        "infer": lambda p, x, good: pv.infer(p, x),
        "refine": lambda p, x, good: pv.refine(p, x, room.hmc, compile=False),
        "generate": lambda p, x, good: pv.generate(p, 8, given=x),
        "code_usage": lambda p, x, good: pv.code_usage(p, x),
    }


# Verbs that draw the data anew look at the inputs alone, and may be given none.
DRAWS = ("generate", "bdmc")


@dataclass(frozen=True)
class Subject:
    """A program, its good data, and what is bad for it."""

    name: str
    build: Callable[[], Any]
    good: Callable[[], Any]
    bad: Mapping[str, Callable[[], Any]]


SUBJECTS = (
    Subject("bits", lambda: pv.models.VAE(6, 2, (4,)), bits, DATA),
    Subject("labelled", Labelled, lambda: (bits(), CLASSES), PAIRS),
)


def cases() -> list[tuple[Subject, str, str]]:
    """Return every program, verb and kind of bad data."""
    return [
        (subject, verb, kind)
        for subject in SUBJECTS
        for verb in verbs(None)
        for kind in subject.bad
        if not (kind == "None" and verb in ("fit, valid", *DRAWS))
    ]


def trial(room: Room, program: Any, subject: Subject, verb: str, kind: str) -> Trial:
    """Give bad data to a verb: what goes through is silently wrong."""
    data, good = subject.bad[kind](), subject.good()
    verdict, said = outcome(lambda: verbs(room)[verb](program, data, good))
    if verdict == "ok" and verb not in DRAWS:
        verdict = "wrong"
    return Trial(f"{subject.name}: {verb}", verdict, f"{kind}: {said}")


def _trials(first: int, seed: int) -> Iterator[Trial]:
    room, programs = Room(), {subject.name: subject.build() for subject in SUBJECTS}
    for subject in SUBJECTS:
        pv.elbo(programs[subject.name], subject.good())
    for subject, verb, kind in cases()[first:]:
        yield trial(room, programs[subject.name], subject, verb, kind)


BAD_DATA = Kind(
    name="data",
    unit="calls with bad data",
    target=len(cases()),
    how="each verb gets each kind of bad data, in each form that data come in; ours: an error of "
    "the library; wrong: it went through (ok where the verb draws the data anew); raw: another "
    "error, an empty or NaN tensor, or more than 20 CPU seconds",
    trials=_trials,
)
