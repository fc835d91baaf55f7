"""Which role a site has in one trace: the sites of one batch need not be those of another."""

from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample

from pyro_vae.program.handlers import data_frame, is_data, sample_sites


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
    return [
        name
        for name, site in sample_sites(trace)
        if site["infer"].get("was_observed") and is_data({**site, "is_observed": True})
    ]
