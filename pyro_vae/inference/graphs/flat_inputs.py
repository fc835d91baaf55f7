"""What goes into a traced graph and comes out of it: batches, KL weights, gradients, their norm."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyro_vae.program.batches.batch import Batch, Part, Whole, named_leaves
from pyro_vae.program.handlers import Beta
from pyro_vae.torch_private import foreach_norm

# Maps flat inputs (parameters, buffers, rows, KL weights) to (loss, norm of gradients, *gradients).
FlatStep = Callable[..., tuple[Tensor, ...]]


def global_norm(grads: list[Tensor]) -> Tensor:
    """Return the norm of all gradients together.

    What ``torch.nn.utils.get_total_norm`` does, without its grouping: that costs a small step.
    """
    try:
        norms = foreach_norm(grads)
    except NotImplementedError:  # sparse rows of an embedding
        grads = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
        norms = foreach_norm(grads)
    return torch.linalg.vector_norm(torch.stack(norms))


def normed(graph: Callable[..., tuple[Tensor, ...]]) -> FlatStep:
    """Return the step of a graph that returns ``(loss, *gradients)``."""

    def whole(*inputs: Tensor) -> tuple[Tensor, ...]:
        loss, *grads = graph(*inputs)
        return (loss, global_norm(grads) if grads else torch.zeros_like(loss), *grads)

    return whole


def leaves_of(batch: Batch) -> list[Tensor]:
    """Return the tensors of a batch, in order."""
    return [leaf for _, leaf in named_leaves(batch)]


def fixed_arguments(batch: Batch) -> Any:
    """Return, hashable, the arguments of a batch that are no tensors: constants of a graph.

    Raises:
        RuntimeError: One holds tensors or arrays, which would stand still in a graph.
    """
    if isinstance(batch, Tensor):
        return ()
    if isinstance(batch, Whole | Part):
        return fixed_arguments(batch.batch)
    if isinstance(batch, Mapping):
        named: Iterable[tuple[str, Any]] = batch.items()
    elif isinstance(batch, PackedSequence):
        named = [("batch", batch)]
    else:
        named = enumerate(batch)  # type: ignore[assignment]
    return tuple([(name, _fixed(leaf)) for name, leaf in named if not isinstance(leaf, Tensor)])


def _fixed(value: Any, depth: int = 8) -> Any:
    if isinstance(value, Tensor | np.ndarray | PackedSequence) or not depth:
        raise RuntimeError(
            f"an argument holds a {type(value).__name__}, which would stand still in a graph; pass "
            "tensors as arguments of their own"
        )
    if isinstance(value, Mapping):
        return tuple([(name, _fixed(entry, depth - 1)) for name, entry in value.items()])
    if isinstance(value, list | tuple | set):
        return type(value), tuple([_fixed(entry, depth - 1) for entry in value])
    if hasattr(value, "__dict__") and not isinstance(value, Enum) and not callable(value):
        return type(value), _fixed(vars(value), depth - 1)  # a namespace of settings
    return type(value), value  # True is not 1


def dense_rows(leaf: Tensor) -> Tensor:
    """Return a tensor without holes: a crop is traced by its copy, which has none."""
    last = leaf.dim() == 4 and leaf.is_contiguous(memory_format=torch.channels_last)
    return leaf if last or leaf.is_contiguous() else leaf.contiguous()


class GraphLoss(torch.autograd.Function):
    """Run a graph that returns a loss and its gradients; hand the gradients out in backward."""

    @staticmethod
    def forward(ctx: Any, graph: Any, inputs: Any, *trained: Tensor) -> Tensor:
        loss, _, *grads = graph(*inputs)
        ctx.grads = grads
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return (None, None, *(upstream * grad for grad in ctx.grads))


def as_tensors(beta: Beta | None, device: torch.device) -> Any:
    """Return KL weights as tensors on the device: inputs of the graph, not constants in it."""
    if beta is None:
        return None
    if isinstance(beta, Mapping):
        return {site: as_tensors(value, device) for site, value in beta.items()}
    if isinstance(beta, Tensor):
        return beta.to(device)  # on another one, a recording would keep its value
    # Filled on the device: no copy, no sync. In double precision, which a scalar does not pass on.
    return torch.full((), float(beta), dtype=torch.float64, device=device)


def flat_weights(weights: Any) -> list[Tensor]:
    if weights is None:
        return []
    return list(weights.values()) if isinstance(weights, Mapping) else [weights]


def unflat(weights: Any, leaves: Iterator[Tensor]) -> Any:
    if weights is None:
        return None
    if isinstance(weights, Mapping):
        return {site: next(leaves) for site in weights}
    return next(leaves)


def kind(weights: Any) -> Any:
    if isinstance(weights, Mapping):
        return tuple(weights)
    return weights is None
