"""Programs of which a graph is right, and of which it is not; and a step by either compared."""

import enum
import functools
import itertools
import random
import types
import warnings
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

import pyro_vae as pv
from benchmarks.graph_trust.fooling import D, Net, Z
from pyro_vae.inference.graphs.compiled_loss import CompiledLoss
from pyro_vae.program.handlers import validation
from pyro_vae.program.program import Program

ROWS = 12
GRAPH, EAGER = {}, {}


def right_as_graph(cls):
    GRAPH[cls.__name__] = cls
    return cls


def right_only_eagerly(why):
    def note(cls):
        EAGER[cls.__name__] = cls, why
        return cls

    return note


# -- what leaves torch -------------------------------------------------------------------------

LEAVES = "leave PyTorch|numpy"


@right_only_eagerly(LEAVES)
class NumpyOfTheBatch(Net):
    def odd(self, mean, x):
        return mean * self.w + torch.as_tensor(np.tanh(x.numpy()).mean(0))


@right_only_eagerly(LEAVES)
class NumpyViewOfTheBatch(Net):
    def odd(self, mean, x):
        return mean * self.w + torch.from_numpy(x.numpy())


@right_only_eagerly(LEAVES)
class ScipyOfTheWeights(Net):
    def odd(self, mean, x):
        return mean * torch.as_tensor(scipy.special.expit(self.w.detach().numpy()))


@right_only_eagerly(LEAVES)
class TableByRow(Net):
    def build(self):
        self.table = np.random.default_rng(0).normal(size=50)

    def odd(self, mean, x):
        row = (x[:, 0].detach().numpy() * 10).astype(int) % 50
        return mean * self.w + torch.as_tensor(self.table[row])[:, None]


@right_only_eagerly(LEAVES)
class RareByNumpy(Net):
    """Most batches give one number: no comparison on a few of them sees the other."""

    def odd(self, mean, x):
        return mean * self.w + float((x.numpy() > 50).any())


@right_only_eagerly(LEAVES)
class RareByList(Net):
    def odd(self, mean, x):
        return mean * self.w + (words(x).sum(1).tolist().count(99) > 0)


@right_only_eagerly(LEAVES)
class RareByDLPack(Net):
    def odd(self, mean, x):
        return mean * self.w + float(np.from_dlpack(x).max() > 50)


class Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, bound):
        ctx.save_for_backward(value)
        ctx.bound = bound
        return value.clamp(-bound, bound)

    @staticmethod
    def backward(ctx, upstream):
        (value,) = ctx.saved_tensors
        return upstream * (value.abs() < ctx.bound) * 0.5, None  # not what autograd would give


@right_as_graph
class OwnFunction(Net):
    def odd(self, mean, x):
        return Clipped.apply(mean * self.w, 0.8)


class ByNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        ctx.save_for_backward(value)
        return torch.as_tensor(np.sin(value.detach().numpy()))

    @staticmethod
    def backward(ctx, upstream):
        (value,) = ctx.saved_tensors
        return upstream * torch.as_tensor(np.cos(value.detach().numpy()))


@right_only_eagerly(LEAVES)
class OwnFunctionInNumpy(Net):
    def odd(self, mean, x):
        return ByNumpy.apply(mean * self.w)


class BackwardByNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        ctx.save_for_backward(value)
        return value.sin()

    @staticmethod
    def backward(ctx, upstream):
        (value,) = ctx.saved_tensors
        return upstream * torch.as_tensor(np.cos(value.detach().numpy()))


@right_only_eagerly(LEAVES)
class GradientInNumpy(Net):
    """The loss is right; only the gradients are those of other rows."""

    def odd(self, mean, x):
        return BackwardByNumpy.apply(mean * self.w)


# -- one tensor in several places --------------------------------------------------------------


@right_as_graph
class Tied(Net):
    def build(self):
        self.enc = nn.Linear(D, Z, bias=False)
        self.dec = nn.Linear(D, Z, bias=False)
        self.dec.weight = self.enc.weight

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            mean = z @ self.dec.weight * self.w
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.enc(x), 0.5).to_event(1))


@right_as_graph
class InAList(Net):
    def build(self):
        self.again = [self.w, self.dec]

    def odd(self, mean, x):
        return mean * self.w + self.again[0].exp() + self.again[1].bias


