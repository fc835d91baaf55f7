"""Modalities that may lack: experts as guides, against linear Gaussians whose answers are known."""

from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.conditionals import Categorical, Gaussian, MixtureOfExperts, ProductOfExperts
from pyro_vae.distributions import FixedMixture
from pyro_vae.errors import ConfigError, DataError
from pyro_vae.models import MultimodalVAE

EXACT = {"rtol": 1e-9, "atol": 1e-9}
ZERO = torch.zeros(()).double()
A, B = torch.tensor([[2.0]]).double(), torch.tensor([[1.0]]).double()


class Around(nn.Module):
    """N(slope x, variance)."""

    def __init__(self, slope, variance):
        super().__init__()
        self.slope, self.scale = slope, variance**0.5

    def forward(self, x):
        return dist.Normal(self.slope * x, self.scale + 0 * x).to_event(1)


def linear(guide):
    """z ~ N(0, 1), a ~ N(z, 1), b ~ N(z, 1/2); a product of what each says of z is its posterior.

    A mixture gets the posteriors given one of them alone.
    """
    one = {"data_dim": 1, "observation": Gaussian}
    vae = MultimodalVAE({"a": one, "b": one}, 1, (4,), guide=guide).double()
    vae.decoders["a"], vae.decoders["b"] = Around(1.0, 1.0), Around(1.0, 0.5)
    experts = [(1.0, 1.0), (1.0, 0.5)] if guide == "product" else [(0.5, 0.5), (2 / 3, 1 / 3)]
    vae.posterior.experts = nn.ModuleList(Around(*each) for each in experts)
    return vae


def test_a_product_of_experts_is_the_posterior():
    """Mean 1, variance 1/4 and log p(a, b) = -3.1844506567 at a = 2, b = 1."""
    vae = linear("product")
    q = vae.encoder(*vae.cells(A, B)).base_dist
    assert q.loc.item() == pytest.approx(1.0) and q.variance.item() == pytest.approx(0.25)
    for found in (pv.elbo(vae, (A, B)), pv.log_likelihood(vae, (A, B), num_particles=3).log_prob):
        assert found.item() == pytest.approx(-3.1844506567, abs=1e-9)


NONE = torch.full((1, 1), torch.nan).double()
LACKING = {
    "NaN": (A, NONE),
    "None": {"a": A, "b": None},
    "left out": {"a": A},
    "a mask": (A, B, torch.tensor([[True, False]])),
}


@pytest.mark.parametrize("how", LACKING)
def test_a_modality_that_lacks_drops_out(how):
    """a ~ N(0, 2) is left; b given it is N(1, 1), its mean and draws by `impute`, |z| < 5."""
    vae, data = linear("product"), LACKING[how]
    marginal = dist.Normal(ZERO, 2**0.5).log_prob(A)[0]
    torch.testing.assert_close(pv.elbo(vae, data), marginal, **EXACT)
    if how == "NaN":
        data = tuple(x.expand(200, 1) for x in data)
        torch.manual_seed(0)
        found = pv.impute(vae, data, num_particles=40)
        assert torch.equal(found.values["a"], data[0]) and not found.missing["a"].any()
        assert found.missing["b"].all() and (found.stderr["a"] == 0).all()
        assert ((found.values["b"] - 1).abs() < 5 * found.stderr["b"]).all()
        drawn = pv.impute(vae, data, how="sample", num_particles=10).values["b"]
        assert abs(drawn.mean() - 1) < 5 * (1 / 200) ** 0.5
        assert abs(drawn.var() - 1) < 5 * (2 / 200) ** 0.5


