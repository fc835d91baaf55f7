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
        self.rows = num_rows(batch)

    def plain(self) -> Trace | None:
        """Run on the data as they are."""
        return self._run(self._batch, self._same)

    def others(self) -> Trace | None:
        """Run on the data as they are at other latents; values know which parameters they have."""
        return self._run(self._batch, self._others, grad=True)

    def high(self, only: Tensor | None = None) -> Trace | None:
        """Run with numbers in the place of NaN, in one argument alone, that are above the rest."""
        return self._run(map_batch(partial(_high, only=only), self._batch), self._same)

    def low(self) -> Trace | None:
        """Run with numbers in the place of NaN that are below the rest."""
        return self._run(map_batch(_low, self._batch), self._same)

    def beside(self) -> Trace | None:
        """Run with NaN where it is, and other numbers than those that are seen."""
        return self._run(map_batch(_beside, self._batch), self._same)


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
            return fn.sample()
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


def _high(leaf: Tensor, only: Tensor | None = None) -> Tensor:
    """Return data with numbers in the place of NaN that are above all of their column."""
    if only is not None and leaf is not only:
        return leaf
    if not has_holes(leaf):
        return leaf
    _, high, step = _range(leaf)
    return torch.where(leaf.isnan(), high + step, leaf)


def _low(leaf: Tensor) -> Tensor:
    """Return data with numbers in the place of NaN that are below all of their column."""
    if not has_holes(leaf):
        return leaf
    low, _, step = _range(leaf)
    return torch.where(leaf.isnan(), low - step, leaf)


def _beside(leaf: Tensor) -> Tensor:
    """Return data with NaN where it was, and all numbers a little larger."""
    return leaf + _range(leaf)[2] if has_holes(leaf) else leaf


def _range(leaf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the least and the largest number of each column, and a small step for each cell.

    Class numbers and counts stay what they are when they are cut to whole numbers.
    """
    seen = leaf.isfinite()
    none = ~seen.any(0, keepdim=True)  # of such a column, say of classes, 0 and 1 do
    low = leaf.where(seen, torch.inf).amin(0, keepdim=True).masked_fill(none, 0.0)
    high = leaf.where(seen, -torch.inf).amax(0, keepdim=True).masked_fill(none, 1.0)
    step = (0.01 * (high - low)).clamp(max=0.1)
    step = torch.where(step > 0, step, 0.1)
    return low, high, step * torch.linspace(0.5, 1.0, leaf.numel()).to(leaf).view_as(leaf)
