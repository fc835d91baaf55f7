"""Gradients: per-sample closed forms, zero variance at the posterior, means, variances, floors.

Statistical checks ask |z| < 5 of each coordinate of a mean of R = 4000 independent gradients with
fixed seeds: a correct estimator fails a case of 20 coordinates with probability 1.1e-5.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimators import (
    Toy,
    bernoulli,
    expected,
    gauss_hermite,
    gradient,
    iwae_bound,
    largest_z,
    leaves,
    mean_bound,
    normal,
    row_gradients,
)
from oracles import PPCA
from torch import Tensor, nn
from torch.distributions import Transform, constraints

import pyro_vae as pv
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.objectives import elbo as objectives
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.handlers import ScaleLatents

ROWS = 4000
X = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)


def loss_on(program, x, objective, beta=None, size=None):
    joint = Joint(program.model, program.guide, (x,), num_plates=1, size=len(x))
    if beta is not None:
        joint = Joint(
            ScaleLatents(beta)(program.model), ScaleLatents(beta)(program.guide), (x,), num_plates=1
        )
    return objective.loss_of_joint(joint)[0]


# -- per-sample closed form ----------------------------------------------------------------------


class Scalar(nn.Module):
    """x ~ N(t z + b, s²), z ~ N(0, 1), q = N(a x + c, e^2r), with the draws on record."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        values = {"t": 1.3, "b": -0.4, "a": 0.5, "c": 0.2, "r": -0.7}
        for name, value in values.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))
        self.noise = noise

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), x.new_ones(())))
            pyro.sample("x", dist.Normal(self.t * z + self.b, self.noise), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            self.z = pyro.sample("z", dist.Normal(self.a * x + self.c, self.r.exp()))

    @torch.no_grad()
    def by_hand(self, x: Tensor, model_weight, path_weight, keeps_score: bool) -> dict[str, Tensor]:
        """Return the gradient of the bound at the recorded draws; no autograd."""
        z = self.z.reshape(-1, len(x))
        scale = self.r.exp()
        eps = (z - self.a * x - self.c) / scale
        error = (x - self.t * z - self.b) / self.noise**2
        log_weight = (
            -0.5 * self.noise**2 * error.square() - 0.5 * z.square() + 0.5 * eps.square() + self.r
        )
        v, u = model_weight(log_weight), path_weight(log_weight)
        # d/dz of log p; sticking the landing takes -d/dz log q = eps / scale along, while in the
        # total derivative log q = -eps²/2 - r moves with r alone.
        slope = self.t * error - z + (0.0 if keeps_score else eps / scale)
        spread = slope * eps * scale + (1.0 if keeps_score else 0.0)
        return {
            "t": (v * error * z).sum(0).mean(),
            "b": (v * error).sum(0).mean(),
            "a": (u * slope * x).sum(0).mean(),
            "c": (u * slope).sum(0).mean(),
            "r": (u * spread).sum(0).mean(),
        }


def even(log_weight):
    return torch.full_like(log_weight, 1 / len(log_weight))


def power(p):
    return lambda log_weight: (p * log_weight).softmax(0)


CLOSED = {
    "ELBO": (pv.ELBO, even, even, True),
    "STL": (pv.STL, even, even, False),
    "IWAE": (pv.IWAE, power(1.0), power(1.0), True),
    "DReG": (pv.DReG, power(1.0), lambda lw: lw.softmax(0).square(), False),
    "Rényi 0.5": (lambda k: pv.Renyi(0.5, k), power(0.5), power(0.5), True),
    "Rényi -2": (lambda k: pv.Renyi(-2.0, k), power(3.0), power(3.0), True),
    "Rényi 1": (lambda k: pv.Renyi(1.0, k), even, even, True),
}


@pytest.mark.parametrize("noise", [0.3, 2.0])
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("num_particles", [1, 4, 50])
@pytest.mark.parametrize("name", CLOSED)
def test_closed_form_per_sample(name, num_particles, rows, noise):
    build, model_weight, path_weight, keeps_score = CLOSED[name]
    program = Scalar(noise)
    x = torch.linspace(-2, 3, rows, dtype=torch.float64)
    (-loss_on(program, x, build(num_particles))).backward()
    exact = program.by_hand(x, model_weight, path_weight, keeps_score)
    for key, parameter in program.named_parameters():
        torch.testing.assert_close(parameter.grad, exact[key], rtol=1e-10, atol=1e-10, msg=key)


# -- zero at the posterior -----------------------------------------------------------------------


class TrainablePPCA(nn.Module):
    """pPCA with a guide of full covariance that starts at the exact posterior."""

    def __init__(self, oracle: PPCA) -> None:
        super().__init__()
        _, covariance = oracle.posterior(oracle.mean[None])
        self.weight, self.mean, self.scale = oracle.weight, oracle.mean, oracle.scale
        self.gain = nn.Parameter(oracle.weight @ covariance / oracle.scale**2)
        self.offset = nn.Parameter(torch.zeros(len(covariance), dtype=torch.float64))
        self.tril = nn.Parameter(torch.linalg.cholesky(covariance))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            unit = x.new_ones(self.weight.shape[1])
            z = pyro.sample("z", dist.Normal(0 * unit, unit).to_event(1))
            loc = z @ self.weight.mT + self.mean
            pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = (x - self.mean) @ self.gain + self.offset
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=self.tril))


