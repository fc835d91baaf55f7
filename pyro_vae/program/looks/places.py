"""Whether a program has a factor for each datum, which it finds by the place of its row."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.program.batches.batch import Batch, map_rows, num_rows
from pyro_vae.program.checks import has_density
from pyro_vae.program.handlers import Message, data_frame, sample_sites
from pyro_vae.program.looks.cuts import EqualNoise, Pair
from pyro_vae.program.parameters.modules import leaves_behind

if TYPE_CHECKING:
    from pyro_vae.program.looks.quiet_runs import Runs
    from pyro_vae.program.program import Program


def goes_by_place(runs: "Runs", batch: Batch, program: "Program", *, strictly: bool) -> bool | None:
    """Return whether equal rows hang on parameters of their own; None where it cannot be told.

    All rows are one of the batch, and all noise is one number: a network makes the same of each
    row out of the same weights, and a table has an entry for each.

    Arguments:
        runs: Of the program.
        batch: As many rows as it takes.
        program: Whose parameters they are.
        strictly: Whether each of two rows must have one that the other has not. Else one has: so
            do the steps of a recurrent network.
    """
    rows, told = num_rows(batch), None
    places = sorted({0, 1, rows // 2, rows - 1})
    for row in (0, rows - 1):  # one of zeros would hide what multiplies it
        with suppress(Exception):  # it may take no equal rows
            alike = map_rows(lambda leaf, row=row: leaf[[row] * rows], batch)  # type: ignore[misc]
            first, again = _reached(runs, alike, places, program)
            if all(map(_same, first, again)):  # else noise of its own hides what the rows do
                told = any(_apart(first[0], each, strictly) for each in first[1:])
        if told:
            return True
    return told


def reads_data(runs: "Runs", batch: Batch) -> bool:
    """Return whether what the guide draws for a datum is made of the data; False of integers."""
    leaves: list[Tensor] = []

    def leaf_of(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        leaves.append(leaf.detach().clone().requires_grad_())
        return leaves[-1]

    watched = map_rows(leaf_of, batch)
    with runs.running(watched) as run, torch.enable_grad():
        _, guide = run(watched, num_rows(watched), {})
        terms = [term for site in _local(guide) for term, _ in _terms(site)]
        behind = {id(leaf) for term in terms for leaf in leaves_behind(term.sum())}
    return any(id(leaf) in behind for leaf in leaves)


def _reached(
    runs: "Runs", batch: Batch, places: Sequence[int], program: "Program"
) -> tuple[list[Tensor], list[Tensor]]:
    """Return which numbers of all parameters some rows hang on, in each of two runs."""
    rows = num_rows(batch)
    with runs.running(batch) as run:
        run(batch, rows, {})  # a first run makes parameters
        with (
            runs.off_zero(lambda: run(batch, rows, {})),
            torch.enable_grad(),
            _trained(program) as weights,
        ):
            found = []
            for seed in (0, 1):
                with EqualNoise():
                    pair = run(batch, rows, {}, seed)
                found.append([_behind(_of_row(pair, place, rows), weights) for place in places])
    return found[0], found[1]


@contextmanager
def _trained(program: "Program") -> Iterator[Sequence[Tensor]]:
    """Yield the weights, each of which has a gradient inside: a table may be frozen by now."""
    weights = [p for p in program.parameters() if p.is_floating_point()]
    frozen = [weight for weight in weights if not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_()
        yield weights
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def _behind(number: Tensor, weights: Sequence[Tensor]) -> Tensor:
    if not (number.requires_grad and weights):
        return torch.zeros(0, dtype=torch.bool)
    grads = torch.autograd.grad(
        number, weights, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([(grad.to_dense() != 0).flatten().cpu() for grad in grads])


def _of_row(pair: Pair, place: int, rows: int) -> Tensor:
    """Return a number made of all that the program draws and scores for one row."""
    total = torch.zeros(())
    for trace in pair:
        for site in _local(trace):
            for term, dim in _terms(site):
                if term.dim() >= -dim and term.shape[dim] == rows and term.is_floating_point():
                    own = term.select(dim, place).flatten()
                    # Weighed, for a sum of probabilities would be 1 whatever they are.
                    total = total + (own * torch.arange(1.0, len(own) + 1).cos().to(own)).sum()
    return total


def _local(trace: Trace) -> Iterator[Message]:
    return (site for _, site in sample_sites(trace) if data_frame(site) is not None)


def _terms(site: Message) -> Iterator[tuple[Tensor, int]]:
    """Yield the value of a site, and its density, each with the dimension of the rows."""
    frame: Any = data_frame(site)
    if not site["is_observed"]:
        yield site["value"], frame.dim - site["fn"].event_dim
    if has_density(site["fn"]):
        yield site["fn"].log_prob(site["value"]), frame.dim


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other)


def _apart(one: Tensor, other: Tensor, strictly: bool) -> bool:
    if one.shape != other.shape:
        return False
    here, there = bool((one & ~other).any()), bool((other & ~one).any())
    return (here and there) if strictly else (here or there)
