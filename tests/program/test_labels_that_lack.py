"""Labels of -1: a value decides what is latent, and each batch is read by its own."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv

PRIOR = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
LOC = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
X = torch.linspace(-2.0, 4.0, 9, dtype=torch.float64)
LABELS = torch.arange(9) % 3
NONE = torch.full((9,), -1)


def model(x, y):
    with pyro.plate("data", len(x)):
        given = y if bool((y >= 0).all()) else None
        y = pyro.sample("y", dist.Categorical(PRIOR), obs=given)
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)).double(), 1.0))
        pyro.sample("x", dist.Normal(LOC[y] + z, 1.0), obs=x)


def guide(x, y):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x - 1) / 2, 1.0))


def exact(labels):
    """y and z summed and integrated out of what is not given, and p(y | x)."""
    joint = dist.Normal(LOC, 2**0.5).log_prob(X[:, None]) + PRIOR.log()
    alone = labels is NONE
    log_p = joint.logsumexp(-1) if alone else joint.gather(-1, labels[:, None])[:, 0]
    return log_p, joint.softmax(-1)


@pytest.mark.parametrize("order", [(LABELS, NONE), (NONE, LABELS)])
def test_labels_may_lack_in_either_order(order):
    program = pv.Program(model, guide)
    for y in (*order, *order):
        log_p, probabilities = exact(y)
        torch.manual_seed(0)
        found = pv.log_likelihood(program, (X, y), num_particles=2000)
        error = (found.log_prob - log_p).abs() / found.stderr
        assert error.max() < 5 and (found.log_prob - log_p).abs().max() < 0.3
        codes = pv.encode(program, (X, y))
        if y is NONE:
            assert (
                codes["y"].argmax(-1)[[0, 8]].tolist() == probabilities.argmax(-1)[[0, 8]].tolist()
            )
        else:
            assert codes.shape == (9,)  # of z alone
