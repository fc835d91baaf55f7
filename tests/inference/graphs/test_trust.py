"""Programs made to fool a tracer train as they do eagerly: by a right graph, or eagerly."""

import enum
import functools
import itertools
import os
import random
import types
import warnings
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.special
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import remove_parametrizations
from torch.utils.checkpoint import checkpoint

import pyro_vae as pv
from pyro_vae.inference.graphs import compiled_loss
from pyro_vae.inference.graphs.compiled_loss import CompiledLoss
from pyro_vae.inference.graphs.flat_inputs import normed
from pyro_vae.program.handlers import validation
from pyro_vae.program.program import Program
from pyro_vae.training.settings import adam
from pyro_vae.training.step import Stepper

ROWS, D, Z = 12, 6, 2


class Net(nn.Module):
    """A VAE with one odd part: ``odd`` maps the decoder's means and the batch to other means."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.dec = nn.Linear(D, 2 * Z), nn.Linear(Z, D)
        self.w = nn.Parameter(torch.linspace(0.5, 1.5, D))
        self.build()

    def build(self) -> None:
        """Make the odd part's own tensors."""

    def odd(self, mean, x):
        return mean * self.w

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            mean = self.odd(self.dec(z), x)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


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

STATE = "changes at each run|two graphs|is written to|draws from Python"


@right_only_eagerly(STATE)
class CountsAndBranches(Net):
    """Both traces see the same branch; the third run sees the other."""

    def build(self):
        self.calls = 0

    def odd(self, mean, x):
        self.calls += 1
        return mean * self.w if self.calls % 7 else mean


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


@right_only_eagerly("value|data-dependent|bool")
class Branches(Net):
    def odd(self, mean, x):
        return mean * self.w if x.mean() > 0 else mean


@right_only_eagerly("value")
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


@pytest.mark.parametrize("name", GRAPH)
def test_a_right_graph_has_every_gradient(name):
    compiled = compare(GRAPH[name])
    assert compiled.reason is None and compiled.num_graphs == 1


@pytest.mark.parametrize("name", EAGER)
def test_what_a_graph_cannot_do_runs_eagerly_with_its_reason(name):
    """What was tried has left nothing behind: a count in Python goes on from where it was."""
    kind, why = EAGER[name]
    compiled = compare(kind, why=why)
    assert compiled.reason is not None and compiled.num_graphs == 0


# -- whole runs ------------------------------------------------------------------------------------


def trained(program, mode, transform=None, callbacks=(), epochs=15, **options):
    """Return the run and the weights of a training of four steps per epoch."""
    torch.manual_seed(2)
    random.seed(2)
    rows = data(dtype=next(program.parameters()).dtype)
    setting = {"epochs": epochs, "batch_size": ROWS, "progress": False, "device": "cpu"}
    optimiser = functools.partial(torch.optim.SGD, lr=1e-3)
    setting |= {"optimiser": optimiser, "transform": transform, "callbacks": callbacks}
    run = pv.fit(program, rows, compile=mode, **setting | options)
    return run, {k: v.clone() for k, v in program.state_dict().items()}


def assert_same_run(kind, mode, dtype=torch.float64, **options):
    """Train eagerly and otherwise, in "auto" without a warning; return the other's run."""
    _, exact = trained(built(kind, dtype), False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if mode == "auto" else "ignore")
        run, found = trained(built(kind, dtype), mode, **options)
    for name, value in exact.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9, msg=name)
    return run


@pytest.mark.parametrize("name", ["SpectralNorm", "Everything"])
def test_a_run_by_a_right_graph_ends_as_an_eager_run(name):
    assert assert_same_run(GRAPH[name], "auto").compiled == "graph"


@pytest.mark.parametrize("name", ["CountsInAnObject", "SparseRows"])
def test_a_run_that_falls_back_ends_as_an_eager_run(name):
    assert assert_same_run(EAGER[name][0], "auto").compiled.startswith("eager: ")


def test_a_graph_that_traces_and_does_not_run():
    run = assert_same_run(Recurrent, "auto", torch.float32)
    assert run.compiled.startswith("eager: ")


