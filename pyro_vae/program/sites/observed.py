"""Which argument each observed site observes: found by identity of memory, written back alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_vae.errors import ProgramError
from pyro_vae.program.batches.batch import named_arguments
from pyro_vae.torch_private import storage_address

Key = int | str  # of an argument: its position, or its keyword

# What makes a copy of the same values: a site that observes the result observes the source.
_COPYING = ("to", "type", "float", "double", "half", "long", "int", "bool", "contiguous", "clone")
_COPIES = (torch.clone, *(getattr(Tensor, name) for name in _COPYING))


@dataclass(frozen=True)
class View:
    """A view of a dense tensor of rows, whatever their number: its sizes, strides and offset.

    Arguments:
        shape: Sizes; None stands for the number of rows.
        stride: Strides, the same for any number of rows.
        offset: First element.
        whole: Whether it holds each element once, in order: a reshape.
    """

    shape: tuple[int | None, ...]
    stride: tuple[int, ...]
    offset: int
    whole: bool

    def read(self, base: Tensor) -> Tensor:
        """Return the view of another tensor of the same layout."""
        shape = [len(base) if size is None else size for size in self.shape]
        if self.whole:
            return base.reshape(shape)
        dense = base.contiguous()
        return dense.as_strided(shape, self.stride, dense.storage_offset() + self.offset)

    def write(self, base: Tensor, value: Tensor) -> Tensor:
        """Return a tensor with the view's elements replaced."""
        if self.whole:
            return value.reshape(base.shape).to(base.dtype)
        changed = base.clone(memory_format=torch.contiguous_format)
        self.read(changed).copy_(value)
        return changed


@dataclass(frozen=True)
class Cast:
    """A copy in another dtype."""

    dtype: torch.dtype

    def read(self, base: Tensor) -> Tensor:
        """Return the copy."""
        return base.to(self.dtype)

    def write(self, base: Tensor, value: Tensor) -> Tensor:
        """Return the values in the dtype of the source."""
        return value.to(base.dtype)


@dataclass(frozen=True)
class Binding:
    """How an observed value is cut from an argument.

    Arguments:
        key: The argument's position or keyword.
        steps: Views and casts between the argument and the value, in order.
        computed: Whether the model computes the value: known by name alone, the argument stands
            for it.
    """

    key: Key
    steps: tuple[View | Cast, ...] = ()
    computed: bool = False

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Return what the site observes of a model's arguments."""
        return self.read(kwargs[self.key] if isinstance(self.key, str) else args[self.key])

    def read(self, argument: Tensor) -> Tensor:
        """Return what the site observes of an argument."""
        for step in self.steps:
            argument = step.read(argument)
        return argument

    def write(self, argument: Tensor, value: Tensor) -> Tensor:
        """Return the argument with what the site observes replaced."""
        if not self.steps:
            return value.to(argument.dtype)
        stages = [argument]
        for step in self.steps[:-1]:
            stages.append(step.read(stages[-1]))
        for step, stage in zip(reversed(self.steps), reversed(stages), strict=True):
            value = step.write(stage, value)
        return value


class Copies(TorchFunctionMode):
    """Record which tensors are copies of which while a program runs."""

    def __init__(self) -> None:
        super().__init__()
        self._sources: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, and note where it only copies."""
        result = func(*args, **(kwargs or {}))
        if func in _COPIES and isinstance(result, Tensor):
            address = storage_address(result)
            if address != storage_address(args[0]):
                self._sources[address] = (result, args[0])  # kept alive: memory is reused
        return result

    def source(self, value: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return ``(copy, original)`` where a value lies in the memory of a copy."""
        return self._sources.get(storage_address(value))


