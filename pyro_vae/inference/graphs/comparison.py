"""Whether a traced graph may be trusted: what a tracer froze, and why one gave up."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_vae.program.batch import cuda_devices


def refuse_state(graph: GraphModule, again: GraphModule) -> None:
    """Refuse a program whose second trace has other numbers in it.

    A tracer takes for a constant what does not come from tensors: NumPy's noise, a counter.
    """
    pairs = zip(graph.buffers(), again.buffers(), strict=False)
    same = all(a.shape == b.shape and (a.is_meta or torch.equal(a, b)) for a, b in pairs)
    if graph.code != again.code or not same:
        raise RuntimeError(
            "traced twice, the program gives two graphs; draw all noise from torch, and keep no "
            "count in Python (a buffer counts)"
        )


def agree(
    graph: Callable[..., Tensor],
    function: Callable[..., Tensor],
    example: Callable[[], list[Tensor]],
) -> bool:
    """Return whether a graph still has its function's loss at equal noise."""
    losses = []
    for run in (function, graph):
        inputs = example()
        with torch.random.fork_rng(cuda_devices(inputs)):
            losses.append(run(*inputs).detach())
    eager, traced = losses
    return eager.device.type == "meta" or torch.allclose(eager, traced, 1e-4, equal_nan=True)


def reason_of(error: Exception) -> str:
    """Return the first line of an error, and the user's line that raised it."""
    message = (str(error).strip().splitlines() or [type(error).__name__])[0]
    frame, where = error.__traceback__, ""
    while frame is not None:
        name = frame.tb_frame.f_code.co_filename
        if not any(part in name for part in ("/torch/", "/pyro/", "/pyro_vae/")):
            where = f" ({name}:{frame.tb_lineno})"
        frame = frame.tb_next
    return f"{type(error).__name__}: {message}{where}"
