"""The weights of sites in train mode, where a program may scale by N/B in training alone."""

from contextlib import suppress
from dataclasses import replace
from types import FunctionType
from typing import TYPE_CHECKING

import torch

from pyro_vae.program.batches.batch import Batch, num_rows
from pyro_vae.program.handlers import sample_sites
from pyro_vae.program.looks.cuts import cut_to, unlike
from pyro_vae.program.looks.findings import Dependence
from pyro_vae.program.looks.own_weights import counted_of
from pyro_vae.program.looks.refusals import tell_of_moving
from pyro_vae.program.parameters.modules import training
from pyro_vae.program.parameters.object_graph import holders, names_mentioned

if TYPE_CHECKING:
    from pyro_vae.program.program import Program


def of_training(program: "Program", batch: Batch, found: Dependence, size: int) -> Dependence:
    """Return what is found of a program, its weights as they are in train mode.

    Looked at where its code reads ``training``, and kept where it scales other sites by N/B then.

    Arguments:
        program: Its functions and parameters.
        batch: Some rows.
        found: What looks in eval mode have found.
        size: N.
    """
    if not _asks_for_its_mode(program):
        return found
    part, rows, moving = None, num_rows(batch), set[str]()
    with program.reader.runs.running(batch) as run, training(program):
        try:
            whole = run(batch, rows, {})
        except Exception:  # the first step raises it, and says more
            return found
        with suppress(Exception):  # whatever a user's function raises on so few rows
            part = run(cut_to(batch, torch.arange(rows // 2)), rows // 2, {}) if rows > 1 else None
        with suppress(Exception):  # nor may a density be asked again
            # What a first run keeps the others find: two of these are compared.
            again = (run(batch, rows, {}) for _ in range(2))
            moving = {each.site for each in unlike(next(again), next(again))}
    tell_of_moving(moving)
    names = {name for trace in whole for name, _ in sample_sites(trace)}
    told = Dependence(counted=counted_of(whole, names))
    told = told if part is None else told.with_part(part)
    own = {each.site for each in counted_of(whole, ())} | set(told.by_count)
    counted = tuple(each for each in told.counted if each.site in own)
    told = replace(found, by_count=told.by_count, counted=counted)
    return found if told.scaled_itself(size) == found.scaled_itself(size) else told


def _asks_for_its_mode(program: "Program") -> bool:
    functions = [f for f in holders(*program.own.functions) if type(f) is FunctionType]
    return any("training" in names_mentioned(function) for function in functions)
