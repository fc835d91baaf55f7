"""What factors make of what is missing in the data: their numbers show no cells."""

from collections.abc import Iterator

import torch
from pyro.distributions import Unit
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import counted
from pyro_vae.program.handlers import Message, sample_sites
from pyro_vae.program.looks.filled_runs import FilledRuns
from pyro_vae.program.sites.observed_cells import differ

_WAY_OUT = (
    "nothing shows which cells its number leaves out; observe what has holes by pyro.sample(name, "
    "fn.mask(~x.isnan()).to_event(1), obs=x.nan_to_num()), with x.nan_to_num() in the guide, or "
    "drop such rows, x[x.isfinite().flatten(1).all(1)]"
)


def of_factors(model: Trace) -> str:
    """Return what to do about holes where factors score the data; nothing where none does."""
    for name, site in _factors(model):
        if site["cond_indep_stack"]:
            return f"site {name!r} is a pyro.factor, which takes no holes: {_WAY_OUT}"
    return ""


def of_moving_factors(model: Trace, runs: FilledRuns) -> str:
    """Return what to do about a factor that moves with holes of the data; nothing without one.

    One of latents, of weights or of what has no holes does not, nor one that counts what is seen.

    Arguments:
        model: Its trace on the data as they are, whose masks may take out what moves.
        runs: Runs the program.
    """
    factors = dict(_factors(model))
    if not factors:
        return ""
    high, low = (_numbers_of(runs.filled(high=end)) for end in (True, False))
    for name, site in factors.items():
        if name not in high or name not in low or high[name].shape != low[name].shape:
            continue
        kept = torch.as_tensor(True if site["mask"] is None else site["mask"])
        moved = differ(high[name], low[name]) & kept.to(high[name].device)
        if bool(moved.any()):
            return (
                f"site {name!r} is a pyro.factor, and {int(moved.sum())} of its "
                f"{counted(moved.numel(), 'number')} move with what is filled in for NaN: "
                f"{_WAY_OUT}"
            )
    return ""


def _factors(model: Trace) -> Iterator[tuple[str, Message]]:
    for name, site in sample_sites(model):
        if isinstance(site["fn"], Unit) and site["is_observed"]:
            yield name, site


def _numbers_of(trace: Trace | None) -> dict[str, Tensor]:
    sites = [] if trace is None else _factors(trace)
    return {name: site["fn"].log_factor for name, site in sites}