PATHS = {"STL": pv.STL, "DReG": pv.DReG}


@pytest.mark.parametrize("num_particles", [1, 5, 64])
@pytest.mark.parametrize(("data_dim", "latent_dim"), [(2, 1), (6, 2), (20, 4)])
@pytest.mark.parametrize("name", PATHS)
def test_guide_gradient_vanishes_at_the_posterior(name, data_dim, latent_dim, num_particles):
    oracle = PPCA.random(data_dim, latent_dim)
    program = TrainablePPCA(oracle)
    x = oracle.sample(5)
    loss_on(program, x, PATHS[name](num_particles)).backward()
    assert max(p.grad.abs().max().item() for p in program.parameters()) < 1e-10
    program.zero_grad()
    loss_on(program, x, pv.ELBO(num_particles)).backward()  # the plain gradient is noise
    assert max(p.grad.abs().max().item() for p in program.parameters()) > 1e-3


class SharedMean(nn.Module):
    """x_n ~ N(z_n + w, s²): the exact posterior is q(w) q(z_n | x_n, w), all of it trainable."""

    def __init__(self, x: Tensor, noise: float = 0.6) -> None:
        super().__init__()
        evidence = 1 + noise**2
        precision = 1 + len(x) / evidence
        start = {
            "w_loc": x.sum() / evidence / precision,
            "w_log_scale": -0.5 * torch.as_tensor(precision, dtype=x.dtype).log(),
            "gain": torch.as_tensor(1 / evidence, dtype=x.dtype),
            "log_scale": torch.as_tensor(0.5 * math.log(noise**2 / evidence), dtype=x.dtype),
        }
        for name, value in start.items():
            self.register_parameter(name, nn.Parameter(value.clone()))
        self.noise = noise

    def model(self, x: Tensor) -> None:
        zero, one = x.new_zeros(()), x.new_ones(())
        w = pyro.sample("w", dist.Normal(zero, one))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(zero, one))
            pyro.sample("x", dist.Normal(z + w, self.noise), obs=x)

    def guide(self, x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(self.w_loc, self.w_log_scale.exp()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.gain * (x - w), self.log_scale.exp()))


@pytest.mark.parametrize(("num_global_samples", "num_particles"), [(1, 1), (1, 8), (3, 4)])
@pytest.mark.parametrize("name", PATHS)
def test_guide_gradient_vanishes_at_the_posterior_with_a_global(
    name, num_global_samples, num_particles
):
    x = torch.randn(7, dtype=torch.float64)
    program = SharedMean(x)
    loss_on(program, x, PATHS[name](num_particles, num_global_samples)).backward()
    assert max(p.grad.abs().max().item() for p in program.parameters()) < 1e-10


# -- means ---------------------------------------------------------------------------------------


