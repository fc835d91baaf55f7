"""Programs made to fool a tracer: what they compute depends on what a graph does not hold."""

import functools
import itertools
import random
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import scipy.special
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.graph_trust.subject import Subject

D, Z = 6, 2
ROWS = 42  # in batches of ten: the last one has two rows
FOOLING: dict[str, Subject] = {}


def rows() -> Tensor:
    """Return rows with labels of three classes before them; one row is an outlier."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, D, generator=generator, dtype=torch.float64)
    x[20] *= 6
    x[:, 0] = torch.arange(ROWS) % 3
    return x.to(torch.get_default_dtype())


class Net(nn.Module):
    """A VAE with one odd part, which maps the decoder's means and the batch to other means."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = nn.Linear(D, 2 * Z), nn.Linear(Z, D)
        self.w = nn.Parameter(torch.linspace(0.5, 1.5, D))
        self.build()

    def build(self) -> None:
        """Make the odd part's own tensors."""

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        """Return other means."""
        return mean * self.w

    def model(self, x: Tensor) -> None:
        """Draw a code and rows around its mean."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.odd(self.dec(z), x), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw a code given a row."""
        with pyro.plate("data", len(x)):
            loc, log_scale = self.enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def batches() -> DataLoader[Any]:
    """Return the rows in batches that come as they are: each may have a density of its own."""
    return DataLoader(TensorDataset(rows()), batch_size=10, shuffle=True)


def fooling(**settings: Any) -> Callable[[type[Net]], type[Net]]:
    """Put a class into the table."""

    def put(kind: type[Net]) -> type[Net]:
        FOOLING[kind.__name__] = Subject(kind, **{"data": rows, **settings})
        return kind

    return put


Change = Callable[[Any], Any]


def at_epochs(change: Change, *epochs: int) -> Callable[[Any], dict[str, Any]]:
    """Return options with a callback that changes the program after some epochs; none: each."""

    def options(program: Any) -> dict[str, Any]:
        def callback(run: Any) -> None:
            if not epochs or len(run.history["epoch"]) in epochs:
                change(program)

        return {"callbacks": [callback]}

    return options


# -- values that leave PyTorch -------------------------------------------------------------------


