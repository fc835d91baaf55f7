"""Mixed precision: networks in bfloat16, distributions, log densities and sums as they are."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from pyro_vae.errors import ConfigError, DataError
from pyro_vae.program.batches.batch import Batch
from pyro_vae.program.program import Program

Precision = Literal["32-true", "64-true", "bf16-mixed"] | None
_DTYPES = {"32-true": torch.float32, "64-true": torch.float64, "bf16-mixed": torch.float32}


def convert(program: Program, precision: Precision) -> bool:
    """Give the parameters the type that a precision asks for; None leaves them.

    Returns:
        Whether one had another type.

    Raises:
        ConfigError: An unknown precision.
    """
    if precision is None:
        return False
    if precision not in _DTYPES:
        hint = "; float16 needs loss scaling, bfloat16 does not" if "16" in str(precision) else ""
        raise ConfigError(
            f"precision: got {precision!r}, expected None (as the program is) or one of "
            f"{list(_DTYPES)}{hint}"
        )
    dtype, tensors = _DTYPES[precision], (*program.parameters(), *program.buffers())
    others = any(tensor.is_floating_point() and tensor.dtype != dtype for tensor in tensors)
    program.to(dtype=dtype)
    return others


def is_of_types(error: Exception) -> bool:
    """Return whether a program has failed on tensors of two types."""
    return any(word in str(error) for word in ("dtype", "scalar type"))


@contextmanager
def default_type_told(precision: Precision) -> Iterator[None]:
    """Name the argument where a program, in this block, takes tensors of one type alone.

    Raises:
        ConfigError: It makes tensors of PyTorch's default type, and another is asked for.
    """
    try:
        yield
    except DataError as error:
        asked = torch.get_default_dtype() if precision is None else _DTYPES[precision]
        if asked == torch.get_default_dtype() or not is_of_types(error):
            raise
        raise ConfigError(f"precision: got {precision!r}, and in it {error}") from error


def contexts(
    program: Program, precision: Precision, batch: Batch
) -> Callable[[], AbstractContextManager[None]]:
    """Return what makes the context in which training steps run.

    Raises:
        ConfigError: Mixed precision for a program without networks.
    """
    if precision != "bf16-mixed":
        return nullcontext
    networks = find_networks(program, batch)
    if not networks:
        raise ConfigError(
            "precision: 'bf16-mixed' runs torch modules in bfloat16, and this program calls none "
            "that maps tensors to tensors; leave precision out"
        )
    return functools.partial(mixed, networks, program.device)


@contextmanager
def mixed(networks: list[nn.Module], device: torch.device) -> Iterator[None]:
    """Run networks under bfloat16 autocast inside, their outputs cast back to float32.

    Autocast around model and guide would give latents and log densities in bfloat16, with two
    digits; around the networks alone it touches only what they multiply.
    """
    kind = "cuda" if device.type == "cuda" else "cpu"
    # As instance attributes: a forward called directly, or traced, is covered like a call.
    before = [vars(network).get("forward") for network in networks]
    for network in networks:
        network.forward = _autocast(network.forward, kind)
    try:
        yield
    finally:
        for network, own in zip(networks, before, strict=True):
            if own is None:
                del network.forward
            else:
                network.forward = own


def find_networks(program: Program, batch: Batch) -> list[nn.Module]:
    """Return the outermost modules that model and guide call as maps from tensors to tensors.

    They are seen at work, once, so that those hidden in a closure are found too. A module that
    returns a distribution or holds a sample statement is no network; its parts may be.
    """
    watch = _Watch()
    before = register_module_forward_pre_hook(watch.enter)
    after = register_module_forward_hook(watch.leave)
    try:
        with watch:
            program.reader.look(batch)
    finally:
        before.remove()
        after.remove()
    found = {id(module): module for module in watch.found if id(module) not in watch.others}
    return list(found.values())


@dataclass
class _Call:
    """One call of a module that is under way."""

    samples: bool = False
    found: list[nn.Module] = field(default_factory=list)


class _Watch(Messenger):
    """Note which modules are called, what they return, and where sample statements stand."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[nn.Module] = []
        self.others: set[int] = set()
        self._calls: list[_Call] = []

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """Begin a call."""
        self._calls.append(_Call())

    def leave(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """End a call, and hand its networks to the caller's."""
        call = self._calls.pop()
        network = not call.samples and _is_tensors(outputs)
        if not network:
            self.others.add(id(module))
        outer = self._calls[-1].found if self._calls else self.found
        outer.extend([module] if network else call.found)

    def _pyro_sample(self, msg: Any) -> None:
        for call in self._calls:
            call.samples = True


def _is_tensors(outputs: Any) -> bool:
    if isinstance(outputs, list | tuple):
        return bool(outputs) and all(_is_tensors(entry) for entry in outputs)
    if isinstance(outputs, dict):
        return bool(outputs) and all(_is_tensors(entry) for entry in outputs.values())
    return isinstance(outputs, Tensor)


def _autocast(forward: Callable[..., Any], kind: str) -> Callable[..., Any]:
    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(kind, torch.bfloat16):
            outputs = forward(*args, **kwargs)
        return _as_float(outputs)

    return wrapped


def _as_float(outputs: Any) -> Any:
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return type(outputs)(*map(_as_float, outputs))
    if isinstance(outputs, list | tuple):
        return type(outputs)(_as_float(entry) for entry in outputs)
    if isinstance(outputs, dict):
        return {name: _as_float(entry) for name, entry in outputs.items()}
    if isinstance(outputs, Tensor) and outputs.dtype == torch.bfloat16:
        return outputs.float()
    return outputs