class Global:
    """A global w with one coordinate per row, so that rows stay independent; K locals z | w."""

    names = ("t", "d", "e", "w_loc", "w_scale", "c", "h", "z_scale")

    def params(self):
        values = (1.2, 0.7, 0.5, 0.3, -0.4, -0.2, 0.6, -0.3)
        return {n: torch.tensor([v]).double() for n, v in zip(self.names, values, strict=True)}

    def program(self, p):
        p = {name: value.squeeze(-1) for name, value in p.items()}

        def model(x):
            w = pyro.sample("w", dist.Normal(x.new_zeros(len(x)), 1.0).to_event(1))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                logits = p["t"] * z + p["d"] * w + p["e"] * z * w
                pyro.sample("x", dist.Bernoulli(logits=logits), obs=x.squeeze(-1))

        def guide(x):
            w = pyro.sample("w", dist.Normal(p["w_loc"], p["w_scale"].exp()).to_event(1))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(p["c"] + p["h"] * w, p["z_scale"].exp()))

        return model, guide

    def exact(self, p, count, bound, nodes=20):
        """Return E[log p(w) - log q(w) + bound(K log weights)] for x = 1."""
        eps, mass = gauss_hermite(1, nodes)
        total = 0.0
        for node, log_mass in zip(eps, mass, strict=True):
            w = p["w_loc"] + p["w_scale"].exp() * node
            shared = normal(w, torch.zeros_like(w)) - normal(w, p["w_loc"], p["w_scale"])
            loc = p["c"] + p["h"] * w
            z = loc + p["z_scale"].exp() * eps
            logits = p["t"] * z + p["d"] * w + p["e"] * z * w
            log_weight = bernoulli(torch.ones_like(z), logits) + normal(z, torch.zeros_like(z))
            local, _ = expected(log_weight - normal(z, loc, p["z_scale"]), mass, count, bound)
            total = total + log_mass.exp() * (shared + local)
        return total


@pytest.mark.parametrize(
    ("objective", "count", "bound"),
    [
        (pv.ELBO(), 1, mean_bound),
        (pv.STL(), 1, mean_bound),
        (pv.STL(2), 2, mean_bound),
        (pv.IWAE(3), 3, iwae_bound),
        (pv.DReG(2), 2, iwae_bound),
        (pv.DReG(3), 3, iwae_bound),
    ],
    ids=lambda v: type(v).__name__,
)
def test_mean_gradient_with_a_global(objective, count, bound):
    toy = Global()
    params = leaves(toy.params())
    torch.manual_seed(0)
    rows = 10 * ROWS
    x = torch.ones(1, dtype=torch.float64)
    loss, samples = row_gradients(objective, toy.program, params, x, rows)
    exact = toy.exact(params, count, bound)
    assert largest_z(samples, gradient(exact, params)) < 5
    assert -loss == pytest.approx(exact.item(), abs=0.05)


class SinhArcsinh(Transform):
    """y = sinh(d asinh(x) + e), a flow with a closed inverse."""

    domain = codomain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, skew: Tensor, tail: Tensor) -> None:
        super().__init__()
        self.skew, self.tail = skew, tail

    def _call(self, x: Tensor) -> Tensor:
        return torch.sinh(self.tail.exp() * torch.asinh(x) + self.skew)

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.sinh((torch.asinh(y) - self.skew) * (-self.tail).exp())

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (1 + y.square()).log() + self.tail - 0.5 * (1 + x.square()).log()


