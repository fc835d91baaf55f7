"""A traced graph made ready for the compiler: the same numbers up to rounding, in fewer passes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten


def lowered(graph: GraphModule, inputs: Sequence[Tensor]) -> GraphModule:
    """Return what the compiler gets: ``(loss, norm of the gradients, *gradients)``.

    Arguments:
        graph: What ``simplify`` returned; left as it is.
        inputs: Tensors of the shapes, strides and devices to come.
    """
    copy = Graph()
    loss, *grads = copy.graph_copy(graph.graph, {})  # type: ignore[misc]
    copy.output((loss, _norm(copy, loss, grads), *grads))
    if all(leaf.device.type == "cpu" for leaf in inputs):
        _separate_biases(copy)
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


def _separate_biases(graph: Graph) -> None:
    """Make ``x W' + b`` a product and a sum, which joins the activation that follows.

    PyTorch's ``addmm`` on the CPU first fills the result with b: one pass over memory more.
    """
    call = graph.call_function
    for node in list(graph.nodes):
        with graph.inserting_before(node):
            parts = _affine(graph, node)
            if parts is None:
                continue
            x, transposed, bias = parts
            product = call(aten.mm.default, (x, transposed))
            # Less the negated: what reads ``mm + b`` the compiler would turn back into ``addmm``.
            new = call(aten.sub.Tensor, (product, call(aten.neg.default, (bias,))))
        node.replace_all_uses_with(new)


def _affine(graph: Graph, node: Node) -> tuple[Any, Any, Any] | None:
    """Return the factors and the bias of a linear layer in full precision, or None."""
    meta = node.meta.get("tensor_meta")
    if getattr(meta, "dtype", None) not in (torch.float32, torch.float64):
        return None  # rounded to bfloat16 twice, it would be another number
    if node.target is aten.addmm.default and len(node.args) == 3 and not node.kwargs:
        bias, x, transposed = node.args
        return x, transposed, bias
    if node.target is aten.linear.default and len(node.args) == 3 and len(meta.shape) == 2:
        x, weight, bias = node.args
        return x, graph.call_function(aten.t.default, (weight,)), bias
    return None
