"""Every form of an optimizer steps as it does without this library; learning rates stay set."""

from functools import partial

import numpy as np
import programs
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError

N, D = 20, 3
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0)) + 2.0


class Net(nn.Module):
    """An autoencoder whose code is a point: without noise, stock SVI is an exact oracle."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.enc, self.dec = nn.Linear(D, 2), nn.Linear(2, D)

    def model(self, x):
        pyro.module("decoder", self.dec)
        shift = pyro.param("shift", torch.zeros(D))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.dec(z) + shift, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.enc)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(self.enc(x), event_dim=1))


def stock(optim, steps, net=None):
    """Train by ``pyro.infer.SVI`` on the mean over the data; return the weights."""
    net = net or Net()
    with pyro.get_param_store().scope():
        sides = [poutine.scale(side, 1 / N) for side in (net.model, net.guide)]
        svi = pyro.infer.SVI(*sides, optim, pyro.infer.Trace_ELBO())
        for _ in range(steps):
            svi.step(X)
        return [*(p.detach().clone() for p in net.parameters()), pyro.param("shift").detach()]


def ours(optimizer, steps, net=None, **options):
    net = net or Net()
    made = optimizer(net) if isinstance(optimizer, Over) else optimizer
    pv.fit(net, X, epochs=steps, batch_size=N, optimizer=made, progress=False, **options)
    program = pv.Program.of(net)
    shift = dict(program.named_parameters())["values.shift"]
    return [*(p.detach().clone() for p in net.parameters()), shift.detach().clone()]


class Over:
    """Make an optimizer once the program's parameters are there."""

    def __init__(self, make):
        self.make = make

    def __call__(self, net):
        program = pv.Program.of(net)
        program.read(X)
        return self.make(program.parameters())


def same(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


PYRO = {
    "adam": lambda: pyro.optim.Adam({"lr": 0.02, "betas": (0.8, 0.99)}),
    "clipped adam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "clip_norm": 0.02, "lrd": 0.9}),
    "rates by name": lambda: pyro.optim.SGD(
        lambda name: {"lr": 0.1 if name.startswith("decoder.") else 0.02, "momentum": 0.5}
    ),
    "rates by module": lambda: pyro.optim.SGD(
        lambda module, name: {"lr": 0.1 if (module, name) == ("encoder", "bias") else 0.02}
    ),
    "clip by norm": lambda: pyro.optim.SGD({"lr": 0.1}, {"clip_norm": 0.05}),
    "clip by value": lambda: pyro.optim.SGD(
        {"lr": 0.1}, lambda module, name: {"clip_value": 0.01} if name == "weight" else {}
    ),
}


@pytest.mark.parametrize("compile", [False, "trace"])
@pytest.mark.parametrize("name", PYRO)
def test_pyro_optimizers_step_as_under_svi(name, compile):
    expected = stock(PYRO[name](), 8)
    assert any(not torch.equal(a, b) for a, b in zip(expected, stock(PYRO[name](), 7), strict=True))
    same(ours(PYRO[name](), 8, compile=compile), expected)


def test_a_pyro_optimizer_goes_on_from_its_moments():
    optim, net = pyro.optim.Adam({"lr": 0.05}), Net()
    expected = stock(pyro.optim.Adam({"lr": 0.05}), 12)[:4]  # "shift" begins anew in our store
    stock(optim, 6, net)
    fresh = ours(pyro.optim.Adam({"lr": 0.05}), 6, _copy(net))[:4]
    gone_on = ours(optim, 6, net)[:4]
    apart = [
        sum((a - b).abs().sum() for a, b in zip(w, expected, strict=True)) for w in (gone_on, fresh)
    ]
    assert apart[0] < 0.5 * apart[1]


def _copy(net):
    other = Net()
    other.load_state_dict(net.state_dict())
    return other


TORCH = {
    "class": (torch.optim.SGD, {"lr": 0.1}),
    "function of Pyro's": (pyro.optim.SGD, {"lr": 0.1}),
    "partial": (partial(torch.optim.SGD, lr=0.1), {}),
    "lambda": (lambda p: torch.optim.SGD(p, lr=0.1), {}),
    "ready": (Over(lambda p: torch.optim.SGD(p, lr=0.1)), {}),
    "two groups": (
        Over(lambda p: torch.optim.SGD([{"params": [q], "lr": 0.1} for q in p], lr=9.0)),
        {},
    ),
}


@pytest.mark.parametrize("form", TORCH)
def test_torch_optimizers_step_as_by_hand(form):
    optimizer, options = TORCH[form]
    same(ours(optimizer, 5, **options), stock(pyro.optim.SGD({"lr": 0.1}), 5))


def test_a_ready_optimizer_over_some_parameters_moves_these_alone():
    net = Net()
    before = [p.detach().clone() for p in net.dec.parameters()]
    with pytest.warns(UserWarning, match=r"optimizer: 3 parameters .* in no group, and stay"):
        ours(torch.optim.SGD(net.enc.parameters(), lr=0.1), 3, net)
    assert all(torch.equal(a, b) for a, b in zip(before, net.dec.parameters(), strict=True))
    assert not torch.equal(net.enc.bias, Net().enc.bias)


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.SGD, lr=0.1),
        Over(lambda p: torch.optim.SGD(p, lr=0.1)),
        pyro.optim.SGD({"lr": 0.1}),
    ],
    ids=["partial", "ready", "pyro"],
)
def test_a_rate_beside_an_optimizer_that_has_its_own_is_refused(optimizer):
    with pytest.raises(ConfigError, match=r"lr: got 7\.0, and the .* \(\w+\) has a .* own; leave"):
        ours(optimizer, 1, lr=7.0)


