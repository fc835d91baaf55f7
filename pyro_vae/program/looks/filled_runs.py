"""Runs of a model on data with holes, and with other numbers in their place."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.program.batches.batch import Batch, map_batch, named_leaves, num_rows
from pyro_vae.program.checks import is_discrete
from pyro_vae.program.handlers import Message, innermost

FEW, MANY = 3, 7  # columns for which 8 runs have codes, and 16
Fill = Literal["high", "low", "same"]
Run = Callable[..., Trace | None]  # ``Runs.model_under``


class _Marks(NamedTuple):
    """An argument that marks the cells of another which are seen, or those which are not."""

    leaf: Tensor
    given: Tensor  # has the holes
    of_seen: bool

    def on(self, made: Tensor) -> Tensor:
        """Return the marks of other numbers in the place of those which have the holes."""
        return (made.isnan() ^ self.of_seen).to(self.leaf.dtype)


class FilledRuns:
    """Runs a model at the same latents, and with the same random numbers; None where it fails.

    An argument that marks the holes of another marks those that are left: data in which nothing is
    missing say so.

    Arguments:
        run: Runs the program.
        batch: Some rows, with holes.
        model, guide: Their traces.
    """

    def __init__(self, run: Run, batch: Batch, model: Trace, guide: Trace) -> None:
        self._run, self._batch = run, batch
        self._same = _Latents(model, guide)
        self._others = _Latents(model, guide, others=True)
        self.rows, self.failed = num_rows(batch), False

    @cached_property
    def _marks(self) -> list[_Marks]:
        return list(_marks_in(self._batch))

    def are_marks(self, value: Tensor) -> bool:
        """Return whether a value with rows first is an argument that marks the holes of another."""
        leaves = [marks.leaf for marks in self._marks if marks.leaf.shape == value.shape]
        return any(torch.equal(leaf.to(value), value.detach()) for leaf in leaves)

    def plain(self) -> Trace | None:
        """Run on the data as they are."""
        return self._run(self._batch, self._same)

    def others(self) -> Trace | None:
        """Run on the data as they are at other latents; values know which parameters they have."""
        return self._run(self._batch, self._others, grad=True)

    def filled(self, *, high: bool) -> Trace | None:
        """Run with the least or the largest number seen of its column in the place of each NaN."""
        found = self._run_on(self._marked(partial(_filled, high=high)))
        self.failed |= found is None
        return found

    def with_another(
        self, leaf: Tensor, rows: Tensor | None, *, fill: Fill | None = None
    ) -> Trace | None:
        """Run with other numbers in one argument, which keeps its holes.

        Arguments:
            leaf: The argument.
            rows: Which of its rows have others; None is none.
            fill: What stands in the place of NaN in all other arguments: the largest numbers of
                their columns, the least, or the same as this argument has there, or in its row
                (no run where it has others); None leaves them as they are.
        """
        now = leaf if rows is None else turned(leaf, leaf, rows)

        def made(each: Tensor) -> Tensor:
            if each is leaf or fill is None:
                return each
            return _filled_with(each, now) if fill == "same" else _filled(each, high=fill == "high")

        marked = self._marked(made)

        def other(each: Tensor) -> Tensor:
            here = marked(each)
            return here if rows is None or each is not leaf else turned(here, each, rows)

        holey = [each for _, each in named_leaves(self._batch) if has_holes(each)]
        fit = all(each is leaf or _fits(now, each) for each in holey)
        return self._run_on(other) if fit or fill != "same" else None

    def of_codes(
        self, codes: Tensor, *, full: bool = False, only: Tensor | None = None, chosen: Any = None
    ) -> list[Trace | None]:
        """Run with each number seen the least or the largest of its column, by a code.

        Columns have other codes, by turns; rows begin one way or the other.

        Arguments:
            codes: Of ``codes_of``: a run in each row, and in each column a code.
            full: Whether there are numbers in the place of NaN too, as if those were seen.
            only: An argument in some of whose cells there are.
            chosen: These cells, which have the last code.
        """
        coded = partial(_coded, full=full, only=only, chosen=chosen)
        return [self._run_on(self._marked(partial(coded, code=code))) for code in codes]

    def _run_on(self, made: Callable[[Tensor], Tensor]) -> Trace | None:
        return self._run(map_batch(made, self._batch), self._same)

    def _marked(self, made: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Return what makes other data, with marks of their holes where an argument has such."""

        def with_marks(leaf: Tensor) -> Tensor:
            for marks in self._marks:
                if leaf is marks.leaf:
                    return marks.on(made(marks.given))
            return made(leaf)

        return with_marks


