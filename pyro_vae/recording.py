"""Work on a GPU, recorded as a CUDA graph: all its kernels are launched at once."""

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyro_vae.callers import of_user
from pyro_vae.torch_private import OpOverload, schema

Work = Callable[..., Sequence[Tensor]]

# Operators that bring values, or a shape that hangs on values, to the host.
WAITS = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"),
    *("unique_dim", "unique_consecutive", "repeat_interleave", "bincount"),
    "_linalg_check_errors",  # of cholesky, inv, solve; those in _ex do not ask
    # What asks inside one operator.
    *("multinomial", "_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq", "cholesky"),
    *("linalg_pinv", "linalg_matrix_exp", "mode", "histc", "embedding_renorm_", "_ctc_loss"),
    *("_to_sparse", "_to_sparse_csr", "_to_sparse_csc", "_to_sparse_bsr", "_to_sparse_bsc"),
    "_coalesce",
}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}

# Graphs whose capture has failed. It may not have told the allocator of its end, which then goes on
# to ask the graph whether memory is for it.
_half_recorded: list[torch.cuda.CUDAGraph] = []
_MOST = 8  # recordings of one work: one whose weights move again and again is launched as it is


def records(tensor: Tensor) -> bool:
    """Return whether work on a tensor can be recorded: what is on a GPU can."""
    return tensor.is_cuda


@contextmanager
def _capture(graph: torch.cuda.CUDAGraph, device: torch.device) -> Iterator[None]:
    """Record what runs inside, on the GPU of the program, while other threads may use it.

    A capture that fails leaves its stream in the place of the one before: that is put back.
    """
    how: Any = {"stream": _stream(device), "capture_error_mode": "thread_local"}
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        gc.collect()  # recordings that nobody holds any more: each keeps the memory of a step
        with torch.cuda.graph(graph, **how):
            yield


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all recordings on a GPU: each further one takes memory for products."""
    return torch.cuda.Stream(device)


def waits(graph: GraphModule) -> bool:
    """Return whether a graph of tensors waits for the device: then no recording can hold it."""
    for node in graph.graph.nodes:
        if isinstance(node.target, OpOverload):
            name = schema(node.target).name.removeprefix("aten::").partition(".")[0]
            if name in WAITS or (name in _INDEXED and any(map(_is_mask, node.args[1]))):
                return True
    return False


def _is_mask(index: Any) -> bool:
    meta = getattr(index, "meta", {})
    return getattr(meta.get("tensor_meta"), "dtype", None) in (torch.bool, torch.uint8)


class Recording:
    """A function of tensors; on a GPU it is recorded once it is called twice in a row at one place.

    From then on a call copies the other inputs into memory of the recording, and replays it. A call
    at another place (on copies, for a comparison) or of other shapes runs the work itself. Noise is
    drawn anew at each replay, from PyTorch's generator.

    Arguments:
        work: Maps tensors to tensors; it does not wait for the device, and changes nothing but what
            is in tensors.
        stays: How many of the first inputs are at one place at each call, as weights are.
        copied: How many of the first results are the caller's to keep; None: all. The others lie in
            memory of the recording, and the next replay overwrites them.
    """

    def __init__(self, work: Work, stays: int = 0, copied: int | None = None) -> None:
        self._work = work
        self._stays = stays
        self._copied = copied
        self._left = _MOST
        self.forget()

    def forget(self) -> None:
        """Record anew: what the work holds, and is no input, is another one now."""
        self._graph: torch.cuda.CUDAGraph | None = None
        # Where the inputs that stay were at the last call, and of what shapes the others; and those
        # of the recording.
        self._met: list[Any] | None = None
        self._places: list[Any] | None = None
        self._inputs: list[Tensor] = []
        self._results: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what the work returns."""
        places: list[Any] = [
            (leaf.data_ptr(), leaf.shape, leaf.stride()) for leaf in inputs[: self._stays]
        ]
        places += [(leaf.dtype, leaf.shape) for leaf in inputs[self._stays :]]
        again = places == self._met and places != self._places
        if again and self._left and records(inputs[0]):
            self._record(places, inputs)
        self._met = places
        if places != self._places or self._graph is None:
            return tuple(self._work(*inputs))
        for mine, given in zip(self._inputs[self._stays :], inputs[self._stays :], strict=True):
            mine.copy_(given)
        self._graph.replay()
        kept = len(self._results) if self._copied is None else self._copied
        return (*[result.clone() for result in self._results[:kept]], *self._results[kept:])

    def _record(self, places: list[Any], inputs: Sequence[Tensor]) -> None:
        """Record a call, which has no effect; what cannot be recorded is launched as before."""
        self.forget()
        self._left -= 1
        given = [leaf.clone() for leaf in inputs[self._stays :]]
        mine, graph = [*inputs[: self._stays], *given], torch.cuda.CUDAGraph()
        try:
            with _capture(graph, mine[0].device):
                results = list(self._work(*mine))
        except Exception as error:  # an operator that waits for the device
            self._left = 0
            _half_recorded.append(graph)
            what, *_ = str(error).splitlines() or [""]
            warnings.warn(
                "compile: work on the GPU cannot be recorded as a CUDA graph, and its kernels are "
                f"launched one by one: {type(error).__name__}: {what}",
                UserWarning,
                stacklevel=of_user(),
            )
            return
        self._graph, self._places, self._inputs, self._results = graph, places, mine, results
