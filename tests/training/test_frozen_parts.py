"""A part that a user froze stands still in a run: weights, dropout and running statistics."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.program.parameters.modules import frozen_parts

X = torch.randn(96, 6, generator=torch.Generator().manual_seed(0)) * 2 + 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enc = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
        self.dec = nn.Sequential(
            nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 6)
        )

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.dec(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def trained(freeze, compile, rate=0.5):
    net = Net()
    net.dec[2].p = rate
    freeze(net)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    pv.fit(net, X, epochs=3, batch_size=32, compile=compile, progress=False)
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    return net, moved


def dropped(freeze, compile):
    """Return whether the rate of the dropout plays a part in training."""
    ends = [trained(freeze, compile, rate)[0].enc[0].weight for rate in (0.5, 0.0)]
    return not torch.equal(*ends)


def frozen(net):
    net.dec.requires_grad_(False).eval()


def frozen_weights(net):
    net.dec.requires_grad_(False)


@pytest.mark.parametrize("compile", [False, "trace"])
def test_a_frozen_decoder_stands_still(compile):
    net, moved = trained(frozen, compile)
    assert not any(name.startswith("dec") for name in moved)
    assert {"enc.1.running_mean", "enc.0.weight"} <= moved
    assert not dropped(frozen, compile)
    assert not net.dec[2].training and net.enc.training


@pytest.mark.parametrize("compile", [False, "trace"])
def test_weights_alone_may_be_frozen(compile):
    _, moved = trained(frozen_weights, compile)
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert {n for n in moved if n.startswith("dec")} == {f"dec.1.{name}" for name in statistics}
    assert dropped(frozen_weights, compile)


def test_a_loaded_program_trains_in_train_mode():
    _, moved = trained(nn.Module.eval, False)
    assert "dec.1.running_mean" in moved and dropped(nn.Module.eval, False)


def test_parts_of_a_frozen_part_are_frozen():
    net = Net()
    net.dec.requires_grad_(False).eval()
    net.enc[2].eval()  # it has weights to train
    assert set(frozen_parts(net)) == set(net.dec.modules())


@pytest.mark.parametrize("compile", [False, "trace", "auto"])
@pytest.mark.parametrize("ready", [False, True])
def test_a_callback_thaws_a_part(compile, ready):
    net, seen = Net(), []
    net.dec.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2) if ready else None

    def thaw(run):
        seen.append(net.dec[-1].bias.detach().clone())
        if len(seen) == 10:
            net.dec.requires_grad_(True)

    pv.fit(
        net,
        X,
        epochs=20,
        batch_size=32,
        optimizer=optimizer,
        callbacks=[thaw],
        compile=compile,
        progress=False,
    )
    assert all(torch.equal(bias, seen[0]) for bias in seen[:10])
    assert not torch.equal(seen[10], seen[9])


@pytest.mark.parametrize("compile", [False, "trace"])
def test_what_a_callback_freezes_stands_still_until_it_is_thawed(compile):
    """Its running statistics too, hence its mode; a part that keeps a weight to train goes on."""
    net, seen = Net(), []

    def callback(run):
        seen.append({k: v.clone() for k, v in net.state_dict().items()})
        if len(seen) in (1, 3):
            net.dec.requires_grad_(len(seen) == 3)

    pv.fit(net, X, epochs=4, batch_size=32, compile=compile, progress=False, callbacks=[callback])
    moved = [
        {k for k in old if not torch.equal(old[k], new[k])} for old, new in itertools.pairwise(seen)
    ]
    decoder = {k for k in seen[0] if k.startswith("dec")}
    assert [bool(each & decoder) for each in moved] == [False, False, True]
    assert decoder <= moved[2] and all("enc.1.running_mean" in each for each in moved)
