"""The check of a step that must not stall a GPU: no weight and no buffer keeps a bad number."""

import programs
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import TrainingDiverged
from pyro_vae.inference.handlers import validation
from pyro_vae.training.settings import adam
from pyro_vae.training.step import CHECK_EVERY, Stepper


def build(compile=False, deferred=True):
    torch.manual_seed(0)
    case = programs.CASES["regularised"]
    program = pv.Program.of(case.build()).double()
    data = program.adapt(case.data(12))
    program.read(data)
    program.train()
    stepper = Stepper(program, pv.ELBO(), adam(1e-2), clip_norm=3.0, size=12, compile=compile)
    stepper._deferred = deferred  # as on CUDA, where Adam is fused
    return program, stepper, data


def state(program, stepper):
    moments = [v for o in stepper.optimisers for s in o.state.values() for v in s.values()]
    return [v.clone() for v in [*program.state_dict().values(), *moments]]


def train(program, stepper, batches):
    torch.manual_seed(1)
    with program.running(), validation(False):
        return [stepper.step(batch, None)[0] for batch in batches]


@pytest.mark.parametrize("compile", [False, "trace"])
def test_deferred_and_immediate_checks_train_alike(compile):
    ends = []
    for deferred in (True, False):
        program, stepper, data = build(compile, deferred)
        train(program, stepper, [data] * 5)
        stepper.check(data)
        ends.append(state(program, stepper))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("compile", [False, "trace"])
def test_after_a_bad_step_nothing_moves_until_the_flag_is_read(compile):
    program, stepper, data = build(compile)
    train(program, stepper, [data] * 3)
    before = state(program, stepper)
    losses = train(program, stepper, [data * torch.nan, data, data])
    assert not torch.isfinite(losses[0])
    assert all(torch.equal(a, b) for a, b in zip(before, state(program, stepper), strict=True))
    with pytest.raises(TrainingDiverged, match=r"not finite in the last \d+ steps.*Lower lr"):
        stepper.check(data)


def test_the_flag_is_read_by_itself_after_a_while():
    program, stepper, data = build("trace")
    with pytest.raises(TrainingDiverged):
        train(program, stepper, [data * torch.nan, *[data] * CHECK_EVERY])


def test_processes_agree_on_loss_and_gradient():
    program, stepper, data = build("trace", deferred=False)
    seen = []

    def reduce(tensors):
        seen.append([t.shape for t in tensors])
        for tensor in tensors:
            tensor.zero_()

    stepper.reduce = reduce
    before = [p.detach().clone() for p in program.parameters()]
    (loss,) = train(program, stepper, [data])
    trained = [p.shape for p in program.parameters() if p.requires_grad]
    assert seen == [[torch.Size([]), *trained]] and loss == 0
    after = list(program.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # a zero gradient


def test_an_optimiser_that_cannot_skip_is_checked_at_once():
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