class _Latents(Messenger):
    """Gives latents the values that they have in traces, or others, and plates the same rows.

    Arguments:
        model, guide: The traces.
        others: Whether latents get other values of their priors.
    """

    def __init__(self, model: Trace, guide: Trace, *, others: bool = False) -> None:
        super().__init__()
        self._model, self._guide, self._others = model, guide, others

    def _pyro_sample(self, msg: Message) -> None:
        nodes = self._model.nodes if msg["name"] in self._model.nodes else self._guide.nodes
        known = nodes.get(msg["name"])
        if known is None or known["type"] != "sample" or msg["is_observed"]:
            return
        value: Any = known["value"]
        if not site_is_subsample(msg):
            if self._others and nodes is self._model.nodes:
                value = _another(known)
            if not hasattr(msg["fn"], "shape") or msg["fn"].shape() != value.shape:
                return  # one value for each hole, of other holes
        msg["value"], msg["done"] = value, True


def _another(site: Message) -> Tensor:
    """Return another value of a latent: of its prior, or the next in its support."""
    fn, value = site["fn"], site["value"]
    base = innermost(fn)
    if not is_discrete(fn):
        with suppress(NotImplementedError), torch.random.fork_rng([]):
            drawn: Tensor = fn.sample()  # by a guide that is the prior, from the same state
            return fn.sample() if torch.equal(drawn, value) else drawn
    elif getattr(base, "has_enumerate_support", False):
        support = base.enumerate_support()
        index = slice(None), *(None,) * (value.dim() + 1 - support.dim())
        wide = support[index]
        own = len(base.event_shape)
        here = wide == value
        if own:
            over_event = (..., *(None,) * own)
            here = here.flatten(-own).all(-1)[over_event]
        return (wide.roll(-1, 0) * here).sum(0).to(value.dtype)
    return value + 1


def codes_of(count: int) -> Tensor:
    """Return codes for so many columns, or as many as there are, and one more.

    No two of them go together, nor is one alike in all runs, or goes with how two others do: the
    columns of Hadamard's matrix with an odd number of factors.
    """
    two, made, odd = torch.tensor([[1, 1], [1, -1]]), torch.ones(1, 1), torch.zeros(1)
    for _ in range(3 if count <= FEW else 4):
        made, odd = torch.kron(made, two), torch.cat([odd[:, None], 1 - odd[:, None]], 1).flatten()
    return made[:, odd > 0] > 0


def steps_of(leaf: Tensor) -> Tensor:
    """Return how far apart the two numbers of each column are, as a row."""
    low, high = _range(leaf)
    return (high - low).flatten()


def turned(now: Tensor, leaf: Tensor, rows: Tensor) -> Tensor:
    """Return what an argument is now with another number of its column in each cell of some rows.

    Arguments:
        now: As it stands in a run.
        leaf: As it is given, whose columns have the numbers.
        rows: Which rows, ``(B,)``.
    """
    low, high = _range(leaf) if leaf.is_floating_point() else (leaf.amin(0), leaf.amax(0))
    other = torch.where(now == high, low, high).to(now.dtype)
    some = rows.to(now.device).reshape(-1, *(1,) * (now.dim() - 1))
    return torch.where(some & ~now.isnan(), other, now)


def has_holes(leaf: Any) -> bool:
    real = isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.is_meta
    return real and bool(leaf.isnan().any())


