"""Integers that come as floats: counts as files hold them, and what networks multiply."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Multinomial

from pyro_vae.callers import of_user
from pyro_vae.errors import DataError, ProgramError
from pyro_vae.program.batches.batch import Batch, as_batch, cuda_devices, given_arguments
from pyro_vae.program.batches.sparse_rows import SparseRows
from pyro_vae.program.handlers import Message, innermost, sample_sites
from pyro_vae.program.sites.observed import Binding, Cast, Key
from pyro_vae.program.told import silenced

_MOST_CHOSEN_FROM = 4  # arguments, of which each choice is tried


class Counts:
    """Which arguments of a program come as floats, though they hold integers.

    A site that draws floats (Poisson, Bernoulli, Normal) gives floats back where its data are
    generated, and ``x.new_zeros`` of integers is no parameter of a prior: integers that it observes
    whole are made floats at the door, and so are those that a network multiplies. Class numbers,
    and what the functions use as an index, stay.
    """

    def __init__(self) -> None:
        self._keys: set[Key] = set()
        self._scored: set[Key] = set()  # of these, those that a density over floats observes
        self._told: set[Key] = set()  # and of these, those that were rounded with a warning

    def candidates(
        self, sites: Iterable[tuple[str, Message]], bindings: Mapping[str, Binding], batch: Batch
    ) -> set[Key]:
        """Return the arguments of integers that a site observes whole, and draws as floats.

        Arguments:
            sites: The observed ones of a trace of the model.
            bindings: What each observes.
            batch: What the model ran on.
        """
        given = _by_key(batch)
        return {
            bindings[name].key
            for name, site in sites
            if name in bindings
            and _observes_whole(bindings[name])
            and _is_integer(given[bindings[name].key])
            and _draws_floats(site["fn"])
        }

    def settle(
        self,
        candidates: set[Key],
        batch: Batch,
        dtype: torch.dtype | None,
        run: Callable[[Batch], Any],
    ) -> None:
        """Make each candidate a float from now on, unless the program does not run on it so.

        Arguments:
            candidates: Arguments.
            batch: Rows to try on.
            dtype: Of the program's floats.
            run: Runs the program on a batch.
        """
        given, floats = _by_key(batch), dtype or torch.get_default_dtype()
        for key in candidates - self._keys:
            if digits_lost(given[key], floats):
                continue  # the functions may reckon with the last of them
            self._keys.add(key)
            self._scored.add(key)
            try:
                run(self.as_floats(batch, dtype))
            except (DataError, ProgramError):
                self._keys.remove(key)
                self._scored.remove(key)

    def try_floats(
        self, batch: Batch, dtype: torch.dtype | None, run: Callable[[Batch], Any]
    ) -> bool:
        """Make floats of the fewest integers with which a program runs that refuses a batch.

        Of as many, those that no density over integers observes, if there are such.

        Arguments:
            batch: What the program does not run on.
            dtype: Of the program's floats.
            run: Runs the program on a batch, and returns its trace, or those of model and guide.

        Returns:
            Whether that helps.
        """
        leaves = _by_key(batch).items()
        keys = [key for key, leaf in leaves if _is_count(leaf) and key not in self._keys]
        before, classes = self._keys, None  # keys with which it runs that hold class numbers
        for some in _choices(keys):
            if classes is not None and len(before | some) > len(classes):
                break
            self._keys = before | some
            try:
                floats = self.as_floats(batch, dtype)
                ran = run(floats)
            except (DataError, ProgramError):
                continue
            if not _has_classes(ran, floats, some):
                return True
            classes = classes or self._keys
        self._keys = classes or before
        return classes is not None

    def as_floats(self, batch: Batch, dtype: torch.dtype | None) -> Batch:
        """Return a batch, the same one where there is nothing to do, with these made floats.

        Raises:
            DataError: Numbers that a network multiplies, and that these floats do not hold exactly.
                Those that a density alone scores are rounded with a warning: it hardly moves by
                their last digits, and other code may.
        """
        if not self._keys:
            return batch
        given = _by_key(batch)
        if not any(_is_integer(given.get(key)) for key in self._keys):
            return batch
        floats = dtype or torch.get_default_dtype()
        come = {
            key: self._in_floats(key, leaf, floats)
            if key in self._keys and _is_integer(leaf)
            else leaf
            for key, leaf in given.items()
        }
        args, kwargs = given_arguments(batch)
        positional = tuple(come[place] for place in range(len(args)))
        return as_batch(batch, positional, {name: come[name] for name in kwargs})

    def _in_floats(
        self, key: Key, leaf: Tensor | SparseRows, dtype: torch.dtype
    ) -> Tensor | SparseRows:
        lost = "" if key in self._told else digits_lost(leaf, dtype)
        name = f"argument {key}" if isinstance(key, int) else key
        if lost and key not in self._scored:
            raise DataError(f"{name}: the program takes it as floats, and {lost}")
        if lost and not silenced():
            self._told.add(key)
            warnings.warn(
                f"{name}: a density scores it in floats, which round it: {lost}",
                stacklevel=of_user(),
            )
        return leaf.to(dtype)


def _by_key(batch: Batch) -> dict[Key, Any]:
    args, kwargs = given_arguments(batch)
    given: dict[Key, Any] = dict(enumerate(args))
    given.update(kwargs)
    return given


def digits_lost(leaf: Tensor | SparseRows, dtype: torch.dtype) -> str:
    """Return which integers a type of floats does not hold exactly, and what to do; or nothing.

    Values that cannot be seen (a tracer, a meta tensor) lose none.
    """
    values = leaf.values if isinstance(leaf, SparseRows) else leaf
    if values.is_meta or values.dtype == torch.bool or not values.numel():
        return ""
    bound = int(2 / torch.finfo(dtype).eps)  # up to which all of them are held
    try:
        low, high = (int(value) for value in values.aminmax())
        if max(-low, high) <= bound or torch.equal(values.to(dtype).to(values.dtype), values):
            return ""
    except RuntimeError:
        return ""
    return (
        f"got whole numbers from {low} to {high}, expected none beyond {bound}, up to which "
        f"{str(dtype).removeprefix('torch.')} holds each exactly; subtract an offset from the "
        "data, or take program and data in float64 (program.double())"
    )


def _choices(keys: list[Key]) -> Iterator[set[Key]]:
    """Yield sets of arguments, the smallest first; of many arguments, each and all of them."""
    sizes = range(1, len(keys) + 1)
    for size in sizes if len(keys) <= _MOST_CHOSEN_FROM else sorted({1, len(keys)}):
        yield from map(set, combinations(keys, size))


def _has_classes(ran: Trace | tuple[Trace, Trace], batch: Batch, keys: set[Key]) -> bool:
    """Return whether a density that draws integers observes one of some arguments of a batch."""
    model = ran if isinstance(ran, Trace) else ran[0]
    leaves = [leaf for key, leaf in _by_key(batch).items() if key in keys]
    with torch.random.fork_rng(cuda_devices(batch)):
        return any(
            not _draws_floats(site["fn"])
            for _, site in sample_sites(model)
            if any(site["value"] is leaf for leaf in leaves)
        )


def _observes_whole(binding: Binding) -> bool:
    """Return whether a site observes all of its argument, and nothing besides."""
    whole = all(isinstance(step, Cast) or step.whole for step in binding.steps)
    return whole and not binding.computed


def _is_integer(leaf: Any) -> bool:
    if not isinstance(leaf, Tensor | SparseRows):
        return False
    return not (leaf.is_floating_point() or leaf.dtype.is_complex)


def _is_count(leaf: Any) -> bool:
    """Return whether a leaf may hold counts: what a program says of flags is meant."""
    return _is_integer(leaf) and leaf.dtype != torch.bool


def _draws_floats(fn: Any) -> bool:
    """Return whether a distribution's own draws are floats; one that draws nothing says no."""
    if isinstance(innermost(fn), Multinomial):
        return True  # it draws its counts one by one, of which there may be millions
    try:
        return bool(fn.sample().is_floating_point())
    except (RuntimeError, ValueError, NotImplementedError, AttributeError):
        return False
