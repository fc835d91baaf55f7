"""What PyTorch and Pyro hold of the blocks that are entered, and what an interrupt leaves there."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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
    casts = {kind: torch.is_autocast_enabled(kind) for kind in _AUTOCAST}
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception):
            _leave_blocks(error, handled)
        _PYRO_STACK[:], _DIM_ALLOCATOR._stack[:] = handlers, plates
        put_back_mode_stacks(modes)
        torch.set_grad_enabled(gradients)
        for kind, enabled in casts.items():
            torch.set_autocast_enabled(kind, enabled)
        torch.clear_autocast_cache()  # weights as they were: it is kept where a block is not left
        for module, flag in zip(_VALIDATING, validated, strict=True):
            module.enable_validation(flag)
        raise


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