class Flow:
    """z ~ N(0, 1), binary x of a non-linear decoder, and a flow as guide."""

    def params(self):
        generator = torch.Generator().manual_seed(8)
        shapes = {"weight": (3,), "loc": (1,), "scale": (1,), "skew": (1,), "tail": (1,)}
        return {
            n: 0.5 * torch.randn(s, generator=generator, dtype=torch.float64)
            for n, s in shapes.items()
        }

    @staticmethod
    def logits(p, z):
        return 2 * torch.tanh(z) * p["weight"] - 0.3

    def program(self, p):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(1), x.new_ones(1)).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.logits(p, z)).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                base = dist.Normal(p["loc"], p["scale"].exp())
                flow = dist.TransformedDistribution(base, [SinhArcsinh(p["skew"], p["tail"])])
                pyro.sample("z", flow.to_event(1))

        return model, guide

    def log_weight(self, p, x):
        eps, mass = gauss_hermite(1, 60)
        base = p["loc"] + p["scale"].exp() * eps
        transform = SinhArcsinh(p["skew"], p["tail"])
        z = transform(base)
        log_q = normal(base, p["loc"], p["scale"])
        log_q = log_q - transform.log_abs_det_jacobian(base, z).squeeze(-1)
        log_p = bernoulli(x, self.logits(p, z)) + normal(z, torch.zeros_like(z))
        return log_p - log_q, mass


@pytest.mark.parametrize(
    ("objective", "count", "bound"),
    [
        (pv.ELBO(), 1, mean_bound),
        (pv.STL(), 1, mean_bound),
        (pv.IWAE(2), 2, iwae_bound),
        (pv.DReG(2), 2, iwae_bound),
    ],
    ids=lambda v: type(v).__name__,
)
def test_mean_gradient_of_a_flow(objective, count, bound):
    flow = Flow()
    params = leaves(flow.params())
    mean, variance = expected(*flow.log_weight(params, X), count, bound)
    torch.manual_seed(0)
    loss, samples = row_gradients(objective, flow.program, params, X, ROWS)
    assert largest_z(samples, gradient(mean, params)) < 5
    assert abs(-loss - mean.item()) < 5 * math.sqrt(variance / ROWS)


# -- KL weights ----------------------------------------------------------------------------------


def weighted(toy, params, betas):
    """Return log p(x | z) + sum_l beta_l (log p - log q) at the integration points, and masses."""
    z, mass = toy.draws(params, X, 16)
    density = bernoulli if toy.bits else normal
    total = bernoulli(X, toy.prior(params, "x", z))
    for name in toy.names:
        scale = () if toy.bits else (params[f"q_{name}_scale"],)
        log_q = density(z[name], toy.posterior(params, name, z, X), *scale)
        beta = betas.get(name, 1.0)
        total = total + beta * (density(z[name], toy.prior(params, name, z)) - log_q)
    return total, mass


WEIGHTS = {
    "0.3": 0.3,
    "0": 0.0,
    "2": 2.0,
    "tensor": torch.tensor(0.5, dtype=torch.float64),
    "by site": {"z1": 0.4},
}
UNDER_WEIGHT = {
    "ELBO, bits": (True, pv.ELBO, 1, mean_bound),
    "RLOO, bits": (True, pv.RLOO, 2, mean_bound),
    "NVIL, bits": (True, lambda: pv.NVIL().double().eval(), 1, mean_bound),
    "VIMCO, bits": (True, lambda: pv.VIMCO(2), 2, iwae_bound),
    "DisARM, bits": (True, pv.DisARM, 1, mean_bound),
    "ELBO": (False, pv.ELBO, 1, mean_bound),
    "AnalyticELBO": (False, pv.AnalyticELBO, 1, None),
    "STL": (False, pv.STL, 1, mean_bound),
    "IWAE": (False, lambda: pv.IWAE(2), 2, iwae_bound),
    "DReG": (False, lambda: pv.DReG(2), 2, iwae_bound),
}


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", UNDER_WEIGHT)
def test_mean_gradient_under_a_kl_weight(name, weight):
    bits, build, count, bound = UNDER_WEIGHT[name]
    toy = Toy(True, (2, 2)) if bits else Toy(False, (1, 1))
    beta = WEIGHTS[weight]
    betas = beta if isinstance(beta, dict) else {site: float(beta) for site in toy.names}
    params = leaves(toy.params(6))
    log_weight, mass = weighted(toy, params, betas)
    mean, variance = expected(log_weight, mass, count, bound or mean_bound)

    def build_weighted(copies):
        model, guide = toy.program(copies)
        return ScaleLatents(beta)(model), ScaleLatents(beta)(guide)

    torch.manual_seed(1)
    loss, samples = row_gradients(build(), build_weighted, params, X, ROWS)
    assert largest_z(samples, gradient(mean, params)) < 5
    if bound is not None:
        assert abs(-loss - mean.item()) < 5 * math.sqrt(variance / ROWS) + 1e-12


