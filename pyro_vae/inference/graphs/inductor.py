"""The compiler: a traced graph of flat tensors through TorchInductor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule

from pyro_vae.inference.graphs.comparison import constants
from pyro_vae.inference.graphs.flat_inputs import FlatStep
from pyro_vae.inference.graphs.lowering import lowered
from pyro_vae.inference.graphs.simplify import written_inputs
from pyro_vae.torch_private import FakeTensorMode, TracingContext, compiler, tracing


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor]) -> FlatStep:
    """Compile a traced graph, to return ``(loss, norm of the gradients, *gradients)``.

    No Dynamo: the graph has no Python left to be captured, and no guards to be checked at each
    step. On the CPU noise comes from PyTorch's own generators, so that compiled and traced steps
    draw the same, and the whole step is one C++ function: a third faster on small networks than
    kernels called from Python, and quicker to compile. On CUDA noise is drawn inside the kernels.

    Arguments:
        graph: What ``simplify`` returned.
        inputs: Tensors of the shapes, strides and devices to come.
    """
    # A second to import: only where it is used.
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    code = compiler("compile_fx")
    # Inductor's cache wants a context for symbolic shapes; ours are numbers.
    mode = FakeTensorMode(shape_env=ShapeEnv())
    lifted, held = with_constants_as_inputs(graph)
    flat = [*held, *inputs]
    shapes = [mode.from_tensor(leaf.detach(), static_shapes=True) for leaf in flat]
    ready = lowered(lifted, flat)
    for place, shape in zip(ready.graph.find_nodes(op="placeholder"), shapes, strict=True):
        place.meta["val"] = shape  # where one place has a value, the compiler asks each for it
    with torch.no_grad(), tracing(TracingContext(mode)):
        run = code.compile_fx(ready, shapes, config_patches=_options(flat))
    return _called(run, held, inputs, written_inputs(lifted))


def with_constants_as_inputs(graph: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """Return a graph that takes its constants before its inputs, and the constants.

    Compiled code takes them so. In a file it reads stray memory where they are not given; in this
    process AOTAutograd gives them, which keeps its functions around each step.
    """
    copy, held = Graph(), constants(graph)
    copy.output(copy.graph_copy(graph.graph, {}))
    first = next(iter(copy.nodes))
    for name in held:
        with copy.inserting_before(first):
            place = copy.placeholder(f"held_{name}")
        for node in copy.find_nodes(op="get_attr", target=name):
            node.replace_all_uses_with(place)
            copy.erase_node(node)
    return GraphModule(graph, copy), list(held.values())


def save_compiled(graph: GraphModule, inputs: Sequence[Tensor], path: Path) -> None:
    """Compile a traced graph as ``compile_graph`` does, into a file.

    The file holds code: load it only where you made it.
    """
    inductor: Any = compiler()
    with torch.no_grad():
        compiled = inductor.standalone_compile(
            lowered(graph, inputs),
            [leaf.detach() for leaf in inputs],
            dynamic_shapes="from_example_inputs",
            options={"config_patches": _options(inputs)},
        )
    compiled.save(path=str(path), format="binary")


def load_compiled(
    path: Path, held: Sequence[Tensor], inputs: Sequence[Tensor], written: Sequence[int]
) -> FlatStep:
    """Load what ``save_compiled`` wrote: a matter of milliseconds.

    Arguments:
        path: The file.
        held: Constants, which are the first inputs of what was compiled.
        inputs: The others.
        written: The positions of those, among all, that the graph writes to.
    """
    with compiler("config").patch(_options(inputs)):
        artifact = compiler().CompiledArtifact.load(path=str(path), format="binary")
    return _called(artifact, held, inputs, written)


def _called(
    run: FlatStep, held: Sequence[Tensor], inputs: Sequence[Tensor], written: Sequence[int]
) -> FlatStep:
    """Return compiled code as a step calls it: with its constants, through the fewest functions."""
    if _on_cuda([*held, *inputs]):
        return lambda *flat: run(*held, *flat)  # recorded: its Python is left out
    return _bare(run, held, inputs, written)


def _bare(
    run: FlatStep, held: Sequence[Tensor], inputs: Sequence[Tensor], written: Sequence[int]
) -> FlatStep:
    """Return compiled code without the functions that AOTAutograd puts around it.

    They take a seventh of a small step. One run tells whether they pass inputs and results on as
    they are; where they do more, they stay.
    """
    held = list(held)
    kind: Any = compiler("output_code").CompiledFxGraph
    call, met = kind.__call__, []

    def note(code: Any, given: list[Tensor]) -> Any:
        taken = list(given)  # the code empties the list
        results = call(code, given)
        met.append((code, taken, list(results)))
        return results

    copies = [leaf.detach() for leaf in (*held, *inputs)]
    for index in written:
        copies[index] = copies[index].clone()
    kind.__call__ = note
    try:
        with torch.random.fork_rng([]), torch.no_grad():
            results = run(*copies)
    finally:
        kind.__call__ = call
    if len(met) != 1 or not (_same(met[0][1], copies) and _same(met[0][2], results)):
        return lambda *flat: run(*held, *flat)
    code = met[0][0].current_callable
    return lambda *flat: code([*held, *flat])


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _on_cuda(inputs: Sequence[Tensor]) -> bool:
    return any(leaf.is_cuda for leaf in inputs)


def _options(inputs: Sequence[Tensor]) -> dict[str, Any]:
    if _on_cuda(inputs):
        return {}
    # Inputs and buffers have the sizes they were compiled for: prepare() looks them up by shape.
    checks = {"size_asserts": False, "alignment_asserts": False, "scalar_asserts": False}
    # Else each process loads torch anew, three times, to try what the processor says that it can.
    known = {"cpp.vec_isa_ok": True}
    # Channels last it would lay out the forward convolutions alone: their gradients take copies.
    layout = {"layout_optimization": False}
    return {"fallback_random": True, "cpp_wrapper": True, **known, **checks, **layout}
