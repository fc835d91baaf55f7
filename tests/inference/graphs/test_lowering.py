"""What the compiler gets has the numbers of the traced graph."""

import pytest
import torch
from torch import nn
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import binary_cross_entropy_with_logits, linear

import pyro_vae as pv
from pyro_vae.inference.graphs.compiled_loss import CompiledLoss
from pyro_vae.inference.graphs.lowering import lowered
from pyro_vae.inference.graphs.simplify import simplify

aten = torch.ops.aten


def gradients(function, *inputs):
    """Return the simplified graph of a sum and its gradients."""

    def whole(*flat):
        loss = function(*flat).sum()
        return (loss, *torch.autograd.grad(loss, flat))

    leaves = [leaf.clone().requires_grad_() for leaf in inputs]
    return simplify(make_fx(whole)(*leaves), [leaf.detach() for leaf in inputs])


def assert_lowered_alike(whole):
    """Compare the one result of a function of logits and observations."""
    torch.manual_seed(0)
    inputs = [torch.randn(4, 5), torch.rand(4, 5)]
    graph = simplify(make_fx(whole)(*inputs), inputs)
    (loss,) = graph(*inputs)
    torch.testing.assert_close(lowered(graph, inputs)(*inputs)[0], loss)


def targets(graph):
    return [node.target for node in graph.graph.nodes]


