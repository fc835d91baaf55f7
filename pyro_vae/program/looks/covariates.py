"""Whether an argument of whole numbers, as the length of each sequence is one, is no length."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.program.batches.batch import Batch, num_rows
from pyro_vae.program.handlers import Message, is_data, sample_sites
from pyro_vae.program.looks.cuts import density_of, latents_cut
from pyro_vae.program.looks.quiet_runs import Runs
from pyro_vae.program.sites.masks import kept_units


def is_no_length(
    runs: Runs,
    low: Batch,
    high: Batch,
    sites: Iterable[Sequence[str]],
    moved: Callable[[Batch, Sequence[int]], Batch],
    steps: Sequence[int],
) -> bool:
    """Return whether the density of data moves with an argument, and it takes out no step.

    A length takes out the last step, or, where sequences are padded on the left, the first one that
    counts in a longer sequence. A mask shows it; without one, the steps whose values differ do.
    False where nothing can be told: it may be one.

    Arguments:
        runs: Runs the program.
        low: Rows with the least value of the argument.
        high: With the largest.
        sites: Those that observe each argument of sequences.
        moved: Returns a batch with the values of other rows at some steps of the sequences.
        steps: Those where the rows differ, in order.
    """
    with suppress(Exception), runs.trying(low) as run:  # whatever a user's function raises
        rows = num_rows(low)
        latents = latents_cut(run(low, rows, {}))

        def model(batch: Batch) -> Trace:
            return run(batch, rows, latents)[0]

        def counts(beside: dict[str, Tensor], batch: Batch, *some: int) -> bool:
            return _moves(beside, _densities(model(moved(batch, some))))

        short, long = model(low), model(high)
        of_low, of_high = _densities(short), _densities(long)
        if not _moves(of_low, of_high) or _masks_out(short, long, sites, rows):
            return False
        # A run for each step of padding would be many.
        ends = range(1, len(steps) + 1)
        first = bisect_left(ends, True, key=lambda end: counts(of_high, high, *steps[:end]))
        return all(counts(of_low, low, step) for step in (steps[first], steps[-1]))
    return False


def _masks_out(short: Trace, long: Trace, sites: Iterable[Sequence[str]], rows: int) -> bool:
    """Return whether masks take out whole steps that they keep in a longer sequence."""
    of_short, of_long = dict(sample_sites(short)), dict(sample_sites(long))
    for of_one in sites:
        for name in of_one:
            kept, of_longer = (
                _kept_steps(each[name], rows, alone=len(of_one) == 1)
                for each in (of_short, of_long)
            )
            if bool((of_longer & ~kept).any()):
                return True
    return False


def _kept_steps(site: Message, rows: int, *, alone: bool) -> Tensor:
    """Return of which steps masks keep some value: ``(T,)`` of a site alone, else it is a step."""
    value = site["value"]
    kept = kept_units(site["fn"], site["mask"], value.device)
    counts = value.new_ones(value.shape).bool() if kept is None else kept.expand_as(value)
    if not alone or value.dim() < 2:
        return counts.any()
    return counts.movedim(int(len(value) == rows), 0).flatten(1).any(1)  # steps may come first


def _densities(model: Trace) -> dict[str, Tensor]:
    return {name: density_of(site) for name, site in sample_sites(model) if is_data(site)}


def _moves(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Return whether two runs observe the same sites, and some density is another number."""
    if {k: v.shape for k, v in one.items()} != {k: v.shape for k, v in two.items()}:
        return False
    finite = all(bool(each.isfinite().all()) for each in (*one.values(), *two.values()))
    return finite and any(not torch.equal(one[name], two[name]) for name in one)
