"""Work on a GPU, recorded as a CUDA graph: all its kernels are launched at once."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pyro_vae.callers import of_user

Work = Callable[..., Sequence[Tensor]]

_MOST = 8  # recordings of one work: one whose weights move again and again is launched as it is


def records(tensor: Tensor) -> bool:
    """Return whether work on a tensor can be recorded: what is on a GPU can."""
    return tensor.is_cuda


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all recordings on a GPU: each further one takes memory for products."""
    return torch.cuda.Stream(device)


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
        places: list[Any] = [leaf.data_ptr() for leaf in inputs[: self._stays]]
        places += [leaf.shape for leaf in inputs[self._stays :]]
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
            # Other threads may pin batches meanwhile; and the program need not be on the first GPU.
            how: Any = {"stream": _stream(mine[0].device), "capture_error_mode": "thread_local"}
            with torch.cuda.device(mine[0].device), torch.cuda.graph(graph, **how):
                results = list(self._work(*mine))
        except Exception as error:  # an operator that waits for the device
            self._left = 0
            what, *_ = str(error).splitlines() or [""]
            warnings.warn(
                "compile: work on the GPU cannot be recorded as a CUDA graph, and its kernels are "
                f"launched one by one: {type(error).__name__}: {what}",
                UserWarning,
                stacklevel=of_user(),
            )
            return
        self._graph, self._places, self._inputs, self._results = graph, places, mine, results
