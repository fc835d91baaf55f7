"""What depends on what across the border of the data plate: read from the graphs of one draw."""

import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.program.batch import Batch, arguments, cuda_devices, map_rows
from pyro_vae.program.handlers import (
    FAILURES,
    Message,
    data_frame,
    innermost,
    sample_sites,
    validation,
)
from pyro_vae.program.joint import Joint, trace_of
from pyro_vae.program.looks.cuts import GUIDE, MODEL, Change, Kind, Term
from pyro_vae.program.modules import leaves_behind
from pyro_vae.torch_private import pytree

Alike = Callable[[], AbstractContextManager[Any]]


class Counted(NamedTuple):
    """The weight of a site in a batch that was looked at.

    Arguments:
        site: Its name.
        weight: One number.
        rows: Of the batch.
        inside: The plate of the data; else it is a global latent.
    """

    site: str
    weight: float
    rows: int
    inside: bool

    def is_of(self, size: int) -> bool:
        """Return whether the weight is N/B, or B/N outside, or so of the number of batches.

        Arguments:
            size: N.
        """
        total = self.weight * self.rows if self.inside else self.rows / self.weight
        batches = {size // self.rows, -(-size // self.rows)}
        return any(abs(total - n) < 1e-4 * size for n in (size, *(m * self.rows for m in batches)))


@dataclass(frozen=True)
class Dependence:
    """What the plate of the data does not keep apart.

    Arguments:
        spanning: Sites outside the plate whose density depends on latents inside it.
        of_rows: Observed sites and factors outside the plate that depend on the rows of the batch,
            and on no latent inside.
        sums: Those of both that a look has found to be sums over the rows.
        means: Those that one has found to be means of them.
        no_sums: Those that one has found to be neither.
        restless: Those of both that are another number at each run: noise, or a counter of calls.
        carried: Latents of a datum that are transforms of an auxiliary site of the guide, by name:
            that site has their density.
        joined: Auxiliary sites of the guide outside the plate that latents of the data are
            transforms of: these have one density of all data.
        unscored: Auxiliary sites of the guide inside the plate that carry no latent: the model has
            no density for them.
        informed: Global latents whose density, in the guide or in the model, depends on the rows.
        priors: Those whose density in the model does.
        unplated: Latents outside the plate that are as many as the rows.
        following: Global latents that the guide draws after latents inside, and given these.
        beside: Sites of the model inside the plate whose density, for a datum, depends on the rows
            beside it, or on their number.
        beside_in_guide: Sites of the guide inside the plate whose density does.
        by_count: Sites inside the plate, and global latents, whose weight does.
        counted: Such weights, and one of all that is inside, times the rows of each batch looked
            at: N always (or all rows of as many batches) where a program scales by N/B itself. Or
            these rows by the one weight of all global latents, where the data have none: B/N.
    """

    spanning: tuple[str, ...] = ()
    of_rows: tuple[str, ...] = ()
    sums: tuple[str, ...] = ()
    means: tuple[str, ...] = ()
    no_sums: tuple[str, ...] = ()
    restless: tuple[str, ...] = ()
    carried: Mapping[str, str] = field(default_factory=dict)
    joined: tuple[str, ...] = ()
    unscored: tuple[str, ...] = ()
    informed: tuple[str, ...] = ()
    priors: tuple[str, ...] = ()
    unplated: tuple[str, ...] = ()
    following: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    beside_in_guide: tuple[str, ...] = ()
    by_count: tuple[str, ...] = ()
    counted: tuple[Counted, ...] = ()

    @property
    def needs_all(self) -> bool:
        """Whether a bound speaks of the data that one pass holds."""
        beside = self.beside or self.beside_in_guide or self.by_count
        return bool(self.found or self.informed or self.following or beside)

    @property
    def scaled(self) -> tuple[str, ...]:
        """Sums over the rows, whatever the look: a minibatch has B of N of their terms."""
        return tuple(n for n in self.sums if n not in self.means + self.no_sums)

    @property
    def of_each_batch(self) -> tuple[str, ...]:
        """What weighs as the data do where each batch stands alone: all but means of the rows."""
        return tuple(dict.fromkeys((*self.scaled, *self.no_sums, *self.untold, *self.unplated)))

    def scaled_itself(self, size: int) -> frozenset[str]:
        """Return the sites that the program weighs by N/B itself.

        Arguments:
            size: N.
        """
        looks: dict[str, list[bool]] = {}
        for each in self.counted:
            looks.setdefault(each.site, []).append(each.is_of(size))
        return frozenset(
            name
            for name, found in looks.items()
            if (all(found) if name in self.by_count else any(found))
        )

    def weighed_beside(self, size: int, rows: int) -> int:
        """Return the rows beside which the program weighs its global latents by B/N itself.

        Arguments:
            size: N.
            rows: Of the batch at hand.

        Returns:
            B; 0 where it does not.
        """
        own = self.scaled_itself(size)
        outside = [each for each in self.counted if not each.inside and each.site in own]
        found = [each for each in outside if each.is_of(size)]
        constant = [each.rows for each in found if each.site not in self.by_count]
        return constant[0] if constant else rows * bool(found)

    def written_in(self, size: int) -> frozenset[str]:
        """Return those of ``scaled_itself`` whose weight is a constant, in batches of one B alone.

        Arguments:
            size: N.
        """
        return self.scaled_itself(size) - set(self.by_count)

    def at(self, rows: int) -> "Dependence":
        """Return what is known of batches of so many rows: a constant is N/B of one B alone."""
        counted = (each for each in self.counted if each.site in self.by_count or each.rows == rows)
        return replace(self, counted=tuple(counted))

    def with_part(self, part: tuple[Trace, Trace]) -> "Dependence":
        """Return what is known once a run on a part of the batch tells weights of its rows.

        Arguments:
            part: Its traces.
        """
        counted = _counted(part, {each.site for each in self.counted})
        whole, fewer = _weights(self.counted), _weights(counted)
        moved = {n for n in whole if not whole[n].allclose(fewer.get(n, whole[n]))}
        by_count = tuple(dict.fromkeys((*self.by_count, *sorted(moved))))
        more = tuple(each for each in counted if each.site in by_count)
        return replace(self, by_count=by_count, counted=self.counted + more)

    @property
    def untold(self) -> tuple[str, ...]:
        """Terms outside that are sums to one look and means to another, or to none, but noise."""
        found = (name for name in self.found if name not in self.restless)
        return tuple(n for n in found if (n in self.sums) == (n in self.means))

    @property
    def of_parts(self) -> tuple[str, ...]:
        """Sites for which ``require_parts`` refuses: of a part of the data they are others."""
        return (*self.unplated, *self.beside, *self.priors, *self.no_sums, *self.untold)

    @property
    def unclear(self) -> tuple[str, ...]:
        """Terms of noise of which no look has told what they are of the rows."""
        told = (*self.sums, *self.means, *self.no_sums)
        return tuple(name for name in self.restless if name not in told)

    def joined_with(self, other: "Dependence") -> "Dependence":
        """Return what two looks at one structure have found together."""
        found = {
            each.name: tuple(dict.fromkeys(getattr(self, each.name) + getattr(other, each.name)))
            for each in fields(self)
            if each.name != "carried"
        }
        spanning = set(found["spanning"])
        found["of_rows"] = tuple(name for name in found["of_rows"] if name not in spanning)
        return Dependence(**found, carried={**self.carried, **other.carried})

    def require_parts(self, rows: int, total: int, argument: str | None) -> None:
        """Refuse to train on parts of the data what is another function of a part.

        Arguments:
            rows: Of a part.
            total: N.
            argument: One that may have no rows.

        Raises:
            ProgramError: Names the site.
        """
        for name in self.unplated:
            raise ProgramError(
                f"batch_size: got {rows}, expected {total} (all data at once): latent {name!r} "
                "stands outside the plate of the data and is as many as its rows, so that a "
                "batch has a part of its prior, and N / B times that of the data; draw it inside "
                "the plate of the data, or give a DataLoader, whose batches stand alone"
            )
        reasons = {
            "depends on the rows beside a datum": self.beside,
            "is of a latent of all data, and depends on their rows": self.priors,
            "stands outside the plate of the data and is no sum over their rows": self.no_sums,
            "stands outside the plate of the data and depends on rows of them": self.untold,
        }
        for what, names in reasons.items():
            for name in names[:1]:
                raise ProgramError(
                    f"batch_size: got {rows}, expected {total} (all data at once): the density of "
                    f"site {name!r} {what}, so that each part of the data would have another "
                    "model. Compute what all data share (a mean, a count) before, and let the "
                    f"functions hold it{_constants(argument)}; or, where each batch is meant to "
                    "stand alone, give a DataLoader"
                )
        reasons = {
            "its density in the guide depends on the rows beside a datum": self.beside_in_guide,
            "its density in the guide depends on the rows": self.informed,
            "its weight depends on the number of rows": tuple(
                name for name in self.by_count if name not in self.scaled_itself(total)
            ),
            "it stands outside the plate of the data, and is another number at each run, so that "
            "it cannot be told whether it depends on the rows": self.unclear,
        }
        for reason, names in reasons.items():
            for name in names[:1]:
                warnings.warn(
                    f"site {name!r}: {reason}; training sees what it is of {rows} rows, and elbo "
                    f"what it is of all {total}",
                    stacklevel=2,
                )

    def tell_of_constants(self, rows: int, total: int) -> None:
        """Warn of a constant that is N/B: nothing tells whether the program means N/B by it.

        Arguments:
            rows: B, of a batch.
            total: N.
        """
        if rows == total:
            return
        for each in [each for each in self.counted if each.site in self.written_in(total)][:1]:
            ratio, way_out = ("N / B", "N / len(x)") if each.inside else ("B / N", "len(x) / N")
            warnings.warn(
                f"site {each.site!r}: its weight is {each.weight:.6g} for any number of rows, and "
                f"so is {ratio}, exactly or in whole batches (of {rows}, N = {total}): it is taken "
                f"for the program's own, and fit multiplies nothing by N / B. If it is, write "
                f"{way_out} "
                "for rows x; if it is a weight of its own, give another batch_size",
                stacklevel=2,
            )

    def tell_of_batches(self, rows: int, total: int) -> None:
        """Warn of what weighs otherwise in a loader's batches than in steps of stock SVI.

        Arguments:
            rows: Of a batch.
            total: N.
        """
        if rows == total or self.scaled_itself(total):  # it takes the program's own steps
            return
        for name in [name for name in self.means if name not in (*self.sums, *self.no_sums)][:1]:
            warnings.warn(
                f"site {name!r}: it stands outside the plate of the data and is a mean over the "
                f"rows of a batch; it counts once beside all {total} data, as from tensors, where "
                f"steps of stock SVI count it once beside the {rows} of each batch: multiply it "
                "by N / B if that is meant",
                stacklevel=2,
            )
        for name in self.by_count[:1]:
            warnings.warn(
                f"site {name!r}: its weight depends on the number of rows, and fit multiplies what "
                "the plate holds by N / B, whatever it is",
                stacklevel=2,
            )
        for name in self.unclear[:1]:
            warnings.warn(
                f"site {name!r}: it stands outside the plate of the data, and is another number at "
                "each run, so that it cannot be told whether it depends on the rows; it counts "
                f"once beside all {total} data, and not beside the {rows} of each batch: multiply "
                "it by N / B if that is meant, or draw its noise from torch",
                stacklevel=2,
            )

    @property
    def found(self) -> tuple[str, ...]:
        """Sites that make the density of the data one of all together."""
        return self.spanning + self.of_rows

    def require_each(self, verb: str) -> None:
        """Refuse a question about each datum alone.

        Raises:
            ProgramError: A site outside the plate depends on what is inside.
        """
        for name in self.found:
            what = "latents" if name in self.spanning else "rows"
            raise ProgramError(
                f"{verb}: site {name!r} stands outside the plate of the data and depends on their "
                f"{what}: the data have one joint density, and none each; write it inside the "
                "plate, a term for each datum, or use elbo"
            )
        for name in self.beside:
            raise ProgramError(
                f"{verb}: the density of site {name!r} of a datum depends on the rows beside it: "
                "the data have one joint density, and none each; compute what all share (a mean, a "
                "scale, a count) before, and let the functions hold it; or use elbo"
            )

    def require_posteriors(self, verb: str) -> None:
        """Refuse a question about the guide's density of each datum.

        Raises:
            ProgramError: The guide has one of all data.
        """
        for name in self.joined:
            way_out = "" if verb != "encode" else "; pv.infer(program, x).mean averages draws"
            raise ProgramError(
                f"{verb}: site {name!r} of the guide stands outside the plate of the data and "
                "draws the latents of all of them: they have one joint density, and none each; "
                "use AutoNormal, or a guide with the plate (elbo, fit and refine take this one)"
                f"{way_out}"
            )

    def require_weights(self, verb: str) -> None:
        """Refuse a question about p(x, z) / q(z | x) of each datum.

        Raises:
            ProgramError: The guide has no such density, or draws what the model has none for.
        """
        self.require_posteriors(verb)
        for name in self.unscored:
            raise ProgramError(
                f"{verb}: site {name!r} is auxiliary in the guide, and the model has no density "
                "for it: p(x, z) / q(z, a | x) is then no estimate of p(x); use ais or "
                "fitted_log_likelihood, or draw it in the model too"
            )


def dependence(
    functions: tuple[Callable[..., Any], Callable[..., Any]],
    batch: Batch,
    seen: tuple[Trace, Trace],
    beside: Set[Change],
    kinds: Set[tuple[Term, Kind]],
    alike: Alike = nullcontext,
) -> Dependence:
    """Find out by two more runs, and only where ``seen`` has a term that could depend.

    Call in eval mode, unvalidated.

    Arguments:
        functions: Model and guide, their plate under its canonical name.
        batch: Some rows.
        seen: Their traces.
        beside: What changes of some rows where others are cut away.
        kinds: What terms outside the plate are of the rows, where it is known.
        alike: Has runs begin from one state of what the program counts.
    """
    rows: list[Tensor] = []
    args, kwargs = arguments(map_rows(lambda leaf: _leaf(leaf, rows), batch))
    densities = [change for change in beside if change.what == "density"]
    latents = {name for name, site in sample_sites(seen[1]) if not site["is_observed"]}
    weights = {c for c in beside if c.what == "weight"}
    # The weight of a term outside is a factor of it; that of a latent leaves its density.
    terms = {c for c in weights if not c.inside and c.site not in latents}
    outside = {(c.side, c.site) for c in {*densities, *terms} if not c.inside}
    inside = [
        tuple(sorted({c.site for c in densities if c.inside and c.side == side}))
        for side in (MODEL, GUIDE)
    ]
    others = list(_other_rows(batch))
    found = _dependence(functions, args, kwargs, seen, rows, others, outside, alike)
    by_count = tuple(sorted({c.site for c in weights - terms}))
    by_kind = {
        kind: tuple(sorted({n for (_, n), k in kinds if k == kind and n in found.found}))
        for kind in ("sum", "mean", "other")
    }
    return replace(
        found,
        sums=by_kind["sum"],
        means=by_kind["mean"],
        no_sums=by_kind["other"],
        beside=inside[MODEL],
        beside_in_guide=tuple(name for name in inside[GUIDE] if name not in inside[MODEL]),
        unplated=tuple(sorted({c.site for c in beside if c.what == "shape"})),
        by_count=by_count,
        counted=_counted(seen, by_count),
    )


def _dependence(
    functions: tuple[Callable[..., Any], Callable[..., Any]],
    args: Any,
    kwargs: Any,
    seen: tuple[Trace, Trace],
    rows: list[Tensor],
    others: list[Any],
    beside: Set[Term] = frozenset(),
    alike: Alike = nullcontext,
) -> Dependence:
    drawn = {name for name, site in sample_sites(seen[1]) if not site["is_observed"]}
    inside = any(
        data_frame(s) is not None and not s["is_observed"] for _, s in sample_sites(seen[1])
    )
    names = [
        name
        for trace in seen
        for name, site in sample_sites(trace)
        if _is_term(site, latents=inside and trace is seen[0] and name in drawn)
    ]
    auxiliary = {
        name: data_frame(site) is not None
        for name, site in sample_sites(seen[1])
        if site["infer"].get("is_auxiliary") and not site["is_observed"]
    }
    globals_ = [name for name, site in sample_sites(seen[1]) if _is_global(site)]
    if not names and not auxiliary and not globals_:
        return Dependence()
    try:
        with torch.enable_grad():
            look = _Look(functions, names, globals_, args, kwargs, alike)
            restless = look.restless()
            reached, behind = look.reached(), look.behind(auxiliary)
    except FAILURES:
        # A program that leaves torch takes no values with a gradient: their numbers tell.
        args, kwargs = pytree.tree_map_only(Tensor, torch.detach, (args, kwargs))
        look, reached = _Look(functions, names, globals_, args, kwargs, alike), {}
        restless = set()
        with suppress(Exception):  # it may not be scored again
            restless = look.restless()
        behind = {point: list(auxiliary) for point in look.points()}
    inside_values = list(look.inside.values())
    on_latents = look.moved() | {t for t, found in reached.items() if _any(found, inside_values)}
    on_rows = {t for t, found in reached.items() if _any(found, rows)}
    on_rows |= look.moved_by_rows(others) | (beside - on_latents)
    spanning = [
        name
        for name in names
        if (MODEL, name) in on_latents or (name not in drawn and (GUIDE, name) in on_latents)
    ]
    # A global latent's prior may look at the rows: it is one density of one value all the same.
    of_rows = [n for n in names if n not in drawn and {(MODEL, n), (GUIDE, n)} & on_rows]
    carried = {z: a for z, found in behind.items() for a in found if auxiliary[a]}
    joined = {a: None for found in behind.values() for a in found if not auxiliary[a]}
    return Dependence(
        tuple(spanning),
        tuple(n for n in of_rows if n not in spanning),
        restless=tuple(n for n in names if {(MODEL, n), (GUIDE, n)} & restless),
        carried=carried,
        joined=tuple(joined),
        unscored=tuple(a for a, local in auxiliary.items() if local and a not in carried.values()),
        informed=tuple(n for n in globals_ if {(MODEL, n), (GUIDE, n)} & on_rows),
        priors=tuple(n for n in globals_ if (MODEL, n) in on_rows),
        following=tuple(n for n in globals_ if (GUIDE, n) in on_latents),
    )


def dependence_of(joint: Joint) -> Dependence:
    """Find it out of a pair of functions that no program holds, their plate called ``"data"``."""
    batch = (joint.args, joint.kwargs)
    devices = cuda_devices([*joint.args, *joint.kwargs.values()])
    with torch.no_grad(), torch.random.fork_rng(devices), validation(False):
        return _dependence((joint.model, joint.guide), *batch, joint.sampled_traces(), [], [])


def _counted(seen: tuple[Trace, Trace], names: Container[str]) -> tuple[Counted, ...]:
    """Return weights of sites: of some names, or of all inside the plate if they are equal.

    One weight of all that is inside may be N/B for a B that is written into the program, and one of
    all global latents B/N.
    """
    inside: list[tuple[str, int, float | None]] = []
    outside: dict[str, float | None] = {}
    for trace in seen:
        for name, site in sample_sites(prune_subsample_sites(trace)):
            frame, weight = data_frame(site), _one_number(torch.as_tensor(site["scale"]))
            if frame is not None and frame.full_size == frame.size:
                inside.append((name, frame.size, weight))
            elif _is_global(site) and not isinstance(innermost(site["fn"]), Delta):
                # A point mass weighs nothing, whatever its weight: the prior's own is what counts.
                outside[name] = weight if outside.get(name, weight) == weight else None
    one, other = {weight for *_, weight in inside}, set(outside.values())
    alike = len(one) == 1 and not one & {1.0, None}
    asked = [each for each in inside if alike or each[0] in names]
    found = [Counted(n, weight, rows, True) for n, rows, weight in asked if weight is not None]
    if one == {1.0} and len(other) == 1 and not other & {1.0, None}:
        rows = inside[0][1]
        found += [Counted(n, weight, rows, False) for n, weight in outside.items() if weight]
    return tuple(found)


def _one_number(scale: Tensor) -> float | None:
    """Return what a weight is for all rows, if it is one number."""
    if scale.is_meta or not scale.numel():
        return None
    first = scale.flatten()[0]
    return float(first) if bool((scale == first).all()) else None


def _weights(counted: Iterable[Counted]) -> dict[str, Tensor]:
    """Return the weights of each site, in model and guide."""
    found: dict[str, list[float]] = {}
    for each in counted:
        found.setdefault(each.site, []).append(each.weight)
    return {name: torch.tensor(weights) for name, weights in found.items()}


def _constants(argument: str | None) -> str:
    """Return how an argument that may have no rows is named, where there is one."""
    if argument is None:
        return ""
    return (
        "; if it comes from an argument that is as long as the data and has no rows, name that: "
        f"Program(..., constants=[{argument!r}])"
    )


def _is_term(site: Message, *, latents: bool) -> bool:
    """Return whether a site outside the plate has a density that could look inside."""
    if data_frame(site) is not None or site["infer"].get("_deterministic"):
        return False
    return bool(site["is_observed"]) or latents


def _is_global(site: Message) -> bool:
    """Return whether a site of the guide is a latent outside the plate, with a density."""
    latent = not site["is_observed"] and not site["infer"].get("_deterministic")
    return latent and data_frame(site) is None


def _other_rows(batch: Batch) -> Iterator[Any]:
    """Yield the arguments with their first row in place of each, then with their last."""
    for row in (0, -1):
        yield arguments(map_rows(lambda leaf, row=row: leaf[row].expand_as(leaf), batch))  # type: ignore[misc]


def _leaf(leaf: Tensor, found: list[Tensor]) -> Tensor:
    if not leaf.is_floating_point():
        return leaf
    found.append(leaf.detach().requires_grad_())
    return found[-1]


def _cut(guide: Trace) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the latents of a trace cut off from its graph: all, and those inside the plate."""
    values, inside = {}, {}
    for name, site in sample_sites(prune_subsample_sites(guide)):
        if site["is_observed"]:
            continue
        value = site["value"].detach()
        values[name] = value.requires_grad_() if value.is_floating_point() else value
        if data_frame(site) is not None:
            inside[name] = values[name]
    return values, inside


class _Look:
    """Model and guide at one draw of the latents, each of them a leaf of the graph.

    Arguments:
        functions: Model and guide.
        names: Sites outside the plate whose terms are looked at.
        globals_: Latents outside the plate, whose terms in both are.
        args, kwargs: What they are called with.
        alike: Has runs begin from one state of what the program counts.
    """

    def __init__(
        self,
        functions: Any,
        names: list[str],
        globals_: list[str],
        args: Any,
        kwargs: Any,
        alike: Alike,
    ) -> None:
        self.functions, self.arguments, self.alike = functions, (args, kwargs), alike
        asked = dict.fromkeys([*names, *globals_])
        self.asked = [(side, name) for side in (MODEL, GUIDE) for name in asked]
        with alike():
            self.values, self.inside = _cut(poutine.trace(functions[1]).get_trace(*args, **kwargs))
        self.traces = self._scored(self.values)

    def _scored(self, values: dict[str, Tensor]) -> tuple[Trace, Trace]:
        args, kwargs = self.arguments
        fixed = trace_of(values)
        with self.alike():  # the guide first, as in a step: the model may read what it has kept
            guide, model = (
                poutine.trace(poutine.replay(function, trace=fixed)).get_trace(*args, **kwargs)
                for function in self.functions[::-1]
            )
        return model, guide

    def _terms(self, traces: tuple[Trace, Trace]) -> dict[Term, Tensor]:
        found: dict[Term, Tensor] = {}
        for side, name in self.asked:
            if name in traces[side].nodes:
                # A flow may have a density at its own draws alone.
                with suppress(*(FAILURES if side == GUIDE else ())):
                    found[side, name] = _term(traces[side].nodes[name])
        return found

    def reached(self) -> dict[Term, list[Tensor]]:
        """Return the leaves that each term depends on."""
        return {term: leaves_behind(value) for term, value in self._terms(self.traces).items()}

    def restless(self) -> set[Term]:
        """Return the terms that change from run to run at the same latents and rows."""
        return _changed(self._terms(self._scored(self.values)), self._terms(self.traces))

    def points(self) -> dict[str, Any]:
        """Return the guide's point masses inside the plate."""
        sites = self.traces[1].nodes
        points = {name: innermost(sites[name]["fn"]) for name in self.inside if name in sites}
        return {name: fn for name, fn in points.items() if isinstance(fn, Delta)}

    def behind(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return which of some sites each point mass is a transform of."""
        leaves = {name: [self.values[name]] for name in names}
        found = {point: leaves_behind(fn.v) for point, fn in self.points().items()}
        return {
            z: [a for a, leaf in leaves.items() if _any(all_, leaf)] for z, all_ in found.items()
        }

    def moved(self) -> set[Term]:
        """Return the terms that change where the latents inside are drawn anew.

        So do those of discrete latents, and of values that the program detaches.
        """
        if not self.inside:
            return set()
        sites = sample_sites(prune_subsample_sites(self.traces[0]))
        model = {name: site["value"] for name, site in sites if not site["is_observed"]}
        held = {n: value for n, value in (model | self.values).items() if n not in self.inside}
        args, kwargs = self.arguments
        guide = poutine.trace(poutine.replay(self.functions[1], trace=trace_of(held)))
        with self.alike():
            again, _ = _cut(guide.get_trace(*args, **kwargs))
        return _changed(self._terms(self._scored(held | again)), self._terms(self.traces))

    def moved_by_rows(self, others: Iterable[Any]) -> set[Term]:
        """Return the terms that change with the rows, at the same globals and random numbers.

        So do those of integers, and of comparisons.

        Arguments:
            others: Arguments with other rows.
        """
        found: set[Term] = set()
        here = self._terms(self._drawn(self.arguments))
        for each in others:
            with suppress(Exception):  # it may not run on equal rows
                found |= _changed(self._terms(self._drawn(each)), here)
        return found

    def _drawn(self, given: Any) -> tuple[Trace, Trace]:
        """Draw the latents inside at some rows; from one random state at each call."""
        args, kwargs = given
        outside = {name: v for name, v in self.values.items() if name not in self.inside}
        with torch.random.fork_rng(cuda_devices([*args, *kwargs.values()])), self.alike():
            guide = poutine.trace(poutine.replay(self.functions[1], trace=trace_of(outside)))
            latents = guide.get_trace(*args, **kwargs)
            model = poutine.trace(poutine.replay(self.functions[0], trace=latents))
            return model.get_trace(*args, **kwargs), latents


def _term(site: Message) -> Tensor:
    value: Tensor = site["fn"].log_prob(site["value"]).sum()
    return value


def _changed(new: Mapping[Term, Tensor], old: Mapping[Term, Tensor]) -> set[Term]:
    """Return the terms of both that differ by more than rounding."""
    return {
        term
        for term in new.keys() & old.keys()
        if not torch.isclose(new[term], old[term], 1e-4, 1e-5, True)
    }


def _any(found: Iterable[Tensor], wanted: Iterable[Tensor]) -> bool:
    ids = {id(leaf) for leaf in wanted}
    return any(id(leaf) in ids for leaf in found)
