"""Whether the numbers of a datum stay what they are where the rows beside it are cut away."""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.program.batches.batch import Batch, map_batch, map_rows, named_leaves, num_rows
from pyro_vae.program.checks import has_density
from pyro_vae.program.handlers import (
    Message,
    data_frame,
    innermost,
    is_deterministic,
    sample_sites,
)
from pyro_vae.torch_private import TorchDispatchMode, pytree

MODEL, GUIDE = 0, 1  # whose density of a site a term is
Term = tuple[int, str]  # the density of a site, of a side
Kind = Literal["sum", "mean", "other"]  # what a term is of the rows
Rounding = Mapping[Term, Tensor]  # of densities
Pair = tuple[Trace, Trace]  # of model and guide, their plate under its canonical name
PairOf = Callable[..., Pair]  # some rows, latents, and a seed of what else is random: 0
TRIES = 4
_ROUNDINGS = 100  # what one rounding of the arguments does, so many times, is no dependence
_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten.convolution.default,
}
_DRAWN = 0.3  # for normal and uniform numbers alike
_MOST = 8  # rows from all over a batch to look at
_ALL_PAIRS = 256  # rows of which each pair is parted
_SMALL = 1 << 20  # numbers of an argument of which the extreme rows are looked at, too
_CODES = 16  # values of an argument of integers of which rows of each are looked at


class Change(NamedTuple):
    """A term whose density, or weight, is another where rows beside are cut away."""

    side: int
    site: str
    inside: bool  # the plate of the data
    what: Literal["density", "weight", "shape"]  # the last of a latent


