"""States given all that came before, as one site. Shapes: * batch, T steps, Z state, H memory."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.arguments import positive, typed
from pyro_vae.distributions.chain import Chain, expanded
from pyro_vae.scan import scan


@typed
class RecurrentChain(Chain):
    r"""States that are drawn given a memory of all states and inputs before: event (T, Z).

    .. math:: z_t \sim p(z_t \mid h_{t-1}, u_t), \quad h_t = f(h_{t-1}, z_t, u_t)

    A draw and the memories of a path are a loop over the steps each (`pyro_vae.scan`); the log
    density is then one call for all steps. `Chain` is the case :math:`h_t = z_t`.

    Arguments:
        state: maps memories (*, H), and where there are inputs those of the same steps (*, U), to
            the distribution of the states, batch (*), event (Z,).
        cell: maps memories (*, H), states (*, Z), and where there are inputs those of the same
            steps (*, U), to the next memories (*, H).
        initial: :math:`h_0`, shape (H,).
        latent_dim: Z.
        steps: T.
        inputs: u, shape (*, T, U), or None; finite, beyond a length too.
        lengths: how many steps of each sequence count, shape (*); None: all. Beyond them a draw is
            0, and counts nowhere.

    Raises:
        ConfigError: Inputs of another number of steps; a length that is none, where arguments are
            validated (elsewhere the log density of that sequence is NaN).

    References:
        A recurrent latent variable model for sequential data (Chung et al., 2015),
        arXiv:1506.02216.

    Example:
        >>> import pyro.distributions as dist
        >>> mean = RecurrentChain(
        ...     lambda h: dist.Normal(h, 1.0).to_event(1), lambda h, z: 0.5 * (h + z),
        ...     torch.zeros(2), 2, 7,
        ... )
        >>> mean.memories(mean.expand((5,)).sample()).shape
        torch.Size([5, 7, 2])
    """

    def __init__(
        self,
        state: Callable[..., TorchDistributionMixin],
        cell: Callable[..., Tensor],
        initial: Tensor,
        latent_dim: int,
        steps: int,
        *,
        inputs: Tensor | None = None,
        lengths: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.state, self.cell, self.memory = state, cell, initial
        start = initial.new_zeros(positive("latent_dim", latent_dim))
        super().__init__(
            lambda _, *given: state(*given),
            start,
            steps,
            inputs=inputs,
            lengths=lengths,
            validate_args=validate_args,
        )

    @property
    def _first_step(self) -> TorchDistributionMixin:
        if self._asked is None:
            given = [each.expand(*self.batch_shape, -1) for each in self._inputs_at(0)]
            with torch.no_grad():
                self._asked = self.state(self.memory.expand(*self.batch_shape, -1), *given)
        return self._asked

    @typed
    def memories(self, value: Tensor) -> Tensor:
        """Return what each step of paths (*, T, Z) is given, :math:`h_{t-1}`, shape (*, T, H).

        Raises:
            DataError: Paths of another shape.
        """
        self._require_paths(value)
        value = self._inert(value)
        batch = value.shape[:-2]
        start = self.memory.expand(*batch, -1)
        past = [each.movedim(-2, 0)[:-1] for each in (value, *self._of_steps(batch))]

        def step(memory: Tensor, state: Tensor, *given: Tensor) -> Tensor:
            memory, given = self._inside(memory, given)
            return self.cell(memory, state, *given)

        path = start.unsqueeze(0)
        if self.event_shape[0] > 1:
            path = torch.cat([path, scan(step, start, past)])
        return path.movedim(0, -2)

    def _draw(self, sample_shape: torch.Size, take: Callable[[Any], Tensor]) -> Tensor:
        batch, size = sample_shape + self.batch_shape, self.event_shape[-1]

        def step(carry: Tensor, *given: Tensor) -> Tensor:
            memory, given = self._inside(carry[..., size:], given)
            state = take(expanded(self.state(memory, *given), batch))
            return torch.cat([state, self.cell(memory, state, *given)], -1)

        start = torch.cat([self.initial, self.memory]).expand(*batch, -1)
        inputs = [each.movedim(-2, 0) for each in self._of_steps(batch)]
        path = scan(step, start, inputs, steps=self.event_shape[0]).movedim(0, -2)[..., :size]
        return path if self.kept is None else torch.where(self.kept, path, torch.zeros_like(path))

    def _of_all_steps(self, value: Tensor) -> Tensor:
        return self.state(self.memories(value), *self._inputs_of(value.shape[:-2])).log_prob(value)

    def _of_steps(self, batch: torch.Size) -> list[Tensor]:
        """Return what a step is given: its inputs, and whether it counts where some do not."""
        kept = [] if self.kept is None else [self.kept.expand(*batch, *self.kept.shape[-2:])]
        return [*self._inputs_of(batch), *kept]

    def _inside(
        self, memory: Tensor, given: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the memory and the inputs of a step; behind the end, the first memory.

        Where it ran on to infinity there, the gradient of what is kept would be 0 times infinity.
        """
        if self.kept is None:
            return memory, given
        return torch.where(given[-1], memory, self.memory), given[:-1]

    def _inputs_of(self, batch: torch.Size) -> list[Tensor]:
        if self.inputs is None:
            return []
        return [self.inputs.expand(*batch, *self.inputs.shape[-2:])]

    def _inputs_at(self, step: int) -> list[Tensor]:
        return [] if self.inputs is None else [self.inputs[..., step, :]]
