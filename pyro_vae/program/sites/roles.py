"""Which role a site has in one trace: the sites of one batch need not be those of another."""

from collections.abc import Iterator
from typing import Any

from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample

from pyro_vae.program.handlers import data_frame, is_data, observes, sample_sites


def latent_names(trace: Trace) -> list[str]:
    """Return the latents of a datum in a trace of either function, those of the guide alone not."""
    return [
        name
        for name, site in sample_sites(trace)
        if data_frame(site) is not None
        and not (site["is_observed"] or site["infer"].get("was_observed"))
        and not (site["infer"].get("is_auxiliary") or site_is_subsample(site))
    ]


def observed_names(trace: Trace) -> list[str]:
    """Return the sites that observe data in the trace of a model whose sites were drawn."""
    return [name for name, site in _drawn(trace) if is_data(site)]


def observed_elsewhere(trace: Trace) -> list[str]:
    """Return, of such a trace, the sites that observe what has no row for each datum."""
    return [name for name, site in _drawn(trace) if observes(site) and not is_data(site)]


def _drawn(trace: Trace) -> Iterator[tuple[str, Any]]:
    for name, site in sample_sites(trace):
        if site["infer"].get("was_observed"):
            yield name, {**site, "is_observed": True}
