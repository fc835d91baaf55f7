"""A traced graph made ready for the compiler: the same numbers up to rounding, in fewer passes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from pyro_vae.inference.graphs import elementary_functions as elementary
from pyro_vae.inference.graphs.aliases import Aliases
from pyro_vae.inference.graphs.make_graph import make_graph

aten = torch.ops.aten

# Numbers of a product below which a pass over it costs less than the call that makes it.
_SMALL = 2**14


def lowered(graph: GraphModule, inputs: Sequence[Tensor]) -> GraphModule:
    """Return what the compiler gets: ``(loss, norm of the gradients, *gradients)``.

    Arguments:
        graph: What ``simplify`` returned; left as it is.
        inputs: Tensors of the devices to come.
    """
    copy = Graph()
    results: Any = copy.graph_copy(graph.graph, {})
    loss, *grads = results
    copy.output((loss, _norm(copy, loss, grads), *grads))
    if all(leaf.device.type == "cpu" for leaf in inputs):
        _part_small_sums(copy)
        _draw_at_once(copy)
        _shorten(copy)
        _reshape(copy)
        _keep_one(copy)
    copy.eliminate_dead_code()
    return GraphModule(graph, copy)


def _norm(graph: Graph, loss: Node, grads: list[Node]) -> Node:
    """The compiler reduces each gradient where it makes it."""
    call = graph.call_function
    total = None
    for grad in grads:
        square = call(aten.sum.default, (call(aten.mul.Tensor, (grad, grad)),))
        total = square if total is None else call(aten.add.Tensor, (total, square))
    if total is None:
        return call(aten.zeros_like.default, (loss,))
    return call(aten.sqrt.default, (total,))


def _part_small_sums(graph: Graph) -> None:
    """Add to a small product in the pass that follows it: a bias, or another gradient.

    PyTorch's ``addmm`` fills the result with what is added before it multiplies, which takes as
    long as half a product of 128 x 64 numbers by 32. Of large products it takes nothing.
    """
    for node in list(graph.nodes):
        if _dtype(node) not in (torch.float32, torch.float64) or math.prod(_shape(node)) > _SMALL:
            continue  # in half precision it would be rounded twice
        with graph.inserting_before(node):
            parts = _product_and_rest(graph, node)
            if parts is not None and _dtype(parts[1]) is _dtype(node):  # no flag is negated
                product, rest = parts
                negated = graph.call_function(aten.neg.default, (rest,))
                # Less the negated: of a sum the compiler would make addmm again.
                total = graph.call_function(aten.sub.Tensor, (product, negated))
                total.meta = node.meta
                node.replace_all_uses_with(total)


def _product_and_rest(graph: Graph, node: Node) -> tuple[Node, Node] | None:
    """Return the product of two matrices and what a node adds to it, or None."""
    if node.kwargs or len(_shape(node)) != 2:
        return None
    if node.target is aten.add.Tensor:
        products = [each for each in node.args if _is_product(each)]
        rest = [each for each in node.args if isinstance(each, Node) and each not in products[:1]]
        return (products[0], rest[0]) if products and rest else None  # type: ignore[return-value]
    if len(node.args) != 3 or node.target not in (aten.addmm.default, aten.linear.default):
        return None
    one, two, three = node.args
    bias, x, weight = (one, two, three) if node.target is aten.addmm.default else (three, one, two)
    if node.target is aten.linear.default:
        weight = graph.call_function(aten.t.default, (weight,))
    return graph.call_function(aten.mm.default, (x, weight)), bias  # type: ignore[return-value]


def _is_product(node: Any) -> bool:
    return isinstance(node, Node) and node.target is aten.mm.default


def _draw_at_once(graph: Graph) -> None:
    """Draw standard normal noise into memory of its own, and not into a copy of it."""
    for node in graph.find_nodes(op="call_function", target=aten.normal_.default):
        place = node.args[0]
        plain = node.args[1:] in ((), (0.0, 1.0)) and not node.kwargs
        fresh = place.target is aten.empty.memory_format and len(place.users) == 1
        if plain and fresh and not place.kwargs.get("memory_format"):
            with graph.inserting_before(node):
                noise = graph.call_function(aten.randn.default, place.args, place.kwargs)
            noise.meta = node.meta
            node.replace_all_uses_with(noise)
            graph.erase_node(node)


def _shorten(graph: Graph) -> None:
    """Put short functions in place of those for which the compiler calls a library."""
    sigmoids = _sigmoids(graph)
    for node in list(graph.nodes):
        if _dtype(node) is not torch.float32:
            continue
        if node.target is aten.tanh.default:
            node.replace_all_uses_with(_inlined(graph, node, elementary.tanh, node.args))
        elif node.target is aten.binary_cross_entropy_with_logits.default:
            sources, options = node.args[:2], node.args[2:]
            plain = options == (None, None, 0)  # no weights, no mean
            if plain and all(_dtype(source) is torch.float32 for source in sources):
                cost, mean = _inlined(graph, node, elementary.bernoulli, sources)
                node.replace_all_uses_with(cost)
                for sigmoid in sigmoids[node]:
                    sigmoid.replace_all_uses_with(mean)


def _reshape(graph: Graph) -> None:
    """Let views copy where they must: what was put in place may lie in memory in another order."""
    aliases = Aliases(graph)
    for node in graph.find_nodes(op="call_function", target=aten.view.default):
        if not aliases.written(node):
            node.target = aten.reshape.default


def _keep_one(graph: Graph) -> None:
    """Let the gradient of an activation that is flattened read the flat values.

    Else the compiler keeps both these, for the next layer, and what the activation was made of.
    """
    aliases = Aliases(graph)
    for target in (aten.relu.default, aten.tanh.default, aten.sigmoid.default):
        for node in graph.find_nodes(op="call_function", target=target):
            flat = [user for user in node.users if user.target is aten.reshape.default]
            if len(flat) != 1 or aliases.written(node) or not _contiguous(node):
                continue
            with graph.inserting_after(flat[0]):
                again = graph.call_function(aten.reshape.default, (flat[0], _shape(node)))
            for user in [user for user in node.users if user > again]:
                user.replace_input_with(node, again)


def _sigmoids(graph: Graph) -> dict[Node, list[Node]]:
    """Return the sigmoids of a cost's logits that follow it, by cost: its gradient has one.

    Looked for before anything is replaced: where memory is written to, none is answered for.
    """
    aliases = Aliases(graph)
    found = {}
    for cost in graph.nodes:
        if cost.target is not aten.binary_cross_entropy_with_logits.default:
            continue
        users = [user for user in cost.args[0].users if user.target is aten.sigmoid.default]
        clean = [user for user in users if user > cost and not aliases.written(user)]
        found[cost] = [] if aliases.written(cost.args[0]) else clean
    return found


def _contiguous(node: Node) -> bool:
    """Return whether a node's tensor lay in memory row by row when it was traced."""
    meta = node.meta.get("tensor_meta")
    return getattr(meta, "memory_format", None) is torch.contiguous_format


def _shape(node: Node) -> list[int]:
    """Return the shape of a node's tensor when it was traced."""
    return list(node.meta["tensor_meta"].shape)


def _dtype(node: Any) -> torch.dtype | None:
    """Return the type of a node's tensor when it was traced, if it was one."""
    meta = node.meta.get("tensor_meta")
    return getattr(meta, "dtype", None)


def _inlined(graph: Graph, node: Node, function: Callable[..., Any], sources: Sequence[Any]) -> Any:
    """Return the result of an elementwise function, its operations put before a node."""
    traced = make_graph(function, *(torch.ones(()) for _ in sources)).graph
    inputs = [each for each in traced.nodes if each.op == "placeholder"]
    with graph.inserting_before(node):
        return graph.graph_copy(traced, dict(zip(inputs, sources, strict=True)))
