"""One published program: how it is built, what it is fed, what it is compared with."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

import pyro_vae as pv

N = 12  # rows of made-up data
EXAMPLES = "pyro-ppl/pyro/examples/"
TUTORIALS = "pyro-ppl/pyro/tutorial/source/"
ENUM, ENUM_2 = (functools.partial(TraceEnum_ELBO, max_plate_nesting=n) for n in (1, 2))


@dataclass
class Subject:
    """A program made ready to run.

    Arguments:
        model, guide: The published functions.
        data: A batch as the verbs take it: a tensor, a tuple or a dict.
        elbo: The ELBO class that the publication evaluates, made anew at each call.
        objective: The objective that it trains with, where that is another one.
        options: Keywords of ``pv.Program``.
        rows: Number of data.
        joint: Whether its data can only be taken whole (the program holds them, or fixes N).
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    data: Any
    rows: int
    elbo: Callable[[], Any] = Trace_ELBO
    objective: Callable[[], Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    joint: bool = False

    def program(self) -> pv.Program:
        """Return the pair as the verbs read it."""
        return pv.Program(self.model, self.guide, **self.options)

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The ``(args, kwargs)`` with which stock Pyro calls model and guide."""
        if isinstance(self.data, Mapping):
            return (), dict(self.data)
        if isinstance(self.data, tuple):
            return self.data, {}
        return (self.data,), {}


@dataclass(frozen=True)
class Published:
    """A row of the table.

    Arguments:
        name: Of the row.
        path: The file under the folder of the checkouts; its first part names the repository.
        build: Builds the subject from that file, with fresh weights.
        no_answer: The verbs that have no answer for this program, so that a refusal is right.
        needs: A module without which the publication does not run.
    """

    name: str
    path: str
    build: Callable[[Path], Subject]
    no_answer: tuple[str, ...] = ()
    needs: str = ""


# Verbs without an answer where the guide draws no continuous latent of one datum; where it draws
# none of a datum at all, where there is nothing to encode either, and where there is no latent.
NO_CONTINUOUS = ("infer", "gaps", "interpolate")
NO_LOCAL = (*NO_CONTINUOUS, "diagnose")
NO_CODE = (*NO_LOCAL, "encode")
NO_LATENT = (*NO_CODE, "refine")


def generator(seed: int = 0) -> torch.Generator:
    """Return a seeded generator for made-up data."""
    return torch.Generator().manual_seed(seed)


def binary(*shape: int, p: float = 0.4) -> Tensor:
    """Return zeros and ones."""
    return torch.bernoulli(torch.full(shape, p), generator=generator(1))


def counts(*shape: int, rate: float = 2.0) -> Tensor:
    """Return Poisson counts, none of whose rows is empty."""
    drawn = torch.poisson(torch.full(shape, rate), generator=generator(2))
    drawn[..., 0] += 1
    return drawn


def real(*shape: int) -> Tensor:
    """Return standard normal numbers."""
    return torch.randn(shape, generator=generator(3))


def one_hot(n: int, classes: int) -> Tensor:
    """Return n labels, each class in turn."""
    return torch.eye(classes)[torch.arange(n) % classes]
