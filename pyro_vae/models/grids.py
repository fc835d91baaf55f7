"""Convolutions between an image and a grid of vectors. Shapes: * any leading dims, P places."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.arguments import positive
from pyro_vae.errors import ConfigError
from pyro_vae.nn import activation_layer, image_shape, sizes


def grid_of(data_shape: Sequence[int], num_layers: int) -> tuple[int, int]:
    """Return the (height, width) of an image after halvings, each rounded up."""
    _, height, width = image_shape("data_dim", data_shape)
    for _ in range(num_layers):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


class _Residual(nn.Module):
    """Two convolutions inside, added to what they read."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.inner = nn.Sequential(
            activation_layer(activation),
            nn.Conv2d(channels, inner, 3, padding=1),
            activation_layer(activation),
            nn.Conv2d(inner, channels, 1),
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.inner(h)


class _Double(nn.ConvTranspose2d):
    """A transposed 4x4 convolution that doubles an image, less a row or column of an odd size.

    Two taps along each side meet every pixel: three would leave a chequered pattern (Odena et al.,
    2016, "Deconvolution and checkerboard artifacts").
    """

    def __init__(self, before: int, after: int, plane: tuple[int, int]) -> None:
        super().__init__(before, after, 4, stride=2, padding=1)
        self.plane = plane

    def forward(self, h: Tensor) -> Tensor:  # type: ignore[override]
        height, width = self.plane
        return super().forward(h)[..., :height, :width]


class GridEncoder(nn.Module):
    """Strided 3x3 convolutions, each halving the image, a residual block, one vector per place.

    Arguments:
        in_shape: image shape (C, H, W).
        code_dim: D, numbers per place.
        channels: channels of each convolution, at least one.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.

    Example:
        >>> GridEncoder((1, 28, 28), 16)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 49, 16])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        code_dim: int,
        channels: Sequence[int] = (32, 64),
        *,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.in_shape, widths = image_shape("in_shape", in_shape), _channels(channels)
        layers: list[nn.Module] = []
        for before, after in zip((self.in_shape[0], *widths), widths, strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                activation_layer(activation),
            ]
        layers[-1] = _Residual(widths[-1], activation)  # which begins with an activation
        last = nn.Conv2d(widths[-1], positive("code_dim", code_dim), 1)
        self.net = nn.Sequential(*layers, activation_layer(activation), last)

    def forward(self, x: Tensor) -> Tensor:
        """Map (*, C, H, W) to (*, P, D), row by row."""
        lead = x.shape[: x.dim() - 3]
        h = self.net(x.reshape(math.prod(lead), *self.in_shape).to(next(self.parameters()).dtype))
        h = h.flatten(2).transpose(1, 2)
        return h.reshape(*lead, *h.shape[1:])


class GridDecoder(nn.Module):
    """The mirror of `GridEncoder`: vectors on a grid to an image, by transposed convolutions.

    Arguments:
        code_dim: D.
        out_shape: image shape (C, H, W).
        channels: channels of each hidden layer, the coarsest first, at least one.
        activation: name in `pyro_vae.nn.ACTIVATIONS`.

    Example:
        >>> GridDecoder(16, (1, 28, 28))(torch.zeros(5, 49, 16)).shape
        torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self,
        code_dim: int,
        out_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        *,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.out_shape, widths = image_shape("out_shape", out_shape), _channels(channels)
        planes = [grid_of(self.out_shape, n) for n in range(len(widths), -1, -1)]
        self.grid = (positive("code_dim", code_dim), *planes[0])
        layers: list[nn.Module] = [
            nn.Conv2d(code_dim, widths[0], 3, padding=1),
            _Residual(widths[0], activation),
        ]
        for i, after in enumerate((*widths[1:], self.out_shape[0])):
            layers.append(activation_layer(activation))
            layers.append(_Double(widths[i], after, planes[i + 1]))
        self.net = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Map (*, P, D) to (*, C, H, W)."""
        lead = z.shape[:-2]
        h = z.reshape(math.prod(lead), *z.shape[-2:]).to(next(self.parameters()).dtype)
        h = self.net(h.transpose(1, 2).reshape(-1, *self.grid))
        return h.reshape(lead + self.out_shape)

    @torch.no_grad()
    def set_output_bias(self, bias: Tensor) -> None:
        """Start each output channel at the mean over pixels of `bias`, shape (C, H, W)."""
        last = self.net[-1]
        assert isinstance(last, nn.ConvTranspose2d) and last.bias is not None
        last.bias.copy_(bias.reshape(self.out_shape).mean((1, 2)))


def _channels(channels: Sequence[int]) -> tuple[int, ...]:
    widths = sizes("hidden", channels)
    if not widths:
        raise ConfigError("hidden=() is empty; expected channels, each halves the image: (32, 64)")
    return widths
