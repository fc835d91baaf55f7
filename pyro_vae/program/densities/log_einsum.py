"""Sums of products in log space that lose no term: what ``opt_einsum`` contracts by.

Pyro's own (``pyro.ops.einsum.torch_log``) takes the exponential of each factor by itself. Where two
factors prefer different values by more nats than a float spans (103 in single precision: a latent
of 64 dimensions, an image), every product is then zero.
"""

import torch
from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import LogRing
from pyro.ops.special import safe_log
from torch import Tensor


class ExactLogRing(LogRing):
    """Pyro's ring of log densities, its sums taken by this module."""

    _backend = "pyro_vae.program.densities.log_einsum"


def transpose(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Permute dimensions."""
    return a.permute(axes)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Return the log of a sum of products of exponentials, by an equation as ``torch.einsum``'s."""
    left, output = equation.split("->")
    inputs = left.split(",")
    summed = sorted(set(left) - {",", *output})
    order = [*output, *summed]
    total: Tensor = sum(
        _aligned(operand, dims, order) for dims, operand in zip(inputs, operands, strict=True)
    )  # type: ignore[assignment]
    if not summed:
        return total.clone()  # Pyro writes the names of dimensions on it
    dims = tuple(range(len(output), len(order)))
    # Finite also where nothing is possible, so that no infinity is taken from itself.
    largest = total.detach().amax(dims, keepdim=True).clamp(min=torch.finfo(total.dtype).min)
    return safe_log((total - largest).exp().sum(dims)) + largest.squeeze(dims)


def _aligned(operand: Tensor, dims: str, order: list[str]) -> Tensor:
    """Return an operand with its dimensions in a common order, of size 1 where it has none."""
    operand = operand.permute([dims.index(symbol) for symbol in order if symbol in dims])
    return operand[tuple(slice(None) if symbol in dims else None for symbol in order)]


tensordot = Tensordot(einsum)
