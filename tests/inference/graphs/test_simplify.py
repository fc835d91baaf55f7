"""Simplified graphs give the traced numbers to the last bit, and hand out memory of their own."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.inference.graphs.bindings import direct
from pyro_vae.inference.graphs.simplify import simplify, written_inputs

A, B = torch.arange(6.0).reshape(2, 3) - 2, torch.linspace(0.5, 3, 6).reshape(2, 3)


def both(function, *inputs):
    """Return the results of a traced function, and of its simplified graph, and that graph."""
    graph = make_fx(function)(*inputs)
    torch.manual_seed(0)
    expected = graph(*[leaf.clone() for leaf in inputs])
    short = simplify(make_fx(function)(*inputs), inputs)
    torch.manual_seed(0)
    return expected, short(*[leaf.clone() for leaf in inputs]), short


def calls(graph):
    return [node for node in graph.graph.nodes if node.op == "call_function"]


CASES = {
    "idle views": (lambda a, b: (a.view(2, 3).expand(2, 3).t().t() + 0 + b.pow(1),), 1),
    "repeated terms": (lambda a, b: ((a * b) + (a * b),), 2),
    "constant terms": (lambda a, b: (a * (torch.ones_like(a).log() - 2).exp(),), 2),
    "negations": (lambda a, b: (a + (-b), a - (-b), (-a) + b), 3),
    "bias gradient": (lambda a, b: (a.sum(0, keepdim=True).view(3),), 1),
    "views of views": (lambda a, b: ((a * b).view(6).unsqueeze(0).view(1, 2, 3),), 2),
    "linear": (lambda a, b: (torch.addmm(a[0, :2], a, b.t()),), 4),
}


@pytest.mark.parametrize("name", CASES)
def test_rules_shorten_and_keep_the_bits(name):
    function, most = CASES[name]
    expected, got, graph = both(function, A, B)
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b) and a.shape == b.shape and a.stride() == b.stride()
    assert len(calls(graph)) <= most, graph.code


def test_in_place_writes_are_not_merged():
    def function(a, b):
        first, second = a * b, a * b
        first.add_(1)
        before = second.sum()
        second.mul_(3)
        return first, second, before, second.sum()

    expected, got, _ = both(function, A, B)
    assert all(torch.equal(x, y) for x, y in zip(expected, got, strict=True))
    assert not torch.equal(got[2], got[3])


def test_constants_that_are_written_to_start_anew_each_time():
    def function(a, b):
        total = torch.zeros(2, 3)
        total.add_(a)
        return (total + 0,)

    _, _, graph = both(function, A, B)
    run = direct(graph, (A, B))
    assert torch.equal(run(A, B)[0], A) and torch.equal(run(A, B)[0], A)


def test_noise_is_drawn_anew_and_twice_is_two_draws():
    _, (x, y), graph = both(lambda a, b: (torch.randn_like(a), torch.randn_like(a)), A, B)
    assert not torch.equal(x, y)
    run = direct(graph, (A, B))
    assert not torch.equal(run(A, B)[0], run(A, B)[0])


def test_outputs_have_memory_of_their_own():
    """A caller that scales one gradient in place must not scale another, nor its own inputs."""
    _, _, graph = both(lambda a, b: (a * b, a * b, a, a.detach(), (a + b).t(), b.view(6)), A, B)
    a, b = A.clone(), B.clone()
    results = graph(a, b)
    before = [result.clone() for result in results[1:]]
    results[0].mul_(7)
    assert all(torch.equal(x, y) for x, y in zip(before, results[1:], strict=True))
    for result in results:
        result.zero_()
    assert torch.equal(a, A) and torch.equal(b, B)


def test_running_statistics_are_known_as_written():
    """The schema of batch norm does not say that it writes."""

    def function(x, mean, var):
        return (torch.nn.functional.batch_norm(x, mean, var, training=True),)

    inputs = (A, torch.zeros(3), torch.ones(3))
    graph = simplify(make_fx(function)(*inputs), inputs)
    assert written_inputs(graph) == [1, 2]
    in_place = simplify(make_fx(lambda a, b: (a.add_(b) * 2,))(A.clone(), B), (A, B))
    assert written_inputs(in_place) == [0]


def test_direct_bindings_are_tried_before_they_are_trusted(monkeypatch):
    graph = simplify(make_fx(lambda a, b: (a * b,))(A, B), (A, B))
    quick = direct(graph, (A, B))
    assert torch.equal(quick(A, B)[0], A * B) and quick.__self__ is not graph
    monkeypatch.setattr("pyro_vae.inference.graphs.bindings._binding", lambda target: torch.add)
    assert direct(graph, (A, B)).__self__ is graph


def test_the_gradient_of_some_columns_runs_by_direct_bindings_and_prints_nothing(capfd):
    """Its index leaves out the rows, which the binding of ``index_put`` takes no list with."""
    columns = torch.tensor([0, 2])

    def function(a, b):
        leaf = a.detach().requires_grad_()
        return torch.autograd.grad((leaf[:, columns] * b[:, columns]).sum(), [leaf])

    expected, got, graph = both(function, A, B)
    quick = direct(graph, (A, B))
    assert torch.equal(expected[0], got[0]) and torch.equal(quick(A, B)[0], got[0])
    assert quick.__self__ is not graph
    assert not any(capfd.readouterr())
