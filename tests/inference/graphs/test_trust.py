"""Programs made to fool a tracer train as they do eagerly: by a right graph, or eagerly."""

import functools
import itertools
import os
import random
import warnings
from copy import deepcopy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from graph_programs import (
    EAGER,
    GRAPH,
    ROWS,
    D,
    Net,
    Normalised,
    Recurrent,
    WeightNorm,
    Z,
    built,
    compare,
    data,
    right_as_graph,
    same_step,
    step,
)
from releases import compiles_all
from torch import nn
from torch.nn.utils.parametrize import remove_parametrizations

import pyro_vae as pv
from pyro_vae.inference.graphs import compiled_loss
from pyro_vae.inference.graphs.comparison import constants
from pyro_vae.inference.graphs.compiled_loss import CompiledLoss
from pyro_vae.inference.graphs.flat_inputs import normed
from pyro_vae.program.handlers import validation
from pyro_vae.program.program import Program
from pyro_vae.scan import scan
from pyro_vae.torch_private import compiler


@pytest.mark.parametrize("name", GRAPH)
def test_a_right_graph_has_every_gradient(name):
    compiled = compare(GRAPH[name])
    assert compiled.reason is None and compiled.num_graphs == 1


@pytest.mark.filterwarnings("ignore:the program draws on a generator")
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
    optimizer = functools.partial(torch.optim.SGD, lr=1e-3)
    setting |= {"optimizer": optimizer, "transform": transform, "callbacks": callbacks}
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


class Table(Net):
    """Counts its runs in each entry of a large table beside its tensors."""

    def __init__(self, of):
        super().__init__()
        self.table = of(100_000)

    def model(self, x):
        self.table += 1e-3
        super().model(x + torch.as_tensor(self.table).mean().to(x.dtype))


@pytest.mark.parametrize("of", [np.zeros, torch.zeros])
def test_a_large_table_is_put_back_after_each_look(of):
    assert assert_same_run(lambda: Table(of), "auto").compiled.startswith("eager: ")


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


def by_transform(change, step=8):
    """The eighth batch is the first of the third epoch; the tenth stands in its midst."""
    calls = itertools.count()

    def transform(batch):
        if next(calls) == step:
            change(CHANGING[0])
        return batch

    return {"transform": transform}


def by_schedule(change, setting):
    """A function of the progress that does more than say a number, in mid-epoch."""

    def schedule(progress):
        if progress > 0.7:
            change(CHANGING[0])
        return 1.0

    return {setting: schedule}


CHANGING = [None]


def by_hook(change):
    """A hook on steps of the optimizer, in mid-epoch."""
    calls = itertools.count()

    def make(parameters):
        optimizer = torch.optim.SGD(parameters, lr=1e-3)
        optimizer.register_step_post_hook(
            lambda *_: change(CHANGING[0]) if next(calls) == 9 else None
        )
        return optimizer

    return {"optimizer": make}


def by_step(change):
    """An optimizer whose steps do more than move weights."""
    calls = itertools.count()

    class Steps(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            if next(calls) == 9:
                change(CHANGING[0])

    return {"optimizer": functools.partial(Steps, lr=1e-3)}


def by_gradient(change):
    """A hook that sees the gradient of a weight."""
    calls = itertools.count()

    def callback(run):
        if len(run.history["epoch"]) == 1:
            hook = lambda _: change(CHANGING[0]) if next(calls) == 5 else None  # noqa: E731
            CHANGING[0].w.register_hook(hook)

    return {"callbacks": [callback]}


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
        (
            Bounded,
            lambda net: setattr(net, "bound", -1.0),
            functools.partial(by_transform, step=10),
        ),
        *(
            (Bounded, lambda net: setattr(net, "bound", -1.0), by)
            for by in (
                functools.partial(by_schedule, setting="lr_schedule"),
                functools.partial(by_schedule, setting="beta"),
            )
        ),
        (Bounded, lambda net: setattr(net, "bound", -1.0), by_hook),
        (Bounded, lambda net: setattr(net, "bound", -1.0), by_gradient),
        (Bounded, lambda net: net.dec.requires_grad_(False), by_step),
        (Switched, lambda net: setattr(net, "shape", lambda mean: mean.tanh()), by_callback),
        (Anchored, lambda net: net.anchor.fill_(0.7), by_callback),
        (Net, twin, by_callback),
        (Net, same_value, by_callback),
        (WeightNorm, lambda net: remove_parametrizations(net.dec, "weight"), by_callback),
    ],
    ids=[
        "bound",
        "bound by transform",
        "bound in mid-epoch",
        "bound by lr_schedule",
        "bound by beta",
        "bound by a hook of the optimizer",
        "bound by a hook of a weight",
        "frozen by an optimizer",
        "function",
        "tensor",
        "part",
        "parameter",
        "weight norm",
    ],
)
def test_what_other_code_changes_between_steps_counts(kind, change, by):
    """Also where the next batch does not show it, or where only an optimizer could tell."""
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
    """Weights tied, in a list, written to; running statistics, dropout, a hook, a loop."""

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
        path = scan(
            lambda c, u: (c * u).tanh() + torch.rand(D, dtype=c.dtype), self.w, [self.w[:3]]
        )
        return mean * self.w + self.again[0].tanh() + path[-1]