@pytest.mark.parametrize("hooked", [False, True])
def test_an_error_in_a_later_run_of_a_graph_loses_no_step(monkeypatch, hooked):
    """The graph fails at its fifth step, after it has written to the buffers."""
    made = compiled_loss.direct

    def failing(graph, flat):
        run, calls = made(graph, flat), itertools.count()

        def step(*inputs):
            results = run(*inputs)
            if next(calls) == 6:  # two comparisons come first, and one at the second step
                raise RuntimeError("out of luck")
            return results

        return step

    monkeypatch.setattr(compiled_loss, "direct", failing)

    class Hooked(Normalised):
        def build(self):
            super().build()
            if hooked:
                self.w.register_hook(lambda grad: 0.1 * grad)

    kind = Normalised if not hooked else Hooked
    # Noise that the graph drew is gone: the eager run draws none.
    quiet = type("Quiet", (kind,), {"guide": _without_noise, "build": _without_dropout(kind)})
    run = assert_same_run(quiet, "trace")
    assert "out of luck" in run.compiled


def _without_noise(self, x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(self.enc(x)[:, :Z], event_dim=1))


def _without_dropout(kind):
    def build(self):
        kind.build(self)
        self.dec[2].p = 0.0

    return build


def change(attribute, value, epoch=2):
    """Return a callback that changes what is no tensor."""

    def callback(run):
        if len(run.history["epoch"]) == epoch:
            part = run.program.dec
            setattr(part[1] if attribute == "momentum" else part[2], attribute, value)

    return callback


@pytest.mark.parametrize(("attribute", "value"), [("p", 0.6), ("momentum", 0.5)])
def test_what_a_callback_changes_in_a_part_counts(attribute, value):
    """The momentum of batch norm changes no loss and no gradient: a buffer alone."""
    changes = [change(attribute, value)]
    assert assert_same_run(Normalised, "trace", callbacks=changes, epochs=4).compiled == "graph"


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, weight):
        ctx.weight = weight
        return value.clone()

    @staticmethod
    def backward(ctx, upstream):
        return -ctx.weight * upstream, None


@right_as_graph
class GradientReversal(Net):
    """The weight changes gradients alone."""

    def build(self):
        self.weight = 0.5

    def odd(self, mean, x):
        return Reversed.apply(mean, self.weight) * self.w


