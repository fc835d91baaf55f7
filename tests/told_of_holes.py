"""Data with holes, programs that observe them, and what is told of these."""

import math
import warnings

import pyro
import pyro.distributions as dist
import torch

import pyro_vae as pv

HOLES = torch.tensor([[0.5, math.nan], [math.nan, 0.2], [1.0, 2.0], [0.1, math.nan]])
WIDE = torch.tensor(
    [[0.3, 1.2, math.nan, 0.7], [math.nan, 0.8, 0.4, 1.9], [1.5, math.nan, 2.2, 0.6]]
).repeat(2, 1) * torch.tensor([1.0, 3.0, 10.0, 0.2])


def masked(observe, plate="data"):
    """A program whose model has a way of its own to leave out what is missing."""

    def model(x):
        with pyro.plate(plate, len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            observe(dist.Normal(z, 1.0), x)

    def guide(x):
        with pyro.plate(plate, len(x)):
            pyro.sample("z", dist.Normal(x.nan_to_num(), 0.5).to_event(1))

    return pv.Program(model, guide)


def told_of(model, *batches, **options):
    """Return what is told of a program, and its last answer."""
    program = pv.Program(model, lambda *data: None, **options)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        answers = [pv.elbo(program, batch) for batch in batches]
    return [str(w.message) for w in given], answers[-1]


def cells_of(make, seen, *, steps=False):
    """Observe what a program makes of its data, at one site or at one for each step."""

    def model(x):
        kept, y = seen(x), make(x)
        with pyro.plate("rows", len(x)):
            for k in range(x.shape[1]) if steps else ():
                pyro.sample(f"y{k}", dist.Normal(0.0, 1.0).mask(kept[:, k]), obs=y[:, k])
            if not steps:
                cells = dist.Normal(torch.zeros(x.shape[1]), 1.0).mask(kept).to_event(1)
                pyro.sample("y", cells, obs=y)

    return model


def exact_seen(x):
    return ~x.isnan()


def all_seen(x):
    return torch.ones_like(x) > 0