class OwnRate(torch.optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=0.1)


class NoRate(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})


def test_a_class_that_takes_no_rate_gets_none():
    expected = ours(partial(torch.optim.SGD, lr=0.1), 2)
    assert all(map(torch.equal, ours(OwnRate, 2), expected))
    with pytest.raises(
        ConfigError, match=r"lr: got 7\.0, and optimizer OwnRate takes no lr; leave"
    ):
        ours(OwnRate, 1, lr=7.0)
    with pytest.raises(ConfigError, match="NoRate, whose groups hold no 'lr'"):
        ours(NoRate, 1)


class RateTwice(torch.optim.SGD):
    def __init__(self, params, **others):
        super().__init__(params, lr=0.1, **others)


class RateByPlace(torch.optim.SGD):
    def __init__(self, params, lr, /):
        super().__init__(params, lr=lr)


class RateByAnotherName(torch.optim.SGD):
    def __init__(self, params, learning_rate):
        super().__init__(params, lr=learning_rate)


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (RateTwice, r"parameters, lr=0\.001"),
        (RateByPlace, r"parameters, lr=0\.001"),
        (RateByAnotherName, "parameters"),
    ],
)
def test_a_class_that_takes_its_rate_in_another_way_is_told_of_a_factory(kind, call):
    told = rf"{kind.__name__}\({call}\) fails: .*; give a factory, as optimizer=lambda"
    with pytest.raises(ConfigError, match=told):
        ours(kind, 1)


@pytest.mark.parametrize(
    ("optimizer", "objective", "match"),
    [
        (pyro.optim.ExponentialLR, None, "a schedule of the rate is lr_schedule="),
        (torch.optim.lr_scheduler.StepLR, None, "a schedule of the rate is lr_schedule="),
        (torch.optim.SGD(nn.Linear(4, 5).parameters()), None, r"2 of .* of shape \(5, 4\)"),
        (
            pyro.optim.ExponentialLR(
                {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "gamma": 0.9}
            ),
            None,
            "PyroLRScheduler.*lr_schedule",
        ),
        (torch.optim.LBFGS, None, "line search"),
        (lambda p: None, None, "the factory made NoneType"),
        ("adam", None, "got 'adam', expected a factory"),
        (
            Over(lambda p: torch.optim.Adam(p)),
            pv.Lagging(programs.binary(20)),
            "several updates takes a factory",
        ),
    ],
    ids=[
        "pyro's schedule",
        "torch's schedule",
        "strange",
        "scheduler",
        "lbfgs",
        "none",
        "text",
        "two updates",
    ],
)
def test_what_is_refused_says_why(optimizer, objective, match):
    net = programs.CASES["vae"].build()
    if isinstance(optimizer, Over):
        optimizer = optimizer.make(net.parameters())
    with pytest.raises(ConfigError, match=match):
        pv.fit(net, programs.binary(20), optimizer=optimizer, objective=objective, progress=False)


