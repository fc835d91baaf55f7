"""The door of every verb: one draw of the globals, passes of any size, every form of data."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import pyro_vae as pv


class Shared(nn.Module):
    """A global level w above a latent z of each datum; the guide's z depends on w."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.2))

    def model(self, x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w + x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x):
        w = pyro.sample("w", dist.Normal(self.loc, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.2 * w + 0.8 * x, 0.2**0.5))


def test_elbo_holds_one_draw_of_the_globals():
    """The guide's z is exact given w: data of one value have one bound, in any pass."""
    bound = pv.elbo(Shared(), torch.full((70,), 1.5), batch_size=16)
    torch.testing.assert_close(bound, bound[:1].expand(70), rtol=0, atol=1e-5)


def test_elbo_of_the_globals_is_exact():
    """Passes of 7 and of 1000 agree with log p(x | w) + (log p(w) - log q(w)) / N at one w."""
    program, x = Shared(), torch.linspace(-1, 1, 30)
    for batch_size in (7, 1000):
        torch.manual_seed(5)
        bound = pv.elbo(program, x, num_samples=3, batch_size=batch_size)
        torch.manual_seed(5)
        wrapped = pv.Program.of(program)
        with torch.no_grad(), wrapped.running():
            joint = wrapped.joint(x[:batch_size])
            w = torch.stack([joint.global_values()["w"] for _ in range(3)])
        datum = dist.Normal(w[:, None], 1.25**0.5).log_prob(x)
        shared = dist.Normal(0.0, 1.0).log_prob(w) - dist.Normal(0.2, 1.0).log_prob(w)
        torch.testing.assert_close(bound, (datum + shared[:, None] / 30).mean(0))


ROWS = torch.bernoulli(torch.full((50, 6), 0.4), generator=torch.Generator().manual_seed(0))


def _forms():
    data = TensorDataset(ROWS)
    return {
        "data set": data,
        "subset": Subset(data, range(50)),
        "loader": DataLoader(data, batch_size=8),
        "shuffled loader": DataLoader(data, batch_size=8, shuffle=True, drop_last=True),
        "generator": (ROWS[i : i + 11] for i in range(0, 50, 11)),
        "array": ROWS.numpy(),
    }


@pytest.mark.parametrize("form", _forms())
def test_every_form_of_data_gives_the_same_answers_in_the_same_order(form):
    torch.manual_seed(0)
    program = pv.models.VAE(6, 2, (8,))
    pv.Program.of(program).read(ROWS)
    state = torch.get_rng_state()
    codes = pv.encode(program, _forms()[form])
    torch.testing.assert_close(codes, pv.encode(program, ROWS))
    assert torch.equal(torch.get_rng_state(), state)
