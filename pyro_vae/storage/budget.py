"""A bound on what a configuration from a stranger may ask for, known before it is allocated."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from pyro_vae.errors import CheckpointError
from pyro_vae.torch_private import TorchDispatchMode, pytree, schema

# Values that building may draw per value that is kept (initial weights, masks, temporaries), and
# what the smallest program may use beside.
_PER_VALUE, _BESIDE = 32, 2**22
_PARAMETERS_BESIDE = 64


class Budget(TorchDispatchMode):
    """Refuse, inside a block, tensors and layers beyond what a file can fill.

    The size of each result is worked out without memory before an operation runs, so that a file of
    a kilobyte can ask neither for a terabyte nor for a million layers.

    Arguments:
        tensors: What the file holds.
        where: The file, for messages.
    """

    def __init__(self, tensors: Iterable[Tensor], where: str) -> None:
        super().__init__()
        held = list(tensors)
        self.held = sum(tensor.numel() for tensor in held)
        self.values = _PER_VALUE * self.held + _BESIDE
        self.parameters = 2 * len(held) + _PARAMETERS_BESIDE  # some give way to others
        self.where = where
        self._hook: Any = None

    def check_numbers(self, config: Any) -> None:
        """Refuse a width or a count that is larger than the number of values in the file.

        Raises:
            CheckpointError: There is one.
        """
        for value in pytree.tree_leaves(config):
            if isinstance(value, int) and abs(value) > self.held + 1000:
                raise self._refusal(f"{value} of something")

    def __enter__(self) -> Any:
        self._hook = register_module_parameter_registration_hook(lambda *_: self._count_parameter())
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hook.remove()
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count the values of a result, then make it."""
        kwargs = kwargs or {}
        if not func.is_view:
            self._count_values(func, args, kwargs)
        return func(*args, **kwargs)

    def _count_values(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        shadows: list[Tensor] = []
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]

        def shadow(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                shadows.append(
                    torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
                )
                return shadows[-1]
            return torch.device("meta") if isinstance(leaf, torch.device) else leaf

        named = {argument.name for argument in schema(func).arguments}
        meta = pytree.tree_map(shadow, kwargs)
        if not given and "device" in named:
            meta["device"] = torch.device("meta")
        try:
            result = func(*pytree.tree_map(shadow, args), **meta)
        except (RuntimeError, NotImplementedError):
            return  # it depends on values, and gives no more of them than it is given
        made = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        known = {id(leaf) for leaf in shadows}
        self.values -= sum(leaf.numel() for leaf in made if id(leaf) not in known)
        if self.values < 0:
            raise self._refusal("tensors")

    def _count_parameter(self) -> None:
        self.parameters -= 1
        if self.parameters < 0:
            raise self._refusal("layers")

    def _refusal(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.where}: its configuration asks for {what}, beyond the {self.held} values that "
            "the file holds; it was not written by pv.save"
        )
