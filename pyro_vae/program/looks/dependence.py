"""What depends on what across the border of the data plate: read from the graphs of one draw."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.program import checks
from pyro_vae.program.batches.batch import Batch, arguments, cuda_devices, map_rows
from pyro_vae.program.densities.joint import Joint, trace_of
from pyro_vae.program.handlers import (
    FAILURES,
    Message,
    Replayed,
    data_frame,
    innermost,
    is_deterministic,
    sample_sites,
    validation,
)
from pyro_vae.program.looks.cuts import GUIDE, MODEL, Change, Kind, Term
from pyro_vae.program.looks.findings import Dependence
from pyro_vae.program.looks.own_weights import counted_of, is_global
from pyro_vae.program.parameters.modules import leaves_behind
from pyro_vae.torch_private import pytree

Alike = Callable[[], AbstractContextManager[Any]]


class _Looked(NamedTuple):
    """What could depend on something across the border of the plate."""

    names: list[str]  # terms outside it
    drawn: set[str]  # latents of the guide
    auxiliary: dict[str, bool]  # those of its own, and whether they stand inside
    globals_: list[str]


def dependence(
    functions: tuple[Callable[..., Any], Callable[..., Any]],
    batch: Batch,
    seen: tuple[Trace, Trace],
    beside: Set[Change],
    kinds: Set[tuple[Term, Kind]],
    alike: Alike = nullcontext,
    looking: Alike = nullcontext,
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
        looking: Has these runs inside.
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
    others = list(_single_rows(batch))
    looked = _looked_at(seen)
    found = Dependence()
    if looked:
        with looking():
            found = _dependence(functions, args, kwargs, looked, rows, others, outside, alike)
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
        **points_of_guide(functions[1], batch, seen, alike),
        counted=counted_of(seen, by_count),
    )


def points_of_guide(
    guide: Callable[..., Any],
    batch: Batch,
    seen: tuple[Trace, Trace],
    alike: Alike = nullcontext,
) -> dict[str, Any]:
    """Return the findings ``redrawn`` and ``fixed`` of the points that a guide gives of latents.

    They are looked at in two more runs: all else that the guide draws held, and drawn anew.
    """
    model = dict(sample_sites(seen[0]))
    drawn = [(name, site) for name, site in sample_sites(seen[1]) if not site["is_observed"]]
    points = [n for n, s in drawn if n in model and isinstance(innermost(s["fn"]), Delta)]
    if not points:
        return {}
    args, kwargs = arguments(batch)
    with alike():
        first = poutine.trace(guide).get_trace(*args, **kwargs)
    others = {n: s["value"] for n, s in sample_sites(first) if n not in points}  # rows drawn, too
    moved: list[set[str]] = []
    for run in (Replayed(trace=trace_of(others))(guide), guide):
        with alike():
            again = dict(sample_sites(poutine.trace(run).get_trace(*args, **kwargs)))
        values: Any = {
            n: (first.nodes[n]["value"], again[n]["value"]) for n in points if n in again
        }
        moved.append({name for name, both in values.items() if not torch.equal(*both)})
    fixed = [n for n in points if n not in moved[1] and checks.has_real_prior(model[n]["fn"])]
    return {"redrawn": tuple(n for n in points if n in moved[0]), "fixed": tuple(fixed)}


def _looked_at(seen: tuple[Trace, Trace]) -> _Looked | None:
    """Return what could depend on something across the border; None where nothing can."""
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
    globals_ = [name for name, site in sample_sites(seen[1]) if is_global(site)]
    if not (names or auxiliary or globals_):
        return None
    return _Looked(names, drawn, auxiliary, globals_)


def _dependence(
    functions: tuple[Callable[..., Any], Callable[..., Any]],
    args: Any,
    kwargs: Any,
    looked: _Looked,
    rows: list[Tensor],
    others: list[Any],
    beside: Set[Term] = frozenset(),
    alike: Alike = nullcontext,
) -> Dependence:
    names, drawn, auxiliary, globals_ = looked
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
    outside = {z: tuple(a for a in found if not auxiliary[a]) for z, found in behind.items()}
    return Dependence(
        tuple(spanning),
        tuple(n for n in of_rows if n not in spanning),
        restless=tuple(n for n in names if {(MODEL, n), (GUIDE, n)} & restless),
        carried=carried,
        together={z: names for z, names in outside.items() if names},
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
        looked = _looked_at(joint.sampled_traces())
        if not looked:
            return Dependence()
        return _dependence((joint.model, joint.guide), *batch, looked, [], [])


def _is_term(site: Message, *, latents: bool) -> bool:
    """Return whether a site outside the plate has a density that could look inside."""
    if data_frame(site) is not None or is_deterministic(site):
        return False
    return bool(site["is_observed"]) or latents


def _single_rows(batch: Batch) -> Iterator[Any]:
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
                poutine.trace(Replayed(trace=fixed)(function)).get_trace(*args, **kwargs)
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
        return _points(self.traces[1], self.inside)

    def behind(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return which of some sites each point mass is a transform of."""
        return _behind(self.points(), {name: self.values[name] for name in names})

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
        guide = poutine.trace(Replayed(trace=trace_of(held))(self.functions[1]))
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
            guide = poutine.trace(Replayed(trace=trace_of(outside))(self.functions[1]))
            latents = guide.get_trace(*args, **kwargs)
            model = poutine.trace(poutine.replay(self.functions[0], trace=latents))
            return model.get_trace(*args, **kwargs), latents


def carriers_of(guide: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, list[str]]:
    """Return which auxiliary sites of a guide each of its point masses is a transform of.

    All of them, where it leaves torch.
    """
    drawn = poutine.trace(guide).get_trace(*args, **kwargs)
    values, _ = _cut(drawn)
    own = {n: values[n] for n, s in sample_sites(drawn) if s["infer"].get("is_auxiliary")}
    try:
        with torch.enable_grad():
            replayed = poutine.trace(Replayed(trace=trace_of(values))(guide))
            return _behind(_points(replayed.get_trace(*args, **kwargs), values), own)
    except FAILURES:
        return {point: list(own) for point in _points(drawn, values)}


def _points(guide: Trace, names: Iterable[str]) -> dict[str, Any]:
    """Return the point masses among some sites of a guide."""
    found = {name: innermost(guide.nodes[name]["fn"]) for name in names if name in guide.nodes}
    return {name: fn for name, fn in found.items() if isinstance(fn, Delta)}


def _behind(points: Mapping[str, Any], leaves: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return which leaves each point mass is a transform of."""
    found = {point: leaves_behind(fn.v) for point, fn in points.items()}
    return {z: [a for a, leaf in leaves.items() if _any(all_, [leaf])] for z, all_ in found.items()}


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
