"""Discrete latents summed out of a model that takes one value of them at a time."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.program.densities.enumeration import MOST, can_be_listed, listed, log_density
from pyro_vae.program.handlers import Message, Particles, data_frame, sample_sites
from pyro_vae.program.sites.masks import is_masked, kept_units, unmasked


class NotOneByOne(ProgramError):
    """A model cannot be run at one value after another of what is summed out."""


class _Picked(Messenger):
    """Give each discrete latent that has no value yet one of its values, the same for all data.

    Arguments:
        picks: Places in the supports, in the order of sampling; the first where there is none.
        particles: Enlarges a site before it gets its value; None for one particle.
    """

    def __init__(self, picks: tuple[int, ...], particles: Particles | None) -> None:
        super().__init__()
        self.picks, self.particles = picks, particles
        self.sizes: dict[str, int] = {}  # of the supports, by site

    def _pyro_sample(self, msg: Message) -> None:
        if msg["done"] or msg["is_observed"] or not can_be_listed(msg["fn"]):
            return
        if self.particles is not None:  # the handler of that name comes later, to no effect
            self.particles._pyro_sample(msg)
        fn = msg["fn"]
        support = listed(fn)
        place = len(self.sizes)
        pick = self.picks[place] if place < len(self.picks) else 0
        self.sizes[msg["name"]] = len(support)
        msg["value"] = support[pick].expand(fn.batch_shape + fn.event_shape)
        msg["done"] = True


def summed_one_by_one(
    model: Callable[..., Any],
    args: Any,
    kwargs: Any,
    first_available_dim: int,
    particles: Particles | None,
    *,
    as_drawn: bool = False,
) -> Trace:
    """Return the trace that ``SumOut`` would: the model's densities at all values of its latents.

    The model runs once for each combination of values, and the densities stand side by side in
    dimensions of their own. Every site behind a latent is taken to depend on it: that none of some
    values shows it does not prove the contrary.

    Arguments:
        model: With latents in it that have no value.
        args, kwargs: Its arguments.
        first_available_dim: The first dimension that neither plates nor particles use.
        particles: Where several values of the other latents stand side by side: their handler.
        as_drawn: Whether masks that move with the values are left out (``with_all_drawn``).

    Raises:
        NotOneByOne: Too many combinations, or sites that come and go with the values.
    """
    sizes, first = _run(model, args, kwargs, (), particles)
    if math.prod(sizes.values()) > MOST:
        raise NotOneByOne(
            f"site {next(iter(sizes))!r}: got {math.prod(sizes.values())} combinations of the "
            f"values of {', '.join(sizes)}, expected at most {MOST} for a model that takes them "
            "one by one"
        )
    runs = {(0,) * len(sizes): first}
    for picks in _combinations(sizes):
        if picks not in runs:
            again, runs[picks] = _run(model, args, kwargs, picks, particles)
            _require_same(first, runs[picks], sizes, again)
    return _stacked(first, runs, sizes, first_available_dim, as_drawn)


def _run(
    model: Callable[..., Any],
    args: Any,
    kwargs: Any,
    picks: tuple[int, ...],
    particles: Particles | None,
) -> tuple[dict[str, int], Trace]:
    with _Picked(picks, particles) as picked:
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    return picked.sizes, trace


def _combinations(sizes: Mapping[str, int]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(size) for size in sizes.values()))


def _require_same(first: Trace, other: Trace, sizes: Any, again: Any) -> None:
    """Refuse sites, and supports, that depend on the values of a latent before them.

    Raises:
        NotOneByOne: Names the site.
    """
    one, two = dict(sample_sites(first)), dict(sample_sites(other))
    strays = [*(one.keys() ^ two.keys()), *(name for name in sizes if sizes[name] != again[name])]
    for name in strays:
        raise NotOneByOne(
            f"site {name!r}: comes, goes or has other values, as {', '.join(sizes)} has it, which "
            "is summed out; sample it in any case, and let the values decide what it does"
        )


def _stacked(
    first: Trace,
    runs: Mapping[tuple[int, ...], Trace],
    sizes: Mapping[str, int],
    first_dim: int,
    as_drawn: bool,
) -> Trace:
    """Return the first trace, each site with its log densities in all of them (``at_all``)."""
    stacked, before = first.copy(), 0
    names, counts = list(sizes), list(sizes.values())
    for name, site in sample_sites(first):
        before += name in sizes
        if before == 0:
            continue
        rest = (0,) * (len(names) - before)
        picks = itertools.product(*(range(count) for count in counts[:before]))
        told: list[Message] = [runs[pick + rest].nodes[name] for pick in picks]
        if as_drawn and name not in sizes and _masks_move(told):
            told = [unmasked(name, each, sizes) for each in told]
        found = [log_density(name, each, name in sizes) for each in told]
        if data_frame(site) is None and all(torch.equal(found[0], each) for each in found[1:]):
            continue  # outside the plate: it would make one sum of those of the data
        at_all = _in_dimensions(name, found, counts[:before], -1 - first_dim)
        infer = {**site["infer"], "_dim_to_id": {first_dim - k: k for k in range(before)}}
        if name in sizes:
            infer["_enumerate_dim"] = first_dim - names.index(name)
        here: Message = {**told[0], "infer": infer, "at_all": at_all}
        stacked.nodes[name] = here
    return stacked


def _masks_move(sites: list[Message]) -> bool:
    """Return whether a site is masked otherwise in one run than in another."""
    if not any(is_masked(site) for site in sites):
        return False
    masks = [kept_units(site["fn"], site["mask"], site["value"].device) for site in sites]
    first = masks[0]
    return any(first is None or mask is None or not torch.equal(first, mask) for mask in masks[1:])


def _in_dimensions(name: str, found: list[Tensor], counts: list[int], depth: int) -> Tensor:
    """Return log densities ``(..., second latent, first latent, particles, *plates)``."""
    together = torch.stack(torch.broadcast_tensors(*found))
    shape = together.shape[1:]
    if len(shape) > depth:
        raise NotOneByOne(
            f"site {name!r}: got a log density of shape {tuple(shape)}, with a dimension that is "
            "no plate; put the site into a plate, or make the dimension one of its event "
            "(.to_event)"
        )
    lacking = (1,) * (depth - len(shape))
    together = together.reshape(*counts, *lacking, *shape)
    latents = range(len(counts))
    return together.permute(*reversed(latents), *range(len(counts), together.dim()))
