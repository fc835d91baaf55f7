"""Parameters that are slices of other tensors, or one number expanded, train as dense ones do."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal, init_to_mean
from torch import nn

import pyro_vae as pv

TABLE = torch.arange(32.0).reshape(4, 8) / 10 - 1
KINDS = {
    "slice": lambda table: table[:2, :4],
    "steps": lambda table: table[::2, ::2],
    "expanded": lambda table: table[:2, :1].expand(2, 4),
    "transposed": lambda table: table[:4, :2].t(),
}
STEPS = {"adam": (None, False), "traced": (None, "trace"), "sgd": (torch.optim.SGD, False)}


class Rows(nn.Module):
    """Rows around a product of w."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def model(self, x):
        with pyro.plate("rows", len(x)):
            loc = torch.tanh(x[:, :2]) @ self.w
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pass


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_they_take_the_steps_of_dense_ones_and_write_nowhere_else(kind, steps):
    x = torch.linspace(-2.0, 2.0, 48).reshape(12, 4) ** 3
    optimizer, mode = STEPS[steps]
    table = TABLE.clone()
    w = KINDS[kind](table)
    found = []
    for start in (w.clone(memory_format=torch.contiguous_format), w):
        program = Rows(start)
        options = {"optimizer": optimizer, "lr": 0.05, "compile": mode}
        pv.fit(program, x, epochs=3, batch_size=5, progress=False, **options)
        found.append(program.w.detach().clone())
    assert not torch.equal(found[0], w)
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)
    outside = torch.ones(4, 8, dtype=torch.bool)
    (outside[:2, :1] if kind == "expanded" else KINDS[kind](outside)).fill_(value=False)
    assert torch.equal(table[outside], TABLE[outside])


@pytest.mark.parametrize("make", [AutoNormal, AutoDelta])
def test_a_guide_that_starts_at_an_expanded_mean_finds_each_datum_its_own(make):
    x = torch.arange(8.0) * 3

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 10.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    program = pv.Program(model, make(model, init_loc_fn=init_to_mean))
    pv.fit(program, x, epochs=400, batch_size=8, lr=0.2, progress=False, compile=False)
    error = pv.encode(program, x).flatten() - x / 1.01
    assert error.abs().max() < 0.5  # the exact means; AutoNormal's wander by its noise
