"""The posterior of global latents by HMC over all data, where no datum has a latent of its own.

Shapes: C chains, S draws, Z unconstrained coordinates; the data set is one row, so that positions
are ``(C, 1 | Z)``.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Transform

from pyro_vae.arguments import counted, positive, typed
from pyro_vae.errors import ProgramError
from pyro_vae.frames import to_dataset
from pyro_vae.inference.graphs.density_graphs import DensityGraphs
from pyro_vae.inference.sampling.diagnostics import RHAT_LIMIT, rhat_and_ess
from pyro_vae.inference.sampling.hmc import LogDensity, log_prob_and_grad
from pyro_vae.names import Answer
from pyro_vae.program import checks
from pyro_vae.program.batches.batch import Batch, num_rows
from pyro_vae.program.densities.bijections import Wrapped, transform_of
from pyro_vae.program.handlers import sample_sites
from pyro_vae.program.passes import Passes
from pyro_vae.program.program import Program

if TYPE_CHECKING:  # matplotlib is slow to import, and most runs draw nothing
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class GlobalSlot:
    """Where one global latent stands in the vector: its transform, its shapes, its columns.

    Its dtype is that of its values: the vector has the widest of all.
    """

    name: str
    transform: Transform
    base: torch.Size
    columns: slice
    dtype: torch.dtype

    def value(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latent and its log Jacobian at one vector ``(Z,)``."""
        base = u[self.columns].reshape(self.base)
        value = self.transform(base)
        return value.to(self.dtype), self.transform.log_abs_det_jacobian(base, value).sum()


class PieceDensity:
    r"""What some of the data say of the globals, and their share of the prior.

    .. math:: \sum_{n \in \text{piece}} \log p(x_n \mid w) + \frac{B}{N}
       \left[\log p(w) + \log |dw/du|\right]

    Summed over the pieces this is the log joint of all data, without the weights that a program
    puts on its terms. Call inside ``scoring``.

    Arguments:
        program: With continuous global latents, and none of a datum.
        batch: The piece, B rows.
        slots: Where the latents stand.
        total: N.
        serves_other_rows: Whether no support depends on a parameter or on the data.
    """

    def __init__(
        self,
        program: Program,
        batch: Batch,
        slots: list[GlobalSlot],
        total: int,
        serves_other_rows: bool,
    ) -> None:
        self.program, self.slots, self.total = program, slots, total
        self.serves_other_rows = serves_other_rows
        self._joint = program.summed_joint(batch)
        self._share = num_rows(batch) / total

    def on(self, batch: Batch) -> "PieceDensity":
        """Return the density of other rows of the same shapes."""
        other = copy.copy(self)
        other._joint = self.program.summed_joint(batch)
        return other

    def log_joint(self, u: Tensor) -> Tensor:
        """Return the density ``(C, 1)`` at ``(C, 1 | Z)``."""
        return torch.stack([self._at(chain) for chain in u[:, 0]]).unsqueeze(-1)

    def _at(self, u: Tensor) -> Tensor:
        values, jacobians = {}, []
        for slot in self.slots:
            values[slot.name], jacobian = slot.value(u)
            jacobians.append(jacobian)
        terms = self._joint.fixing(values).terms()
        data = torch.stack([each.sum() for each in terms.log_p.values()]).sum()
        prior = torch.stack([each.sum() for each in terms.global_log_p.values()]).sum()
        return data + self._share * (prior + torch.stack(jacobians).sum())