def test_what_a_callback_changes_in_gradients_alone_counts():
    def callback(run):
        run.program.weight = 0.1 * (len(run.history["epoch"]) // 2)

    run = assert_same_run(GradientReversal, "trace", callbacks=[callback], epochs=4)
    assert run.compiled == "graph"


def test_a_program_that_changes_after_each_epoch_is_not_traced_for_ever():
    def callback(run):
        run.program.weight *= 0.9

    run = assert_same_run(GradientReversal, "auto", callbacks=[callback])
    assert "changed the program 5 times" in run.compiled


def by_callback(change):
    def callback(run):
        if len(run.history["epoch"]) == 2:
            change(run.program)

    return {"callbacks": [callback]}


def by_transform(change):
    calls = itertools.count()

    def transform(batch):
        if next(calls) == 8:  # the first batch of the third epoch
            change(CHANGING[0])
        return batch

    return {"transform": transform}


CHANGING = [None]


class Bounded(Net):
    """A bound that no row meets but one, which is in one batch of four."""

    def build(self):
        self.bound, CHANGING[0] = 100.0, self

    def odd(self, mean, x):
        return mean * self.w + (x - 2.5).clamp(0.0, self.bound)


class Switched(Net):
    """Its function is replaced by another of equal variables: none."""

    def build(self):
        self.shape = lambda mean: mean

    def odd(self, mean, x):
        return self.shape(mean * self.w) + 0.0 * x


class Anchored(Net):
    def build(self):
        self.anchor = torch.zeros(D, dtype=torch.float64)

    def odd(self, mean, x):
        return mean * self.w + (x > 2.5) * self.anchor


def twin(net):
    net.dec = deepcopy(net.dec)


def same_value(net):
    net.w = nn.Parameter(net.w.detach().clone())


@pytest.mark.parametrize(
    ("kind", "change", "by"),
    [
        (Bounded, lambda net: setattr(net, "bound", 0.1), by_callback),
        (Bounded, lambda net: setattr(net, "bound", 0.1), by_transform),
        (Switched, lambda net: setattr(net, "shape", lambda mean: mean.tanh()), by_callback),
        (Anchored, lambda net: net.anchor.fill_(0.7), by_callback),
        (Net, twin, by_callback),
        (Net, same_value, by_callback),
        (WeightNorm, lambda net: remove_parametrizations(net.dec, "weight"), by_callback),
    ],
    ids=["bound", "bound by transform", "function", "tensor", "part", "parameter", "weight norm"],
)
def test_what_other_code_changes_between_epochs_counts(kind, change, by):
    """Also where the next batch does not show it, or where only an optimiser could tell."""
    seen = {}
    for mode in (False, "trace"):
        _, seen[mode] = trained(built(kind), mode, epochs=4, **by(change))
    assert seen[False].keys() == seen["trace"].keys()
    for name, value in seen[False].items():
        torch.testing.assert_close(seen["trace"][name], value, rtol=1e-7, atol=1e-9, msg=name)


class ByEnvironment(Net):
    def odd(self, mean, x):
        return mean * self.w * float(os.environ["PYRO_VAE_TEST_WEIGHT"])


@pytest.mark.parametrize("mode", ["trace", "auto"])
def test_a_change_that_no_one_sees_is_found_later_with_a_warning(mode, monkeypatch):
    """A transform changes what the program reads from elsewhere."""
    monkeypatch.setenv("PYRO_VAE_TEST_WEIGHT", "1.0")
    monkeypatch.setattr(compiled_loss, "_FIRST_GAP", 20.0)
    steps = itertools.count()

    def transform(batch):
        if next(steps) == 5:
            monkeypatch.setenv("PYRO_VAE_TEST_WEIGHT", "0.7")
        return batch

    with pytest.warns(UserWarning, match=r"differ at equal noise in the loss"):
        run, _ = trained(built(ByEnvironment), mode, transform=transform)
    assert "differ at equal noise" in run.compiled


def test_comparisons_are_few():
    """At the second step, and then at ever greater distances: no hundredth of the time."""
    compiled = CompiledLoss(pv.ELBO().per_datum, Program.of(built(Net)))
    batch = data(ROWS)
    compiled.program.read(batch)
    seen, steps = [], 0
    eager = compiled.step.eager
    compiled.step.eager = lambda *call: (seen.append(steps), eager(*call))[1]
    while steps < 10_000:
        steps += 1
        compiled.prepare(batch)
    assert seen[:4] == [1, 1, 1, 2] and len(seen) == 6  # here, and twice elsewhere
    assert 200 <= seen[4] - 2 <= 600 and seen[5] > 5 * seen[4]


@pytest.mark.parametrize("change", ["decoder", "program"])
def test_a_graph_of_train_mode_serves_no_other(change):
    program = Program.of(built(Normalised))
    program.read(data(ROWS))
    program.train()
    loss, batch = pv.ELBO().per_datum, data(ROWS)
    compiled = CompiledLoss(loss, program)
    with program.running(), validation(False):
        compiled(batch)
        (program.source.dec if change == "decoder" else program).eval()
        before = {k: v.clone() for k, v in program.named_buffers()}
        torch.manual_seed(5)
        found = compiled(batch)
        torch.manual_seed(5)
        exact = loss(program.joint(batch))
    assert torch.equal(found, exact) and compiled.reason is None
    assert all(torch.equal(v, before[k]) for k, v in program.named_buffers())


def test_batches_that_never_have_a_shape_twice_are_not_traced_for_ever(monkeypatch):
    monkeypatch.setattr(compiled_loss, "_MANY_SHAPES", 3)
    compiled = CompiledLoss(pv.ELBO().per_datum, Program.of(built(Net)), mode="auto", steps=1000)
    compiled.program.read(data(ROWS))
    with compiled.program.running(), validation(False):
        for rows in range(2, 9):
            compiled(data(48)[:rows])
    assert "shape" in compiled.reason and compiled.num_graphs == 0


@right_as_graph
class Everything(Net):
    """A tied weight, one in a list, running statistics, dropout, a hook, a written weight."""

    def build(self):
        self.enc = nn.Linear(D, 2 * Z)
        self.dec = nn.Sequential(nn.Linear(Z, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.out = nn.Linear(8, D)
        self.again = [self.out.bias]
        self.w.register_hook(lambda grad: 0.1 * grad)

    def odd(self, mean, x):
        if self.training:
            self.w.data.clamp_(0.6, 1.4)
        mean = self.out(mean) + torch.cat([self.enc.weight[:, :2]] * 2).flatten()[:D]
        return mean * self.w + self.again[0].tanh()


@pytest.mark.slow
def test_the_compiler_gives_the_same_step():
    compiled = compare(Everything, True)
    assert compiled.reason is None and compiled.num_graphs == 1
    (traced,) = compiled._graphs.values()
    assert traced.run is not traced.plain


def test_a_compiled_graph_of_other_numbers_is_not_run(monkeypatch):
    def wrong(graph, inputs):
        return lambda *flat: tuple(1.01 * result for result in normed(graph)(*flat))

    monkeypatch.setattr(compiled_loss, "compile_graph", wrong)
    program = Program.of(built(Net))
    program.read(data(ROWS))
    compiled = CompiledLoss(pv.ELBO().per_datum, program, mode=True)
    with pytest.warns(UserWarning, match=r"the compiler failed.*differ at equal noise in the loss"):
        found = step(program, lambda: compiled(data(ROWS)), 0)
    same_step(found, step(program, lambda: pv.ELBO().per_datum(program.joint(data(ROWS))), 0))
    assert compiled.reason is None


def by_width(x):
    """A model with a parameter per width of its rows, and running statistics of their mean."""
    width = x.shape[1]
    bias = pyro.param(f"bias{width}", lambda: torch.zeros(width, dtype=x.dtype))
    scale = pyro.param("a scale", lambda: torch.ones((), dtype=x.dtype))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(bias + scale * z[:, None], 1.0).to_event(1), obs=x)


def by_width_guide(x):
    slope = pyro.param("slope", lambda: torch.ones((), dtype=x.dtype))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x.mean(1), 1.0))


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_parameter_of_a_later_batch_moves_no_input_of_an_earlier_graph(clip_norm):
    ends = []
    for mode in (False, "trace"):
        program = pv.Program(by_width, by_width_guide)
        program.read(data()[:, :2])
        program.train()
        stepper = Stepper(
            program, pv.ELBO(), adam(0.05), clip_norm=clip_norm, size=48, compile=mode, steps=100
        )
        torch.manual_seed(0)
        with program.running(), validation(False):
            for width in (2, 2, 5, 2, 5):
                stepper.step(data()[:, :width], None)
        assert stepper.compiled == ("graph" if mode else "eager")
        ends.append({name: p.detach().clone() for name, p in program.named_parameters()})
    assert len(ends[0]) == 4 and ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        assert torch.equal(ends[1][name], value), name
        assert value.any()


