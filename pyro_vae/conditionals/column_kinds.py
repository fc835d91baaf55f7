"""Columns of a table by kind, and how numbers of a network become their distributions.

Shapes: * leading dims, n columns of one distribution, K categories of the largest among them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.arguments import counted, number, typed
from pyro_vae.conditionals.outputs import bounded
from pyro_vae.distributions import CensoredNormal
from pyro_vae.errors import ConfigError

# The distributions of each kind; the first is the default.
KINDS = {
    "real": ("normal", "student_t"),
    "positive": ("lognormal", "gamma"),
    "count": ("negative_binomial", "poisson", "zero_inflated_negative_binomial"),
    "categorical": ("categorical",),
    "ordinal": ("ordered_logit",),
    "censored": ("censored_normal",),
}
_FLOOR = 1e-2  # least scale of a standardised cell: repeated values would have infinite density


@typed
@dataclass(frozen=True)
class Column:
    """One column of a table.

    Arguments:
        name: as in the table, text or a number; a tuple of them where columns have levels.
        kind: "real", "positive", "count", "categorical", "ordinal" or "censored".
        distribution: "normal" or "student_t"; "lognormal" or "gamma"; "negative_binomial",
            "poisson" or "zero_inflated_negative_binomial"; "" is the first of its kind.
        categories: of a categorical or ordinal column, in their order; cells hold their places.
        low, high: limits of a censored column, in the table's units; None where there is none.
        center, scale: what cells are standardised by: mean and standard deviation of the observed
            ones, of their logarithms where positive, of log(1 + x) where counts.
        dtype: how a table shows it; "" as numbers.

    Raises:
        ConfigError: an unknown kind or distribution; fewer than two categories, one twice, or one
            that is no text, finite number or truth value; low not below high, or no limit of a
            censored column; categories or limits of a column that has none.
    """

    name: str | int | tuple[Any, ...] | list[Any]
    kind: str
    distribution: str = ""
    categories: tuple[Any, ...] | list[Any] = ()
    low: float | None = None
    high: float | None = None
    center: float = 0.0
    scale: float = 1.0
    dtype: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.name, list):  # as a file has a tuple
            object.__setattr__(self, "name", tuple(self.name))
        levels = self.name if isinstance(self.name, tuple) else (self.name,)
        for level in levels:
            if not isinstance(level, str | int | float | np.generic):
                raise ConfigError(
                    f"column {self.name!r}: got a name of type {type(level).__name__}, expected "
                    "text or a number, or a tuple of them"
                )
        if self.kind not in KINDS:
            raise ConfigError(
                f"column {self.name!r}: kind {self.kind!r}; expected one of {', '.join(KINDS)}"
            )
        if not self.distribution:
            object.__setattr__(self, "distribution", KINDS[self.kind][0])
        if self.distribution not in KINDS[self.kind]:
            raise ConfigError(
                f"column {self.name!r}: distribution {self.distribution!r} of a {self.kind} "
                f"column; expected one of {', '.join(KINDS[self.kind])}"
            )
        number(f"column {self.name!r}: center", self.center, "(-inf, inf)")
        number(f"column {self.name!r}: scale", self.scale, "(0, inf)")
        for side, limit in (("low", self.low), ("high", self.high)):
            if limit is not None:
                number(f"column {self.name!r}: {side}", limit, "(-inf, inf)")
        if None not in (self.low, self.high) and self.low >= self.high:  # type: ignore[operator]
            raise ConfigError(
                f"column {self.name!r}: got low {self.low:g} and high {self.high:g}, expected low "
                "below high"
            )
        if not isinstance(self.categories, tuple | list):
            raise ConfigError(f"categories: got {self.categories!r}, expected a tuple of them")
        self._require_own()
        for category in self.categories:
            finite = not isinstance(category, float) or math.isfinite(category)
            if not isinstance(category, str | int | float) or not finite:
                raise ConfigError(
                    f"column {self.name!r}: got the category {category!r} of type "
                    f"{type(category).__name__}, which no file of a program can hold; expected "
                    f"text, finite numbers or truth values: table[{self.name!r}].astype(str)"
                )
        if len(set(self.categories)) < len(self.categories):
            raise ConfigError(
                f"column {self.name!r}: got categories {list(self.categories)}, expected each once"
            )
        if self.named and len(self.categories) < 2:
            raise ConfigError(
                f"column {self.name!r}: got {counted(len(self.categories), 'category')}, expected "
                "at least 2"
            )

    def _require_own(self) -> None:
        """Refuse limits or categories that a column of the kind has not, or lacks."""
        own = {
            "categories": (self.categories or None, self.named),
            "low": (self.low, self.kind == "censored"),
            "high": (self.high, self.kind == "censored"),
        }
        for name, (value, fits) in own.items():
            if value is not None and not fits:
                raise ConfigError(
                    f"column {self.name!r}: got {name}={value!r} of a {self.kind} column, which "
                    f"has no {name}; leave it out, or say another kind"
                )
        if self.kind == "censored" and self.low is None and self.high is None:
            raise ConfigError(
                f"column {self.name!r}: a censored column without low and high; give one of them, "
                "or take the kind 'real'"
            )

    @property
    def named(self) -> bool:
        """Whether cells are names, or ranks, and no quantities."""
        return self.kind in ("categorical", "ordinal")

    @property
    def shifted(self) -> bool:
        """Whether cells are kept standardised."""
        return self.kind in ("real", "censored")

    def standardised(self, value: float | None, infinite: float) -> float:
        """Return a limit in units of the kept cells."""
        return infinite if value is None else (value - self.center) / self.scale


class ColumnGroup(nn.Module):
    """The columns of one distribution: their parameters from a network, and features of cells.

    Arguments:
        distribution: a name in `KINDS`.
        places: of the columns in the table.
        columns: the columns.
    """

    places: Tensor
    center: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    allowed: Tensor

    def __init__(self, distribution: str, places: Sequence[int], columns: Sequence[Column]) -> None:
        super().__init__()
        self.distribution, self.count = distribution, len(columns)
        self.classes = max(len(column.categories) for column in columns)
        self.width = _WIDTHS.get(distribution, self.classes)  # numbers of the network per column
        self.named, self.logs = columns[0].named, columns[0].kind in ("positive", "count")
        self.counts = columns[0].kind == "count"
        self._hold("places", torch.tensor(places))
        self.exact = {  # a tensor of a narrower type would round them for good
            "center": [column.center for column in columns],
            "scale": [column.scale for column in columns],
            "low": [c.standardised(c.low, -math.inf) for c in columns],
            "high": [c.standardised(c.high, math.inf) for c in columns],
        }
        for name, values in self.exact.items():
            self._hold(name, torch.tensor(values))
        sizes = torch.tensor([max(1, len(column.categories)) for column in columns])
        self._hold("allowed", torch.arange(max(1, self.classes)) < sizes[:, None])
        self.ragged = len(set(sizes.tolist())) > 1  # some have fewer categories than others
        if distribution == "ordered_logit":  # widths between cut points, after a softplus
            self.steps = nn.Parameter(torch.zeros(self.count, max(1, self.classes - 2)))

    def _hold(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ColumnGroup":
        """Convert; what is rounded is rounded once, as cells are: a limit stays where they lie."""
        before = self.center.dtype
        super()._apply(fn, recurse)
        if self.center.dtype != before:
            for name, values in self.exact.items():
                self._hold(name, self.center.new_tensor(values))
        return self

    @property
    def features(self) -> int:
        """Numbers that an encoder gets of these columns."""
        return self.count * (self.classes if self.named else 1)

    def encoded(self, cells: Tensor, observed: Tensor) -> Tensor:
        """Return features (*, features) of cells (*, n); zeros where they are missing."""
        if self.named:
            places = torch.arange(self.classes, device=cells.device)
            hot = (cells.unsqueeze(-1) == places) & observed.unsqueeze(-1)
            return hot.to(cells.dtype).flatten(-2)
        if self.logs:
            known = torch.where(observed, cells, torch.ones_like(cells))
            known = known.log1p() - self.center if self.counts else known.log()
            cells = known / self.scale
        return torch.where(observed, cells, torch.zeros_like(cells))

    def forward(self, numbers: Tensor) -> Any:
        """Return the distribution of cells, batch (*, n), from a network's numbers (*, n width)."""
        each = numbers.unflatten(-1, (self.count, self.width))
        return _BUILDERS[self.distribution](self, each)

    def log_mean(self, number: Tensor) -> Tensor:
        """Return the log mean of a count or a positive number from a network's bounded number."""
        scaled = self.scale * number
        return (self.center + scaled if self.counts else scaled).clamp(max=60.0)


