"""What no CUDA graph can capture, and what waits for a GPU, seen on a machine that has none.

Programs run on ``meta`` there: a tensor on the CPU is as foreign to it as to CUDA, and it has no
values to wait for.
"""

import traceback
from contextlib import ExitStack
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_vae.recording import WAITS
from pyro_vae.torch_private import TorchDispatchMode, pytree, schema

INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
MAKERS = {torch.tensor, torch.as_tensor, Tensor.new_tensor}
FROM_PYTHON = {"lift_fresh", "lift_fresh_copy", "lift"}  # what torch.tensor() comes to


class Found(NamedTuple):
    """One operation: ``wait`` or ``copy`` stall the host, ``host`` makes a tensor there."""

    kind: str
    what: str


class _FromPython(TorchFunctionMode):
    """Sees tensors made of Python's numbers on the device: meta has none to copy."""

    def __init__(self, note) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func, types, args=(), kwargs=None):
        device = "refused"  # by the GPU, which is asked not to wait for the copy
        try:
            result = func(*args, **(kwargs or {}))
            device = result.device.type if func in MAKERS else "cpu"
        finally:
            from_numbers = not any(isinstance(value, Tensor) for value in args[-1:])
            if func in MAKERS and device != "cpu" and from_numbers:
                self._note("copy", f"{func.__name__} of Python's numbers")
        return result


class Capturing(TorchDispatchMode):
    """Notes, as long as it is entered, what a capture on CUDA would refuse; ``found`` says where.

    Nothing is raised: a step that falls back where its graph fails would hide it.

    Arguments:
        waits_alone: Count waits, of which there may be some, on any device; else PyTorch is told
            to refuse them where there is a GPU, and the CPU is no device.
    """

    def __init__(self, *, waits_alone: bool = False) -> None:
        super().__init__()
        self.waits_alone = waits_alone
        self.found: list[Found] = []
        self.operators = 0
        self._stack = ExitStack()

    def __enter__(self) -> "Capturing":
        if not self.waits_alone and torch.cuda.is_available():
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")
            self._stack.callback(torch.cuda.set_sync_debug_mode, before)
        waiting = mock.patch.object(torch.cuda, "synchronize", self._synchronize)
        self._stack.enter_context(waiting)
        self._stack.enter_context(_FromPython(self._note))
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._stack.close()

    def of(self, *kinds: str) -> list[str]:
        """Return what was found of some kinds, each place once."""
        return list(dict.fromkeys(what for kind, what in self.found if kind in kinds))

    def _synchronize(self, device=None) -> None:
        self._note("wait", "torch.cuda.synchronize()")

    def _note(self, kind: str, what: str) -> None:
        elsewhere = ("site-packages", "capturing.py", "frozen")
        places = [
            f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
            for frame in reversed(traceback.extract_stack())
            if not any(name in frame.filename for name in elsewhere)
        ]
        self.found.append(Found(kind, f"{what} at {' < '.join(places[:6])}"))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators += 1
        name = schema(func).name.removeprefix("aten::")
        if name in WAITS:
            self._note("wait", name)
        if name in INDEXED and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self._note("wait", f"{name} by a mask")
        try:
            result = func(*args, **(kwargs or {}))
        except (NotImplementedError, RuntimeError):  # what meta has no values for
            self._note("copy" if name == "_to_copy" else "wait", name)
            raise
        if self.waits_alone:
            return result
        leaves = pytree.tree_leaves((args, kwargs, result))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
        if name in ("_to_copy", "copy_", "to") and len(devices) > 1:
            self._note("copy", f"{name} between {' and '.join(sorted(devices))}")
        elif "cpu" in devices or name in FROM_PYTHON:
            self._note("host", f"{name} on the CPU")
        return result
