"""The order in which the elements of a tensor lie in memory."""

from typing import Any

import torch
from torch import Tensor


def same_layout(tensor: Tensor, parameter: Tensor) -> bool:
    """Return whether two tensors of one shape lie alike in memory.

    A fused optimizer walks through both by address: a gradient or a moment laid out otherwise moves
    the wrong weights. Autograd sees to its gradients; kernels of convolutions, and the compiler,
    choose as they like, and a file holds all by rows.
    """
    sides = zip(parameter.shape, tensor.stride(), parameter.stride(), strict=True)
    return all(size == 1 or mine == other for size, mine, other in sides)


def laid_out_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return a tensor of the shape of a parameter as that lies in memory, a copy if need be."""
    if same_layout(tensor, parameter):
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def order_of(tensor: Tensor) -> list[int]:
    """Return the dimensions of a tensor without holes from the outermost in memory inwards."""
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda dim: -strides[dim])


def laid_out_by(order: Any, tensor: Tensor) -> Tensor:
    """Return a tensor with its dimensions in an order in memory; as it is where that is none."""
    plain = isinstance(order, list) and all(type(dim) is int for dim in order)
    if not plain or sorted(order) != list(range(tensor.dim())):
        return tensor
    back = sorted(range(len(order)), key=order.__getitem__)
    return tensor.permute(order).contiguous().permute(back)
