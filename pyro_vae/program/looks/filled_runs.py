"""Runs of a model on data with holes, and with other numbers in their place."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.program.batches.batch import Batch, map_batch, num_rows
from pyro_vae.program.checks import is_discrete
from pyro_vae.program.handlers import Message, innermost

Run = Callable[..., Trace | None]  # ``Runs.model_under``


class FilledRuns:
    """Runs a model at the same latents, and with the same random numbers; None where it fails.

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

    def plain(self) -> Trace | None:
        """Run on the data as they are."""
        return self._run(self._batch, self._same)

    def others(self) -> Trace | None:
        """Run on the data as they are at other latents; values know which parameters they have."""
        return self._run(self._batch, self._others, grad=True)

    def filled(self, *, high: bool, only: Tensor | None = None) -> Trace | None:
        """Run with the least or the largest number seen in the place of NaN, in one argument alone.

        Numbers are those of the same column.
        """
        fill = partial(_filled, high=high, only=only)
        found = self._run(map_batch(fill, self._batch), self._same)
        self.failed |= found is None
        return found

    def ends(self) -> Trace | None:
        """Run with NaN where it is, and for each number seen the largest, or for that the least."""
        return self._run(map_batch(_ends, self._batch), self._same)

    def mixed(self, seed: int) -> Trace | None:
        """Run with NaN where it is, and for each number seen one of these two at random."""
        return self._run(map_batch(partial(_mixed, seed=seed), self._batch), self._same)


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


def has_holes(leaf: Any) -> bool:
    real = isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.is_meta
    return real and bool(leaf.isnan().any())


def _filled(leaf: Tensor, *, high: bool, only: Tensor | None) -> Tensor:
    """Return data with the least or the largest number of a column in the place of its NaN."""
    if (only is not None and leaf is not only) or not has_holes(leaf):
        return leaf
    return torch.where(leaf.isnan(), _range(leaf)[high], leaf)


def _ends(leaf: Tensor) -> Tensor:
    """Return data with NaN where it was, and each number the largest, or that one the least."""
    if not has_holes(leaf):
        return leaf
    low, high = _range(leaf)
    return torch.where(leaf < high, high, low).where(~leaf.isnan(), leaf)


def _mixed(leaf: Tensor, seed: int) -> Tensor:
    """Return data with NaN where it was, and each number the largest or the least of its column."""
    if not has_holes(leaf):
        return leaf
    low, high = _range(leaf)
    coins = torch.rand(leaf.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    return torch.where(coins.to(leaf.device), high, low).where(~leaf.isnan(), leaf)


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