class Weighted(Net):
    """Its arguments are rows, a number, settings and a tensor of no dimension."""

    def model(self, x, weight, settings, scale=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            mean = weight * self.dec(z) + (self.w if settings["shift"] else 0.0)
            pyro.sample("x", dist.Normal(mean * scale, 1.0).to_event(1), obs=x)

    def guide(self, x, weight, settings, scale=None):
        super().guide(x)


def run_of(batches):
    """Return the weights after some steps, eagerly and traced, and the traced stepper."""
    ends = []
    for mode in (False, "trace"):
        program = Program.of(built(Weighted))
        program.read(batches[0])
        program.train()
        make = {"clip_norm": None, "size": 48, "compile": mode, "steps": 100}
        stepper = Stepper(program, pv.ELBO(), adam(0.01), **make)
        torch.manual_seed(0)
        with program.running(), validation(False):
            for batch in batches:
                stepper.step(batch, None)
        ends.append([p.detach().clone() for p in program.parameters()])
    for mine, exact in zip(*reversed(ends), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-8, atol=1e-12)
    return stepper


SCALE = torch.tensor(0.7, dtype=torch.float64)


def test_arguments_that_are_no_rows_keep_graphs_apart():
    """A flag of a dict and a number of two values: three graphs. A tensor is an input."""
    kinds = [(1.0, True), (0.5, True), (1.0, False)]
    batches = [
        (rows, weight, {"shift": shift}, SCALE * (1 + index))
        for index, rows in enumerate(data().split(ROWS))
        for weight, shift in kinds
    ]
    stepper = run_of(batches)
    assert stepper.compiled == "graph" and stepper._compiled[0].num_graphs == 3


def test_a_number_that_is_another_at_each_batch_runs_eagerly(monkeypatch):
    monkeypatch.setattr(compiled_loss, "_MANY_VALUES", 2)
    rows = data(ROWS)
    with pytest.warns(UserWarning, match="pass a number that changes as a tensor"):
        stepper = run_of([(rows, 1 / (1 + step), {"shift": True}, SCALE) for step in range(5)])
    assert stepper.compiled.startswith("eager")


def test_a_number_passed_as_a_tensor_is_an_input():
    rows = data(ROWS)
    weights = [torch.tensor(1 / (1 + step), dtype=torch.float64) for step in range(8)]
    stepper = run_of([(rows, weight, {"shift": True}, SCALE) for weight in weights])
    assert stepper.compiled == "graph" and stepper._compiled[0].num_graphs == 1
