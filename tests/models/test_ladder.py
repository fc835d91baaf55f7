"""Layers of latents against a linear-Gaussian chain, whose marginal and posterior are known."""

import functools
import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from programs import binary, real
from pyro import poutine
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.conditionals import Categorical, Gaussian
from pyro_vae.errors import ConfigError
from pyro_vae.models import HierarchicalVAE, LadderVAE, TopDownVAE
from pyro_vae.models.ladder import merge
from pyro_vae.program.handlers import sample_sites

KINDS = (HierarchicalVAE, LadderVAE, TopDownVAE)
DATA, UNITS = 6, 3
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
depths = pytest.mark.parametrize("layers", [1, 2, 3])


class Affine(nn.Module):
    """x -> W x + b, or a Gaussian around it."""

    def __init__(self, weight: Tensor, bias: Tensor, scale: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = weight, nn.Parameter(bias), scale

    def forward(self, x: Tensor):
        loc = x @ self.weight.mT + self.bias
        return loc if self.scale is None else dist.Normal(loc, self.scale).to_event(1)


class LinearChain:
    """z_L ~ N(0, I), z_l ~ N(a_l z_{l+1} + b_l, s_l^2), x ~ N(W z_1 + c, 0.5^2).

    The columns of W are orthogonal and a_l, s_l act unit by unit, so that every conditional of the
    posterior is diagonal; the joint is held as one dense Gaussian of (z_1, ..., z_L, x).
    """

    def __init__(self, layers: int) -> None:
        generator = torch.Generator().manual_seed(layers)
        draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
        self.layers, self.noise = layers, 0.5
        self.a = [0.5 + draw(UNITS).abs() for _ in range(layers - 1)]
        self.b = [draw(UNITS) for _ in range(layers - 1)]
        self.s = [0.3 + draw(UNITS).abs() for _ in range(layers - 1)]
        self.c = draw(DATA)
        self.w = torch.linalg.qr(draw(DATA, UNITS))[0] * (1 + torch.arange(UNITS).double())
        self.x = 2 * draw(7, DATA)
        self._join()

    def _join(self) -> None:
        """z_L, ..., z_1, x as maps of independent noise: mean + map @ noise."""
        size = UNITS * self.layers + DATA
        eye = torch.eye(size, dtype=torch.float64)
        noises = [eye[UNITS * k : UNITS * (k + 1)] for k in range(self.layers)]
        mean, root = torch.zeros(UNITS, dtype=torch.float64), noises[-1]
        means, roots = [mean], [root]
        for below in reversed(range(self.layers - 1)):
            mean = self.a[below] * mean + self.b[below]
            root = self.a[below][:, None] * root + self.s[below][:, None] * noises[below]
            means, roots = [mean, *means], [root, *roots]
        means.append(self.w @ mean + self.c)
        roots.append(self.w @ root + self.noise * eye[-DATA:])
        self.mean, root = torch.cat(means), torch.cat(roots)
        self.covariance = root @ root.mT

    def log_prob(self) -> Tensor:
        """Return the exact log p(x), (N,)."""
        covariance = self.covariance[-DATA:, -DATA:]
        return dist.MultivariateNormal(self.mean[-DATA:], covariance).log_prob(self.x)

    def given(self, layer: int, *others: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return p(z_layer | others) as (gain, bias, covariance); layer L + 1 is x."""
        here = torch.arange(UNITS) + UNITS * (layer - 1)
        there = torch.cat(
            [
                torch.arange(UNITS if other <= self.layers else DATA) + UNITS * (other - 1)
                for other in others
            ]
        )
        inverse = torch.linalg.inv(self.covariance[there][:, there])
        gain = self.covariance[here][:, there] @ inverse
        bias = self.mean[here] - gain @ self.mean[there]
        return gain, bias, self.covariance[here][:, here] - gain @ self.covariance[there][:, here]

    def affine(self, layer: int, *others: int) -> Affine:
        """Return p(z_layer | others), which must be diagonal."""
        gain, bias, covariance = self.given(layer, *others)
        assert (covariance - torch.diag(covariance.diagonal())).abs().max() < 1e-12
        return Affine(gain, bias, covariance.diagonal().sqrt())

    def program(self, kind):
        """Return a program that is this chain, and whose guide is its posterior."""
        top, dims = self.layers, (UNITS,) * self.layers
        hidden = UNITS if kind is TopDownVAE else dims
        vae = kind(DATA, dims, hidden, observation=Gaussian).double()
        ones = torch.ones(UNITS, dtype=torch.float64)
        priors = [
            Affine(torch.diag(a), b, s) for a, b, s in zip(self.a, self.b, self.s, strict=True)
        ]
        vae.decoder = Affine(self.w, self.c, torch.full((DATA,), self.noise, dtype=torch.float64))
        if kind is TopDownVAE:
            self._fill_top_down(vae, [*priors, Affine(torch.diag(0 * ones), 0 * ones, ones)])
            return vae
        vae.priors = nn.ModuleList(priors)
        if kind is HierarchicalVAE:
            rest = [self.affine(layer, layer - 1) for layer in range(2, top + 1)]
            vae.posteriors = nn.ModuleList([self.affine(1, top + 1), *rest])
            return vae
        self._fill_ladder(vae)
        return vae

    def _fill_ladder(self, vae) -> None:
        """The upward pass carries a sufficient statistic, with its variance, from layer to layer.

        What x says of z_1 is W'(x - c) / |w|^2; what it says of z_{l+1} is that, solved for it.
        """
        squares = self.w.square().sum(0)
        up = [Affine(self.w.mT / squares[:, None], -(self.w.mT @ self.c) / squares)]
        variances = [self.noise**2 / squares]
        for a, b, s in zip(self.a, self.b, self.s, strict=True):
            up.append(Affine(torch.diag(1 / a), -b / a))
            variances.append((variances[-1] + s.square()) / a.square())
        eye, zero = torch.eye(UNITS, dtype=torch.float64), torch.zeros(UNITS, dtype=torch.float64)
        vae.up = nn.ModuleList(up)
        vae.heads = nn.ModuleList(Affine(eye, zero, variance.sqrt()) for variance in variances)

    def _fill_top_down(self, vae, priors) -> None:
        """The state is the latent above; what flows up is W'x throughout."""
        top = self.layers
        eye, none = torch.eye(UNITS, dtype=torch.float64), torch.zeros(UNITS, dtype=torch.float64)
        still = torch.zeros(UNITS, UNITS, dtype=torch.float64)
        vae.norm, vae.priors = nn.Identity(), nn.ModuleList(priors)
        vae.start = nn.Parameter(none.clone())
        vae.up = nn.ModuleList([Affine(self.w.mT, none), *(Affine(still, none),) * (top - 1)])
        vae.down = nn.ModuleList([Affine(torch.cat([-eye, eye], 1), none)] * top)
        posteriors = []
        for layer in range(1, top + 1):
            above = (layer + 1,) if layer < top else ()
            exact = self.affine(layer, *above, top + 1)
            of_state = exact.weight[:, :UNITS] if above else still
            # The gain by x acts through W'x, as x = W (W'W)^-1 W'x + what tells nothing.
            of_x = exact.weight[:, -DATA:] @ self.w @ torch.linalg.inv(self.w.mT @ self.w)
            posteriors.append(Affine(torch.cat([of_state, of_x], 1), exact.bias.data, exact.scale))
        vae.posteriors = nn.ModuleList(posteriors)


@every_kind
@depths
def test_every_weight_is_the_exact_marginal(kind, layers):
    """With the posterior as guide, log p(x, z) - log q(z | x) = log p(x) at any draw."""
    chain = LinearChain(layers)
    terms = pv.Program.of(chain.program(kind)).terms(chain.x, num_particles=4)
    expected = chain.log_prob().expand(1, 4, -1)
    torch.testing.assert_close(terms.log_weight, expected, rtol=1e-10, atol=1e-10)
    assert set(terms.log_q) == {f"z{layer}" for layer in range(1, layers + 1)}


@every_kind
def test_a_wrong_guide_loses_the_closed_form_gap(kind):
    """The negative control: a shift of one posterior by δ costs δ² / 2σ², exactly, on average."""
    chain = LinearChain(1)
    vae = chain.program(kind)
    shifted = vae.up[0] if kind is LadderVAE else vae.posteriors[0]
    with torch.no_grad():
        shifted.bias += 0.3
    seen = pv.elbo(vae, chain.x, num_particles=20_000)
    gain, _, covariance = chain.given(1, 2)
    assert gain.shape == (UNITS, DATA)
    scale = covariance.diagonal().sqrt()
    moved = 0.3 * torch.ones(UNITS, dtype=torch.float64)
    if kind is LadderVAE:  # the shift of the evidence counts by its share of the precision
        moved = moved * (1 - covariance.diagonal())
    gap = (moved / scale).square().sum() / 2
    assert gap > 0.05
    error = (moved / scale).norm() / 20_000**0.5  # the log weight is Gaussian with that scale
    z = (chain.log_prob() - seen - gap) / error  # 7 draws: a false alarm in 250,000 runs
    assert z.abs().max() < 5


@every_kind
@depths
def test_the_guide_is_the_posterior_layer_by_layer(kind, layers):
    chain = LinearChain(layers)
    vae = chain.program(kind)
    with pv.Program.of(vae).running():
        sites = dict(sample_sites(poutine.trace(vae.guide).get_trace(chain.x)))
    for layer in range(1, layers + 1):
        if kind is HierarchicalVAE:
            others = (layer - 1,) if layer > 1 else (layers + 1,)
        else:
            others = (layer + 1, layers + 1) if layer < layers else (layers + 1,)
        values = [chain.x if o > layers else sites[f"z{o}"]["value"] for o in others]
        exact = chain.affine(layer, *others)(torch.cat(values, -1))
        posterior = sites[f"z{layer}"]["fn"]
        torch.testing.assert_close(posterior.mean, exact.mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            posterior.variance, exact.variance.expand_as(posterior.variance), rtol=1e-9, atol=1e-9
        )


def test_merge_is_the_product_of_the_densities():
    draw = functools.partial(torch.randn, 5, 3, dtype=torch.float64)
    p, q = (dist.Normal(draw(), draw().exp()).to_event(1) for _ in range(2))
    values = torch.randn(20, 5, 3, dtype=torch.float64)
    ratio = p.log_prob(values) + q.log_prob(values) - merge(p, q).log_prob(values)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))  # one constant, whatever z


