"""Steps between which nothing comes give the numbers of those that each look at everything."""

import math

import pytest
import torch
from graph_programs import Net, Z, built, data
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import TrainingDiverged
from pyro_vae.program.handlers import validation
from pyro_vae.program.program import Program
from pyro_vae.training.adam import Adam
from pyro_vae.training.settings import adam
from pyro_vae.training.step import Stepper

BATCHES = [*data().split(12), *data().split(12), data()[:5], *data().split(12)]  # one is ragged


class Normed(Net):
    """Its batch normalisation keeps running moments."""

    def build(self):
        self.norm = nn.BatchNorm1d(Z, momentum=0.3)

    def odd(self, mean, x):
        return mean * (1 + 0.1 * self.norm(mean[:, :Z]).mean())


def made(kind=Net, optimizer=None, **options):
    program = Program.of(built(kind))
    program.read(BATCHES[0])
    program.train()
    make = {"clip_norm": None, "size": 48, "compile": "trace", "steps": 100} | options
    return program, Stepper(program, pv.ELBO(), optimizer or adam(0.01), **make)


def state(program, stepper):
    """Return all that a step may move."""
    moments = [v for o in stepper.optimizers for s in o.state.values() for v in s.values()]
    return [v.clone() for v in (*program.state_dict().values(), *moments, torch.get_rng_state())]


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


def short(stepper, monkeypatch):
    """Count the steps that are taken like the one before."""
    taken, another = [], stepper._another

    def noted(*args):
        loss = another(*args)
        taken.append(loss is not None)
        return loss

    monkeypatch.setattr(stepper, "_another", noted)
    return taken


def decayed(parameters):
    return Adam(parameters, lr=0.02, weight_decay=0.1, betas=(0.8, 0.99))


WAYS = {
    "Adam": ({}, 8),
    "weight decay": ({"optimizer": decayed}, 8),
    "clipped": ({"clip_norm": 1.0}, 0),
    "running moments": ({"kind": Normed}, 0),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_row_of_steps_moves_all_as_single_steps_do(name, monkeypatch):
    options, least = WAYS[name]
    ends = []
    for row in (False, True):
        program, stepper = made(**options)
        taken, losses = short(stepper, monkeypatch), []
        torch.manual_seed(0)
        with program.running(), validation(False):
            for part in (BATCHES, BATCHES[:4]):  # two rows, as of two epochs
                with stepper.in_a_row() if row else validation(False):
                    for step, batch in enumerate(part):
                        stepper.rates.set(1 / (1 + step))
                        beta = None if step < 9 else 0.5
                        losses += [loss.clone() for loss in stepper.step(batch, beta)]
                    stepper.check(batch)
        grads = [p.grad for p in program.parameters() if p.grad is not None]
        ends.append([*state(program, stepper), *losses, *grads])
        assert sum(taken) >= least if row and least else not any(taken)
    assert same(*ends)


@pytest.mark.parametrize("kind", [Net, Normed])
def test_a_step_of_a_row_that_is_not_finite_moves_nothing(kind):
    program, stepper = made(kind)
    with program.running(), validation(False), stepper.in_a_row():
        for batch in BATCHES[:6]:
            stepper.step(batch, None)
        assert (stepper._row is None) is (kind is Normed)
        before = state(program, stepper)[:-1]
        with pytest.raises(TrainingDiverged, match="loss is nan, gradient norm nan"):
            stepper.step(BATCHES[0] * math.nan, None)
    assert same(before, state(program, stepper)[:-1])
    assert all(p.grad.isnan().any() for p in program.parameters() if p.grad is not None)


def test_a_graph_that_fails_within_a_row_leaves_the_step_to_the_program():
    ends = []
    for mode in (False, "trace"):
        program, stepper = made(compile=mode)
        torch.manual_seed(0)
        with program.running(), validation(False), stepper.in_a_row():
            for batch in BATCHES[:6]:
                stepper.step(batch, None)
            told = validation(False)
            if mode:
                assert stepper._row is not None
                (traced,) = stepper._compiled[0]._graphs.values()
                traced.run = None  # which cannot be called
                told = pytest.warns(UserWarning, match="cannot be traced and runs eagerly")
            with told:
                stepper.step(BATCHES[6], None)
            stepper.step(BATCHES[7], None)
        ends.append(state(program, stepper))
    for mine, exact in zip(*ends, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-8, atol=1e-12)