def test_a_mixture_of_experts_has_its_own_bound():
    """ELBO -3.3429511800 by quadrature; by draws within five standard errors."""
    vae = linear("mixture")
    z = torch.linspace(-12.0, 12.0, 20_001).double()[:, None]
    log_q = vae.encoder(*vae.cells(A, B)).log_prob(z)
    log_p = dist.Normal(ZERO, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(A)
    log_p = (log_p + dist.Normal(z, 0.5**0.5).log_prob(B))[:, 0]
    bound = torch.trapezoid(log_q.exp() * (log_p - log_q), z[:, 0])
    assert bound.item() == pytest.approx(-3.3429511800, abs=1e-9)
    torch.manual_seed(0)
    found = pv.elbo(vae, (A.expand(4000, 1), B.expand(4000, 1)))
    assert abs(found.mean() - bound) < 5 * found.std() / 4000**0.5
    alone = pv.elbo(vae, (A, NONE))  # the one expert that is there is the posterior
    torch.testing.assert_close(alone, dist.Normal(ZERO, 2**0.5).log_prob(A)[0], **EXACT)
    nothing = vae.encoder(*vae.cells(NONE, NONE))
    torch.testing.assert_close(nothing.log_prob(z), dist.Normal(ZERO, 1.0).log_prob(z)[:, 0])


def test_draws_of_a_mixture_carry_its_gradient():
    """E z² of weights 3/4, 1/4: 2 w_k μ_k, 2 w_k σ_k; |z| < 5. A weight of 0 has no gradient."""
    loc = torch.tensor([[1.0], [-2.0], [5.0]]).double().requires_grad_()
    scale = torch.tensor([[0.5], [1.5], [1.0]]).double().requires_grad_()
    weights = torch.tensor([0.75, 0.25, 0.0]).double()
    torch.manual_seed(1)
    each = []
    for _ in range(200):
        q = FixedMixture(dist.Categorical(weights), dist.Normal(loc, scale).to_event(1))
        grads = torch.autograd.grad(q.rsample((50,)).square().sum(-1).mean(), (loc, scale))
        each.append(torch.stack(grads))
    each = torch.stack(each)[..., 0]
    exact = 2 * weights * torch.stack([loc, scale])[..., 0].detach()
    error = (each.mean(0) - exact).abs() / (each.std(0) / 200**0.5).clamp(min=1e-12)
    assert (error[:, :2] < 5).all() and (each[..., 2] == 0).all()


def test_what_lacks_trains_nothing(tmp_path):
    """Values behind a mask count nowhere, gradients are finite, steps are a graph; kept on disk."""
    torch.manual_seed(3)
    label = {"data_dim": 1, "observation": partial(Categorical, num_classes=3)}
    vae = MultimodalVAE({"image": 6, "label": label}, 2, (8,))
    image, y = (torch.rand(12, 6) < 0.5).float(), (torch.arange(12)[:, None] % 3).float()
    there = torch.stack([torch.arange(12) % 3 > 0, torch.arange(12) % 4 > 0], -1)
    holed = {
        "image": image.masked_fill(~there[:, :1], torch.nan),
        "label": y.masked_fill(~there[:, 1:], torch.nan),
    }

    def score(program, data):
        torch.manual_seed(4)
        return pv.elbo(program, data)

    expected = score(vae, holed)
    torch.testing.assert_close(score(vae, (image, y, there)), expected)
    torch.testing.assert_close(score(vae, (1 - image, y, there))[3:4], expected[3:4])
    run = pv.fit(vae, holed, objective=pv.MIWAE(3), epochs=2, batch_size=6, compile="trace")
    assert run.compiled == "graph"
    assert all(p.isfinite().all() for p in vae.parameters())
    found = pv.impute(vae, holed, num_particles=20).values
    assert set(found["label"].unique().tolist()) <= {0.0, 1.0, 2.0}
    assert torch.equal(found["image"][there[:, 0]], image[there[:, 0]])
    pv.save(vae, tmp_path)
    torch.testing.assert_close(score(pv.load(tmp_path), holed), score(vae, holed))


def test_what_is_no_modality_is_told():
    vae = MultimodalVAE({"left": 3, "right": 3}, 2, (4,))
    x = torch.zeros(2, 3)
    for data in ({"left": x, "up": x}, {"left": None, "right": None}, (x, x, x, x)):
        with pytest.raises(DataError, match=r"expected modalities \['left', 'right'\]"):
            vae.cells(**data) if isinstance(data, dict) else vae.cells(*data)
    for modalities in ({}, {"z": 3}, {"observed": 3}, {"left": {"size": 3}}):
        with pytest.raises(ConfigError, match=r"modalities: "):
            MultimodalVAE(modalities, 2)
    for kind in (ProductOfExperts, MixtureOfExperts):
        with pytest.raises(ConfigError, match="experts: got none"):
            kind([])


def test_a_mask_of_other_modalities_is_refused():
    vae, x = MultimodalVAE({"a": 2, "b": 2}, 1, (4,)), torch.zeros(3, 2)
    for shape in ((3, 1), (3, 3), (1, 2)):
        with pytest.raises(DataError, match=r"observed: got shape .*expected \(3, 2\)"):
            vae.cells(x, x, torch.ones(shape))
    with pytest.raises(DataError, match=r"b: got shape \(3,\), expected \(3, 2\)"):
        pv.elbo(vae, (x, x[:, 0]))
