"""Losses of Pyro train what they train by Pyro's own SVI, networks that nobody states as well."""

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import nn

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
