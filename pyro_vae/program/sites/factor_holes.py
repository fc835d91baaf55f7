"""Whether a factor leaves out what is missing in the data: a number has no cells to mask."""

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.program.handlers import sample_sites
from pyro_vae.program.looks.filled_runs import FilledRuns
from pyro_vae.program.parameters.modules import leaves_behind


def about_factors(runs: FilledRuns) -> str | None:
    """Return what is wrong about factors of data with holes; nothing of right ones, None of none.

    A factor of the data moves where each number is taken out of the arguments that have holes. No
    latent and no parameter then moves it if it leaves out what is missing.

    Arguments:
        runs: Runs the program.
    """
    given, blank = _factors(runs.with_gradients()), _factors(runs.with_gradients(blank=True))
    told = None
    for name, factor in given.items():
        empty = blank.get(name, factor)
        if torch.equal(factor.detach(), empty.detach()):
            continue  # of no such data
        told = told or ""
        if not all(bool(each.isfinite().all()) for each in _gradients(factor)):
            return _told(name, "is NaN, or its gradient is")
        if any(bool((each != 0).any()) for each in _gradients(empty)):
            return _told(name, "counts where a row has no number at all, as one of something else")
    return told


def _told(name: str, what: str) -> str:
    return (
        f"site {name!r}, a factor, {what}: leave out what is missing, as "
        "torch.where(x.isnan(), 0.0, fn.log_prob(x.nan_to_num())).sum(-1), and give what is of no "
        "data a factor of its own"
    )


def _factors(model: Trace | None) -> dict[str, Tensor]:
    sites = [] if model is None else sample_sites(model)
    return {n: s["fn"].log_prob(s["value"]) for n, s in sites if type(s["fn"]).__name__ == "Unit"}


def _gradients(factor: Tensor) -> list[Tensor]:
    """Return the gradients of a factor, by latents and by parameters."""
    leaves = leaves_behind(factor)
    if not leaves:
        return []
    found = torch.autograd.grad(factor.sum(), leaves, allow_unused=True, retain_graph=True)
    return [each for each in found if each is not None]
