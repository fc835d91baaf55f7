"""Integers among the arguments that only count: a program that was read is not read for each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.program.batches.batch import Batch, arguments
from pyro_vae.program.handlers import sample_sites
from pyro_vae.program.sites.sites import Sites

_ENOUGH = 3  # values of one layout, after which a run alone is looked at


@dataclass
class _Known:
    """What is known of batches that differ in integers alone."""

    sites: Sites
    looks: tuple[Any, ...]
    values: int = 1


@dataclass
class Counters:
    """The layouts of batches by all but their integers, which may be flags or counts.

    An integer may decide what is observed, or where. Where several values had one layout, one run
    says whether the next has it too: the sites, their plates and shapes, and the values observed.
    """

    _known: dict[Any, _Known | None] = field(default_factory=dict)  # None: integers decide

    def meet(self, key: tuple[Any, ...], sites: Sites, looks: tuple[Any, ...]) -> None:
        """Note the layout that was read of a batch with this signature, and its run's looks."""
        loose = _without_integers(key)
        if loose == key:
            return
        known = self._known.setdefault(loose, _Known(sites, looks, 0))
        if known is not None:
            same = known.sites == sites and known.looks == looks
            self._known[loose] = _Known(sites, looks, known.values + 1) if same else None

    def candidate(self, key: tuple[Any, ...]) -> Sites | None:
        """Return the layout that a batch with this signature may have, if a run confirms it."""
        known = self._known.get(_without_integers(key))
        return None if known is None or known.values < _ENOUGH else known.sites

    def confirmed(self, key: tuple[Any, ...], batch: Batch, traces: tuple[Trace, Trace]) -> bool:
        """Return whether a run of a batch shows the layout that ``candidate`` returned."""
        known = self._known[_without_integers(key)]
        assert known is not None  # candidate has said so
        return known.looks == looks_of(traces) and _binds(known.sites, batch, traces[0])


def _without_integers(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a signature in which integers that are arguments have no value."""
    return tuple(
        (*entry[:2], None) if isinstance(entry, tuple) and entry[1:2] == (int,) else entry
        for entry in key
    )


def looks_of(traces: tuple[Trace, Trace]) -> tuple[Any, ...]:
    """Return what shows of the sites of a run, their plates under the program's own names."""
    return tuple(
        (
            name,
            site["is_observed"],
            type(site["fn"]),
            site["fn"].shape(),
            site["mask"] is None,
            tuple((frame.name, frame.dim, frame.size) for frame in site["cond_indep_stack"]),
            str(site["infer"].get("enumerate")),
        )
        for trace in traces
        for name, site in sample_sites(trace)
    )


def _binds(sites: Sites, batch: Batch, model: Trace) -> bool:
    """Return whether each observed value is what its binding reads from the batch."""
    args, kwargs = arguments(batch)
    found: Mapping[str, Any] = model.nodes
    for name, binding in sites.bindings.items():
        value = found[name]["value"]
        if binding.computed or not isinstance(value, Tensor):
            return False
        read = binding.of(args, kwargs)
        if read.shape != value.shape or not torch.equal(read, value):
            return False
    return True
