"""Losses of Pyro train what they train by Pyro's own SVI, networks that nobody states as well."""

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.inference.objectives.stock import StockObjective

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
KINDS = [
    pyro.infer.Trace_ELBO(num_particles=2),
    pyro.infer.TraceGraph_ELBO(),
    pyro.infer.TraceMeanField_ELBO(),
    pyro.infer.TraceEnum_ELBO(max_plate_nesting=1),
    pyro.infer.RenyiELBO(alpha=0.5, num_particles=2),
    pyro.infer.ReweightedWakeSleep(num_particles=2, max_plate_nesting=1),
]


class Linear(nn.Module):
    """z ~ N(0, 1), x ~ N(W z, 1); q(z | x) = N(V x, 1)."""

    def __init__(self, states):
        super().__init__()
        torch.manual_seed(0)
        self.states = states
        self.encode, self.decode = nn.Linear(3, 2).double(), nn.Linear(2, 3).double()

    def model(self, x):
        if self.states:
            pyro.module("decode", self.decode)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        if self.states:
            pyro.module("encode", self.encode)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(x), 1.0).to_event(1))


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("loss", KINDS, ids=lambda loss: type(loss).__name__)
def test_networks_need_no_statement(loss, store):
    """``RenyiELBO`` takes no gradient where a program states none, and left them as they were."""
    stated = Linear(states=True)
    torch.manual_seed(1)
    loss.loss_and_grads(stated.model, stated.guide, X)
    plain = Linear(states=False)
    program = pv.Program.of(plain)
    (update,) = StockObjective(loss).updates(program)
    joint = program.joint(X)
    torch.manual_seed(1)
    with program.running():
        update.loss(joint).backward()
    for own, exact in zip(plain.parameters(), stated.parameters(), strict=True):
        assert exact.grad.abs().max() > 0
        torch.testing.assert_close(own.grad, exact.grad / len(X), rtol=1e-12, atol=1e-14)
    assert not program.values


@pytest.mark.parametrize("kind", [pyro.infer.TraceGraph_ELBO, pyro.infer.RenyiELBO])
def test_what_is_stated_and_not_reached_moves_on_by_its_moments(kind, store):
    """As by stock SVI, which zeroes gradients. No noise: the course is exact."""
    rows = torch.cat([torch.ones(4, 1), -torch.ones(8, 1)]).double()
    loss = kind(num_particles=2)

    def functions():
        part = nn.Linear(1, 1, bias=False).double()
        part.weight.data.fill_(0.3)

        def model(x):
            pyro.module("part", part)
            loc = pyro.param("loc", x.new_zeros(1))
            loc = loc + part(x.new_ones(1)) if x.mean() > 0 else loc
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

        return part.weight, model, lambda x: None

    exact, *stock = functions()
    svi = pyro.infer.SVI(*stock, pyro.optim.Adam({"lr": 0.01}), loss)
    for batch in 2 * rows.split(4):
        svi.step(batch)
    store.clear()
    weight, *own = functions()
    loader = DataLoader(TensorDataset(rows), batch_size=4)
    options = {"epochs": 2, "lr": 0.01, "progress": False, "device": "cpu"}
    pv.fit(pv.Program(*own), loader, objective=loss, **options)
    torch.testing.assert_close(weight, exact, rtol=1e-6, atol=0)
