r"""A loop over time, :math:`c_t = f(c_{t-1}, u_t)`, that a tracer does not unroll.

Shapes: T steps, C the carry's shape, * that of one step of an input.
"""

import functools
import json
import math
import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import (
    disable_proxy_modes_tracing,
    get_proxy_mode,
    make_fx,
)

from pyro_vae.interrupts import unbroken
from pyro_vae.torch_private import OpOverload, overload_name, schema

aten = torch.ops.aten
Step = Callable[..., Tensor]
_FIXED, _STEPPED, _CARRIED = range(3)  # the same for all steps, one for each, of the step before


def scan(
    step: Step,
    carry: Tensor,
    inputs: Sequence[Tensor] = (),
    *,
    steps: int | None = None,
    reverse: bool = False,
) -> Tensor:
    r"""Return all carries of a loop, :math:`c_t = f(c_{t-1}, u_t)`, shape (T, C).

    Run eagerly it is that loop. Under the tracer of a compiled step it is a few operators, whatever
    T is: one runs the loop, one runs it backwards for the gradient of each carry. What does not
    depend on the carry, and the gradients of weights and inputs, are computed for all steps at
    once. Noise is drawn in the order of the loop.

    Arguments:
        step: Maps a carry (C) and one step of each input to the next carry (C), in torch operations
            that write to no tensor; its noise has a distribution without tensors in it.
        carry: :math:`c_0`, shape (C).
        inputs: Each (T, *).
        steps: T, where there are no inputs.
        reverse: Run from the last step to the first, :math:`c_t = f(c_{t+1}, u_t)`.

    Raises:
        RuntimeError: Under a tracer, a step that does something else.

    Example:
        >>> scan(lambda total, x: total + x, torch.zeros(()), [torch.arange(1.0, 5.0)])
        tensor([ 1.,  3.,  6., 10.])
    """
    count = len(inputs[0]) if inputs else int(steps or 0)
    if get_proxy_mode() is not None:
        return _traced(step, carry, list(inputs), count, reverse)
    carries = []
    for t in _order(count, reverse):
        carry = step(carry, *(each[t] for each in inputs))
        carries.append(carry)
    return torch.stack([carries[t] for t in _order(count, reverse)])


def _order(steps: int, reverse: bool) -> range:
    """Return the steps as a loop takes them."""
    return range(steps - 1, -1, -1) if reverse else range(steps)


# -- under a tracer -------------------------------------------------------------------------------


def _traced(step: Step, carry: Tensor, inputs: list[Tensor], steps: int, reverse: bool) -> Tensor:
    graph, noise, fixed = _recorded(step, carry, inputs)
    drawn = _drawn(noise, carry.detach(), steps) if noise else []
    drawn = [each.flip(0) for each in drawn] if reverse else drawn  # it comes in the loop's order
    parts = _Parts(graph, len(inputs) + len(drawn))
    stepped, fixed = parts.outside([*inputs, *drawn], fixed)
    still = [[each.detach() for each in some] for some in (stepped, fixed)]
    path = torch.ops.pyro_vae.scan(parts.source, carry.detach(), *still, steps, reverse)
    if not torch.is_grad_enabled():
        return path
    previous = _before(path, carry.detach(), reverse)
    again = _over_time(parts.inside, [previous, *stepped], fixed)
    back = _backwards(parts.inside, carry, *still)
    return _Path.apply(again, carry, back, reverse, previous, *still)


def _drawn(noise: str, like: Tensor, steps: int) -> list[Tensor]:
    """Return the noise of all steps, one tensor (T, *) for each draw of a step."""
    flat = torch.ops.pyro_vae.repeat(noise, like, steps)
    kinds = _value_of(noise)
    parts = flat.split([math.prod(shape) for shape, *_ in kinds], -1)
    return [
        part.reshape(steps, *shape).to(getattr(torch, dtype))
        for part, (shape, dtype, *_) in zip(parts, kinds, strict=True)
    ]


def _before(path: Tensor, first: Tensor, reverse: bool) -> Tensor:
    """Return for each step what the step before it in a loop has; of the first step, another."""
    first = first.unsqueeze(0)
    return torch.cat([path[1:], first] if reverse else [first, path[:-1]])


