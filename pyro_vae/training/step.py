"""One training step: the updates of an objective, each checked before it moves a weight."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pyro_vae.errors import ConfigError, TrainingDiverged
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.compiled import CompiledLoss, Mode
from pyro_vae.inference.handlers import Beta
from pyro_vae.inference.objectives import Objective, OptimiserFactory, Update
from pyro_vae.inference.program import Program


class Stepper:
    """An objective's updates with their optimisers.

    Arguments:
        program: What is trained.
        objective: Where the updates come from.
        optimiser: Factory for the updates that bring none of their own.
        clip_norm: Largest global norm of an update's gradient; None does not clip.
        size: N, the data of the training set.
        compile: False runs the program at each step; ``"trace"`` and True run its graph.
    """

    def __init__(
        self,
        program: Program,
        objective: Objective,
        optimiser: OptimiserFactory,
        *,
        clip_norm: float | None,
        size: int,
        compile: Mode = False,
    ) -> None:
        self.program = program
        self.updates: Sequence[Update] = objective.updates(program)
        self.trained = [[p for p in u.parameters if p.requires_grad] for u in self.updates]
        self._check_trained()
        self.optimisers = [
            (update.optimiser or optimiser)(parameters)
            for update, parameters in zip(self.updates, self.trained, strict=True)
        ]
        self.base_lrs = [[group["lr"] for group in o.param_groups] for o in self.optimisers]
        self.clip_norm = clip_norm
        self.size = size
        # With several updates, one must not leave gradients on another's parameters.
        self._alone = len(self.updates) == 1
        own = [objective] if isinstance(objective, nn.Module) else []
        self._buffers = [
            (part, name)
            for module in (program, *own)
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        self._compiled = [
            CompiledLoss(u.loss, program, objective=objective, parameters=p, mode=compile)
            if compile
            else None
            for u, p in zip(self.updates, self.trained, strict=True)
        ]

    def set_lr(self, multiplier: float) -> None:
        """Set each optimiser's learning rate to its first one times a multiplier."""
        for optimiser, base in zip(self.optimisers, self.base_lrs, strict=True):
            for group, lr in zip(optimiser.param_groups, base, strict=True):
                group["lr"] = lr * multiplier

    def step(self, batch: Batch, beta: Beta | None) -> list[Tensor]:
        """Apply all updates to one batch and return their losses, detached, on the device.

        Raises:
            TrainingDiverged: A loss or gradient is not finite; that update moved no weight and no
                buffer.
        """
        losses = []
        for index, update in enumerate(self.updates):
            for _ in range(update.repeats):
                with self._buffers_kept():
                    loss = self._gradients(index, batch, beta)
                    norm = self._checked_norm(loss, index, batch)
                self._descend(norm, index)
            losses.append(loss)
        return losses

    def _check_trained(self) -> None:
        if not self.updates:
            raise ConfigError("objective: it has no update, expected at least one to train by")
        for update, parameters in zip(self.updates, self.trained, strict=True):
            if not parameters:
                raise ConfigError(
                    f"objective: update {update.name!r} has no trainable parameters; give the "
                    "program some (as module attributes, pyro.param or Program(..., modules=)), or "
                    "call requires_grad_(True) on those to train"
                )

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        """Put the buffers back if the block fails: running statistics must not keep a bad batch."""
        before = [(part, name, part._buffers[name]) for part, name in self._buffers]
        copies = [None if buffer is None else buffer.clone() for *_, buffer in before]
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for (part, name, buffer), copy in zip(before, copies, strict=True):
                    if buffer is not None and copy is not None:
                        part._buffers[name] = buffer.copy_(copy)
            raise

    def _gradients(self, index: int, batch: Batch, beta: Beta | None) -> Tensor:
        """Set the gradients of one update and return its loss, detached."""
        compiled = self._compiled[index]
        if compiled is not None:
            return compiled.backward(batch, beta=beta, size=self.size)
        loss = self.updates[index].loss(self.program.joint(batch, beta=beta, size=self.size))
        self.optimisers[index].zero_grad(set_to_none=True)
        loss.backward(inputs=None if self._alone else self.trained[index])
        return loss.detach()

    def _checked_norm(self, loss: Tensor, index: int, batch: Batch) -> Tensor:
        """Return the norm of an update's gradient, known to be finite as its loss is."""
        grads = [p.grad for p in self.trained[index] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        # The one sync of a step: nothing may be written before the numbers are known to be good.
        if not bool(torch.isfinite(loss + norm)):
            raise TrainingDiverged(self._explain(self.updates[index].name, loss, norm, batch))
        return norm

    def _descend(self, norm: Tensor, index: int) -> None:
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.trained[index], self.clip_norm, norm)
        self.optimisers[index].step()

    def _explain(self, name: str, loss: Tensor, norm: Tensor, batch: Batch) -> str:
        site = first_bad_site(self.program, batch) or self._first_bad_gradient()
        where = f" (first seen at {site})" if site else ""
        return (
            f"{name} is {loss.item():g}, gradient norm {norm.item():g}{where}; the weights are as "
            "before this step. Lower lr, set clip_norm, or bound the scales of the program"
        )

    def _first_bad_gradient(self) -> str | None:
        for name, parameter in self.program.named_parameters():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                return f"the gradient of {name!r}"
        return None


def first_bad_site(program: Program, batch: Batch) -> str | None:
    """Return the first site whose log density is not finite, with its row, or None."""
    try:
        with torch.no_grad():
            terms = program.terms(batch)
    except (ValueError, RuntimeError) as error:
        return str(error).splitlines()[0]
    sides: tuple[tuple[str, dict[str, Tensor]], ...] = (
        ("log q", terms.log_q),
        ("log p", terms.log_p),
    )
    for side, values in sides:
        for name, value in values.items():
            bad = ~torch.isfinite(value)
            if bool(bad.any()):
                row = int(bad.nonzero()[0][-1])
                return f"site {name!r}, {side} = {value[..., row].flatten()[0].item():g}, row {row}"
    return None
