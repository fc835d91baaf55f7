"""Every estimator against its own expectation at finite K: enumeration of bits, or quadrature.

One call on a batch of R equal rows with R copies of the parameters gives R independent gradients.
Each case asks |z| < 5 of the value and of every coordinate of the mean gradient: at most 60
coordinates, so a correct estimator fails a case with probability below 4e-5 at a fresh seed.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from estimators import (
    Toy,
    binary_states,
    expected,
    gradient,
    iwae_bound,
    largest_z,
    leaves,
    mean_bound,
    renyi_bound,
    row_gradients,
    tuples,
)
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.inference.objectives.stock import StockObjective, as_objective

ROWS = 4000
X = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)

BITS = {
    "one layer": Toy(True, (4,)),
    "two layers": Toy(True, (2, 2)),
    "two layers, bottom up": Toy(True, (2, 3), "bottom_up"),
    "three layers": Toy(True, (2, 1, 2)),
}
NORMAL = {
    "one dimension": Toy(False, (1,)),
    "two dimensions": Toy(False, (2,)),
    "two layers": Toy(False, (1, 1)),
    "two layers, bottom up": Toy(False, (1, 1), "bottom_up"),
}


def nvil(**options):
    """An NVIL whose c, v and baseline stay where they are: v = 1 leaves the gradient unscaled."""
    objective = pv.NVIL(**options).double().eval()
    objective.mean.fill_(-3.0)
    return objective


def baseline():
    torch.manual_seed(9)
    return nn.Linear(3, 1)


# Name: (objective, K, bound), the bound being that of the value and of the gradient alike.
ON_BITS = {
    "ELBO": (pv.ELBO, 1, mean_bound),
    "ELBO 3": (lambda: pv.ELBO(3), 3, mean_bound),
    "NVIL": (nvil, 1, mean_bound),
    "NVIL 2": (lambda: nvil(num_particles=2), 2, mean_bound),
    "NVIL with a network": (lambda: nvil(baseline=baseline()), 1, mean_bound),
    "RLOO 2": (lambda: pv.RLOO(2), 2, mean_bound),
    "RLOO 3": (lambda: pv.RLOO(3), 3, mean_bound),
    "VIMCO 2": (lambda: pv.VIMCO(2), 2, iwae_bound),
    "VIMCO 3": (lambda: pv.VIMCO(3), 3, iwae_bound),
    "DisARM": (pv.DisARM, 1, mean_bound),
}
ON_NORMAL = {
    "ELBO": (pv.ELBO, 1, mean_bound),
    "ELBO 2": (lambda: pv.ELBO(2), 2, mean_bound),
    "STL": (pv.STL, 1, mean_bound),
    "STL 2": (lambda: pv.STL(2), 2, mean_bound),
    "IWAE 2": (lambda: pv.IWAE(2), 2, iwae_bound),
    "DReG 2": (lambda: pv.DReG(2), 2, iwae_bound),
    "Rényi 0.5": (lambda: pv.Renyi(0.5, 2), 2, renyi_bound(0.5)),
    "Rényi -1": (lambda: pv.Renyi(-1.0, 2), 2, renyi_bound(-1.0)),
    "Rényi 2": (lambda: pv.Renyi(2, 2), 2, renyi_bound(2.0)),
    "Rényi 1 is the ELBO": (lambda: pv.Renyi(1, 2), 2, mean_bound),
    "Rényi 0 is IWAE": (lambda: pv.Renyi(0, 2), 2, iwae_bound),
    "NVIL is the ELBO": (nvil, 1, mean_bound),
    "RLOO is the ELBO": (lambda: pv.RLOO(2), 2, mean_bound),
    "VIMCO is IWAE": (lambda: pv.VIMCO(2), 2, iwae_bound),
}


def compare(toy, objective, count, bound, seed):
    params = leaves(toy.params(seed))
    nodes = 24 if sum(toy.sizes) * count <= 3 else 16
    log_weight, log_mass = toy.log_weight(params, X, nodes)
    mean, variance = expected(log_weight, log_mass, count, bound)
    if bound is not mean_bound:  # the ladder E L_1 <= E L_K <= log p(x)
        lower, _ = expected(log_weight, log_mass, 1, mean_bound)
        if bound is iwae_bound:
            assert lower < mean < toy.evidence(params, X) + 1e-9
    torch.manual_seed(seed)
    loss, samples = row_gradients(objective, toy.program, params, X, ROWS)
    assert abs(-loss - mean.item()) < 5 * math.sqrt(variance / ROWS)
    assert largest_z(samples, gradient(mean, params)) < 5


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("structure", BITS)
@pytest.mark.parametrize("name", ON_BITS)
def test_bits_against_enumeration(name, structure, seed):
    build, count, bound = ON_BITS[name]
    compare(BITS[structure], build(), count, bound, seed)


@pytest.mark.parametrize("name", ["ELBO", "NVIL", "RLOO 2", "DisARM"])
@pytest.mark.parametrize("sizes", [(12,), (6, 6)])
def test_twelve_bits(sizes, name):
    build, _, bound = ON_BITS[name]  # the mean of K log weights has the expectation of one
    compare(Toy(True, sizes), build(), 1, bound, 5)


@pytest.mark.parametrize("structure", NORMAL)
@pytest.mark.parametrize("name", ON_NORMAL)
def test_nonlinear_decoders_against_quadrature(name, structure):
    build, count, bound = ON_NORMAL[name]
    compare(NORMAL[structure], build(), count, bound, 0)


@pytest.mark.parametrize("structure", NORMAL)
def test_quadrature_agrees_with_itself(structure):
    """The oracle of this file: the importance identity holds, and more nodes change nothing."""
    toy = NORMAL[structure]
    params = toy.params(0)
    coarse, fine = (expected(*toy.log_weight(params, X, n), 1, mean_bound)[0] for n in (16, 40))
    torch.testing.assert_close(coarse, fine, rtol=1e-3, atol=0)
    _, log_mass = toy.draws(params, X)
    assert log_mass.exp().sum() == pytest.approx(1, rel=1e-9)


# -- reweighted wake-sleep -----------------------------------------------------------------------


def wake_gradient(toy, params, count, wake, nodes):
    """Return the expectation of sum_k w~_k grad (log p + a log q), the draws being constants."""
    z, log_mass = toy.draws(params, X, nodes)
    z = {name: value.detach() for name, value in z.items()}
    log_p, log_q = toy.log_p(params, z, X), toy.log_q(params, z, X)
    weights = tuples((log_p - log_q).detach(), count).softmax(0)
    mass = tuples(log_mass.detach(), count).sum(0).exp()
    return (mass * weights * (tuples(log_p, count) + wake * tuples(log_q, count))).sum()


def sleep_gradient(toy, params):
    """Return E log q(z | x) over dreams z, x ~ p, as a function of the guide alone."""
    z, log_mass = toy.prior_draws(params, nodes=40)
    total = 0.0
    for dream in binary_states(3):
        mass = (log_mass + toy.log_p(params, z, dream) - prior_log_prob(toy, params, z)).exp()
        fixed = {name: value.detach() for name, value in z.items()}
        total = total + (mass.detach() * toy.log_q(params, fixed, dream)).sum()
    return total


def prior_log_prob(toy, params, z):
    """Return log p(z): log p(x, z) of the toy without its observed part."""
    logits = toy.prior(params, "x", z)
    observed = (X * logits - nn.functional.softplus(logits)).sum(-1)
    return toy.log_p(params, z, X) - observed


SWITCHES = {"wake": (1.0, 0.0), "sleep": (0.0, 1.0), "both": (0.5, 2.0)}


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "toy", [*BITS.values(), *NORMAL.values()], ids=[*BITS, *(f"normal {n}" for n in NORMAL)]
)
def test_wake_sleep_against_its_own_expectation(toy, count, switch):
    if not toy.bits and count * sum(toy.sizes) > 4:
        count = 1  # the grid would have six dimensions
    wake, sleep = SWITCHES[switch]
    params = leaves(toy.params(2))
    nodes = 24 if sum(toy.sizes) * count <= 3 else 16
    target = wake_gradient(toy, params, count, wake, nodes)
    exact = gradient(target, params)
    for name, grad in gradient(sleep_gradient(toy, params), params).items():
        exact[name] = exact[name] + sleep * grad
    torch.manual_seed(3)
    objective = pv.ReweightedWakeSleep(count, wake=wake, sleep=sleep)
    loss, samples = row_gradients(objective, toy.program, params, X, ROWS)
    assert largest_z(samples, exact) < 5
    mean, variance = expected(*toy.log_weight(params, X, nodes), count, iwae_bound)
    assert abs(-loss - mean.item()) < 5 * math.sqrt(variance / ROWS)


def test_wake_sleep_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match="both 0"):
        pv.ReweightedWakeSleep(wake=0, sleep=0)
    with pytest.raises(ConfigError, match="got -1"):
        pv.ReweightedWakeSleep(sleep=-1)


# -- NVIL's moments and network ------------------------------------------------------------------


@pytest.mark.parametrize("with_network", [False, True])
def test_nvil_moments_and_network_exactly(with_network):
    """c and v are the running moments of the centred signal; C learns by least squares alone."""
    toy = BITS["one layer"]
    params = leaves(toy.params(4))
    model, guide = toy.program(params)
    network = baseline().double() if with_network else None
    objective = pv.NVIL(network, decay=0.8).double()
    rows = torch.bernoulli(torch.full((7, 3), 0.5, dtype=torch.float64))
    mean, variance = torch.zeros(()).double(), torch.ones(()).double()
    for step in range(4):
        torch.manual_seed(step)
        z = {"z1": pyro.poutine.trace(guide).get_trace(rows).nodes["z1"]["value"]}
        log_q = toy.log_q(params, z, rows)
        signal = (toy.log_p(params, z, rows) - log_q).detach()
        predicted = network(rows).squeeze(-1) if with_network else torch.zeros(7).double()
        centred = (signal - predicted - mean).detach()

        torch.manual_seed(step)
        loss = objective.differentiable_loss(model, guide, rows) / 7
        names = list(params)
        owned = [*params.values(), *objective.parameters()]
        grads = torch.autograd.grad(loss, owned)
        assert loss.item() == pytest.approx(-signal.mean().item(), rel=1e-12)

        scaled = centred / max(1.0, variance.item() ** 0.5)
        surrogate = (scaled * log_q + toy.log_p(params, z, rows)).mean()
        for name, expected_grad, grad in zip(
            names, torch.autograd.grad(-surrogate, params.values()), grads, strict=False
        ):
            torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-12, msg=name)
        if with_network:
            error = (signal - mean - predicted).square().mean()
            for grad, exact in zip(
                grads[len(names) :],
                torch.autograd.grad(error, network.parameters()),
                strict=True,
            ):
                torch.testing.assert_close(grad, exact, rtol=1e-10, atol=1e-12)
        variance = 0.8 * variance + 0.2 * centred.square().mean()
        mean = 0.8 * mean + 0.2 * (signal - predicted.detach()).mean()
        torch.testing.assert_close(objective.mean, mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(objective.variance, variance, rtol=1e-12, atol=0)
        if with_network:
            with torch.no_grad():
                for parameter, grad in zip(network.parameters(), grads[len(names) :], strict=True):
                    parameter -= 0.05 * grad
    assert variance > 1.0  # the last steps were scaled


def test_nvil_stands_still_in_evaluation():
    toy = BITS["one layer"]
    objective = nvil()
    with torch.no_grad():
        objective.train().loss(*toy.program(toy.params(0)), X[None])
    objective.eval().loss_and_grads(*toy.program(leaves(toy.params(0))), X[None])
    assert objective.mean == -3.0 and objective.variance == 1.0


def test_nvil_names_a_baseline_of_a_wrong_shape():
    toy = BITS["one layer"]
    objective = pv.NVIL(nn.Linear(3, 2).double()).double()
    with pytest.raises(ProgramError, match=r"the baseline answers \(1, 2\), expected \(1,\)"):
        objective.differentiable_loss(*toy.program(leaves(toy.params(0))), X[None])


@pytest.mark.parametrize("rows", [1, 64])
def test_disarm_keeps_data_apart(rows):
    """The guide gradient of a row is the antithetic formula at that row's own signals."""
    toy = BITS["one layer"]
    params = toy.params(1)
    x = torch.bernoulli(torch.full((rows, 3), 0.5, dtype=torch.float64))
    logits = toy.posterior(params, "z1", {}, x).clone().requires_grad_()
    zero = {name: torch.zeros_like(p) for name, p in params.items() if name.startswith("q_")}

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z1", dist.Bernoulli(logits=logits).to_event(1))

    model, _ = toy.program({**params, **zero})
    torch.manual_seed(2)
    loss = pv.DisARM().differentiable_loss(model, guide, x)
    (grad,) = torch.autograd.grad(-loss, logits)
    torch.manual_seed(2)
    probs = logits.detach().sigmoid()
    uniform = torch.rand(1, *probs.shape, dtype=torch.float64)[0]
    pair = [(uniform < probs).double(), (1 - uniform < probs).double()]
    signal = [
        toy.log_p(params, {"z1": b}, x) - toy.log_q(params, {"z1": b}, x).detach() for b in pair
    ]
    sign = 1 - 2 * pair[1]
    half = 0.5 * (signal[0] - signal[1]).unsqueeze(-1)
    exact = half * sign * (pair[0] != pair[1]) * logits.detach().abs().sigmoid()
    torch.testing.assert_close(grad, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "objective",
    [pv.IWAE(2), pv.Renyi(0.5, 2), pv.STL(), pv.DReG(2), pv.AnalyticELBO(), pv.FreeBits(1.0)],
    ids=lambda o: type(o).__name__,
)
def test_bits_are_refused_where_a_path_is_needed(objective):
    toy = BITS["one layer"]
    with pytest.raises(ProgramError, match="'z1' has no reparametrised sampler"):
        objective.differentiable_loss(*toy.program(leaves(toy.params(0))), X[None])


