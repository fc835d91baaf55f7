"""Functions that put another parameter in a weight's place: a codebook of running means."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv

ROWS = torch.randn(14, 3, generator=torch.Generator().manual_seed(0))
OPTIONS = {"batch_size": 6, "device": "cpu", "lr": 0.05, "compile": False}


class Codebook(nn.Module):
    """The nearest of some vectors, each a running mean of what it was the nearest of."""

    def __init__(self, moves):
        super().__init__()
        torch.manual_seed(2)
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(2, 3)
        self.weight, self.moves = nn.Parameter(torch.randn(4, 2)), moves

    def quantised(self, codes):
        nearest = torch.cdist(codes, self.weight).argmin(1)
        found = self.weight[nearest]
        if self.training and self.moves == "by a mean":
            marks = torch.eye(4)[nearest]
            means = marks.t() @ codes / marks.sum(0).clamp(min=1)[:, None]
            self.weight = nn.Parameter(0.9 * self.weight + 0.1 * means)
        if self.moves == "into bounds":
            if bool((self.weight.abs() > 0.5).any()):
                self.weight = nn.Parameter(self.weight.clamp(-0.5, 0.5))
            return self.weight[nearest]
        return codes + (found - codes).detach()

    def model(self, rows):
        with pyro.plate("rows", len(rows)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=rows)

    def guide(self, rows):
        with pyro.plate("rows", len(rows)):
            pyro.sample("z", dist.Normal(self.quantised(self.encoder(rows)), 0.1).to_event(1))


def states(program):
    return list(program.state_dict().values())


def test_looks_leave_such_a_weight_as_it_was():
    """The losses are those from the weights that the program was given, also in train mode."""
    by_hand, program = Codebook("by a mean"), Codebook("by a mean")
    loader = DataLoader(TensorDataset(ROWS[:12]), batch_size=6)
    options = {name: value for name, value in OPTIONS.items() if name != "batch_size"}
    history = pv.fit(program, loader, epochs=1, **options).history
    torch.manual_seed(0)
    optimizer, losses = torch.optim.Adam(by_hand.parameters(), lr=0.05), []
    for rows in (ROWS[:6], ROWS[6:12]):
        optimizer.zero_grad()
        losses.append(Trace_ELBO().differentiable_loss(by_hand.model, by_hand.guide, rows) / 6)
        losses[-1].backward()
        optimizer.step()
    assert history["loss"][0] == pytest.approx(float(sum(losses).detach()) / 2, rel=1e-5)
    torch.testing.assert_close(states(program), states(by_hand))


@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_with_such_a_weight_goes_on_bit_for_bit(stop, tmp_path):
    straight = Codebook("by a mean")
    losses = pv.fit(straight, ROWS, epochs=3, **OPTIONS).history["loss"]
    options = {**OPTIONS, "epochs": 3, "out": tmp_path}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.fit(Codebook("by a mean"), ROWS, max_steps=stop, **options)
        resumed = Codebook("by a mean")
        again = pv.fit(resumed, ROWS, resume=True, **options).history["loss"]
    assert list(again) == list(losses)
    assert all(map(torch.equal, states(resumed), states(straight)))


def test_a_run_that_trains_such_a_weight_says_at_its_first_step_that_it_cannot_go_on(tmp_path):
    with pytest.warns(UserWarning, match=r"cannot be resumed.*Codebook\.weight'.*copy_") as told:
        pv.fit(Codebook("into bounds"), ROWS, epochs=2, max_steps=1, out=tmp_path, **OPTIONS)
    assert len(told) == 1


class TiedByHand(Codebook):
    """A layer shares the weight of another from its first run on."""

    def __init__(self, tied, source):
        super().__init__("never")
        self.scale, self.tied, self.source = nn.Linear(3, 2), tied, source

    def guide(self, rows):
        getattr(self, self.tied).weight = getattr(self, self.source).weight
        scale = 0.1 * self.scale(rows).exp()
        with pyro.plate("rows", len(rows)):
            pyro.sample("z", dist.Normal(self.encoder(rows), scale).to_event(1))


@pytest.mark.parametrize("layers", [("scale", "encoder"), ("encoder", "scale")])
def test_a_run_whose_layers_are_tied_as_it_runs_goes_on_bit_for_bit(layers, tmp_path):
    straight, options = TiedByHand(*layers), {**OPTIONS, "epochs": 2}
    losses = pv.fit(straight, ROWS, **options).history["loss"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.fit(TiedByHand(*layers), ROWS, max_steps=2, out=tmp_path, **options)
        resumed = TiedByHand(*layers)
        again = pv.fit(resumed, ROWS, resume=True, out=tmp_path, **options).history["loss"]
    assert list(again) == list(losses)
    assert all(map(torch.equal, states(resumed), states(straight)))
