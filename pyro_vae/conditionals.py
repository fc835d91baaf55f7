"""Networks whose output is a distribution, p(x | z) or q(z | x).

Each class wraps a network `net`: (*, input) -> (*, outputs) and returns a distribution with batch
(*) and, as event, one datum. Where a datum of shape (D,) or (C, H, W) needs several network outputs
per dimension, they lie side by side in the first dim, (width D,) or (width C, H, W), parameter by
parameter; `width(**options)` is that number, so that a program can size a network for any of them:

    decoder = Gaussian(MLP(20, widen((784,), Gaussian.width())))
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from . import distributions
from .errors import ConfigError, DataError
from .nn import positive_int

LOG_SCALE_LIMIT = 7.0


def widen(shape: Sequence[int], width: int) -> tuple[int, ...]:
    """Return the network's output shape for data of `shape` at `width` outputs per dimension."""
    return (shape[0] * width, *shape[1:])


def bounded(log_scale: Tensor) -> Tensor:
    r"""Bound a log-scale smoothly: s itself for |s| <= 7, and never beyond ±14.

    .. math:: s \mapsto c + \frac{s - c}{1 + |s - c| / 7}, \quad c = \mathrm{clip}(s, -7, 7)

    Its slope is continuous and never zero, so that a unit driven outside can come back (under a
    clamp it could not); scales stay in (8e-7, 1.2e6), where float32 densities and KLs are finite.
    """
    inside = log_scale.clamp(-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT)
    excess = log_scale - inside
    return inside + excess / (1 + excess.abs() / LOG_SCALE_LIMIT)


class Bernoulli(nn.Module):
    r"""Independent binary dimensions, :math:`x_d \sim \mathrm{Bernoulli}(\sigma(net(z)_d))`.

    Args:
        net: network that gives the logits.
        event_dim: number of dims of one datum.
    """

    def __init__(self, net: nn.Module, *, event_dim: int = 1) -> None:
        super().__init__()
        self.net, self.event_dim = net, positive_int("event_dim", event_dim)

    @staticmethod
    def width() -> int:
        """Return the number of network outputs per data dimension."""
        return 1

    @staticmethod
    def output_bias(mean: Tensor) -> Tensor:
        """Return logits of the training mean, clipped to [0.001, 0.999] (Burda et al., 2016)."""
        return torch.logit(mean.clamp(0.001, 0.999))

    def forward(self, z: Tensor) -> TorchDistributionMixin:
        return dist.Bernoulli(logits=self.net(z)).to_event(self.event_dim)


class Gaussian(nn.Module):
    r"""A diagonal Gaussian, loc and log-scale both from the network; p(x | z) as well as q(z | x).

    .. math:: x \sim N(\mu(z), \mathrm{diag}\,\sigma^2(z)), \quad (\mu, \log \sigma) = net(z)

    The log-scale is `bounded`: exact between -7 and 7, finite for any output.

    Args:
        net: network that gives loc, then log-scale.
        event_dim: number of dims of one datum.
    """

    def __init__(self, net: nn.Module, *, event_dim: int = 1) -> None:
        super().__init__()
        self.net, self.event_dim = net, positive_int("event_dim", event_dim)

    @staticmethod
    def width() -> int:
        """Return the number of network outputs per data dimension."""
        return 2

    @staticmethod
    def output_bias(mean: Tensor) -> Tensor:
        """Return outputs with loc at the training mean and scale 1."""
        return torch.cat([mean, torch.zeros_like(mean)])

    def forward(self, z: Tensor) -> TorchDistributionMixin:
        loc, log_scale = _split(self.net(z), 2, self.event_dim)
        return dist.Normal(loc, bounded(log_scale).exp()).to_event(self.event_dim)