@right_as_graph
class ByData(Net):
    def odd(self, mean, x):
        return mean * self.w + self.w.data.tanh()


def hidden_scale():
    weight = nn.Parameter(torch.full((D,), 0.3))

    def scale():
        return weight.exp()

    return scale


@right_as_graph
class DeepInAClosure(Net):
    def build(self):
        self.scale = {"of the means": [hidden_scale()]}

    def odd(self, mean, x):
        return mean * self.w * self.scale["of the means"][0]()


LEAF = torch.full((D,), 0.3, dtype=torch.float64, requires_grad=True)


def start_leaf(net):
    with torch.no_grad():
        LEAF.fill_(0.3)


@right_as_graph
class PlainLeaf(Net):
    build = start_leaf

    def odd(self, mean, x):
        return mean * self.w * LEAF


@right_only_eagerly("requires a gradient is no parameter")
class LeafOfTrainingAlone(Net):  # a program is read in eval mode
    build = start_leaf

    def odd(self, mean, x):
        return mean * self.w * (LEAF if self.training else LEAF.detach())


@right_as_graph
class CachedGrid(Net):
    @staticmethod
    @functools.lru_cache
    def grid(n):
        return torch.linspace(0, 1, n, dtype=torch.float64)

    def odd(self, mean, x):
        return mean * self.w + self.grid(D)


@right_as_graph
class WeightNorm(Net):
    def build(self):
        self.dec = weight_norm(nn.Linear(Z, D))


