"""Networks of images. Shapes: * any leading dims, C channel, H height, W width."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.arguments import shaped, typed
from pyro_vae.nn.layers import activation_layer, glorot
from pyro_vae.nn.shapes import Shape, as_shape, image_shape, leading_dims


class ConvEncoder(nn.Module):
    """Strided 3x3 convolutions, each halving the image (rounded up), then one affine map.

    Arguments:
        in_shape: image shape (C, H, W).
        out_shape: output event shape.
        channels: channels of each convolution.
        activation: name in `ACTIVATIONS`; "tanh" starts Glorot-uniform, as in `MLP`.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> ConvEncoder((1, 28, 28), 20)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 20])
    """

    @typed
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Sequence[int] = (32, 64),
        *,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.in_shape = image_shape("in_shape", in_shape)
        self.out_shape = as_shape("out_shape", out_shape)
        widths = as_shape("channels", channels)
        layers: list[nn.Module] = []
        for before, after in zip((self.in_shape[0], *widths), widths, strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                activation_layer(activation),
            ]
        self.convolutions = nn.Sequential(*layers)
        height, width = _halvings(self.in_shape[1:], len(widths))[-1]
        self.output = nn.Linear(widths[-1] * height * width, math.prod(self.out_shape))
        if activation == "tanh":
            self.apply(glorot)

    def forward(self, x: Tensor) -> Tensor:
        """Map (*, C, H, W) to (*, out_shape)."""
        lead = leading_dims(x, self.in_shape)
        h = x.reshape(math.prod(lead), *self.in_shape).to(self.output.weight.dtype)
        return self.output(self.convolutions(h).flatten(1)).reshape(lead + self.out_shape)


@typed
class ConvDecoder(nn.Module):
    """The mirror of `ConvEncoder`: one affine map, then transposed 3x3 convolutions.

    Odd sizes are restored exactly: 7 -> 4 -> 7, by the output padding of each layer.

    Arguments:
        in_shape: input event shape.
        out_shape: image shape (C, H, W).
        channels: channels of each hidden layer, the coarsest first.
        activation: name in `ACTIVATIONS`; "tanh" starts Glorot-uniform, as in `MLP`.

    Raises:
        ConfigError: an argument out of its range.

    Example:
        >>> ConvDecoder(20, (1, 28, 28))(torch.zeros(5, 20)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Sequence[int] = (64, 32),
        *,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.in_shape = as_shape("in_shape", in_shape)
        self.out_shape = image_shape("out_shape", out_shape)
        widths = as_shape("channels", channels)
        planes = _halvings(self.out_shape[1:], len(widths))[::-1]  # (h, w), the coarsest first
        self.coarse = (widths[0], *planes[0])
        self.input = nn.Linear(math.prod(self.in_shape), math.prod(self.coarse))
        layers: list[nn.Module] = []
        for i, after in enumerate((*widths[1:], self.out_shape[0])):
            padding = (
                planes[i + 1][0] - 2 * planes[i][0] + 1,
                planes[i + 1][1] - 2 * planes[i][1] + 1,
            )
            layers.append(activation_layer(activation))
            layers.append(
                nn.ConvTranspose2d(widths[i], after, 3, stride=2, padding=1, output_padding=padding)
            )
        self.convolutions = nn.Sequential(*layers)
        if activation == "tanh":
            self.apply(glorot)

    def forward(self, z: Tensor) -> Tensor:
        """Map (*, in_shape) to (*, C, H, W)."""
        lead = leading_dims(z, self.in_shape)
        h = z.reshape(math.prod(lead), math.prod(self.in_shape)).to(self.input.weight.dtype)
        h = self.input(h).reshape(-1, *self.coarse)
        return self.convolutions(h).reshape(lead + self.out_shape)

    @typed
    @torch.no_grad()
    def set_output_bias(self, bias: Tensor) -> None:
        """Start each output channel at the mean over pixels of `bias`, shape (C, H, W)."""
        last = self.convolutions[-1]
        assert isinstance(last, nn.ConvTranspose2d) and last.bias is not None
        last.bias.copy_(shaped("bias", bias, self.out_shape).mean((1, 2)))


def _halvings(plane: Sequence[int], times: int) -> list[tuple[int, int]]:
    """Return the (height, width) before and after each convolution of stride 2."""
    planes = [(plane[0], plane[1])]
    for _ in range(times):
        height, width = planes[-1]
        planes.append(((height + 1) // 2, (width + 1) // 2))
    return planes
