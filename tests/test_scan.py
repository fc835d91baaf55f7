"""The loop over time: eager, and as operators of a traced graph, it is one function."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.scan import scan

B, Z, H = 4, 3, 5


@pytest.fixture(autouse=True)
def unvalidated():
    with pyro.validation_enabled(False):
        yield


def stochastic(steps, reverse=False):
    """A gated step with noise, inputs and weights; what it needs and its leaves."""
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(Z, H), nn.Linear(H, Z), nn.Linear(H, Z)]).double()
    start = torch.randn(Z, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(steps, B, H, dtype=torch.float64, requires_grad=True)

    def loss(inputs, start, *weights):
        def step(z, u):
            hidden = (torch.tanh(net[0](z)) + u).detach() * 0.1 + (torch.tanh(net[0](z)) + u) / 2
            normal = dist.Normal(net[1](hidden), nn.functional.softplus(net[2](hidden)))
            return normal.to_event(1).rsample() * torch.rand(B, Z, dtype=z.dtype)

        path = scan(step, start.expand(B, Z), [inputs], reverse=reverse)
        total = path.pow(3).sum() + path[-1].sin().sum() + path[0].exp().sum()
        return total, path, *torch.autograd.grad(total, [inputs, start, *weights])

    return loss, [inputs, start, *net.parameters()]


def outcomes(loss, leaves):
    """Return what a function gives eagerly and as a graph at equal noise, and the graph."""
    results = []
    graph = make_fx(loss)(*leaves)
    for run in (loss, graph):
        torch.manual_seed(3)
        results.append([*run(*leaves), torch.rand(1)])
    return *results, graph


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_graph_gives_the_loop_and_all_its_gradients(steps, reverse):
    """Paths, six gradients and the random numbers that come after."""
    eager, traced, _ = outcomes(*stochastic(steps, reverse))
    for exact, found in zip(eager, traced, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-11)


def test_backwards_is_the_loop_over_flipped_steps():
    u = torch.randn(5, 2)
    exact = scan(lambda c, u: 0.5 * c + u, torch.ones(2), [u.flip(0)]).flip(0)
    assert torch.equal(scan(lambda c, u: 0.5 * c + u, torch.ones(2), [u], reverse=True), exact)


def test_a_graph_is_as_long_for_any_number_of_steps():
    lengths = [len(make_fx(loss)(*leaves).graph.nodes) for loss, leaves in map(stochastic, (4, 70))]
    assert lengths[0] == lengths[1] < 250


def test_a_graph_draws_anew_and_takes_other_weights():
    loss, leaves = stochastic(5)
    graph = make_fx(loss)(*leaves)
    assert graph(*leaves)[0] != graph(*leaves)[0]
    moved = [leaf.detach() + 0.1 for leaf in leaves]
    torch.manual_seed(1)
    found = graph(*moved)
    with torch.no_grad():
        for leaf, new in zip(leaves, moved, strict=True):
            leaf.copy_(new)
    torch.manual_seed(1)
    for exact, mine in zip(loss(*leaves), found, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-11, atol=1e-11)


def test_steps_that_forget_and_steps_without_inputs():
    start = torch.ones(2, dtype=torch.float64, requires_grad=True)
    weight = torch.full((2,), 0.5, dtype=torch.float64, requires_grad=True)

    def forgets(start, weight):
        path = scan(lambda c, u: weight * u + torch.randn(2, dtype=c.dtype), start, [u])
        return path, *torch.autograd.grad(path.square().sum(), [start, weight], allow_unused=True)

    def powers(start, weight):
        path = scan(lambda c: weight * c, start, steps=6)
        return path, *torch.autograd.grad(path[-1].sum(), [start, weight])

    u = torch.randn(4, 2, dtype=torch.float64)
    eager, traced, _ = outcomes(lambda *leaves: forgets(*leaves)[::2], [start, weight])
    for exact, found in zip(eager, traced, strict=True):
        torch.testing.assert_close(found, exact)
    eager, traced, _ = outcomes(powers, [start, weight])
    assert eager[2].tolist() == pytest.approx([6 * 0.5**5] * 2)
    for exact, found in zip(eager, traced, strict=True):
        torch.testing.assert_close(found, exact)


def test_a_step_may_write_to_what_it_has_made_for_that():
    """As the gradient of clamp does."""

    def loss(start, weight):
        path = scan(lambda c: (weight * c).clamp(-1, 1).clone().add_(c).cos(), start, steps=4)
        return path, *torch.autograd.grad(path.square().sum(), [start, weight])

    leaves = [
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.3, 2], [1.5, 3])
    ]
    eager, traced, _ = outcomes(loss, leaves)
    for exact, found in zip(eager, traced, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda c: torch.bernoulli(c.sigmoid()), "noise tensors shape"),
        (lambda c: c.view(2).add_(1.0), "writes to a tensor"),
        (lambda c: c.sum(), r"shape \(\), expected \(2,\)"),
    ],
)
def test_a_step_that_no_graph_can_hold_is_refused(step, message):
    with pytest.raises(RuntimeError, match=message):
        make_fx(lambda c: scan(step, c, steps=3))(torch.zeros(2))


def test_a_step_may_flatten_what_lies_in_memory_otherwise_than_at_the_first_step():
    """Draws that share their inputs, and gradients that come from a transposed path."""
    torch.manual_seed(0)
    weight = torch.randn(Z, Z, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(5, B, Z, dtype=torch.float64, requires_grad=True)

    def loss(inputs, weight):
        def step(z, u):
            return nn.functional.linear(z + nn.functional.linear(u, weight), weight).tanh()

        start = inputs.new_zeros(2, B, Z)
        path = scan(step, start, [inputs.unsqueeze(1).expand(5, 2, B, Z)])
        scale = torch.arange(1.0, 5 * 2 * B * Z + 1, dtype=torch.float64).reshape(Z, B, 2, 5)
        total = (path.permute(3, 2, 1, 0) * scale).sum()
        return path, *torch.autograd.grad(total, [inputs, weight])

    eager, traced, _ = outcomes(loss, [inputs, weight])
    for exact, found in zip(eager, traced, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-12)