def replaced_by_name(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with those replaced that go by the name of an observed site.

    Raises:
        ProgramError: A site is no argument of the function.
    """
    names = list(named_arguments(function, args, kwargs))
    for site in values:
        if site not in names:
            raise ProgramError(
                f"observed site {site!r} is no argument of the model {sorted(names)}; give the "
                "site and the argument one name"
            )
    positional = tuple(values.get(n, a) for n, a in zip(names, args, strict=False))
    return positional, {name: values.get(name, value) for name, value in kwargs.items()}


class _Stand:
    """Stands for an argument that nobody gave, whatever a model makes of it on the way."""

    def __getattr__(self, name: str) -> "_Stand":
        if name.startswith("__"):  # torch and copy look for these
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> "_Stand":
        return self

    def __getitem__(self, place: Any) -> "_Stand":
        return self


class _Met(Exception):
    """Ends a run at a site that observes what stands for an argument."""


class _Meeting(Messenger):
    def _pyro_sample(self, message: Any) -> None:
        if isinstance(message["value"], _Stand):
            raise _Met


def would_observe(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str
) -> bool:
    """Return whether a site of a model observes an argument that it was not given.

    Arguments:
        function: The model.
        args, kwargs: What it was given.
        name: The argument.
    """
    try:
        with _Meeting():
            function(*args, **{**kwargs, name: _Stand()})
    except _Met:
        return True
    except Exception:  # what stands for the argument is no tensor
        pass
    return False


def bindings_of(
    sites: Mapping[str, Any],
    arguments: Mapping[Key, Any],
    keys: Mapping[str, Key],
    declared: Mapping[str, str],
    rows: int | None,
    dim: int,
    copies: Copies,
) -> dict[str, Binding]:
    """Return where the values of observed sites come from: as declared, by memory, or by name.

    Arguments:
        sites: The observed sites, from a trace of the model.
        arguments: The model's arguments, by position and keyword.
        keys: Those by the names that the model gives them.
        declared: Names of arguments by site.
        rows: B; None where the arguments have no rows.
        dim: The dimension of the data plate, counted from the right.
        copies: What was copied while the model ran.

    Raises:
        ProgramError: What is declared is no argument.
    """
    found: dict[str, Binding] = {}
    for name, site in sites.items():
        asked = declared.get(name)
        if asked is not None and not isinstance(arguments.get(keys.get(asked, -1)), Tensor):
            raise ProgramError(
                f"observed: got {name!r} observing {asked!r}, expected one of {sorted(keys)}"
            )
        value = site["value"]
        row_dim = value.dim() - len(site["fn"].event_shape) + dim
        binding = None
        if asked is None:
            binding = bind(value, arguments, rows, row_dim, copies)
        # A copy may have been written to since: then its values are computed, too.
        if binding is not None and not _reads(binding, arguments[binding.key], value):
            binding = None
        label = asked or name
        if binding is None and isinstance(arguments.get(keys.get(label, -1)), Tensor):
            binding = Binding(keys[label], computed=True)
        if binding is not None:
            found[name] = binding
    return found


def bind(
    value: Tensor, arguments: Mapping[Key, Any], rows: int | None, row_dim: int, copies: Copies
) -> Binding | None:
    """Return where a value comes from; None for one that the model computes.

    Arguments:
        value: What a site observes.
        arguments: The model's arguments.
        rows: B; None where the arguments have no rows.
        row_dim: The value's dimension of rows, counted from the left.
        copies: What was copied while the model ran.
    """
    steps: list[View | Cast] = []
    while True:
        for key, argument in arguments.items():
            if isinstance(argument, Tensor) and _shares(value, argument):
                view = _view(value, argument, rows, row_dim)
                return None if view is None else Binding(key, (view, *reversed(steps)))
        found = copies.source(value)
        if found is None:
            return None
        copy, original = found
        view = _view(value, copy, rows, row_dim)
        if view is None:
            return None
        steps += [view, Cast(copy.dtype)]
        value, row_dim = original, 0 if original.shape[:1] == (rows,) else row_dim


def _reads(binding: Binding, argument: Tensor, value: Tensor) -> bool:
    """Return whether a binding gives what the site observed; a value without data is believed."""
    return value.is_meta or torch.equal(binding.read(argument), value)


def _shares(value: Tensor, argument: Tensor) -> bool:
    return storage_address(value) == storage_address(argument) and value.dtype == argument.dtype


def _view(value: Tensor, base: Tensor, rows: int | None, row_dim: int) -> View | None:
    """Return the view that a value is of a tensor of rows; None where it is cut across rows."""
    if rows is None:
        return _any_view(value, base)
    if base.shape[:1] != (rows,) or not 0 <= row_dim < value.dim() or value.shape[row_dim] != rows:
        return None
    shape = tuple(None if d == row_dim else size for d, size in enumerate(value.shape))
    offset = int(value.storage_offset()) - int(base.storage_offset())
    dense = base.is_contiguous()
    same = value.shape == base.shape and value.stride() == base.stride()
    reshaped = dense and value.is_contiguous() and value.numel() == base.numel() and row_dim == 0
    if offset == 0 and (same or reshaped):
        return View(shape, value.stride(), 0, whole=True)
    if not dense or (rows > 1 and value.stride(row_dim) != base.stride(0)):
        return None
    strides = list(value.stride())
    strides[row_dim] = base.stride(0)
    return View(shape, tuple(strides), offset, whole=False)


def _any_view(value: Tensor, base: Tensor) -> View | None:
    """Return the view that a value is of a dense tensor without rows."""
    if not base.is_contiguous():
        return None
    whole = value.numel() == base.numel() and value.is_contiguous()
    offset = int(value.storage_offset()) - int(base.storage_offset())
    return View(tuple(value.shape), value.stride(), offset, whole)
