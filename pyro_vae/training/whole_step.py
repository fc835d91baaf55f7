"""A step of one update on a GPU, from its rows to its weights, as one recording."""

import torch
from torch import Tensor, nn

from pyro_vae.inference.graphs.graph_step import Prepared, Traced
from pyro_vae.recording import Recording
from pyro_vae.training.adam import Adam, require_real
from pyro_vae.training.undo import put_back_on_error


class WholeStep:
    """Loss, gradients, the flag of what is not finite, clipping and Adam, launched at once.

    The learning rate and the flag are tensors, which the recording reads; what else Adam goes by
    is a part of it, and a change has it recorded anew.

    Arguments:
        traced: The graph, with what runs it now.
        optimizer: Over the parameters that the graph trains.
        clip_norm: Largest global norm of the gradient; None does not clip.
    """

    def __init__(self, traced: Traced, optimizer: Adam, clip_norm: float | None) -> None:
        self._traced = traced
        self._run = traced.run
        self._optimizer = optimizer
        self._clip_norm = clip_norm
        like = traced.trained[0]
        # Of the type that the kernel of Adam reads.
        self.broken = torch.zeros((), dtype=torch.float32, device=like.device)
        self._rate = torch.zeros((), dtype=torch.float32, device=like.device)
        self._filled: float | None = None  # what the rate was set to
        self._lists: object = None
        self._options: object = None
        self._recording = Recording(self._take, len(traced.homes), copied=1)
        self._launch = self._recording if traced.recordable else self._take

    def take(self, step: Prepared, broken: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Take a step, and return its loss and the gradients.

        Arguments:
            step: Of this graph.
            broken: The flag so far; ``self.broken`` is that after the step.
        """
        (group,) = self._optimizer.param_groups
        lists = self._optimizer.lists_for(self._traced.trained)
        options = [*group["betas"], group["eps"], group["weight_decay"]]
        if lists is not self._lists or options != self._options:
            self._recording.forget()
            self._lists, self._options = lists, options
        if group["lr"] != self._filled:
            self._rate.fill_(group["lr"])
            self._filled = group["lr"]
        if broken is not None and broken is not self.broken:
            self.broken.copy_(broken)
        loss, *grads = self._launch(*step.inputs)
        return loss, grads

    def _take(self, *inputs: Tensor) -> list[Tensor]:
        step = Prepared(self._traced, list(inputs))
        buffers = step.moving
        copies = [buffer.clone() for buffer in buffers]
        with put_back_on_error((buffers, copies, ())):
            loss, norm, grads = step.gradients_inside(self._run)
            require_real(self._traced.trained, grads)
            flag(self.broken, loss + norm, buffers, copies)
        if self._clip_norm is not None:
            self._traced.hand_out(grads)
            nn.utils.clip_grads_with_norm_(self._traced.trained, self._clip_norm, norm)
        optimizer = self._optimizer
        optimizer.found_inf, optimizer.rate = self.broken, self._rate
        try:
            optimizer.move_again(grads)
        finally:
            optimizer.rate = None
        return [loss, *grads]


def flag(broken: Tensor, value: Tensor, buffers: list[Tensor], copies: list[Tensor]) -> None:
    """Mark a value that is not finite on the device; then buffers stay as they were.

    Arguments:
        broken: 1 once a value was not finite, else 0; written to.
        value: A number.
        buffers, copies: What a step has written to, and from before it.
    """
    torch.maximum(broken, (~torch.isfinite(value)).to(broken.dtype), out=broken)
    for buffer, copy in zip(buffers, copies, strict=True):
        buffer.copy_(torch.where(broken.bool(), copy, buffer))
