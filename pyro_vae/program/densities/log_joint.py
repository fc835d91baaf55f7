"""The log joint of a program as a function of one unconstrained vector per datum and chain."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Transform
from torch.distributions.transforms import IndependentTransform, identity_transform

from pyro_vae.errors import ProgramError
from pyro_vae.program import checks
from pyro_vae.program.batches.batch import Batch, cuda_devices, num_rows
from pyro_vae.program.densities.bijections import Wrapped, transform_of
from pyro_vae.program.densities.enumeration import groups_of, is_enumerated
from pyro_vae.program.densities.joint import Joint
from pyro_vae.program.handlers import FAILURES, data_frame, sample_sites
from pyro_vae.program.looks.findings import Dependence
from pyro_vae.program.looks.refusals import require_each
from pyro_vae.program.passes import Verb
from pyro_vae.program.program import Program
from pyro_vae.program.sites.masks import kept_of_site, kept_units, require_own_units
from pyro_vae.program.sites.plates import by_datum, data_dim, inner_plates
from pyro_vae.torch_private import version_of

_SAMPLING = Verb(
    "sampling the posterior",
    prior=True,
    local="use log_likelihood",
    continuous="use log_likelihood",
    sums=True,
    each=True,
)
_DRAWS_OF_ROWS = 8  # the same ones each time by chance at most 1 in 128, of one row of two


@dataclass(frozen=True)
class Slot:
    """Where one latent stands in the vector: its transform, its shape, its columns.

    Arguments:
        name: The site.
        transform: From unconstrained coordinates to values, on the dimensions of one draw.
        event: What a datum has of it: a unit for each step of a second plate, and one draw's shape.
        base: The same of the unconstrained coordinates.
        columns: Its part of the vector.
        plates: The dimensions of plates besides that of the data.
        data: The dimension of the data plate.
        dtype: Of its values, where those of other latents are wider; None: that of the vector.
    """

    name: str
    transform: Transform
    event: torch.Size
    base: torch.Size
    columns: slice
    plates: tuple[int, ...] = ()
    data: int = -1
    dtype: torch.dtype | None = None

    @property
    def plain(self) -> bool:
        """Whether the latent is its own unconstrained coordinate."""
        return self.transform is identity_transform

    @property
    def circular(self) -> bool:
        """Whether the values are angles: its coordinates wrap around."""
        return isinstance(self.transform, Wrapped)

    @property
    def event_dim(self) -> int:
        """Dimensions of one draw."""
        return len(self.event) - len(self.plates)

    def of_datum(self, value: Tensor, num_particles: int, rows: int) -> Tensor:
        """Return what a trace holds for the site as ``(C, B | event)``."""
        return by_datum(value, self.event_dim, self.plates, num_particles, rows, self.data)

    @property
    def elementary(self) -> Transform:
        """The transform of one unit: what a mask takes out, it takes out of the Jacobian too."""
        inner = self.transform
        while isinstance(inner, IndependentTransform):
            inner = inner.base_transform
        return inner

    def kept_units(self, kept: Tensor) -> Tensor:
        """Return which units count ``(C, B | units)``, from which parts of a draw do."""
        size = self.elementary.codomain.event_dim
        return kept.flatten(-size).all(-1) if size else kept

    def kept_columns(self, kept: Tensor) -> Tensor:
        """Return which coordinates count, ``(C, B | columns)``, from which parts of a draw do."""
        units = self.kept_units(kept)
        event = (..., *(None,) * self.elementary.domain.event_dim)
        units = units[event]
        return units.expand(*units.shape[:2], *self.base).reshape(*units.shape[:2], -1)


class LogJoint:
    r"""Densities of a program's local latents on one batch, in unconstrained coordinates.

    Both densities are without the weights that a program puts on its terms (``Joint.densities``).
    All local latents of a datum are one vector :math:`u \in \mathbb{R}^Z`, shape ``(C, B | Z)`` for
    C chains; constrained supports go through ``biject_to`` with their Jacobian, angles wrap around,
    and the steps of a second plate are units of their datum. Global latents are
    held at one draw from the guide: every density is conditional on it. Discrete local latents are
    summed out of the model, those of the guide too. Call inside
    ``bounds.scoring``: in eval mode, unvalidated.

    A coordinate that a mask of the model takes out (a step beyond the end of a sequence) has no
    density. It is given N(0, 1) in both densities, and in all draws: it then adds nothing to a
    weight, and a chain has somewhere to be.

    Arguments:
        program: With continuous local latents, beside discrete ones of finitely many values.
        batch: One row per datum.
        globals_: Values at which the global latents are held, by site; None draws them.
        observed: Data in place of those that the model observes, by site, as a trace holds them.

    Raises:
        ProgramError: A local latent is discrete, has a support that depends on another latent, or
            there is none; the program subsamples its plate itself, and reads the rows.
    """

    def __init__(
        self,
        program: Program,
        batch: Batch,
        globals_: Mapping[str, Tensor] | None = None,
        observed: Mapping[str, Tensor] | None = None,
    ) -> None:
        sites = program.read(batch)
        _SAMPLING.require(sites)
        joint = program.summed_joint(batch).observing(observed or {})
        with torch.no_grad():
            model, guide = joint.traces()
        for group in groups_of(model):
            group.require_local()
        drawn = dict(sample_sites(guide))
        self.slots = read_slots(model, drawn)
        if globals_ is None:
            globals_ = {name: drawn[name]["value"] for name in sites.global_}
        self.globals_ = globals_
        self.rows = num_rows(batch)
        self._masks, self._ends = masks_of(model, self.slots), ends_of(model, self.slots)
        first: Any = model.nodes[self.slots[0].name]
        self._zero: Tensor = first["value"].new_zeros(())
        self._program = program
        self._joint = self._hold(joint)
        self.auxiliary = [
            name
            for name, site in drawn.items()
            if site["infer"].get("is_auxiliary") and not site["is_observed"]
        ]
        self.summed = sites.discrete  # of the guide's latents
        self._implicit = sites.implicit
        self._points = [s.name for s in self.slots if checks.is_point_mass(drawn[s.name]["fn"])]
        self._scored = [s.name for s in self.slots if self._scores_masked(s.name, drawn[s.name])]
        self._model_at: tuple[Any, dict[str, Tensor], Tensor] | None = None
        # Whether the slots serve any batch: no support depends on a parameter or on the data.
        self.constant_supports = all(
            checks.fixed_support(model.nodes[slot.name]["fn"]) is not None for slot in self.slots
        )
        self.serves_other_rows = self.constant_supports and not observed
        supported = all(known_support(model.nodes[s.name]["fn"]) is not None for s in self.slots)
        if not checks.is_meta(batch) and supported and not self.constant_supports:
            self._require_fixed_supports(model)
        if sites.draws_rows and self._reads_its_rows(data_frame(first)):
            raise ProgramError(
                "a program that subsamples its plate draws other rows at each evaluation, and HMC "
                "and AIS need the same; give the plate all rows of its batch"
            )

    def _reads_its_rows(self, plate: Any) -> bool:
        """Return whether densities at one point move with the rows that the plate draws.

        Off zero, where a latent hides what it multiplies.
        """
        if plate.size != self.rows:
            return True  # a part of its batch: x[rows], say
        if self.auxiliary:
            return True  # its density is an estimate
        no_density = self._implicit or self._points or self._scored
        found = []
        try:
            with torch.no_grad(), torch.random.fork_rng(cuda_devices(self._zero)):
                point = torch.randn_like(self._zero.expand(1, self.rows, self.dim))
                for _ in range(_DRAWS_OF_ROWS):
                    self._model_at = None
                    found.append(self.log_joint(point))
                    if not no_density:
                        found[-1] = torch.cat([found[-1], self.log_guide(point)])
        except FAILURES:  # the latents are those of the rows drawn, and no others
            return True
        finally:
            self._model_at = None
        return any(not torch.equal(each, found[0]) for each in found)

    def on(self, batch: Batch) -> "LogJoint":
        """Return the density on other rows of the same shapes: unchecked, globals held.

        Only where ``serves_other_rows``: the slots are those of the first rows, and so would the
        data be that stand in place of those that the model observes.
        """
        other = copy.copy(self)
        other._model_at = None
        other.rows = num_rows(batch)
        other._joint = self._hold(self._program.summed_joint(batch))
        if self._masks:  # those of the other rows; at zero, so that no noise is drawn
            origin = self._zero.new_zeros(1, other.rows, self.dim)
            values = other.placed(other._values(origin)[0])
            model = other._joint.model_trace(values, 1, placed=True)
            other._masks, other._ends = masks_of(model, self.slots), ends_of(model, self.slots)
        return other

    def _hold(self, joint: Joint) -> Joint:
        return joint.fixing(self.globals_) if self.globals_ else joint

    @classmethod
    def at(cls, joint: Joint, model: Trace) -> "LogJoint":
        """Return the densities of a pair whose program was checked, read from a model's trace.

        For a training step: no further trace, no check, nothing that a tracer cannot follow.
        """
        require_each(Dependence(joint.spanning), _SAMPLING.name)
        densities = cls.__new__(cls)
        densities.slots = read_slots(model)
        densities.rows = num_rows([*joint.args, *joint.kwargs.values()])
        densities._joint = joint.densities()
        densities._masks = masks_of(model, densities.slots)
        densities._ends = ends_of(model, densities.slots)
        densities.auxiliary, densities.summed, densities._points = [], (), []
        densities._implicit = ()
        densities._scored = []
        densities._model_at = None
        return densities

    @property
    def joint(self) -> Joint:
        """Model and guide on the batch, the globals held."""
        return self._joint

    @property
    def dim(self) -> int:
        """Z, the unconstrained coordinates of one datum."""
        return self.slots[-1].columns.stop

    def kept(self, chains: int = 1) -> Tensor | None:
        """Return which coordinates have a density, ``(C, B | Z)``; None where no mask is."""
        if not self._masks:
            return None
        like = next(iter(self._masks.values()))
        parts = []
        for slot in self.slots:
            width = slot.columns.stop - slot.columns.start
            kept = self._kept_parts(slot, chains)
            parts.append(
                like.new_ones(chains, self.rows, width) if kept is None else slot.kept_columns(kept)
            )
        return torch.cat(parts, -1)

    def _kept_parts(self, slot: Slot, chains: int) -> Tensor | None:
        mask = self._masks.get(slot.name)
        return None if mask is None else slot.of_datum(mask, chains, self.rows)

    def log_masked(self, u: Tensor) -> Tensor | float:
        """Return the log density N(0, 1) of the coordinates under a mask, ``(C, B)``; 0 without."""
        kept = self.kept(len(u))
        if kept is None:
            return 0.0
        density = -0.5 * (u.square() + math.log(2 * math.pi))
        return torch.where(kept, torch.zeros_like(u), density).sum(-1)

    def free_masked(self, u: Tensor) -> Tensor:
        """Return vectors ``(C, B | Z)`` with draws of N(0, 1) for the coordinates under a mask."""
        kept = self.kept(len(u))
        return u if kept is None else torch.where(kept, u, torch.randn_like(u))

    def log_joint(self, u: Tensor) -> Tensor:
        r"""Return :math:`\log p(x, z) + \log |dz/du|`, ``(C, B)``."""
        log_p, jacobian = self._model(u)
        return sum(log_p.values()) + jacobian + self.log_masked(u)

    def log_prior(self, u: Tensor) -> Tensor:
        r"""Return :math:`\log p(z) + \log |dz/du|`, ``(C, B)``."""
        log_p, jacobian = self._model(u)
        return sum(log_p[slot.name] for slot in self.slots) + jacobian + self.log_masked(u)

    def log_guide(self, u: Tensor) -> Tensor:
        r"""Return :math:`\log q(z \mid x) + \log |dz/du|`, ``(C, B)``."""
        self._require_plain_guide()
        if self._joint.alone and len(u) > 1:
            return torch.cat([self.log_guide(each) for each in u.split(1)])
        values, jacobian = self._values(u)
        log_q = self._joint.guide_log_q(self.placed(values), len(u), placed=True)
        return sum(log_q.values()) + jacobian + self.log_masked(u)

    def draw_guide(self, chains: int) -> Tensor:
        """Draw ``(C, B | Z)`` from the guide, its auxiliary sites drawn along and left out."""
        return self._drawn(self._joint.guide_values, chains)

    def draw_prior(self, chains: int) -> Tensor:
        """Draw ``(C, B | Z)`` from the prior."""
        return self._drawn(self._joint.prior_values, chains)

    def _drawn(self, draw: Callable[[int], dict[str, Tensor]], chains: int) -> Tensor:
        """Return draws as vectors; one after another from a program that takes one at a time."""
        times, at_once = (chains, 1) if self._joint.alone else (1, chains)
        with torch.no_grad():
            return torch.cat([self.pack_sites(draw(at_once), at_once) for _ in range(times)])

    def pack_sites(self, values: Mapping[str, Tensor], chains: int) -> Tensor:
        """Return what a trace holds at C particles as unconstrained vectors ``(C, B | Z)``."""
        by_site = {s.name: s.of_datum(values[s.name], chains, self.rows) for s in self.slots}
        return self.free_masked(self.pack(by_site, chains))

    def pack(self, values: Mapping[str, Tensor], chains: int) -> Tensor:
        """Return latents ``(C, B | event)`` as unconstrained vectors ``(C, B | Z)``."""
        parts = []
        for slot in self.slots:
            value = values[slot.name].reshape(chains, -1, *slot.event)
            parts.append(
                slot.transform.inv(value).flatten(2)
                if slot.event
                else (slot.transform.inv(value).unsqueeze(-1))
            )
        return torch.cat(parts, -1)

    def unpack(self, u: Tensor) -> dict[str, Tensor]:
        """Return the latents of unconstrained vectors, by site, ``(C, B | event)``.

        Behind the end of a sequence they are 0, as a draw is there.
        """
        values = self._values(u)[0]
        for slot in self.slots:
            if slot.name in self._ends:
                inside = slot.of_datum(self._ends[slot.name], len(u), self.rows)
                values[slot.name] = torch.where(inside, values[slot.name], self._zero)
        return values

    def log_jacobian(self, u: Tensor) -> Tensor:
        r"""Return :math:`\log |dz/du|`, ``(C, B)``."""
        return self._values(u)[1]

    def _values(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        values: dict[str, Tensor] = {}
        jacobian = u.new_zeros(u.shape[:-1])
        for slot in self.slots:
            base = u[..., slot.columns].reshape(*u.shape[:-1], *slot.base)
            values[slot.name] = value = slot.transform(base)
            if slot.transform is not identity_transform:
                log_det = slot.transform.log_abs_det_jacobian(base, value)
                kept = self._kept_parts(slot, len(u))
                if kept is not None:
                    log_det = slot.elementary.log_abs_det_jacobian(base, value)
                    log_det = torch.where(slot.kept_units(kept), log_det, log_det.new_zeros(()))
                jacobian = jacobian + log_det.reshape(*u.shape[:-1], -1).sum(-1)
            if slot.dtype is not None:
                values[slot.name] = value.to(slot.dtype)
        return values, jacobian

    def placed(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return latents ``(C, B | event)`` as a trace holds them at C particles."""
        return {s.name: self._joint.placed(values[s.name], s.plates) for s in self.slots}

    def require_line(self, verb: str) -> None:
        """Refuse angles, on which a Gaussian means nothing.

        Raises:
            ProgramError: Names the site and what to use.
        """
        for slot in self.slots:
            if slot.circular:
                raise ProgramError(
                    f"{verb}: site {slot.name!r} is an angle, and no Gaussian lives on a circle; "
                    "use log_likelihood, ais or refine"
                )

    def _model(self, u: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        # A path between prior and posterior asks for both at one point: one pass serves both.
        # The same tensor written to since, or asked for with another gradient mode, is another.
        key = (version_of(u), u.requires_grad and torch.is_grad_enabled())
        if self._model_at is None or self._model_at[0][0] is not u or self._model_at[0][1] != key:
            values, jacobian = self._values(u)
            log_p = self._log_p(values, len(u))
            self._model_at = ((u, key), log_p, jacobian)
        return self._model_at[1:]

    def _log_p(self, values: dict[str, Tensor], chains: int) -> dict[str, Tensor]:
        if self._joint.alone and chains > 1:
            parts = [self._log_p({n: v[[c]] for n, v in values.items()}, 1) for c in range(chains)]
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return self._joint.model_log_p(self.placed(values), chains, placed=True)

    def _require_fixed_supports(self, model: Trace) -> None:
        """Refuse a support that moves with the other latents: its transform is read once."""
        joint = self._joint  # globals held: a support may depend on them, and on the data
        with torch.no_grad():
            prior = poutine.trace(joint.model).get_trace(*joint.args, **joint.kwargs)
        for slot in self.slots:
            site: Any = prior.nodes[slot.name]
            # One asymmetric point: the images of (-u, u) at 0 would agree for all u.
            rows = site["value"].shape[: site["value"].dim() - slot.event_dim]
            point = site["value"].new_ones(rows + slot.base[len(slot.plates) :])
            if not torch.equal(slot.transform(point), transform_of(slot.name, site["fn"])(point)):
                raise ProgramError(
                    f"site {slot.name!r}: the support of {checks.distribution_name(site['fn'])} "
                    "depends on another latent, got other bounds at another draw, expected fixed "
                    "ones; reparametrise: sample on a fixed support and scale the draw"
                )

    @property
    def has_guide_density(self) -> bool:
        """Whether the guide has a known density at any latents."""
        return not (self.auxiliary or self.summed or self._points or self._scored or self._implicit)

    def _scores_masked(self, name: str, drawn: Any) -> bool:
        """Return whether the guide scores what a mask of the model takes out."""
        left_in = self._masks.get(name)
        if left_in is None or left_in.is_meta:
            return False
        scored = kept_units(drawn["fn"], drawn["mask"], left_in.device)
        return bool((~left_in if scored is None else scored & ~left_in).any())

    def _require_plain_guide(self) -> None:
        if self._scored:
            raise ProgramError(
                f"site {self._scored[0]!r}: masked in the model and not in the guide, whose "
                "density counts values that have none; put the same mask around the guide's site "
                "(.mask(m), poutine.mask), or start from the prior"
            )
        if self._implicit:
            raise ProgramError(
                f"site {self._implicit[0]!r}: implicit in the guide, which has no density to leave "
                "from; start from the prior"
            )
        if self._points:
            raise ProgramError(
                f"site {self._points[0]!r}: the guide is a point mass, which has no density to "
                "leave from; start from the prior"
            )
        if self.summed:
            raise ProgramError(
                f"site {self.summed[0]!r}: discrete in the guide, whose density of the other "
                "latents is a sum over it; start from the prior"
            )
        if self.auxiliary:
            raise ProgramError(
                f"site {self.auxiliary[0]!r}: auxiliary in the guide, whose density at given "
                "latents is then not known; remove it, or start from the prior"
            )


def log_evidence(
    program: Program,
    batch: Batch,
    globals_: Mapping[str, Tensor],
    observed: Mapping[str, Tensor] | None = None,
) -> Tensor:
    r"""Return :math:`\log p(x)` of programs without continuous latents of a datum, ``(B,)``, exact.

    Discrete ones are summed out, global ones held. Call inside ``bounds.scoring``.

    Arguments:
        program: Read.
        batch: One row per datum.
        globals_: Values of the global latents, by site.
        observed: As for ``LogJoint``.

    Raises:
        ProgramError: A latent that is summed out stands outside the plate of the data.
    """
    joint = program.summed_joint(batch).observing(observed or {})
    joint = joint.fixing(globals_) if globals_ else joint
    for group in groups_of(joint.summed_trace(Trace())):
        group.require_local()
    total: Any = sum(joint.model_log_p({}, 1).values())
    return total[0]


def masks_of(model: Trace, slots: list[Slot]) -> dict[str, Tensor]:
    """Return which parts of each latent a mask leaves in, of those that stand under one.

    Raises:
        ProgramError: A mask has more parts than its latent.
    """
    found = {}
    for slot in slots:
        site: Any = model.nodes[slot.name]
        kept = kept_of_site(site)
        if kept is not None:
            require_own_units(slot.name, site["fn"], slot.data, kept)
            found[slot.name] = kept
    return found


def ends_of(model: Trace, slots: list[Slot]) -> dict[str, Tensor]:
    """Return which parts of each latent stand before its sequence's end, where it has one."""
    found = {}
    for slot in slots:
        outer: Any = model.nodes[slot.name]["fn"]
        fn = outer
        while not hasattr(fn, "kept") and hasattr(fn, "base_dist"):
            fn = fn.base_dist
        if getattr(fn, "kept", None) is not None:
            found[slot.name] = fn.kept.expand(outer.batch_shape + outer.event_shape)
    return found


def read_slots(model: Trace, guide: Mapping[str, Any] | None = None) -> list[Slot]:
    """Return the slots of a model's local latents, in the order of sampling.

    Arguments:
        model: The trace.
        guide: Its sites: where a prior does not say what its support is, that of the guide counts.

    Raises:
        ProgramError: A latent is discrete, or nothing says on which support it lives.
    """
    slots: list[Slot] = []
    dtypes: list[torch.dtype] = []
    start = 0
    for name, site in sample_sites(model):
        if site["is_observed"] or data_frame(site) is None or is_enumerated(site):
            continue
        fn = site["fn"]
        support = known_support(fn)
        if support is None and guide is not None and name in guide:
            support = known_support(guide[name]["fn"])
        if support is None:
            raise ProgramError(
                f"site {name!r}: {checks.distribution_name(fn)} does not say on which support its "
                "values live; give its class one, as torch.distributions has them "
                "(support = torch.distributions.constraints.real_vector)"
            )
        if support.is_discrete:
            raise ProgramError(
                f"site {name!r} is discrete ({checks.distribution_name(fn)}): HMC and AIS need "
                "continuous latents; use log_likelihood"
            )
        transform = transform_of(name, fn, support)
        base = transform.inverse_shape(fn.event_shape) if fn.event_shape else fn.event_shape
        units, plates, data = _units(site)
        base = torch.Size((*units, *base))
        columns = slice(start, start + base.numel())
        event = torch.Size((*units, *fn.event_shape))
        slots.append(Slot(name, transform, event, base, columns, plates, data))
        dtypes.append(site["value"].dtype)
        start = columns.stop
    if len(set(dtypes)) == 1:
        return slots
    return [replace(slot, dtype=dtype) for slot, dtype in zip(slots, dtypes, strict=True)]


def known_support(fn: Any) -> Any:
    """Return the support of a distribution; None where its class does not say."""
    try:
        return fn.support
    except NotImplementedError:
        return None


def _units(site: Any) -> tuple[torch.Size, tuple[int, ...], int]:
    """Return the sizes and dimensions of the units of a datum, and the dimension of the data."""
    plates, shape = inner_plates(site), site["fn"].batch_shape
    sizes = {frame.dim: frame.size for frame in site["cond_indep_stack"]}
    units = [sizes.get(dim) or shape[dim] for dim in plates]  # those in no plate have the shape's
    return torch.Size(units), plates, data_dim(site)
