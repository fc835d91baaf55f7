"""The check of a step that must not stall a GPU: no weight and no buffer keeps a bad number."""

import programs
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import TrainingDiverged
from pyro_vae.program.handlers import validation
from pyro_vae.training.adam import Adam
from pyro_vae.training.settings import adam
from pyro_vae.training.step import CHECK_EVERY, Stepper

LR = 2.0**-7  # a recording has its rate in single precision: exact in it


def build(compile=False, deferred=True, clip_norm=3.0, device="cpu"):
    torch.manual_seed(0)
    program, data = programs.made("regularised", device, rows=12)
    program = pv.Program.of(program)
    data = program.adapt(data)
    program.read(data)
    program.train()
    stepper = Stepper(program, pv.ELBO(), adam(LR), clip_norm=clip_norm, size=12, compile=compile)
    stepper._deferred = deferred  # as on CUDA, where Adam is fused
    return program, stepper, data


def state(program, stepper):
    moments = [v for o in stepper.optimizers for s in o.state.values() for v in s.values()]
    return [v.clone() for v in [*program.state_dict().values(), *moments]]


def train(program, stepper, batches):
    torch.manual_seed(1)
    with program.running(), validation(False):
        return [stepper.step(batch, None)[0] for batch in batches]


WAYS = [(False, 3.0), ("trace", 3.0), ("trace", None)]  # the last gives Adam its gradients direct


@pytest.mark.parametrize(("compile", "clip_norm"), WAYS)
def test_deferred_and_immediate_checks_train_alike(compile, clip_norm, device):
    ends = []
    for deferred in (True, False):
        program, stepper, data = build(compile, deferred, clip_norm, device)
        train(program, stepper, [data] * 5)
        stepper.check(data)
        ends.append(state(program, stepper))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize(("compile", "clip_norm"), WAYS)
def test_after_a_bad_step_nothing_moves_until_the_flag_is_read(compile, clip_norm, device):
    program, stepper, data = build(compile, clip_norm=clip_norm, device=device)
    train(program, stepper, [data] * 3)
    before = state(program, stepper)
    losses = train(program, stepper, [data * torch.nan, data, data])
    assert not torch.isfinite(losses[0])
    assert all(torch.equal(a, b) for a, b in zip(before, state(program, stepper), strict=True))
    with pytest.raises(TrainingDiverged, match=r"not finite in the last \d+ steps.*Lower lr"):
        stepper.check(data)


def test_the_flag_is_read_by_itself_after_a_while(device):
    program, stepper, data = build("trace", device=device)
    with pytest.raises(TrainingDiverged):
        train(program, stepper, [data * torch.nan, *[data] * CHECK_EVERY])


def test_processes_agree_on_loss_and_gradient():
    program, stepper, data = build("trace", deferred=False)
    seen = []

    def reduce(tensors):
        seen.append([t.shape for t in tensors])
        for tensor in tensors:
            tensor.zero_()
        return True

    stepper.reduce = reduce
    before = [p.detach().clone() for p in program.parameters()]
    (loss,) = train(program, stepper, [data])
    trained = [p.shape for p in program.parameters() if p.requires_grad]
    reached = torch.Size([len(trained)])
    assert seen == [[torch.Size([]), reached, *trained]] and loss == 0
    after = list(program.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # a zero gradient


class Pair(nn.Module):
    """Three updates; the last two break from a given call on, the first is not due after it."""

    def __init__(self, breaks):
        super().__init__()
        self.left = breaks // 2 + 1
        self.critic = nn.Linear(3, 1).double()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))
        self.breaks = breaks

    def whole(self, joint):
        self.calls += 1
        return self.critic.weight.square().sum() + self.critic.bias.square().sum()

    def broken(self, joint):
        bad = torch.where(self.calls >= self.breaks, torch.nan, 1.0)
        return pv.ELBO().per_datum(joint) * bad

    def is_due(self):
        self.left -= 1
        return self.left >= 0

    def updates(self, program):
        own, rest = tuple(self.critic.parameters()), tuple(program.parameters())
        return [
            pv.Update(self.whole, own, name="critic", repeats=2, due=self.is_due),
            pv.Update(self.broken, rest[:2], name="first"),
            pv.Update(self.broken, rest[2:]),
        ]