def _scale(number: Tensor) -> Tensor:
    return _FLOOR + bounded(number).exp()


def _normal(group: ColumnGroup, p: Tensor) -> Any:
    loc, spread = p.unbind(-1)
    return dist.Normal(loc, _scale(spread))


def _student_t(group: ColumnGroup, p: Tensor) -> Any:
    loc, spread, freedom = p.unbind(-1)
    return dist.StudentT(3 + nn.functional.softplus(freedom), loc, _scale(spread))


def _lognormal(group: ColumnGroup, p: Tensor) -> Any:
    # At most three times the spread of all cells: the mean grows with the square of the scale.
    loc, spread = p.unbind(-1)
    scale = _FLOOR + 3 * torch.sigmoid(spread - math.log(2))
    return dist.LogNormal(group.scale * loc, group.scale * scale)


def _gamma(group: ColumnGroup, p: Tensor) -> Any:
    mean, log_shape = bounded(p).unbind(-1)
    return dist.Gamma(log_shape.exp(), (log_shape - group.log_mean(mean)).exp())


def _poisson(group: ColumnGroup, p: Tensor) -> Any:
    return dist.Poisson(group.log_mean(bounded(p.squeeze(-1))).exp())


def _negative_binomial(group: ColumnGroup, p: Tensor) -> Any:
    mean, log_count = bounded(p).unbind(-1)
    return dist.NegativeBinomial(log_count.exp(), logits=group.log_mean(mean) - log_count)


