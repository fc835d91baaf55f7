"""The modules behind Pyro functions: finding them, their mode, the parameters behind a number."""

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def owners(*functions: Any) -> dict[str, nn.Module]:
    """Return the modules that own Pyro functions or that they refer to, each once, by name."""
    found: dict[str, nn.Module] = {}
    for function in functions:
        for name, module in _owners(function):
            if any(module is known for known in found.values()):
                continue
            count = 2
            unique = name
            while unique in found:  # two modules of one class, say: both train
                unique, count = f"{name}_{count}", count + 1
            found[unique] = module
    return found


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
        yield from _modules_in(vars(owner))
    else:
        try:
            names = inspect.getclosurevars(inspect.unwrap(function))
        except TypeError:
            return
        yield from _modules_in({**names.globals, **names.nonlocals})


def _modules_in(names: dict[str, Any]) -> Iterator[tuple[str, nn.Module]]:
    for name, part in names.items():
        owner = getattr(part, "__self__", None)
        if isinstance(part, nn.Module):
            yield name, part
        elif isinstance(owner, nn.Module):  # a bound method of the networks' owner
            yield type(owner).__name__, owner


def leaves_behind(value: Tensor) -> list[nn.Parameter]:
    """Return the parameters that a number depends on, in the order of its graph."""
    found: list[nn.Parameter] = []
    seen: set[Any] = set()
    stack = [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
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


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode inside a block, and each of its parts back as it was."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
