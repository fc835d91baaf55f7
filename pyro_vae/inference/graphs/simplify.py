"""Traced graphs made short: what autograd leaves behind is taken out, the numbers stay."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from pyro_vae.inference.graphs.aliases import UNDECLARED, Aliases
from pyro_vae.torch_private import OpOverload, schema

aten = torch.ops.aten

# Views that return their input where they do not change its shape.
_VIEWS = (aten.view.default, aten.expand.default, aten.reshape.default, aten._unsafe_view.default)
_RESHAPES = (aten.view.default, aten.unsqueeze.default, aten.squeeze.dim, aten._unsafe_view.default)
# Sources of tensors that depend on no input, only on its shape.
_FILLED = (
    aten.ones_like.default,
    aten.zeros_like.default,
    aten.full_like.default,
    aten.full.default,
    aten.ones.default,
    aten.zeros.default,
    aten.scalar_tensor.default,
)


def simplify(graph: GraphModule, inputs: Sequence[Tensor]) -> GraphModule:
    """Return the graph without what changes no number: idle views, repeated and constant terms.

    Terms that an in-place operation may write to are left alone; outputs end up in memory of their
    own, so that a caller may change one without changing another.

    Arguments:
        graph: Traced by ``make_fx`` from a function of flat tensors.
        inputs: What it was traced with.
    """
    _remove_idle(graph.graph)
    _fold_constants(graph, inputs)
    _merge_repeated(graph.graph)
    for rule in (_one_view, _sum_without_dim, _signed, _linear):
        _rewrite(graph.graph, rule)
    _separate_outputs(graph.graph)
    graph.graph.eliminate_dead_code()
    return GraphModule(graph, graph.graph)  # a new module: with those constants only that are used


def refuse_moving_shapes(graph: GraphModule) -> None:
    """Refuse a graph with a result whose shape depends on values: traced, it would be fixed.

    Raises:
        RuntimeError: Names the operator and what to do.
    """
    for node in graph.graph.nodes:
        if not isinstance(node.target, OpOverload):
            continue
        moving = torch.Tag.dynamic_output_shape in node.target.tags
        if node.target is aten.index.Tensor:
            metas = [_meta(index) for index in node.args[1] if isinstance(index, Node)]
            moving = any(meta is not None and meta.dtype == torch.bool for meta in metas)
        if moving:
            raise RuntimeError(
                f"the shape that {node.target} returns depends on values; use torch.where or a mask"
            )


def _pure(node: Node) -> bool:
    """Return whether a node's value follows from its arguments alone."""
    target = node.target
    if target is operator.getitem:
        return True
    return (
        isinstance(target, OpOverload)
        and not schema(target).is_mutable
        and schema(target).name not in UNDECLARED
        and torch.Tag.nondeterministic_seeded not in target.tags
        and target not in (aten.empty.memory_format, aten.empty_like.default)
    )


def _remove_idle(graph: Graph) -> None:
    """Remove operations that return their input: idle views, ``t(t(x))``, ``x + 0``."""
    aliases = Aliases(graph)
    for node in list(graph.nodes):
        if node.op != "call_function" or any(map(aliases.written, node.all_input_nodes)):
            continue
        source = _idle_source(node)
        if source is not None:
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _idle_source(node: Node) -> Node | None:
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return None
    if node.target is aten.detach.default:
        return source
    if node.target in (aten.t.default, aten.neg.default) and source.target is node.target:
        return source.args[0]  # type: ignore[return-value]
    before, after = _meta(source), _meta(node)
    if before is None or after is None or before.shape != after.shape:
        return None
    if before.dtype != after.dtype:
        return None
    if node.target in _VIEWS and before.stride == after.stride:
        return source
    zero = node.target is aten.add.Tensor and node.args[1] == 0 and not node.kwargs
    power = node.target is aten.pow.Tensor_Scalar and node.args[1] == 1
    return source if zero or power else None


def _meta(node: Node) -> Any:
    """Return the shape, stride and type that a node had when it was traced, if it is a tensor."""
    meta = node.meta.get("tensor_meta")
    return meta if hasattr(meta, "shape") else None


def _fold_constants(graph: GraphModule, inputs: Sequence[Tensor]) -> None:
    """Compute what depends on no input once, and keep it as a constant."""
    aliases = Aliases(graph.graph)
    device = inputs[0].device
    if device.type == "meta":
        return
    values: dict[Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op != "call_function" or aliases.written(node) or not _pure(node):
            continue
        sources = node.all_input_nodes
        filled = node.target in _FILLED and not any(isinstance(a, Node) for a in node.args[1:])
        if not filled and not (sources and all(source in values for source in sources)):
            continue
        if filled and sources and sources[0] not in values:
            meta = _meta(node)  # a tensor filled to the shape of another: that one is not needed
            if meta is None:
                continue
            fill = {aten.ones_like.default: 1, aten.zeros_like.default: 0}.get(node.target)
            number: Any = node.args[1] if fill is None else fill
            value = torch.full((), number, dtype=meta.dtype, device=device)
            values[node] = value.expand(meta.shape)
        else:
            arguments, named = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*arguments, **named)
    _insert_constants(graph, values)