def test_the_norm_of_the_gradients_comes_with_them():
    torch.manual_seed(0)
    inputs = [torch.randn(3, 4, 5), torch.randn(6, 5), torch.randn(6)]
    graph = gradients(lambda x, w, b: linear(x, w, b).tanh(), *inputs)
    loss, *grads = graph(*inputs)
    low_loss, norm, *low_grads = lowered(graph, inputs)(*inputs)
    torch.testing.assert_close(low_loss, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(low_grads, grads, rtol=1e-5, atol=1e-5)
    exact = torch.linalg.vector_norm(torch.cat([grad.flatten() for grad in grads]))
    torch.testing.assert_close(norm, exact, rtol=1e-5, atol=0)


SUMS = {aten.linear.default, aten.addmm.default}


@pytest.mark.parametrize("features", [6, 2**12 + 1])  # 4 rows of them are few numbers, or many
def test_what_is_added_to_a_small_product_is_added_behind_it(features):
    torch.manual_seed(0)
    inputs = [torch.randn(4, 5), torch.randn(features, 5), torch.randn(features)]
    graph = gradients(lambda x, w, b: linear(x, w, b).tanh() + (x @ w.t()).add(b), *inputs)
    low = lowered(graph, inputs)
    assert SUMS & set(targets(graph))
    assert bool(SUMS & set(targets(low))) == (features > 6)
    loss, *grads = graph(*inputs)
    low_loss, _, *low_grads = low(*inputs)
    torch.testing.assert_close(low_loss, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(low_grads, grads, rtol=1e-5, atol=1e-5)


def test_products_are_added_each_once():
    """Two products in one sum, one with itself, and one that is scaled."""
    torch.manual_seed(0)
    inputs = [torch.randn(4, 4), torch.randn(4, 4)]

    def whole(x, y):
        one, two = x @ y, y @ x
        return (torch.add(one + two, one + one) + torch.add(two, one, alpha=3.0) + (one + 1)).sum()

    graph = gradients(whole, *inputs)
    results = graph(*inputs)
    loss, _, *grads = lowered(graph, inputs)(*inputs)
    torch.testing.assert_close([loss, *grads], list(results))


def test_flags_are_added_as_they_are():
    def whole(x, flags):
        return ((x @ x.t() + flags).sum(),)

    inputs = [torch.ones(3, 3), torch.tensor([True, False, True])]
    graph = simplify(make_fx(whole)(*inputs), inputs)
    assert lowered(graph, inputs)(*inputs)[0].item() == 27.0 + 6.0


def test_half_precision_is_rounded_once():
    inputs = [torch.randn(4, 5).bfloat16(), torch.randn(6, 5).bfloat16(), torch.randn(6).bfloat16()]
    graph = gradients(lambda x, w, b: linear(x, w, b).float(), *inputs)
    assert SUMS & set(targets(lowered(graph, inputs)))


def test_noise_is_drawn_once_and_the_same():
    def whole(x):
        noise = torch.empty(3, 5).normal_()
        wide, shared = torch.empty(3, 5).normal_(0.0, 2.0), torch.empty(3, 5)
        row = shared[0]
        last = shared.normal_() + row
        return ((x * noise).sum() + wide.sum() + last.sum(),)

    x = torch.randn(3, 5)
    graph = simplify(make_fx(whole)(x), [x])
    low = lowered(graph, [x])
    assert [targets(each).count(aten.normal_.default) for each in (graph, low)] == [3, 2]
    results = []
    for run in (graph, low):
        torch.manual_seed(1)
        results.append(run(x)[0])
    assert torch.equal(*results)


def test_a_gpu_compiler_gets_long_functions_whole():
    inputs = [torch.randn(4, 5), torch.randn(6, 5), torch.randn(6)]
    graph = gradients(lambda x, w, b: linear(x, w, b).tanh(), *inputs)
    assert aten.tanh.default in targets(lowered(graph, [leaf.to("meta") for leaf in inputs]))
    assert aten.tanh.default not in targets(lowered(graph, inputs))


def test_the_graph_itself_stays():
    layer = nn.Linear(5, 6)
    inputs = [torch.randn(4, 5), *layer.parameters()]
    graph = gradients(lambda x, w, b: linear(x, w, b), *[leaf.detach() for leaf in inputs])
    before = graph.code
    lowered(graph, inputs)
    assert graph.code == before


def test_a_loss_without_gradients_has_norm_zero():
    graph = simplify(make_fx(lambda x: (x.sum(),))(torch.ones(3)), [torch.ones(3)])
    loss, norm = lowered(graph, [torch.ones(3)])(torch.ones(3))
    assert (loss.item(), norm.item()) == (3.0, 0.0)


@pytest.mark.parametrize(
    ("dtype", "shortened"), [(torch.float32, True), (torch.float64, False), (torch.bfloat16, False)]
)
def test_slow_functions_are_shortened_in_single_precision(dtype, shortened):
    torch.manual_seed(0)
    inputs = [torch.randn(4, 5, dtype=dtype), torch.rand(4, 5).to(dtype)]

    def loss(x, observed):
        return binary_cross_entropy_with_logits(x.tanh(), observed, reduction="none")

    graph = gradients(loss, *inputs)
    low = lowered(graph, inputs)
    slow = {
        aten.tanh.default,
        aten.sigmoid.default,
        aten.binary_cross_entropy_with_logits.default,
    }
    assert slow <= set(targets(graph))
    assert (slow & set(targets(low)) == set()) is shortened
    loss, *grads = graph(*inputs)
    low_loss, _, *low_grads = low(*inputs)
    torch.testing.assert_close(low_loss, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(low_grads, grads, rtol=1e-5, atol=1e-6)


def test_weighted_or_reduced_cross_entropy_stays():
    inputs = [torch.randn(4, 5)]
    observed, weight = torch.ones(4, 5), torch.full((5,), 2.0)
    for options in ({"pos_weight": weight, "reduction": "none"}, {"reduction": "mean"}):
        graph = gradients(
            lambda x, options=options: binary_cross_entropy_with_logits(x, observed, **options),
            *inputs,
        )
        loss, *_ = graph(*inputs)
        torch.testing.assert_close(lowered(graph, inputs)(*inputs)[0], loss)


def test_a_sigmoid_of_logits_that_were_written_to_stays():
    def whole(logits, observed):
        logits = logits * 2
        cost = binary_cross_entropy_with_logits(logits, observed, reduction="none").sum()
        logits.add_(1)
        return (cost + logits.sigmoid().sum(),)

    assert_lowered_alike(whole)


def test_a_sigmoid_before_the_cost_stays():
    def whole(logits, observed):
        before = logits.sigmoid().sum()
        cost = binary_cross_entropy_with_logits(logits, observed, reduction="none").sum()
        return (cost + before * logits.sigmoid().sum(),)

    assert_lowered_alike(whole)


def test_a_decoder_of_logits_is_shortened_to_the_end():
    def loss(h, w, b, observed):
        return binary_cross_entropy_with_logits(linear(h, w, b), observed, reduction="none")

    inputs = [torch.randn(4, 5), torch.randn(6, 5), torch.randn(6), torch.rand(4, 6)]
    low = lowered(gradients(loss, *inputs), inputs)
    slow = {aten.sigmoid.default, aten.binary_cross_entropy_with_logits.default}
    assert not slow & set(targets(low))


def test_one_of_two_sigmoids_that_is_written_to_stays_another():
    def whole(logits, observed):
        cost = binary_cross_entropy_with_logits(logits, observed, reduction="none").sum()
        first, second = logits.sigmoid(), logits.sigmoid()
        first.mul_(10)
        return (cost + (first * second).sum(),)

    assert_lowered_alike(whole)


def test_logits_of_a_tanh_written_through_an_alias_stay():
    def whole(x, observed):
        logits = x.tanh()
        cost = binary_cross_entropy_with_logits(logits, observed, reduction="none").sum()
        logits.detach().add_(1)
        return (cost + logits.sigmoid().sum(),)

    assert_lowered_alike(whole)


def test_views_of_what_the_compiler_puts_in_another_order_are_copies():
    """The transition of a chain sees states of all steps, in the order of the loop."""
    torch.manual_seed(0)
    x = torch.rand(4, 5, 3).round()
    program = pv.Program.of(pv.models.DMM(3, 2, (4,), transition=4, recurrent=4))
    program.read(x)
    (traced, inputs) = CompiledLoss(pv.ELBO().per_datum, program).prepare(x)
    flat = [leaf.detach() for leaf in inputs]
    decomposed = make_fx(lowered(traced.graph, flat), select_decomp_table())(*flat)
    results = []
    for run in (traced.graph, decomposed):
        torch.manual_seed(1)
        with torch.no_grad():
            loss, *rest = run(*flat)
        results.append([loss, *rest[-len(traced.trained) :]])
    for found, exact in zip(*results, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("activation", [torch.relu, torch.sigmoid])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_an_activation_reads_the_flat_values(activation, layout):
    """One copy is kept of what a linear layer behind a convolution takes."""

    def whole(x, kernel, weight):
        hidden = activation(torch.conv2d(x, kernel))
        loss = (hidden.flatten(1) @ weight).square().sum()
        return (loss, *torch.autograd.grad(loss, (kernel, weight)))

    x = torch.linspace(-1, 1, 2 * 3 * 5 * 5).reshape(2, 3, 5, 5).contiguous(memory_format=layout)
    kernel = torch.linspace(1, -1, 4 * 3 * 3 * 3).reshape(4, 3, 3, 3).requires_grad_()
    weight = torch.linspace(-1, 2, 36 * 2).reshape(36, 2).requires_grad_()
    graph = simplify(make_fx(whole)(x, kernel, weight), [x, kernel, weight])
    ready = lowered(graph, [x, kernel, weight])
    with torch.no_grad():
        exact, (loss, _, *grads) = graph(x, kernel, weight), ready(x, kernel, weight)
    assert all(map(torch.equal, (loss, *grads), exact))
    (node,) = (n for n in ready.graph.nodes if n.name == activation.__name__)
    assert len(node.users) == (1 if layout is torch.contiguous_format else 2)
