"""Likelihoods of one's own by ``pyro.factor`` on data with holes: those taken, those refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import DataError

X = torch.tensor([[0.5, math.nan], [math.nan, 0.2], [1.0, 2.0], [math.nan, math.nan]])


def scores(mean, x):
    return dist.Normal(mean, 1.0, validate_args=False).log_prob(x)


def of(observe, latent=True):
    loc = torch.nn.Parameter(torch.tensor([0.3, -0.2]))

    def model(x):
        with pyro.plate("data", len(x)):
            mean = loc.expand(len(x), 2)
            if latent:
                mean = mean + pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            observe(mean, x)

    def guide(x):
        with pyro.plate("data", len(x)):
            if latent:
                pyro.sample("z", dist.Normal(x.nan_to_num() / 2, 0.7).to_event(1))

    return pv.Program(model, guide, modules={"loc": torch.nn.ParameterList([loc])})


def by_mask(mean, x):
    pyro.sample("x", dist.Normal(mean, 1.0).mask(~x.isnan()).to_event(1), obs=x.nan_to_num())


def by_weight(mean, x):
    pyro.factor("x", ((~x.isnan()).float() * scores(mean, x.nan_to_num())).sum(-1))


def by_choice(mean, x):
    pyro.factor("x", torch.where(x.isnan(), 0.0, scores(mean, x.nan_to_num())).sum(-1))


def beside_a_penalty(mean, x):
    by_choice(mean, x)
    pyro.factor("penalty", 0.0 * mean.square().sum(-1))


@pytest.mark.parametrize("observe", [by_weight, by_choice, beside_a_penalty])
@pytest.mark.parametrize("latent", [True, False])
def test_a_factor_that_leaves_out_what_is_missing_counts_as_a_mask(observe, latent):
    """It was refused: NaN was taken for what is scored where no site has a mask."""
    losses = []
    for each in (observe, by_mask):
        program = of(each, latent)
        run = pv.fit(program, X, epochs=3, lr=0.1, progress=False, seed=0)
        torch.manual_seed(0)
        losses.append(torch.tensor([*run.history["loss"], *pv.elbo(program, X).tolist()]))
    torch.testing.assert_close(*losses)


def forgetful(mean, x):
    pyro.factor("x", scores(mean, x.nan_to_num()).sum(-1))


def forgetful_of_one_column(mean, x):
    kept = ~x.isnan() | torch.tensor([False, True])
    pyro.factor("x", torch.where(kept, scores(mean, x.nan_to_num()), 0.0).sum(-1))


def spoiled(mean, x):
    pyro.factor("x", torch.where(x.isnan(), 0.0, scores(mean, x)).sum(-1))


@pytest.mark.parametrize(
    ("observe", "told"),
    [
        (forgetful, "counts where a row has no number"),
        (forgetful_of_one_column, "counts where a row has no number"),
        (spoiled, "is NaN, or its gradient is"),
    ],
)
@pytest.mark.parametrize("latent", [True, False])
def test_a_factor_of_holes_is_refused_with_what_it_has_to_leave_out(observe, told, latent):
    with pytest.raises(DataError, match=rf"value nan .* site 'x', a factor, {told}"):
        pv.elbo(of(observe, latent), X)
