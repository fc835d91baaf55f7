"""Two small networks, and a program around them that registers them or not."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.distributions import constraints

import pyro_vae as pv

D, Z, ROWS = 3, 2, 7


def data(rows=ROWS, seed=3):
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed)) + 1


def decode(decoder, x, registered):
    if registered:
        pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), 0.6).to_event(1), obs=x)


def encode(encoder, x, registered):
    if registered:
        pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        loc, log_scale = encoder(x).chunk(2, -1)
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def pair(get_encoder, get_decoder, registered):
    """Return functions that look their networks up when they run."""
    return (
        lambda x: decode(get_decoder(), x, registered),
        lambda x: encode(get_encoder(), x, registered),
    )


NETS = {}


def called_model(x, registered):
    decode(NETS["d"], x, registered)


def called_guide(x, registered):
    encode(NETS["e"], x, registered)


def networks():
    torch.manual_seed(1)
    return nn.Linear(D, 2 * Z), nn.Linear(Z, D)


def weights(nets):
    return [value for net in nets for value in net.parameters()]


def centred(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))


# -- Pyro's parameter store ------------------------------------------------------------------------


def of_statements(seed=0):
    """Parameters of all kinds of statement: plain, constrained, a module's, an autoguide's."""
    torch.manual_seed(seed)
    decoder = nn.Linear(Z, D)

    def model(x):
        pyro.module("decoder", decoder)
        noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
        bias = pyro.sample("bias", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z) + bias, noise).to_event(1), obs=x)

    auto = AutoNormal(poutine.block(model, expose=["bias"]))

    def guide(x):
        auto(x)
        shift = pyro.param("shift", lambda: torch.zeros(Z))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :Z] / 2 + shift, 0.7).to_event(1))

    return model, guide, decoder


def cached_networks(cache=None):
    cache = {} if cache is None else cache

    def get(name, *sizes):
        if name not in cache:
            cache[name] = nn.Linear(*sizes)
        return cache[name]

    return pv.Program(*pair(lambda: get("e", D, 2 * Z), lambda: get("d", Z, D), True))
