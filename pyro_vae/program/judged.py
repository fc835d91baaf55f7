"""A program and its data as a diagnosis looks at them: on some rows, at one draw of the globals."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.program.batches.batch import Batch, device_of, map_rows, num_rows
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.program import Program


@dataclass(frozen=True)
class Judged:
    """A program and its data, the global latents held at one draw of the guide.

    Arguments:
        program: What is judged.
        batch: The data, checked.
        held: The values of the global latents.
        batch_size: Rows times draws in one pass, at most.
    """

    program: Program
    batch: Batch
    held: Mapping[str, Tensor]
    batch_size: int

    def on(self, piece: Batch) -> Joint:
        """Return model and guide on some rows."""
        joint = self.program.joint(piece)
        return joint.fixing(self.held) if self.held else joint

    def some(self, rows: int) -> Batch:
        """Return some of the data, or all, in random order."""
        if self.program.sites.size is not None or self.program.rows.are_fixed(self.batch):
            return self.batch  # such a program fixes its own batch
        order = torch.randperm(num_rows(self.batch), device=device_of(self.batch))[:rows]
        return map_rows(lambda each: each[order], self.batch)
