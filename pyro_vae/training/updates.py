"""The updates of an objective, and their losses, checked before a step is taken by them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pyro_vae.arguments import shown
from pyro_vae.errors import ConfigError
from pyro_vae.inference.objectives.objective import Objective, Update
from pyro_vae.program.program import Program


def updates_of(objective: Objective, program: Program) -> Sequence[Update]:
    """Return the updates of a training step.

    Raises:
        ConfigError: None, or something else.
    """
    updates = objective.updates(program)
    parts = ("loss", "parameters")  # anything with them will do
    made = isinstance(updates, Sequence) and all(hasattr(u, p) for u in updates for p in parts)
    if not made:
        raise ConfigError(
            f"objective: {type(objective).__name__}.updates(program) returned {shown(updates)}, "
            "expected a list of pv.Update(loss, parameters)"
        )
    if not updates:
        raise ConfigError("objective: it has no update, expected at least one to train by")
    return updates


def require_loss(name: str, loss: Any) -> None:
    """Refuse what no gradient can be taken of.

    Raises:
        ConfigError: No number, or one in which no parameter stands.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        mean = ", such as its .mean()" if isinstance(loss, Tensor) else ""
        raise ConfigError(
            f"objective: update {name!r} returned {shown(loss)} for a loss, expected one number in "
            f"nats per datum{mean}"
        )
    if not loss.requires_grad:
        raise ConfigError(
            f"objective: update {name!r} returned a loss without a gradient, expected one in which "
            "parameters stand; make it of the terms, without .item(), .detach() or torch.no_grad()"
        )
