"""The operations of one run of a program, in their order, to be compared with those of another."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_vae.torch_private import TorchDispatchMode, version_of

# How values leave PyTorch without an operation.
WAYS_OUT = {
    Tensor.numpy: ".numpy()",
    Tensor.tolist: ".tolist()",
    Tensor.__array__: "NumPy",
    Tensor.__dlpack__: "DLPack",
}
_BYTES = 1 << 16  # of a constant that is copied; a larger one is told by its identity


class Course(TorchDispatchMode):
    """Writes down what runs inside: each operation, what its arguments come from, its numbers.

    What leaves PyTorch is written down too: Python may do with it what it likes. Two runs of a
    program that keeps nothing outside its tensors are equal in this, whatever the rows and weights,
    at a fiftieth of the price of a trace.
    """

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[Any] = []
        self._constants: list[_Constant] = []
        self._known = WeakTensorKeyDictionary()
        self._memory: dict[int, int] = {}
        self._way_out = _WayOut(self)

    def __enter__(self) -> "Course":
        self._way_out.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._way_out.__exit__(*error)

    def take(self, inputs: Iterable[Tensor]) -> None:
        """Take tensors for inputs, which may hold other values in another run."""
        for place, tensor in enumerate(inputs):
            self._known[tensor] = place
            self._memory.setdefault(memory_of(tensor), place)
        self._memory.pop(0, None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        described = self._describe(args), self._describe([*named, *named.values()])
        result = func(*args, **named)
        place = len(self._steps)
        self._steps.append((func, *described))
        several = result if isinstance(result, list | tuple) else (result,)
        for index, tensor in enumerate(several):
            if isinstance(tensor, Tensor):
                self._known[tensor] = (place, index)
        return result

    def note(self, event: Any, *about: Any) -> None:
        """Write down what is no operation."""
        self._steps.append((event, self._describe(about)))

    def same_as(self, other: "Course") -> bool:
        """Return whether two runs have the same operations with the same constants."""
        mine, its = self._constants, other._constants
        return (
            self._steps == other._steps
            and len(mine) == len(its)
            and all(a.equals(b) for a, b in zip(mine, its, strict=True))
        )

    def constants(self) -> list[Tensor]:
        """Return the tensors that no operation has made and that are no inputs."""
        return [constant.tensor for constant in self._constants]

    def _describe(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            place = self._known.get(value)
            return self._stranger(value) if place is None else place
        if isinstance(value, list | tuple):
            return tuple([self._describe(entry) for entry in value])
        return type(value), repr(value)  # NaN equals itself, and 1 is not True

    def _stranger(self, value: Tensor) -> Any:
        """Describe a tensor that no operation has made: a view of an input, or a constant."""
        place: Any = self._memory.get(memory_of(value))
        if place is None:
            place = ("constant", len(self._constants))
            self._constants.append(_Constant.of(value))
        else:
            place = ("view", place, value.storage_offset(), value.shape, value.stride())
        self._known[value] = place
        return place


class _WayOut(TorchFunctionMode):
    """Tells a course of values that leave PyTorch."""

    def __init__(self, course: Course) -> None:
        super().__init__()
        self._course = course

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in WAYS_OUT:
            self._course.note(WAYS_OUT[func], args[0])
        return func(*args, **(kwargs or {}))


class _Constant(NamedTuple):
    tensor: Tensor
    version: int
    copy: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor) -> "_Constant":
        small = tensor.numel() * tensor.element_size() <= _BYTES
        return cls(tensor, version_of(tensor), tensor.detach().clone() if small else None)

    def equals(self, other: "_Constant") -> bool:
        if self.tensor is other.tensor and self.version == other.version:
            return True
        if self.copy is None or other.copy is None:
            return False
        alike = self.copy.shape == other.copy.shape and self.copy.dtype == other.copy.dtype
        return alike and (self.copy.is_meta or torch.equal(self.copy, other.copy))


def memory_of(tensor: Tensor) -> int:
    """Return where a tensor's memory starts; 0 of one that has none of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse, or on no device
        return 0