class _Path(torch.autograd.Function):
    r"""A path that was computed for all steps at once, as if each step had followed the last.

    .. math:: \lambda_t = g_t + (\partial c_{t+1} / \partial c_t)^\top \lambda_{t+1}
    """

    @staticmethod
    def forward(
        ctx: Any,
        path: Tensor,
        carry: Tensor,
        back: Any,
        reverse: bool,
        previous: Tensor,
        *still: Any,
    ) -> Tensor:
        ctx.back, ctx.reverse, ctx.previous, ctx.still = back, reverse, previous, still
        return path.view_as(path)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        none = (None,) * 5
        zero, reverse = torch.zeros_like(grad[0]), ctx.reverse
        if ctx.back is None:
            return grad, zero, *none
        before = _before(grad, zero, reverse)
        stepped, fixed = ctx.back.outside([before, ctx.previous, *ctx.still[0]], ctx.still[1])
        last = grad[0 if reverse else -1].clone()
        found = torch.ops.pyro_vae.scan(
            ctx.back.source, last, stepped, fixed, len(grad), not reverse
        )
        if reverse:
            return torch.cat([grad[:1], found[:-1]]), found[-1], *none
        return torch.cat([found[1:], grad[-1:]]), found[0], *none


def _backwards(
    inside: GraphModule, carry: Tensor, stepped: Sequence[Tensor], fixed: Sequence[Tensor]
) -> "_Parts | None":
    """Return a step of the loop that takes the gradient back; None: steps forget their carry."""

    def step(grad: Tensor, before: Tensor, old: Tensor, *rest: Tensor) -> Tensor:
        old = old.detach().requires_grad_()
        new = inside(old, *rest)
        if not new.requires_grad:
            return before.clone()
        (change,) = torch.autograd.grad(new, [old], grad, allow_unused=True)
        return before.clone() if change is None else before + change

    with unbroken(), disable_proxy_modes_tracing(), torch.enable_grad():
        like = [torch.zeros_like(carry, requires_grad=False) for _ in range(2)]
        firsts = [each[0].clone() for each in stepped]
        start = carry.detach().clone()
        graph = make_fx(step)(*like, start, *firsts, *(each.clone() for each in fixed))
    kinds = _kinds(graph.graph, 2 + len(stepped))
    return _Parts(graph, 2 + len(stepped)) if kinds[_result(graph.graph)] == _CARRIED else None


