"""What a draw from an iterator uses that differs from call to call: weights, statements of Pyro."""

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from pyro_vae.torch_private import leave_function_mode, storage_address

WEIGHTS, STATEMENTS = "weights", "statements"
_NO_NUMBERS = (torch.Size, int, str, torch.dtype, torch.device, torch.layout, type(None))


@contextmanager
def noting_uses(weights: Container[int]) -> Iterator[set[str]]:
    """Yield what the code inside uses, filled as it runs.

    Both leave their stacks as they are below and above: a generator may have come upon them.

    Arguments:
        weights: Addresses of their memory (``address_of``).
    """
    found: set[str] = set()
    statements, mode = _Statements(found), _Weights(weights, found)
    _PYRO_STACK.append(statements)
    mode.__enter__()
    try:
        yield found
    finally:
        leave_function_mode(mode)
        _PYRO_STACK.remove(statements)


def address_of(value: Any) -> int:
    """Return where the memory of a tensor is; 0 of one that has none (yet), or no tensor."""
    try:
        own = isinstance(value, Tensor) and not is_lazy(value)
        return storage_address(value) if own else 0
    except (NotImplementedError, RuntimeError):  # sparse ones, and those of transforms
        return 0


class _Statements(Messenger):
    def __init__(self, found: set[str]) -> None:
        super().__init__()
        self._found = found

    def _process_message(self, _: Any) -> None:
        self._found.add(STATEMENTS)


class _Weights(TorchFunctionMode):
    """Notes what makes numbers of a weight, in whatever form: detached, as data, as a view."""

    def __init__(self, weights: Container[int], found: set[str]) -> None:
        super().__init__()
        self._weights, self._found = weights, found

    def __torch_function__(
        self, function: Callable[..., Any], _: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        value = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        shape_alone = name.endswith("_like") or name.startswith("new_")
        if not isinstance(value, _NO_NUMBERS) and not shape_alone:
            first_alone = name == "to" or name.endswith("_as")
            used = [*args[:1]] if first_alone else [*args, *kwargs.values()]
            used += [item for each in used if isinstance(each, list | tuple) for item in each]
            if any(address_of(each) in self._weights for each in used):
                self._found.add(WEIGHTS)
        return value
