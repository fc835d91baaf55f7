"""Log-likelihood by annealed importance sampling, and the sandwich that says how tight it is."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from pyro_vae.arguments import number, positive, typed
from pyro_vae.errors import ConfigError
from pyro_vae.evaluation.generation import Simulated, inputs, simulate, simulated_data
from pyro_vae.evaluation.likelihood import LogLikelihood
from pyro_vae.inference.graphs.density_graphs import DensityGraphs
from pyro_vae.inference.sampling.ais import (
    AISResult,
    Mixture,
    annealed_importance,
    mixture_of,
    num_pilot_transitions,
    reverse_annealed_importance,
    sigmoid_temperatures,
    tune_steps,
)
from pyro_vae.inference.sampling.hmc import LogDensity
from pyro_vae.inference.sampling.importance_weights import (
    MIN_TAIL,
    effective_sample_size,
    log_mean_exp,
    psis_k,
    tail_length,
)
from pyro_vae.program.batches.batch import Batch
from pyro_vae.program.densities.log_joint import LogJoint, log_evidence
from pyro_vae.program.passes import Pass, Verb, given_one_draw
from pyro_vae.program.program import Program
from pyro_vae.progress import progress_bar
from pyro_vae.threads import require_turn

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

Start = Literal["guide", "prior"]
_ROWS_PER_PASS = 4096  # chains times data: bounds the memory
_WORTH_A_TRACE = 100  # gradients; a trace takes as long as some tens of them
_INSTEAD = "use log_likelihood"
_AIS = Verb("ais", prior=True, continuous=_INSTEAD, sums=True, each=True)
_BDMC = Verb("bdmc", prior=True, continuous=_INSTEAD, simulates=True, sums=True, each=True)


@dataclass(frozen=True, repr=False)
class AnnealedLikelihood(LogLikelihood):
    """Annealed estimates of log p(x); ``samples`` counts the chains.

    ``psis_k`` is NaN where the chains are too few to show a tail (fewer than about twenty).

    Arguments:
        log_prob: Log mean of the weights of the chains, per datum, ``(N,)``, nats; a lower bound of
            log p(x) in expectation.
        ess: Effective sample size of those weights, per datum, ``(N,)``.
        psis_k: Pareto shape of their tail, per datum, ``(N,)``.
        samples: Chains of each datum.
        acceptance: Mean acceptance of the transitions per datum, ``(N,)``.
        by_global: None: all chains see one draw of the global latents.
        same_globals: False: nothing is told of other draws of them.
        held: That draw, by site; no error tells of its spread.
    """

    _called: ClassVar = "chains"

    acceptance: Tensor
    held: dict[str, Tensor] = field(default_factory=dict, kw_only=True)

    def _given(self) -> str:
        return given_one_draw(self.held)

    @property
    def untrusted(self) -> float:
        """Share of data whose Pareto shape is above 0.7; NaN where no shape is known."""
        if bool(self.psis_k.isnan().all()):
            return math.nan
        return (self.psis_k > 0.7).double().mean().item()


@dataclass(frozen=True, repr=False)
class Sandwich:
    r"""Bounds of log p(x) on data simulated from the model, per datum.

    .. math:: \mathbb{E}[\text{lower}] \le \log p(x) \le \mathbb{E}[\text{upper}]

    Arguments:
        lower: Forward AIS, ``(N,)``, nats.
        upper: Reverse AIS from the latents that made the datum, ``(N,)``, nats.
        data: The simulated batch. Where the model computes what it observes from its arguments: the
            drawn values by site, one tensor where there is one.
        held: The draw of the global latents, by site: the bounds are of log p(x | w).
    """

    lower: Tensor
    upper: Tensor
    data: Batch
    held: dict[str, Tensor] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """Mean of upper minus lower, nats per datum."""
        return (self.upper - self.lower).mean().item()

    @typed
    def plot(self) -> "Figure":
        """Draw both bounds against each other, and the gap between them."""
        from pyro_vae.plots import answers

        return answers.sandwich(self)

    def __repr__(self) -> str:
        return (
            f"Sandwich(lower={self.lower.mean().item():.3f}, upper={self.upper.mean().item():.3f}, "
            f"gap={self.gap:.3f} nats{given_one_draw(self.held)}, {len(self.lower)} simulated data)"
        )


@typed
@dataclass(frozen=True)
class AIS:
    """Settings of annealed importance sampling.

    Arguments:
        num_temperatures: T, transitions per chain.
        chains: C, per datum.
        num_leapfrog: Leapfrog steps per transition.
        start: The initial distribution: ``"guide"`` (q(z | x); short paths) or ``"prior"``; None
            takes the guide where its density is known at any latents. It is not for a point mass,
            under an auxiliary site, under a mask of the model that the guide lacks, or where the
            guide draws discrete latents: those are summed.
        schedule: ``T -> (T + 1,)`` temperatures from 0 to 1.
        step_size: First guess of the step; a pilot run adapts it per temperature and datum towards
            an acceptance of 0.65, then it is frozen, which unbiasedness needs.
        pilot: Transitions of the pilot run. A short one costs efficiency, never validity.

    Raises:
        ConfigError: A count below one, or an unknown start.
    """

    num_temperatures: int = 200
    chains: int = 8
    num_leapfrog: int = 5
    start: Start | None = None
    schedule: Callable[..., Tensor] = sigmoid_temperatures
    step_size: float = 0.1
    pilot: int = 400

    def __post_init__(self) -> None:
        for name in ("num_temperatures", "chains", "num_leapfrog", "pilot"):
            positive(name, getattr(self, name))
        if self.start not in (None, "guide", "prior"):
            raise ConfigError(f"start: got {self.start!r}, expected 'guide', 'prior' or None")
        number("step_size", self.step_size, "(0, inf)")


@typed
def ais(
    program: Any, data: Any, settings: AIS | None = None, *, progress: bool = True
) -> AnnealedLikelihood:
    r"""Estimate the log-likelihood of each datum by annealed importance sampling.

    .. math:: p_t(z) \propto p_0(z)^{1 - b_t}\, p(x, z)^{b_t}, \quad
       \log \hat p(x) = \log \tfrac1C \sum_c \exp \sum_t (b_t - b_{t-1})
       [\log p(x, z_{t-1}) - \log p_0(z_{t-1})]

    Transitions are HMC with one accept per datum and chain. Each estimate of p(x) is unbiased, so
    each log is a lower bound in expectation. Global latents are held at one draw from the guide for
    all data. Where a datum has no continuous latent there is nothing to anneal: its discrete ones
    are summed out, and the value is exact (every acceptance is 1).
    Random numbers come from torch's global generator.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        data: One row per datum, ``(N, ...)``.
        settings: Temperatures, chains, transitions; None takes the defaults.
        progress: Show a progress bar of what takes more than two seconds.

    The cost per datum: chains times (num_temperatures + 9/8 pilot, and whole passes of the pilot)
    times (num_leapfrog + 1) gradients of log p(x, z), 31,200 by default, where ``log_likelihood``
    takes a value for each of its particles. Try it on some rows: ``ais(program, data[:100])``.

    Returns:
        Per datum: the estimate, effective sample size and Pareto shape over the chains, acceptance.

    Raises:
        DataError: Data that the program cannot take.
        ProgramError: Discrete latents of too many values, a support that depends on a latent, or
            no prior.

    References:
        | Annealed Importance Sampling (Neal, 2001), arXiv:physics/9803008
        | On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017),
          arXiv:1611.04273
    """
    chosen = settings or AIS()
    graphs = _graphs(chosen)
    verb = replace(_AIS, of_model=chosen.start == "prior")
    with Program.of(program).passes(
        data, verb, rows=_ROWS_PER_PASS, particles=chosen.chains
    ) as passes:

        def annealed(piece: Pass) -> tuple[Tensor, Tensor]:
            if not piece.sites.continuous:
                exact = log_evidence(passes.program, piece.batch, piece.globals_)
                return exact.expand(chosen.chains, -1), torch.ones_like(exact)
            density = LogJoint(passes.program, piece.batch, piece.globals_)
            with _bar("ais", chosen, 1, progress) as done:
                forward = _Path(density, piece.batch, chosen, graphs, done).forward()
            return forward.log_weight, forward.accept_rate

        logs, rates = zip(*passes.map(annealed, progress=progress), strict=True)
    log_weight = torch.cat(logs, 1)
    return AnnealedLikelihood(
        log_prob=log_mean_exp(log_weight, 0),
        ess=effective_sample_size(log_weight, 0),
        psis_k=_tail_shape(log_weight),
        samples=chosen.chains,
        acceptance=torch.cat(rates),
        held=next(iter(passes.draws), {}),
    )


@typed
def bdmc(
    program: Any,
    n: int = 100,
    settings: AIS | None = None,
    *,
    given: Any = None,
    progress: bool = True,
) -> Sandwich:
    """Bound log p(x) from both sides on n simulated data (bidirectional Monte Carlo).

    The latents that made a datum are an exact draw from its posterior: reverse AIS from them is a
    stochastic upper bound. The gap bounds the error of ``ais`` with the same settings on such data.
    Global latents are held at one draw from the guide, which makes the data and bounds them: the
    sandwich is of log p(x | w). Without a continuous latent of a datum both bounds are exact.
    Draws are written into the arguments which the model observes. Where it computes what it
    observes, they are observed in its place, and the arguments stay as they were given; AIS then
    leaves from the prior, for the guide knows nothing of such draws.

    Arguments:
        program: Anything with ``.model`` and ``.guide``.
        n: Simulated data.
        settings: As for ``ais``; steps tuned on the forward path serve both.
        given: The model's other inputs (labels, lengths), n rows, as for ``generate``; without it
            they are rows drawn at random from the data that the program has seen.
        progress: Show a progress bar of what takes more than two seconds.

    Raises:
        ProgramError: As for ``ais``.

    References:
        | Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo (Grosse et al., 2015),
          arXiv:1511.02543
    """
    require_turn("bdmc")  # before inputs are drawn
    chosen = settings or AIS()
    wrapped = Program.of(program)
    given = inputs(wrapped, positive("n", n), given)
    bounds, made = [], []
    graphs = _graphs(chosen)
    with wrapped.passes(given, _BDMC, rows=_ROWS_PER_PASS, particles=chosen.chains) as passes:
        for piece in passes.watched(progress):
            made.append(simulate(wrapped, piece))
            with _bar("bdmc", chosen, 2, progress) as done:
                bounds.append(_both_bounds(wrapped, piece, made[-1], chosen, graphs, done))
    lower, upper = (torch.cat(parts) for parts in zip(*bounds, strict=True))
    return Sandwich(lower, upper, simulated_data(wrapped, made), next(iter(passes.draws), {}))


def _both_bounds(
    program: Program,
    piece: Pass,
    made: Simulated,
    settings: AIS,
    graphs: DensityGraphs,
    done: Callable[[], Any],
) -> tuple[Tensor, Tensor]:
    asked = (program, made.batch, piece.globals_, made.observed)
    if not piece.sites.continuous:
        exact = log_evidence(*asked)
        return exact, exact
    density = LogJoint(*asked)
    path = _Path(density, made.batch, settings, graphs, done, told=not made.observed)
    lower = log_mean_exp(path.forward().log_weight, 0)
    return lower, -log_mean_exp(-path.reverse(made.latents).log_weight, 0)


def _tail_shape(log_weight: Tensor) -> Tensor:
    """Return the Pareto shape over the chains; NaN where they are too few to know anything."""
    if tail_length(len(log_weight)) < MIN_TAIL:
        return torch.full_like(log_weight[0], math.nan)
    return psis_k(log_weight, 0)


def _graphs(settings: AIS) -> DensityGraphs:
    """Return what traces the densities, where a path is long enough to pay for it."""
    count = settings.pilot + settings.num_temperatures
    return DensityGraphs("trace" if count * settings.num_leapfrog > _WORTH_A_TRACE else False)


@contextmanager
def _bar(verb: str, settings: AIS, runs: int, shown: bool) -> Iterator[Callable[[], Any]]:
    """Show the transitions of a pilot and of as many annealed runs; call what it gives at each."""
    num = settings.num_temperatures
    total = num_pilot_transitions(settings.pilot, num) + runs * num
    with progress_bar(total=total, shown=shown, verb=verb, unit="transition") as bar:
        yield bar.update


class _Path:
    """The annealing path of one batch, with its tuned steps.

    Arguments:
        density: Of the batch.
        batch: One row per datum.
        settings: Temperatures, chains, transitions.
        graphs: Traces the densities.
        done: Called after each transition.
        told: Whether the guide is told of the data that are scored.
    """

    def __init__(
        self,
        density: LogJoint,
        batch: Batch,
        settings: AIS,
        graphs: DensityGraphs,
        done: Callable[[], Any],
        told: bool = True,
    ) -> None:
        self.settings = settings
        self.density = density
        known = told and density.has_guide_density
        self.start = settings.start or ("guide" if known else "prior")
        draw = self._draw()
        self.temperatures = settings.schedule(
            settings.num_temperatures, dtype=draw.dtype, device=draw.device
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "compile: the log joint cannot be traced")
            mixture = graphs.mixture(density, batch, self._mixture, draw, self.temperatures[1])
        self._options: dict[str, Any] = {
            "num_leapfrog": settings.num_leapfrog,
            "mixture": mixture,
            "done": done,
        }
        self.steps = tune_steps(
            self._initial(density),
            draw,
            density.log_joint,
            self.temperatures,
            step_size=settings.step_size,
            num_transitions=settings.pilot,
            **self._options,
        )

    def _initial(self, density: LogJoint) -> LogDensity:
        return density.log_guide if self.start == "guide" else density.log_prior

    def _mixture(self, density: LogJoint) -> Mixture:
        return mixture_of(self._initial(density), density.log_joint)

    def _draw(self) -> Tensor:
        guide = self.start == "guide"
        draw = self.density.draw_guide if guide else self.density.draw_prior
        return draw(self.settings.chains)

    def _annealed(self, run: Callable[..., AISResult], position: Tensor) -> AISResult:
        return run(
            self._initial(self.density),
            position,
            self.density.log_joint,
            self.temperatures,
            step_size=self.steps.unsqueeze(1),
            **self._options,
        )

    def forward(self) -> AISResult:
        return self._annealed(annealed_importance, self._draw())  # fresh: the pilot's chose steps

    def reverse(self, latents: dict[str, Tensor]) -> AISResult:
        chains = self.settings.chains
        values = {k: v.expand(chains, *v.shape) for k, v in latents.items()}
        position = self.density.free_masked(self.density.pack(values, chains))
        return self._annealed(reverse_annealed_importance, position)
