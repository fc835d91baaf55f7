"""Learning rates that follow a schedule, beside callbacks and schedulers that set them too."""

from collections.abc import Sequence
from typing import Any

import torch

# Under which keys a parameter group keeps the rate that a schedule multiplies, and its value.
_BASE, _VALUE = "scheduled_lr", "schedule"


class ScheduledRates:
    """The learning rates of some optimizers, which a schedule multiplies.

    Arguments:
        optimizers: Whose parameter groups keep what they follow: a checkpoint holds it.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        self.first = [[group["lr"] for group in each.param_groups] for each in optimizers]
        self._multiplier: float | None = None
        self.note_new()

    def note_new(self) -> None:
        """Note in each new group the rate that the schedule multiplies."""
        value = 1.0 if self._multiplier is None else self._multiplier
        for group, lr in self._groups():
            if _BASE not in group:
                group |= {"lr": lr * value, _BASE: lr, _VALUE: value}

    def set(self, multiplier: float) -> None:
        """Multiply the learning rates by the schedule's present value.

        A rate that a callback or a scheduler has set since is what the value multiplies from then
        on, by its ratio to the value before; under a value of 0, it is the rate itself.
        """
        if multiplier == self._multiplier:
            return
        self._multiplier = multiplier
        for group, first in self._groups():
            base, before = group.get(_BASE, first), group.get(_VALUE)
            if before is not None and group["lr"] != base * before:
                base = group["lr"] / (before or 1.0)
            group |= {"lr": base * multiplier, _BASE: base, _VALUE: multiplier}

    def _groups(self) -> list[tuple[dict[str, Any], Any]]:
        """Return all parameter groups, each with its first learning rate."""
        groups = [group for each in self._optimizers for group in each.param_groups]
        return [(group, group.get(_BASE, group["lr"])) for group in groups]
