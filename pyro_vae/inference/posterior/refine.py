"""The posterior of each datum by HMC from the guide: one accept per datum and chain."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from pyro_vae.arguments import counted, integer, number, positive, typed
from pyro_vae.callers import of_user
from pyro_vae.errors import ConfigError, ProgramError
from pyro_vae.frames import to_dataset, to_frame
from pyro_vae.inference.graphs.compiled_loss import Mode
from pyro_vae.inference.graphs.density_graphs import DensityGraphs
from pyro_vae.inference.posterior.global_posterior import (
    GlobalDensity,
    RefinedGlobals,
    summarise,
)
from pyro_vae.inference.sampling.adaptation import MOST_JUDGED, start_variance, warm_up
from pyro_vae.inference.sampling.diagnostics import RHAT_LIMIT, median, rhat_and_ess
from pyro_vae.inference.sampling.hmc import LogDensity, hmc_init, hmc_step
from pyro_vae.names import Answer
from pyro_vae.program.batches.batch import Batch
from pyro_vae.program.densities.joining import Values, join_sites, single
from pyro_vae.program.densities.log_joint import LogJoint
from pyro_vae.program.passes import Pass, Passes, Verb, given_one_draw
from pyro_vae.program.program import Program
from pyro_vae.progress import progress_bar

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure

DIVERGENT_LIMIT = 0.01  # share of a datum's transitions above which it is named
_NAMED_ROWS = 10  # in a warning
_REFINE = Verb(
    "refine",
    prior=True,
    latents="there is no posterior to sample; use log_likelihood",
    continuous="use infer (the guide's own posterior), or log_likelihood",
    sums=True,
    of_model=True,
    each=True,
)


@typed
@dataclass(frozen=True)
class HMC:
    r"""Settings of Hamiltonian Monte Carlo.

    Positions are all local latents of a datum in unconstrained coordinates; the mass is diagonal,
    the inverse of the start's variance there. One leapfrog step is MALA.

    Arguments:
        num_draws: Draws kept per chain, one per transition.
        warmup: Transitions before them, in which the step size adapts; 0 keeps ``step_size``.
        chains: C, per datum.
        num_leapfrog: Leapfrog steps per transition; None: what mixes fastest per gradient, found in
            the warm-up of the first batch.
        step_size: First guess of the step, in units of the start's scale.
        target_accept: Acceptance aimed at, in (0, 1).
        jitter: Relative half-width of the noise on each trajectory's length, in [0, 1); without it
            a direction may return to its start in every transition.
        shared_step: One step size for all data of a batch, in place of one per datum. A datum whose
            chains are stuck then slows the others.
        start: Where the chains begin: ``"guide"`` (q(z | x)) or ``"prior"``.

    Raises:
        ConfigError: A value out of its range.

    References:
        | MCMC using Hamiltonian dynamics (Neal, 2011), arXiv:1206.1901
    """

    num_draws: int = 500
    warmup: int = 300
    chains: int = 4
    num_leapfrog: int | None = None
    step_size: float = 0.1
    target_accept: float = 0.8
    jitter: float = 0.3
    shared_step: bool = False
    start: Literal["guide", "prior"] = "guide"

    def __post_init__(self) -> None:
        counts = {"num_draws": self.num_draws, "chains": self.chains}
        if self.num_leapfrog is not None:
            counts["num_leapfrog"] = self.num_leapfrog
        if integer("warmup", self.warmup, 0) == 0 and self.num_leapfrog is None:
            raise ConfigError("warmup: got 0, which tunes no num_leapfrog; give it a number")
        for name, value in counts.items():
            positive(name, value)
        if self.start not in ("guide", "prior"):
            raise ConfigError(f"start: got {self.start!r}, expected 'guide' or 'prior'")
        number("step_size", self.step_size, "(0, inf)")
        number("target_accept", self.target_accept, "(0, 1)")
        number("jitter", self.jitter, "[0, 1)")


@dataclass(frozen=True, repr=False)
class Refined(Answer):
    r"""Posterior draws of each datum, with what says how far to trust them.

    Arguments:
        samples: Kept draws by site, ``(C, S, N | event)``.
        means: Posterior mean by site over all draws, ``(N | event)``.
        scales: Posterior standard deviation by site over all draws, ``(N | event)``.
        rhat: Rank-normalised split :math:`\hat R` per datum, ``(N,)``: the largest over the
            unconstrained coordinates. Infinite or NaN where a chain never moved.
        ess: Bulk effective sample size per datum, ``(N,)``: the smallest over the coordinates.
        acceptance: Mean acceptance per datum, ``(N,)``.
        divergences: Transitions whose energy was lost per datum, ``(N,)``; they were rejected.
        step_size: The step size of each datum, ``(N,)``.
        num_leapfrog: Leapfrog steps per transition, as given or as tuned.
        held: The draw of the global latents, by site, at which they were held: all draws are
            conditional on it. Empty without global latents.
    """

    _elsewhere: ClassVar = {
        **dict.fromkeys(("draws", "get_samples", "posterior"), "samples"),
        **dict.fromkeys(("to_arviz", "to_inference_data"), "to_xarray"),
    }

    samples: dict[str, Tensor]
    means: dict[str, Tensor]
    scales: dict[str, Tensor]
    rhat: Tensor
    ess: Tensor
    acceptance: Tensor
    divergences: Tensor
    step_size: Tensor
    num_leapfrog: int
    held: dict[str, Tensor] = field(default_factory=dict)

    @property
    def mean(self) -> Values:
        """Posterior means ``(N | event)``; a dict by site where there are several."""
        return single(self.means)

    @property
    def scale(self) -> Values:
        """Posterior standard deviations ``(N | event)``; a dict where there are several sites."""
        return single(self.scales)

    @typed
    def sample(self, n: int = 1) -> Values:
        """Return n kept draws per datum, chosen at random: ``(n, N | event)``, or a dict by site.

        Arguments:
            n: Draws per datum, with replacement; the sites of a datum stay together.
        """
        first = next(iter(self.samples.values()))
        chains, draws, rows = first.shape[:3]
        pick = torch.randint(chains * draws, (positive("n", n), rows), device=first.device)
        row = torch.arange(rows, device=first.device)
        return single({name: s.flatten(0, 1)[pick, row] for name, s in self.samples.items()})

    @property
    def mixed(self) -> Tensor:
        """Whether each datum's R-hat is at most 1.05, ``(N,)``."""
        return self.rhat <= RHAT_LIMIT  # False for NaN

    def to_xarray(self) -> Any:
        """Return the kept draws as an ``xarray.Dataset``, which ArviZ takes.

        Axes of a site: ``chain``, ``draw``, ``datum``, then those of its event.

        Raises:
            ConfigError: xarray is not installed.
        """
        return to_dataset(self.samples, "chain", "draw", "datum")

    def to_pandas(self) -> Any:
        """Return R-hat, sample size, acceptance, divergences and step size, a row per datum.

        Raises:
            ConfigError: pandas is not installed.
        """
        names = ("rhat", "ess", "acceptance", "divergences", "step_size")
        return to_frame({name: getattr(self, name) for name in names}, "datum")

    @typed
    def plot(self) -> "Figure":
        """Draw R-hat and sample size over the data, and the chains of the worst datum."""
        from pyro_vae.plots import answers

        return answers.chains_of_data(self)

    def __repr__(self) -> str:
        chains, draws, rows = next(iter(self.samples.values())).shape[:3]
        return (
            f"Refined({counted(rows, 'datum', 'data')}, {counted(chains, 'chain')}, "
            f"{counted(draws, 'draw')} kept{given_one_draw(self.held)}, "
            f"{counted(int((~self.mixed).sum()), 'datum', 'data')} not mixed, "
            f"median R-hat={median(self.rhat).item():.3f}, "
            f"ess={median(self.ess).item():.0f}, "
            f"acceptance={self.acceptance.mean().item():.2f}, "
            f"divergences={int(self.divergences.sum())})"
        )


