"""Runs that go on where parameters do not lie by rows in memory, as a file holds all tensors."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from continued_runs import same, weights
from torch import nn

import pyro_vae as pv

ROWS = torch.randn(24, 12, generator=torch.Generator().manual_seed(0))
MOMENTS = torch.cov(ROWS.T)
STARTS = {
    "eigenvectors": lambda: torch.linalg.eigh(MOMENTS)[1][:, -2:],
    "transpose": lambda: torch.linspace(-1.0, 1.0, 24).reshape(2, 12).t(),
    "cholesky": lambda: torch.linalg.cholesky(MOMENTS),
}
ADAMS = {
    "default": {"lr": 0.05},
    "fused": {"optimizer": functools.partial(torch.optim.AdamW, lr=0.05, fused=True)},
}


class Factors(nn.Module):
    """Factor analysis whose loadings start from a tensor, as a weight or by ``pyro.param``."""

    def __init__(self, start, stated=False):
        super().__init__()
        torch.manual_seed(1)
        self.start, self.size = start, start.shape[1]
        self.encoder = nn.Linear(12, self.size)
        self.loadings = None if stated else nn.Parameter(start.clone())

    def model(self, x):
        loadings = self.loadings
        if loadings is None:
            loadings = pyro.param("loadings", self.start)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.size), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ loadings.T, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.3).to_event(1))


class Images(Factors):
    """A network of convolutions whose weights lie by channels."""

    def __init__(self):
        super().__init__(torch.zeros(12, 2))
        layers = nn.Linear(2, 12), nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 3, 3, padding=1)
        self.decoder = nn.Sequential(*layers).to(memory_format=torch.channels_last)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loadings.new_zeros(2), 1.0).to_event(1))
            loc = self.decoder(z).flatten(1) + self.loadings.sum()
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def goes_on_alike(make, data, folder, stop=4, **options):
    """Return whether a run that is stopped and goes on ends as the straight one, to the bit."""
    options = {"epochs": 3, "progress": False, "device": "cpu", **options}
    straight, again = make(), make()
    losses = pv.fit(straight, data, **options).history["loss"]
    pv.fit(make(), data, max_steps=stop, out=folder, **options)
    told = pv.fit(again, data, out=folder, resume=True, **options).history["loss"]
    return list(told) == list(losses) and same(weights(again), weights(straight))


@pytest.mark.parametrize(
    ("start", "adam", "mode"),
    [
        ("eigenvectors", "default", False),
        ("eigenvectors", "default", "trace"),
        ("transpose", "fused", False),
        ("convolutions", "default", False),
        ("convolutions", "fused", "trace"),
        pytest.param("convolutions", "default", True, marks=pytest.mark.slow),
    ],
)
def test_moments_meet_their_weights(start, adam, mode, tmp_path):
    images = start == "convolutions"
    make = Images if images else functools.partial(Factors, STARTS[start]())
    options = {"batch_size": 8, "compile": mode, **ADAMS[adam]}
    assert goes_on_alike(make, ROWS, tmp_path, **options)


def test_a_value_that_is_loaded_before_it_is_asked_for_lies_as_its_start(tmp_path):
    def make():
        return pv.Program.of(Factors(STARTS["cholesky"](), stated=True))

    options = {"epochs": 3, "batch_size": 8, "compile": False, "progress": False, "lr": 0.05}
    straight = make()
    pv.fit(straight, ROWS, **options)
    pv.fit(make(), ROWS, max_steps=4, out=tmp_path, **options)
    again = pv.load(tmp_path, into=make())
    pv.fit(again, ROWS, out=tmp_path, resume=True, **options)
    assert again.own.values["loadings"].stride() == straight.own.values["loadings"].stride()
    assert same(weights(again), weights(straight))


class OfTwoKinds:
    """Batches, of which the first has rows of one kind alone."""

    def __iter__(self):
        yield (ROWS[:8],)
        yield ROWS[8:16], ROWS[:8]
        yield ROWS[16:], ROWS[8:16]

    def __len__(self):
        return 3


class Two(Factors):
    """Rows of a second kind ask for a matrix of their own."""

    def model(self, x, other=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.size), 1.0).to_event(1))
            loc = z @ self.loadings.T
            loc = (
                loc if other is None else loc + other @ pyro.param("own", torch.linalg.qr(ROWS)[1])
            )
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x, other=None):
        super().guide(x)


@pytest.mark.parametrize("stop", [2, 4])
def test_a_value_that_a_later_batch_asks_for_lies_as_in_the_run(stop, tmp_path):
    make = functools.partial(Two, STARTS["eigenvectors"]())
    assert goes_on_alike(make, OfTwoKinds(), tmp_path, stop, compile=False, lr=0.05)


@pytest.mark.parametrize("mode", [False, "trace"])
def test_weights_that_are_laid_out_anew_within_a_run_keep_their_moments(mode):
    def relaid(run, program):
        if len(run.history["loss"]) == 2:
            value = program.loadings
            value.data = value.data.t().contiguous().t()

    found = []
    for moves in (False, True):
        program = Factors(STARTS["transpose"]().contiguous())
        callbacks = [functools.partial(relaid, program=program)] if moves else []
        options = {"epochs": 4, "batch_size": 8, "compile": mode, "progress": False, "lr": 0.05}
        pv.fit(program, ROWS, callbacks=callbacks, **options)
        found.append(weights(program))
    assert program.loadings.stride() == (1, 12)
    for one, other in zip(*(each.values() for each in found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