@fooling(data=batches)
class RareOutlierByNumpy(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w + 0.3 * float((np.abs(x.numpy()) > 8).any())


@fooling()
class ScipyOfTheWeights(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * torch.as_tensor(scipy.special.expit(self.w.detach().numpy()))


@fooling()
class TableByItem(Net):
    def build(self) -> None:
        self.table = [0.2, 0.5, 0.9]

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        scales = [self.table[int(label.item())] for label in x[:, 0]]
        return mean * self.w * torch.tensor(scales)[:, None]


@fooling(data=batches)
class TableByList(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        counts = x[:, 0].long().tolist()
        return mean * self.w + 0.1 * counts.count(2)


@fooling()
class NumpyTableByRow(Net):
    def build(self) -> None:
        self.table = np.linspace(0, 1, 3)

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        labels = np.asarray(x[:, 0]).astype(int)
        return mean * self.w + torch.as_tensor(self.table[labels], dtype=x.dtype)[:, None]


@fooling(data=batches)
class ByDLPack(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w + 0.2 * float(np.from_dlpack(x).max() > 8)


# -- branches and shapes by values ---------------------------------------------------------------


@fooling(data=batches)
class BranchOnTheMean(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w if x.mean() > 0.3 else mean


@fooling(data=batches)
class BranchOnEqual(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        small = x.clamp(-8, 8)
        return mean * self.w if torch.equal(x, small) else mean


@fooling(data=batches)
class BranchOnAllClose(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w if torch.allclose(x, x.clamp(-8, 8)) else mean


@fooling(data=batches)
class BranchOnNonzero(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean if torch.is_nonzero((x > 8).sum()) else mean * self.w


@fooling()
class BranchByTheWeights(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w if bool((self.w > 0.45).all()) else mean


@fooling(data=batches)
class UniqueValues(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w + 0.1 * len(torch.unique(x[:, 0]))


@fooling(data=batches)
class Selected(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w + x[x > 1.5].sum() / len(x)


@fooling()
class LabelsChooseRows(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        first = (x[:, 0] == 1).nonzero()[:, 0]
        return (mean * self.w).index_add(-2, first, x[first])


@fooling()
class LabelsChooseTables(Net):
    def build(self) -> None:
        self.table = nn.Embedding(3, D)

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] == 1, mean, mean * self.w) + self.table(x[:, 0].long())


@fooling()
class MaskByValues(Net):
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            usual = dist.Normal(self.dec(z) * self.w, 1.0).mask(x.abs() < 8)
            pyro.sample("x", usual.to_event(1), obs=x)


@fooling(data=batches)
class NumbersOfTheBatch(Net):
    """Mean, length, order, extremes and distinct values, all in PyTorch."""

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        order = x[:, 1].argsort()
        distinct = (x[:, 0].sort().values.diff() > 0).sum()
        whole = x.mean() / len(x) + x.max() + 0.1 * distinct
        return mean * self.w + 0.1 * whole + 0.1 * x[order].cumsum(0)[order.argsort()]


# -- state in Python -----------------------------------------------------------------------------


@fooling()
class CountsInAnAttribute(Net):
    def build(self) -> None:
        self.calls = 0

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return mean * self.w * min(1.0, 0.5 + self.calls // 20)


@fooling()
class CountsInItsClass(Net):
    calls = 0

    def build(self) -> None:
        type(self).calls = 0

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        type(self).calls += 1
        return mean * self.w if type(self).calls < 30 else mean


class Slots:
    """A counter without a dictionary."""

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


@fooling()
class CountsInSlots(Net):
    def build(self) -> None:
        self.counter = Slots()

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        self.counter.calls += 1
        return mean * self.w if self.counter.calls < 30 else mean


def warm_up() -> Iterator[float]:
    """Yield the same number for some time, then another."""
    yield from itertools.repeat(0.5, 30)
    while True:
        yield 1.0


@fooling()
class SchedulesByAGenerator(Net):
    def build(self) -> None:
        self.schedule = warm_up()

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w * next(self.schedule)


@fooling()
class Cycles(Net):
    def build(self) -> None:
        self.cycle = itertools.cycle([1.0] * 30 + [0.5])

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w * next(self.cycle)


STATE = SimpleNamespace(calls=0)


@fooling()
class CountsInAGlobal(Net):
    def build(self) -> None:
        STATE.calls = 0

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        STATE.calls += 1
        return mean * self.w if STATE.calls < 30 else mean


@fooling(data=batches)
class KeepsARunningMean(Net):
    def build(self) -> None:
        self.total = torch.zeros(D)

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        self.total = 0.9 * self.total + 0.1 * x.detach().mean(0)
        return mean * self.w + self.total


@fooling()
class WritesToATensorOfItsOwn(Net):
    def build(self) -> None:
        self.total = torch.zeros(D)

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        before = self.total.clone()  # of the rows at hand the density would depend on each other
        self.total.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return mean * self.w + before


@fooling()
class RandomOfPython(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w if random.random() < 0.9 else mean


@fooling()
class RandomOfNumpy(Net):
    def build(self) -> None:
        self.rng = np.random.default_rng(0)

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w if self.rng.random() < 0.95 else mean


@fooling()
class GeneratorOfItsOwn(Net):
    def build(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w + 0.1 * torch.rand(D, generator=self.generator)


@fooling()
class NoiseInAFork(Net):
    """What is drawn inside the fork is drawn once more by the next step."""

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            noise = 0.1 * torch.randn(D)
        return mean * self.w + noise


@fooling()
class SeedsItself(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            noise = 0.1 * torch.randn(D)
        return mean * self.w + noise


@fooling()
class FirstBatchIsKept(Net):
    """What the first batch left is used from then on, also by the eager step."""

    def build(self) -> None:
        self.first: Tensor | None = None

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        if self.first is None:
            self.first = x.detach().mean(0)
        return mean * self.w + self.first


@fooling(data=batches)
class CacheByLength(Net):
    def build(self) -> None:
        self.grids: dict[int, Tensor] = {}

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        grid = self.grids.setdefault(len(x), torch.linspace(0, 1, len(x)))
        return mean * self.w + 0.1 * grid[:, None]


# -- parameters, autograd, hooks -----------------------------------------------------------------


@fooling()
class Tied(Net):
    def build(self) -> None:
        self.enc, self.dec = nn.Linear(D, 2 * Z, bias=False), nn.Linear(D, Z, bias=False)
        self.dec.weight = nn.Parameter(self.enc.weight.detach()[:Z].clone())
        self.enc.weight = nn.Parameter(torch.cat([self.dec.weight.detach(), torch.zeros(Z, D)]))

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            mean = z @ self.enc.weight[:Z] * self.w + z @ self.dec.weight
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


def hidden_scale() -> Callable[[], Tensor]:
    weight = nn.Parameter(torch.full((D,), 0.3))

    def scale() -> Tensor:
        return weight.exp()

    return scale


@fooling()
class WeightsInPlaces(Net):
    def build(self) -> None:
        self.again: dict[str, Any] = {"deep": [hidden_scale()], "list": [self.w]}

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w * self.again["deep"][0]() + self.again["list"][0].tanh()


class Counted(torch.autograd.Function):
    """Halves its gradient from the thirtieth backward pass on."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # type: ignore[override]
        Counted.calls += 1
        return upstream if Counted.calls < 30 else 0.5 * upstream


@fooling()
class FunctionThatCounts(Net):
    def build(self) -> None:
        Counted.calls = 0

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return Counted.apply(mean * self.w)


class Clipped(torch.autograd.Function):
    """Clips its gradient where that is large: a branch on a value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # type: ignore[override]
        return upstream.clamp(-1, 1) if upstream.abs().max() > 5 else upstream


@fooling()
class FunctionThatBranches(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return Clipped.apply(mean * self.w)


@fooling()
class HookThatLogs(Net):
    def build(self) -> None:
        self.norms: list[Tensor] = []

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        mean = mean * self.w
        if mean.requires_grad:
            mean.register_hook(lambda grad: self.norms.append(grad.norm()))
        return mean


@fooling()
class HookOnAWeight(Net):
    def build(self) -> None:
        self.w.register_hook(lambda grad: 0.1 * grad)


@fooling()
class NoGradientInside(Net):
    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            norm = (self.w**2).mean().sqrt()
        return mean * self.w / norm


@fooling()
class BuffersInPlace(Net):
    def build(self) -> None:
        self.register_buffer("total", torch.zeros(D))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        if self.training:
            self.seen.add_(1)
            self.total.lerp_(x.mean(0), 0.1)
        return mean * self.w + self.total / self.seen.clamp(min=1)


@fooling()
class NormedAndDropped(Net):
    def build(self) -> None:
        self.dec = nn.Sequential(
            nn.Linear(Z, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, D)
        )


@fooling()
class CumulativeNorm(Net):
    """Its running mean divides by a count of batches."""

    def build(self) -> None:
        self.dec = nn.Sequential(nn.Linear(Z, D), nn.BatchNorm1d(D, momentum=None))


@fooling(dtype=torch.float32)
class LongShortTerm(Net):
    def build(self) -> None:
        self.rnn = nn.LSTM(1, D, batch_first=True)

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w + self.rnn(x[..., None])[0][:, -1]


@fooling(dtype=torch.float32)
class Gated(LongShortTerm):
    def build(self) -> None:
        self.rnn = nn.GRU(1, D, batch_first=True)


@fooling()
class TimeGoesBy(Net):
    def build(self) -> None:
        self.start = time.time()

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w + 0.0 * (time.time() - self.start)


# -- what other code changes between two epochs ----------------------------------------------------


def _bound(net: Any) -> None:
    net.bound = 1.0


@fooling(options=at_epochs(_bound, 5))
class BoundThatFewRowsMeet(Net):
    """The new bound is met by rows that the next batch may not have."""

    def build(self) -> None:
        self.bound = 100.0

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w + (x - 9.0).clamp(0.0, self.bound)


def _weight(net: Any) -> None:
    net.settings.weight *= 0.8


@fooling(options=at_epochs(_weight))
class WeightOfACallback(Net):
    def build(self) -> None:
        self.settings = SimpleNamespace(weight=1.0)

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w * self.settings.weight


def _rebound(net: Any) -> None:
    net.shape = lambda mean: mean.tanh()


@fooling(options=at_epochs(_rebound, 4))
class FunctionIsReplaced(Net):
    def build(self) -> None:
        self.shape: Callable[[Tensor], Tensor] = lambda mean: mean

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return self.shape(mean * self.w)


def _other_decoder(net: Any) -> None:
    torch.manual_seed(5)
    net.dec = nn.Linear(Z, D)


@fooling(options=at_epochs(_other_decoder, 4))
class DecoderIsReplaced(Net):
    pass


def _twin(net: Any) -> None:
    net.dec = deepcopy(net.dec)


@fooling(options=at_epochs(_twin, 4))
class DecoderIsReplacedByItsCopy(Net):
    """Equal numbers at first; but the optimizer moves the weights of the old one."""


def _other_parameter(net: Any) -> None:
    net.w = nn.Parameter(net.w.detach().clone())


@fooling(options=at_epochs(_other_parameter, 4))
class ParameterIsReplacedByItsCopy(Net):
    pass


def _other_buffer(net: Any) -> None:
    net.total = torch.full_like(net.total, 0.3)


@fooling(options=at_epochs(_other_buffer, 4))
class BufferIsReplaced(Net):
    def build(self) -> None:
        self.register_buffer("total", torch.zeros(D))

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w + self.total


def _frozen(net: Any) -> None:
    net.w.requires_grad_(not net.w.requires_grad)


@fooling(options=at_epochs(_frozen, 3, 6))
class WeightIsFrozenAndThawed(Net):
    pass


def _evaluating(net: Any) -> None:
    net.dec.forward_mode = "eval"


@fooling(options=at_epochs(_evaluating, 4))
class DropoutGoesOff(NormedAndDropped):
    """A callback sets what the forward pass reads to choose between two modes."""

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        off = getattr(self.dec, "forward_mode", "train") == "eval"
        return nn.functional.dropout(mean, 0.4, training=not off) * self.w


def _more(net: Any) -> None:
    net.dec[2].p = 0.6


@fooling(options=at_epochs(_more, 4))
class RateOfDropoutChanges(NormedAndDropped):
    pass


def _in_place(net: Any) -> None:
    net.anchor.fill_(0.4)


@fooling(options=at_epochs(_in_place, 4))
class TensorIsWrittenTo(Net):
    def build(self) -> None:
        self.anchor = torch.zeros(D)

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w + (x > 8) * self.anchor.exp()


def _unnormed(net: Any) -> None:
    remove_parametrizations(net.dec, "weight")


@fooling(options=at_epochs(_unnormed, 4))
class WeightNormIsRemoved(Net):
    def build(self) -> None:
        self.dec = weight_norm(nn.Linear(Z, D))


def _turned(net: Any) -> None:
    net.dec.weight.data = net.dec.weight.data.t().contiguous().t()


@fooling(options=at_epochs(_turned, 4))
class WeightLiesOtherwiseInMemory(Net):
    pass


def _hooked(net: Any) -> None:
    net.w.register_hook(lambda grad: 0.1 * grad)


@fooling(options=at_epochs(_hooked, 4))
class HookComesLater(Net):
    pass


def _rebinding(program: Any) -> dict[str, Any]:
    def callback(run: Any) -> None:
        program.scale = functools.partial(torch.mul, other=1.0 / len(run.history["epoch"]))

    return {"callbacks": [callback]}


@fooling(options=_rebinding)
class PartialIsReboundEachEpoch(Net):
    def build(self) -> None:
        self.scale: Callable[[Tensor], Tensor] = functools.partial(torch.mul, other=1.0)

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return self.scale(mean * self.w)


def _by_transform(program: Any) -> dict[str, Any]:
    steps = itertools.count()

    def transform(batch: Tensor) -> Tensor:
        program.weight = 1.0 - 0.1 * (next(steps) // 5)
        return batch

    return {"transform": transform}


@fooling(options=_by_transform)
class WeightOfATransform(Net):
    """It changes at the first batch of each epoch, and no callback is there."""

    def build(self) -> None:
        self.weight = 1.0

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w * self.weight


EPOCH = SimpleNamespace(number=0)


class Announcing(DataLoader):  # type: ignore[type-arg]
    """A loader that counts its epochs where the model can read them."""

    def __iter__(self) -> Any:
        EPOCH.number += 1
        return super().__iter__()


def announcing_rows() -> Announcing:
    """Return the rows in such a loader."""
    EPOCH.number = 0
    return Announcing(TensorDataset(rows()), batch_size=10)


class WeightOfALoader(Net):
    """The loader changes at each epoch what the model reads, and no callback is there."""

    def odd(self, mean: Tensor, x: Tensor) -> Tensor:
        return mean * self.w / (1.0 + 0.1 * EPOCH.number)


FOOLING["WeightOfALoader"] = Subject(WeightOfALoader, announcing_rows)


def _whole(kind: type[Net]) -> Subject:
    return Subject(kind, rows, batch_size=ROWS, epochs=60)


FOOLING["TheSameBatchEachTime"] = _whole(RareOutlierByNumpy)
FOOLING["OneBatchOfNumbers"] = _whole(NumbersOfTheBatch)
