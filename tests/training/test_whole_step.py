"""A step as one recording moves what the step itself moves, to the last bit."""

import gc
import weakref

import programs
import pytest
import recorded_graphs
import torch

import pyro_vae as pv
from pyro_vae.errors import TrainingDiverged
from pyro_vae.program.handlers import validation
from pyro_vae.training.settings import adam
from pyro_vae.training.step import Stepper

LR = 2.0**-7  # the rate of a recording is in single precision: exact in it


def stepper_of(name="regularised", objective=None, clip_norm=None, optimizer=None, deferred=True):
    torch.manual_seed(0)
    made, data = programs.made(name, "cpu", torch.float32, rows=12)
    program = pv.Program.of(made)
    data = program.adapt(data)
    program.read(data)
    program.train()
    stepper = Stepper(
        program,
        objective or pv.ELBO(),
        optimizer or adam(LR),
        clip_norm=clip_norm,
        size=48,
        compile="trace",
        steps=1000,
    )
    stepper._deferred = deferred  # as on CUDA
    return stepper, data


def trained(stepper, data, between=lambda step, stepper: None, steps=10):
    """Return losses, gradients and what moves; rows, KL weights and rates vary by the step."""
    torch.manual_seed(1)
    found = []
    with stepper.program.running(), validation(False), stepper.in_a_row():
        for step in range(steps):
            between(step, stepper)
            stepper.rates.set(2.0 ** -(step % 3))
            (loss,) = stepper.step(data.roll(step, -1), 0.1 * (step + 1))
            found.append(loss)
            if step % 4 == 3:
                stepper.hand_out()
                found += [p.grad.clone() for p in stepper.trained[0]]
    moments = [v for o in stepper.optimizers for s in o.state.values() for v in s.values()]
    return [v.clone() for v in [*found, *stepper.program.state_dict().values(), *moments]]


def replace_moments(step, stepper):
    if step == 5:
        stepper.optimizers[0].load_state_dict(stepper.optimizers[0].state_dict())


def change_betas(step, stepper):
    if step == 5:
        stepper.optimizers[0].param_groups[0]["betas"] = (0.5, 0.75)


def change_betas_in_place(step, stepper):
    group = stepper.optimizers[0].param_groups[0]
    if step == 0:
        group["betas"] = [0.75, 0.5]
    if step == 5:
        group["betas"][0] = 0.5


def move_weights(step, stepper):
    if step == 5:
        for parameter in stepper.program.parameters():
            parameter.data = parameter.data.clone()


def nothing(step, stepper):
    pass


@pytest.mark.parametrize(
    ("name", "clip_norm", "between"),
    [
        ("regularised", None, nothing),
        ("regularised", 0.5, nothing),
        ("vae", None, nothing),
        ("vae", None, replace_moments),
        ("vae", None, change_betas),
        ("vae", None, change_betas_in_place),
        ("vae", None, move_weights),
    ],
)
def test_a_replay_is_the_step(name, clip_norm, between, monkeypatch):
    """Rows, noise, KL weight and rate are new in each; buffers, moments and counts follow."""
    plain = trained(*stepper_of(name, clip_norm=clip_norm, deferred=False), between)
    recorded_graphs.on_the_cpu(monkeypatch)
    stepper, data = stepper_of(name, clip_norm=clip_norm)
    recorded = trained(stepper, data, between)
    assert recorded_graphs.Graph.replays >= 5
    assert len(plain) == len(recorded)
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))


def test_gradients_alone_are_recorded_for_other_optimizers(monkeypatch):
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=LR, momentum=0.9, fused=True)

    plain = trained(*stepper_of(optimizer=sgd, deferred=False))
    recorded_graphs.on_the_cpu(monkeypatch)
    stepper, data = stepper_of(optimizer=sgd)
    recorded = trained(stepper, data)
    assert recorded_graphs.Graph.replays >= 5
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))


def test_a_bad_batch_stops_what_a_recording_moves(monkeypatch):
    recorded_graphs.on_the_cpu(monkeypatch)
    stepper, data = stepper_of()
    trained(stepper, data)
    before, replays = trained(stepper, data, steps=0), recorded_graphs.Graph.replays
    with stepper.program.running(), validation(False), stepper.in_a_row():
        for batch in (data * torch.nan, *[data] * 4):
            stepper.step(batch, 0.5)
        assert recorded_graphs.Graph.replays > replays
        after = trained(stepper, data, steps=0)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        with pytest.raises(TrainingDiverged, match="not finite"):
            stepper.check(data)


def test_recordings_go_with_the_graph_that_they_launch(monkeypatch):
    """Each keeps the memory of a step: a program that is traced anew would fill the GPU."""
    recorded_graphs.on_the_cpu(monkeypatch)
    stepper, data = stepper_of()
    met = {}

    def change(step, stepper):
        for traced in stepper._compiled[0]._graphs.values():
            met.update({id(each): weakref.ref(each) for each in traced.launchers.values()})
        for part in stepper.program.modules():
            if step % 3 == 0 and isinstance(part, torch.nn.Dropout):
                part.p = 0.1 * (step // 3 + 1)
                stepper.doubt()

    trained(stepper, data, change, steps=12)
    gc.collect()
    assert len(met) > 2
    assert sum(each() is not None for each in met.values()) == 1
