"""The private names of PyTorch that this project uses, and what each stands for.

No other module names one (a test sees to it): what a new release of PyTorch moves is mended here.
``tests/test_torch_private.py`` checks what each does. Not counted: ``_validate_sample``,
``_extended_shape`` and ``_get_checked_instance``, through which PyTorch's own distributions are
extended.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn, overrides

# The context that tells a tracer which FakeTensorMode to note shapes with.
from torch._guards import TracingContext as TracingContext
from torch._guards import tracing as tracing

# An operator with one signature: the target of a node of a traced graph.
from torch._ops import OpOverload as OpOverload

# Tensors of a shape without numbers, for tracers and compilers.
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode

# What all batch normalisations are.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.utils import _python_dispatch as dispatch

# Nested lists, tuples and dicts as a list of leaves and a structure, with the user's own classes.
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode as _TorchDispatchMode

__all__ = [
    "MODULE_HOOKS",
    "MODULE_TABLES",
    "BatchNorm",
    "FakeTensorMode",
    "OpOverload",
    "TorchDispatchMode",
    "TracingContext",
    "as_written",
    "compiler",
    "default_store",
    "device_of_to",
    "foreach_copy_",
    "foreach_lerp_",
    "foreach_norm",
    "fused_adam_",
    "gradient_hooks",
    "has_gradient_hooks",
    "leave_function_mode",
    "mode_stacks",
    "native_functions",
    "overlaps_itself",
    "overload_name",
    "put_back_mode_stacks",
    "pytree",
    "schema",
    "skips_by_found_inf",
    "storage_address",
    "tracing",
    "unwarned_of_hooks",
    "validates_values",
    "version_of",
]

# Where a module keeps its parts and parameters, and the hooks that a user gave it.
MODULE_TABLES = ("_modules", "_parameters", "_buffers")
MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# One kernel for a list of tensors: ``torch.nn.utils`` and ``torch.optim`` call these too.
foreach_copy_ = torch._foreach_copy_
foreach_lerp_ = torch._foreach_lerp_
foreach_norm = torch._foreach_norm
fused_adam_ = torch._fused_adam_


class TorchDispatchMode(_TorchDispatchMode):
    """Sees every operator that runs inside."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave ``__torch_dispatch__`` as it is: torch's wrapper imports the compiler, a second."""
        return False


@contextmanager
def as_written() -> Iterator[None]:
    """Run inside, as it was written, what a user has compiled by ``torch.compile``.

    Compiled for a look, it would be compiled with the handlers of the look; a tracer refuses it.
    """
    if "torch._dynamo" not in sys.modules:  # importing it takes a second
        yield
        return
    with (
        import_module("torch._dynamo.config").patch(error_on_nested_fx_trace=False),
        torch.compiler.set_stance("force_eager"),
    ):
        yield


@contextmanager
def unwarned_of_hooks() -> Iterator[None]:
    """Drop the warning that hooks of all modules call a compiled module's hook once more."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there are")
        yield


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor has been written to, as autograd counts it; 0 if it does not."""
    return 0 if tensor.is_inference() else int(tensor._version)


def storage_address(tensor: Tensor) -> int:
    """Return what identifies a tensor's storage, with data or without (on ``meta``).

    A sparse tensor has none: the tensor itself stands for it.
    """
    if tensor.layout is not torch.strided:
        return id(tensor)
    return int(tensor.untyped_storage()._cdata)


def overlaps_itself(tensor: Tensor) -> bool:
    """Return whether two places of a tensor certainly share memory (``expand``)."""
    return torch._debug_has_internal_overlap(tensor) == 1


def gradient_hooks(parameter: Tensor) -> MutableMapping[int, Any]:
    """Return the hooks that see a tensor's gradient, by their numbers."""
    hooks = parameter._backward_hooks
    return {} if hooks is None else hooks


def step_hooks(optimizer: torch.optim.Optimizer) -> list[Callable[..., Any]]:
    """Return the hooks that run before and after each step of an optimizer."""
    kinds = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    return [hook for kind in kinds for hook in kind.values()]


def has_gradient_hooks(parameter: nn.Parameter) -> bool:
    """Return whether hooks wait for a parameter's gradient, before or after it is added."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def schema(operator: OpOverload) -> Any:
    """Return the signature of an operator: name, arguments, results, what it writes to."""
    return operator._schema


def overload_name(operator: OpOverload) -> str:
    """Return which of the signatures of an operator this is: ``"Tensor"``."""
    return str(operator._overloadname)


def native_functions() -> tuple[Any, ...]:
    """Return where PyTorch keeps the C functions behind ``torch.add``, ``F.linear``, ``x.add``."""
    return torch._C._VariableFunctions, torch._C._nn, torch._C.TensorBase


def device_of_to(*args: Any, **kwargs: Any) -> torch.device | None:
    """Return the device that arguments of ``nn.Module.to`` name, if they name one."""
    device: torch.device | None = torch._C._nn._parse_to(*args, **kwargs)[0]
    return device


def leave_function_mode(mode: overrides.TorchFunctionMode) -> None:
    """Take a mode that has been entered off the stack, and leave those that have come upon it."""
    above = []
    while (top := overrides._pop_mode()) is not mode:
        above.append(top)
    for other in reversed(above):
        overrides._push_mode(other)


def mode_stacks() -> tuple[Any, ...]:
    """Return what has been entered: modes of functions and of operators, levels of torch.func."""
    flags = {k: v for k, v in vars(dispatch).items() if k.startswith("_is_in_") and v in (0, 1)}
    return (
        overrides._get_current_function_mode_stack(),
        dispatch._get_current_dispatch_mode_stack(),
        torch._C._functorch.get_dynamic_layer_stack_depth(),
        flags,
    )


def put_back_mode_stacks(before: tuple[Any, ...]) -> None:
    """Leave what ``mode_stacks`` has not returned, and enter again what it has."""
    functions, operators, levels, flags = before
    if torch._C._functorch.get_dynamic_layer_stack_depth() > levels:
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(levels)
    stacks = (
        (functions, overrides._get_current_function_mode_stack, overrides),
        (operators, dispatch._get_current_dispatch_mode_stack, dispatch),
    )
    for wanted, now, module in stacks:
        while (found := now()) != wanted[: len(found)]:
            module._pop_mode()
        for mode in wanted[len(found) :]:
            module._push_mode(mode)
    vars(dispatch).update(flags)
    with TorchDispatchMode():  # which puts back, on leaving, the copy of the flags in C
        pass


def skips_by_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer leaves out a step on the device where ``found_inf`` is 1."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def default_store() -> Any:
    """Return the store of the default process group: where one rank can leave word for another."""
    return torch_dist.distributed_c10d._get_default_store()


def validates_values() -> bool:
    """Return whether distributions made now check their values: ``validate_args`` as a default."""
    return bool(torch.distributions.Distribution._validate_args)


def compiler(module: str = "") -> Any:
    """Return TorchInductor, or a module of it; takes seconds at first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's own, on import
        import_module("torch._inductor.compile_fx")  # what the others import when they run
        return import_module(f"torch._inductor.{module}" if module else "torch._inductor")
