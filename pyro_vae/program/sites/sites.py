"""The sample sites of a program by role, read from one trace of model and guide."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import counted
from pyro_vae.errors import ProgramError
from pyro_vae.program import checks
from pyro_vae.program.densities.enumeration import can_be_listed, can_be_summed
from pyro_vae.program.densities.terms import nesting
from pyro_vae.program.handlers import (
    PLATE,
    Message,
    data_frame,
    is_data,
    is_deterministic,
    sample_sites,
)
from pyro_vae.program.looks.findings import Dependence
from pyro_vae.program.sites.observed import Binding
from pyro_vae.program.sites.plates import DataPlate, OneDatum, data_dim

_NAMED = 6  # sites of a role that are told by name


@dataclass(frozen=True)
class Sites:
    """The sample sites of a program by role, as read from one trace.

    Arguments:
        observed: Sites with data, inside the plate ``"data"``.
        local: Latents inside the plate: one value per datum.
        global_: Latents outside it: one value for the whole data set.
        num_plates: Batch dimensions used by plates.
        size: N, where the program subsamples its plate itself; else None.
        priorless: Local sites whose prior is improper: those of a deterministic autoencoder.
        enumerated: Discrete latents of the model that the guide leaves out: they are summed out.
        outside: Whether any term, a latent or a factor of either function, stands outside the
            plate: its weight against the data depends on N.
        discrete: Local sites whose values can be counted.
        countless: Those of them that have too many values to sum over.
        events: Those of them whose values are of several numbers (``to_event``).
        draws_rows: Whether the program draws the rows of its plate, anew at each run; where the
            batch says which they are (``pyro.plate(..., subsample=)``) it does not.
        rows_drawn: How many these are, where they are a part of the rows of a batch; else 0. Where
            they are as many, each stands for a row of the batch, and only its number is drawn.
        parts_beside: Plates besides that of the batch's rows that draw some of their rows: how
            many, of how many.
        parts_in_guide: Those of them that the guide has as well.
        parts_weighed: Those that hold some of their rows, drawn or given, and scale them by N/B.
        data_dim: The batch dimension of the data plate, counted from the right.
        plate: The data plate as the program has it.
        bindings: Where the observed values come from, by site.
        dependence: What the plate does not keep apart.
        implicit: Local latents of which the guide has draws and no density.
        implicit_prior: Those of which the model has.
        marked: Discrete latents that the guide draws and marks to be enumerated, as
            ``config_enumerate`` does.
        values: Keys of the values of ``pyro.param`` that the functions ask for.
    """

    observed: tuple[str, ...]
    local: tuple[str, ...]
    global_: tuple[str, ...]
    num_plates: int
    size: int | None
    priorless: tuple[str, ...] = ()
    enumerated: tuple[str, ...] = ()
    outside: bool = False
    discrete: tuple[str, ...] = ()
    countless: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    draws_rows: bool = False
    rows_drawn: int = 0
    parts_beside: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    parts_in_guide: tuple[str, ...] = ()
    parts_weighed: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    data_dim: int = -1
    plate: DataPlate = field(default_factory=lambda: DataPlate(PLATE, -1))
    bindings: Mapping[str, Binding] = field(default_factory=dict)
    dependence: Dependence = field(default_factory=Dependence)
    implicit: tuple[str, ...] = ()
    implicit_prior: tuple[str, ...] = ()
    marked: tuple[str, ...] = ()
    values: frozenset[str] = frozenset()

    @property
    def continuous(self) -> tuple[str, ...]:
        """The local latents that are not discrete."""
        return tuple(name for name in self.local if name not in self.discrete)

    def told(self, rows: int, dim: int) -> str:
        """Return how a batch was read, in lines: its plate, and the sites by role.

        Arguments:
            rows: B.
            dim: The dimension of the batch's tensors that counts the data.
        """
        head = "read as one datum: no plate holds the data"
        if not isinstance(self.plate, OneDatum):
            head = (
                f"read from {counted(rows, 'row')} along dimension {dim}, plate "
                f"{self.plate.name!r} (dim={self.plate.dim})"
            )
        roles = {
            "local": self.local,
            "summed out": self.enumerated,
            "global": self.global_,
            "observed": self.observed,
        }
        return "\n".join([head, *(f"{role}: {_few(n)}" for role, n in roles.items() if n)])

    def binding(self, site: str) -> Binding:
        """Return where a site's value comes from.

        Raises:
            ProgramError: The model computes it.
        """
        if site not in self.bindings:
            raise ProgramError(
                f"observed site {site!r} is no argument of the model, nor a view of one: its value "
                f"is computed; say from which argument: Program(..., observed={{{site!r}: 'x'}})"
            )
        return self.bindings[site]

    def replace(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Mapping[str, Tensor]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a model's arguments with the values of some observed sites replaced.

        Raises:
            ProgramError: The model computes the value of one of them, or draws some of its rows.
        """
        if self.rows_drawn:
            raise ProgramError(
                "the plate of the data draws some of its rows, so that drawn data are no rows of "
                "the arguments; give it all rows of its batch: len(x)"
            )
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        for site, value in values.items():
            binding = self.binding(site)
            given[binding.key] = binding.write(given[binding.key], value)
        return tuple(given[i] for i in range(len(args))), {name: given[name] for name in kwargs}


def _few(names: tuple[str, ...]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def read_sites(
    model: Trace, guide: Trace, plate: DataPlate, bindings: Mapping[str, Binding]
) -> Sites:
    """Return the sites of a pair of traces by role."""
    observed, local, global_, size = [], [], [], None
    priorless, enumerated, discrete, countless, events = [], [], [], [], []
    outside, dim = False, -1
    for name, site in sample_sites(model):
        frame = data_frame(site)
        outside |= frame is None
        dim = dim if frame is None else data_dim(site)
        if frame is not None and frame.full_size != frame.size:
            size = frame.full_size
        if site["is_observed"]:
            if is_data(site):
                observed.append(name)
        elif name not in guide.nodes:
            enumerated.append(name)
        elif frame is None:
            global_.append(name)
        else:
            local.append(name)
            if checks.distribution_name(site["fn"]) == "NoPrior":
                priorless.append(name)
            if checks.is_discrete(site["fn"]):
                discrete.append(name)
                countless += [] if can_be_listed(site["fn"]) else [name]
                events += [] if can_be_summed(site["fn"]) else [name]
    outside |= any(
        data_frame(site) is None and not is_deterministic(site) for _, site in sample_sites(guide)
    )
    return Sites(
        observed=tuple(observed),
        local=tuple(local),
        global_=tuple(global_),
        num_plates=nesting(model, guide),
        size=size,
        priorless=tuple(priorless),
        enumerated=tuple(enumerated),
        outside=outside,
        discrete=tuple(discrete),
        countless=tuple(countless),
        events=tuple(events),
        data_dim=dim,
        plate=plate,
        bindings=bindings,
        implicit=tuple(n for n in local if not checks.has_density(guide.nodes[n]["fn"])),
        implicit_prior=tuple(n for n in local if not checks.has_density(model.nodes[n]["fn"])),
        marked=tuple(name for name in discrete if _is_marked(guide.nodes[name])),
    )


def _is_marked(site: Message) -> bool:
    return bool(site["infer"].get("enumerate"))
