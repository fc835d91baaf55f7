"""Whether a graph may replace its program: loss, every gradient and every written tensor agree."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, nn
from torch.fx import GraphModule

from pyro_vae.inference.graphs.aliases import Aliases
from pyro_vae.inference.graphs.course import Course
from pyro_vae.inference.graphs.flat_inputs import FlatStep, flat_weights, leaves_of
from pyro_vae.inference.graphs.python_state import drawn_elsewhere
from pyro_vae.program.batches.batch import Batch, cuda_devices, map_batch, map_rows, num_rows
from pyro_vae.program.looks.failures import users_line
from pyro_vae.torch_private import gradient_hooks

# Of the program's own rounding errors, as one other rounding of its weights shows them: these vary
# by some times, and a graph that is wrong differs by more digits than one.
_ROUNDINGS = 10.0
_KINK = 0.1  # of a gradient: what some rows have in it whose activations are next to a kink

Homes = Sequence[tuple[dict[str, Any], str]]  # where each parameter and buffer is held, and its key


class Call(NamedTuple):
    """What a loss is asked for.

    Arguments:
        batch: One row per datum.
        weights: KL weights, as tensors; None adds none.
        size: N.
    """

    batch: Batch
    weights: Any
    size: int | None


class Outcome(NamedTuple):
    """What one step gives.

    Arguments:
        loss: Detached.
        grads: One per trained parameter; None where the loss does not reach it.
        tensors: The parameters and buffers, and the batch's tensors, as the step leaves them.
        noise: The state of torch's generator on the CPU after the step.
    """

    loss: Tensor
    grads: list[Tensor | None]
    tensors: list[Tensor]
    noise: Tensor


@contextmanager
def undone(homes: Homes, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Undo what runs inside: parameters, buffers and random states are put back.

    Hooks of the parameters are left out inside: they wait for a gradient that is used.
    """
    tensors = [home[key] for home, key in homes]
    copies = [tensor.detach().clone() for tensor in tensors]
    drawn = get_rng_state()
    hooks = [(hooks, dict(hooks)) for hooks in map(gradient_hooks, parameters) if hooks]
    for registered, _ in hooks:
        registered.clear()
    try:
        with torch.random.fork_rng(cuda_devices(tensors)):
            yield
    finally:
        for registered, before in hooks:
            registered.update(before)
        set_rng_state(drawn)
        with torch.no_grad():
            for (home, key), tensor, copy in zip(homes, tensors, copies, strict=True):
                home[key] = tensor
                tensor.copy_(copy)


def eager_outcome(
    loss_on: Callable[[Batch, Any, int | None], Tensor],
    call: Call,
    homes: Homes,
    trained: Sequence[nn.Parameter],
    course: Course | None = None,
) -> Outcome:
    """Run the program's own step on a copy of a batch, and undo it; a course writes it down."""
    rows = map_batch(torch.clone, call.batch)
    if course is not None:
        held = [home[key] for home, key in homes]
        course.take([*held, *leaves_of(rows), *flat_weights(call.weights)])
    drawn = get_rng_state()
    with undone(homes, trained), torch.enable_grad(), course or nullcontext():
        loss = loss_on(rows, call.weights, call.size)
        grads = torch.autograd.grad(loss, list(trained), allow_unused=True)
        held = [home[key].detach().clone() for home, key in homes]
        noise = torch.get_rng_state()
        if course is not None and drawn_elsewhere(drawn, get_rng_state()):
            course.note("draws from Python or NumPy")
    return Outcome(loss.detach(), list(grads), [*held, *leaves_of(rows)], noise)


def graph_outcome(
    run: FlatStep,
    inputs: Sequence[Tensor],
    written: Sequence[int],
    places: Sequence[int],
    num_trained: int,
) -> Outcome:
    """Run a graph's step at the present random state, on copies of what it writes to.

    Arguments:
        run: What runs the graph.
        inputs: Its inputs.
        written: The positions of the inputs that it writes to.
        places: Which of the trained parameters each of its gradients belongs to.
        num_trained: How many these are.
    """
    flat = [leaf.detach() for leaf in inputs]
    for index in written:
        flat[index] = flat[index].clone()
    with torch.random.fork_rng(cuda_devices(flat)), torch.no_grad():
        loss, _, *found = run(*flat)
        noise = torch.get_rng_state()
    grads: list[Tensor | None] = [None] * num_trained
    for place, grad in zip(places, found, strict=True):
        grads[place] = grad
    return Outcome(loss, grads, flat, noise)


