"""Flow posteriors and priors: log-determinants, mass, inverses, and where they start."""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from oracles import PPCA
from pyro.distributions.transforms.spline import _monotonic_rational_spline
from torch import nn

import pyro_vae as pv
from pyro_vae.conditionals import (
    FlowPrior,
    FullGaussian,
    Gaussian,
    InverseAutoregressiveFlow,
    IsotropicGaussian,
    LowRankGaussian,
    PlanarFlow,
    SplineFlow,
    VampPrior,
)
from pyro_vae.conditionals.flows import AutoregressiveFlow
from pyro_vae.conditionals.transforms import Affine, Planar, Spline, rational_quadratic
from pyro_vae.errors import ConfigError
from pyro_vae.models import VAE

EXACT = {"rtol": 1e-9, "atol": 1e-9}
SMALL = {"hidden": (8,), "context_dim": 3}
FLOWS = {
    "planar": partial(PlanarFlow, num_flows=3),
    "iaf": partial(InverseAutoregressiveFlow, num_flows=2, **SMALL),
    "spline": partial(SplineFlow, num_flows=2, num_bins=5, **SMALL),
}
OTHERS = {"low_rank": partial(LowRankGaussian, rank=2), "full": FullGaussian}
PRIORS = {
    "affine": partial(FlowPrior, hidden=(8,)),
    "spline": partial(FlowPrior, hidden=(8,), transform="spline"),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def stirred(module, size=0.2):
    """Move every weight off its start, where flows are the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return module.double()


def vae_with(latent_dim=2, **parts):
    return stirred(VAE(6, latent_dim, (8,), **parts))


def bijections(latent_dim=3):
    """Return makers of one bijection each, with random parameters."""
    bias, u, w = (torch.randn(k).double() for k in (1, latent_dim, latent_dim))
    context = torch.randn(4).double()
    affine, spline = (
        stirred(AutoregressiveFlow(kind, latent_dim, (8,), context_dim=4, backwards=True))
        for kind in ("affine", "spline")
    )
    return {
        "planar": lambda: Planar(bias, 2 * u, w),
        "affine": lambda: affine(context),
        "spline": lambda: spline(context),
    }


@pytest.mark.parametrize("kind", ["planar", "affine", "spline"])
def test_log_determinant_and_inverse(kind):
    make = bijections()[kind]
    for x in 2 * torch.randn(6, 3).double():
        jacobian = torch.autograd.functional.jacobian(lambda point: make()(point), x)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        flow = make()
        y = flow(x)
        torch.testing.assert_close(flow.log_abs_det_jacobian(x, y), expected, **EXACT)
        again = make()  # knows nothing of x: a stale or missing cache would show
        back = again.inv(y.clone())
        torch.testing.assert_close(back, x, **EXACT)
        torch.testing.assert_close(again.log_abs_det_jacobian(back, y), expected, **EXACT)
    many = 2 * torch.randn(4, 6, 3).double()
    assert make().inv(make()(many)).sub(many).abs().max() < 1e-8


@pytest.mark.parametrize("kind", ["planar", "affine", "spline"])
def test_a_density_at_any_point_has_its_gradient(kind):
    name = {"planar": "planar", "affine": "iaf", "spline": "spline"}[kind]
    vae, x = vae_with(posterior=FLOWS[name]), torch.zeros(1, 6).double()
    z = torch.randn(1, 2).double().requires_grad_()
    bias = vae.encoder.net.output.bias

    def density(z, shift):
        out = torch.func.functional_call(vae.encoder, {"net.output.bias": bias + shift}, (x,))
        return out.log_prob(z)

    shift = torch.zeros_like(bias).requires_grad_()
    assert torch.autograd.gradcheck(density, (z, shift), atol=1e-5, rtol=1e-4)


def grid(reach, points):
    line = torch.linspace(-reach, reach, points).double()
    return torch.cartesian_prod(line, line), (line[1] - line[0]) ** 2


@pytest.mark.parametrize("name", [*FLOWS, *OTHERS])
def test_a_posterior_has_mass_one(name):
    encoder = vae_with(posterior={**FLOWS, **OTHERS}[name]).encoder
    z, area = grid(14.0, 401)
    with torch.no_grad():
        q = encoder(torch.ones(6).double())
        assert abs(q.log_prob(z).exp().sum() * area - 1) < 1e-3
        drawn = q.sample((20_000,))
        assert (drawn.abs() < 14).all()  # the grid holds it
        # Two roads to E[z]: the grid's and the draws'; |z| < 5, false alarms 1 in 10^6.
        mean = (z * q.log_prob(z).exp()[:, None]).sum(0) * area
        assert ((drawn.mean(0) - mean).abs() < 5 * drawn.std(0) / len(drawn) ** 0.5 + 1e-3).all()
        assert ((q.mean - mean).abs() < drawn.std(0)).all()


@pytest.mark.parametrize("name", PRIORS)
def test_a_flow_prior_has_mass_one(name):
    prior = vae_with(prior=PRIORS[name]).prior()
    z, area = grid(12.0, 481)
    with torch.no_grad():
        assert abs(prior.log_prob(z).exp().sum() * area - 1) < 1e-3
        assert prior.log_prob(prior.sample((50,))).isfinite().all()


@pytest.mark.parametrize("name", [*FLOWS, *PRIORS])
def test_it_starts_as_the_gaussian(name):
    """A flow without weights is the identity: the same noise gives the same ELBO."""
    plain = VAE(6, 3, (8,)).double()
    parts = {"posterior": FLOWS[name]} if name in FLOWS else {"prior": PRIORS[name]}
    other = VAE(6, 3, (8,), **parts).double()
    weights = plain.state_dict()
    with torch.no_grad():
        for key, value in other.named_parameters():
            if key.startswith("encoder.net.output"):
                value.zero_()[: len(weights[key])] = weights[key]
            elif key in weights:
                value.copy_(weights[key])
    x = torch.bernoulli(torch.full((7, 6), 0.5).double())
    bounds = []
    for vae in (plain, other):
        torch.manual_seed(3)
        bounds.append(pv.elbo(vae, x, num_particles=4))
    torch.testing.assert_close(*bounds, **EXACT)


def test_planar_maps_are_invertible_whatever_the_network_says():
    u, w = 30 * torch.randn(2, 500, 4).double()
    flow = Planar(torch.zeros(500, 1).double(), u, w)
    _, inner, _ = flow._params
    product = (w * flow.u_hat(inner, w)).sum(-1)
    assert product.min() >= -1 - 1e-9 and (product < -0.999).any()  # and the bound is reached


def test_the_spline_is_pyros_inside_its_box():
    widths, heights = torch.randn(2, 1, 8).double() / 5
    slopes = torch.randn(1, 7).double()
    x = torch.linspace(-1.5, 1.5, 50).double()[:, None]  # the end bins differ in Pyro's end slope
    ours = rational_quadratic(x, (widths, heights, slopes), 5.0)
    inner = nn.functional.softplus(slopes + math.log(math.expm1(0.999)))
    pyros = _monotonic_rational_spline(
        x, widths.softmax(-1), heights.softmax(-1), inner, None, bound=5.0
    )
    for mine, theirs in zip(ours, pyros, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    outside, log_slope = rational_quadratic(4 * x + 20, (widths, heights, slopes), 5.0)
    assert torch.equal(outside, 4 * x + 20) and not log_slope.any()


@pytest.mark.parametrize("name", FLOWS)
def test_a_draw_is_scored_without_an_inverse(name, monkeypatch):
    def refuse(self, y):
        raise AssertionError("a draw was inverted")

    vae, x = vae_with(posterior=FLOWS[name]), torch.ones(8, 6).double()
    # Once for a program it is seen whether guide and model take particles, at given values.
    pv.elbo(vae, x, num_particles=2)
    for kind in (Planar, Affine, Spline):
        monkeypatch.setattr(kind, "_inverse", refuse)
    assert pv.log_likelihood(vae, x, num_particles=6).log_prob.isfinite().all()
    for mode in (False, "trace"):
        assert pv.fit(vae, x, epochs=1, compile=mode).history["loss"][0] > 0


def exact_linear(posterior):
    """Return a linear VAE whose encoder's mean is exact, and the oracle behind it."""
    ppca = PPCA.random(6, 3)
    observed = partial(IsotropicGaussian, scale=ppca.scale)
    vae = VAE(6, 3, (), posterior=posterior, observation=observed).double()
    mean, covariance = ppca.posterior(torch.eye(6).double())
    base = ppca.posterior(torch.zeros(1, 6).double())[0][0]
    out = vae.encoder.net.output
    with torch.no_grad():
        vae.decoder.net.output.weight.copy_(ppca.weight)
        vae.decoder.net.output.bias.copy_(ppca.mean)
        vae.decoder.log_scale.fill_(math.log(ppca.scale))
        for parameter in out.parameters():
            parameter.zero_()
        out.weight[:3], out.bias[:3] = (mean - base).mT, base
    return vae, ppca, covariance


def test_a_full_covariance_holds_the_exact_posterior_of_the_linear_vae():
    vae, ppca, covariance = exact_linear(FullGaussian)
    lower = torch.linalg.cholesky(covariance)
    rows, columns = torch.tril_indices(3, 3, -1)
    with torch.no_grad():
        bias = vae.encoder.net.output.bias
        bias[3:6], bias[6:] = lower.diagonal().log(), lower[rows, columns]
    x = ppca.sample(20)
    torch.testing.assert_close(pv.elbo(vae, x), ppca.log_prob(x), **EXACT)  # KL 0, no variance


def test_a_full_covariance_learns_what_a_diagonal_one_cannot():
    """The gap of the best diagonal posterior is known: (Σ log Λ_jj - log |Λ|) / 2."""
    gaps = {}
    for posterior in (Gaussian, FullGaussian):
        vae, ppca, covariance = exact_linear(posterior)
        vae.decoder.requires_grad_(False)
        x = ppca.sample(64)
        pv.fit(
            vae, x, objective=pv.ELBO(20), epochs=300, batch_size=64, lr=0.1,
            lr_schedule=pv.schedules.cosine(1.0, 0.01), compile="trace", progress=False,
        )  # fmt: skip
        gap = ppca.log_prob(x) - pv.elbo(vae, x, num_particles=2000)
        gaps[posterior] = gap.mean().item()
        precision = torch.linalg.inv(covariance)
        known = (precision.diagonal().log().sum() - torch.logdet(precision)).item() / 2
    assert abs(gaps[FullGaussian]) < 0.1 * known
    assert abs(gaps[Gaussian] - known) < 0.1 * known


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"posterior": InverseAutoregressiveFlow}, "hidden="),
        ({"posterior": partial(PlanarFlow, depth=2)}, "PlanarFlow with options"),
        ({"posterior": partial(SplineFlow, num_bins=1)}, "num_bins"),
        ({"posterior": VampPrior}, "posterior=.*expected a class"),
        ({"prior": partial(FlowPrior, transform="planar")}, "transform='planar'"),
        ({"prior": partial(VampPrior, width=3)}, "VampPrior with options"),
        ({"prior": VampPrior, "posterior": FLOWS["planar"]}, "scores each z under the posterior"),
        ({"prior": dist.Normal}, "prior=.*expected a class"),
        ({"encoder": nn.Identity(), "posterior": FullGaussian}, "leave it out"),
    ],
)
def test_what_does_not_fit_is_refused(parts, match):
    with pytest.raises(ConfigError, match=match):
        VAE(6, 400, (8,), **parts) if "hidden" in match else VAE(6, 2, (8,), **parts)
    with pytest.raises(ConfigError, match="at least 2 units"):
        VAE(6, 1, (8,), posterior=InverseAutoregressiveFlow)