# -- variances -----------------------------------------------------------------------------------


def guide_variance(objective, toy, params, rows=ROWS):
    torch.manual_seed(7)
    _, samples = row_gradients(objective, toy.program, params, X, rows)
    return sum(s.var(0).sum().item() for n, s in samples.items() if n.startswith("q_"))


VARIANCES = [
    ("STL / ELBO", Toy(False, (1,)), pv.STL, pv.ELBO),
    ("DReG / IWAE, K = 5", Toy(False, (1,)), lambda: pv.DReG(5), lambda: pv.IWAE(5)),
    ("DReG / IWAE, K = 64", Toy(False, (1,)), lambda: pv.DReG(64), lambda: pv.IWAE(64)),
    ("RLOO / score, K = 4", Toy(True, (4,)), lambda: pv.RLOO(4), lambda: pv.ELBO(4)),
    ("DisARM / RLOO, K = 2", Toy(True, (4,)), pv.DisARM, lambda: pv.RLOO(2)),
]


@pytest.mark.parametrize(
    ("name", "toy", "better", "worse"), VARIANCES, ids=[row[0] for row in VARIANCES]
)
def test_variance_is_reduced(name, toy, better, worse, record_property):
    """Ratio of the summed variances of the guide's gradient, near the posterior; on the record."""
    params = leaves(toy.params(0))
    optimizer = torch.optim.Adam([p for n, p in params.items() if n.startswith("q_")], lr=0.05)
    for _ in range(150):  # the exact ELBO, so that the guide is the best of its family
        optimizer.zero_grad()
        log_weight, mass = toy.log_weight(params, X)
        (-(mass.exp() * log_weight).sum()).backward()
        optimizer.step()
    ratio = guide_variance(better(), toy, params) / guide_variance(worse(), toy, params)
    record_property(f"variance ratio {name}", ratio)
    print(f"variance ratio {name}: {ratio:.3g}")
    assert ratio < 0.9


# -- the analytic KL -----------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["top_down", "bottom_up"])
@pytest.mark.parametrize("sizes", [(1,), (2,), (1, 1), (2, 1)])
def test_analytic_kl_keeps_the_mean(sizes, order):
    """Gradient |z| < 5; value over 40 batches of 100, |t_39| < 5: false alarms 1.3e-5."""
    toy = Toy(False, sizes, order)
    params = leaves(toy.params(3))
    mean, _ = expected(*toy.log_weight(params, X, 20), 1, mean_bound)
    torch.manual_seed(0)
    _, samples = row_gradients(pv.AnalyticELBO(), toy.program, params, X, ROWS)
    assert largest_z(samples, gradient(mean, params)) < 5
    model, guide = toy.program(params)
    losses = torch.tensor(
        [pv.AnalyticELBO().loss(model, guide, X.expand(100, 3)) / 100 for _ in range(40)]
    )
    assert abs(-losses.mean() - mean) < 5 * losses.std() / math.sqrt(40)


def test_a_wrong_closed_form_is_caught(monkeypatch):
    """Integrating z1 alone against a prior that depends on a later draw is off by > 5 SE."""
    toy = Toy(False, (1, 1), "bottom_up")
    params = leaves(toy.params(3))
    mean, _ = expected(*toy.log_weight(params, X, 20), 1, mean_bound)
    monkeypatch.setattr(objectives, "analytic_sites", lambda terms: list(terms.latents))
    torch.manual_seed(0)
    _, samples = row_gradients(pv.AnalyticELBO(), toy.program, params, X, ROWS)
    assert largest_z(samples, gradient(mean, params)) > 5


def test_which_sites_are_analytic():
    x = X.expand(4, 3)
    for order, names in (("top_down", ["z2", "z1"]), ("bottom_up", ["z2"])):
        toy = Toy(False, (1, 2), order)
        terms = Joint(*toy.program(toy.params(0)), (x,), num_plates=1).terms()
        assert objectives.analytic_sites(terms) == names


