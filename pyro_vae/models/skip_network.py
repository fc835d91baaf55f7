"""A network that meets its input at every layer. Shapes: * any leading dims."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.nn import Shape, activation_layer, as_shape, sizes


class SkipMLP(nn.Module):
    r"""A multi-layer perceptron with generative skip connections: z enters each layer.

    .. math:: h_l = f(W_l h_{l-1} + V_l z + b_l), \quad h_0 = z

    As a decoder it keeps more information between code and data than the plain network of the
    same sizes, which makes the code harder to ignore.

    Arguments:
        in_shape: input event shape.
        out_shape: output event shape.
        hidden: widths of the hidden layers.
        activation: name in `pyro_vae.nn.ACTIVATIONS`, or "glu".

    References:
        Avoiding latent variable collapse with generative skip models (Dieng et al., 2019),
        arXiv:1807.04863.

    Example:
        >>> SkipMLP(20, 784, hidden=(400, 400))(torch.zeros(5, 20)).shape
        torch.Size([5, 784])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden: Sequence[int] = (400,),
        *,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.in_shape = as_shape("in_shape", in_shape)
        self.out_shape = as_shape("out_shape", out_shape)
        size, gate = math.prod(self.in_shape), 2 if activation == "glu" else 1
        self.activation = nn.GLU(-1) if gate == 2 else activation_layer(activation)
        widths = sizes("hidden", hidden)
        outs = (*(gate * width for width in widths), math.prod(self.out_shape))
        self.layers: Any = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip((size, *widths), outs, strict=True)
        )
        self.skips = nn.ModuleList(nn.Linear(size, out, bias=False) for out in outs[1:])

    def forward(self, z: Tensor) -> Tensor:
        """Map (*, in_shape) to (*, out_shape)."""
        lead = z.shape[: z.dim() - len(self.in_shape)]
        z = z.reshape(*lead, -1).to(self.layers[0].weight.dtype)
        h = self.layers[0](z)
        for layer, skip in zip(self.layers[1:], self.skips, strict=True):
            h = layer(self.activation(h)) + skip(z)
        return h.reshape(lead + self.out_shape)

    @torch.no_grad()
    def set_output_bias(self, bias: Tensor) -> None:
        """Start the output at `bias`, shape `out_shape`."""
        self.layers[-1].bias.copy_(bias.reshape(-1))
