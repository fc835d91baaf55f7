"""torch's tracer, told to describe all nodes of a graph in one place."""

from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.interrupts import unbroken
from pyro_vae.torch_private import FakeTensorMode, TracingContext, as_written, tracing


def make_graph(function: Callable[..., Any], *inputs: Any) -> GraphModule:
    """Run a function once on tensors, or structures of them, and return its graph: ``make_fx``.

    The tracer notes the shape of each value with a FakeTensorMode, and builds a new one for each
    node, with a stack trace, where none is at hand: more than half of the time of a trace.
    """
    context = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
    with unbroken(), tracing(context), as_written():
        return make_fx(function)(*inputs)