# -- enumeration and Pyro's own losses -----------------------------------------------------------


class Mixture(nn.Module):
    """A categorical latent over binary data, with a guide to enumerate."""

    def __init__(self, enumerate_guide):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for name, shape in {"prior": (3,), "means": (3, 4), "post": (4, 3)}.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(value))
        self.infer = {"enumerate": "parallel"} if enumerate_guide else {}

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=self.prior))
            pyro.sample("x", dist.Bernoulli(logits=self.means[z]).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=x @ self.post), infer=self.infer)

    def table(self, x):
        """Return log p(x, z) and log q(z | x) of every state, (B, 3)."""
        logits = self.means
        observed = (x[:, None] * logits - nn.functional.softplus(logits)).sum(-1)
        return observed + self.prior.log_softmax(-1), (x @ self.post).log_softmax(-1)


def exact_elbo(program, x):
    log_p, log_q = program.table(x)
    return (log_q.exp() * (log_p - log_q)).sum(-1).mean()


@pytest.mark.parametrize("rows", [1, 6])
def test_enumeration_is_exact(rows):
    program = Mixture(enumerate_guide=True)
    x = torch.bernoulli(torch.full((rows, 4), 0.5, dtype=torch.float64))
    wrapped = pv.Program.of(program)
    objective = StockObjective(pyro.infer.TraceEnum_ELBO(max_plate_nesting=1))
    (update,) = objective.updates(wrapped)
    with wrapped.running():
        loss = update.loss(wrapped.joint(x))
    exact = exact_elbo(program, x)
    assert -loss.item() == pytest.approx(exact.item(), rel=1e-10)
    for got, want in zip(
        torch.autograd.grad(-loss, program.parameters()),
        torch.autograd.grad(exact, program.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


STOCK = {
    "TraceGraph_ELBO": (lambda: pyro.infer.TraceGraph_ELBO(), False),
    "Trace_ELBO": (lambda: pyro.infer.Trace_ELBO(), False),
    "ELBO": (pv.ELBO, False),
    "RLOO": (pv.RLOO, False),
    "VIMCO": (lambda: pv.VIMCO(2), True),
    "ReweightedWakeSleep": (
        lambda: pyro.infer.ReweightedWakeSleep(
            num_particles=2, vectorize_particles=True, max_plate_nesting=1
        ),
        None,
    ),
}


@pytest.mark.parametrize("name", STOCK)
def test_categorical_latents_and_stock_losses(name):
    """Mean of 300 gradients over 8 equal rows, |z| < 5 on 27 coordinates: false alarms 1.5e-5.

    Pyro's wake-sleep is held against the gradient of its own wake and sleep terms in p alone.
    """
    build, weighted = STOCK[name]
    program = Mixture(enumerate_guide=False)
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64).expand(8, 4)
    wrapped = pv.Program.of(program)
    (update,) = as_objective(build()).updates(wrapped)
    samples = {key: [] for key, _ in program.named_parameters()}
    torch.manual_seed(0)
    with wrapped.running():
        joint = wrapped.joint(x)
        for _ in range(300):
            grads = torch.autograd.grad(-update.loss(joint), program.parameters())
            for key, grad in zip(samples, grads, strict=True):
                samples[key].append(grad.flatten())
    log_p, log_q = (part[0] for part in program.table(x[:1]))
    exact = exact_elbo(program, x)
    keys = list(samples)
    if weighted:
        mass = tuples(log_q, 2).sum(0).exp()
        exact = (mass * iwae_bound(tuples(log_p - log_q, 2))).sum()
    if weighted is None:
        mass = tuples(log_q, 2).sum(0).exp().detach()
        weights = tuples((log_p - log_q).detach(), 2).softmax(0)
        exact = (mass * weights * tuples(log_p, 2)).sum()
        keys = ["prior", "means"]
    named = dict(program.named_parameters())
    grads = torch.autograd.grad(exact, [named[key] for key in keys])
    stacked = {key: torch.stack(samples[key]) for key in keys}
    assert largest_z(stacked, dict(zip(keys, grads, strict=True))) < 5


def test_stock_renyi_is_an_objective_too():
    """Zero variance at the exact posterior: the loss is log p(x) per datum, whatever alpha."""
    program = Mixture(enumerate_guide=False)
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    with torch.no_grad():
        program.means.zero_()  # x says nothing about z: the posterior is the prior
        program.post.copy_((program.prior / 3).expand(4, 3))
    wrapped = pv.Program.of(program)
    objective = StockObjective(pyro.infer.RenyiELBO(alpha=0.5, num_particles=4))
    (update,) = objective.updates(wrapped)
    with wrapped.running():
        loss = update.loss(wrapped.joint(x.expand(5, 4)))
    assert loss.item() == pytest.approx(4 * math.log(2), rel=1e-10)
    grads = torch.autograd.grad(loss, program.parameters())
    assert all(grad.isfinite().all() for grad in grads)
