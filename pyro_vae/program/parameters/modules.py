"""The modules behind Pyro functions: finding them, their mode, the parameters behind a number."""

import functools
import inspect
import random
from collections.abc import Container, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyro_vae.errors import ProgramError
from pyro_vae.program.parameters.object_graph import PROGRAM, reachable
from pyro_vae.torch_private import version_of


def owners(*functions: Any, given: Iterable[nn.Module] = ()) -> dict[str, nn.Module]:
    """Return the modules that Pyro functions use, as far as they can be reached, by name.

    First come those that own the functions or that these refer to by a variable, under its name;
    then those that lie deeper, under the names on the way to them.

    Arguments:
        functions: Model and guide.
        given: Modules that have names already: they are not named again by a way to them.
    """
    deep = list(reachable(*functions))
    inside = {id(part) for _, module in deep for part in module.modules()}
    near = [pair for function in functions for pair in _owners(function) if id(pair[1]) in inside]
    found: dict[str, nn.Module] = {}
    held = {id(part) for module in given for part in module.modules()}
    for name, module in near:
        if not any(module is known for known in found.values()):
            found[unique_name(found, name)] = module
            held |= {id(part) for part in module.modules()}
    for name, module in deep:
        if id(module) not in held:
            found[unique_name(found, name)] = module
            held |= {id(part) for part in module.modules()}
    return found


def library_method(source: Any, name: str) -> Any:
    """Return a method of a program of this library; None of another, whose name is a user's."""
    kinds = type(source).__mro__
    own = any(name in vars(kind) for kind in kinds if kind.__module__.startswith("pyro_vae."))
    return getattr(source, name) if own else None


def unique_name(taken: Container[str], name: str) -> str:
    """Return a name that ``nn.ModuleDict`` can hold and that is not taken."""
    if hasattr(nn.ModuleDict, name) or hasattr(nn.Module(), name):
        name = f"{name}_"
    count, unique = 2, name
    while unique in taken:  # two modules of one class, say: both train
        unique, count = f"{name}_{count}", count + 1
    return unique


def _owners(function: Any) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(function, nn.Module):
        yield type(function).__name__, function
        return
    if isinstance(function, functools.partial):
        yield from _owners(function.func)
        return
    owner = getattr(function, "__self__", None)
    if isinstance(owner, nn.Module):
        yield type(owner).__name__, owner
    elif owner is not None:
        yield from _modules_in({k: v for k, v in vars(owner).items() if k != PROGRAM})
    else:
        try:
            names = inspect.getclosurevars(inspect.unwrap(function))
        except TypeError:
            return
        except ValueError as error:  # an empty cell
            raise ProgramError(
                f"{getattr(function, '__qualname__', 'a function')}: uses a variable of the "
                "function around it that has no value yet; define it before the program is made"
            ) from error
        yield from _modules_in({**names.globals, **names.nonlocals})


def _modules_in(names: dict[str, Any]) -> Iterator[tuple[str, nn.Module]]:
    for name, part in names.items():
        if issubclass(type(part), nn.Module):
            yield name, part
        elif type(part) is MethodType and isinstance(part.__self__, nn.Module):
            yield type(part.__self__).__name__, part.__self__  # the networks' owner


