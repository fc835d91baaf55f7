"""What a run that diverged advises is followed to the letter, and then trains."""

import re
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import PyroVaeError

torch.manual_seed(0)
NOISE = torch.randn(120, 5)
MEASURED = {
    "large": 1e3 * (torch.randn(120, 2) @ torch.randn(2, 5) + 0.3 * NOISE),
    "far from 0": NOISE + 3e4,
    "one large column": torch.cat([NOISE[:, :4], 1e5 * NOISE[:, 4:]], 1),
    "a constant column": torch.cat([NOISE[:, :4], torch.full((120, 1), 4e3)], 1),
}


class Own(nn.Module):
    """Of a kind that overflows to infinity: nothing is bounded."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.encode, self.decode = kind, nn.Linear(5, 4), nn.Linear(2, 5)

    def model(self, x, seen):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", self.kind(self.decode(z)).to_event(1), obs=x)

    def guide(self, x, seen):
        with pyro.plate("rows", len(x)):
            loc, log_scale = self.encode(seen).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def fitted(build, *data):
    torch.manual_seed(1)
    x = data[0] if len(data) == 1 else data
    return pv.fit(build(), x, epochs=20, batch_size=60, lr=5e-3, progress=False, compile=False)


@pytest.mark.parametrize("data", MEASURED)
@pytest.mark.parametrize("own", [False, True])
def test_data_that_are_not_scaled_are_standardised(data, own):
    x = MEASURED[data]
    observation = pv.conditionals.Gaussian
    build = (
        partial(Own, lambda loc: dist.Normal(loc, 1.0))
        if own
        else partial(pv.models.VAE, 5, 2, (32,), observation=observation)
    )
    with pytest.raises(PyroVaeError, match="far from 1: standardise") as raised:
        fitted(build, *((x, x) if own else (x,)))
    (advice,) = re.findall(r"standardise them, (.*?), or, where", str(raised.value))
    scaled = eval(advice, {"x": x})
    run = fitted(build, *((scaled, scaled) if own else (scaled,)))
    assert run.history["loss"][-3:].mean() < run.history["loss"][:3].mean()


def test_networks_are_given_the_logarithm_of_counts():
    counts = torch.poisson(torch.full((120, 5), 3e3))
    build = partial(Own, lambda logits: dist.Poisson(logits.exp()))
    with pytest.raises(PyroVaeError, match=r"counts, give the networks x\.log1p"):
        fitted(build, counts, counts)
    seen = counts.log1p()
    loss = fitted(build, counts, (seen - seen.mean(0)) / seen.std(0)).history["loss"]
    assert loss[-3:].mean() < loss[:3].mean()


def test_data_of_unit_size_are_not_suspected():
    with pytest.raises(PyroVaeError) as raised:
        pv.fit(Own(lambda loc: dist.Normal(loc, 1.0)), (NOISE, NOISE), lr=1e30, compile=False)
    assert "standardise" not in str(raised.value) and "Lower lr" in str(raised.value)
