"""Arguments that hold tensors inside containers, or words: flat tensors of rows to all verbs."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from pyro_vae.program.batch import Batch, arguments


class Structure:
    """How a user's arguments hold their rows, where a flat batch of tensors does not say it.

    A tuple, list or dict among the arguments is opened, and its tensors are the batch's. A list of
    words becomes the numbers of its words. The program's functions get both back as they were.
    """

    def __init__(self) -> None:
        self._spec: Any = None
        self._places: frozenset[int] = frozenset()  # of lists of words among the leaves
        self._words: dict[str, int] = {}
        self.opened = False  # whether the last data were of another structure than those before

    def flattened(self, data: Any) -> Any:
        """Return data with one tensor, or constant, for each argument; flat data as they are."""
        arguments_ = data.values() if isinstance(data, dict) else data
        self.opened = False
        if not isinstance(data, dict | tuple | list) or isinstance(data, PackedSequence):
            return data
        if not any(_holds_tensors(each) or _is_words(each) for each in arguments_):
            return data
        leaves, spec = pytree.tree_flatten(data, is_leaf=_is_leaf)
        self.opened, self._spec = spec != self._spec, spec
        self._places = frozenset(i for i, leaf in enumerate(leaves) if _is_words(leaf))
        return tuple(self._numbers(leaf) if _is_words(leaf) else leaf for leaf in leaves)

    def restored(self, batch: Batch) -> Batch:
        """Return a flat batch as the user gave it: what ``flattened`` undoes."""
        if self._spec is None or not isinstance(batch, tuple) or len(batch) != self._leaves:
            return batch
        words = list(self._words)
        leaves = [
            [words[number] for number in leaf.tolist()]
            if place in self._places and isinstance(leaf, Tensor)
            else leaf
            for place, leaf in enumerate(batch)
        ]
        return pytree.tree_unflatten(leaves, self._spec)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of flat arguments for one of the user's; itself where all were flat."""
        if self._spec is None:
            return function

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            given = self.restored(args) if not kwargs else args
            if given is args:
                return function(*args, **kwargs)
            positional, named = arguments(given)
            return function(*positional, **named)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = [inspect.Parameter(f"argument_{i}", kind) for i in range(self._leaves)]
        call.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
        return call

    @property
    def _leaves(self) -> int:
        return int(self._spec.num_leaves)

    def _numbers(self, words: list[str]) -> Tensor:
        for word in words:
            self._words.setdefault(word, len(self._words))
        return torch.tensor([self._words[word] for word in words])


def _holds_tensors(value: Any) -> bool:
    """Return whether a container holds arrays, so that it is no array itself."""
    if isinstance(value, PackedSequence) or not isinstance(value, dict | tuple | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return any(isinstance(item, Tensor | np.ndarray) or _holds_tensors(item) for item in items)


def _is_words(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(w, str) for w in value)
    )


def _is_leaf(value: Any) -> bool:
    """Return whether a value is one argument: all but containers that hold arrays or words."""
    if isinstance(value, PackedSequence) or not isinstance(value, dict | tuple | list):
        return True
    items = value.values() if isinstance(value, dict) else value
    return _is_words(value) or not any(
        isinstance(item, Tensor | np.ndarray) or not _is_leaf(item) or _is_words(item)
        for item in items
    )
