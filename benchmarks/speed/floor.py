"""The floor of a step: its matrix products and convolutions alone, at their real shapes.

They are recorded from one step of the traced graph, forward and backward, and replayed on random
tensors of the same sizes and strides; a product is written into memory that is there already.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed.cuda_graph import captured

FLOOR = "matrix products alone"
Call = tuple[str, tuple[Any, ...], dict[str, Any]]
# What each operation is called, and where its two factors stand.
_PRODUCTS = {"aten.mm": (0, 1), "aten.addmm": (1, 2), "aten.bmm": (0, 1), "aten.baddbmm": (1, 2)}
_CONVOLUTIONS = ("aten.convolution", "aten.convolution_backward")


class Recorder(TorchDispatchMode):
    """Notes the matrix products and convolutions that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        if name in _PRODUCTS or name in _CONVOLUTIONS:
            shapes = torch.utils._pytree.tree_map_only(Tensor, torch.empty_like, (args, kwargs))
            self.calls.append((name, shapes[0], shapes[1] or {}))
        return func(*args, **(kwargs or {}))


def recorded(step: Callable[[], object]) -> list[Call]:
    """Return the products of one step, in order, on tensors of their own."""
    with Recorder() as recorder:
        step()
    return recorder.calls


def flops(calls: list[Call]) -> int:
    """Return the multiply-adds of the matrix products, twice (convolutions are not counted)."""
    total = 0
    for name, args, _ in calls:
        if name in _PRODUCTS:
            a, b = (args[i] for i in _PRODUCTS[name])
            total += 2 * a.numel() * b.shape[-1]
    return total


def replay(calls: list[Call], device: str = "cpu") -> Callable[[], None]:
    """Return the work of one step's products: on CUDA as one graph, which no launch slows down."""
    works = [_work(*call) for call in calls]

    def work() -> None:
        with torch.no_grad():
            for run in works:
                run()

    return captured(work) if device == "cuda" else work


def _work(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], object]:
    fill = torch.utils._pytree.tree_map_only(Tensor, lambda t: t.normal_(), (args, kwargs))
    args, kwargs = fill
    if name in _PRODUCTS:
        a, b = (args[i] for i in _PRODUCTS[name])
        product = torch.mm if a.dim() == 2 else torch.bmm
        out = product(a, b)
        return lambda: product(a, b, out=out)
    op = getattr(torch.ops.aten, name.removeprefix("aten."))
    return lambda: op(*args, **kwargs)