def difference(
    eager: Outcome,
    graph: Outcome,
    names: Sequence[str],
    slack: float,
    rounded: Outcome | None = None,
) -> str | None:
    """Return what a graph gives otherwise than its program; None where all agrees.

    Half of the digits must agree: of a loss below one nat or a buffer near zero those behind the
    point, of a gradient those of a hundredth of the largest one.

    Arguments:
        eager, graph: Of one batch at equal noise.
        names: Of the trained parameters, then of ``Outcome.tensors``.
        slack: How many times as much may differ, for a compiler that rounds otherwise.
        rounded: What the program gives at weights rounded otherwise: differences of a few times
            that size are rounding, too.
    """
    if eager.loss.is_meta:
        return None
    if rounded is not None:
        graph = _without_rounding(graph, eager, rounded)
    gaps = [_gap("the loss", graph.loss, eager.loss, slack, 1.0)]
    largest = max((_size(grad) for grad in eager.grads if grad is not None), default=0.0)
    # What is left of a gradient at an optimum is the rounding of the loss.
    rounding = torch.finfo(eager.loss.dtype).eps ** 0.5 * max(1.0, _size(eager.loss))
    pairs = zip(names, graph.grads, eager.grads, strict=False)
    for name, mine, exact in pairs:
        place = f"the gradient of {name!r}"
        if mine is None or exact is None:
            if mine is not exact:
                gaps.append(f"{place} (only {'the graph' if exact is None else 'the program'})")
        else:
            gaps.append(_gap(place, mine, exact, slack, max(0.01 * largest, rounding)))
    held = zip(names[len(eager.grads) :], graph.tensors, eager.tensors, strict=False)
    gaps += [_gap(f"the new value of {name!r}", a, b, slack, 1e-3) for name, a, b in held]
    if not torch.equal(graph.noise, eager.noise):
        gaps.append("the random numbers that come after it (a fork or a seed inside the program)")
    return next((gap for gap in gaps if gap is not None), None)


def same_numbers(one: Outcome, other: Outcome) -> bool:
    """Return whether two outcomes are equal, bit by bit."""
    pairs = zip(
        [one.loss, one.noise, *one.grads, *one.tensors],
        [other.loss, other.noise, *other.grads, *other.tensors],
        strict=True,
    )
    return all(
        a is b or (a is not None and b is not None and torch.equal(a.to_dense(), b.to_dense()))
        for a, b in pairs
    )


def _without_rounding(graph: Outcome, eager: Outcome, rounded: Outcome) -> Outcome:
    """Return what a graph gives, with the program's numbers where rounding explains others."""

    def settled(mine: Tensor, exact: Tensor, other: Tensor) -> Tensor:
        if mine.shape != exact.shape or mine.dtype != exact.dtype or not mine.is_floating_point():
            return mine
        explained = _size(mine - exact) <= _ROUNDINGS * _size(other - exact)
        return exact if explained and torch.equal(mine.isfinite(), exact.isfinite()) else mine

    triples = zip(graph.grads, eager.grads, rounded.grads, strict=True)
    grads = [
        mine if mine is None or exact is None or other is None else settled(mine, exact, other)
        for mine, exact, other in triples
    ]
    return graph._replace(loss=settled(graph.loss, eager.loss, rounded.loss), grads=grads)


