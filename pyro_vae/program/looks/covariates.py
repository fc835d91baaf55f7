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
from pyro_vae.program.sites.masks import kept_units


def is_no_length(
    runs: Runs, low: Batch, high: Batch, moved: Callable[[int], Batch], steps: int
) -> bool:
    """Return whether the density of data moves with an argument, and it takes out no step.

    A length takes out the last step, or, where sequences are padded on the left, the first one that
    counts in a longer sequence. False where nothing can be told: it may be one.

    Arguments:
        runs: Runs the program.
        low: Rows with the least value of the argument.
        high: With the largest.
        moved: Returns the first with other values at a step of what is observed.
        steps: T.
    """
    with suppress(Exception), runs.trying(low) as run:  # whatever a user's function raises
        rows = num_rows(low)
        latents = latents_cut(run(low, rows, {}))
        models = [run(each, rows, latents)[0] for each in (low, high)]
        of_low, of_high = map(_densities, models)
        first, of_longer = (_first_step(model, steps) for model in models)
        if first == of_longer and _moves(of_low, of_high):
            others = (_densities(run(moved(step), rows, latents)[0]) for step in (first, steps - 1))
            return all(_moves(of_low, each) for each in others)
    return False


def _first_step(model: Trace, steps: int) -> int:
    """Return the first step that is observed and that no mask takes out; 0 where none tells it."""
    for _, site in sample_sites(model):
        value = site["value"]
        if not is_data(site) or value.dim() < 2 or not 0 <= steps - value.shape[1] <= 1:
            continue
        kept = kept_units(site["fn"], site["mask"], value.device)
        counts = value.new_ones(value.shape) if kept is None else kept.expand_as(value)
        by_step = counts.movedim(1, 0).flatten(1).any(1)
        return steps - len(by_step) + int(by_step.int().argmax())
    return 0


def _densities(model: Trace) -> dict[str, Tensor]:
    return {name: density_of(site) for name, site in sample_sites(model) if is_data(site)}


def _moves(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Return whether two runs observe the same sites, and some density is another number."""
    if {k: v.shape for k, v in one.items()} != {k: v.shape for k, v in two.items()}:
        return False
    finite = all(bool(each.isfinite().all()) for each in (*one.values(), *two.values()))
    return finite and any(not torch.equal(one[name], two[name]) for name in one)
