"""Whether a program without a plate has independent rows, which it made one event by mistake."""

import warnings
from contextlib import suppress

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.callers import of_user
from pyro_vae.errors import DataError
from pyro_vae.program.batches.batch import Batch, arguments, map_rows, num_rows
from pyro_vae.program.handlers import PLATE, Message, sample_sites
from pyro_vae.program.looks.quiet_runs import Runs

_FEWEST = 3  # rows whose order tells a chain from a set


def warn_of_rows_as_events(runs: Runs, batch: Batch) -> None:
    """Warn where each latent and each observed site of a whole program has a part for each row.

    And where the joint density stays the same under rows in another order, as that of independent
    rows does and that of a chain over time does not. Latents of all data (weights, inducing
    points) leave the rows dependent: of such programs nothing is said.

    Arguments:
        runs: Of the program.
        batch: All its rows.
    """
    rows = 0
    with suppress(DataError):  # arguments of several lengths
        rows = num_rows(batch)
    if rows < _FEWEST:
        return
    told = None
    with runs.aside(batch), suppress(Exception):  # it runs on rows in their own order alone, say
        told = _independent(runs, batch, rows)
    if told is not None:
        latents, observed = (_listed(names) for names in told)
        warnings.warn(
            f"site {observed}: its event holds all {rows} rows, and so does that of latent "
            f"{latents}: this program is one datum, and its loss a sum over all rows. Write `with "
            f"pyro.plate({PLATE!r}, len(x)):` around the sites of model and guide, and "
            ".to_event(n) for the dimensions of one row alone; if the rows are meant as one "
            "datum, add a first dimension to them and to the model: x[None], in a plate of 1",
            UserWarning,
            stacklevel=of_user(),
        )


def _independent(runs: Runs, batch: Batch, rows: int) -> tuple[list[str], list[str]] | None:
    """Return the latents and observed sites, all of the rows, where no row has its own place."""
    sites = dict(sample_sites(runs.trace_of_model(batch)))
    observed = [name for name, site in sites.items() if site["is_observed"]]
    latents = [name for name in sites if name not in observed]
    if not latents or not observed or not all(_is_of_rows(s, rows) for s in sites.values()):
        return None
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    drawn = {name: sites[name]["value"] for name in latents}
    moved = {name: value[order.to(value.device)] for name, value in drawn.items()}
    model = runs.functions(batch)[0]

    def density(data: Batch, values: dict[str, Tensor]) -> Tensor:
        args, kwargs = arguments(data)
        trace = poutine.trace(poutine.condition(model, data=values)).get_trace(*args, **kwargs)
        return torch.as_tensor(trace.log_prob_sum())

    other = map_rows(lambda leaf: leaf[order.to(leaf.device)], batch, rows)
    before, after = density(batch, drawn), density(other, moved)
    return (latents, observed) if torch.allclose(before, after, rtol=1e-4) else None


def _is_of_rows(site: Message, rows: int) -> bool:
    """Return whether ``.to_event`` has made the rows the first dimension of an event."""
    fn, made = site["fn"], 0
    while hasattr(fn, "base_dist"):
        made += getattr(fn, "reinterpreted_batch_ndims", 0)
        fn = fn.base_dist
    value = site["value"].shape  # of events alone, the rows first
    return made > 0 and len(value) == site["fn"].event_dim and value[0] == rows


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))
