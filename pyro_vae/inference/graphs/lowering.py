"""A traced graph made ready for the compiler: the same numbers up to rounding, in fewer passes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from pyro_vae.inference.graphs import elementary_functions as elementary
from pyro_vae.inference.graphs.aliases import Aliases
from pyro_vae.inference.graphs.make_graph import make_graph

aten = torch.ops.aten


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
