"""Whether an argument of whole numbers, as the length of each sequence is one, is no length."""

from collections.abc import Sequence
from contextlib import suppress

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.program.batches.batch import Batch, num_rows
from pyro_vae.program.handlers import is_data, sample_sites
from pyro_vae.program.looks.cuts import density_of, latents_cut
from pyro_vae.program.looks.quiet_runs import Runs


def is_no_length(runs: Runs, low: Batch, high: Batch, ends: Sequence[Batch]) -> bool:
    """Return whether the density of data moves with an argument, and all their steps count.

    A length takes out the steps behind it, or before it where sequences are padded on the left.
    False where nothing can be told: it may be one.

    Arguments:
        runs: Runs the program.
        low: Rows with the least value of the argument.
        high: With the largest.
        ends: As ``low``, with other values at the first step of what is observed, and at the last.
    """
    with suppress(Exception), runs.trying(low) as run:  # whatever a user's function raises
        rows = num_rows(low)
        latents = latents_cut(run(low, rows, {}))
        least, *others = [_densities(run(e, rows, latents)[0]) for e in (low, high, *ends)]
        return all(_moves(least, each) for each in others)
    return False


def _densities(model: Trace) -> dict[str, Tensor]:
    return {name: density_of(site) for name, site in sample_sites(model) if is_data(site)}


def _moves(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Return whether two runs observe the same sites, and some density is another number."""
    if {k: v.shape for k, v in one.items()} != {k: v.shape for k, v in two.items()}:
        return False
    finite = all(bool(each.isfinite().all()) for each in (*one.values(), *two.values()))
    return finite and any(not torch.equal(one[name], two[name]) for name in one)
