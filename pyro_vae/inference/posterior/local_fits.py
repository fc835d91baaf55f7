"""Variational inference datum by datum: a Gaussian each, climbed without a network.

Shapes: K particles, B data of a pass, N data in all, Z unconstrained coordinates.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pyro_vae.arguments import number, positive, typed
from pyro_vae.callers import of_user
from pyro_vae.errors import ConfigError, DataError, ProgramError
from pyro_vae.inference.graphs.density_graphs import DensityGraphs
from pyro_vae.inference.posterior.gaussians import (
    Gaussians,
    concatenate,
    guide_moments,
    prior_moments,
)
from pyro_vae.inference.sampling.hmc import LogDensity, log_prob_and_grad
from pyro_vae.program import bounds
from pyro_vae.program.batches.batch import Batch, map_rows
from pyro_vae.program.bounds import scoring
from pyro_vae.program.densities.log_joint import LogJoint
from pyro_vae.program.program import Program
from pyro_vae.progress import progress_bar

_ROWS_PER_PASS = 4096  # particles times data: bounds the memory
_WINDOW = 50  # steps between two looks at a datum's progress
_DECAY = 0.3  # of a datum's learning rate, when it stands still
_LEVELS = 5  # learning rates until a datum is done: 0.3⁴ of the first is the last
_FLAT = 0.1  # nats per unit: on flatter ground steps shrink with the slope, and come to rest
_SEMI_STEPS = 20  # Kim et al. (2018), Section 5
_NAMED = 10  # rows in a warning
Start = Literal["guide", "prior"]


@typed
@dataclass(frozen=True)
class Local:
    r"""Settings of local variational inference: q_n is a Gaussian in unconstrained coordinates.

    .. math:: \max_{\mu_n, L_n} \; \mathbb{E}_{N(u; \mu_n, L_n L_n^\top)}
       [\log p(x_n, z(u)) + \log |dz/du| - \log q_n(u)]

    Arguments:
        num_steps: Steps of Adam, at most.
        num_particles: K, draws per datum and step.
        lr: First learning rate, in standard deviations of the datum's Gaussian.
        full_covariance: Let L be a whole lower triangle; else it is diagonal.
        start: ``"guide"``: the guide's moments (semi-amortised); ``"prior"``: the prior's.
        patience: A datum's learning rate falls when its bound has not risen for so many windows of
            50 steps, and at the fifth time the datum is done. None, or fewer steps than that takes
            to happen once: exactly ``num_steps`` steps at a rate that falls linearly to zero.
        stick: Leave out the score of q, whose mean is zero, so that the noise of the gradient
            vanishes where q is exact (sticking the landing); False takes the entropy's gradient in
            closed form.

    Raises:
        ConfigError: A count below one, a learning rate that is not positive, an unknown start.

    References:
        | Semi-Amortized Variational Autoencoders (Kim et al., 2018), arXiv:1802.02550
        | Sticking the Landing (Roeder et al., 2017), arXiv:1703.09194
    """

    num_steps: int = 3000
    num_particles: int = 16
    lr: float = 0.1
    full_covariance: bool = False
    start: Start = "guide"
    patience: int | None = 2
    stick: bool = True

    @property
    def judged(self) -> bool:
        """Whether the run is long enough for rates to fall where a bound stands still."""
        return self.patience is not None and self.num_steps > _WINDOW * (1 + self.patience)

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_particles"):
            positive(name, getattr(self, name))
        if self.patience is not None:
            positive("patience", self.patience)
        number("lr", self.lr, "(0, inf)")
        if self.start not in ("guide", "prior"):
            raise ConfigError(f"start: got {self.start!r}, expected 'guide' or 'prior'")


def semi(num_steps: int = _SEMI_STEPS, *, full_covariance: bool = False) -> Local:
    """Return the settings of semi-amortised inference: a few steps from the guide."""
    return Local(num_steps=num_steps, full_covariance=full_covariance, patience=None)


def fit_local(
    program: Program, batch: Batch, settings: Local, *, progress: bool = False
) -> "Fitted":
    """Fit the Gaussians of all data, piece by piece.

    Arguments:
        program: With continuous local latents; checked against the batch.
        batch: One row per datum, ``(N, ...)``.
        settings: How to climb.
        progress: Show a progress bar.
    """
    rows, draws = max(1, _ROWS_PER_PASS // settings.num_particles), settings.num_particles
    pieces = bounds.passes(program, batch, rows, particles=draws)
    fitted, steps, reached = [], [], []
    held: Mapping[str, Tensor] | None = program.held[0] if program.held else None
    first: dict[str, int] | None = None
    graphs = DensityGraphs("trace" if settings.num_steps > _WINDOW else False)  # it must pay first
    with scoring(program):
        for piece in progress_bar(pieces, shown=progress, verb="local", unit="batch"):
            climb = _Climb(program, piece, settings, graphs, held)
            held = climb.density.globals_  # one draw of the globals for all data
            layout = {slot.name: slot.base.numel() for slot in climb.density.slots}
            _require_one_layout(first := first or layout, layout)
            with progress_bar(
                total=settings.num_steps, shown=progress, verb="local", unit="step"
            ) as bar:
                climb.run(bar.update)
            fitted.append(climb.best)
            steps.append(climb.steps)
            reached.append(climb.bound)
    _report(torch.cat(reached))
    return Fitted(concatenate(fitted), torch.cat(steps), held or {})


def _require_one_layout(first: Mapping[str, int], layout: Mapping[str, int]) -> None:
    """Refuse data whose latents differ: one table has the same coordinates for all rows.

    Raises:
        ProgramError: Names the sites that some data lack.
    """
    if first != layout:
        names = sorted(set(first.items()) ^ set(layout.items()))
        raise ProgramError(
            f"local: got latents {sorted({name for name, _ in names})} of other sizes, or absent, "
            "in some data (sequences of other lengths), expected the same for all; infer data of "
            "one structure at a time, or give the steps an event dimension with a mask"
        )


def _report(bound: Tensor) -> None:
    """Name the data that were not fitted, in one warning."""
    rows = (~bound.isfinite()).nonzero()[:, 0].tolist()
    if rows:
        named = ", ".join(map(str, rows[:_NAMED])) + (", ..." if len(rows) > _NAMED else "")
        warnings.warn(
            f"local: the bound of {len(rows)} of {len(bound)} data is not finite, and their "
            f"posteriors mean nothing: rows {named}; look at these data, and at log p(x, z) there",
            UserWarning,
            stacklevel=of_user(),
        )


class Fitted(NamedTuple):
    """A table of Gaussians ``(N | Z)``, the steps of each datum ``(N,)``, and the globals."""

    gaussians: Gaussians
    steps: Tensor
    globals_: Mapping[str, Tensor]


class _Climb:
    """Adam on the Gaussians of one batch; each datum has its own learning rate, and its own end."""

    def __init__(
        self,
        program: Program,
        batch: Batch,
        settings: Local,
        graphs: DensityGraphs,
        held: Mapping[str, Tensor] | None,
    ) -> None:
        self.program, self.batch, self.settings, self.graphs = program, batch, settings, graphs
        self.density = LogJoint(program, batch, held)
        self.density.require_line("local")
        moments = guide_moments if settings.start == "guide" else prior_moments
        self.kept = _first(self.density.kept())
        start = moments(self.density, settings.full_covariance).masked(self.kept)
        self.q = self.best = start
        like = self.q.loc[..., 0]
        self.rows = torch.arange(len(like), device=like.device)  # those that are still climbing
        self.steps = torch.zeros_like(self.rows)
        self.bound = torch.zeros_like(like)  # of each datum's last window
        self.moments = [
            (torch.zeros_like(part), torch.zeros_like(part)) for part in self.q if part is not None
        ]
        self.taken = 0
        self.rate = torch.full_like(like, settings.lr)
        self.peak = torch.full_like(like, -math.inf)
        self.idle = torch.zeros_like(like)
        self.level = torch.zeros_like(like)

    def run(self, tell: Callable[[int], Any]) -> None:
        """Climb to the top, or to the last step; ``tell`` is told of steps taken."""
        for length in self._windows():
            average, bound, error = self._window(length)
            tell(length)
            self._keep(average, bound)
            if not self.settings.judged:
                continue
            done = self._judge(bound, error)
            if bool(done.all()):
                return
            if 2 * int(done.sum()) >= len(done):
                self._narrow(~done)

    def _windows(self) -> Iterator[int]:
        total = self.settings.num_steps
        if not self.settings.judged:  # the answer is the mean over the last quarter
            yield from (n for n in (total - max(1, total // 4), max(1, total // 4)) if n)
            return
        for start in range(0, total, _WINDOW):
            yield min(_WINDOW, total - start)

    def _window(self, length: int) -> tuple[Gaussians, Tensor, Tensor]:
        """Take some steps; return the mean of the Gaussians, of the bound, and its error."""
        unit = self.q.log_diagonal.exp()  # a step's length is told in standard deviations
        density = self._traced()
        totals = [torch.zeros_like(part) for part in self.q if part is not None]
        first = second = torch.zeros_like(self.rate)
        for _ in range(length):
            weight = self._step(density, unit)
            first, second = first + weight, second + weight.square()
            for total, part in zip(totals, self.q, strict=False):
                if part is not None:
                    total += part
        mean = first / length
        variance = (second / length - mean.square()).clamp(min=0)
        average = Gaussians(*(total / length for total in totals))
        return average, mean, (variance / length).sqrt()

    def _traced(self) -> LogDensity:
        """Return the log joint as a graph; where there is none, it runs eagerly without a word."""
        start = self.q.loc.expand(self.settings.num_particles, *self.q.loc.shape)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "compile: the log joint cannot be traced")
            return self.graphs.density(self.density, self.batch, start)

    def _step(self, density: LogDensity, unit: Tensor) -> Tensor:
        """Move the Gaussians once; return the bound per datum before it."""
        q = self.q
        noise = q.standard_noise(self.settings.num_particles)
        log_joint, slope = log_prob_and_grad(density, q.place(noise))
        grads = self._gradients(slope, noise, unit)
        self.taken += 1
        moves = [self._adam(*pair) for pair in zip(grads, self.moments, strict=True)]
        rate = self.rate
        if not self.settings.judged:
            rate = rate * (1 - (self.taken - 1) / self.settings.num_steps)
        # A datum without a finite slope stands still, and moves no other.
        sound = torch.stack([g.flatten(1).isfinite().all(1) for g in grads]).all(0)
        rate = torch.where(sound, rate, torch.zeros_like(rate))[:, None]
        below = q.below
        if below is not None:
            below = below + (rate * unit)[..., None] * moves[2].nan_to_num()
        # What a mask takes out stays at N(0, 1).
        self.q = Gaussians(
            q.loc + rate * unit * moves[0].nan_to_num(),
            q.log_diagonal + rate * moves[1].nan_to_num(),
            below,
        ).masked(self.kept)
        return (log_joint - q.log_prob(noise)).mean(0)

    def _gradients(self, slope: Tensor, noise: Tensor, unit: Tensor) -> list[Tensor]:
        """Return the bound's gradient in loc, log diagonal and what is below, in nats per unit."""
        if self.settings.stick:
            slope = slope + self.q.minus_score(noise)
        in_log = (slope * noise).mean(0) * self.q.log_diagonal.exp()
        if not self.settings.stick:
            in_log = in_log + 1.0  # the entropy's part
        grads = [slope.mean(0) * unit, in_log]
        if self.q.below is not None:
            outer = torch.einsum("kbi,kbj->bij", slope, noise) / len(noise)
            grads.append(outer.tril(-1) * unit[..., None])
        return grads

    def _adam(self, grad: Tensor, moments: tuple[Tensor, Tensor]) -> Tensor:
        """Return Adam's direction, entry by entry (Kingma and Ba, 2015)."""
        mean, square = moments
        grad = grad.nan_to_num(0.0, 0.0, 0.0)
        mean.mul_(0.9).add_(grad, alpha=0.1)
        square.mul_(0.99).addcmul_(grad, grad, value=0.01)
        corrected = (square / (1 - 0.99**self.taken)).sqrt()
        return mean / (1 - 0.9**self.taken) / (corrected + _FLAT)

    def _keep(self, average: Gaussians, bound: Tensor) -> None:
        """Write down where the climbing data stand."""
        if len(self.rows) == len(self.steps):
            self.best = average
        else:
            for whole, part in zip(self.best, average, strict=True):
                if whole is not None and part is not None:
                    whole[self.rows] = part
        self.steps[self.rows] = self.taken
        self.bound[self.rows] = bound

    def _judge(self, bound: Tensor, error: Tensor) -> Tensor:
        """Lower the rate of the data that stand still; return which are done."""
        rises = bound > self.peak + error
        self.peak = torch.where(rises, bound, self.peak)
        self.idle = torch.where(rises, torch.zeros_like(self.idle), self.idle + 1)
        assert self.settings.patience is not None  # judged() says so
        falls = self.idle >= self.settings.patience
        self.idle = torch.where(falls, torch.zeros_like(self.idle), self.idle)
        self.level = self.level + falls.to(self.level.dtype)
        self.rate = torch.where(falls, self.rate * _DECAY, self.rate)
        return self.level >= _LEVELS

    def _narrow(self, keep: Tensor) -> None:
        """Go on with some of the data alone."""
        rows = keep.nonzero()[:, 0]
        try:
            batch = map_rows(lambda leaf: leaf[rows], self.batch)
            self.density = LogJoint(self.program, batch, self.density.globals_)
        except DataError:
            return  # a guide with a factor per datum takes no part of its data
        self.kept = _first(self.density.kept())
        self.batch, self.rows, self.q = batch, self.rows[rows], self.q.at(rows)
        self.moments = [(mean[rows], square[rows]) for mean, square in self.moments]
        for name in ("rate", "peak", "idle", "level"):
            setattr(self, name, getattr(self, name)[rows])


def _first(kept: Tensor | None) -> Tensor | None:
    """Return which coordinates count, of one draw: all draws have the same masks."""
    return None if kept is None else kept[0]
