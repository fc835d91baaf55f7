"""What PyTorch and Pyro hold of the blocks that are entered, and what an interrupt leaves there."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK

from pyro_vae.torch_private import mode_stacks, put_back_mode_stacks

_AUTOCAST = ("cpu", "cuda")


@contextmanager
def stacks_kept() -> Iterator[None]:
    """Put handlers, modes and flags back where an interrupt has ended the block.

    ``KeyboardInterrupt`` may go off in the midst of an ``__enter__`` or ``__exit__``. What stays
    upon a stack then changes all that runs later in the process: a plate that is not left is
    refused as a duplicate, a mode without gradients trains nothing.
    """
    handled = sys.exc_info()[1]
    handlers, plates = list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)
    modes, gradients, validated = mode_stacks(), torch.is_grad_enabled(), _validated()
    casts = _casts()
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception):
            _leave_blocks(error, handled)
        _PYRO_STACK[:], _DIM_ALLOCATOR._stack[:] = handlers, plates
        put_back_mode_stacks(modes)
        torch.set_grad_enabled(gradients)
        _put_back_casts(casts)
        for module, flag in zip(_VALIDATING, validated, strict=True):
            module.enable_validation(flag)
        raise


def _casts() -> tuple[Any, ...]:
    """Return how deep in autocast this is, whether it keeps its casts, and which kinds are on."""
    kinds = [(k, torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in _AUTOCAST]
    return _autocast_depth(), torch.is_autocast_cache_enabled(), kinds


def _put_back_casts(before: tuple[Any, ...]) -> None:
    depth, cached, kinds = before
    for kind, enabled, dtype in kinds:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)
    torch.set_autocast_cache_enabled(cached)
    # Cast weights are kept until the outermost block is left: of one that never is, for good.
    while _autocast_depth() > depth:
        torch.autocast_decrement_nesting()
    while _autocast_depth() < depth:
        torch.autocast_increment_nesting()
    torch.clear_autocast_cache()


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


_VALIDATING = (pyro.distributions, pyro.infer, poutine)


def _validated() -> list[bool]:
    return [module.is_validation_enabled() for module in _VALIDATING]


def _leave_blocks(error: BaseException, handled: BaseException | None) -> None:
    """Leave now, the innermost first, the blocks that an interrupt has kept from being left.

    Their generators are held by the traceback, and would move the stacks whenever it goes.

    Arguments:
        error: The interrupt.
        handled: What the caller was handling before: a debugger may still look at its frames.
    """
    chain = [error]
    for each in chain:
        known = {id(handled), *map(id, chain)}
        behind = (each.__cause__, each.__context__)
        chain += [e for e in dict.fromkeys(behind) if e is not None and id(e) not in known]
    for each in reversed(chain):
        for frame, _ in reversed(list(traceback.walk_tb(each.__traceback__))):
            with suppress(RuntimeError):  # it still runs
                frame.clear()