def _zero_inflated(group: ColumnGroup, p: Tensor) -> Any:
    mean, log_count = bounded(p[..., :2]).unbind(-1)
    logits = group.log_mean(mean) - log_count
    return dist.ZeroInflatedNegativeBinomial(log_count.exp(), logits=logits, gate_logits=p[..., 2])


def _categorical(group: ColumnGroup, p: Tensor) -> Any:
    return dist.Categorical(logits=p.masked_fill(~group.allowed, -1e30) if group.ragged else p)


def _ordered_logit(group: ColumnGroup, p: Tensor) -> Any:
    widths = nn.functional.softplus(group.steps + 0.5)
    inner = nn.functional.pad(widths.cumsum(-1), (1, 0))[:, : group.classes - 1]
    cuts = inner - inner.mean(-1, keepdim=True)
    if group.ragged:  # a column of fewer categories has its further cuts out of reach
        cuts = torch.where(group.allowed[:, 1:], cuts, cuts + 1e30)
    # The masses of dist.OrderedLogistic, whose differences are 0 far out:
    # log(s(b) - s(a)) = log s(b) + log s(-a) + log(1 - exp(a - b)), with s the logistic function.
    gaps = -torch.expm1(-widths[:, : group.classes - 2])
    gaps = gaps.clamp(min=torch.finfo(gaps.dtype).tiny).log()  # 0 where two cut points meet
    if group.ragged:
        gaps = torch.where(group.allowed[:, 2:], gaps, torch.zeros_like(gaps))
    pad, apart = nn.functional.pad, cuts - p
    below = nn.functional.logsigmoid(apart)
    above = below - apart  # log s(-a)
    return dist.Categorical(logits=pad(below, (0, 1)) + pad(gaps, (1, 1)) + pad(above, (1, 0)))


def _censored(group: ColumnGroup, p: Tensor) -> Any:
    loc, spread = p.unbind(-1)
    return CensoredNormal(loc, _scale(spread), group.low, group.high)


_BUILDERS: dict[str, Callable[[ColumnGroup, Tensor], Any]] = {
    "normal": _normal,
    "student_t": _student_t,
    "lognormal": _lognormal,
    "gamma": _gamma,
    "poisson": _poisson,
    "negative_binomial": _negative_binomial,
    "zero_inflated_negative_binomial": _zero_inflated,
    "categorical": _categorical,
    "ordered_logit": _ordered_logit,
    "censored_normal": _censored,
}
_WIDTHS = {
    "normal": 2,
    "student_t": 3,
    "lognormal": 2,
    "gamma": 2,
    "poisson": 1,
    "negative_binomial": 2,
    "zero_inflated_negative_binomial": 3,
    "ordered_logit": 1,
    "censored_normal": 2,
}