class Scheduling:
    """Make a callback for an optimizer before its first step."""

    def __init__(self, make):
        self.make = make

    def __call__(self, optimizer):
        return self.make(optimizer)


def rates_and_weights(compile, callback, schedule, epochs=4, out=None, resume=False):
    torch.manual_seed(0)
    vae = pv.models.VAE(6, 2, hidden=(8,))
    optimizer = torch.optim.SGD(vae.parameters(), lr=0.1)
    act = callback(optimizer) if isinstance(callback, Scheduling) else partial(callback, optimizer)

    def look(run):
        act(len(run.history["epoch"]))

    options = {"out": out, "resume": resume} if out else {}
    run = pv.fit(
        vae,
        programs.binary(64),
        epochs=epochs,
        batch_size=16,
        optimizer=optimizer,
        lr_schedule=schedule,
        callbacks=[look],
        compile=compile,
        progress=False,
        **options,
    )
    return run.history["lr"], [p.detach().clone() for p in vae.parameters()]


def halve(optimizer, epoch):
    for group in optimizer.param_groups:
        group["lr"] *= 0.5


def by_steps(t):
    """What halving after each of four epochs of four steps comes to."""
    return 0.5 ** (round(t * 15) // 4)


@pytest.mark.parametrize("compile", [False, "trace"])
def test_a_rate_set_by_a_callback_stays(compile):
    rates, weights = rates_and_weights(compile, halve, 1.0)
    assert np.allclose(rates, [0.1, 0.05, 0.025, 0.0125], rtol=1e-12)
    _, expected = rates_and_weights(False, lambda *_: None, by_steps)
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))


def test_a_schedule_multiplies_the_rate_that_a_callback_set():
    def schedule(t):
        return 1.0 - 0.5 * t

    rates, weights = rates_and_weights(False, halve, schedule)
    ends = [(4 * epoch + 3) / 15 for epoch in range(4)]
    assert np.allclose(rates, [0.1 * schedule(t) * by_steps(t) for t in ends], rtol=1e-12)
    _, expected = rates_and_weights(False, lambda *_: None, lambda t: schedule(t) * by_steps(t))
    for a, b in zip(weights, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_rate_set_while_the_schedule_is_zero_is_the_rate():
    def set_rate(optimizer, epoch):
        if epoch == 2:
            optimizer.param_groups[0]["lr"] = 0.4

    rates, _ = rates_and_weights(False, set_rate, lambda t: 0.0 if t < 0.5 else 0.5)
    assert np.allclose(rates, [0.0, 0.0, 0.2, 0.2])


@pytest.mark.parametrize("kind", ["StepLR", "CosineAnnealingLR", "LambdaLR"])
def test_a_scheduler_of_torch_sets_the_rate(kind):
    made = {
        "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.1),
        "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4),
        "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 1 / (1 + e)),
    }[kind]

    def stepping(optimizer):
        scheduler = made(optimizer)
        return lambda epoch: scheduler.step()

    rates, _ = rates_and_weights(False, Scheduling(stepping), 1.0)
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, expected = made(plain), []
    plain.step()
    for _ in range(4):
        expected.append(plain.param_groups[0]["lr"])
        scheduler.step()
    assert np.allclose(rates, expected, rtol=1e-12)


def test_a_resumed_run_keeps_the_rate_that_was_set(tmp_path):
    whole = rates_and_weights(False, halve, 1.0)
    rates_and_weights(False, halve, 1.0, epochs=2, out=tmp_path)
    resumed = rates_and_weights(False, halve, 1.0, out=tmp_path, resume=True)
    assert np.array_equal(whole[0], resumed[0])
    assert all(torch.equal(a, b) for a, b in zip(whole[1], resumed[1], strict=True))
