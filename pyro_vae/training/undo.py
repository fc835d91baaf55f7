"""What the updates of one step have moved, so that a step that fails moves nothing."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.training.adam import Adam

# Buffers, copies of them, and the places of all that a pass may have replaced by other tensors.
Buffers = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[tuple[nn.Module, str, Tensor | None]]]


class Undo:
    """Weights, optimizer states and buffers from before a step of several updates.

    What moves last need not be noted: no update behind it could fail.
    """

    def __init__(self) -> None:
        self._noted: dict[int, _Before] = {}
        self._now: list[int] = []
        self._buffers: list[Buffers] = []
        self._broken: Tensor | None = None

    def begin(self, broken: Tensor | None = None) -> None:
        """Begin a step: what was noted in the one before is done with.

        Arguments:
            broken: A flag on the device, not 0 where a step before has failed: of that one the
                copies are kept.
        """
        self._now.clear()
        self._buffers.clear()
        self._broken = broken

    def note(
        self, index: int, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
    ) -> None:
        """Copy what an update is about to move, and its optimizer's state, once in a step."""
        if index not in self._now:
            self._now.append(index)
            before = self._noted.setdefault(index, _Before())
            before.copy(optimizer, parameters, self._broken)

    def note_buffers(self, buffers: Buffers) -> None:
        """Keep copies of buffers from before an update."""
        self._buffers.append(buffers)

    def back(self) -> None:
        """Put all back as it was when the step began."""
        for noted in reversed(self._buffers):
            put_back(noted)
        for index in reversed(self._now):
            self._noted[index].put_back()
        self.begin()

    @torch.no_grad()
    def buffers_back_where(self, broken: Tensor) -> None:
        """Put the buffers back where a flag on the device is set."""
        for buffers, copies, _ in reversed(self._buffers):
            for buffer, copy in zip(buffers, copies, strict=True):
                buffer.copy_(torch.where(broken.bool(), copy, buffer))


class _Before:
    """Copies of one update's parameters and of its optimizer's state, joined: one or two kernels.

    A state that an optimizer makes at its first step has none: it begins at zero.
    """

    def __init__(self) -> None:
        self._moved: list[Tensor] = []
        self._copies: dict[Any, Tensor] = {}
        self._states: list[tuple[nn.Parameter, dict[str, Any]]] = []
        self._groups: list[dict[str, Any]] = []

    def copy(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        broken: Tensor | None,
    ) -> None:
        self._optimizer = optimizer
        self._states = [(p, dict(optimizer.state.get(p, {}))) for p in parameters]
        self._groups = [dict(group) for group in optimizer.param_groups]
        kept = [value for _, state in self._states for value in state.values()]
        moved = [*parameters, *(value for value in kept if isinstance(value, Tensor))]
        copies = {kind: torch.cat(each) for kind, each in _by_kind(moved).items()}
        if broken is not None and _begins_with(moved, self._moved):
            copies = {
                kind: torch.where(broken.bool(), _longer(self._copies.get(kind), new), new)
                for kind, new in copies.items()
            }
        self._moved, self._copies = moved, copies

    @torch.no_grad()
    def put_back(self) -> None:
        for kind, moved in _by_kind(self._moved, flat=False).items():
            parts = self._copies[kind].split([tensor.numel() for tensor in moved])
            for tensor, part in zip(moved, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))
        for group, before in zip(self._optimizer.param_groups, self._groups, strict=False):
            group |= {key: value for key, value in before.items() if key != "params"}
        for parameter, state in self._states:
            self._optimizer.state.pop(parameter, None)
            if state:
                self._optimizer.state[parameter] = state
        if isinstance(self._optimizer, Adam):
            self._optimizer.forget_lists()


@contextmanager
def put_back_on_error(noted: Buffers) -> Iterator[None]:
    """Leave buffers as they were, each in its place, where the block fails."""
    try:
        yield
    except BaseException:
        put_back(noted)
        raise


def put_back(noted: Buffers) -> None:
    """Put buffers back, each in its place."""
    buffers, copies, homes = noted
    for part, name, buffer in homes:  # it may have been replaced by another tensor
        part._buffers[name] = buffer
    restore(buffers, copies)


def restore(buffers: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    """Write copies back: running statistics must not keep a bad batch."""
    with torch.no_grad():
        for buffer, copy in zip(buffers, copies, strict=True):
            buffer.copy_(copy)


def _by_kind(tensors: Iterable[Tensor], *, flat: bool = True) -> dict[Any, list[Tensor]]:
    """Return tensors by device and type, as vectors: such can be joined."""
    found: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        each = tensor.detach()
        found.setdefault((each.device, each.dtype), []).append(each.reshape(-1) if flat else each)
    return found


def _begins_with(tensors: Sequence[Tensor], first: Sequence[Tensor]) -> bool:
    """Return whether a list goes on from another one, which is not empty."""
    return 0 < len(first) <= len(tensors) and all(a is b for a, b in zip(tensors, first))  # noqa: B905


def _longer(copy: Tensor | None, like: Tensor) -> Tensor:
    """Return copies with zeros for what has come since."""
    copy = like[:0] if copy is None else copy
    return torch.cat([copy, like.new_zeros(len(like) - len(copy))])