@pytest.mark.parametrize("beta", [1.0, 0.5, torch.tensor(0.5), {"z1": 0.5}, 0.0])
def test_analytic_kl_has_no_variance(beta):
    """Where x says nothing about z the bound is minus beta times the KL, whatever was drawn."""
    toy = Toy(False, (2,))
    params = toy.params(0)
    params["p_x_z1"] = torch.zeros_like(params["p_x_z1"])
    weight = float(beta["z1"] if isinstance(beta, dict) else beta)
    pair = [ScaleLatents(beta)(each) for each in toy.program(params)]
    x = X.expand(5, 3)
    losses = [pv.AnalyticELBO(2).loss(*pair, x) for _ in range(5)]
    assert max(losses) - min(losses) < 1e-12 * abs(losses[0])
    loc = toy.posterior(params, "z1", {}, X) - params["p_z1"]
    scale = params["q_z1_scale"]
    kl = (0.5 * (loc.square() + (2 * scale).exp() - 1) - scale).sum()
    exact = 5 * (weight * kl - bernoulli(X, params["p_x"]))
    assert losses[0] == pytest.approx(exact.item(), rel=1e-12)
    if weight:
        assert len({pv.ELBO(2).loss(*pair, x) for _ in range(5)}) == 5


class Nested(nn.Module):
    """Three latents per datum in a plate of their own; x says nothing about them."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("inner", 3, dim=-2):
                pyro.sample("z", dist.Normal(x.new_zeros(()), x.new_ones(())))
            pyro.sample("x", dist.Normal(x.new_zeros(()), x.new_ones(())), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("inner", 3, dim=-2):
            pyro.sample("z", dist.Normal(0.5 * x, x.new_ones(())))


def test_analytic_kl_of_a_nested_plate():
    x = torch.ones(4, dtype=torch.float64)
    with pyro.poutine.block():
        terms = Joint(Nested().model, Nested().guide, (x,)).terms()
    loss = pv.AnalyticELBO().loss_of(terms)
    exact = 3 * 0.125 - terms.log_likelihood().mean()
    torch.testing.assert_close(loss, exact, rtol=1e-12, atol=0)


# -- free bits -----------------------------------------------------------------------------------


def two_units():
    """One unit whose KL is large, one whose KL is small; x depends on neither."""
    toy = Toy(False, (2,))
    params = toy.params(0)
    params["p_x_z1"] = torch.zeros_like(params["p_x_z1"])
    params["p_z1"] = torch.zeros_like(params["p_z1"])
    params["q_z1_x"] = torch.zeros_like(params["q_z1_x"])
    params["q_z1"] = torch.tensor([3.0, 0.3], dtype=torch.float64)
    params["q_z1_scale"] = torch.tensor([-0.5, -0.7], dtype=torch.float64)
    return toy, leaves(params)


def unit_kl(params, z):
    loc, scale = params["q_z1"], params["q_z1_scale"]
    posterior = -0.5 * ((z - loc) / scale.exp()).square() - scale
    return (posterior + 0.5 * z.square()).mean((0, 1))


def free(objective, toy, params, rows=50):
    """Return the loss, the draws' KL per unit, and log p(x | z), on the same noise."""
    model, guide = toy.program(params)
    x = X.expand(rows, 3)
    torch.manual_seed(3)
    with pyro.poutine.trace() as trace:
        guide(x)
    torch.manual_seed(3)
    loss = objective.differentiable_loss(model, guide, x) / rows
    return (
        loss,
        unit_kl(params, trace.trace.nodes["z1"]["value"][None]),
        bernoulli(X, params["p_x"]),
    )


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("nats", [0.0, 0.1, 0.5, 2.0, 50.0])
def test_free_bits_per_unit(nats, as_tensor):
    toy, params = two_units()
    floor = torch.tensor(nats, dtype=torch.float64) if as_tensor else nats
    loss, kl, likelihood = free(pv.FreeBits(floor), toy, params)
    exact = kl.clamp(min=nats).sum() - likelihood
    torch.testing.assert_close(loss, exact, rtol=1e-12, atol=0)
    guide = [params["q_z1"], params["q_z1_scale"]]
    grads = torch.autograd.grad(loss, guide, retain_graph=True)
    below = kl < nats
    for grad in grads:
        assert (grad[below] == 0).all() and (grad[~below] != 0).all()