def leaves_behind(value: Tensor) -> list[Tensor]:
    """Return the tensors whose gradients a number gives, in the order of its graph."""
    found: list[Tensor] = []
    seen: set[Any] = set()
    stack = [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            found.append(variable)
        stack.extend(parent for parent, _ in node.next_functions)
    return found


def frozen_parts(module: nn.Module) -> list[nn.Module]:
    """Return the parts that a user has frozen: in eval mode, with weights, none of them trained.

    Their own parts come with them: normalisation and dropout inside have no say of their own.
    """
    found: dict[nn.Module, None] = {}
    for part in module.modules():
        weights = list(part.parameters())
        if weights and not part.training and not any(p.requires_grad for p in weights):
            found |= dict.fromkeys(part.modules())
    return list(found)


def trainable_parts(module: nn.Module) -> list[nn.Module]:
    """Return the parts with a weight that is trained."""
    return [part for part in module.modules() if any(p.requires_grad for p in part.parameters())]


_FOR_A_WHILE: set[int] = set()  # ids of modules whose mode is another one inside a block


def rest_new(module: nn.Module, known: Container[str]) -> None:
    """Put parts that have come into eval mode where the part that holds them is in that.

    Not where it is in that for the time of a look alone (``evaluating``).

    Arguments:
        module: All of them lie in it.
        known: The names of those that were there before.
    """
    parts = dict(module.named_modules())
    for name, part in parts.items():
        home = parts[name.rpartition(".")[0]]
        if name not in known and not home.training and id(home) not in _FOR_A_WHILE:
            part.eval()


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the global generators of NumPy and Python back, on leaving, to what they were."""
    numpy, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(numpy)  # noqa: NPY002
        random.setstate(python)


def seed_generators(seed: int) -> None:
    """Seed the global generators, inside a block that puts them back.

    Not by torch.manual_seed: it costs a millisecond where CUDA has not been used.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


_SMALL = 1 << 20  # numbers of a buffer that is copied, to be put back


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Put small buffers that a program writes into, as a counter of its calls, back on leaving."""
    made = [b for b in module.buffers() if not (is_lazy(b) or b.is_meta)]
    small = [b for b in made if b.numel() <= _SMALL]
    held = [(buffer, version_of(buffer), buffer.detach().clone()) for buffer in small]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, version, before in held:
                if version_of(buffer) != version:
                    buffer.copy_(before)


def make_dense(parameters: Iterable[Tensor]) -> None:
    """Give memory of their own to parameters that are a slice of another tensor, or expanded.

    Pyro's store does so too. The kernels of optimizers walk from a parameter's first number on.
    """
    for parameter in parameters:
        if not (is_lazy(parameter) or parameter.is_sparse or _is_dense(parameter)):
            parameter.data = parameter.data.contiguous()


def _is_dense(value: Tensor) -> bool:
    """Return whether each number has a place of its own, with none between them."""
    filled = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size != 1:
            if stride != filled:
                return False
            filled *= size
    return True


@contextmanager
def off_zero(module: nn.Module) -> Iterator[bool]:
    """Move the numbers among the parameters that are near zero inside a block, and put them back.

    A weight that starts at zero hides what it multiplies. Yields whether there are some.
    """
    make_dense(module.parameters())
    # Not detach: a graph that is about counts the versions of its parameters.
    values = [p.data for p in module.parameters() if p.is_floating_point() and not p.is_meta]
    flat = [(value, value.as_strided((value.numel(),), (1,))) for value in values]
    places = [(*both, (both[1].abs() < 1e-3).nonzero()[:, 0]) for both in flat]
    held = [(value, row, zero, row[zero]) for value, row, zero in places if len(zero)]
    generator = torch.Generator().manual_seed(0)
    for value, row, zero, _ in held:
        signs = torch.randint(0, 2, (len(zero),), generator=generator) * 2 - 1
        size = 0.1 / (value.shape[-1] if value.dim() else 1) ** 0.5  # a sum of many stays small
        row[zero] = (size * signs * (1 + torch.rand(len(zero), generator=generator))).to(value)
    try:
        yield bool(held)
    finally:
        for _, row, zero, before in held:
            row[zero] = before


@contextmanager
def set_apart(module: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Yield the parameters, no two numbers among them equal, and put them back.

    Of weights that start alike nothing shows which of them is looked up.
    """
    make_dense(module.parameters())
    every = (p for p in module.parameters() if not is_lazy(p))
    held = [p for p in every if p.is_floating_point() and not p.is_meta]
    before = [parameter.data.clone() for parameter in held]
    generator = torch.Generator().manual_seed(0)
    try:
        for value in (parameter.data for parameter in held):
            value.mul_(1 + 0.2 * torch.rand(value.shape, generator=generator).to(value))
        with off_zero(module):
            yield held
    finally:
        for parameter, old in zip(held, before, strict=True):
            parameter.data.copy_(old)


def evaluating(module: nn.Module) -> AbstractContextManager[None]:
    """Put a module into eval mode inside a block, and each of its parts back as it was.

    A part that has come meanwhile is in eval mode from then on where the part that holds it is.
    """
    return _in_mode(module, False)


def training(module: nn.Module) -> AbstractContextManager[None]:
    """Put a module into train mode inside a block, and each of its parts back as it was."""
    return _in_mode(module, True)


@contextmanager
def _in_mode(module: nn.Module, mode: bool) -> Iterator[None]:
    known = dict(module.named_modules())
    others = [part for part in known.values() if part.training is not mode]
    _FOR_A_WHILE.update(map(id, others))
    try:
        module.train(mode)  # inside: Ctrl-C may come between two parts
        yield
    finally:
        try:
            _set_mode(others, not mode)
        except BaseException:  # Ctrl-C, between two parts
            _set_mode(others, not mode)
            raise
        finally:
            _FOR_A_WHILE.difference_update(map(id, others))
        rest_new(module, known)


def _set_mode(parts: list[nn.Module], mode: bool) -> None:
    for part in parts:
        part.training = mode