class _Parts:
    """A step in three: what holds for all steps, what each step has anew, what the loop is.

    Arguments:
        graph: Of a carry, the inputs of a step, and fixed tensors.
        stepped: How many inputs a step has.
    """

    def __init__(self, graph: GraphModule, stepped: int) -> None:
        _write_anew(graph.graph)
        _refuse_writing(graph.graph)
        _flatten_anew(graph.graph)
        kinds = _kinds(graph.graph, stepped)
        places = graph.graph.find_nodes(op="placeholder")
        result = _result(graph.graph)

        def used_by(kind: int, of: int) -> list[Node]:
            users = [n for n in graph.graph.nodes if kinds.get(n) == kind]
            used = [n for user in users for n in user.all_input_nodes]
            used += [result] if kind == _CARRIED else []
            return [n for n in dict.fromkeys(used) if kinds[n] == of]

        self._between = used_by(_STEPPED, _FIXED)
        self._stepped, self._fixed = used_by(_CARRIED, _STEPPED), used_by(_CARRIED, _FIXED)
        self._once = _cut(graph, places[1 + stepped :], [*self._between, *self._fixed])
        mine = [*places[1 : 1 + stepped], *self._between]
        self._each = _cut(graph, mine, self._stepped)
        self.inside = _cut(graph, [places[0], *self._stepped, *self._fixed], result)
        self.source = _source(self.inside)

    def outside(
        self, stepped: Sequence[Tensor], fixed: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return what the loop needs of the inputs of all steps, (T, *), and of fixed tensors."""
        once = self._once(*fixed)
        between, kept = once[: len(self._between)], once[len(self._between) :]
        each = _over_time(self._each, stepped, between) if self._stepped else []
        return list(each), list(kept)


def _recorded(
    step: Step, carry: Tensor, inputs: Sequence[Tensor]
) -> tuple[GraphModule, str, list[Tensor]]:
    """Return a step's graph, of its noise and of all tensors that it knows; how to draw; those."""
    devices = [carry.device] if carry.is_cuda else []
    quiet = torch.random.fork_rng(devices)
    with unbroken(), disable_proxy_modes_tracing(), torch.no_grad(), quiet:
        firsts = [each[0].detach().clone() for each in inputs]
        # The tracer counts the arguments of a function, those with a default too.
        graph = make_fx(lambda *given: step(*given))(carry.detach().clone(), *firsts)
    body = graph.graph
    result = _result(body)
    if result.meta["tensor_meta"].shape != carry.shape:
        shape = tuple(result.meta["tensor_meta"].shape)
        raise RuntimeError(f"a step's carry has shape {shape}, expected {tuple(carry.shape)}")
    draws = [_take_noise(body, node) for node in list(body.nodes) if _is_random(node)]
    held: dict[int, Tensor] = {}
    places: dict[int, Node] = {}
    for node in body.find_nodes(op="get_attr"):
        value = getattr(graph, str(node.target))
        if id(value) not in held:
            held[id(value)] = value
            with body.inserting_before(next(n for n in body.nodes if n.op != "placeholder")):
                places[id(value)] = body.placeholder(f"fixed_{len(places)}")
        node.replace_all_uses_with(places[id(value)])
        body.erase_node(node)
    body.eliminate_dead_code()
    return graph, _text_of(draws) if draws else "", list(held.values())


def _is_random(node: Node) -> bool:
    tags = node.target.tags if isinstance(node.target, OpOverload) else ()
    return torch.Tag.nondeterministic_seeded in tags


_DRAWS = {
    aten.randn.default: ("normal_", ()),
    aten.randn_like.default: ("normal_", ()),
    aten.rand.default: ("uniform_", ()),
    aten.rand_like.default: ("uniform_", ()),
}
_EMPTY = (aten.empty.memory_format, aten.empty_like.default)


def _take_noise(body: Graph, node: Node) -> list[Any]:
    """Put an input in place of a draw, and return its shape, type, and how it is drawn."""
    assert isinstance(node.target, OpOverload)
    how: Any = _DRAWS.get(node.target)
    source = node.args[0] if node.args else None
    if isinstance(source, Node) and source.target in _EMPTY and not node.kwargs:
        name = schema(node.target).name.removeprefix("aten::")
        if not any(isinstance(each, Node) for each in node.args[1:]):
            how = (name, node.args[1:])
    if how is None:
        raise RuntimeError(
            f"a step of a loop draws by {node.target}, whose noise tensors shape; draw noise of "
            "fixed distributions and transform it"
        )
    meta = node.meta["tensor_meta"]
    last = body.find_nodes(op="placeholder")[-1]
    with body.inserting_after(last):
        place = body.placeholder(f"noise_{len(body.find_nodes(op='placeholder'))}")
    place.meta = node.meta
    node.replace_all_uses_with(place)
    body.erase_node(node)
    if isinstance(source, Node) and not source.users:
        body.erase_node(source)
    return [list(meta.shape), str(meta.dtype).removeprefix("torch."), how[0], list(how[1])]


def _write_anew(body: Graph) -> None:
    """Let operations that write to a tensor made for them alone (as in clamp's gradient) make one.

    One that may share memory with another stays as it is.
    """
    for node in body.nodes:
        if not isinstance(node.target, OpOverload) or not schema(node.target).is_mutable:
            continue
        written: Any = node.args[0] if node.args else None
        ours = isinstance(written, Node) and isinstance(written.target, OpOverload)
        if not ours or len(written.users) > 1:
            continue
        shares = any(result.alias_info for result in schema(written.target).returns)
        name = schema(node.target).name.removeprefix("aten::")
        other = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
        overload = getattr(other, overload_name(node.target), None)
        if not shares and overload is not None:
            node.target = overload


def _refuse_writing(body: Graph) -> None:
    for node in body.nodes:
        if isinstance(node.target, OpOverload) and schema(node.target).is_mutable:
            raise RuntimeError(f"a step of a loop writes to a tensor by {node.target}")


def _flatten_anew(body: Graph) -> None:
    """Let views copy where they must: other steps may lie in memory otherwise than the recorded."""
    for node in body.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default


def _kinds(body: Graph, stepped: int) -> dict[Node, int]:
    """Return what each node of a step depends on."""
    kinds: dict[Node, int] = {}
    for index, node in enumerate(n for n in body.nodes if n.op == "placeholder"):
        kinds[node] = _CARRIED if index == 0 else _STEPPED if index <= stepped else _FIXED
    for node in body.nodes:
        if node.op == "call_function":
            kinds[node] = max((kinds[n] for n in node.all_input_nodes), default=_FIXED)
    return kinds


def _result(body: Graph) -> Node:
    (output,) = body.find_nodes(op="output")
    return output.args[0]


def _cut(graph: GraphModule, inputs: Sequence[Node], outputs: Node | Sequence[Node]) -> GraphModule:
    """Return the part of a graph from some nodes to others."""
    new = Graph()
    known = {node: new.placeholder(node.name) for node in inputs}
    wanted = set([outputs] if isinstance(outputs, Node) else outputs)
    for node in reversed(graph.graph.nodes):
        if node in wanted and node not in known:
            wanted |= set(node.all_input_nodes)
    for node in graph.graph.nodes:
        if node in wanted and node not in known:
            known[node] = new.node_copy(node, known.__getitem__)
    new.output(torch.fx.node.map_arg(outputs, known.__getitem__))
    return GraphModule({}, new)


def _over_time(part: GraphModule, stepped: Sequence[Tensor], fixed: Sequence[Tensor]) -> Any:
    """Run a part for all steps at once; inputs and results of a step have T in front."""
    dims = (0,) * len(stepped) + (None,) * len(fixed)
    return torch.vmap(part, in_dims=dims)(*stepped, *fixed)


# -- the operators --------------------------------------------------------------------------------


def _source(part: GraphModule) -> str:
    """Return a part as JSON: a graph that holds it is whole, in another process too."""
    numbers: dict[Node, int] = {}
    lines: list[Any] = []
    for node in part.graph.nodes:
        if node.target is aten.detach.default:
            numbers[node] = numbers[node.args[0]]
            continue
        numbers[node] = len(numbers)
        if node.op == "call_function":
            name = _ITEM if node.target is operator.getitem else str(node.target)
            lines.append([numbers[node], name, _plain((node.args, node.kwargs), numbers)])
        elif node.op == "placeholder":
            lines.append([numbers[node], "", None])
        else:
            lines.append([0, "", _plain(node.args[0], numbers)])
    return _text_of(lines)


def _text_of(value: Any) -> str:
    """Return JSON between single quotes: PyTorch's compiler puts it into C++ as it is."""
    return json.dumps(value).replace('"', "'")


def _value_of(text: str) -> Any:
    return json.loads(text.replace("'", '"'))


def _plain(value: Any, numbers: dict[Node, int]) -> Any:
    """Return an argument as JSON keeps it."""
    if isinstance(value, Node):
        return {"node": numbers[value]}
    if isinstance(value, list | tuple):
        return [_plain(each, numbers) for each in value]
    if isinstance(value, dict):
        return {"named": {name: _plain(each, numbers) for name, each in value.items()}}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
        return {"torch": str(value).removeprefix("torch.")}
    return value


@cache
def _function(source: str) -> Callable[..., Any]:
    """Return what a source means."""
    *lines, (_, _, result) = _value_of(source)
    body, known = Graph(), {}
    for number, name, given in lines:
        if not name:
            known[number] = body.placeholder(f"x{number}")
            continue
        args, named = (_real(each, known) for each in given)
        known[number] = body.call_function(_operator(name), tuple(args), named)
    body.output(_real(result, known))
    return GraphModule({}, body).forward


def _operator(name: str) -> Callable[..., Any]:
    """Return what a name means, PyTorch's own binding first: half the price of a call."""
    if name == _ITEM:
        return operator.getitem
    space, operation, overload = name.split(".")
    if space == "aten" and operation in _BINDINGS:
        return getattr(torch, operation)
    return getattr(getattr(getattr(torch.ops, space), operation), overload)


def _real(value: Any, known: dict[int, Node]) -> Any:
    """Return what `_plain` has written."""
    if isinstance(value, list):
        return [_real(each, known) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, what),) = value.items()
    if kind == "named":
        return {name: _real(each, known) for name, each in what.items()}
    if kind == "node":
        return known[what]
    return torch.device(what) if kind == "device" else getattr(torch, what)