@compiles_all
@pytest.mark.slow
def test_the_compiler_gives_the_same_step_and_no_wrapper_stays_around_it(monkeypatch):
    compiled = compare(Everything, True)
    assert compiled.reason is None and compiled.num_graphs == 1
    (traced,) = compiled._graphs.values()
    assert traced.run is not traced.plain
    assert constants(traced.graph)  # which PyTorch's wrappers give, where they are no inputs
    wrapped = compiler("output_code").CompiledFxGraph
    monkeypatch.setattr(wrapped, "__call__", lambda *_: pytest.fail("it stays"))
    compiled.prepare(data(ROWS)).gradients()


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


class IllConditioned(Net):
    """A last digit of a weight moves the loss and its gradients in their second one."""

    def odd(self, mean, x):
        return mean * (1 + 0.3 * torch.cos(1e5 * self.w))


@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_a_compiler_may_round_where_the_program_itself_is_not_sure(wrong, monkeypatch):
    """As in the gradients of a collapsed layer, whose terms cancel."""

    def rounded_otherwise(graph, inputs):
        def run(*flat):
            moved = [x * (1 + 6e-8) if x.is_floating_point() and x.dim() else x for x in flat]
            loss, *rest = normed(graph)(*moved)
            return loss + wrong, *rest

        return run

    monkeypatch.setattr(compiled_loss, "compile_graph", rounded_otherwise)
    program = Program.of(built(IllConditioned).float())
    batch = data(ROWS).float()
    program.read(batch)
    compiled = CompiledLoss(pv.ELBO().per_datum, program, mode=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        compiled(batch)
    assert any("the compiler failed" in str(each.message) for each in told) == bool(wrong)
    assert compiled.reason is None


RARE = {  # what is off, every how many calls, and whether the code may run all the same
    "a gradient": (lambda loss, grad: (loss, 1.05 * grad), 100, True),
    "half of the time": (lambda loss, grad: (loss, 1.05 * grad), 2, False),
    "always": (lambda loss, grad: (loss, 1.05 * grad), 1, False),
    "a gradient by much": (lambda loss, grad: (loss, -grad), 100, False),
    "a gradient that is not finite": (lambda loss, grad: (loss, grad / 0), 100, False),
    "the loss": (lambda loss, grad: (1.05 * loss, grad), 100, False),
}


@pytest.mark.parametrize("what", RARE)
def test_compiled_code_may_part_at_a_rare_noise_in_gradients_alone(what, monkeypatch):
    """Where an activation is next to a kink: seldom, by little, and in nothing else."""
    off, period, kept = RARE[what]

    def parted(graph, inputs):
        def run(*flat):
            loss, norm, first, *rest = normed(graph)(*flat)
            if next(calls) % period == 0:
                loss, first = off(loss, first)
            return loss, norm, first, *rest

        calls = itertools.count()
        return run

    monkeypatch.setattr(compiled_loss, "compile_graph", parted)
    program = Program.of(built(Net))
    program.read(data(ROWS))
    compiled = CompiledLoss(pv.ELBO().per_datum, program, mode=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        compiled(data(ROWS))
    (traced,) = compiled._graphs.values()
    assert (traced.run is not traced.plain) == kept
    assert any("the compiler failed" in str(each.message) for each in told) != kept


class Drifting(Net):
    """From some step on another number at each run, kept where nobody looks."""

    def odd(self, mean, x):
        weight = float(os.environ.get("PYRO_VAE_TEST_WEIGHT", "1.0"))
        if weight > 1:
            weight = 1 + 1.1 * (weight - 1)
            os.environ["PYRO_VAE_TEST_WEIGHT"] = str(weight)
        return mean * self.w * weight


def test_what_drifts_is_not_taken_for_rounding(monkeypatch):
    """The program gives other numbers each time: what it gives once more is no measure."""
    monkeypatch.setattr(compiled_loss, "_FIRST_GAP", 20.0)
    monkeypatch.delenv("PYRO_VAE_TEST_WEIGHT", raising=False)
    steps = itertools.count()

    def transform(batch):
        if next(steps) == 5:
            monkeypatch.setenv("PYRO_VAE_TEST_WEIGHT", "1.1")
        return batch

    with pytest.warns(UserWarning, match="differ at equal noise"):
        run, _ = trained(built(Drifting), "trace", transform=transform)
    assert run.compiled.startswith("eager")


class WithoutType(Net):
    """Its noise is of PyTorch's default type."""

    def odd(self, mean, x):
        return mean * self.w * torch.rand(len(x), 1)


def test_a_graph_serves_one_default_type():
    """A noise of another type is other noise."""
    program, batch = Program.of(built(WithoutType)), data(ROWS)
    program.read(batch)
    compiled = CompiledLoss(pv.ELBO().per_datum, program)
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            found = step(program, lambda: compiled(batch), 0)
            same_step(found, step(program, lambda: pv.ELBO().per_datum(program.joint(batch)), 0))
    finally:
        torch.set_default_dtype(before)
    assert compiled.num_graphs == 2
