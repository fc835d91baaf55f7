"""The KL in closed form under weights: where it is right it is taken, and nowhere else."""

import contextlib
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyro_vae as pv
from pyro_vae.inference.objectives.elbo import analytic_sites
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.handlers import ScaleLatents

X = torch.linspace(-1.0, 2.0, 4, dtype=torch.float64)
HALF = torch.tensor(0.5, dtype=torch.float64)


def own(weight):
    """Return a weight on one site within the program, or none."""
    return contextlib.nullcontext() if weight is None else poutine.scale(scale=weight)


def program(of_model=None, of_guide=None, size=None):
    """Return model and guide; x depends on z, and z may stand under weights of its own."""

    def plate(x):
        return pyro.plate("data", size or len(x), subsample_size=len(x) if size else None)

    def model(x: Tensor) -> None:
        with plate(x):
            with own(of_model):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), x.new_ones(())))
            pyro.sample("x", dist.Normal(z, x.new_ones(())), obs=x)

    def guide(x: Tensor) -> None:
        with plate(x), own(of_guide):
            pyro.sample("z", dist.Normal(0.5 * x, 0.7 * x.new_ones(())))

    return model, guide


def each(handler, pair):
    return tuple(handler(side) for side in pair)


def outer(beta, scale):
    """Return a weight around the KL weight."""
    return lambda pair: each(poutine.scale(scale=scale), each(ScaleLatents(beta), pair))


def sides(of_model, of_guide):
    """Return KL weights that may differ between model and guide; None leaves one out."""

    def weigh(pair):
        betas = zip((of_model, of_guide), pair, strict=True)
        return tuple(side if beta is None else ScaleLatents(beta)(side) for beta, side in betas)

    return weigh


PLAIN = program()
# name: (pair under its weights, whether the closed form is right)
CASES = {
    "no weight": (PLAIN, True),
    "beta": (sides(0.5, 0.5)(PLAIN), True),
    "beta 0": (sides(0.0, 0.0)(PLAIN), True),
    "one tensor": (sides(HALF, HALF)(PLAIN), True),
    "by site": (each(ScaleLatents({"z": 2.0}), PLAIN), True),
    "subsampled": (sides(0.5, 0.5)(program(size=40_000)), True),
    "two tensors": (sides(HALF, HALF.clone())(PLAIN), False),
    "a weight per datum": (sides(*[torch.full((4000,), 0.5).double()] * 2)(PLAIN), False),
    "of the model alone": (sides(0.5, None)(PLAIN), False),
    "of the guide alone": (sides(None, 0.5)(PLAIN), False),
    "unequal": (sides(0.5, 0.25)(PLAIN), False),
    "a scale within the model": (sides(0.5, 0.5)(program(of_model=0.5)), False),
    "a scale within both": (sides(0.5, 0.5)(program(0.5, 0.5)), False),
    "a scale around": (outer(0.5, 0.5)(PLAIN), False),
    "a scale around, subsampled": (outer(0.5, 0.5)(program(size=40_000)), False),
    "twice": (sides(0.5, 0.5)(sides(0.5, 0.5)(PLAIN)), False),
    "a scale": (each(poutine.scale(scale=0.5), PLAIN), False),
    "a mask": (each(poutine.mask(mask=torch.tensor(True)), PLAIN), False),
}


@pytest.mark.parametrize("name", CASES)
def test_the_closed_form_is_taken_where_it_is_right(name):
    """The bound is that of ELBO: |z| < 5 for a difference over 4,000 rows, false alarm 6e-7."""
    pair, right = CASES[name]
    x = X.repeat(1000)
    joint = Joint(*pair, (x,), num_plates=1)
    pyro.set_rng_seed(0)
    terms = joint.terms()
    assert analytic_sites(terms) == (["z"] if right else [])
    analytic = pv.AnalyticELBO().loss_of(terms)
    estimate = pv.ELBO().loss_of(terms)
    assert analytic.shape == ()
    spread = terms.kl("z").std() / len(x) ** 0.5
    assert abs(analytic - estimate) <= 5 * spread + 1e-12
    assert (abs(analytic - estimate) > 1e-9) == (right and name != "beta 0")


def test_a_global_latent_does_not_stand_in_the_way():
    """N/B is no weight: under beta the local latent of a Bayesian VAE keeps its closed form."""
    vae = pv.Program.of(pv.models.BayesianVAE(6, 2, (8,)))
    x = torch.ones(4, 6)
    for beta in (None, 1.0, 0.5, torch.tensor(0.5), {"z": 0.3}):
        with vae.running():
            terms = vae.joint(x, beta=beta, size=100).terms()
        assert analytic_sites(terms) == ["z"], beta


def test_a_global_that_looks_at_the_local_keeps_its_noise():
    """w = z + 1 in the guide: E over both is not the KL of z at a w that was drawn from it.

    w | z ~ N(z + 1, 0.3), z ~ N(x / 2, 1); the exact mean of log p(x, z, w) - log q is Gaussian.
    Mean of 1,000 losses, |z| < 5; one nat is 15 standard errors and more.
    """

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(()).double(), 1.0))
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Normal(w, torch.ones(1).double()))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Normal(x / 2, 1.0))
        pyro.sample("w", dist.Normal(z[..., 0] + 1.0, 0.3))

    x = torch.tensor([0.8], dtype=torch.float64)
    constant = 0.5 * math.log(2 * math.pi)
    second_w = 0.4**2 + 2 * 0.4 + 1 + 1 + 0.09  # E w² with E z = 0.4 and Var z = 1
    log_p = -(second_w + (1 + 0.09) + (0.4**2 + 1)) / 2 - 3 * constant
    exact = log_p + 2 * constant + 1 + math.log(0.3)  # the entropies
    program = pv.Program(model, guide)
    program.read(x)
    torch.manual_seed(0)
    with program.running(), torch.no_grad():
        joint = program.joint(x)
        losses = torch.stack([pv.AnalyticELBO().per_datum(joint) for _ in range(1000)])
    assert abs(-losses.mean() - exact) < 5 * losses.std() / math.sqrt(1000)
    assert analytic_sites(joint.terms()) == []