def filled(batch: Batch, *, high: bool) -> Batch:
    """Return a batch with the least or the largest number of a column in the place of its NaN."""
    return map_batch(partial(_filled, high=high), batch)


def _marks_in(batch: Batch) -> Iterator[_Marks]:
    """Yield the arguments that are 0 and 1, or flags, by the holes of another."""
    leaves = [leaf for _, leaf in named_leaves(batch) if not leaf.is_meta]
    holey = [leaf for leaf in leaves if has_holes(leaf)]
    for leaf in leaves:
        for given in holey:
            for of_seen in (True, False):
                marks = _Marks(leaf, given, of_seen)
                if leaf.shape == given.shape and torch.equal(leaf, marks.on(given).to(leaf.device)):
                    yield marks


def _filled(leaf: Tensor, *, high: bool) -> Tensor:
    """Return data with the least or the largest number of a column in the place of its NaN."""
    return torch.where(leaf.isnan(), _range(leaf)[high], leaf) if has_holes(leaf) else leaf


def _fits(numbers: Tensor, leaf: Tensor) -> bool:
    """Return whether there is a number for each cell of an argument, or for each row."""
    return numbers[0].numel() in (1, leaf[0].numel())


def _filled_with(leaf: Tensor, numbers: Tensor) -> Tensor:
    """Return data with the numbers of another argument in the place of NaN.

    On a GPU they are of the range of their column, for the reason that ``_range`` has.
    """
    if not has_holes(leaf):
        return leaf
    shape = leaf.shape if numbers[0].numel() > 1 else (len(leaf), *(1,) * (leaf.dim() - 1))
    given = numbers.to(leaf).reshape(shape)
    if leaf.is_cuda:
        given = given.clamp(*_range(leaf))
    return torch.where(leaf.isnan(), given, leaf)


def _coded(leaf: Tensor, *, full: bool, only: Tensor | None, chosen: Any, code: Tensor) -> Tensor:
    """Return data whose numbers are the largest of their column where the code says so.

    Arguments:
        leaf: An argument.
        full, only, chosen: As for ``of_codes``.
        code: Of one run, what says so for each kind of column, and at the end for chosen cells.
    """
    if not has_holes(leaf):
        return leaf
    low, high = _range(leaf)
    rows = leaf.reshape(len(leaf), -1)
    kinds = code[torch.arange(rows.shape[1]) % (len(code) - 1)].expand(rows.shape)
    turned = torch.rand(len(leaf), 1, generator=torch.Generator().manual_seed(0)) < 0.5
    ups, own = (each.to(leaf.device) for each in (kinds ^ turned, code[-1] ^ turned))
    made = torch.where(ups.reshape(leaf.shape), high, low)
    own = own.reshape(-1, *(1,) * (leaf.dim() - 1))
    filled = leaf if leaf is not only else torch.where(chosen, torch.where(own, high, low), leaf)
    return torch.where(leaf.isnan(), made if full else filled, made)


def _range(leaf: Tensor) -> tuple[Tensor, Tensor]:
    """Return two numbers of each column: the least and the largest that are seen.

    No others: what a program does with them, as to look up a class, may fail, and on a GPU a
    failure ends the process. A column of one number has none but it there. Elsewhere the other is
    nearer to 0, a whole number beside a whole one, and 1 beside 0; where none is seen, 0 and 1 do.
    """
    seen = leaf.isfinite()
    none = ~seen.any(0, keepdim=True)
    low = leaf.where(seen, torch.inf).amin(0, keepdim=True).masked_fill(none, 0.0)
    high = leaf.where(seen, -torch.inf).amax(0, keepdim=True).masked_fill(none, 0.0)
    if leaf.is_cuda:
        return low, high
    step = 0.01 * low.abs()
    step = step.ceil().where(low == low.round(), step)
    other = (low - low.sign() * step).where(low != 0, 1.0).where(low == high, low)
    return torch.minimum(low, other), torch.maximum(high, other)
