"""What stock Pyro answers for a subject: the numbers that the verbs are held against."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor, nn

from benchmarks.gallery.subject import Subject

Z = 5.0  # false alarms below 1e-6 per comparison


class Disagreement(Exception):
    """A verb's number is not stock Pyro's."""


class Unweighted(Messenger):
    """Take the weights of the publication off: what is left are densities."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0


class Drawn(UnconditionMessenger):
    """Draw what is observed; ``pyro.deterministic`` is no draw, and stands as it is computed."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic"):
            super()._pyro_sample(msg)


def losses(
    subject: Subject, elbo: Callable[[], Any], repeats: int, *, weighted: bool = True
) -> list[float]:
    """Return ``-elbo/N`` of some evaluations, networks in eval mode, parameters as they stand.

    Arguments:
        subject: The publication.
        elbo: Makes the bound.
        repeats: Evaluations.
        weighted: Whether weights and the guide's factors count, which are no part of a density.
    """
    args, kwargs = subject.arguments
    loss, model, guide = elbo(), subject.model, subject.guide
    if not weighted:
        model = Unweighted()(model)
        guide = poutine.block(Unweighted()(guide), hide_fn=lambda site: site["is_observed"])
    with torch.no_grad():
        return [
            float(loss.loss(model, guide, *args, **kwargs)) / subject.rows for _ in range(repeats)
        ]


def agree(what: str, ours: list[float], theirs: list[float]) -> None:
    """Require that two samples have one mean: paired where they are equal, else |z| < 5.

    Raises:
        Disagreement: Names both means and z.
    """
    m, n = statistics.fmean(ours), statistics.fmean(theirs)
    close = 1e-4 * max(1.0, abs(n))
    variance = sum(
        statistics.variance(sample) / len(sample) if len(sample) > 1 else 0.0
        for sample in (ours, theirs)
    )
    z = abs(m - n) / (variance + 1e-12) ** 0.5
    if not (abs(m - n) <= close or z < Z):
        raise Disagreement(f"{what}: got {m:.5g}, stock Pyro {n:.5g} (z = {z:.1f})")


def observed_values(subject: Subject, *, unconditioned: bool) -> dict[str, Tensor]:
    """Return the values of the observed sites, as data or drawn from the model."""
    args, kwargs = subject.arguments
    model = Drawn()(subject.model) if unconditioned else subject.model
    seen = _observed_names(subject)
    with torch.no_grad():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    return {name: trace.nodes[name]["value"] for name in seen if name in trace.nodes}


def _observed_names(subject: Subject) -> list[str]:
    args, kwargs = subject.arguments
    with torch.no_grad():
        trace = poutine.trace(subject.model).get_trace(*args, **kwargs)
    return [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and site["is_observed"]
        and not (site["infer"].get("_deterministic") or _emptied(site["fn"]))
        and type(site["fn"]).__name__ not in ("Unit", "_Subsample", "Delta")
    ]


def _emptied(fn: Any) -> bool:
    """Return whether a reparametrisation has left a value alone."""
    return type(fn).__name__ == "MaskedDistribution" and fn._mask is False


def guide_means(subject: Subject) -> dict[str, Tensor]:
    """Return the means of the guide's latents whose parameters depend on no draw before them.

    The first latent only: those behind it may depend on its draw.
    """
    args, kwargs = subject.arguments
    with torch.no_grad():
        trace = poutine.trace(subject.guide).get_trace(*args, **kwargs)
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"]:
            continue
        if type(site["fn"]).__name__ == "_Subsample":
            continue
        if site["infer"].get("is_auxiliary"):  # the latent is computed from it
            return {}
        try:
            mean = site["fn"].mean
        except (NotImplementedError, AttributeError):
            return {}
        return {name: mean} if bool(torch.isfinite(mean).all()) else {}
    return {}


def evaluating(subject: Subject) -> None:
    """Put every network that the functions carry into eval mode, as the verbs do."""
    for network in networks(subject):
        network.eval()


def networks(subject: Subject) -> list[nn.Module]:
    """Return the networks that the functions carry."""
    held = [
        value
        for function in (subject.model, subject.guide)
        for value in (getattr(function, "__self__", function), *_globals(function))
    ]
    return [value for value in held if isinstance(value, nn.Module)]


def _globals(function: Any) -> list[Any]:
    inner = getattr(function, "func", getattr(function, "__wrapped__", function))
    held = list(getattr(inner, "args", ())) + list(getattr(function, "args", ()))
    code = getattr(inner, "__globals__", {})
    return held + [value for value in code.values() if isinstance(value, nn.Module)]


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors in what a verb returned."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in tensors(item)]
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in tensors(item)]
    if hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        return [leaf for item in vars(value).values() for leaf in tensors(item)]
    return []
