"""Guides that Pyro makes, or that hold a parameter for each row, and globals alone."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoNormal,
    AutoNormalizingFlow,
    init_to_value,
)
from torch import Tensor
from torch.distributions import constraints

from programs_published.pair import A, N, Pair, marginal, plain, rows_of_two


def auto_normal() -> Pair:
    """A factor per datum, made by Pyro."""
    x = rows_of_two()
    guide = AutoNormal(
        plain, init_loc_fn=init_to_value(values={"z": torch.zeros(N)}), init_scale=0.9
    )
    return Pair(plain, guide, x, log_prob=marginal(x), whole=True)


def auto_plates() -> Pair:
    """A factor per datum whose plate the user makes."""

    def plates(x: Tensor) -> Any:
        return pyro.plate("data", len(x))

    x = rows_of_two()
    guide = AutoNormal(
        plain,
        init_loc_fn=init_to_value(values={"z": torch.zeros(N)}),
        init_scale=0.9,
        create_plates=plates,
    )
    return Pair(plain, guide, x, log_prob=marginal(x), whole=True)


def params_of_rows() -> Pair:
    """``pyro.param`` statements with a row per datum."""

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", lambda: x @ A / 2)
        scale = pyro.param("scale", lambda: torch.full((len(x),), 0.9), constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale))

    x = rows_of_two()
    return Pair(plain, guide, x, log_prob=marginal(x), whole=True)


class _Easy(EasyGuide):
    def guide(self, x: Tensor) -> None:
        group = self.group(match="z")
        with self.plate("data", len(x)):
            loc = pyro.param("loc", lambda: (x @ A / 2)[:, None])
            group.sample("zs", dist.Normal(loc, 0.9).to_event(1))


def easy_guide() -> Pair:
    """An ``EasyGuide`` over local latents: one auxiliary site, unpacked into those of the model."""
    x = rows_of_two()
    return Pair(plain, _Easy(plain), x, log_prob=marginal(x), whole=True)


def regression() -> Pair:
    """Globals alone, mean field made by Pyro; two arguments, one observed under another name."""

    def model(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal((x * slope).sum(-1), 0.5), obs=y)

    x = rows_of_two()
    return Pair(model, AutoDiagonalNormal(model), (x, x.sum(-1)), code=None)


def maximum_likelihood() -> Pair:
    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.3), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Bernoulli(p), obs=x)

    def guide(x: Tensor) -> None:
        pass

    x = (torch.arange(N) % 3 == 0).float()
    return Pair(model, guide, x, log_prob=dist.Bernoulli(0.3).log_prob(x), code=None)


def maximum_a_posteriori() -> Pair:
    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(3.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Bernoulli(p), obs=x)

    def guide(x: Tensor) -> None:
        p = pyro.param("p_map", torch.tensor(0.3), constraint=constraints.unit_interval)
        pyro.sample("p", dist.Delta(p))

    x = (torch.arange(N) % 3 == 0).float()
    return Pair(model, guide, x, log_prob=dist.Bernoulli(0.3).log_prob(x), code=None)


def auto_delta() -> Pair:
    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(3.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Bernoulli(p), obs=x)

    x = (torch.arange(N) % 3 == 0).float()
    return Pair(model, AutoDelta(model), x, code=None)


def joint_density() -> Pair:
    """A regression without a plate: all targets are one event."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        loc = x[:, 0] * w
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x[:, 1])

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.5))

    return Pair(model, guide, rows_of_two(), rows=1, code=None, whole=True)


def flow_guide() -> Pair:
    """A global under a normalising flow of Pyro's."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0).to_event(1), obs=x)

    guide = AutoNormalizingFlow(model, lambda n: dist.transforms.planar(n))
    return Pair(model, guide, rows_of_two(), code=None)


PAIRS: dict[str, Callable[[], Pair]] = {
    "auto_normal": auto_normal,
    "auto_plates": auto_plates,
    "params_of_rows": params_of_rows,
    "easy_guide": easy_guide,
    "regression": regression,
    "maximum_likelihood": maximum_likelihood,
    "maximum_a_posteriori": maximum_a_posteriori,
    "auto_delta": auto_delta,
    "joint_density": joint_density,
    "flow_guide": flow_guide,
}
