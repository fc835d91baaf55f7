"""Values and means of sites, the datum first, joined over passes."""

import warnings
from collections.abc import Collection
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions.transforms import identity_transform

from pyro_vae.callers import of_user
from pyro_vae.program.checks import is_discrete
from pyro_vae.program.densities.joining import Values, join_sites, single
from pyro_vae.program.handlers import DrawnData, data_frame, innermost, sample_sites
from pyro_vae.program.passes import Pass
from pyro_vae.program.sites.plates import of_datum
from pyro_vae.program.sites.roles import observed_elsewhere


class AtMeans(Messenger):
    """Put the mean in the place of a draw, at the sites of a datum whose distribution has one.

    No random number is used there.

    Arguments:
        only: The sites, at the mode where values are names; None takes all that are not discrete:
            no network has seen what lies between two values of those.
    """

    def __init__(self, only: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.only = only

    def _pyro_sample(self, msg: Any) -> None:
        drawn = not msg["is_observed"] and msg["value"] is None and data_frame(msg) is not None
        if not drawn or site_is_subsample(msg):
            return
        if self.only is None and not is_discrete(msg["fn"]):
            msg["value"] = known_mean(msg["fn"])  # None: it is drawn
        elif self.only is not None and msg["name"] in self.only:
            msg["value"] = _known_centre(msg["fn"])


def known_mean(fn: Any) -> Tensor | None:
    """Return the mean of a distribution in the shape of a draw; None where there is none.

    Of sentences, which have none, what is decoded greedily stands for it.
    """
    if hasattr(fn, "greedy"):
        return fn.greedy()
    # Pyro's messengers transform also what may lie anywhere, by nothing.
    transformed = isinstance(fn, torch.distributions.TransformedDistribution)
    if transformed and all(each == identity_transform for each in fn.transforms):
        return known_mean(fn.base_dist)
    try:
        mean = fn.mean
    except (NotImplementedError, AttributeError):
        return None
    # A categorical distribution answers NaN: class numbers have no mean.
    known = mean.shape == fn.batch_shape + fn.event_shape
    return mean if known and (mean.is_meta or not bool(torch.isnan(mean).all())) else None


def known_mode(fn: Any) -> Tensor | None:
    """Return the most probable value of a distribution of names or ranks; None of any other."""
    inner = innermost(getattr(fn, "datum", fn))
    if not isinstance(inner, torch.distributions.Categorical):
        return None
    return inner.mode if inner.mode.shape == fn.batch_shape + fn.event_shape else None


def mean_or_value(site: Any) -> Tensor:
    """Return the mean of a site's distribution, or the mode; its value where none is known."""
    centre = _known_centre(site["fn"])
    return site["value"] if centre is None else centre


def _known_centre(fn: Any) -> Tensor | None:
    mean = known_mean(fn)
    return known_mode(fn) if mean is None else mean


def values_of(trace: Trace, names: list[str], rows: int, *, mean: bool) -> dict[str, Tensor]:
    """Return values or means of some sites of a trace, ``(B, *plates, *event)`` each."""
    drawn = dict(sample_sites(trace))
    return {
        name: of_datum(
            drawn[name], mean_or_value(drawn[name]) if mean else drawn[name]["value"], rows
        )[0].detach()  # a parameter may be the mean itself
        for name in names
    }


def tell_of_others(piece: Pass, trace: Trace) -> None:
    """Warn of observed sites of which no datum has a value of its own, so that none is returned."""
    others = observed_elsewhere(trace) if not piece.rows.start else []
    if others:
        warnings.warn(
            f"site {others[0]!r} is observed outside the plate of the data, whose rows are what "
            "is returned, so that its values are left out; as one datum, pv.Program(model, guide, "
            "whole=True), all of them are returned",
            stacklevel=of_user(),
        )


def freed(piece: Pass, model: Any, *, mean: bool, but: Collection[str] = ()) -> Any:
    """Return a model that draws its observed sites but some, or takes the mean of a lone one."""
    free = DrawnData(but)(model)
    # Where there are several, another site may depend on the draw.
    return AtMeans(piece.sites.observed)(free) if mean and len(piece.sites.observed) == 1 else free


def join(verb: str, pieces: list[dict[str, Tensor]]) -> Values:
    """Return what several passes say of their data as one tensor, or by site where several.

    A site that some passes do not have (a step beyond the end of their sequences) is NaN there.

    Raises:
        ProgramError: Passes differ in a site whose values cannot be NaN, or in its shape.
    """
    return single(join_sites(verb, pieces))