class GlobalDensity:
    """The log joint of all data and the globals, piece by piece: the memory is that of one piece.

    Arguments:
        passes: The data, checked.
        graphs: Traces the density of a piece.
        rows: Data of one piece, at most.

    Raises:
        ProgramError: A global latent is discrete, or a latent that is summed out couples the data.
    """

    def __init__(self, passes: Passes, graphs: DensityGraphs, rows: int) -> None:
        self._program = passes.program
        self._pieces = [piece.batch for piece in passes.again(rows=rows)]
        self._graphs = graphs
        self._joint = self._program.summed_joint(self._pieces[0])
        model, _ = self._program.reader.look(self._pieces[0])
        self._sites = dict(sample_sites(model))
        self.slots = self._read(passes.sites.global_)
        self._require_fixed_supports()
        coupled = self._joint.terms().coupled
        if coupled and len(self._pieces) > 1:
            raise ProgramError(
                f"refine: site {coupled[0]!r} is summed out for all data at once; let one pass "
                f"hold them: batch_size={passes.total} times the chains"
            )
        self._total = passes.total
        self._parts: list[LogDensity] = []

    def _read(self, names: tuple[str, ...]) -> list[GlobalSlot]:
        slots: list[GlobalSlot] = []
        start = 0
        for name in names:
            fn = self._sites[name]["fn"]
            if checks.is_discrete(fn):
                raise ProgramError(
                    f"refine: site {name!r} is discrete ({checks.distribution_name(fn)}), and HMC "
                    "needs continuous latents; use log_likelihood"
                )
            transform = transform_of(name, fn)
            event = transform.inverse_shape(fn.event_shape) if fn.event_shape else fn.event_shape
            base = torch.Size((*fn.batch_shape, *event))
            columns = slice(start, start + base.numel())
            dtype = self._sites[name]["value"].dtype
            slots.append(GlobalSlot(name, transform, base, columns, dtype))
            start = columns.stop
        return slots

    def _require_fixed_supports(self) -> None:
        """Refuse a support that moves with another global: its transform is read once.

        Raises:
            ProgramError: Names the site.
        """
        with torch.no_grad():
            prior = poutine.trace(self._joint.model)
            sites: Any = prior.get_trace(*self._joint.args, **self._joint.kwargs).nodes
        for slot in self.slots:
            fn, value = sites[slot.name]["fn"], sites[slot.name]["value"]
            point = value.new_ones(slot.base)
            if not torch.equal(slot.transform(point), transform_of(slot.name, fn)(point)):
                raise ProgramError(
                    f"refine: site {slot.name!r}: the support of {checks.distribution_name(fn)} "
                    "depends on another latent, got other bounds at another draw, expected fixed "
                    "ones; reparametrise: sample on a fixed support and scale the draw"
                )

    def trace_at(self, start: Tensor) -> None:
        """Make the densities of the pieces ready for positions of this shape."""
        constant = all(
            checks.fixed_support(self._sites[slot.name]["fn"]) is not None for slot in self.slots
        )
        for batch in self._pieces:
            piece = PieceDensity(self._program, batch, self.slots, self._total, constant)
            density: Any = self._graphs.density(piece, batch, start)  # type: ignore[arg-type]
            self._parts.append(density)

    def draw_guide(self, chains: int) -> Tensor:
        """Draw ``(C, 1 | Z)`` from the guide."""
        return self._pack([self._joint.global_values() for _ in range(chains)])

    def draw_prior(self, chains: int) -> Tensor:
        """Draw ``(C, 1 | Z)`` from the prior."""
        args, kwargs = self._joint.args, self._joint.kwargs
        with torch.no_grad():
            traces = [
                poutine.trace(self._joint.model).get_trace(*args, **kwargs) for _ in range(chains)
            ]
        return self._pack(
            [{s.name: dict(sample_sites(t))[s.name]["value"] for s in self.slots} for t in traces]
        )

    def _pack(self, draws: list[dict[str, Tensor]]) -> Tensor:
        rows = [
            torch.cat([slot.transform.inv(draw[slot.name]).reshape(-1) for slot in self.slots])
            for draw in draws
        ]
        return torch.stack(rows).unsqueeze(1)

    def __call__(self, position: Tensor) -> Tensor:
        """Return the log joint of all data, ``(C, 1)``."""
        return self.value_and_grad(position)[0]

    def value_and_grad(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log joint of all data ``(C, 1)`` and its gradient ``(C, 1 | Z)``."""
        value, grad = log_prob_and_grad(self._parts[0], position)
        for part in self._parts[1:]:
            more = log_prob_and_grad(part, position)
            value, grad = value + more[0], grad + more[1]
        return value, grad

    def by_site(self, draws: Tensor) -> dict[str, Tensor]:
        """Return draws ``(C, S, 1 | Z)`` as latents by site, ``(C, S | event)``."""
        flat = draws.flatten(0, 2)
        return {
            slot.name: torch.stack([slot.value(u)[0] for u in flat]).unflatten(0, draws.shape[:2])
            for slot in self.slots
        }


@dataclass(frozen=True, repr=False)
class RefinedGlobals(Answer):
    r"""Posterior draws of the global latents, with what says how far to trust them.

    Arguments:
        samples: Kept draws by site, ``(C, S | event)``.
        means: Posterior mean by site over all draws, ``(event)``.
        scales: Posterior standard deviation by site over all draws, ``(event)``.
        rhat: Rank-normalised split :math:`\hat R` by site, ``(event)``.
        ess: Bulk effective sample size by site, ``(event)``.
        acceptance: Mean acceptance of the transitions.
        divergences: Transitions whose energy was lost; they were rejected.
        step_size: The step size, in units of the start's scale.
        num_leapfrog: Leapfrog steps per transition, as given or as tuned.
    """

    _elsewhere: ClassVar = dict.fromkeys(("draws", "get_samples", "posterior"), "samples")

    samples: dict[str, Tensor]
    means: dict[str, Tensor]
    scales: dict[str, Tensor]
    rhat: dict[str, Tensor]
    ess: dict[str, Tensor]
    acceptance: float
    divergences: int
    step_size: float
    num_leapfrog: int

    @typed
    def sample(self, n: int = 1) -> dict[str, Tensor]:
        """Return n kept draws, chosen at random with replacement: ``(n | event)`` by site."""
        first = next(iter(self.samples.values()))
        pick = torch.randint(first.shape[0] * first.shape[1], (positive("n", n),))
        return {
            name: value.flatten(0, 1)[pick.to(value.device)] for name, value in self.samples.items()
        }

    @property
    def worst_rhat(self) -> float:
        """The largest R-hat over all sites; NaN where one is not known."""
        return torch.cat([value.reshape(-1) for value in self.rhat.values()]).max().item()

    @property
    def mixed(self) -> bool:
        """Whether every R-hat is at most 1.05."""
        return self.worst_rhat <= RHAT_LIMIT  # False for NaN

    def to_xarray(self) -> Any:
        """Return the kept draws as an ``xarray.Dataset``, which ArviZ takes.

        Axes of a site: ``chain``, ``draw``, then those of its event.

        Raises:
            ConfigError: xarray is not installed.
        """
        return to_dataset(self.samples, "chain", "draw")

    @typed
    def plot(self) -> "Figure":
        """Draw mean and deviation of each coordinate, and the chains of the worst."""
        from pyro_vae.plots import answers

        return answers.chains_of_globals(self)

    def __repr__(self) -> str:
        chains, draws = next(iter(self.samples.values())).shape[:2]
        least = min(value.min().item() for value in self.ess.values())
        return (
            f"RefinedGlobals({', '.join(self.samples)}: {counted(chains, 'chain')}, "
            f"{counted(draws, 'draw')} kept, R-hat={self.worst_rhat:.3f}, ess={least:.0f}, "
            f"acceptance={self.acceptance:.2f}, "
            f"divergences={self.divergences})"
        )


def summarise(
    density: GlobalDensity, draws: Tensor, places: Tensor, **facts: Any
) -> RefinedGlobals:
    """Return what draws ``(C, S, 1 | Z)`` say of the globals; ``places`` are those kept."""
    values = density.by_site(draws)
    rhat, ess = {}, {}
    for slot in density.slots:
        value = values[slot.name]
        circular = isinstance(slot.transform, Wrapped)
        views: list[Callable[[Tensor], Tensor]] = [torch.cos, torch.sin] if circular else []
        told = [rhat_and_ess(view(value)) for view in views] or [rhat_and_ess(value)]
        rhat[slot.name] = torch.stack([each[0] for each in told]).amax(0)
        ess[slot.name] = torch.stack([each[1] for each in told]).amin(0)
    return RefinedGlobals(
        samples={name: value[:, places] for name, value in values.items()},
        means={name: value.mean((0, 1)) for name, value in values.items()},
        scales={name: value.flatten(0, 1).std(0) for name, value in values.items()},
        rhat=rhat,
        ess=ess,
        **facts,
    )