@typed
def refine(
    program: Any,
    data: Any,
    settings: HMC | None = None,
    *,
    batch_size: int = 4096,
    keep: int | None = None,
    compile: Mode = "trace",
    progress: bool = True,
) -> Refined | RefinedGlobals:
    r"""Draw from the posterior of each datum by HMC that starts at the guide.

    .. math:: z^{(s)} \sim p(z \mid x) \propto p(x, z), \quad z^{(0)} \sim q(z \mid x)

    All data and chains move at once, and each accepts or rejects on its own, with a step size of
    its own. Global latents are held at one draw from the guide: the posterior is conditional on it.
    Discrete latents of few values are summed out, whether the guide draws them or not.
    Of a program without other local latents (a Bayesian regression) the globals themselves are
    drawn, from their posterior given all data, which is summed piece by piece.
    One warning names the data whose chains have not mixed. Random numbers come from torch's global
    generator.

    Arguments:
        program: Anything with ``.model`` and ``.guide`` and continuous latents.
        data: One row per datum, ``(N, ...)``.
        settings: Chains, draws, transitions; None takes the defaults.
        batch_size: Chains times rows per pass; bounds the working memory, whatever N is.
        keep: Draws kept per chain, evenly spaced; None keeps all. Means, scales, R-hat and sample
            sizes come from all draws in any case.
        compile: How the log joint runs: ``"trace"`` (handlers run once, the same numbers), True
            (through Inductor besides), or False.
        progress: Show a progress bar of what takes more than two seconds.

    Returns:
        Draws by site, and per datum R-hat, effective sample size, acceptance and divergences; of
        globals (``RefinedGlobals``) one of each for the data set.

    Raises:
        DataError: Data that the program cannot take.
        ProgramError: Discrete latents of too many values, a support that depends on a latent, or
            no prior.
        ConfigError: A setting out of its range.

    References:
        | MCMC using Hamiltonian dynamics (Neal, 2011), arXiv:1206.1901
        | Learning Deep Latent Gaussian Models with Markov Chain Monte Carlo (Hoffman, 2017)
    """
    chosen = settings or HMC()
    kept = min(chosen.num_draws, chosen.num_draws if keep is None else positive("keep", keep))
    graphs = DensityGraphs(compile)
    shapes: dict[str, torch.Size] = {}
    with Program.of(program).passes(
        data, _REFINE, rows=batch_size, particles=chosen.chains
    ) as passes:
        if not passes.sites.continuous:
            rows = max(1, batch_size // chosen.chains)
            return _refine_globals(passes, chosen, kept, graphs, rows, progress)

        def part_of(piece: Pass) -> dict[str, Any]:
            nonlocal chosen
            joint = LogJoint(passes.program, piece.batch, piece.globals_)
            _require_alike(shapes, joint)
            with _bar(chosen, progress) as bar:
                part = refine_batch(joint, piece.batch, chosen, kept, graphs, bar.update)
            chosen = replace(chosen, num_leapfrog=part.num_leapfrog)  # the first has chosen it
            return {**vars(part), "held": dict(piece.globals_)}

        parts = [Refined(**each) for each in passes.map(part_of, progress=progress, lead=True)]
    refined = _join(parts)
    _warn(refined, chosen.num_draws * chosen.chains)
    return refined


def _require_alike(shapes: dict[str, torch.Size], joint: LogJoint) -> None:
    """Note the shapes of a pass's latents; refuse others than before, ahead of its chains."""
    for slot in joint.slots:
        before = shapes.setdefault(slot.name, slot.event)
        if slot.event != before:
            raise ProgramError(
                f"refine: site {slot.name!r} is not of one kind in all passes (shapes "
                f"{tuple(before)} and {tuple(slot.event)}); ask for the data in groups that agree"
            )


def _bar(settings: HMC, shown: bool) -> Any:
    """Return a bar of the transitions of chains, with as many as may choose their length."""
    count = settings.warmup + settings.num_draws
    count += 0 if settings.num_leapfrog else MOST_JUDGED
    return progress_bar(total=count, shown=shown, verb="refine", unit="transition")


def refine_batch(
    joint: LogJoint,
    batch: Batch,
    settings: HMC,
    keep: int,
    graphs: DensityGraphs,
    done: Callable[[], Any] = lambda: None,
) -> Refined:
    """Run the chains of one batch and summarise their draws; ``done`` is told each transition."""
    draw = joint.draw_guide if settings.start == "guide" else joint.draw_prior
    run = _run_chains(draw, lambda start: graphs.density(joint, batch, start), settings, done)
    draws = run.draws
    kept = joint.kept()
    kept = torch.ones_like(draws[0, :1], dtype=torch.bool) if kept is None else kept
    rhat, ess = _mixing(_on_circles(joint, draws), _on_circles(joint, kept)[0])
    values = _by_site(joint, draws)
    places = _places(settings, keep, draws)
    return Refined(
        samples={name: value[:, places] for name, value in values.items()},
        means={name: value.mean((0, 1)) for name, value in values.items()},
        scales={name: _scale(value) for name, value in values.items()},
        rhat=rhat,
        ess=ess,
        acceptance=run.accept.mean(0) / settings.num_draws,
        divergences=run.diverged.sum(0),
        step_size=run.step.expand(run.accept.shape[1]),
        num_leapfrog=run.num_leapfrog,
    )


class _Run(NamedTuple):
    """What chains of one batch left behind: draws ``(C, S, B | Z)``, sums over the transitions."""

    draws: Tensor
    accept: Tensor
    diverged: Tensor
    step: Tensor
    num_leapfrog: int


def _run_chains(
    draw: Callable[[int], Tensor],
    density_at: Callable[[Tensor], LogDensity],
    settings: HMC,
    done: Callable[[], Any] = lambda: None,
) -> _Run:
    """Warm up and draw, from what ``draw`` returns as starts; ``done`` is told each transition."""
    start = draw(settings.chains)
    inverse_mass = start_variance(draw, settings.chains)
    density = density_at(start)
    state = hmc_init(density, start)
    # One step per datum: its rows then have nothing to do with those of the others.
    like = state.log_prob[0, 0] if settings.shared_step else state.log_prob[0]
    state, step, num_leapfrog = warm_up(
        state,
        density,
        torch.full_like(like, settings.step_size),
        settings.num_leapfrog,
        settings.warmup,
        settings.target_accept,
        inverse_mass,
        settings.jitter,
        done,
    )
    draws = start.new_empty(settings.chains, settings.num_draws, *start.shape[1:])
    accept = torch.zeros_like(state.log_prob)
    diverged = torch.zeros_like(accept, dtype=torch.long)
    for index in range(settings.num_draws):
        state, info = hmc_step(
            state, density, step, num_leapfrog, inverse_mass, jitter=settings.jitter
        )
        draws[:, index] = state.position
        accept, diverged = accept + info.accept_prob, diverged + info.diverged
        done()
    return _Run(draws, accept, diverged, step, num_leapfrog)


def _places(settings: HMC, keep: int, draws: Tensor) -> Tensor:
    """Return which draws are kept, evenly spaced."""
    return torch.arange(1, keep + 1, device=draws.device) * settings.num_draws // keep - 1


def _refine_globals(
    passes: Passes,
    settings: HMC,
    keep: int,
    graphs: DensityGraphs,
    rows: int,
    progress: bool,
) -> RefinedGlobals:
    """Run chains over the globals, which all data inform."""
    density = GlobalDensity(passes, graphs, rows)

    def at(start: Tensor) -> LogDensity:
        density.trace_at(start)
        return density

    draw = density.draw_guide if settings.start == "guide" else density.draw_prior
    with _bar(settings, progress) as bar:
        run = _run_chains(draw, at, settings, bar.update)
    transitions = settings.num_draws * settings.chains
    refined = summarise(
        density,
        run.draws,
        _places(settings, keep, run.draws),
        acceptance=run.accept.sum().item() / transitions,
        divergences=int(run.diverged.sum()),
        step_size=run.step.mean().item(),
        num_leapfrog=run.num_leapfrog,
    )
    lost = refined.divergences > DIVERGENT_LIMIT * transitions
    divergent = counted(refined.divergences, "divergent transition")
    if lost or not refined.mixed:
        warnings.warn(
            f"refine: the global latents have R-hat {refined.worst_rhat:.3f}"
            f"{f' and {divergent}' if lost else ''}; their draws "
            "are not to be trusted: run longer (warmup, num_draws), with more leapfrog steps, or "
            "with a higher target_accept",
            UserWarning,
            stacklevel=of_user(),
        )
    return refined


def _mixing(draws: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return the worst R-hat and effective sample size over the coordinates, `(B,)` each.

    Of those that have a density, `kept`, `(B | Z)`: a datum without any has nothing to mix.
    """
    columns = [rhat_and_ess(column) for column in draws.unbind(-1)]  # one at a time: less memory
    rhat, ess = (torch.stack(parts) for parts in zip(*columns, strict=True))
    rhat = torch.where(kept.mT, rhat, torch.ones_like(rhat))
    ess = torch.where(kept.mT, ess, torch.full_like(ess, draws.shape[0] * draws.shape[1]))
    return rhat.max(0).values, ess.min(0).values  # NaN wins in both


def _on_circles(joint: LogJoint, draws: Tensor) -> Tensor:
    """Return draws `(C, S, B | Z)` with an angle's cosine and sine in the place of the angle.

    Chains that have gone around differ by whole turns, which are nothing.
    """
    angles = [slot.columns for slot in joint.slots if slot.circular]
    if not angles:
        return draws
    parts = []
    for slot in joint.slots:
        part = draws[..., slot.columns]
        if slot.circular:
            parts += [part, part] if part.dtype == torch.bool else [part.cos(), part.sin()]
        else:
            parts.append(part)
    return torch.cat(parts, -1)


def _by_site(joint: LogJoint, draws: Tensor) -> dict[str, Tensor]:
    """Return draws `(C, S, B | Z)` as latents by site, `(C, S, B | event)`."""
    values = joint.unpack(draws.flatten(0, 1))
    return {name: value.unflatten(0, draws.shape[:2]) for name, value in values.items()}


def _scale(value: Tensor) -> Tensor:
    flat = value.flatten(0, 1)
    return flat.std(0, correction=min(1, len(flat) - 1))


def _join(parts: list[Refined]) -> Refined:
    def rows(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    def sites(name: str, dim: int) -> dict[str, Tensor]:
        return join_sites("refine", [getattr(part, name) for part in parts], dim)

    return Refined(
        samples=sites("samples", 2),
        means=sites("means", 0),
        scales=sites("scales", 0),
        rhat=rows("rhat"),
        ess=rows("ess"),
        acceptance=rows("acceptance"),
        divergences=rows("divergences"),
        step_size=rows("step_size"),
        num_leapfrog=parts[0].num_leapfrog,
        held=parts[0].held,
    )


def _warn(refined: Refined, transitions: int) -> None:
    """Name the data whose chains have not mixed or have lost their energy (one sync)."""
    if refined.rhat.is_meta:
        return
    count = len(refined.rhat)
    complaints = [
        f"{label} in {len(found)} of {count} data: rows {_named(found)}"
        for label, flags in (
            (f"R-hat above {RHAT_LIMIT} (or unknown)", ~refined.mixed),
            (
                f"divergent transitions (above {DIVERGENT_LIMIT:.0%})",
                refined.divergences > DIVERGENT_LIMIT * transitions,
            ),
        )
        if (found := flags.nonzero().flatten().tolist())
    ]
    if complaints:
        warnings.warn(
            f"refine: {'; '.join(complaints)}; their draws are not to be trusted: run longer "
            "(warmup, num_draws), with more leapfrog steps, or with a higher target_accept",
            UserWarning,
            stacklevel=of_user(),
        )


def _named(rows: list[int]) -> str:
    text = ", ".join(map(str, rows[:_NAMED_ROWS]))
    return text if len(rows) <= _NAMED_ROWS else f"{text}, ..."
