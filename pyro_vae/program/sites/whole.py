"""Programs without a plate of the data: whether a program is one, and what it must satisfy.

Such a program (a Gaussian process, a regression with ``.to_event(1)``, a loop over sequences) is
one datum: its latents are global, its batch is never cut, and its numbers are those of all data.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any

from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites

from pyro_vae.errors import DataError, ProgramError, PyroVaeError
from pyro_vae.program.batches.batch import (
    Batch,
    Whole,
    arguments,
    as_batch,
    given_arguments,
    map_rows,
    named_arguments,
    named_arrays,
    num_rows,
    under_handlers,
)
from pyro_vae.program.checks import check_shape
from pyro_vae.program.densities.terms import nesting
from pyro_vae.program.handlers import (
    FAILURES,
    PLATE,
    Message,
    is_deterministic,
    observes,
    sample_sites,
    scoring_data,
)
from pyro_vae.program.sites.observed import would_observe
from pyro_vae.program.sites.plates import DataPlate, NoDataPlate, OneDatum, fill, find_plate

_LARGEST = 1 << 26  # bytes of a batch on which a program is tried that fails on a few rows


def is_whole(trace: Callable[[Batch], Trace], batch: Batch, wanted: str | None) -> bool:
    """Return whether a program has no plate of the data, found out by runs of its model.

    A few rows tell most programs; one that has no plate for these, or does not take them, is run on
    all rows. One that does not run has what it lacks told by its reader.

    Arguments:
        trace: Runs the pair, leaves nothing behind, and returns the trace of the model.
        batch: All rows.
        wanted: The plate that the user names.
    """
    try:
        rows = num_rows(batch)
    except DataError:
        rows = 0  # arguments of several lengths, or none at all
    try:
        if rows and plate_follows(trace, batch, wanted):
            return False
    except DataError:
        if sum(leaf.numel() * leaf.element_size() for _, leaf in named_arrays(batch)) > _LARGEST:
            return False
    else:
        arguments(batch)  # which must not be sparse: the program takes all rows at once
    try:
        model = trace(batch)
        if rows and not isinstance(_plate_of(model, wanted, rows), NoDataPlate):
            return False  # of two, or one of another size, the reader tells
        require_plates(model)
        for name, site in sample_sites(model):
            if observes(site):
                fill(site)  # a plate without a size around data that the program holds
                check_shape(name, site)
    except DataError:
        return False
    return bool(rows or not any(True for _ in named_arrays(batch)) or _plateless(model))


def plate_follows(trace: Callable[[Batch], Trace], batch: Batch, wanted: str | None) -> bool:
    """Return whether a plate of the model has as many rows as it is given, whatever their number.

    Arguments:
        trace, batch, wanted: As in ``is_whole``.

    Raises:
        DataError: The program does not run on so few.
    """
    found = _plates_of_few(trace, batch, wanted)
    return not any(isinstance(each, NoDataPlate) for each in found)


def has_plate_of_rows(trace: Callable[[Batch], Trace], batch: Batch, wanted: str | None) -> bool:
    """Return whether the plate of the data is known to have few rows where it is given so many."""
    found = _plates_of_few(trace, batch, wanted)
    with suppress(DataError):  # it does not run on so few
        return all(isinstance(each, DataPlate) for each in found)
    return False


def one_datum(model: Trace, guide: Trace) -> OneDatum:
    """Return the plate of one row that stands around what a whole program observes."""
    drawn = frozenset(name for name, _ in sample_sites(guide))
    return OneDatum(PLATE, -1 - _depth(model, guide), outside=drawn)


def require_plates(*traces: Trace, left_of: int = 0) -> None:
    """Require that each dimension of a site's batch shape belongs to a plate, as stock SVI does.

    Arguments:
        traces: Of model and guide.
        left_of: Ask it of the sites in a plate alone, and of their dimensions beyond this many.

    Raises:
        ProgramError: Names the site and the way out.
    """
    for trace in traces:
        for name, site in sample_sites(prune_subsample_sites(trace)):
            if is_deterministic(site):
                continue
            dims = {frame.dim for frame in site["cond_indep_stack"]}
            if left_of and not dims:
                continue
            shape = _batch_shape(site)
            loose = [d for d in range(-len(shape), -left_of) if shape[d] > 1 and d not in dims]
            if loose:  # stock SVI asks the density: a distribution of one's own may say otherwise
                shape = _density_shape(site)
                loose = [d for d in range(-len(shape), -left_of) if shape[d] > 1 and d not in dims]
            if loose:
                raise ProgramError(
                    f"site {name!r}: {shape[loose[-1]]} values stand in no plate (batch shape "
                    f"{tuple(shape)}); if they are data, write `with pyro.plate({PLATE!r}, "
                    "len(x)):` around the sites of one datum; if they have one joint density, "
                    "make them one event: .to_event(1)"
                )


def require_observed(
    model: Trace,
    guide: Trace,
    batch: Batch,
    function: Callable[..., Any],
    aside: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Require of a program that is given data that it observes some, or scores them by a factor.

    Arguments:
        model, guide: Its traces.
        batch: The data.
        function: The model.
        aside: Runs that leave nothing behind.

    Raises:
        ProgramError: It does neither: its bounds would be of no data at all.
    """
    if not any(True for _ in named_arrays(batch)) or scoring_data(model):
        return
    for site in scoring_data(guide):
        raise ProgramError(
            f"the model observes nothing, and the guide observes site {site['name']!r}: are the "
            "two swapped? Program(model, guide) takes the model first"
        )
    left = _left_out(batch, function)
    with aside():
        args, kwargs = given_arguments(_without_none(batch))
        met = [name for name in left if would_observe(function, args, kwargs, name)]
    way_out = (
        "write obs= in the pyro.sample of what is observed, as in pyro.sample('x', ..., obs=x)"
    )
    if met:
        way_out = f"give {_either(met)} too, which is None where it is left out"
    elif left:
        way_out += f"; or give {_either(left)}, which is None here, if a site observes it"
    raise ProgramError(f"the model is given data and observes none; {way_out}")


