"""The mean losses of an epoch."""

import torch
from torch import Tensor

from pyro_vae.training.parallel import World


class Means:
    """The mean loss of each update over the rows on which it was made, on the device.

    Arguments:
        updates: How many there are.
    """

    def __init__(self, updates: int) -> None:
        self.totals: list[Tensor | None] = [None] * updates
        self.rows = [0.0] * updates

    def add(self, losses: list[Tensor | None], rows: float) -> None:
        """Take in the losses of one batch; None of an update that was left out."""
        for index, loss in enumerate(losses):
            if loss is None:
                continue
            total = self.totals[index]
            self.rows[index] += rows
            self.totals[index] = loss * rows if total is None else total.add_(loss, alpha=rows)

    def over(self, world: World) -> list[Tensor]:
        """Return the means over all processes; NaN of an update that none has made."""
        like = next(total for total in self.totals if total is not None)  # at least one batch
        totals = [like.new_zeros(()) if total is None else total for total in self.totals]
        rows = [like.new_tensor(count) for count in self.rows]
        if world.size == 1:
            return [total / count for total, count in zip(totals, rows, strict=True)]
        summed = world.sum(torch.stack([*totals, *rows]))
        return list(summed[: len(totals)] / summed[len(totals) :])