@pytest.mark.parametrize("kind", [None, torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("breaks", [1, 5])
def test_a_step_of_several_updates_moves_all_or_nothing(kind, breaks, device):
    """Looked at before each update, or a flag on the device; at the first step, or at the third."""
    for deferred in (False, True) if kind is None else (False,):
        program, _, data = build(device=device)
        torch.manual_seed(0)
        objective, rate = Pair(breaks).to(device), {"lr": 0.1, "momentum": 0.9}
        rate = {"lr": 0.1} if kind is torch.optim.Adam else rate
        factory = adam(0.1) if kind is None else lambda p, rate=rate: kind(p, **rate)
        stepper = Stepper(program, objective, factory, clip_norm=None, size=12)
        stepper._deferred = deferred
        train(program, stepper, [data] * (breaks // 2))
        before = [*state(program, stepper), *map(torch.clone, objective.state_dict().values())]
        if deferred:
            train(program, stepper, [data] * 3)
        with pytest.raises(TrainingDiverged):
            stepper.check(data) if deferred else train(program, stepper, [data])
        after = [*state(program, stepper), *objective.state_dict().values()]
        if deferred and breaks == 1:  # a state that has been made stands at zero
            made = after[len(list(program.state_dict())) : -3]
            assert all(not value.any() for value in made)
            after = [*after[: len(list(program.state_dict()))], *after[-3:]]
        assert len(before) == len(after)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_optimizer_that_cannot_skip_is_checked_at_once():
    program, _, data = build()
    stepper = Stepper(program, pv.ELBO(), torch.optim.SGD, clip_norm=None, size=12)
    assert not stepper._deferred
    with pytest.raises(TrainingDiverged, match="loss is nan"):
        train(program, stepper, [data * torch.nan])
    assert all(torch.isfinite(p).all() for p in program.parameters())


def test_a_network_that_nothing_uses_gets_no_gradient():
    program, _, data = build()
    spare = nn.Parameter(torch.ones(3))
    update = pv.Update(pv.ELBO().per_datum, (*program.parameters(), spare))
    objective = type("Spare", (), {"updates": lambda self, program: [update]})()
    for compile in (False, "trace"):
        stepper = Stepper(program, objective, adam(1e-2), clip_norm=None, size=12, compile=compile)
        train(program, stepper, [data])
        assert spare.grad is None and torch.equal(spare, torch.ones(3))


def test_gradients_given_direct_move_weights_as_those_on_parameters():
    ends = []
    for clip_norm in (None, 1e9):
        program, stepper, data = build("trace", deferred=False, clip_norm=clip_norm)
        train(program, stepper, [data] * 5)
        assert bool(stepper._latest) is (clip_norm is None)
        ends.append(state(program, stepper))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_gradients_of_an_earlier_step_are_not_handed_out():
    program, stepper, data = build("trace", deferred=False, clip_norm=None)
    train(program, stepper, [data])
    stepper._direct = [False]  # as after a graph that had to be given up in the midst of an epoch
    train(program, stepper, [data])
    before = [p.grad.clone() for p in program.parameters()]
    stepper.check(data)
    assert all(torch.equal(p.grad, g) for p, g in zip(program.parameters(), before, strict=True))


@pytest.mark.parametrize("mode", [False, "trace"])
def test_an_optimizer_of_some_parameters_moves_no_others(mode, tmp_path):
    vae = pv.models.VAE(6, 2, hidden=(4,))
    x = programs.binary(12)[:, :6]
    before = {name: value.clone() for name, value in vae.named_parameters()}

    def weights_alone(parameters):
        return adam(1e-2)([p for p in parameters if p.dim() > 1])

    pv.fit(
        vae,
        x,
        optimizer=weights_alone,
        epochs=2,
        compile=mode,
        out=tmp_path / "run",
        device="cpu",
        progress=False,
    )
    moved = {name for name, value in vae.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name, value in before.items() if value.dim() > 1}


def test_an_optimizer_derived_from_ours_takes_its_own_steps():
    calls = []

    class Counting(Adam):
        def step(self, closure=None):
            calls.append(1)
            super().step(closure)

    vae = pv.models.VAE(6, 2, hidden=(4,))
    x = programs.binary(12)[:, :6]
    run = pv.fit(vae, x, optimizer=Counting, compile="trace", device="cpu", progress=False)
    assert len(calls) == run.steps


@pytest.mark.parametrize("mode", [False, "trace"])
def test_a_callback_sees_the_last_gradients(mode):
    seen = []
    vae = pv.models.VAE(6, 2, hidden=(4,)).double()
    x = programs.binary(12)[:, :6].double()

    def look(run):
        seen.append([p.grad.clone() for p in vae.parameters() if p.grad is not None])

    pv.fit(vae, x, epochs=2, compile=mode, callbacks=[look], device="cpu", progress=False)
    assert len(seen[0]) == len(seen[1]) == len(list(vae.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_a_hook_set_by_a_callback_is_called():
    calls = []
    vae = pv.models.VAE(6, 2, hidden=(4,))
    x = programs.binary(12)[:, :6]

    def hook(run):
        if not calls:
            calls.append("set")
            next(vae.parameters()).register_hook(lambda grad: calls.append("called"))

    pv.fit(vae, x, epochs=3, compile="trace", callbacks=[hook], device="cpu", progress=False)
    assert calls == ["set", "called", "called"]


def test_a_diverged_step_leaves_its_gradients_to_be_looked_at():
    program, stepper, data = build("trace", deferred=False, clip_norm=None)
    train(program, stepper, [data])
    with pytest.raises(TrainingDiverged, match="gradient norm nan"):
        train(program, stepper, [data * torch.nan])
    assert any(p.grad.isnan().any() for p in program.parameters())