def _insert_constants(graph: GraphModule, values: dict[Node, Any]) -> None:
    """Put one ``full`` in place of each computed tensor of equal numbers; the rest stays."""
    for node, value in values.items():
        used = any(user not in values for user in node.users)
        if not used or not isinstance(value, Tensor) or value.numel() == 0:
            continue
        number = value.flatten()[0]
        if not bool((value == number).all()):
            continue
        arguments = (list(value.shape), number.item())
        kinds: dict[str, Any] = {"dtype": value.dtype, "device": value.device}
        with graph.graph.inserting_before(node):
            constant = graph.graph.call_function(aten.full.default, arguments, kinds)
        constant.meta = node.meta
        node.replace_all_uses_with(constant, delete_user_cb=lambda user: user not in values)
    graph.graph.eliminate_dead_code()


def _merge_repeated(graph: Graph) -> None:
    """Compute equal terms once."""
    aliases = Aliases(graph)
    known: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not _pure(node) or aliases.written(node):
            continue
        if any(aliases.written(source) for source in node.all_input_nodes):
            continue
        key = (node.target, _key(node.args), _key(node.kwargs))
        first = known.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _key(value: Any) -> Any:
    """Return a hashable form of a node's arguments; 1 and 1.0 and True are different."""
    if isinstance(value, list | tuple):
        return tuple(_key(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in value.items())
    return value if isinstance(value, Node) else (type(value), repr(value))


def _rewrite(graph: Graph, rule: Callable[[Graph, Node], Node | None]) -> None:
    """Put in place of each node what a rule says, in order; the numbers stay, to the last bit."""
    aliases = Aliases(graph)
    for node in list(graph.nodes):
        sources = node.all_input_nodes
        near = [node, *sources, *(far for source in sources for far in source.all_input_nodes)]
        if node.op != "call_function" or any(aliases.written(each) for each in near):
            continue
        with graph.inserting_before(node):
            new = rule(graph, node)
        if new is not None:
            new.meta = node.meta
            node.replace_all_uses_with(new)
    graph.eliminate_dead_code()


def _one_view(graph: Graph, node: Node) -> Node | None:
    """``unsqueeze(view(x))`` and the like are one view of x, where all is contiguous."""
    root = node
    while root.target in _RESHAPES and _contiguous(root.args[0]):
        root = root.args[0]  # type: ignore[assignment]
    meta = _meta(node)
    if root is node or not _contiguous(node) or root is node.args[0]:
        return None
    if _meta(root).shape == meta.shape:
        return root
    return graph.call_function(aten.view.default, (root, list(meta.shape)))


def _contiguous(node: Any) -> bool:
    meta = _meta(node) if isinstance(node, Node) else None
    if meta is None:
        return False
    expected, strides = 1, []
    for size in reversed(meta.shape):
        strides.append(expected)
        expected *= size
    return tuple(reversed(strides)) == tuple(meta.stride)


def _sum_without_dim(graph: Graph, node: Node) -> Node | None:
    """The gradient of a bias: ``view(sum(x, 0, keepdim=True), n)`` is ``sum(x, 0)``."""
    source = node.args[0] if node.args else None
    if node.target is not aten.view.default or not isinstance(source, Node):
        return None
    if source.target is not aten.sum.dim_IntList or source.args[1:] != ([0], True):
        return None
    if _meta(node) is None or _meta(node).shape != _meta(source).shape[1:]:
        return None
    return graph.call_function(aten.sum.dim_IntList, (source.args[0], [0]))


def _signed(graph: Graph, node: Node) -> Node | None:
    """``a + (-b)`` is ``a - b``, and ``a - (-b)`` is ``a + b``."""
    swaps = {aten.add.Tensor: aten.sub.Tensor, aten.sub.Tensor: aten.add.Tensor}
    if node.target not in swaps or node.kwargs or len(node.args) != 2:
        return None
    left, right = node.args
    if _negated(right) is not None:
        return graph.call_function(swaps[node.target], (left, _negated(right)))
    if node.target is aten.add.Tensor and _negated(left) is not None and isinstance(right, Node):
        return graph.call_function(aten.sub.Tensor, (right, _negated(left)))
    return None


def _negated(node: Any) -> Node | None:
    is_negation = isinstance(node, Node) and node.target is aten.neg.default
    return node.args[0] if is_negation else None


def _linear(graph: Graph, node: Node) -> Node | None:
    """``addmm(b, x, t(W))`` is a linear layer: one call, which transposes on its own."""
    if node.target is not aten.addmm.default or node.kwargs or len(node.args) != 3:
        return None
    bias, x, weight = node.args
    if not isinstance(weight, Node) or weight.target is not aten.t.default:
        return None
    if _meta(bias) is None or len(_meta(bias).shape) != 1:  # type: ignore[arg-type]
        return None
    return graph.call_function(aten.linear.default, (x, weight.args[0], bias))


def _separate_outputs(graph: Graph) -> None:
    """Copy outputs that share memory with another output, an input or a constant."""
    aliases = Aliases(graph)
    taken = {aliases.root(n) for n in graph.nodes if n.op in ("placeholder", "get_attr")}
    (output,) = (node for node in graph.nodes if node.op == "output")
    results = []
    for result in output.args[0]:
        root = aliases.root(result)
        if root in taken:
            with graph.inserting_before(output):
                result = graph.call_function(aten.clone.default, (result,))
        taken.add(root)
        results.append(result)
    output.args = (tuple(results),)


def written_inputs(graph: GraphModule) -> list[int]:
    """Return the positions of the inputs that the graph writes to."""
    aliases = Aliases(graph.graph)
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    return [index for index, node in enumerate(inputs) if aliases.written(node)]