_ITEM = "item"
# Those that mean the same by either name.
_BINDINGS = (
    *(
        "add",
        "addcmul",
        "addmm",
        "cat",
        "clone",
        "exp",
        "log",
        "mm",
        "mul",
        "neg",
        "reshape",
        "rsqrt",
        "sigmoid",
    ),
    *("sqrt", "sub", "sum", "t", "tanh", "where"),
)


@torch.library.custom_op("pyro_vae::scan", mutates_args=())
def _scan(
    source: str,
    carry: Tensor,
    stepped: list[Tensor],
    fixed: list[Tensor],
    steps: int,
    reverse: bool,
) -> Tensor:
    step = _function(source)
    now = list(zip(*(each.unbind(0) for each in stepped), strict=True)) or [()] * steps
    path = []
    for inputs in reversed(now) if reverse else now:
        carry = step(carry, *inputs, *fixed)
        path.append(carry)
    return torch.stack(path[::-1] if reverse else path)


@_scan.register_fake
def _(
    source: str,
    carry: Tensor,
    stepped: list[Tensor],
    fixed: list[Tensor],
    steps: int,
    reverse: bool,
) -> Tensor:
    return carry.new_empty((steps, *carry.shape))


# One tensor: PyTorch's compiler calls no operator of this kind that returns a list.
@torch.library.custom_op(
    "pyro_vae::repeat", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
def _repeat(draws: str, like: Tensor, steps: int) -> Tensor:
    kinds = _value_of(draws)
    noise = [torch.cat([_draw(kind, like).flatten() for kind in kinds]) for _ in range(steps)]
    return torch.stack(noise)


@_repeat.register_fake
def _(draws: str, like: Tensor, steps: int) -> Tensor:
    kinds = _value_of(draws)
    widest = functools.reduce(torch.promote_types, (getattr(torch, each[1]) for each in kinds))
    return like.new_empty((steps, sum(math.prod(shape) for shape, *_ in kinds)), dtype=widest)


def _draw(kind: Any, like: Tensor) -> Tensor:
    shape, dtype, method, numbers = kind
    empty = torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)
    return getattr(empty, method)(*numbers)
