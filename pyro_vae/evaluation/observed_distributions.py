"""What the observed sites of a program are distributed as."""

from typing import Any

import torch

from pyro_vae.program.batches.batch import Batch, cuda_devices
from pyro_vae.program.handlers import innermost
from pyro_vae.program.passes import Verb
from pyro_vae.program.program import Program


def observed_distributions(program: Any, rows: Batch, verb: str) -> dict[str, Any]:
    """Return the distribution of each observed site, by a look at some rows; no noise is used up.

    It is what stands behind ``to_event``, ``expand`` and ``mask``.
    """
    found: dict[str, Any] = {}
    with Program.of(program).passes(rows, Verb(verb, prior=True)) as passes:
        for piece in passes:
            with torch.random.fork_rng(cuda_devices(piece.batch)):
                model, _ = piece.joint.sampled_traces()
            found |= {name: innermost(model.nodes[name]["fn"]) for name in piece.sites.observed}
    return found
