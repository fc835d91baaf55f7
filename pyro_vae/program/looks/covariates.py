"""Whether an argument of whole numbers, as the length of each sequence is one, is no length."""

from collections.abc import Callable
from contextlib import suppress

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.program.batches.batch import Batch, num_rows
from pyro_vae.program.handlers import is_data, sample_sites
from pyro_vae.program.looks.cuts import density_of, latents_cut
from pyro_vae.program.looks.quiet_runs import Runs


def is_no_length(
    runs: Runs, low: Batch, high: Batch, moved: Callable[[Batch, int], Batch], steps: int
) -> bool:
    """Return whether the density of data moves with an argument, and it takes out no step.

    A length takes out the last step, or, where sequences are padded on the left, the first one that
    counts in a longer sequence. False where nothing can be told: it may be one.

    Arguments:
        runs: Runs the program.
        low: Rows with the least value of the argument.
        high: With the largest.
        moved: Returns such rows with other values at a step of what is observed.
        steps: T.
    """
    with suppress(Exception), runs.trying(low) as run:  # whatever a user's function raises
        rows = num_rows(low)
        latents = latents_cut(run(low, rows, {}))
        of_low, of_high = (_densities(run(each, rows, latents)[0]) for each in (low, high))

        def counts(step: int, batch: Batch, plain: dict[str, Tensor]) -> bool:
            return _moves(plain, _densities(run(moved(batch, step), rows, latents)[0]))

        first = next(step for step in range(steps) if counts(step, high, of_high))
        kept = all(counts(step, low, of_low) for step in (first, steps - 1))
        return kept and _moves(of_low, of_high)
    return False


def _densities(model: Trace) -> dict[str, Tensor]:
    return {name: density_of(site) for name, site in sample_sites(model) if is_data(site)}


def _moves(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Return whether two runs observe the same sites, and some density is another number."""
    if {k: v.shape for k, v in one.items()} != {k: v.shape for k, v in two.items()}:
        return False
    finite = all(bool(each.isfinite().all()) for each in (*one.values(), *two.values()))
    return finite and any(not torch.equal(one[name], two[name]) for name in one)