def _either(names: list[str]) -> str:
    return " or ".join(map(repr, names))


def _left_out(batch: Batch, function: Callable[..., Any]) -> list[str]:
    """Return the arguments of a function that are None by default, and not given."""
    given = named_arguments(function, *given_arguments(_without_none(batch)))
    parameters = inspect.signature(under_handlers(function)).parameters
    return [name for name, p in parameters.items() if p.default is None and name not in given]


def _without_none(batch: Batch) -> Batch:
    """Return a batch without the arguments that are None, where they are its last or have names."""
    args, kwargs = given_arguments(batch)
    while args and args[-1] is None:
        args = args[:-1]
    named = {name: value for name, value in kwargs.items() if value is not None}
    return as_batch(batch, args, named)


def require_rows(batch: Batch) -> None:
    """Refuse a part of the data of a program that has no plate for them.

    Raises:
        ProgramError: The program is one datum.
    """
    if isinstance(batch, Whole):
        raise ProgramError(
            "no plate holds the data of this program, so that they have one joint density: got "
            "batches or several devices, expected all data at once, as tensors; or write "
            f"`with pyro.plate({PLATE!r}, len(x)):` around the sites of one datum"
        )


def _plates_of_few(
    trace: Callable[[Batch], Trace], batch: Batch, wanted: str | None
) -> Iterator[DataPlate | PyroVaeError]:
    """Yield the plates of a few rows in two sizes: one of another meaning may have one of them.

    Raises:
        DataError: The program does not run on so few.
    """
    rows = num_rows(batch)
    for n in sorted({min(2, rows), min(3, rows)}):
        few = map_rows(lambda leaf, n=n: leaf[:n], batch, rows)  # type: ignore[misc]
        yield _plate_of(trace(few), wanted, n)


def _plate_of(model: Trace, wanted: str | None, rows: int) -> DataPlate | PyroVaeError:
    """Return the plate of the data, or why there is none: two, say, or one of another size."""
    try:
        return find_plate(model, rows, wanted)
    except (ProgramError, DataError) as error:
        return error


def _plateless(model: Trace) -> bool:
    """Return whether nothing observed stands in a vectorised plate."""
    frames = [frame for site in scoring_data(model) for frame in _frames(site)]
    return not frames


def _frames(site: Message) -> list[object]:
    return [frame for frame in site["cond_indep_stack"] if frame.dim is not None]


def _depth(*traces: Trace) -> int:
    """Return the batch dimensions that plates use; none count as none."""
    return nesting(*traces) if any(_frames(s) for t in traces for _, s in sample_sites(t)) else 0


def _density_shape(site: Message) -> tuple[int, ...]:
    try:
        return tuple(site["fn"].log_prob(site["value"]).shape)
    except FAILURES:
        return _batch_shape(site)


def _batch_shape(site: Message) -> tuple[int, ...]:
    event = len(site["fn"].event_shape)
    value = site["value"].shape
    seen = tuple(value[: len(value) - event])
    own = tuple(site["fn"].batch_shape)
    depth = max(len(seen), len(own))
    pairs = zip((1,) * (depth - len(seen)) + seen, (1,) * (depth - len(own)) + own, strict=True)
    return tuple(max(pair) for pair in pairs)
