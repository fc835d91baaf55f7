"""Traced graphs run by PyTorch's own bindings: what can be had without a compiler."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule

from pyro_vae.inference.graphs.aliases import Aliases
from pyro_vae.inference.graphs.simplify import aten
from pyro_vae.torch_private import OpOverload, native_functions, schema


def direct(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Return the graph's function with PyTorch's own bindings in place of the operator registry.

    The same kernels at about half the price of each call: what can be had without a compiler. Run
    once beside the graph; where a binding does not do the same, the graph stays as it is.

    Arguments:
        graph: What ``simplify`` returned.
        inputs: Tensors to try it on; none is changed.
    """
    copy = Graph()
    copy.output(copy.graph_copy(graph.graph, {}))
    quick = GraphModule(graph, copy)
    _keep_constants(quick)
    for node in copy.nodes:
        known = node.op == "call_function" and isinstance(node.target, OpOverload)
        if known and not any(_skips(argument) for argument in node.args):
            node.target = _binding(node.target)
    quick.recompile()
    return quick.forward if _agree(quick, graph, inputs) else graph.forward


def _keep_constants(graph: GraphModule) -> None:
    """Fill each constant once, not at each step: one number, expanded."""
    aliases = Aliases(graph.graph)
    for count, node in enumerate(graph.graph.nodes):
        if node.target is not aten.full.default or aliases.written(node):
            continue
        shape, number = node.args
        name = f"_constant_{count}"
        graph.register_buffer(name, torch.full((), number, **node.kwargs).expand(shape))
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.get_attr(name))
    graph.graph.eliminate_dead_code()


def _skips(argument: Any) -> bool:
    """Return whether an argument is an index that skips a dim: a binding takes no such list."""
    return isinstance(argument, list | tuple) and None in argument


def _binding(target: OpOverload) -> Callable[..., Any]:
    namespace, _, name = schema(target).name.partition("::")
    if namespace != "aten":
        return target
    # Not torch.Tensor: some of its methods are Python, of another meaning (Tensor.index).
    for home in native_functions():
        if hasattr(home, name):
            return getattr(home, name)
    return target


def _agree(one: GraphModule, other: GraphModule, inputs: Sequence[Tensor]) -> bool:
    """Return whether two graphs give the same bits at the same noise."""
    results = []
    for graph in (one, other):
        copies = [leaf.clone() for leaf in inputs]
        with torch.random.fork_rng(list({leaf.device for leaf in inputs if leaf.is_cuda})):
            try:
                results.append([*graph.forward(*copies), *copies])  # a call would print its errors
            except (RuntimeError, TypeError, AttributeError):
                return False
    if inputs[0].device.type == "meta":
        return all(a.shape == b.shape for a, b in zip(*results, strict=True))
    return all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(*results, strict=True)
    )