class IsotropicGaussian(nn.Module):
    r"""A Gaussian around the network's output with one scale for all: N(net(z), σ² I).

    Args:
        net: network that gives the loc.
        scale: σ, a standard deviation in units of the data; where it starts if it is learned.
        learn_scale: make log σ a parameter.
        event_dim: number of dims of one datum.
    """

    log_scale: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        scale: float = 1.0,
        learn_scale: bool = False,
        event_dim: int = 1,
    ) -> None:
        super().__init__()
        numeric = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not numeric or not 0 < scale < math.inf:
            raise ConfigError(f"scale={scale!r}; expected a finite standard deviation above 0")
        self.net, self.event_dim = net, positive_int("event_dim", event_dim)
        self.learn_scale = learn_scale
        log_scale = torch.tensor(math.log(scale), dtype=torch.get_default_dtype())
        if learn_scale:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    @staticmethod
    def width(scale: float = 1.0, learn_scale: bool = False) -> int:
        """Return the number of network outputs per data dimension."""
        return 1

    @staticmethod
    def output_bias(mean: Tensor, scale: float = 1.0, learn_scale: bool = False) -> Tensor:
        """Return the training mean."""
        return mean

    def forward(self, z: Tensor) -> TorchDistributionMixin:
        loc = self.net(z)
        log_scale = bounded(self.log_scale) if self.learn_scale else self.log_scale
        return dist.Normal(loc, log_scale.exp().expand_as(loc)).to_event(self.event_dim)

    def extra_repr(self) -> str:
        return f"learn_scale={self.learn_scale}"


class Categorical(nn.Module):
    r"""Independent categories 0..K-1, :math:`x_d \sim \mathrm{Cat}(\mathrm{softmax}\,net(z)_d)`.

    Args:
        net: network that gives the logits, class by class: (K D,) or (K C, H, W).
        num_classes: number K of categories.
        event_dim: number of dims of one datum.
    """

    def __init__(self, net: nn.Module, *, num_classes: int, event_dim: int = 1) -> None:
        super().__init__()
        self.net, self.event_dim = net, positive_int("event_dim", event_dim)
        self.num_classes = positive_int("num_classes", num_classes)

    @staticmethod
    def width(num_classes: int) -> int:
        """Return the number of network outputs per data dimension."""
        return positive_int("num_classes", num_classes)

    @staticmethod
    def output_bias(mean: Tensor, num_classes: int) -> Tensor:
        """Raise `ConfigError`: the mean of a class number means nothing."""
        raise ConfigError("data_mean has no meaning for categories; leave it out")

    def forward(self, z: Tensor) -> TorchDistributionMixin:
        logits = torch.stack(_split(self.net(z), self.num_classes, self.event_dim), -1)
        return dist.Categorical(logits=logits).to_event(self.event_dim)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}"


class DiscretisedLogistic(nn.Module):
    r"""Grey levels 0, 1/(L-1), ..., 1 under a logistic variable rounded to that grid.

    .. math:: x_d \sim \mathrm{DiscretisedLogistic}(\mu_d(z), s_d(z), L), \quad
        (\mu - \tfrac{1}{2}, \log s) = net(z)

    so that a network that answers 0 is centred on mid-grey. The log-scale is `bounded`.

    Args:
        net: network that gives the centres, then the log-scales.
        levels: number L of grey levels.
        event_dim: number of dims of one datum.
    """

    def __init__(self, net: nn.Module, *, levels: int = 256, event_dim: int = 1) -> None:
        super().__init__()
        self.net, self.event_dim = net, positive_int("event_dim", event_dim)
        self.levels = self._check(levels)

    @staticmethod
    def _check(levels: int) -> int:
        if positive_int("levels", levels) < 2:
            raise ConfigError(f"levels={levels!r}; expected at least 2, as 256 for bytes")
        return int(levels)

    @staticmethod
    def width(levels: int = 256) -> int:
        """Return the number of network outputs per data dimension."""
        DiscretisedLogistic._check(levels)
        return 2

    @staticmethod
    def output_bias(mean: Tensor, levels: int = 256) -> Tensor:
        """Return outputs with the centre at the training mean and scale 1."""
        return torch.cat([mean - 0.5, torch.zeros_like(mean)])

    def forward(self, z: Tensor) -> TorchDistributionMixin:
        loc, log_scale = _split(self.net(z), 2, self.event_dim)
        x = distributions.DiscretisedLogistic(loc + 0.5, bounded(log_scale).exp(), self.levels)
        return x.to_event(self.event_dim)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