def test_merge_is_exact_in_float32_at_the_ends_of_the_scales():
    scales = [math.exp(power) for power in (-14, -7, 0, 7, 14)]
    pairs = torch.tensor(list(itertools.product(scales, scales)), dtype=torch.float64)
    locs = torch.tensor([-3.0, 5.0], dtype=torch.float64).expand_as(pairs)

    def merged(dtype):
        mine, its = (
            dist.Normal(locs[:, i].to(dtype), pairs[:, i].to(dtype)).to_event(1) for i in (0, 1)
        )
        return merge(mine, its)

    exact, found = merged(torch.float64), merged(torch.float32)
    precision = pairs.pow(-2)
    torch.testing.assert_close(exact.variance, 1 / precision.sum(1))
    torch.testing.assert_close(exact.mean, (precision * locs).sum(1) / precision.sum(1))
    torch.testing.assert_close(found.mean.double(), exact.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.variance.double(), exact.variance, rtol=1e-5, atol=0)


def deep(kind, layers, **options):
    """Return layers of a kind."""
    if kind is TopDownVAE:
        return kind(6, (4,) * layers, 16, **options)
    return kind(6, (4,) * layers, (16,) * layers, depth=1, **options)


@pytest.mark.parametrize("large", [1.0, 1e4], ids=["unit", "large"])
@every_kind
def test_twelve_layers_train_in_float32(kind, large):
    """Also on data far from any prior: loss and gradient stay finite, and the loss falls."""
    vae, x = deep(kind, 12, observation=Gaussian), large * real(32)
    run = pv.fit(vae, x, epochs=9, batch_size=32, lr=5e-3, clip_norm=100.0, compile=False)
    losses = run.history["loss"]
    assert np.isfinite(losses).all() and losses[-3:].mean() < losses[:3].mean()
    assert torch.isfinite(pv.elbo(vae, x)).all()
    for seed in range(2):
        torch.manual_seed(seed)
        with pv.Program.of(vae).running():
            loss = pv.ELBO().differentiable_loss(vae.model, vae.guide, x)
        grads = torch.autograd.grad(loss, list(vae.parameters()))
        assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in grads)


