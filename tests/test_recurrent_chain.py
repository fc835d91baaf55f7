"""Chains with a memory, and the recurrent model of them, against chains and a site per step."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.distributions import Chain, Padded, RecurrentChain
from pyro_vae.models import VRNN

F64 = torch.float64


def test_a_memory_of_the_last_state_is_a_chain():
    """Draws, densities and every gradient, of a few particles of padded sequences."""
    torch.manual_seed(0)
    net, u = nn.Linear(3, 4).double(), torch.randn(4, 5, 1, dtype=F64)
    start = torch.randn(2, dtype=F64, requires_grad=True)
    lengths = torch.tensor([5, 2, 1, 0])

    def move(z, given):
        loc, scale = net(torch.cat([z, given.expand(*z.shape[:-1], 1)], -1)).chunk(2, -1)
        return dist.Normal(loc, scale.exp()).to_event(1)

    found = []
    for chain in (
        Chain(move, start, 5, inputs=u, lengths=lengths),
        RecurrentChain(move, lambda h, z, given: z, start, 2, 5, inputs=u, lengths=lengths),
    ):
        torch.manual_seed(1)
        z = chain.expand((3, 4)).rsample()
        log_p = chain.log_prob(z)
        assert z.shape == (3, 4, 5, 2) and log_p.shape == (3, 4) and chain.has_rsample
        weights = torch.arange(1.0, 13, dtype=F64).reshape(3, 4)
        loss = (weights * log_p).sum() + z.cos().sum()
        found.append([z, log_p, *torch.autograd.grad(loss, [start, *net.parameters()])])
    for ours, exact in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


def test_a_memory_that_would_run_on_to_infinity_has_the_gradient_of_what_is_kept():
    """Two steps of nine: behind them the memory would be exp(exp(..)), in a draw and a density."""
    scale = torch.tensor(0.5, dtype=F64, requires_grad=True)
    found = []
    for steps, lengths in ((9, torch.tensor([2, 2])), (2, None)):
        chain = RecurrentChain(
            lambda h: dist.Normal(h * scale, 1.0).to_event(1),
            lambda h, z: (h + 3).exp() * scale + z,
            torch.zeros(1, dtype=F64),
            1,
            steps,
            lengths=lengths,
        )
        torch.manual_seed(0)
        z = chain.expand((2,)).rsample()
        total = z.sum() + chain.log_prob(z).sum()
        found.append((z[:, :2], *torch.autograd.grad(total, scale)))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=0)


class PerStep(VRNN):
    """The same model and guide with a site for each step, and a loop."""

    def model(self, x, lengths):
        h = self.memory.start.expand(len(x), -1)
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                z = pyro.sample(f"z_{t}", self.prior(h).mask(t < lengths))
                seen = self.decoder(joined(z, h)).mask(t < lengths)
                pyro.sample(f"x_{t}", seen, obs=x[:, t])
                h = self._next(h, z, x[:, t])

    def guide(self, x, lengths):
        h = self.memory.start.expand(len(x), -1)
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                seen = joined(h, self.of_x(x[:, t]).relu())
                z = pyro.sample(f"z_{t}", self.posterior(seen).mask(t < lengths))
                h = self._next(h, z, x[:, t])

    def _next(self, h, z, x):
        seen = joined(self.of_x(x).relu(), self.of_z(z).relu())
        h = h.expand(*seen.shape[:-1], -1)
        return self.memory.cell(seen.flatten(0, -2), h.flatten(0, -2)).reshape(h.shape)


def joined(*parts):
    """Return features side by side, those of one draw beside those of several."""
    lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*lead, -1) for part in parts], -1)


@pytest.fixture
def pair():
    torch.manual_seed(2)
    built = [kind(3, 2, (4,), features=4, recurrent=5).double() for kind in (VRNN, PerStep)]
    built[1].load_state_dict(built[0].state_dict())
    lengths = torch.tensor([6, 3, 0, 1, 6])
    x = torch.bernoulli(torch.full((5, 6, 3), 0.5, dtype=F64))
    return *built, {"x": x, "lengths": lengths}


def loss_and_grads(program, batch, objective):
    wrapped = pv.Program.of(program)
    wrapped.read(batch)
    with wrapped.running():
        torch.manual_seed(5)
        joint = wrapped.joint(batch)
        loss = objective.differentiable_loss(joint.model, joint.guide, **batch)
        return [loss, *torch.autograd.grad(loss, list(program.parameters()))]


@pytest.mark.parametrize("objective", [pv.ELBO(), pv.IWAE(3)], ids=["elbo", "iwae"])
def test_the_recurrent_model_is_a_site_for_each_step(pair, objective):
    found, exact = (loss_and_grads(each, pair[2], objective) for each in pair[:2])
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_padded_batch_is_its_sequences_one_by_one_whatever_stands_there(pair):
    """The value at given paths, and with NaN in the padding the same loss and gradients."""
    program, _, batch = pair
    x, lengths = batch["x"], batch["lengths"]
    z = program.encoder(x, lengths).sample()
    prior, guide = program._prior(x, lengths).log_prob(z), program.encoder(x, lengths).log_prob(z)
    for i, n in enumerate(lengths.tolist()):
        assert (z[i, n:] == 0).all()
        alone = x[i : i + 1, :n], z[i : i + 1, :n]
        for whole, chain in ((prior, program._prior), (guide, program.encoder)):
            exact = chain(alone[0], None).log_prob(alone[1]) if n else torch.zeros(1, dtype=F64)
            torch.testing.assert_close(whole[i : i + 1], exact, rtol=1e-10, atol=1e-10)
    kept = Padded(dist.Normal(x, 1), lengths, 1).kept
    holed = {"x": torch.where(kept, x, torch.nan), "lengths": lengths}
    for ours, theirs in zip(
        *(loss_and_grads(program, rows, pv.ELBO()) for rows in (holed, batch)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_generated_steps_are_those_of_a_loop():
    """The prior reads what the model observes: equal noise gives the steps drawn one by one."""
    torch.manual_seed(3)
    program = VRNN(2, 2, (4,), features=4, recurrent=5, observation=pv.conditionals.Gaussian)
    program.double()
    pv.elbo(program, torch.randn(6, 4, 2, dtype=F64))
    torch.manual_seed(4)
    drawn = pv.generate(program, 6, given=100 * torch.randn(6, 4, 2, dtype=F64))
    torch.manual_seed(4)
    torch.randn(6, 4, 2, dtype=F64)
    noise_z = [torch.normal(torch.zeros(6, 2, dtype=F64), 1.0) for _ in range(4)]
    noise_x = torch.normal(torch.zeros(6, 4, 2, dtype=F64), 1.0)
    h, steps = program.memory.start.expand(6, -1), []
    for t in range(4):
        p = program.prior(h).base_dist
        z = p.loc + p.scale * noise_z[t]
        p = program.decoder(torch.cat([z, h], -1)).base_dist
        steps.append(p.loc + p.scale * noise_x[:, t])
        seen = torch.cat([program.of_x(steps[-1]).relu(), program.of_z(z).relu()], -1)
        h = program.memory.step(h, seen)
    torch.testing.assert_close(drawn, torch.stack(steps, 1), rtol=1e-5, atol=1e-5)