class SquaredError(nn.Module):
    r"""Minus the squared error as an unnormalised log density, :math:`-\|x - net(z)\|^2`.

    Args:
        net: network that gives the prediction.
        event_dim: number of dims of one datum.
    """

    def __init__(self, net: nn.Module, *, event_dim: int = 1) -> None:
        super().__init__()
        self.net, self.event_dim = net, positive_int("event_dim", event_dim)

    @staticmethod
    def width() -> int:
        """Return the number of network outputs per data dimension."""
        return 1

    @staticmethod
    def output_bias(mean: Tensor) -> Tensor:
        """Return the training mean."""
        return mean

    def forward(self, z: Tensor) -> TorchDistributionMixin:
        return distributions.SquaredError(self.net(z)).to_event(self.event_dim)


class Point(nn.Module):
    """All mass on the network's output: a deterministic encoder, as a `Delta` of log density 0.

    Args:
        net: network that gives the point.
        event_dim: number of dims of one point.
    """

    def __init__(self, net: nn.Module, *, event_dim: int = 1) -> None:
        super().__init__()
        self.net, self.event_dim = net, positive_int("event_dim", event_dim)

    def forward(self, x: Tensor) -> TorchDistributionMixin:
        return dist.Delta(self.net(x)).to_event(self.event_dim)


Observation = Callable[..., nn.Module] | Mapping[str, Any]

OBSERVATIONS: dict[str, type[Any]] = {
    c.__name__: c
    for c in (
        Bernoulli,
        Gaussian,
        IsotropicGaussian,
        Categorical,
        DiscretisedLogistic,
        SquaredError,
    )
}


def observation(spec: Observation) -> tuple[type[Any], dict[str, Any]]:
    """Return (class, options) of an observation of this module.

    Args:
        spec: a class, a `functools.partial` of one with keywords, or {"name": ..., "options": ...},
            the form in which a program's `config` keeps it.

    Raises:
        ConfigError: for anything else; nothing is imported or called by name.
    """
    options: dict[str, Any] = {}
    name: Any = spec
    if isinstance(spec, Mapping) and set(spec) <= {"name", "options"}:
        name, options = spec.get("name"), dict(spec.get("options", {}))
    elif isinstance(spec, functools.partial) and not spec.args:
        name, options = _name(spec.func), dict(spec.keywords)
    elif isinstance(spec, type):
        name = _name(spec)
    if not isinstance(name, str) or name not in OBSERVATIONS or isinstance(spec, str):
        raise ConfigError(
            f"observation={spec!r}; expected a class of pyro_vae.conditionals "
            f"({', '.join(OBSERVATIONS)}) or functools.partial(class, option=value); "
            "for a conditional of your own pass decoder=..."
        )
    for option, value in options.items():
        if not isinstance(value, bool | int | float | str):
            raise ConfigError(f"observation option {option}={value!r}; expected a plain number")
    chosen = OBSERVATIONS[name]
    try:
        chosen.width(**options)
    except TypeError as error:
        raise ConfigError(f"observation {name} with options {options}: {error}") from error
    return chosen, options


def observation_config(spec: Observation) -> dict[str, Any]:
    """Return an observation as {"name", "options"}, which JSON can hold and `observation` reads."""
    chosen, options = observation(spec)
    return {"name": chosen.__name__, "options": options}


def _name(chosen: Any) -> str | None:
    """Return the name of a class in OBSERVATIONS itself, not of another class called the same."""
    name = getattr(chosen, "__name__", None)
    return name if isinstance(name, str) and OBSERVATIONS.get(name) is chosen else None


def _split(outputs: Tensor, parts: int, event_dim: int) -> tuple[Tensor, ...]:
    """Split (*, parts D) or (*, parts C, H, W) into `parts` tensors along the first event dim."""
    if outputs.dim() < event_dim or outputs.shape[-event_dim] % parts:
        raise DataError(
            f"network output has shape {tuple(outputs.shape)}; expected dim {-event_dim} to hold "
            f"{parts} numbers per data dimension: size the network with width() and widen()"
        )
    return outputs.chunk(parts, -event_dim)
