"""Latents whose prior is a mixture, to whose support torch has no map: exact densities, posteriors.

Statistical checks hold ``|z| < 5`` on a fixed seed.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import distributions as td

import pyro_vae as pv
from pyro_vae.errors import ProgramError
from pyro_vae.program.bounds import scoring
from pyro_vae.program.densities.log_joint import LogJoint

F64 = {"dtype": torch.float64}
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], **F64)
CENTRES = torch.tensor([[-1.0, 0.5], [1.5, 0.0], [0.5, 2.0]], **F64)
LOADINGS = torch.tensor([[1.0, 0.3], [-0.5, 0.8], [0.2, 0.2]], **F64)
NOISE, SPREAD = 0.7, 0.6
PARTS = {
    "numbers": dist.Normal(CENTRES[:, 0], SPREAD),
    "vectors": dist.Normal(CENTRES, SPREAD).to_event(1),
    "joint": dist.MultivariateNormal(CENTRES, SPREAD**2 * torch.eye(2, **F64)),
}


def mixture(parts):
    return dist.MixtureSameFamily(dist.Categorical(WEIGHTS), parts)


def linear(parts, loadings):
    """Three numbers that are linear in a latent, and a guide that looks at none of them."""
    wide = dist.Normal(torch.zeros(parts.event_shape, **F64), 1.5).to_event(len(parts.event_shape))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", mixture(parts))
            mean = z.reshape(*z.shape[: z.dim() - len(parts.event_shape)], -1) @ loadings.mT
            pyro.sample("x", dist.Normal(mean, NOISE).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", wide)

    return pv.Program(model, guide)


def exact(x, loadings):
    """Return log p(x) and the posterior mean of each datum: those of Gaussians, weighed."""
    centres = CENTRES[:, : loadings.shape[1]]
    covariance = SPREAD**2 * loadings @ loadings.mT + NOISE**2 * torch.eye(3, **F64)
    weighed = td.MultivariateNormal(centres @ loadings.mT, covariance).log_prob(x[:, None])
    weighed = weighed + WEIGHTS.log()
    gain = SPREAD**2 * loadings.mT @ covariance.inverse()
    means = centres + (x[:, None] - centres @ loadings.mT) @ gain.mT
    return weighed.logsumexp(-1), (weighed.softmax(-1)[..., None] * means).sum(1)


@pytest.mark.parametrize("kind", PARTS)
def test_a_mixture_of_normals_has_its_evidence_and_its_posterior(kind):
    """All of these ended in a raw error, and with them ``gaps``, ``infer`` and ``HMCRefined``."""
    loadings = LOADINGS[:, :1] if kind == "numbers" else LOADINGS
    program = linear(PARTS[kind], loadings)
    torch.manual_seed(0)
    x = torch.randn(8, 3, **F64)
    log_p, means = exact(x, loadings)
    annealed = pv.ais(program, x, pv.AIS(num_temperatures=5, chains=50, num_leapfrog=1, pilot=20))
    spread = (1 / annealed.ess - 1 / 50).sqrt()
    assert (((annealed.log_prob - log_p).exp() - 1) / spread).abs().max() < 5
    refined = pv.refine(program, x, pv.HMC(num_draws=250, warmup=60, chains=4, num_leapfrog=6))
    mean, scale = (each["z"].reshape(8, -1) for each in (refined.means, refined.scales))
    assert ((mean - means) / scale * refined.ess[:, None].sqrt()).abs().max() < 5
    assert refined.ess.min() > 50


def test_a_mixture_of_what_is_positive_has_the_jacobian_of_its_components():
    parts = dist.Gamma(torch.tensor([1.0, 3.0, 9.0], **F64), torch.tensor([2.0, 1.0, 3.0], **F64))
    x, u = torch.tensor([0.0, 2.0, 5.0], **F64), torch.randn(2, 3, 1, **F64)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(pyro.sample("z", mixture(parts))), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(1.0 + x, 1.0))

    program = pv.Program(model, guide)
    program.read(x)
    with scoring(program):
        density = LogJoint(program, x)
        found, z = density.log_joint(u), u[..., 0].exp()
    of_parts = td.Gamma(parts.concentration, parts.rate).log_prob(z[..., None])
    expected = (of_parts + WEIGHTS.log()).logsumexp(-1) + td.Poisson(z).log_prob(x) + u[..., 0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert density.constant_supports


@pytest.mark.parametrize("plate", [True, False])
@pytest.mark.parametrize("tops", [[2.0, 2.0, 2.0], [2.0, 1.0, 2.0]])
def test_components_on_one_interval_are_a_latent_and_on_several_are_refused(tops, plate):
    tops = torch.tensor(tops, **F64)
    x = torch.tensor([0.1, 0.9, 1.2], **F64)

    def observing(prior, given):
        def function(x):
            z = None if plate else pyro.sample("z", prior)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", prior) if plate else z
                if given:
                    pyro.sample("x", dist.Normal(z, 0.5), obs=x)

        return function

    mixed = mixture(dist.Uniform(torch.zeros_like(tops), tops, validate_args=False))
    program = pv.Program(
        observing(mixed, given=True), observing(dist.Uniform(x[0] - x[0], 1), given=False)
    )
    settings = pv.HMC(num_draws=150, warmup=60, chains=4, num_leapfrog=4)
    if tops.unique().numel() > 1:
        with pytest.raises(ProgramError, match=r"site 'z': the support of MixtureSameFamily is"):
            pv.refine(program, x, settings)
        return
    torch.manual_seed(0)
    refined = pv.refine(program, x, settings)
    grid = torch.linspace(0, 2, 4001, **F64)[:, None]
    weights = td.Normal(x, 0.5).log_prob(grid)
    weights = (weights if plate else weights.sum(1, keepdim=True)).softmax(0)
    mean = (weights * grid).sum(0)
    spread = (weights * (grid - mean) ** 2).sum(0).sqrt()
    ess = torch.as_tensor(refined.ess if plate else refined.ess["z"])
    assert ((refined.means["z"] - mean) / spread * ess.sqrt()).abs().max() < 5
