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


class Moved(Codebook):
    """A layer beside the encoder, whose weights the guide moves about as it runs."""

    def __init__(self):
        super().__init__("never")
        self.scale, self.done = nn.Linear(3, 2), False
        self.register_buffer("calls", torch.zeros(()))

    def move(self):
        raise NotImplementedError

    def guide(self, rows):
        if self.training:
            self.calls += 1
        self.move()
        scale = 0.1 * self.scale(rows).exp()
        with pyro.plate("rows", len(rows)):
            pyro.sample("z", dist.Normal(self.encoder(rows), scale).to_event(1))


class Tied(Moved):
    def move(self):
        self.scale.weight = self.encoder.weight


class TiedTheOtherWay(Moved):
    def move(self):
        self.encoder.weight = self.scale.weight


class TiedOnce(Moved):
    def move(self):
        if not self.done:
            self.scale.weight, self.done = self.encoder.weight, True


class TiedLater(Moved):
    def move(self):
        if self.calls > 3:
            self.scale.weight = self.encoder.weight


class Swapped(Moved):
    def move(self):
        self.scale.weight, self.encoder.weight = self.encoder.weight, self.scale.weight


class ByTurns(Moved):
    def __init__(self):
        super().__init__()
        self.heads = nn.ParameterList([torch.randn(2, 3) for _ in range(3)])

    def move(self):
        self.scale.weight = self.heads[int(self.calls) % 3]


MOVED = [Tied, TiedTheOtherWay, TiedOnce, TiedLater, Swapped, ByTurns]


@pytest.mark.parametrize("kind", MOVED)
def test_weights_that_a_program_moves_about_train_as_by_hand(kind):
    by_hand, program = kind(), kind()
    loader = DataLoader(TensorDataset(ROWS[:12]), batch_size=6)
    options = {name: value for name, value in OPTIONS.items() if name != "batch_size"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = pv.fit(program, loader, epochs=3, **options).history["loss"]
    torch.manual_seed(0)
    optimizer, expected = torch.optim.Adam(by_hand.parameters(), lr=0.05), []
    for rows in 3 * (ROWS[:6], ROWS[6:12]):
        optimizer.zero_grad()
        expected.append(Trace_ELBO().differentiable_loss(by_hand.model, by_hand.guide, rows) / 6)
        expected[-1].backward()
        optimizer.step()
    means = torch.stack(expected).detach().reshape(3, 2).mean(1)
    assert list(losses) == pytest.approx(means.tolist(), rel=1e-4)
    torch.testing.assert_close(states(program), states(by_hand), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("anew", [True, False])
@pytest.mark.parametrize("kind", MOVED)
def test_a_run_whose_weights_move_about_goes_on(kind, anew, tmp_path):
    """By a program that is built anew, and by the one that the run has moved."""
    straight, options = kind(), {**OPTIONS, "epochs": 3}
    losses = pv.fit(straight, ROWS, **options).history["loss"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stopped = kind()
        pv.fit(stopped, ROWS, max_steps=5, out=tmp_path, **options)
        resumed = kind() if anew else stopped
        again = pv.fit(resumed, ROWS, resume=True, out=tmp_path, **options).history["loss"]
    assert list(again) == list(losses)
    assert all(map(torch.equal, states(resumed), states(straight)))


class KeepsLast(Codebook):
    """Before it puts a new codebook in the place of the last one, it keeps that."""

    def quantised(self, codes):
        if self.training:
            self.last = self.weight
        return super().quantised(codes)


@pytest.mark.parametrize(
    ("make", "place", "options"),
    [
        (lambda: KeepsLast("by a mean"), r"KeepsLast\.last'", {}),
        (Swapped, r"Swapped\.encoder\.weight'", {"ema": 0.9}),
    ],
)
def test_a_run_that_no_program_built_anew_could_go_on_with_says_so(make, place, options, tmp_path):
    options = {**OPTIONS, "epochs": 1, "max_steps": 1, "out": tmp_path, **options}
    with pytest.warns(UserWarning, match=f"cannot be resumed.*{place}"):
        pv.fit(make(), ROWS, **options)
