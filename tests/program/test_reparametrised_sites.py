"""Reparametrised sites show a value and no density: they are neither data nor rows of the data."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import (
    DiscreteCosineReparam,
    HaarReparam,
    LocScaleReparam,
    SymmetricStableReparam,
    TransformReparam,
)
from torch.distributions.transforms import AffineTransform

import pyro_vae as pv

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


def rows(x):
    """A latent for each datum, and one for each of its columns, in a plate of their own."""
    columns = pyro.plate("columns", 5, dim=-1)
    with columns:
        shift = pyro.sample("shift", dist.Normal(0.5, 2.0))
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.5))
        with columns:
            pyro.sample("x", dist.Normal(z + shift, 0.7), obs=x)


def series(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.5).to_event(1))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Normal(torch.zeros(len(x), 5), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + y, 0.7).to_event(1), obs=x)


def stretched(x):
    with pyro.plate("data", len(x)):
        base = dist.Normal(torch.zeros(len(x)), 1.0)
        z = pyro.sample("z", dist.TransformedDistribution(base, AffineTransform(0.5, 2.0)))
        pyro.sample("x", dist.Normal(z[:, None].expand(-1, 5), 0.7).to_event(1), obs=x)


def heavy(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Stable(1.5, 0.0, torch.ones(len(x)), 0.0))
        pyro.sample("x", dist.Normal(z[:, None].expand(-1, 5), 0.7).to_event(1), obs=x)


CASES = {
    "location and scale": (rows, {"z": LocScaleReparam(), "shift": LocScaleReparam()}),
    "fixed centre": (rows, {"z": LocScaleReparam(0.0)}),
    "cosines": (series, {"y": DiscreteCosineReparam(), "z": DiscreteCosineReparam()}),
    "wavelets": (series, {"y": HaarReparam()}),
    "transform": (stretched, {"z": TransformReparam()}),
    "stable": (heavy, {"z": SymmetricStableReparam()}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_reparametrised_latent_is_no_data(name):
    plain, config = CASES[name]
    model = poutine.reparam(plain, config)
    guide = AutoNormal(model, init_scale=0.1)
    program = pv.Program(model, guide)
    with pyro.get_param_store().scope():
        torch.manual_seed(1)
        assert program.read(X).observed == ("x",)
        drawn = pv.generate(program, 6, given=X)
        assert isinstance(drawn, torch.Tensor) and drawn.shape == X.shape
        assert pv.reconstruct(program, X).shape == X.shape
        theirs = [-Trace_ELBO().loss(model, guide, X) for _ in range(60)]
    ours = [float(pv.elbo(program, X).sum()) for _ in range(40)]
    one, two = torch.tensor(ours), torch.tensor(theirs)
    error = (one.var() / len(one) + two.var() / len(two)).sqrt()
    assert (one.mean() - two.mean()).abs() < 5 * error + 1e-4  # |z| < 5 six times: 4e-6


def test_a_plate_of_reparametrised_latents_is_not_that_of_the_data():
    """As many strains as the table of their features has rows, which a factor scores together."""

    def model(features, counts):
        with pyro.plate("strain", len(features)):
            rate = pyro.sample("rate", dist.Normal(features.sum(-1), 0.5))
        logits = torch.log_softmax(rate, -1)
        pyro.factor("counts", (counts * logits).sum())

    again = poutine.reparam(model, {"rate": LocScaleReparam(0.0)})
    program = pv.Program(again, AutoNormal(again))
    features, counts = X[:3], torch.tensor([3.0, 1.0, 2.0])
    assert pv.elbo(program, (features, counts)).shape == (1,)
    with pytest.raises(pv.errors.ProgramError, match=r"observes no site: data that enter by pyro"):
        pv.generate(program, 1, given=(features, counts))


def test_a_point_mass_on_data_is_still_data():
    """A decoder without noise observes what it is given, not what it computes."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Delta(z[:, None] * torch.ones(5), event_dim=1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    program = pv.Program(model, guide)
    program.read(X)
    assert program.sites.observed == ("x",)
    drawn = pv.generate(program, 4, given=X[:4])
    assert drawn.shape == (4, 5) and torch.equal(drawn, drawn[:, :1].expand(4, 5))