@every_kind
def test_the_kl_of_the_layers_adds_up(kind):
    """Reconstruction minus the KL of each layer is the ELBO, at equal noise."""
    vae, x = deep(kind, 5).double().eval(), binary(20).double()
    torch.manual_seed(3)
    found = pv.diagnose(vae, x)
    torch.manual_seed(3)
    bound = pv.elbo(vae, x).mean().item()
    assert found.reconstruction - sum(found.kl.values()) == pytest.approx(bound, rel=1e-10)
    assert set(found.kl) == {f"z{layer}" for layer in range(1, 6)}
    for name, units in found.unit_kl.items():
        assert units.shape == (4,) and units.sum().item() == pytest.approx(found.kl[name])


def test_a_layer_without_evidence_keeps_its_prior():
    """Evidence of scale e^14 changes nothing: the KL of a silent layer is zero, not negative."""
    vae = LadderVAE(6, (3, 2), (8, 8), batch_norm=False).double()
    with torch.no_grad():
        for head in vae.heads:
            head.net.weight.zero_()
            head.net.bias.copy_(torch.cat([head.net.bias[: len(head.net.bias) // 2]] * 2))
            head.net.bias[len(head.net.bias) // 2 :] = 1e9  # bounded: a log-scale of 14
    terms = pv.Program.of(vae).terms(binary(4).double(), num_particles=3)
    for name in ("z1", "z2"):
        assert terms.kl(name).abs().max() < 1e-4


@pytest.mark.parametrize("kind", [HierarchicalVAE, LadderVAE], ids=["hierarchical", "ladder"])
def test_a_last_batch_of_one_row_trains_under_batch_norm(kind):
    vae = kind(6, (3, 2), (8, 8))
    run = pv.fit(vae, binary(33), epochs=3, batch_size=16)
    assert np.isfinite(run.history["loss"]).all()


@every_kind
def test_other_data(kind):
    """Images and categories; the output starts at the training mean."""
    hidden = 8 if kind is TopDownVAE else (8, 6)
    x = binary(9, (1, 4, 4))
    vae = kind((1, 4, 4), (3, 2), hidden, data_mean=x.mean(0))
    assert torch.isfinite(pv.elbo(vae, x)).all() and pv.generate(vae, 4).shape == (4, 1, 4, 4)
    start = x.mean(0).clamp(0.001, 0.999).logit().flatten()
    torch.testing.assert_close(vae.decoder.net.output.bias, start)
    names = functools.partial(Categorical, num_classes=3)
    classes = kind(6, (3, 2), hidden, observation=names)
    assert torch.isfinite(pv.elbo(classes, 2 * binary(9).long())).all()
    assert pv.models.__dict__[kind.__name__](**classes.config).config == classes.config


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: LadderVAE(6, (3, 2), (8,)), r"hidden=\[8\] has 1 width for 2 latent layers"),
        (lambda: HierarchicalVAE(6, (), ()), r"latent_dims=\(\) is empty"),
        (lambda: LadderVAE(6, (3, 2), (8, 8), depth=0), "depth: got 0, expected an integer"),
        (lambda: TopDownVAE(6, (3, 2), hidden=0), "hidden: got 0, expected an integer"),
        (lambda: LadderVAE(6, 3, (8,)), "latent_dims: got 3, expected a sequence"),
        (lambda: TopDownVAE(6, (3,), 8, activation="sine"), "activation='sine' is unknown"),
    ],
)
def test_bad_sizes(build, match):
    with pytest.raises(ConfigError, match=match):
        build()


def test_the_state_of_a_deep_descent_starts_no_larger_than_that_of_a_shallow_one():
    """What 48 layers add to the state has the size of what 3 add; it would be 16 times as large."""
    sizes = []
    for layers in (3, 48):
        torch.manual_seed(0)
        vae = TopDownVAE(DATA, (4,) * layers, hidden=32)
        vae.norm = nn.Identity()
        noise = iter(torch.randn(layers, 500, 4))
        moved = vae.descend(lambda layer, state, noise=noise: next(noise)) - vae.start
        sizes.append(moved.square().mean().item())
    assert 0.4 < sizes[1] / sizes[0] < 2.5


def test_the_top_of_a_deep_guide_reads_the_end_of_the_upward_pass(store):
    vae, x, locs = TopDownVAE(DATA, (2, 2, 2), hidden=8), binary(5), []
    for _ in range(2):
        site = poutine.trace(vae.guide).get_trace(x).nodes["z3"]
        locs.append(site["fn"].base_dist.loc.detach())
        with torch.no_grad():
            vae.up[2][-1].output.bias.copy_(torch.randn(8))
    assert not torch.equal(*locs)
