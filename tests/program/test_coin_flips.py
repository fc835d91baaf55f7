"""The first program that most people write, in each form in which it is taught.

The guide is the exact posterior, so that any draw's bound is the evidence:
log B(16, 14) - log B(10, 10), whatever holds the flips.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import pyro_vae as pv

HEADS, TAILS = 6, 4
FLIPS = torch.tensor([1.0] * HEADS + [0.0] * TAILS, dtype=torch.float64)


def log_beta(a, b):
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


EVIDENCE = log_beta(10 + HEADS, 10 + TAILS) - log_beta(10, 10)


def fairness():
    return pyro.sample("fairness", dist.Beta(FLIPS.new_tensor(10.0), FLIPS.new_tensor(10.0)))


def sites_by_number(flips):
    f = fairness()
    for i in range(len(flips)):
        pyro.sample(f"flip_{i}", dist.Bernoulli(f), obs=flips[i])


def loop(flips):
    f = fairness()
    for i in pyro.plate("flips", len(flips)):
        pyro.sample(f"flip_{i}", dist.Bernoulli(f), obs=flips[i])


def plate(flips):
    f = fairness()
    with pyro.plate("flips", len(flips)):
        pyro.sample("flip", dist.Bernoulli(f), obs=flips)


def plate_without_a_size(flips):
    f = fairness()
    with pyro.plate("flips"):
        pyro.sample("flip", dist.Bernoulli(f), obs=flips)


def expanded(flips):
    f = fairness()
    with pyro.plate("flips"):
        pyro.sample("flip", dist.Bernoulli(f).expand([len(flips)]), obs=flips)


def guide(flips):
    a, b = (
        pyro.param(name, FLIPS.new_tensor(float(start)), constraint=constraints.positive)
        for name, start in (("a", 10 + HEADS), ("b", 10 + TAILS))
    )
    pyro.sample("fairness", dist.Beta(a, b))


MODELS = [sites_by_number, loop, plate, plate_without_a_size, expanded]
ONE = {"sites_by_number", "loop"}  # no plate holds the rows


@pytest.mark.parametrize("form", [lambda x: x, lambda x: list(x)], ids=["tensor", "list"])
@pytest.mark.parametrize("model", MODELS, ids=lambda f: f.__name__)
def test_the_bound_of_the_exact_posterior_is_the_evidence(model, form):
    program = pv.Program(model, guide)
    data = form(FLIPS)
    for _ in range(3):
        torch.testing.assert_close(pv.elbo(program, data).sum().item(), EVIDENCE)
    run = pv.fit(program, data, epochs=3, batch_size=10, lr=1e-9, progress=False)
    size = 1 if model.__name__ in ONE else len(FLIPS)
    assert list(run.history["loss"] * size) == pytest.approx([-EVIDENCE] * 3)


@pytest.mark.parametrize("model", [plate, plate_without_a_size])
def test_minibatches_count_the_flips_rightly(model):
    """At a point guide: the prior once, the flips N/B times, on average over the epoch."""

    def point(flips):
        loc = pyro.param("loc", FLIPS.new_tensor(0.5), constraint=constraints.unit_interval)
        pyro.sample("fairness", dist.Delta(loc))

    program = pv.Program(model, point)
    run = pv.fit(program, FLIPS, epochs=2, batch_size=2, lr=1e-12, progress=False)
    whole = 10 * math.log(0.5) + dist.Beta(10.0, 10.0).log_prob(torch.tensor(0.5)).item()
    assert list(run.history["loss"] * 10) == pytest.approx([-whole] * 2)
