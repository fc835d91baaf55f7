"""Arguments that hold tensors inside containers, or words: flat tensors of rows to all verbs."""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyro_vae.program.batches.batch import Batch, Form, arguments, is_words
from pyro_vae.torch_private import pytree


class Structure:
    """How a user's arguments hold their rows, where a flat batch of tensors does not say it.

    A tuple, list or dict among the arguments is opened, and its tensors are the batch's. A list of
    words, one for each row, becomes the numbers of its words. The batch ends with its ``Form``, by
    which the program's functions get both back as they were: two data of one program may have two.
    """

    def __init__(self) -> None:
        self._forms: list[Form] = []  # one object for each: batches of one form are alike
        self._words: dict[str, int] = {}
        self._names: set[tuple[str, ...]] = set()  # lists that were no words of rows once

    def flattened(self, data: Any) -> Any:
        """Return data with one tensor, or constant, for each argument; flat data as they are."""
        arguments_ = data.values() if isinstance(data, dict) else data
        if not isinstance(data, dict | tuple | list) or isinstance(data, PackedSequence):
            return data
        if not any(_holds_tensors(each) or is_words(each) for each in arguments_):
            return data
        leaves, spec = pytree.tree_flatten(data, is_leaf=_is_leaf)
        rows = _rows_of(leaves)
        lists = [tuple(leaf) for leaf in leaves if is_words(leaf)]
        self._names |= {each for each in lists if len(each) != (rows or len(each))}
        words = {
            place: type(leaf)
            for place, leaf in enumerate(leaves)
            if is_words(leaf) and tuple(leaf) not in self._names
        }
        if (
            all(leaf is given for leaf, given in zip(leaves, arguments_, strict=False))
            and not words
        ):
            return data  # a list of names beside rows is a constant
        form = Form(spec, words)
        if form not in self._forms:
            self._forms.append(form)
        flat = [
            self._numbers(leaf) if place in words else leaf for place, leaf in enumerate(leaves)
        ]
        return (*flat, self._forms[self._forms.index(form)])

    def restored(self, batch: Batch) -> Batch:
        """Return a flat batch as the user gave it: what ``flattened`` undoes."""
        if not isinstance(batch, tuple) or not batch or not isinstance(batch[-1], Form):
            return batch
        *leaves, form = batch
        known = list(self._words)
        for place, kind in form.words.items():
            if isinstance(leaves[place], Tensor):
                leaves[place] = kind(known[number] for number in leaves[place].tolist())
        return pytree.tree_unflatten(leaves, form.spec)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of flat arguments for one of the user's."""

        @functools.wraps(function, updated=())  # a module has attributes
        def call(*args: Any, **kwargs: Any) -> Any:
            if args and isinstance(args[-1], Form):
                args, kwargs = arguments(self.restored(args))
            return function(*args, **kwargs)

        return call

    def _numbers(self, words: list[str]) -> Tensor:
        for word in words:
            self._words.setdefault(word, len(self._words))
        return torch.tensor([self._words[word] for word in words])


def _rows_of(leaves: list[Any]) -> int | None:
    """Return the length that most arrays share; None where there is none."""
    lengths = [len(leaf) for leaf in leaves if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim]
    return Counter(lengths).most_common(1)[0][0] if lengths else None


def _holds_tensors(value: Any) -> bool:
    """Return whether a container holds arrays, so that it is no array itself."""
    if isinstance(value, PackedSequence) or not isinstance(value, dict | tuple | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return any(isinstance(item, Tensor | np.ndarray) or _holds_tensors(item) for item in items)


def _is_leaf(value: Any) -> bool:
    """Return whether a value is one argument: all but containers that hold arrays or words."""
    if isinstance(value, PackedSequence) or not isinstance(value, dict | tuple | list):
        return True
    items = value.values() if isinstance(value, dict) else value
    return is_words(value) or not any(
        isinstance(item, Tensor | np.ndarray) or not _is_leaf(item) or is_words(item)
        for item in items
    )
