"""Weights that a program moves itself as it runs (``weight.data.mul_``): looks put them back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from pyro_vae.program.program import Program


_SMALL = 2**14  # numbers that are copied at each look: it costs less than to run one layer


class KeptWeights:
    """The weights of a program, of which nothing tells whether a run has moved them but a copy.

    A large weight that a run of model and guide has left as it was is copied no more, in that mode;
    not one with zeros among its numbers, which a factor leaves as they are until the first step.

    Arguments:
        program: Whose weights they are.
    """

    def __init__(self, program: "Program") -> None:
        self._program = program
        self._still: dict[Tensor, set[bool]] = {}  # modes in which runs leave a weight as it is
        self._ran = False  # model and guide have, inside the innermost block

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: nothing is known of its weights."""
        return {**vars(self), "_still": {}}

    def note_run(self) -> None:
        """Note that model and guide have run to their ends."""
        self._ran = True

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put the weights back on leaving, values that statements make inside to their starts."""
        own, mode = self._program.own, self._program.training
        begun, self._ran = own.starts, False
        moving = (weight for weight in own.parameters() if self._may_move(weight, mode))
        held: dict[Tensor, Tensor] = {weight: weight.detach().clone() for weight in moving}
        own.starts = {}
        try:
            yield
        finally:
            held |= own.starts
            own.starts = begun
            still = [weight for weight, before in held.items() if _is_still(weight, before)]
            for weight in still if self._ran else []:
                if weight.numel() > _SMALL and weight.detach().ne(0).all():
                    self._still.setdefault(weight, set()).add(mode)
            self._ran = False  # a block around this one cannot tell what it has put back

    def _may_move(self, weight: Tensor, mode: bool) -> bool:
        made = not (is_lazy(weight) or weight.is_meta or weight.is_sparse)
        return made and mode not in self._still.get(weight, set())


def _is_still(weight: Tensor, before: Tensor) -> bool:
    """Put a weight back; return whether it had not moved."""
    same = weight.shape == before.shape and torch.equal(weight.detach(), before)
    if not same and weight.shape == before.shape:
        weight.data.copy_(before)  # no version of it changes: a graph counts them
    return same
