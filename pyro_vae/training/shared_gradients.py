"""Gradients that several processes, or several parameters, have in common."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from pyro_vae.training.parallel import Reduce
from pyro_vae.training.shared_buffers import digest


def average(loss: Tensor, trained: Sequence[nn.Parameter], reduce: Reduce) -> None:
    """Average a loss and gradients over the processes, in place.

    All send the gradient of each parameter, zero where their rows do not reach it. One that no
    rows have reached keeps none, as in one process.

    Arguments:
        loss: Of this process's rows.
        trained: Whose gradients are averaged.
        reduce: Averages tensors over the processes, in place.
    """
    moving = [parameter for parameter in trained if parameter.requires_grad]
    absent = [place for place, parameter in enumerate(moving) if parameter.grad is None]
    reached = loss.new_ones(len(moving))
    for place in absent:
        reached[place] = 0.0
        moving[place].grad = torch.zeros_like(moving[place])
    grads = [parameter.grad for parameter in moving if parameter.grad is not None]
    counts = reduce([loss, reached, *grads])
    for place in absent if counts else range(len(moving)):
        if not reached[place]:
            moving[place].grad = None


def facts_of(
    trained: Sequence[nn.Parameter], names: Mapping[int, str], late: Collection[int]
) -> dict[str, str]:
    """Return what processes that train together must have in common: which parameters move.

    And from which values, where they have come within the run.

    Arguments:
        trained: In the order in which they are sent.
        names: By the parameters' ids; others are those of the objective.
        late: The ids of those that have come within the run.
    """
    facts = {}
    for place, parameter in enumerate(trained):
        name = names.get(id(parameter), f"of the objective, {place}")
        if parameter.requires_grad:
            kept = f"from {digest(parameter)[:8]}" if id(parameter) in late else "trained"
            facts[name] = f"{kept}, {place} of shape {tuple(parameter.shape)}"  # one order
    return facts


def set_apart(parameters: Sequence[nn.Parameter]) -> None:
    """Give gradients that share memory some of their own: what follows scales them in place.

    Of two values that are added PyTorch may set two views of one gradient.
    """
    taken: set[int] = set()
    for parameter in parameters:
        grad = parameter.grad
        if grad is None or grad.layout is not torch.strided:
            continue
        memory = grad.untyped_storage().data_ptr()
        if memory in taken:
            parameter.grad = grad.clone()
        taken.add(memory)
