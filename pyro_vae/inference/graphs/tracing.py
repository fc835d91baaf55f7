"""A program's step run once under the tracer, on its own parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.util import get_rng_state
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode

from pyro_vae.inference.graphs.comparison import Call, Homes, undone
from pyro_vae.inference.graphs.course import WAYS_OUT
from pyro_vae.inference.graphs.flat_inputs import flat_weights, leaves_of, unflat
from pyro_vae.inference.graphs.make_graph import make_graph
from pyro_vae.inference.graphs.python_state import drawn_elsewhere
from pyro_vae.inference.graphs.simplify import refuse_moving_shapes, simplify
from pyro_vae.program.batches.batch import Batch, map_batch


def trace_step(
    loss_on: Callable[[Batch, Any, int | None], Tensor],
    call: Call,
    homes: Homes,
    trained: Sequence[nn.Parameter],
) -> tuple[GraphModule, list[int]]:
    """Return the graph of a step, and the places of the parameters that it has gradients for.

    The tracer gets the program's own tensors, not copies in their places: one that goes by two
    names, or that a list or a closure holds, is one input wherever the program meets it. All is
    put back as it was.

    Arguments:
        loss_on: Maps a batch, KL weights and N to the loss.
        call: With the shapes that the graph is for.
        homes: Where parameters and buffers are held: the first inputs.
        trained: What the loss is differentiated by.

    Raises:
        RuntimeError: What the program does cannot be a graph.
    """
    reached: list[int] = []
    rows = map_batch(torch.clone, call.batch)

    def whole(*flat: Tensor) -> tuple[Tensor, ...]:
        rest = iter(flat[len(homes) :])
        inputs = map_batch(lambda _: next(rest), rows)
        loss = loss_on(inputs, unflat(call.weights, rest), call.size)
        for (home, key), tensor in zip(homes, flat, strict=False):
            if home[key] is not tensor:
                raise RuntimeError(f"{key!r} is replaced; write into it: .copy_(), .add_()")
        grads = torch.autograd.grad(loss, list(trained), allow_unused=True)
        reached[:] = [index for index, grad in enumerate(grads) if grad is not None]
        return (loss.detach(), *(grad for grad in grads if grad is not None))

    with undone(homes, trained), torch.enable_grad():
        drawn = get_rng_state()
        flat = [*(home[key] for home, key in homes), *leaves_of(rows), *flat_weights(call.weights)]
        with _StayInTorch():
            graph = make_graph(whole, *flat)
        if drawn_elsewhere(drawn, get_rng_state()):
            raise RuntimeError("the program draws from Python or NumPy; draw all noise from torch")
    refuse_moving_shapes(graph)
    return simplify(graph, [leaf.detach() for leaf in flat]), reached


class _StayInTorch(TorchFunctionMode):
    """Refuses to take values out of tensors that follow from inputs: they would stand still.

    What comes of such a value may be the same in every comparison and another one later on.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        way = WAYS_OUT.get(func)
        if way is not None and _follows_from_inputs(args[0]):
            raise RuntimeError(
                f"values leave PyTorch through {way} and would stand still in a graph; stay in "
                "torch operations"
            )
        return func(*args, **(kwargs or {}))


def _follows_from_inputs(value: Any) -> bool:
    """Return whether the tracer knows a tensor as something else than a constant."""
    mode = get_proxy_mode()
    if mode is None or not isinstance(value, Tensor):
        return False
    known = get_proxy_slot(value, mode.tracer, None)
    return known is not None and known.constant is None
