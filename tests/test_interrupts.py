"""Signals in the midst of what enters and leaves a block, and what they leave in the process."""

import itertools
import signal
import time

import pytest
import torch
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from torch.overrides import TorchFunctionMode

import pyro_vae as pv
from pyro_vae import interrupts
from pyro_vae.inference.graphs.make_graph import make_graph
from pyro_vae.program.parameters.modules import evaluating
from pyro_vae.stacks import stacks_kept
from pyro_vae.storage import lock
from pyro_vae.torch_private import TorchDispatchMode, mode_stacks

X = (torch.rand(8, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
EMPTY = mode_stacks()


@pytest.fixture(autouse=True)
def handlers_of_a_terminal():
    """Hear SIGINT as in a terminal: a process that a shell started in its background does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def build():
    torch.manual_seed(1)
    return pv.models.VAE(4, 2, (3,))


def fit(program, **options):
    settings = {"epochs": 3, "batch_size": 4, "valid": 1 - X[:4], "lr": 0.05, "compile": False}
    return pv.fit(program, X, progress=False, **{**settings, **options})


def sending(monkeypatch, kind, method, at, *numbers):
    """Send signals before the n-th call of a method of handlers does anything."""
    own, calls = getattr(kind, method), iter(range(1, 10**6))

    def called(self, *args):
        if next(calls) == at:
            for number in numbers:
                signal.raise_signal(number)
        return own(self, *args)

    monkeypatch.setattr(kind, method, called)


def at_batch(number, act):
    """Return a transform that does something more at one batch, counted from 0."""
    batches = itertools.count()

    def transform(batch):
        if next(batches) == number:
            act()
        return batch

    return transform


def nothing_is_left():
    assert not _PYRO_STACK and not _DIM_ALLOCATOR._stack
    assert mode_stacks() == EMPTY and torch.is_grad_enabled()
    assert torch.distributions.Distribution._validate_args


@pytest.fixture(scope="module")
def straight():
    return fit(build())


@pytest.mark.parametrize(
    ("method", "times", "number"),
    [
        ("__enter__", 1, signal.SIGINT),
        ("__enter__", 2, signal.SIGTERM),
        ("__exit__", 1, signal.SIGTERM),
        ("__exit__", 2, signal.SIGINT),
    ],
)
def test_a_signal_while_a_plate_is_left_leaves_nothing_behind(
    method, times, number, straight, tmp_path, monkeypatch
):
    """A plate stayed allocated: every later call in the process was refused as a duplicate.

    A second signal is answered where the run stands.
    """
    monkeypatch.setattr(interrupts, "_BURST", 0.0)
    with monkeypatch.context() as patch:
        sending(patch, IndepMessenger, method, 60, *[number] * times)
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as told:
            fit(build(), out=tmp_path, checkpoint_every=1)
    del told  # its frames hold generators
    nothing_is_left()
    assert not (tmp_path / lock.NAME).exists()
    program = build()
    run = fit(program, out=tmp_path, resume=True)
    assert run.history["loss"].tolist() == straight.history["loss"].tolist()
    for name, value in straight.program.state_dict().items():
        assert torch.equal(value, program.state_dict()[name])


def test_what_a_signal_leads_to_is_told_as_its_end(tmp_path, capsys):
    """The workers of a loader end by the same signal, and torch's handler raises for each."""

    def ends():
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    with pytest.raises(SystemExit) as told:
        fit(build(), out=tmp_path, transform=at_batch(5, ends), checkpoint_every=1)
    assert told.value.code == 128 + signal.SIGTERM
    assert isinstance(told.value.__cause__, RuntimeError)
    assert capsys.readouterr().err.endswith("go on by pv.fit(..., resume=True)\n")


def test_a_step_that_does_not_come_is_not_waited_for(tmp_path, monkeypatch):
    """A loader that hangs, as where a server is away: the checkpoint is there in time."""
    monkeypatch.setattr(interrupts, "_GRACE", 0.2)
    hangs = at_batch(5, lambda: (signal.raise_signal(signal.SIGTERM), time.sleep(60)))
    start = time.monotonic()
    with pytest.raises(SystemExit):
        fit(build(), out=tmp_path, transform=hangs, checkpoint_every=1)
    assert time.monotonic() - start < 20
    assert fit(build(), out=tmp_path, transform=hangs, resume=True).steps == 6
    time.sleep(0.3)  # a signal that is sent too late would end this process


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("method", ["__enter__", "__exit__"])
def test_a_verb_that_is_interrupted_answers_the_next_time(method, at, monkeypatch):
    program = build()
    fit(program)

    def verbs():
        torch.manual_seed(2)
        return pv.elbo(program, X), pv.log_likelihood(program, X, num_particles=3).log_prob

    before = verbs()
    with monkeypatch.context() as patch:
        sending(patch, IndepMessenger, method, at, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            verbs()
    nothing_is_left()
    assert all(torch.equal(one, other) for one, other in zip(before, verbs(), strict=True))


@pytest.mark.parametrize("at", [2, 5, 6])
def test_ctrl_c_among_the_parts_of_a_network_leaves_each_in_its_mode(at, monkeypatch):
    """A dropout that stays in eval mode is one that its user has turned off, to the next fit."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5), torch.nn.Tanh())
    own, calls = torch.nn.Module.__setattr__, iter(range(1, 99))

    def interrupted(self, name, value):
        if name == "training" and next(calls) == at:
            raise KeyboardInterrupt
        own(self, name, value)

    monkeypatch.setattr(torch.nn.Module, "__setattr__", interrupted)
    with pytest.raises(KeyboardInterrupt), evaluating(net):
        pass
    assert all(part.training for part in net.modules())


def test_a_run_within_a_callback_that_fails_leaves_signals_to_the_outer_one(monkeypatch):
    """The outer one no longer woke a loader that hangs."""
    monkeypatch.setattr(interrupts, "_GRACE", 0.2)
    monkeypatch.setattr(interrupts, "_BURST", 0.1)

    def broken():
        raise RuntimeError

    inner = at_batch(5, broken)

    def fails(run):
        with pytest.raises(RuntimeError):
            fit(build(), transform=inner)

    hangs = at_batch(3, lambda: (signal.raise_signal(signal.SIGINT), time.sleep(15)))
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fit(build(), transform=hangs, callbacks=[fails])
    assert time.monotonic() - start < 10


def test_a_tracer_is_not_broken_off(monkeypatch):
    """It holds state in C++: what is broken off there refuses gradients later, or aborts."""
    reached = []

    def function(x):
        signal.raise_signal(signal.SIGINT)
        reached.append(True)
        return x.exp()

    with pytest.raises(KeyboardInterrupt):
        make_graph(function, torch.ones(2))
    assert reached
    monkeypatch.setattr(interrupts, "_BURST", 0.0)
    with pytest.raises(KeyboardInterrupt):
        hears_twice(reached)
    assert reached == [True]


def hears_twice(reached):
    with interrupts.unbroken():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        reached.append(False)


def test_the_end_of_a_tracer_is_waited_for_within_a_run(monkeypatch):
    """A run that comes to no step is ended where it stands, and not there."""
    monkeypatch.setattr(interrupts, "_GRACE", 0.1)
    monkeypatch.setattr(interrupts, "_BURST", 0.0)
    reached = []

    def traces():
        with interrupts.unbroken(), interrupts.unbroken():
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.4)
            reached.append(True)
        time.sleep(15)

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fit(build(), transform=at_batch(5, traces))
    assert reached and time.monotonic() - start < 10


class Mode(TorchFunctionMode):
    """Does nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def enters():
    Mode().__enter__()
    TorchDispatchMode().__enter__()
    torch.no_grad().__enter__()
    torch.autocast("cpu", torch.bfloat16).__enter__()
    torch._C._functorch._vmap_increment_nesting(2, "error")
    torch.distributions.Distribution.set_default_validate_args(False)


def test_modes_and_flags_are_put_back():
    kept = Mode()
    with kept:
        for moves in (enters, lambda: kept.__exit__(None, None, None)):
            with pytest.raises(KeyboardInterrupt):
                interrupted(moves)
            assert mode_stacks()[0] == [kept] and not mode_stacks()[1]
    nothing_is_left()
    assert not torch.is_autocast_enabled("cpu")
    torch.autocast_increment_nesting()
    assert torch.autocast_decrement_nesting() == 0  # else weights that were cast are kept for good


def test_an_error_that_was_handled_before_keeps_its_frames():
    """A debugger saw none of the variables of an earlier error behind an interrupt."""
    try:
        fails_with(3)
    except ValueError as error:
        traceback = error.__traceback__
        with pytest.raises(KeyboardInterrupt):
            interrupted(lambda: None)
    assert traceback.tb_next.tb_frame.f_locals == {"rows": 3}


def fails_with(rows):
    raise ValueError


def interrupted(moves):
    with stacks_kept():
        moves()
        raise KeyboardInterrupt
