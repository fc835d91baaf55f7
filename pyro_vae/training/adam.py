"""Adam as PyTorch computes it, without what PyTorch does around it at each step."""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.errors import ConfigError
from pyro_vae.layouts import laid_out_like
from pyro_vae.torch_private import fused_adam_

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Adam(torch.optim.Adam):
    """``torch.optim.Adam(fused=True)``, bit for bit, with the lists for its kernel kept.

    PyTorch gathers them anew at each step and counts the step in one tensor per parameter, which
    for a small network takes ten times as long as the kernel. Hooks on ``step`` do not run.

    Arguments:
        params: What to train, in one group.
        lr, betas, eps, weight_decay: As in PyTorch.

    References:
        | Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015), arXiv:1412.6980
    """

    found_inf: Tensor | None = None  # 1 makes the kernel skip the step
    rate: Tensor | None = None  # read in the place of the group's, by a step that is recorded

    def __init__(self, params: Iterable[nn.Parameter], **options: Any) -> None:
        super().__init__(params, fused=True, **options)
        self._moved: list[nn.Parameter] = []
        self._pointers: list[int] = []
        self._lists: tuple[list[Tensor], ...] = ()
        self._steps = torch.empty(0)
        self._counts: Any = self._steps  # by way of NumPy, which adds sooner, where it can

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the parameters that have a gradient."""
        assert closure is None  # a line search has no place in a stochastic step
        (group,) = self.param_groups
        moved = [p for p in group["params"] if p.grad is not None]
        self.move(moved, [p.grad for p in moved])

    def move(self, parameters: list[nn.Parameter], grads: list[Tensor]) -> None:
        """Move some of the parameters by gradients that need not be their ``.grad``."""
        if not parameters:
            return
        if not self._fits(parameters):
            require_real(parameters, grads)
        self.lists_for(parameters)
        with torch.no_grad():
            self.move_again(grads)

    def lists_for(self, parameters: list[nn.Parameter]) -> tuple[list[Tensor], ...]:
        """Return the lists for the kernel: the same ones as long as nothing has been replaced."""
        if not self._fits(parameters):
            self._gather(parameters)
        return self._lists

    def move_again(self, grads: list[Tensor]) -> None:
        """Move the parameters that were moved last, where nothing can have changed them since.

        Inside ``torch.no_grad()``.
        """
        (group,) = self.param_groups
        self._counts += 1
        moved, means, squares, steps = self._lists
        beta1, beta2 = group["betas"]
        fused_adam_(
            moved,
            grads,
            means,
            squares,
            [],
            steps,
            lr=group["lr"] if self.rate is None else self.rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=None,
            found_inf=self.found_inf,
        )
        if self.found_inf is not None:
            self._steps -= self.found_inf

    step.hooked = True  # type: ignore[attr-defined]  # PyTorch would wrap it in a profiler's record

    def load_state_dict(self, state_dict: Any) -> None:
        """Take over a state, PyTorch's own or ours."""
        super().load_state_dict(state_dict)
        self.forget_lists()

    def forget_lists(self) -> None:
        """Gather the lists anew at the next step: the state has been replaced."""
        self._moved = []

    def _fits(self, moved: list[nn.Parameter]) -> bool:
        """Return whether the lists are those of these parameters, and nothing moved them."""
        return (
            len(moved) == len(self._moved)
            and all(map(operator.is_, moved, self._moved))
            and [parameter.data_ptr() for parameter in moved] == self._pointers
        )

    def _gather(self, moved: list[nn.Parameter]) -> None:
        for parameter in moved:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state.update({name: torch.zeros_like(parameter) for name in _MOMENTS})
            for name in _MOMENTS:  # the parameter may lie otherwise than when they were made
                state[name] = laid_out_like(parameter, state[name])
        states = [self.state[parameter] for parameter in moved]
        # One tensor counts for all; each state keeps its number in it.
        self._steps = torch.stack([state["step"] for state in states]) if states else torch.empty(0)
        steps = list(self._steps.unbind())
        for state, step in zip(states, steps, strict=True):
            state["step"] = step
        self._counts = self._steps.numpy() if self._steps.is_cpu else self._steps
        self._moved = moved
        self._pointers = [parameter.data_ptr() for parameter in moved]
        means, squares = ([state[name] for state in states] for name in _MOMENTS)
        self._lists = (list(moved), means, squares, steps)


def require_real(parameters: list[nn.Parameter], grads: list[Tensor]) -> None:
    """Refuse what the kernel cannot move.

    Raises:
        ConfigError: A sparse gradient, or a complex parameter.
    """
    for parameter, grad in zip(parameters, grads, strict=True):
        shape = tuple(parameter.shape)
        if grad.is_sparse:
            raise ConfigError(
                f"optimizer: got a sparse gradient for a parameter of shape {shape}, expected "
                "dense ones for Adam; set sparse=False in its nn.Embedding, or give torch.optim.SGD"
            )
        if parameter.is_complex():
            raise ConfigError(
                f"optimizer: got a complex parameter of shape {shape}, expected real ones for the "
                "default; give optimizer=torch.optim.Adam"
            )
