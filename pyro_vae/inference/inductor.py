"""The compiler: a traced graph of flat tensors through TorchInductor."""

import warnings
from collections.abc import Callable, Sequence
from importlib import import_module

import torch
from torch import Tensor
from torch.fx import GraphModule

Run = Callable[..., tuple[Tensor, ...]]


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor]) -> Run:
    """Compile a traced graph of flat tensors.

    No Dynamo: the graph has no Python left to be captured, and no guards to be checked at each
    step. On the CPU noise comes from PyTorch's own generators, so that compiled and traced steps
    draw the same; on CUDA it is drawn inside the kernels, which run as one CUDA graph.

    Arguments:
        graph: What ``simplify`` returned.
        inputs: Tensors of the shapes, strides and devices to come.
    """
    # Seconds to import: only where they are used.
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of PyTorch's own, on import
        inductor = import_module("torch._inductor.compile_fx").compile_fx
    cuda = any(leaf.is_cuda for leaf in inputs)
    options = {"triton.cudagraphs": True} if cuda else {"fallback_random": True}
    # Inductor's cache wants a context for symbolic shapes; ours are numbers.
    mode = FakeTensorMode(shape_env=ShapeEnv())
    shapes = [mode.from_tensor(leaf.detach(), static_shapes=True) for leaf in inputs]
    with torch.no_grad(), tracing(TracingContext(mode)):
        run = inductor(graph, shapes, config_patches=options)
    if not cuda:
        return run

    def marked(*flat: Tensor) -> tuple[Tensor, ...]:
        torch.compiler.cudagraph_mark_step_begin()  # results of the step before may be overwritten
        return run(*flat)

    return marked
