"""A moving average of a program's weights, beside those that are trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pyro_vae.arguments import number
from pyro_vae.program.program import Program
from pyro_vae.torch_private import foreach_copy_, foreach_lerp_


class AveragedWeights(nn.Module):
    r"""The exponential moving average of a program's parameters.

    .. math:: \bar w \leftarrow d_t \bar w + (1 - d_t) w, \qquad
       d_t = \min\big(d, (1 + t) / (10 + t)\big)

    Its buffers are the averages: a checkpoint holds them. Buffers of the program (running moments)
    are no part of it.

    Arguments:
        program: Whose parameters are followed.
        decay: d, in (0, 1).

    Raises:
        ConfigError: A decay out of range.
    """

    def __init__(self, program: Program, decay: float) -> None:
        super().__init__()
        self.decay = number("ema", decay, "(0, 1)")
        self._program = [program]  # in a list, so that it is no part of this module
        self._version = -1
        self._pairs: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._find()

    def _find(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return averages and parameters; one that has come late begins as it is."""
        (program,) = self._program
        if self._version != program.own.version:
            self._version = program.own.version
            found = {
                name.replace(".", "/"): p
                for name, p in program.named_parameters()
                if p.is_floating_point()
            }
            for name, parameter in found.items():
                if name not in self._buffers:
                    self.register_buffer(name, parameter.detach().clone())
            self._pairs = ([self.get_buffer(name) for name in found], list(found.values()))
        return self._pairs

    @torch.no_grad()
    def follow(self, steps: int) -> None:
        """Take in the weights after so many steps."""
        averages, weights = self._find()
        foreach_lerp_(averages, weights, 1 - min(self.decay, (1 + steps) / (10 + steps)))

    @torch.no_grad()
    def put_in(self) -> None:
        """Write the averages into the program."""
        averages, weights = self._find()
        foreach_copy_(weights, averages)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the program have the averages inside, and its own weights again afterwards."""
        weights = self._find()[1]  # one that comes inside has no weight of before
        own = [weight.detach().clone() for weight in weights]
        self.put_in()
        try:
            yield
        finally:
            with torch.no_grad():
                foreach_copy_(weights, own)