def test_free_bits_at_zero_is_the_elbo():
    toy, params = two_units()
    floored, kl, _ = free(pv.FreeBits(0.0), toy, params)
    plain, _, _ = free(pv.ELBO(), toy, params)
    assert (kl > 0).all()  # a Monte-Carlo KL below zero would be lifted to the floor
    torch.testing.assert_close(floored, plain, rtol=1e-12, atol=0)
    both = [
        torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        for loss in (floored, plain)
    ]
    for a, b in zip(*both, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_free_bits_per_site_and_by_groups():
    toy, params = two_units()
    total = free(pv.ELBO(), toy, params)[1].sum()
    for nats in (0.5 * total.item(), 2 * total.item()):
        loss, kl, likelihood = free(pv.FreeBits(nats, per="site"), toy, params)
        assert loss.item() == pytest.approx(max(nats, kl.sum().item()) - likelihood.item())
        one = pv.FreeBits(nats, per={"z1": torch.tensor([0, 0])})
        assert free(one, toy, params)[0].item() == pytest.approx(loss.item(), rel=1e-12)
    by_unit = pv.FreeBits({"z1": torch.tensor([0.1, 9.0]).double()})
    loss, kl, likelihood = free(by_unit, toy, params)
    assert loss.item() == pytest.approx((kl[0] + 9.0 - likelihood).item(), rel=1e-12)


def test_free_bits_name_what_they_cannot_do():
    oracle = PPCA.random(6, 2)
    program, x = TrainablePPCA(oracle), oracle.sample(3)
    with pytest.raises(
        ProgramError, match="the guide's MultivariateNormal has no density per unit"
    ):
        loss_on(program, x, pv.FreeBits(0.1))
    assert loss_on(program, x, pv.FreeBits(0.1, per="site")).isfinite()
    toy, params = two_units()
    model, guide = (ScaleLatents(0.5)(side) for side in toy.program(params))
    with pytest.raises(ProgramError, match="stands under a KL weight"):
        pv.FreeBits(0.1).loss(model, guide, X[None])
    with pytest.raises(ConfigError, match="got -1"):
        pv.FreeBits(-1.0)
    with pytest.raises(ConfigError, match="got 'layer', expected one of unit, site"):
        pv.FreeBits(1.0, per="layer")


def test_a_global_without_a_path_hears_all_data():
    """w ~ Bernoulli, 3 of 9 rows x ~ N(w, 1): the gradient at each w, weighed by q(w), is exact."""
    x, size = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64), 9
    logit = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def model(x):
        w = pyro.sample("w", dist.Bernoulli(x.new_tensor(0.3)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Bernoulli(logits=logit))

    program = pv.Program(model, guide)
    program.read(x)
    grads: dict[float, torch.Tensor] = {}
    with program.running():
        for seed in range(20):
            torch.manual_seed(seed)
            w = program.joint(x).global_values()["w"].item()
            torch.manual_seed(seed)
            loss = pv.ELBO().per_datum(program.joint(x, size=size))
            grads[w] = torch.autograd.grad(loss, logit)[0]
    q = dist.Bernoulli(logits=logit)
    values = torch.tensor([0.0, 1.0], dtype=torch.float64)
    log_p = dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)).log_prob(values)
    fit = dist.Normal(values[:, None], 1.0).log_prob(x).mean(1)
    mass = q.log_prob(values).exp()
    bound = (mass * (fit + (log_p - q.log_prob(values)) / size)).sum()
    found = sum(mass[int(w)].detach() * grad for w, grad in grads.items())
    (exact,) = torch.autograd.grad(-bound, logit)
    assert len(grads) == 2
    torch.testing.assert_close(found, exact)
