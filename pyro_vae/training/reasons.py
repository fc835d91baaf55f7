"""Where a step first met a number that is not finite, in words."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.program.batches.batch import Batch
from pyro_vae.program.checks import has_density, unscaled
from pyro_vae.program.handlers import sample_sites
from pyro_vae.program.program import Program

_CURE = "Lower lr, set clip_norm, or bound the scales of the program"


def reason(program: Program, objective: Any, batch: Batch) -> str:
    """Return what to tell of a step that is not finite: where, and what to do.

    Arguments:
        program: What is trained.
        objective: One with ``first_bad(joint)``, as those with a critic, is asked what of its own
            is not finite: it answers where and what to do, or None.
        batch: What the step was taken on.
    """
    where, cure = first_bad_site(program, batch), _CURE
    if where is None:
        where, cure = _first_bad_of_its_own(program, objective, batch) or (None, _CURE)
    where = where or _first_bad_gradient(program, objective)
    told = f" (first seen at {where})" if where else ""
    return (
        f"{told}; the weights are as before this step, and steps before may have spoiled them: "
        f"begin with a new program. {unscaled(batch)}{cure}"
    )


def first_bad_site(program: Program, batch: Batch) -> str | None:
    """Return the first site whose log density is not finite, with its row, or None."""
    try:
        with torch.no_grad(), program.answering():
            found = list(_densities(program, batch))
    except (ValueError, RuntimeError) as error:
        return str(error).splitlines()[0]
    for side, name, value in found:
        bad = ~torch.isfinite(value)
        if bool(bad.any()):
            row = int(bad.nonzero()[0][-1])
            return f"site {name!r}, {side} = {value[..., row].flatten()[0].item():g}, row {row}"
    return None


def _densities(program: Program, batch: Batch) -> Iterator[tuple[str, str, Tensor]]:
    """Yield the log densities of all sites that have one: side, name and ``(S, K, B)``."""
    joint = program.joint(batch)
    model, guide = joint.traces()
    unknown = [{n for n, s in sample_sites(t) if not has_density(s["fn"])} for t in (model, guide)]
    if any(unknown):
        terms = joint.model_terms(model, guide, without=unknown[0])
    else:
        terms = joint.terms()
    yield from (("log q", name, value) for name, value in terms.log_q.items())
    yield from (("log p", name, value) for name, value in terms.log_p.items())


def _first_bad_of_its_own(program: Program, objective: Any, batch: Batch) -> tuple[str, str] | None:
    asked = getattr(objective, "first_bad", None)
    if not callable(asked):
        return None
    with program.answering():
        found: tuple[str, str] | None = asked(program.joint(batch))
    return found


def _first_bad_gradient(program: Program, objective: Any) -> str | None:
    own = objective.named_parameters() if isinstance(objective, nn.Module) else ()
    for whose, parameters in (("", program.named_parameters()), ("the objective's ", own)):
        for name, parameter in parameters:
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                return f"the gradient of {whose}{name!r}"
    return None
