"""A traced graph with its inputs: one step, ready to be taken."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from pyro_vae.callers import of_user
from pyro_vae.inference.graphs.comparison import Homes
from pyro_vae.inference.graphs.flat_inputs import FlatStep, GraphLoss, global_norm
from pyro_vae.inference.graphs.python_state import PythonState
from pyro_vae.layouts import laid_out_like, same_layout
from pyro_vae.recording import records, waits
from pyro_vae.torch_private import has_gradient_hooks


@dataclass
class Traced:
    """One batch signature's graph.

    Arguments:
        graph: As traced and simplified.
        run: What runs it.
        plain: What runs it without the compiler, and with the program's noise on every device.
        homes: Where its first inputs are held: parameters and buffers.
        trained: The parameters that it has gradients for, in their order.
        places: Their places among the parameters to train
        still: Parameters to train that this loss does not reach.
        written: The positions of the inputs that it writes to.
        moving: Those of them that are buffers or parameters.
        hooked: Whether a parameter has hooks that wait for its gradient.
        held: What is at home there: each parameter, or the dictionary that holds a buffer.
        state: What the program kept in Python when the graph was made.
        left: Calls until it is compared with the program.
        gap: Calls between this comparison and the next.
        doubted: Whether other code ran that may have changed the program.
        compared: What has run it so far, and was compared.
        launchers: What launches it at once on a GPU, by kind and by what runs it: on the graph, for
            each keeps the memory of a step, and goes with it.
    """

    graph: GraphModule
    run: FlatStep
    plain: FlatStep
    homes: Homes
    trained: list[nn.Parameter]
    places: list[int]
    still: list[nn.Parameter]
    written: list[int]
    moving: list[int]
    hooked: bool
    held: list[object]
    state: PythonState
    left: int = 2  # compared before its first call, and at the second: on the first other batch
    gap: float = 1.0
    doubted: bool = False
    compared: list[FlatStep] = field(default_factory=list)
    launchers: dict[tuple[type, FlatStep], Any] = field(default_factory=dict)
    _looked_at: FlatStep | None = None
    _stray: tuple[int, ...] = ()

    def runs_by(self, run: FlatStep) -> None:
        """Let something run the graph; what is new is compared at the next call."""
        self.run = run
        if not any(run is known for known in self.compared):
            self.compared.append(run)
            self.doubt()

    def doubt(self) -> None:
        """Compare it with the program at the next call, and look where its gradients lie."""
        self.left, self.doubted, self._looked_at = 1, True, None

    @cached_property
    def recordable(self) -> bool:
        """Whether its tensors are on a GPU, and no operation waits for it."""
        home, name = self.homes[0]
        return records(home[name]) and not waits(self.graph)

    def stray(self, grads: list[Tensor]) -> tuple[int, ...]:
        """Return which gradients are laid out otherwise than their parameters.

        Settled by the first step of what runs the graph, and again where other code has run:
        looking costs a small step.
        """
        if self._looked_at is not self.run:
            self._looked_at = self.run
            pairs = enumerate(zip(grads, self.trained, strict=True))
            self._stray = tuple(i for i, (g, p) in pairs if not same_layout(g, p))
        return self._stray

    def hand_out(self, grads: list[Tensor]) -> None:
        """Set the parameters' gradients, in place of those before."""
        for parameter in self.still:
            parameter.grad = None  # one left from elsewhere must not move it
        for parameter, grad in zip(self.trained, grads, strict=True):
            parameter.grad = grad


class Prepared(NamedTuple):
    """A graph with its inputs: one step, not yet taken.

    Arguments:
        traced: The graph.
        inputs: Parameters, buffers, the batch's tensors and KL weights, in the graph's order.
    """

    traced: Traced
    inputs: list[Tensor]

    @property
    def moving(self) -> list[Tensor]:
        """The buffers that the step writes to."""
        return [self.inputs[index] for index in self.traced.moving]

    def gradients(self, run: FlatStep | None = None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the loss, detached, the norm of the gradients, and those of ``traced.trained``.

        Parameters receive no ``.grad``, and their hooks no call.

        Arguments:
            run: What runs the graph; None: what runs it now.
        """
        with torch.no_grad():
            return self.gradients_inside(run)

    def gradients_inside(self, run: FlatStep | None = None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the same inside ``torch.no_grad()``, which costs a hundredth of a small step."""
        loss, norm, *grads = (run or self.traced.run)(*self.inputs)
        for index in self.traced.stray(grads):
            grads[index] = laid_out_like(self.traced.trained[index], grads[index])
        return loss, norm, grads

    def backward(self, run: FlatStep | None = None) -> tuple[Tensor, Tensor]:
        """Set the parameters' gradients, in place of those before.

        Arguments: as for ``gradients``.

        Returns:
            The loss, detached, and the norm of the gradients.
        """
        if self.traced.hooked:
            return self._through_autograd()
        loss, norm, grads = self.gradients(run)
        self.traced.hand_out(grads)
        return loss, norm

    def _through_autograd(self) -> tuple[Tensor, Tensor]:
        """Do the same by way of autograd, which calls the parameters' hooks."""
        trained = self.traced.trained
        for parameter in (*self.traced.still, *trained):
            parameter.grad = None
        loss = GraphLoss.apply(self.traced.run, self.inputs, *trained)
        free = [parameter.requires_grad for parameter in trained]
        loss.backward(inputs=trained)
        if free != [parameter.requires_grad for parameter in trained]:
            warnings.warn(
                "compile: a hook has frozen or thawed a parameter in the midst of a backward pass, "
                "in which a graph hands out gradients in another order than the program: the "
                "parameter may move in this step, or not; do it between two steps (callbacks=), or "
                "train with compile=False",
                stacklevel=of_user(),
            )
        grads = [p.grad for p in trained if p.grad is not None]
        return loss.detach(), global_norm(grads) if grads else loss.new_zeros(())


def hooked(parameters: Iterable[nn.Parameter]) -> bool:
    """Return whether one of the parameters has hooks that wait for its gradient."""
    return any(map(has_gradient_hooks, parameters))


def held(homes: Homes) -> list[object]:
    """Return what must be at home as long as a graph serves: each parameter itself.

    A buffer may be another tensor at each step, of the same module.
    """
    tensors = [(home, home[name]) for home, name in homes]
    return [value if isinstance(value, nn.Parameter) else home for home, value in tensors]