@right_as_graph
class OldWeightNorm(Net):
    def build(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.dec = nn.utils.weight_norm(nn.Linear(Z, D))


@right_as_graph
class SpectralNorm(Net):
    """Each pass writes to the two vectors of the power iteration."""

    def build(self):
        self.dec = spectral_norm(nn.Linear(Z, D))


# -- state ---------------------------------------------------------------------------------------

# Which of these comes first hangs on the number of runs that went before.
STATE = "changes at each run|two graphs|is written to|draws from Python|differ at equal noise"


@right_only_eagerly(STATE)
class CountsAndBranches(Net):
    """Both traces see the same branch; one of nine runs sees the other."""

    def build(self):
        self.calls = 0

    def odd(self, mean, x):
        self.calls += 1
        return mean * self.w if self.calls % 9 else mean


@right_only_eagerly(STATE)
class CountsInAnObject(Net):
    def build(self):
        self.settings = type("Settings", (), {})()
        self.settings.seen = {"calls": 0}

    def odd(self, mean, x):
        self.settings.seen["calls"] += 1
        return mean * self.w * min(1.0, self.settings.seen["calls"] // 10 + 0.5)


TICKS = types.SimpleNamespace(calls=0)


@right_only_eagerly(STATE)
class CountsInAGlobal(Net):
    def build(self):
        TICKS.calls = 0

    def odd(self, mean, x):
        TICKS.calls += 1
        return mean * (self.w if TICKS.calls % 3 else 1.0)


@right_only_eagerly(STATE)
class CountsInItsClass(Net):
    calls = 0

    def build(self):
        type(self).calls = 0

    def odd(self, mean, x):
        type(self).calls += 1
        return mean * self.w if type(self).calls < 4 else mean


class Kind(enum.Enum):
    ODD = 1


@dataclass(frozen=True, slots=True)
class Fixed:
    """What no one can set, and which is therefore not put back."""

    kind: Kind = Kind.ODD


class Slots:
    __slots__ = ("calls",)


@right_only_eagerly(STATE)
class CountsInSlots(Net):
    def build(self):
        self.counter, self.fixed = Slots(), Fixed()
        self.counter.calls = 0

    def odd(self, mean, x):
        self.counter.calls += 1
        right = self.fixed.kind is Kind.ODD and self.counter.calls < 4
        return mean * self.w if right else mean


class Fading(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, upstream):
        Fading.calls += 1
        return upstream if Fading.calls < 3 else 0.5 * upstream


@right_only_eagerly(STATE)
class CountsInAFunction(Net):
    def build(self):
        Fading.calls = 0

    def odd(self, mean, x):
        return Fading.apply(mean * self.w)


def rising():
    yield from itertools.repeat(0.5, 4)
    yield from itertools.repeat(1.0)


@right_only_eagerly("an iterator")
class TakesFromAGenerator(Net):
    """No one can look at where it stands, nor move it back."""

    def build(self):
        self.schedule = rising()

    def odd(self, mean, x):
        return mean * self.w * next(self.schedule)


@right_only_eagerly("random numbers that come after it")
class NoiseInAFork(Net):
    """Each step agrees; but it leaves another random state behind."""

    def odd(self, mean, x):
        with torch.random.fork_rng(devices=[]):
            return mean * self.w + 0.1 * torch.randn(D).double()


@right_only_eagerly(STATE)
class KeepsItsLatents(Net):
    def odd(self, mean, x):
        self.last = mean.detach()
        return mean * self.w


@right_only_eagerly(STATE)
class Appends(Net):
    def build(self):
        self.means = []

    def odd(self, mean, x):
        self.means.append(0.0)
        return mean * self.w


@right_only_eagerly(STATE)
class RareByPython(Net):
    def odd(self, mean, x):
        return mean * self.w if random.random() < 0.9 else mean


@right_only_eagerly(STATE)
class NumpySharedNoise(Net):
    def odd(self, mean, x):
        return mean * self.w + 0.0 * np.random.rand()  # noqa: NPY002


@right_only_eagerly(STATE)
class NumpyOwnNoise(Net):
    def build(self):
        self.rng = np.random.default_rng(0)

    def odd(self, mean, x):
        return mean * self.w if self.rng.random() < 0.95 else mean


@right_only_eagerly("Generator|NotImplementedError|differ|two graphs|changes")
class GeneratorOfItsOwn(Net):
    def build(self):
        self.generator = torch.Generator().manual_seed(0)

    def odd(self, mean, x):
        return mean * self.w + torch.rand(D, generator=self.generator).double()


@right_only_eagerly(STATE)
class WritesToAPlainTensor(Net):
    def build(self):
        self.total = torch.zeros(D, dtype=torch.float64)

    def odd(self, mean, x):
        self.total.add_(0.01)
        return mean * self.w + self.total


@right_as_graph
class WritesToABuffer(Net):
    def build(self):
        self.register_buffer("total", torch.zeros(D))

    def odd(self, mean, x):
        if self.training:
            self.total.mul_(0.9).add_(0.1 * x.mean(0))
        return mean * self.w + self.total


@right_as_graph
class WritesToAWeight(Net):
    def odd(self, mean, x):
        if self.training:
            self.w.data.clamp_(0.6, 1.4)
        return mean * self.w


@right_as_graph
class Normalised(Net):
    def build(self):
        self.dec = nn.Sequential(
            nn.Linear(Z, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, D)
        )


# -- control flow, shapes, autograd --------------------------------------------------------------


@right_only_eagerly("becomes a number of Python")
class Branches(Net):
    def odd(self, mean, x):
        return mean * self.w if x.mean() > 0 else mean


@right_only_eagerly("becomes a number of Python")
class Items(Net):
    def odd(self, mean, x):
        return mean * self.w * self.w.mean().item()


@right_only_eagerly("value|shape")
class Selects(Net):
    def odd(self, mean, x):
        return mean * self.w + x[x > 0].mean()


@right_as_graph
class NoGradPart(Net):
    def odd(self, mean, x):
        with torch.no_grad():
            norm = (self.w**2).mean().sqrt()
        return mean * self.w / norm


@right_as_graph
class HookOnALatent(Net):
    def odd(self, mean, x):
        mean = mean * self.w
        if mean.requires_grad:
            mean.register_hook(lambda grad: 0.1 * grad)
        return mean


@right_as_graph
class HookOnAWeight(Net):
    def build(self):
        self.w.register_hook(lambda grad: 0.1 * grad)


@right_as_graph
class HooksOnModules(Net):
    def build(self):
        self.dec.register_forward_hook(lambda module, inputs, output: 2.0 * output)
        self.dec.register_full_backward_hook(lambda module, grads, up: (0.1 * grads[0],))


@right_as_graph
class GradientInside(Net):
    """The means take a step down an energy, whose own gradient trains the weights."""

    def odd(self, mean, x):
        with torch.enable_grad():
            mean = mean + 0.0 * self.w
            energy = (mean * self.w).cosh().sum()
            (down,) = torch.autograd.grad(energy, mean, create_graph=True)
        return mean - 0.1 * down


@right_as_graph
class Mapped(Net):
    def odd(self, mean, x):
        return torch.func.vmap(lambda row: (row * self.w).sin())(mean.expand(len(x), D))


COUNT = [0]


@right_only_eagerly("COUNT|changes at each run")
class HookThatCounts(Net):
    def build(self):
        def count(module, inputs, output):
            COUNT[0] += 1

        self.dec.register_forward_hook(count)


@right_as_graph
class Checkpointed(Net):
    def odd(self, mean, x):
        return checkpoint(lambda m: (m * self.w).tanh(), mean, use_reentrant=False)


@right_only_eagerly("differ at equal noise|SavedTensor|saved tensor|Checkpoint")
class CheckpointedNoise(Net):
    """What is drawn anew in the backward pass is the noise of the forward pass."""

    def odd(self, mean, x):
        def noisy(m):
            return nn.functional.dropout(m * self.w, 0.5).tanh()

        return checkpoint(noisy, mean, use_reentrant=False)


def words(x):
    return (x.abs() * 3).long().clamp(max=4)


@right_only_eagerly(".")
class SparseRows(Net):
    def build(self):
        self.table = nn.Embedding(5, D, sparse=True)

    def odd(self, mean, x):
        return mean * self.w + self.table(words(x)).mean(1)


@right_as_graph
class DenseRows(Net):
    def build(self):
        self.table = nn.Embedding(5, D)

    def odd(self, mean, x):
        return mean * self.w + self.table(words(x)).mean(1)


class Recurrent(Net):
    """Its kernel wants a workspace that no graph without gradients makes (float32, CPU)."""

    def build(self):
        self.rnn = nn.LSTM(1, D, batch_first=True)

    def odd(self, mean, x):
        return mean * self.w + self.rnn(x[..., None])[0][:, -1]


def built(kind, dtype=torch.float64):
    torch.manual_seed(0)
    return kind().to(dtype)


def data(rows=4 * ROWS, dtype=torch.float64):
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def step(program, function, seed):
    """Return loss, gradients and state of one step from a seed."""
    torch.manual_seed(seed)
    random.seed(seed)
    program.train()
    with program.running(), validation(False):
        for parameter in program.parameters():
            parameter.grad = None
        loss = function()
        loss.backward()
    grads = {n: p.grad for n, p in program.named_parameters()}
    return loss.detach(), grads, {k: v.clone() for k, v in program.state_dict().items()}


def compare(kind, mode="trace", why=None):
    """Compare four steps on four batches, the weights moving between them; return the loss."""
    loss = pv.ELBO().per_datum
    taken = []
    for traced in (False, True):
        program = Program.of(built(kind))  # anew: what is global starts again
        program.read(data(ROWS))
        compiled = CompiledLoss(loss, program, mode=mode, steps=100)

        def function(batch, program=program, run=compiled if traced else None):
            return run(batch, size=50) if run else loss(program.joint(batch, size=50))

        told = pytest.warns(UserWarning, match=why) if traced and why else nullcontext()
        with told:
            for seed, batch in enumerate(data().split(ROWS)):
                taken.append(step(program, functools.partial(function, batch), seed))
                with torch.no_grad():
                    for parameter in program.parameters():
                        if parameter.grad is not None:
                            parameter.add_(parameter.grad.to_dense(), alpha=-0.01)
    half = len(taken) // 2
    exacts, founds = taken[:half], taken[half:]
    for found, exact in zip(founds, exacts, strict=True):
        same_step(found, exact)
    return compiled


def same_step(found, exact):
    torch.testing.assert_close(found[0], exact[0], rtol=1e-9, atol=0)
    for kind in (1, 2):
        assert found[kind].keys() == exact[kind].keys()
        for name, value in exact[kind].items():
            mine = found[kind][name]
            assert (mine is None) == (value is None), name
            if value is not None:
                pair = (mine.to_dense(), value.to_dense())
                torch.testing.assert_close(*pair, rtol=1e-8, atol=1e-12, msg=name)
