"""Networks that a user has compiled by ``torch.compile`` give the numbers of those as written."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv

X = (torch.rand(24, 6, generator=torch.Generator().manual_seed(1)) > 0.5).float()


class Pair:
    """A model and its guide; ``made`` maps the decoder to what the model calls."""

    def __init__(self, made):
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Sequential(nn.Linear(2, 6), nn.Tanh())
        self.decode = made(self.decoder)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decode(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def compiled(part):
    return torch.compile(part, backend="eager")


def compiled_function(part):
    return torch.compile(lambda z: part(z) * 1.0, backend="eager")


def trained(made, compile):
    """Return a bound, the weights after two epochs, and the likelihood."""
    pair = Pair(made)
    program = pv.Program(pair.model, pair.guide)
    pyro.set_rng_seed(2)
    bound = pv.elbo(program, X)
    pv.fit(program, X, epochs=2, batch_size=8, compile=compile)
    weights = [p.detach().clone() for p in (*pair.encoder.parameters(), *pair.decoder.parameters())]
    pyro.set_rng_seed(2)
    return [bound, *weights, pv.log_likelihood(program, X, num_particles=20).log_prob]


# Of the compiler's own look at a network's input, which is a draw.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("compile", [False, "trace"])
@pytest.mark.parametrize("made", [compiled, compiled_function])
def test_numbers_are_those_of_the_network_as_written(made, compile):
    """Also without a word: it is traced, and torch's warning of hooks is not the user's."""
    plain = trained(lambda part: part, compile)
    for got, expected in zip(trained(made, compile), plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