def but_for_kinks(
    grads: Sequence[Tensor | None], exact: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Return gradients, with the program's in the place of those that a few rows can explain.

    These are finite and off by less than a tenth of the largest.
    """

    def settled(mine: Tensor | None, its: Tensor | None) -> Tensor | None:
        if (
            mine is None
            or its is None
            or mine.shape != its.shape
            or not bool(mine.isfinite().all())
        ):
            return mine
        return its if _size(mine - its) < _KINK * _size(its) else mine

    return [settled(mine, its) for mine, its in zip(grads, exact, strict=True)]


def compiler_slack(graph: GraphModule) -> float:
    """Return how many times as much a compiled graph may differ: it rounds at other places."""
    metas = (node.meta.get("tensor_meta") for node in graph.graph.nodes)
    halves = (torch.bfloat16, torch.float16)
    return 300.0 if any(getattr(meta, "dtype", None) in halves for meta in metas) else 10.0


def _size(value: Tensor) -> float:
    dense = value.to_dense() if value.is_sparse else value
    return float(dense.detach().nan_to_num(0.0, 0.0, 0.0).abs().max()) if dense.numel() else 0.0


def _gap(place: str, mine: Tensor, exact: Tensor, slack: float, near: float) -> str | None:
    """Return a sentence on two tensors that differ by more than rounding, or None."""
    mine, exact = (v.detach().to_dense() if v.is_sparse else v.detach() for v in (mine, exact))
    if mine.shape != exact.shape or mine.dtype != exact.dtype:
        return f"{place} ({tuple(mine.shape)} {mine.dtype}, not {tuple(exact.shape)} {exact.dtype})"
    if not exact.dtype.is_floating_point:
        return None if torch.equal(mine, exact) else place
    allowed = slack * torch.finfo(exact.dtype).eps ** 0.5 * max(_size(exact), near)
    finite = torch.equal(mine.isfinite(), exact.isfinite())
    apart = _size(mine.nan_to_num(0.0, 0.0, 0.0) - exact.nan_to_num(0.0, 0.0, 0.0))
    if finite and apart <= allowed:
        return None
    return f"{place} (by {apart:.3g} of {_size(exact):.3g})"


def other_rows(batch: Batch) -> Batch | None:
    """Return other rows of equal shapes, from the same data: the first half backwards, each twice.

    All values stay in their supports and rows keep their labels, while order, means and extremes
    change. None for a single row.
    """
    rows = num_rows(batch)
    if rows < 2:
        return None
    index = (rows - 1 - torch.arange(rows)) // 2
    return map_rows(lambda leaf: leaf[index.to(leaf.device)], batch)


def round_otherwise(parameters: Sequence[nn.Parameter]) -> None:
    """Move each weight by about its last digit, some up and some down."""
    with torch.no_grad():
        for parameter in parameters:
            digit = torch.finfo(parameter.dtype).eps * parameter.abs()
            signs = 1 - 2 * (torch.arange(parameter.numel(), device=parameter.device) % 3 == 0)
            parameter.add_(digit * signs.to(parameter.dtype).reshape(parameter.shape))


def move(parameters: Sequence[nn.Parameter]) -> None:
    """Move each weight by up to a hundredth of itself, so that no number made of it stays right."""
    with torch.no_grad():
        for parameter in parameters:
            wave = torch.linspace(-1, 1, parameter.numel() + 1, device=parameter.device)[1:]
            step = torch.where(parameter == 0, 0.01, parameter.abs())
            parameter.add_(0.01 * wave.to(parameter.dtype).reshape(parameter.shape) * step)


def refuse_second_trace(graph: GraphModule, again: GraphModule) -> None:
    """Refuse a program whose second trace has other numbers in it.

    A tracer takes for a constant what does not come from tensors: NumPy's noise, a counter.
    """
    if not same_graph(graph, again):
        raise RuntimeError(
            "traced twice, the program gives two graphs; draw all noise from torch, and keep no "
            "count in Python (a buffer counts)"
        )


def same_graph(one: GraphModule, other: GraphModule) -> bool:
    """Return whether two graphs have the same operations and the same constants."""
    pairs = zip(constants(one).values(), constants(other).values(), strict=False)
    same = all(a.shape == b.shape and (a.is_meta or torch.equal(a, b)) for a, b in pairs)
    return same and one.code == other.code


def constants(graph: GraphModule) -> dict[str, Tensor]:
    """Return the tensors that a graph holds besides its inputs, by name."""
    held = {
        node.target: attrgetter(node.target)(graph)
        for node in graph.graph.find_nodes(op="get_attr")
    }
    return {str(name): value for name, value in held.items() if isinstance(value, Tensor)}


def refuse_constants(graph: GraphModule, inputs: Sequence[Tensor]) -> None:
    """Refuse a graph that holds what must be an input: a weight, a view of one, a running total.

    Raises:
        RuntimeError: Names the shape of the tensor and what to do.
    """
    aliases = Aliases(graph.graph)
    written = {n.target for n in graph.graph.find_nodes(op="get_attr") if aliases.written(n)}
    memory = {leaf.untyped_storage().data_ptr() for leaf in inputs if leaf.numel()} - {0}
    for name, value in constants(graph).items():
        shape = tuple(value.shape)
        if value.requires_grad:
            raise RuntimeError(
                f"a tensor of shape {shape} that requires a gradient is no parameter of the "
                "program; make it an attribute of one of its modules (or Program(..., modules=))"
            )
        if name in written:
            raise RuntimeError(
                f"a tensor of shape {shape} is written to and is no buffer of the program; "
                "register it with register_buffer"
            )
        if value.numel() and value.untyped_storage().data_ptr() in memory:
            raise RuntimeError(
                f"a tensor of shape {shape} shares the memory of a weight or of the batch behind "
                "PyTorch's back; stay in torch operations (no .numpy())"
            )


def reason_of(error: Exception) -> str:
    """Return the first line of an error, and the user's line that raised it."""
    message = (str(error).strip().splitlines() or [type(error).__name__])[0]
    said = f"{type(error).__name__}: {message}"
    if "get value out of a tracing tensor" in message:  # what it says then is to its developers
        said = (
            "a tensor becomes a number of Python (in an if, by .item(), in one_hot, a draw of "
            "OneHotCategorical or pack_padded_sequence), which would stand still in a graph; "
            "torch.where, a mask or torch.eye(K)[y] do not"
        )
    return f"{said}{users_line(error)}"
