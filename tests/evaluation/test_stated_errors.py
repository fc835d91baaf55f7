"""The errors that verbs state cover the truth: 90 to 99 % of 200 replications within two of them.

z ~ N(0, I), x | z ~ N(z, s² I), under a guide that is off; 200 equal data are 200 replications. A
share of 95 % over 200 leaves the interval with probability below 0.5 %.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv

S, SD, ROWS = 0.7, 0.75, 200
ROW = torch.tensor([0.9, -1.4], dtype=torch.float64)
X = ROW.expand(ROWS, 2).contiguous()
LOC = 0.5 * ROW + 0.2
EXACT = dist.Normal(0.0, math.sqrt(1 + S**2)).log_prob(ROW).sum()
BOUND = (  # E_q [log p(x, z) - log q(z)], each unit by itself
    dist.Normal(0.0, 1.0).log_prob(LOC)
    + dist.Normal(LOC, S).log_prob(ROW)
    - SD**2 / 2 * (1 + 1 / S**2)
    + 0.5 * math.log(2 * math.pi * math.e * SD**2)
).sum()


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, S).to_event(1), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x + 0.2, SD).to_event(1))


ANNEALED = pv.AIS(num_temperatures=4, chains=8, num_leapfrog=2, pilot=60)


def likelihood():
    found = pv.log_likelihood(pv.Program(model, guide), X, num_particles=100)
    return [(found.log_prob, found.noise, EXACT)]


def annealed():
    found = pv.ais(pv.Program(model, guide), X, ANNEALED)
    return [(found.log_prob, found.noise, EXACT)]


def fitted():
    found = pv.fitted_log_likelihood(
        pv.Program(model, guide), X, num_particles=100, warmup=100, num_draws=100
    )
    return [(found.log_prob, found.noise, EXACT)]


def gaps():
    local = pv.Local(20)
    found = pv.gaps(pv.Program(model, guide), X, annealed=ANNEALED, local=local, num_particles=100)
    return [(found.log_prob, found.log_prob_noise, EXACT), (found.elbo, found.noise, BOUND)]


@pytest.mark.parametrize("verb", [likelihood, annealed, fitted, gaps])
def test_stated_errors_cover_the_truth(verb):
    torch.manual_seed(0)
    for estimate, error, truth in verb():
        inside = ((estimate - truth).abs() < 2 * error).double().mean().item()
        assert 0.9 <= inside <= 0.99, inside
