"""Programs and data of which several calls are made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae import models

# What a wrong call is, and the words of its error.
Calls = dict[str, tuple[Callable[[], Any], str]]

X = torch.ones(10, 6)


def vae(**options: Any) -> Any:
    return models.VAE(6, 2, (4,), **options)


def spoiled(value: float) -> Tensor:
    x = torch.zeros(10, 6)
    x[7, 2] = value
    return x


def normal(site: str, x: Tensor, size: int = 2, **options: Any) -> Tensor:
    return pyro.sample(site, dist.Normal(x.new_zeros(size), 1.0).to_event(1), **options)


def pair(
    model_sites: tuple[str, ...] = ("z",), guide_sites: tuple[str, ...] = ("z",), **options: Any
):
    """Return a program whose sides draw these sites, with one more thing wrong by an option."""
    event, observed, inside = (
        options.get(k, v) for k, v in (("event", 2), ("observed", True), ("inside", True))
    )

    def model(x: Tensor) -> None:
        for site in model_sites if not inside else ():
            normal(site, x)
        with pyro.plate("data", len(x)):
            for site in model_sites if inside else ():
                normal(site, x)
            if observed:
                normal("x", x, 6, obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for site in guide_sites:
                normal(site, x, event)

    return pv.Program(model, guide)


def nothing(x: Tensor, *others: Any, **more: Any) -> None:
    pass


def written(name: str) -> str:
    Path(name).write_text("mine")
    return name


def linked(name: str, to: str = "disk_that_is_not_there") -> Path:
    Path(name).symlink_to(to)
    return Path(name)


def fit(data: Any = X, **options: Any) -> Any:
    return pv.fit(vae(), data, **{"epochs": 1, "compile": False, **options})