def few_of(batch: Batch, rows: int) -> tuple[Batch, list[Tensor]]:
    """Return some rows of a batch, and the cuts of them: two halves, and two rows.

    They stand all over it; those that are the largest or smallest of an argument are among them,
    and two of each label, since one that is rare, or the extreme of all, may be all that shows what
    the others are. The two rows have the largest labels: few of a table are too few for these.

    Arguments:
        batch: Any.
        rows: Of what is cut; an argument of another length stays whole.
    """
    few = min(rows, _MOST)
    spread = [int(place) for place in torch.arange(few) * (rows - 1) // max(1, few - 1)]
    largest, smallest = _extremes(batch, rows)
    places = sorted({*spread, *largest, *smallest})
    chosen, numbers = torch.tensor(places), torch.arange(len(places))
    cuts = [numbers[::2], numbers[1::2]] if len(places) > 1 else [numbers]
    if len(places) > 4:
        two = list(dict.fromkeys([*largest, *reversed(places)]))[:2]
        cuts.append(torch.tensor(sorted(places.index(place) for place in two)))
    return map_rows(lambda leaf: leaf[chosen.to(leaf.device)], batch, rows), cuts


def parts_of(rows: int) -> Iterator[list[Tensor]]:
    """Yield pairs of parts of so many rows, for a program that takes no few: it may take these."""
    numbers = torch.arange(rows)
    yield [numbers[::2], numbers[1::2]]
    for count in (2, 3, 4, 5):
        if rows > count:
            yield [numbers[: rows // count], numbers[rows // count :]]


def _extremes(batch: Batch, rows: int) -> tuple[list[int], list[int]]:
    """Return the two rows in which each argument is largest, integers first, and others.

    These are the two in which it is smallest, and two of each integer, where these are few.
    """
    leaves = [leaf for _, leaf in named_leaves(batch) if leaf.dim() and len(leaf) == rows]
    fit = [leaf for leaf in leaves if 0 < leaf.numel() <= _SMALL and not leaf.is_complex()]
    two = min(2, rows)
    largest, others = [], []
    for leaf in sorted(fit, key=lambda leaf: leaf.is_floating_point()):
        sums = leaf.detach().reshape(rows, -1).double().sum(-1)
        largest += sums.topk(two).indices.tolist()
        others += (-sums).topk(two).indices.tolist()
        codes = sums[:0] if leaf.is_floating_point() else sums.unique()
        if len(codes) <= _CODES:
            others += [int(n) for code in codes for n in (sums == code).nonzero()[:two, 0]]
    return largest, others


def cut_to(batch: Batch, kept: Tensor) -> Batch:
    """Return some rows of a batch."""
    return map_rows(lambda leaf: leaf[kept.to(leaf.device)], batch, num_rows(batch))


def has_nan(pair: Pair) -> bool:
    """Return whether a density of a pair of traces is no number somewhere."""
    return any(bool(terms["density"].isnan().any()) for each in pair for _, terms in _terms(each))


def latents_cut(pair: Pair, kept: Tensor | None = None) -> dict[str, Tensor]:
    """Return the latents of a pair of traces by site, those of the data at some rows."""
    return {
        name: site["value"] if kept is None else _cut(site, site["value"], kept)
        for trace in pair
        for name, site in sample_sites(prune_subsample_sites(trace))
        if not site["is_observed"]
    }


def unlike(
    whole: Pair,
    cut: Pair,
    kept: Tensor | None = None,
    rounding: Rounding | None = None,
    *,
    both: bool = False,
) -> set[Change]:
    """Return what a cut has changed.

    Arguments:
        whole: Traces of all rows.
        cut: Traces of some, at the same latents.
        kept: Which rows these are; None: all.
        rounding: How much of each density is rounding; None: little.
        both: The second traces have all rows, too: those that are kept are compared.

    Raises:
        ValueError: They have other sites.
    """
    found = set()
    for side in (MODEL, GUIDE):
        here, there = (dict(_terms(pair[side])) for pair in (whole, cut))
        for name in here.keys() ^ there.keys():
            if data_frame((whole if name in here else cut)[side].nodes[name]) is not None:
                raise ValueError("sites come and go with the rows")
            found.add(Change(side, name, False, "density"))
        for name in here.keys() & there.keys():
            site = whole[side].nodes[name]
            inside = data_frame(site) is not None
            for what, before in here[name].items():
                if what == "weight" and inside and _subsamples(cut[side].nodes[name]):
                    continue  # the plate's own N/B
                after = there[name][what]
                slack = (rounding or {}).get((side, name), torch.zeros(()))
                if kept is not None:
                    before, slack, after = (
                        _cut(site, value, kept, batch=True) if value.dim() and cuts else value
                        for value, cuts in ((before, True), (slack, True), (after, both))
                    )
                # Terms of another plate of as many rows are as many as the rows.
                other = not inside and before.shape != after.shape
                if other or not _close(before, after, slack):
                    found.add(Change(side, name, inside, what))
    return found


def _subsamples(site: Message) -> bool:
    """Return whether the plate of the data says that it has some of N rows."""
    frame = data_frame(site)
    return frame is not None and frame.full_size != frame.size


def changes_by_others(run: PairOf, few: Batch) -> set[Change] | None:
    """Return what changes inside the plate where the other rows, as many, are other ones.

    For a program that draws numbers of its own: as many rows have the same ones; and for one that
    takes no other number of rows. None where it does not run on them.

    Arguments:
        run: Runs the pair on a batch at given latents.
        few: Some rows.
    """
    rows = num_rows(few)
    found: set[Change] = set()
    try:
        whole = run(few, {})
        if unlike(whole, run(few, latents_cut(whole))):
            return found
        for kept in _sides(rows):
            index = kept[:1].expand(rows).clone()
            index[kept] = kept
            piece = run(cut_to(few, index), latents_cut(whole, index))
            found |= {each for each in unlike(whole, piece, kept, both=True) if each.inside}
    except Exception:  # as in changes_beside
        return None
    return found


def _sides(rows: int) -> Iterator[Tensor]:
    """Yield rows to keep while the others are replaced: both sides of partitions.

    One for each binary digit of a row's number parts any two rows. Of many rows, which cost more to
    run, the first and the last digit and a random partition part lags, seasons and groups.
    """
    numbers = torch.arange(rows)
    digits = [(numbers >> digit) % 2 == 0 for digit in range(max(1, (rows - 1).bit_length()))]
    if rows > _ALL_PAIRS:
        drawn = torch.rand(rows, generator=torch.Generator().manual_seed(0)) < 0.5
        digits = [digits[0], digits[-1], drawn]
    for side in digits:
        yield from (numbers[side], numbers[~side])


def changes_beside(run: PairOf, few: Batch, cuts: Sequence[Tensor]) -> set[Change] | None:
    """Return what changes of some rows where the others are cut away.

    None where that cannot be told: the program does not run on them, or its numbers change from run
    to run. Latents outside the plate whose shape follows the rows can not be given to a cut.

    Arguments:
        run: Runs the pair on a batch at given latents.
        few: Some rows.
        cuts: Those of them that stay, one cut after the other.
    """
    try:
        whole = run(few, {})
        pieces = [(kept, run(cut_to(few, kept), latents_cut(whole, kept))) for kept in cuts]
        if not any(unlike(whole, piece, kept) for kept, piece in pieces):
            return set()
        if unlike(whole, run(few, latents_cut(whole), 1)):  # noise, of which a cut has another part
            return None
        rounding = rounding_of(whole, [run_rounded(run, few, whole, s) for s in range(TRIES)])
        return {each for kept, piece in pieces for each in unlike(whole, piece, kept, rounding)}
    except Exception:  # whatever a user's function raises on rows that it was not written for
        return followers(run, few, cuts[0]) or None


def takes_parts(run: PairOf, batch: Batch, parts: Sequence[Tensor]) -> bool:
    """Return whether the pair runs on parts of a batch, which costs no run on the whole."""
    try:
        for kept in parts:
            run(cut_to(batch, kept), {})
    except Exception:  # as in changes_beside
        return False
    return True


def followers(run: PairOf, few: Batch, kept: Tensor) -> set[Change]:
    """Return the latents outside the plate that have another shape for fewer rows."""
    try:
        here, there = (
            {
                (side, name): site["value"].shape
                for side, trace in enumerate(run(rows, {}))
                for name, site in sample_sites(prune_subsample_sites(trace))
                if not (site["is_observed"] or is_deterministic(site)) and data_frame(site) is None
            }
            for rows in (few, cut_to(few, kept))
        )
    except Exception:  # as in changes_beside
        return set()
    both = here.keys() & there.keys()
    return {Change(*term, False, "shape") for term in both if there[term] != here[term]}


def run_rounded(run: PairOf, few: Batch, whole: Pair, seed: int) -> Pair:
    """Run the pair where arguments, latents and what is multiplied are rounded once more."""
    rounded = functools.partial(_rounded, seed=seed)
    latents = {name: rounded(value) for name, value in latents_cut(whole).items()}
    with RoundedProducts(seed):
        return run(map_batch(rounded, few), latents)


def _rounded(value: Tensor, seed: int) -> Tensor:
    """Return numbers as one more rounding leaves them; whole ones, which may be labels, stay."""
    return torch.where(value == value.round(), value, _moved(value, seed))


def _moved(value: Tensor, seed: int) -> Tensor:
    """Return numbers a rounding or two away; whole ones as they are."""
    if not value.is_floating_point():
        return value
    noise = torch.rand(value.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    return value * (1 + 8 * torch.finfo(value.dtype).eps * noise.to(value))


class RoundedProducts(TorchDispatchMode):
    """Round what matrix products multiply once more.

    Their large terms may cancel: then a sum in another order, as for another number of rows, is far
    from the one before, though what goes into the network has hardly moved.

    Arguments:
        seed: of the roundings.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _PRODUCTS:
            moved = functools.partial(_moved, seed=self.seed)
            args = pytree.tree_map_only(Tensor, moved, args)
        return func(*args, **(kwargs or {}))


class EqualNoise(TorchDispatchMode):
    """Draw one number for all: a cut of the rows has then its part of the noise.

    Rows in a random order begin with the last: beside each stands another.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        drawn = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and isinstance(drawn, Tensor):
            if drawn.is_floating_point():
                drawn.fill_(_DRAWN)
            elif func.overloadpacket is torch.ops.aten.randperm:
                drawn.copy_(torch.arange(len(drawn)).roll(1))
            else:
                drawn.zero_()
        return drawn


def with_equal_noise(run: PairOf, few: Batch) -> PairOf:
    """Return runs of a pair that draw one number for all that is noise, but for the latents.

    Arguments:
        run: Runs the pair on a batch at given latents.
        few: Some rows, whose latents stand where none are given.
    """
    drawn = latents_cut(run(few, {}))

    def steady(some: Batch, latents: Mapping[str, Tensor], *more: Any) -> Pair:
        with EqualNoise():
            return run(some, latents or drawn, *more)

    return steady


def rounding_of(whole: Pair, rounded: Sequence[Pair]) -> Rounding:
    """Return how much of each density may differ by rounding: matrix products of other rows do.

    The most of several tries: one of them alone may move a density by next to nothing.
    """
    tries = [[dict(_terms(each[side])) for each in rounded] for side in (MODEL, GUIDE)]
    return {
        (side, name): _ROUNDINGS
        * torch.stack(
            [_spread(terms["density"], there[name]["density"]) for there in tries[side]]
        ).amax(0)
        for side in (MODEL, GUIDE)
        for name, terms in _terms(whole[side])
        if all(name in there for there in tries[side])
    }


def kinds_of_terms(run: PairOf, few: Batch, terms: Collection[Term]) -> set[tuple[Term, Kind]]:
    """Return which terms outside the plate are sums over the rows, or means: by those of two parts.

    Nothing where the program does not run on these, or all of a sum comes from one of them: so does
    the mean of one row.

    Arguments:
        run: Runs the pair on a batch at given latents.
        few: Some rows, which the program has run on.
        terms: Those that change where rows are cut away.
    """
    numbers, left = torch.arange(num_rows(few)), set(terms)
    found: set[tuple[Term, Kind]] = set()
    with suppress(Exception):  # as in changes_beside
        whole = run(few, {})
        total = _outside(whole)
        rounded = _outside(run_rounded(run, few, whole, 0))
        for first in (numbers % 3 == 0, numbers % 2 == 0, numbers < len(numbers) // 2):
            parts = [numbers[first], numbers[~first]]
            pieces = [_outside(run(cut_to(few, kept), latents_cut(whole, kept))) for kept in parts]
            shares = [len(kept) / len(numbers) for kept in parts]
            for term in tuple(left):
                values = [piece.get(term, torch.zeros(())).double() for piece in pieces]
                here, near = (each.get(term, torch.zeros(())) for each in (total, rounded))
                kind = _kind(here, values, shares, near)
                if kind is not None:
                    found.add((term, kind))
                    left.remove(term)
    return found


def _kind(here: Tensor, values: list[Tensor], shares: list[float], near: Tensor) -> Kind | None:
    """Return what a term is of those of two parts; None where one of these has all of a sum.

    A penalty beside a sum of many rows is small: no more than rounding may be apart.
    """
    size = sum((value.abs() for value in values), here.double().abs())
    slack = 4 * (here - near).abs().double() + 32 * torch.finfo(here.dtype).eps * size
    mean = sum(value * share for value, share in zip(values, shares, strict=True))
    is_sum, is_mean = ((here.double() - all_).abs() <= slack for all_ in (sum(values), mean))
    if not bool(is_sum):
        return "mean" if bool(is_mean) else "other"
    return "sum" if all(bool(value != 0) for value in values) else None


def _outside(pair: Pair) -> dict[Term, Tensor]:
    """Return the terms outside the plate, with their weights."""
    return {
        (side, name): (terms["density"] * terms["weight"]).sum()
        for side in (MODEL, GUIDE)
        for name, terms in _terms(pair[side])
        if data_frame(pair[side].nodes[name]) is None
    }


def _spread(one: Tensor, two: Tensor) -> Tensor:
    """Return how far two densities differ, in each row and in the middle one, whichever is more."""
    far = (one - two).abs().nan_to_num(torch.inf)
    return far.maximum(far.median())


def _terms(trace: Trace) -> Iterator[tuple[str, dict[Literal["density", "weight"], Tensor]]]:
    for name, site in sample_sites(prune_subsample_sites(trace)):
        if is_deterministic(site) or not has_density(site["fn"]):
            continue
        density = density_of(site)
        weight = torch.as_tensor(site["scale"], dtype=density.dtype)
        yield name, {"density": density, "weight": weight.expand(density.shape)}


def density_of(site: Message) -> Tensor:
    """Return the log density of a site; of a point mass, which has none, where it is.

    The site keeps it: a run is compared with many others.
    """
    if "looked_at" not in site:
        point = innermost(site["fn"])
        site["looked_at"] = (
            point.v.reshape((*site["fn"].batch_shape, -1)).sum(-1)
            if isinstance(point, Delta)
            else scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"])
        )
    density: Tensor = site["looked_at"]
    return density


def _cut(site: Message, value: Tensor, kept: Tensor, batch: bool = False) -> Tensor:
    """Return what a site has of some rows; of one outside the plate, or equal in all, the whole."""
    frame: Any = data_frame(site)
    if frame is None or frame.dim is None:
        return value
    dim = frame.dim - (0 if batch else site["fn"].event_dim)
    if value.dim() < -dim or value.shape[dim] == 1:
        return value
    return value.index_select(dim, kept.to(value.device))


def _close(one: Tensor, two: Any, slack: Any = 0.0) -> bool:
    if one.shape != two.shape:
        one, two = torch.broadcast_tensors(one, two)
    one, two = one.double(), two.double()
    near = (one - two).abs() <= 1e-5 + 1e-4 * two.abs() + slack
    return bool((near | (one == two) | (one.isnan() & two.isnan())).all())
