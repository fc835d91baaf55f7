"""A program of the shape that publications have, and the model that most of them are.

Most are one model in other clothes, so that log p(x) is known: z ~ N(0, 1) and x_d ~ N(a_d z, 1)
per datum, which makes x Gaussian with covariance I + a a'. The guide is wider than the posterior,
so that a bound lies below the likelihood.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor
from torch.distributions import constraints
from torch.nn.utils.rnn import PackedSequence

N = 6
A = torch.tensor([1.0, -0.5])
ENUM = functools.partial(TraceEnum_ELBO, max_plate_nesting=1)
ENUM_2 = functools.partial(TraceEnum_ELBO, max_plate_nesting=2)


@dataclass
class Pair:
    """A program, its data and what is known of it.

    Arguments:
        model, guide: The functions.
        data: A batch of ``rows`` data.
        rows: Their number.
        elbo: The class of Pyro's that scores it.
        log_prob: log p(x) per datum, ``(rows,)``; None where it is not known.
        weighted: The ELBO carries weights or factors, which a likelihood leaves out.
        options: Keywords of ``pv.Program``.
        code: The continuous local latent, if there is one.
        whole: The program takes its rows all at once.
        hidden: It has weights that no statement of Pyro's names.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    data: Any
    rows: int = N
    elbo: Callable[[], Any] = Trace_ELBO
    log_prob: Tensor | None = None
    weighted: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    code: str | None = "z"
    whole: bool = False
    hidden: bool = False

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The ``(args, kwargs)`` of stock Pyro."""
        if isinstance(self.data, Mapping):
            return (), dict(self.data)
        if isinstance(self.data, tuple) and not isinstance(self.data, PackedSequence):
            return self.data, {}
        return (self.data,), {}


def rows_of_two(n: int = N) -> Tensor:
    """Return n data of two numbers, no two alike."""
    return torch.stack([torch.linspace(-1.5, 2.0, n), torch.linspace(1.0, -0.3, n).square()], -1)


def marginal(x: Tensor) -> Tensor:
    """Return log p(x) of the one model, ``(n,)``."""
    return dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + A[:, None] * A).log_prob(x)


def wide(x: Tensor) -> dist.Normal:
    """Return the guide: the posterior's mean, 1.3 times its scale."""
    stretch = pyro.param("stretch", torch.tensor(1.3), constraint=constraints.positive)
    precision = 1 + A.square().sum()
    return dist.Normal(x @ A / precision, stretch * precision.rsqrt())


def plain(x: Tensor) -> None:
    """The one model."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z[..., None] * A, 1.0).to_event(1), obs=x)
