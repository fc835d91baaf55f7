"""What stock Pyro answers for a subject: the numbers that the verbs are held against."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn

from benchmarks.gallery.subject import Subject

Z = 5.0  # false alarms below 1e-6 per comparison


class Disagreement(Exception):
    """A verb's number is not stock Pyro's."""


@contextmanager
def own_store() -> Iterator[Any]:
    """Run inside with an empty parameter store, and put the old one back."""
    with pyro.get_param_store().scope() as state:
        yield state


def losses(subject: Subject, elbo: Callable[[], Any], repeats: int) -> list[float]:
    """Return ``-elbo/N`` of some evaluations, networks in eval mode, parameters as they stand."""
    args, kwargs = subject.arguments
    loss = elbo()
    with torch.no_grad():
        return [
            float(loss.loss(subject.model, subject.guide, *args, **kwargs)) / subject.rows
            for _ in range(repeats)
        ]


def gradients_move(subject: Subject, objective: Callable[[], Any]) -> set[str]:
    """Return the names of the parameters that one stock SVI step moves."""
    args, kwargs = subject.arguments
    svi = SVI(subject.model, subject.guide, pyro.optim.Adam({"lr": 1e-3}), objective())
    svi.loss(subject.model, subject.guide, *args, **kwargs)
    store = pyro.get_param_store()
    before = {name: value.detach().clone() for name, value in store.items()}
    svi.step(*args, **kwargs)
    return {name for name, value in before.items() if not torch.equal(value, store[name])}


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
    model = poutine.uncondition(subject.model) if unconditioned else subject.model
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
        and type(site["fn"]).__name__ not in ("Unit", "_Subsample", "Delta")
    ]


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
        try:
            return {name: site["fn"].mean}
        except (NotImplementedError, AttributeError):
            return {}
    return {}


def evaluating(subject: Subject) -> None:
    """Put every network that the functions carry into eval mode, as the verbs do."""
    for function in (subject.model, subject.guide):
        owner = getattr(function, "__self__", function)
        for value in (owner, *_globals(function)):
            if isinstance(value, nn.Module):
                value.eval()


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
